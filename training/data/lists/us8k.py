"""UrbanSound8K: sounds of the street in ten folds."""

from __future__ import annotations

from collections.abc import Iterator

from m2d_hub.corpus.tables import read_table

from .dataset import ALL, ListRow, PublicDataset, Request, Variant

FOLD_CLIPS = (873, 888, 925, 990, 936, 823, 838, 806, 816, 837)


def _rows(request: Request) -> Iterator[ListRow]:
    table = request.find("metadata/UrbanSound8K.csv")
    audio = request.find("audio")
    for row in read_table(table, ["slice_file_name", "fold", "class"]):
        fold = row.cells["fold"]
        yield ListRow(str(audio / f"fold{fold}" / row.cells["slice_file_name"]), row.cells["class"], fold)


US8K = PublicDataset(
    title="UrbanSound8K",
    source="https://urbansounddataset.weebly.com/urbansound8k.html",
    licence="CC BY-NC 3.0",
    reference="Salamon et al., ACM Multimedia 2014, and the data set's table",
    layout="metadata/UrbanSound8K.csv (slice_file_name, fold, class) and audio/fold1 ... audio/fold10",
    variants={
        "folds": Variant(
            _rows,
            "10 classes in 10 folds",
            clips={ALL: 8_732, **{str(fold): clips for fold, clips in enumerate(FOLD_CLIPS, start=1)}},
            labels=10,
        )
    },
)
