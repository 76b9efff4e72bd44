"""Convert the audio of free packages to 16 kHz mono FLAC files with a manifest, in addition to the dev data.

    python packages.py --out DATA/packages --unpacked DATA/unpacked --known DATA/unpacked [--jobs 2]

Writes ``OUT/audio``, ``OUT/manifest.csv`` (``task,split,file,label,group,seconds``; the label is the package,
the group the path of the file inside it) and ``OUT/sources.csv`` (``package,version,hours,licences``). Files
that equal a file of a held-out package, of a ``--known`` folder, or an earlier file are skipped. Needs
apt-get and dpkg-deb of Debian, unzip, and ffmpeg (for tracker music and other formats).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
import struct
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import soundfile
from package_table import HELD_OUT, PACKAGES

SAMPLE_RATE = 16_000  # Hz
LONGEST_S = 900.0  # per file; tracker music can loop
SHORTEST_S = 0.05
SOUNDS = (".ogg", ".oga", ".wav", ".flac", ".mp3", ".opus", ".aif", ".aiff", ".au", ".gsm", ".voc", ".wv")
TRACKERS = (".mod", ".xm", ".s3m", ".it")
OTHERS = (".sf2", ".mid", ".midi", ".pat", ".cfg")
ARCHIVES = (".pk3", ".zip", ".jar", ".wad", ".cat")
NAMED_SOUNDS = 1 << 31  # flag of offsets in a sound file of OpenTTD
DOOM_SOUND = 3  # first number of a sampled sound in a WAD file


@dataclass(frozen=True)
class Sound:
    """One file of a package, and the file that it is converted to."""

    package: str
    inside: Path  # relative to the folder of unpacked packages
    file: Path  # relative to the output folder

    @property
    def group(self) -> str:
        """Path inside the package."""
        return self.inside.relative_to(self.package).as_posix()


def run(*command: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess:
    """Run a program without output; callers check the exit status."""
    return subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, check=False)


def download(names: Iterable[str], folder: Path) -> dict[str, Path]:
    """Download package files that do not exist yet, by package.

    Returns:
        Packages without those that the release does not have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not any(folder.glob(f"{name}_*.deb")):
            run("apt-get", "download", "-q", name, folder=folder)
    found = {name: sorted(folder.glob(f"{name}_*.deb")) for name in names}
    return {name: paths[0] for name, paths in found.items() if paths}


def unpack(package: Path, folder: Path) -> None:
    """Unpack audio, scores, soundfonts and the copyright file of a package, including nested archives."""
    done = folder.with_name(folder.name + ".done")
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    patterns = ["*copyright*"]
    for suffix in SOUNDS + TRACKERS + OTHERS + ARCHIVES:
        patterns += [f"*{suffix}", f"*{suffix.upper()}"]
    listing = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
    unpacking = ["tar", "x", "-C", str(folder), "--wildcards", "--no-anchored", *patterns]
    subprocess.run(unpacking, stdin=listing.stdout, capture_output=True, check=False)
    listing.wait()
    for archive in files(folder, ARCHIVES):
        if archive.suffix.lower() == ".wad":
            unpack_wad(archive)
        elif archive.suffix.lower() == ".cat":
            unpack_cat(archive)
        else:
            wanted = [f"*{suffix}" for suffix in SOUNDS + TRACKERS]
            run("unzip", "-qqo", "-C", archive, *wanted, "-d", f"{archive}.d")
        archive.unlink()
    done.touch()


def unpack_wad(path: Path) -> None:
    """Write the scores and sampled sounds of a WAD file to a folder next to it."""
    folder = Path(f"{path}.d")
    folder.mkdir(exist_ok=True)
    content = path.read_bytes()
    count, directory = struct.unpack_from("<II", content, 4)
    for index in range(count):
        start, size, name = struct.unpack_from("<II8s", content, directory + 16 * index)
        lump, stem = content[start : start + size], name.rstrip(b"\0").decode("ascii", "replace")
        if lump.startswith(b"MThd"):
            (folder / f"{stem}.mid").write_bytes(lump)
        elif stem.startswith("DS") and size > 8:
            kind, rate, samples = struct.unpack_from("<HHI", lump)
            if kind == DOOM_SOUND and 8 + samples <= size:
                _write_eight_bit(folder / f"{stem}.wav", lump[8 : 8 + samples], rate)


def unpack_cat(path: Path) -> None:
    """Write the sounds of a sound file of OpenTTD to a folder next to it, with their titles as names."""
    folder = Path(f"{path}.d")
    content = path.read_bytes()
    (first,) = struct.unpack_from("<I", content)
    if not first & NAMED_SOUNDS:
        return
    folder.mkdir(exist_ok=True)
    for index in range((first & ~NAMED_SOUNDS) // 8):
        start, size = struct.unpack_from("<II", content, 8 * index)
        start &= ~NAMED_SOUNDS
        name_end = start + 1 + content[start]
        title = content[start + 1 : name_end].decode("utf-8", "replace").split('"')[1]
        stem = re.sub(r"[^\w-]+", "_", title).strip("_")
        (folder / f"{index:02d}_{stem}.wav").write_bytes(content[name_end : name_end + size])


def _write_eight_bit(path: Path, samples: bytes, rate: int) -> None:
    with soundfile.SoundFile(path, "w", rate, 1, subtype="PCM_U8") as sound:
        sound.buffer_write(b"".join(struct.pack("<h", (value - 128) << 8) for value in samples), "int16")


def files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return files of these kinds in sorted order, without links."""
    found = (path for path in folder.rglob("*.*") if path.suffix.lower() in suffixes)
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def checksums(folder: Path) -> Iterator[str]:
    """Return checksums of all audio files in a folder."""
    for path in files(folder, SOUNDS + TRACKERS):
        yield hashlib.md5(path.read_bytes()).hexdigest()


def held_out_checksums(debs: Path, unpacked: Path) -> set[str]:
    """Return checksums of the audio that is never trained on."""
    found: set[str] = set()
    for name, package in download(HELD_OUT, debs).items():
        unpack(package, unpacked / name)
        found.update(checksums(unpacked / name))
    return found


def collect(packages: Iterable[str], unpacked: Path, seen: set[str]) -> list[Sound]:
    """Return audio files of the packages that are not in ``seen``, and add them to it."""
    sounds = []
    for package in packages:
        for path in files(unpacked / package, SOUNDS + TRACKERS):
            checksum = hashlib.md5(path.read_bytes()).hexdigest()
            if checksum in seen:
                continue
            seen.add(checksum)
            inside = path.relative_to(unpacked)
            key = hashlib.md5(f"{inside}0.00".encode()).hexdigest()[:6]  # same names as the dev data
            stem = re.sub(r"[^\w.-]", "_", path.stem)[:60]
            sounds.append(Sound(package, inside, Path("audio", package, f"{stem}_{checksum[:8]}_{key}.flac")))
    return sounds


def convert(source: Path, target: Path) -> float:
    """Convert one file and return its seconds, or 0.0 if it cannot be read."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial.flac")
        options = ["-map", "0:a:0", "-ac", "1", "-ar", SAMPLE_RATE, "-sample_fmt", "s16", "-t", LONGEST_S]
        begin = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-threads", "1", "-i"]
        outcome = run(*begin, source, *map(str, options), "-bitexact", partial)
        if outcome.returncode or not partial.exists():
            partial.unlink(missing_ok=True)
            return 0.0
        partial.replace(target)
    try:
        seconds = soundfile.info(target).duration
    except soundfile.LibsndfileError:
        return 0.0
    return seconds if seconds < 2 * LONGEST_S else 0.0  # an empty file states a huge length


def licences(folder: Path) -> str:
    """Return the eight most frequent licence names in the copyright file."""
    counts: Counter[str] = Counter()
    for path in sorted(folder.rglob("copyright")):
        text = path.read_text(encoding="utf-8", errors="replace")
        counts.update(name.strip() for name in re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE))
        if not counts:
            known = ("CC-BY-SA", "Creative Commons", "General Public License", "public domain")
            counts.update(f"free-form:{name}" for name in known if name.lower() in text.lower())
    return " | ".join(name for name, _ in counts.most_common(8))


def write_manifest(folder: Path, sounds: list[Sound], seconds: list[float]) -> dict[str, float]:
    """Write the rows of all readable files and return the seconds per package."""
    totals: dict[str, float] = defaultdict(float)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["task", "split", "file", "label", "group", "seconds"])
        for sound, length in zip(sounds, seconds, strict=True):
            if length >= SHORTEST_S:
                row = ["pretrain", "train", sound.file.as_posix(), sound.package, sound.group]
                writer.writerow([*row, f"{length:.3f}"])
                totals[sound.package] += length
    return totals


def write_sources(folder: Path, found: dict[str, Path], unpacked: Path, totals: dict[str, float]) -> None:
    """Write version, hours and licences of each package with audio."""
    with (folder / "sources.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["package", "version", "hours", "licences"])
        for name, path in found.items():
            version = path.name.split("_")[1].replace("%3a", ":")
            if totals.get(name):
                writer.writerow([name, version, f"{totals[name] / 3600:.3f}", licences(unpacked / name)])


def main() -> None:
    """Download, unpack and convert; print a summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--unpacked", type=Path, required=True, help="folder for the packages' files")
    parser.add_argument("--known", type=Path, help="unpacked packages whose files are already in a list")
    parser.add_argument("--debs", type=Path, help="folder for package files; default: OUT/debs")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    debs = arguments.debs or arguments.out / "debs"
    seen = held_out_checksums(debs, arguments.out / "held-out")
    seen.update(checksums(arguments.known) if arguments.known else ())
    found = download(PACKAGES, debs)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda name: unpack(found[name], arguments.unpacked / name), found))
        sounds = collect(found, arguments.unpacked, seen)
        sources = [arguments.unpacked / sound.inside for sound in sounds]
        targets = [arguments.out / sound.file for sound in sounds]
        seconds = list(pool.map(convert, sources, targets))
    totals = write_manifest(arguments.out, sounds, seconds)
    write_sources(arguments.out, found, arguments.unpacked, totals)
    unread = sum(length < SHORTEST_S for length in seconds)
    print(f"{len(sounds) - unread} files, {sum(totals.values()) / 3600:.2f} h, {unread} unreadable")


if __name__ == "__main__":
    main()
