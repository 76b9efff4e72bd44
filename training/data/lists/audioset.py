"""AudioSet and its balanced part: sounds of videos with several labels per clip."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from m2d_hub.errors import ConfigError
from m2d_hub.pretrained.published_names import AUDIOSET_LABELS, AUDIOSET_MIDS

from ..annotations import LABEL_SEPARATOR
from ..folders import audio_below
from .dataset import ALL, ListRow, PublicDataset, Request, Variant, text_lines

NAMES = dict(zip(AUDIOSET_MIDS, AUDIOSET_LABELS, strict=True))
ID_CHARACTERS = 11  # of a YouTube video
# The name of a clip: the video's ID, optionally after a Y and before its start and end.
FILE_STEM = re.compile(rf"Y?([\w-]{{{ID_CHARACTERS}}})(_[\d._]+)?")
BALANCED, UNBALANCED, EVAL = (
    f"{part}_segments.csv" for part in ("balanced_train", "unbalanced_train", "eval")
)
BALANCED_CLIPS, UNBALANCED_CLIPS, EVAL_CLIPS = 22_160, 2_041_789, 20_371


def _rows(request: Request, tables: dict[str, str]) -> Iterator[ListRow]:
    """Yield the rows of segment tables, each with its split."""
    paths = {request.find(table): split for table, split in tables.items()}
    files = _files_by_video(request.folder)
    for path, split in paths.items():
        for video, mids in _segments(path):
            label = LABEL_SEPARATOR.join(NAMES[mid] for mid in mids)
            yield ListRow(files.get(video, str(request.folder / f"{video}.wav")), label, split)


def _segments(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield video and MIDs of each row; three rows of comment come first."""
    for number, line in text_lines(path):
        if line.startswith("#"):
            continue
        (cells,) = csv.reader([line], skipinitialspace=True)
        mids = cells[3].split(",") if len(cells) == 4 else []
        if not mids or (unknown := [mid for mid in mids if mid not in NAMES]):
            problem = f"has {unknown[0]!r}, none of AudioSet's 527 MIDs" if mids else f"is {cells}"
            raise ConfigError(f'{path}: row {number} {problem}; rows are YTID, start, end, "MID,MID".')
        yield cells[0], mids


def _files_by_video(folder: Path) -> dict[str, str]:
    """Return the audio files below a folder by the video in their names."""
    return {video: str(path) for path in audio_below(folder) if (video := _video_of(path.stem))}


def _video_of(stem: str) -> str | None:
    if len(stem) == ID_CHARACTERS:  # the ID itself may begin with Y
        return stem
    match = FILE_STEM.fullmatch(stem)
    return match and match[1]


TRAIN = {BALANCED: "train", UNBALANCED: "train"}
SOURCE = "https://research.google.com/audioset/download.html (tables; the audio is that of YouTube's videos)"
LICENCE = "CC BY 4.0 for the tables; the videos' owners keep their rights"
REFERENCE = "Gemmeke et al., ICASSP 2017, and the tables' first lines; many videos are gone since"
LAYOUT = f"{BALANCED}, {{unbalanced}}{EVAL}, and audio below the folder, named by its video (YTID.wav ...)"
AUDIOSET = PublicDataset(
    title="AudioSet",
    source=SOURCE,
    licence=LICENCE,
    reference=REFERENCE,
    layout=LAYOUT.format(unbalanced=f"{UNBALANCED}, "),
    variants={
        "as2m": Variant(
            functools.partial(_rows, tables=TRAIN | {EVAL: "test"}),
            "527 classes; trained on the balanced and the unbalanced part, tested on eval",
            clips={"train": BALANCED_CLIPS + UNBALANCED_CLIPS, "test": EVAL_CLIPS},
            labels=len(NAMES),
        ),
        "pretrain": Variant(
            functools.partial(_rows, tables=dict.fromkeys(TRAIN, "")),
            "the training clips with their labels, for pre-training",
            clips={ALL: BALANCED_CLIPS + UNBALANCED_CLIPS},
            labels=len(NAMES),
        ),
    },
)
AS20K = PublicDataset(
    title="AudioSet, balanced part",
    source=SOURCE,
    licence=LICENCE,
    reference=REFERENCE,
    layout=LAYOUT.format(unbalanced=""),
    variants={
        "as20k": Variant(
            functools.partial(_rows, tables={BALANCED: "train", EVAL: "test"}),
            "527 classes; trained on the balanced part, tested on eval",
            clips={"train": BALANCED_CLIPS, "test": EVAL_CLIPS},
            labels=len(NAMES),
        )
    },
)
