"""Takes the checkpoint out of a release's zip, after checking that the zip is safe and whole."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from m2d_hub.errors import CheckpointError
from m2d_hub.io import CHUNK_BYTES, reading_file, storage_errors

MAX_ENTRIES = 1_000
MAX_BYTES = 8 << 30  # the largest release unpacks to about 1 GB
MAX_NAME_BYTES = 200  # of a file that is unpacked
MAX_RATIO = 200  # unpacked to packed; weights hardly shrink


def extract_checkpoint(archive: Path, folder: Path, filename: str | None = None) -> Path:
    """Unpacks a ``.pth`` of a zip into ``folder``, and reads all else through to check it.

    Args:
        archive: The zip.
        folder: Where the file goes; it exists.
        filename: Which ``.pth`` to take where there are several.

    Returns:
        Path of the unpacked file.

    Raises:
        CheckpointError: The zip is damaged, unsafe, or does not hold the file; nothing is left in ``folder``.
    """
    try:
        with (
            reading_file(archive, "a zip", "Delete it and fetch it again.", CheckpointError),
            zipfile.ZipFile(archive) as opened,
        ):
            entries = opened.infolist()
            _check_safe(archive, entries)
            wanted = _find(archive, entries, filename)
            target = folder / PurePosixPath(wanted.filename).name
            for entry in entries:
                if not entry.is_dir():
                    _read_through(opened, entry, target if entry is wanted else None)
            return target
    except CheckpointError:
        for left in folder.glob("*.pth"):
            left.unlink()
        raise


def _check_safe(archive: Path, entries: list[zipfile.ZipInfo]) -> None:
    packed = max(archive.stat().st_size, 1)
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES or unpacked > MAX_BYTES or unpacked > MAX_RATIO * packed:
        raise CheckpointError(
            f"{archive} was not unpacked: {len(entries)} entries of {unpacked} bytes in {packed} bytes; "
            f"allowed are {MAX_ENTRIES} entries, {MAX_BYTES} bytes, and {MAX_RATIO} times the zip's size. "
            "Delete it and fetch it from its publisher."
        )
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or ":" in entry.filename:
            problem = "its path leads outside the folder"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "it is a link or another special file"
        elif len(path.name.encode(errors="replace")) > MAX_NAME_BYTES or not path.name.isprintable():
            problem = f"its name is longer than {MAX_NAME_BYTES} bytes, or no text"
        elif entry.flag_bits & 1:
            problem = "it is encrypted"
        elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = f"it is compressed by method {entry.compress_type} (0 and 8 are allowed)"
        else:
            continue
        raise CheckpointError(
            f"{archive} was not unpacked: it holds {entry.filename[:100]!r}, and {problem}. "
            "Delete it and fetch it from its publisher."
        )


def _find(archive: Path, entries: list[zipfile.ZipInfo], filename: str | None) -> zipfile.ZipInfo:
    paths = {entry: PurePosixPath(entry.filename) for entry in entries}
    weights = [
        entry for entry, path in paths.items() if path.suffix == ".pth" and not path.name.startswith(".")
    ]
    found = weights if len(weights) == 1 else [entry for entry in weights if paths[entry].name == filename]
    if len(found) != 1:
        names = ", ".join(entry.filename for entry in weights or entries) or "nothing"
        raise CheckpointError(
            f"{archive} must hold {filename or 'one .pth file'}, it holds {names}. "
            "Unpack it yourself and give the file's path to load_model."
        )
    return found[0]


def _read_through(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path | None) -> None:
    """Reads an entry to its end, where zipfile compares the CRC; keeps it as ``target`` if given."""
    with opened.open(entry) as source:
        if target is not None:
            with storage_errors(target.parent), target.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
        else:
            while source.read(CHUNK_BYTES):
                pass
