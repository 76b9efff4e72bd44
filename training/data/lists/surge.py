"""Pitch Audio Dataset (Surge synthesizer): every note of many tones."""

from __future__ import annotations

from collections.abc import Iterator

from .dataset import ListRow, PublicDataset, Request, Variant, audio_below
from .splits import read_splits, split_rows


def _rows(request: Request) -> Iterator[ListRow]:
    splits = read_splits(request, "tone")
    clips = [path for path in audio_below(request.folder) if path.stem.isdecimal()]
    if not clips:
        raise request.lacks("TONE/21.ogg")
    rows = [(ListRow(str(path), path.stem), path.parent.name) for path in clips]
    yield from split_rows(rows, splits, request.folder)


SURGE = PublicDataset(
    title="Pitch Audio Dataset (Surge synthesizer)",
    source="https://zenodo.org/record/4677097",
    licence="see the record on Zenodo",
    reference="the record on Zenodo",
    layout="a folder for each tone with a file for each of MIDI's notes, TONE/21.ogg ... TONE/108.ogg",
    variants={"notes": Variant(_rows, "88 notes", labels=88)},
    split=(
        "a CSV with the columns tone and split, or file_name and split; the evaluation platform EVAR "
        "(https://github.com/nttcslab/eval-audio-repr) has such a table, surge.csv"
    ),
)
