"""ESC-50: environmental sounds in five folds."""

from __future__ import annotations

from collections.abc import Iterator

from m2d_hub.corpus.tables import read_table

from .dataset import ALL, ListRow, PublicDataset, Request, Variant


def _rows(request: Request) -> Iterator[ListRow]:
    table = request.find("meta/esc50.csv")
    audio = request.find("audio")
    for row in read_table(table, ["filename", "fold", "category"]):
        yield ListRow(str(audio / row.cells["filename"]), row.cells["category"], row.cells["fold"])


ESC50 = PublicDataset(
    title="ESC-50",
    source="https://github.com/karolpiczak/ESC-50",
    licence="CC BY-NC 3.0",
    reference="Piczak, ACM Multimedia 2015",
    layout="meta/esc50.csv (filename, fold, category) and audio/*.wav",
    variants={
        "folds": Variant(
            _rows,
            "50 classes in 5 folds",
            clips={ALL: 2_000, **{str(fold): 400 for fold in range(1, 6)}},
            labels=50,
        )
    },
)
