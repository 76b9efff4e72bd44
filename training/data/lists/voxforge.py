"""VoxForge: the language that is spoken."""

from __future__ import annotations

from collections.abc import Iterator

from .dataset import ALL, ListRow, PublicDataset, Request, Variant, audio_below
from .splits import read_splits, split_rows

LAYOUT = "a folder for each language with the unpacked archives, de/ARCHIVE/wav/*.wav ..."


def _rows(request: Request) -> Iterator[ListRow]:
    splits = read_splits(request, "archive")
    clips = []
    for path in audio_below(request.folder):
        language, archive, *_ = [*path.relative_to(request.folder).parts[:-1], "", ""]
        if archive:
            clips.append((ListRow(str(path), language), archive))
    if not clips:
        raise request.lacks("LANGUAGE/ARCHIVE/wav")
    yield from split_rows(clips, splits, request.folder)


VOXFORGE = PublicDataset(
    title="VoxForge",
    source="http://www.voxforge.org",
    licence="GPL 3",
    reference="the evaluation platform EVAR",
    layout=LAYOUT,
    variants={"languages": Variant(_rows, "6 languages", clips={ALL: 176_438}, labels=6)},
    split=(
        "a CSV with the columns archive and split, or file_name and split; the evaluation platform EVAR "
        "(https://github.com/nttcslab/eval-audio-repr) has such a table, voxforge.csv"
    ),
)
