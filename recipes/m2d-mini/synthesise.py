"""Generate audio with free programs: speech of many voices and languages, notes, phrases and scores.

    python synthesise.py speech --out DATA/speech
    python synthesise.py notes --out DATA/notes --unpacked DATA/packages/unpacked
    python synthesise.py scores --out DATA/scores --unpacked DATA/packages/unpacked

Each command writes ``OUT/audio`` (16 kHz mono FLAC), ``OUT/manifest.csv``
(``task,split,file,label,group,seconds``; labels are separated by ';') and ``OUT/sources.csv``
(``package,version,hours,licences``). ``--unpacked`` is the folder written by packages.py. Needs espeak-ng,
flite, festival with its voices (festvox-…), fluidsynth, timidity, apt-get and dpkg-deb of Debian.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from instruments import SCORE_SOUNDFONTS, SOUNDFONTS, Part, all_parts, holds, soundfont_path
from midi import render, write_midi
from packages import SAMPLE_RATE, download, files, licences, run
from speech import FESTIVAL_VOICES, Line, espeak_lines, other_lines, speak
from speech_texts import TEXT_PACKAGES, unpack_catalogues

SCORE_PACKAGES = ("freedm", "freedoom", "openttd-openmsx", "simutrans-data")
SOUNDFONTS_PER_SCORE = 2
VOICES = Path("/usr/share/festival/voices")
LONGEST_SCORE_S = 240.0
SHORTEST_S = 0.2
SILENT = 1e-4  # maximum amplitude of a silent clip


@dataclass(frozen=True)
class Made:
    """A generated clip."""

    file: str  # relative to the output folder
    label: str
    group: str
    seconds: float
    package: str  # of the engine, voice or soundfont


def cut(path: Path, start_s: float = 0.0, length_s: float | None = None) -> np.ndarray:
    """Return a part of a sound file at 16 kHz, mono (S,), without trailing silence."""
    with soundfile.SoundFile(path) as sound:
        rate = sound.samplerate
        sound.seek(min(int(start_s * rate), sound.frames))
        wanted = -1 if length_s is None else int(length_s * rate)
        waveform = sound.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
    if rate != SAMPLE_RATE and len(waveform):
        waveform = soxr.resample(waveform, rate, SAMPLE_RATE, "HQ")
    loud = np.flatnonzero(np.abs(waveform) > SILENT)
    return waveform[: loud[-1] + 1] if len(loud) else waveform[:0]


def write_clip(out: Path, name: str, waveform: np.ndarray) -> float:
    """Write a clip and return its seconds, or 0.0 if it is too short."""
    seconds = len(waveform) / SAMPLE_RATE
    if seconds < SHORTEST_S:
        return 0.0
    target = out / name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial.flac")
    soundfile.write(partial, waveform.clip(-1, 32767 / 32768), SAMPLE_RATE, subtype="PCM_16")
    partial.replace(target)
    return seconds


def made_before(out: Path, names: list[str]) -> dict[str, float]:
    """Return the seconds of each clip if an interrupted call has made all of them."""
    if not all((out / name).exists() for name in names):
        return {}
    return {name: soundfile.info(out / name).duration for name in names}


def make_speech(line: Line, out: Path) -> list[Made]:
    """Generate one spoken text."""
    key = hashlib.md5(repr(line).encode()).hexdigest()[:12]
    name = f"audio/{line.engine}/{line.language}/{line.variant or line.voice}_{key}.flac".replace(" ", "-")
    seconds = made_before(out, [name]).get(name)
    if seconds is None:
        with tempfile.TemporaryDirectory() as folder:
            spoken = Path(folder, "spoken.wav")
            waveform = cut(spoken) if speak(line, spoken) else np.empty(0, np.float32)
        seconds = write_clip(out, name, waveform)
    package = f"festival:{line.voice}" if line.engine == "festival" else line.engine
    return [Made(name, line.label, line.voice, seconds, package)] if seconds else []


def make_part(part: Part, fonts: dict[str, Path], out: Path) -> list[Made]:
    """Generate the clips of one rendered part."""
    key = hashlib.md5(repr(part).encode()).hexdigest()[:8]
    program = "drums" if part.program is None else f"{part.program:03d}"
    names = [f"audio/{part.soundfont}/{program}_{key}_{index:02d}.flac" for index in range(len(part.clips))]
    seconds = made_before(out, names)
    if not seconds:
        with tempfile.TemporaryDirectory() as folder:
            score, sound = Path(folder, "part.mid"), Path(folder, "part.wav")
            write_midi(score, part.program, part.notes)
            if not render(score, fonts[part.soundfont], sound, dry=len(part.clips) > 1):
                return []
            for name, (start, length, _) in zip(names, part.clips, strict=True):
                seconds[name] = write_clip(out, name, cut(sound, start, length))
    package, group = SOUNDFONTS[part.soundfont][0], f"{part.soundfont}/{program}"
    return [
        Made(name, label, group, seconds[name], package)
        for name, (_, _, label) in zip(names, part.clips, strict=True)
        if seconds[name]
    ]


def make_score(score: Path, soundfont: str, fonts: dict[str, Path], package: str, out: Path) -> list[Made]:
    """Render one score with one soundfont."""
    key = hashlib.md5(score.read_bytes()).hexdigest()[:8]
    name = f"audio/{package}/{score.stem}_{key}_{soundfont}.flac".replace(" ", "_")
    seconds = made_before(out, [name]).get(name)
    if seconds is None:
        with tempfile.TemporaryDirectory() as folder:
            sound = Path(folder, "score.wav")
            played = render(score, fonts[soundfont], sound, dry=False)
            waveform = cut(sound, 0.0, LONGEST_SCORE_S) if played else np.empty(0, np.float32)
        seconds = write_clip(out, name, waveform)
    label = f"kind:music;soundfont:{soundfont};{package}"
    return [Made(name, label, f"{package}/{score.stem}", seconds, package)] if seconds else []


def distinct_scores(unpacked: Path) -> list[tuple[str, Path]]:
    """Return the scores of the packages, each once."""
    seen, scores = set(), []
    for package in SCORE_PACKAGES:
        for path in files(unpacked / package, (".mid", ".midi")):
            checksum = hashlib.md5(path.read_bytes()).hexdigest()
            if checksum not in seen:
                seen.add(checksum)
                scores.append((package, path))
    return scores


def version_and_licences(package: str, unpacked: Path | None) -> tuple[str, str]:
    """Return version and licences of an installed package, or of one unpacked by packages.py."""
    outcome = run("apt-cache", "policy", package).stdout.decode()
    fields = dict(line.strip().split(": ", 1) for line in outcome.splitlines() if ": " in line)
    version = fields.get("Candidate", "")
    folder = unpacked / package if unpacked else Path("/usr/share/doc", package)
    return version, licences(folder)


def write_lists(out: Path, made: list[Made], unpacked: Path | None, packages: dict[str, str]) -> None:
    """Write manifest and sources.

    Args:
        out: Folder of the clips.
        made: The clips.
        unpacked: Folder of unpacked packages; None for installed packages.
        packages: Package names of programs with another name.
    """
    totals: dict[str, float] = defaultdict(float)
    with (out / "manifest.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["task", "split", "file", "label", "group", "seconds"])
        for clip in made:
            row = ["pretrain", "train", clip.file, clip.label, clip.group, f"{clip.seconds:.3f}"]
            writer.writerow(row)
            totals[packages.get(clip.package, clip.package)] += clip.seconds
    with (out / "sources.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["package", "version", "hours", "licences"])
        for package, seconds in sorted(totals.items()):
            version, names = version_and_licences(package, unpacked)
            writer.writerow([package, version, f"{seconds / 3600:.3f}", names])


def festival_packages() -> dict[str, str]:
    """Return the package of each festival voice; exit if one is not installed."""
    found, missing = {}, []
    for voice in FESTIVAL_VOICES:
        folder = next(iter(sorted(VOICES.glob(f"*/{voice}"))), None)
        if folder is None:
            missing.append(voice)
        else:
            owner = run("dpkg", "-S", folder).stdout.decode().split(":")[0]
            found[f"festival:{voice}"] = owner.split(",")[0]
    if missing:
        raise SystemExit(f"Festival voices are not installed: {', '.join(missing)}; see README.md.")
    return found


def in_parallel(make: Callable[..., list[Made]], tasks: Iterable[tuple], jobs: int) -> list[Made]:
    """Return the clips of all tasks in order."""
    with ThreadPoolExecutor(jobs) as pool:
        return [clip for clips in pool.map(lambda task: make(*task), tasks) for clip in clips]


def speech(arguments: argparse.Namespace) -> list[Made]:
    """Generate speech."""
    rng, out, packages = random.Random(0), arguments.out, festival_packages()
    texts = out / "texts"
    unpack_catalogues(download(TEXT_PACKAGES, arguments.debs or out / "debs").values(), texts)
    lines = espeak_lines(texts, arguments.per_language, rng) + other_lines(texts, arguments.per_voice, rng)
    made = in_parallel(make_speech, ((line, out) for line in lines), arguments.jobs)
    write_lists(out, made, None, packages)
    return made


def notes(arguments: argparse.Namespace) -> list[Made]:
    """Render notes and phrases."""
    out, unpacked = arguments.out, arguments.unpacked
    fonts = {name: soundfont_path(name, unpacked, out) for name in SOUNDFONTS}
    parts = all_parts(arguments.notes_per_program, random.Random(0))
    parts = [part for part in parts if holds(fonts[part.soundfont], part)]
    made = in_parallel(make_part, ((part, fonts, out) for part in parts), arguments.jobs)
    write_lists(out, made, unpacked, {})
    return made


def scores(arguments: argparse.Namespace) -> list[Made]:
    """Render scores, each with two soundfonts."""
    rng, out, unpacked = random.Random(0), arguments.out, arguments.unpacked
    fonts = {name: soundfont_path(name, unpacked, out) for name in SCORE_SOUNDFONTS}
    tasks = [
        (path, soundfont, fonts, package, out)
        for package, path in distinct_scores(unpacked)
        for soundfont in rng.sample(SCORE_SOUNDFONTS, SOUNDFONTS_PER_SCORE)
    ]
    made = in_parallel(make_score, tasks, arguments.jobs)
    write_lists(out, made, unpacked, {})
    return made


def main() -> None:
    """Generate one kind of audio and print its duration."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    makers = {"speech": speech, "notes": notes, "scores": scores}
    parser.add_argument("kind", choices=makers)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--unpacked", type=Path, help="unpacked packages, for notes and scores")
    parser.add_argument("--debs", type=Path, help="folder for package files with texts; default: OUT/debs")
    parser.add_argument("--per-language", type=int, default=100, help="number of texts for espeak-ng")
    parser.add_argument("--per-voice", type=int, default=80, help="texts per voice of other engines")
    parser.add_argument("--notes-per-program", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.kind != "speech" and arguments.unpacked is None:
        parser.error(f"{arguments.kind} needs --unpacked: the folder that packages.py filled.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    made = makers[arguments.kind](arguments)
    print(f"{len(made)} clips, {sum(clip.seconds for clip in made) / 3600:.2f} h")


if __name__ == "__main__":
    main()
