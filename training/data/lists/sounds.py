"""Environmental sounds: ESC-50, UrbanSound8K and FSD50K."""

from __future__ import annotations

from collections.abc import Iterator

from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import ConfigError

from ..annotations import LABEL_SEPARATOR, standard_split
from .dataset import ALL, ListRow, PublicDataset, Request, Variant

US8K_FOLD_CLIPS = (873, 888, 925, 990, 936, 823, 838, 806, 816, 837)


def _esc50_rows(request: Request) -> Iterator[ListRow]:
    table = request.find("meta/esc50.csv")
    audio = request.find("audio")
    for row in read_table(table, ["filename", "fold", "category"]):
        yield ListRow(str(audio / row.cells["filename"]), row.cells["category"], row.cells["fold"])


def _us8k_rows(request: Request) -> Iterator[ListRow]:
    table = request.find("metadata/UrbanSound8K.csv")
    audio = request.find("audio")
    for row in read_table(table, ["slice_file_name", "fold", "class"]):
        fold = row.cells["fold"]
        yield ListRow(str(audio / f"fold{fold}" / row.cells["slice_file_name"]), row.cells["class"], fold)


def _fsd50k_rows(request: Request) -> Iterator[ListRow]:
    for part, columns in (("dev", ["fname", "labels", "split"]), ("eval", ["fname", "labels"])):
        table = request.find(f"FSD50K.ground_truth/{part}.csv")
        audio = request.find(f"FSD50K.{part}_audio")
        for row in read_table(table, columns):
            split = standard_split(row.cells["split"]) if part == "dev" else "test"
            if split is None:
                raise ConfigError(f"{table}: row {row.number} has the split {row.cells['split']!r}.")
            label = row.cells["labels"].replace(",", LABEL_SEPARATOR)
            yield ListRow(str(audio / f"{row.cells['fname']}.wav"), label, split)


ESC50 = PublicDataset(
    title="ESC-50",
    source="https://github.com/karolpiczak/ESC-50",
    licence="CC BY-NC 3.0",
    reference="Piczak, ACM Multimedia 2015",
    layout="meta/esc50.csv (filename, fold, category) and audio/*.wav",
    variants={
        "folds": Variant(
            _esc50_rows,
            "50 classes in 5 folds",
            clips={ALL: 2_000, **{str(fold): 400 for fold in range(1, 6)}},
            labels=50,
        )
    },
)
US8K = PublicDataset(
    title="UrbanSound8K",
    source="https://urbansounddataset.weebly.com/urbansound8k.html",
    licence="CC BY-NC 3.0",
    reference="Salamon et al., ACM Multimedia 2014, and the data set's table",
    layout="metadata/UrbanSound8K.csv (slice_file_name, fold, class) and audio/fold1 ... audio/fold10",
    variants={
        "folds": Variant(
            _us8k_rows,
            "10 classes in 10 folds",
            clips={ALL: 8_732, **{str(fold): clips for fold, clips in enumerate(US8K_FOLD_CLIPS, start=1)}},
            labels=10,
        )
    },
)
FSD50K = PublicDataset(
    title="FSD50K",
    source="https://zenodo.org/record/4060432",
    licence="CC BY 4.0 as a whole; each clip its own (CC0, CC BY, CC BY-NC or CC Sampling+)",
    reference="Fonseca et al., IEEE/ACM TASLP 2022",
    layout=(
        "FSD50K.ground_truth/dev.csv (fname, labels, mids, split) and eval.csv, FSD50K.dev_audio and "
        "FSD50K.eval_audio"
    ),
    variants={
        "tags": Variant(
            _fsd50k_rows,
            "200 classes, several per clip",
            clips={ALL: 51_197, "train": 36_796, "valid": 4_170, "test": 10_231},
            labels=200,
        )
    },
)
