"""FSD50K: sounds of Freesound, several labels a clip."""

from __future__ import annotations

from collections.abc import Iterator

from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import ConfigError

from ..entry import LABEL_SEPARATOR
from .dataset import ALL, ListRow, PublicDataset, Request, Variant
from .splits import standard_split


def _rows(request: Request) -> Iterator[ListRow]:
    for part, columns in (("dev", ["fname", "labels", "split"]), ("eval", ["fname", "labels"])):
        table = request.find(f"FSD50K.ground_truth/{part}.csv")
        audio = request.find(f"FSD50K.{part}_audio")
        for row in read_table(table, columns):
            split = standard_split(row.cells["split"]) if part == "dev" else "test"
            if split is None:
                raise ConfigError(f"{table}: row {row.number} has the split {row.cells['split']!r}.")
            label = row.cells["labels"].replace(",", LABEL_SEPARATOR)
            yield ListRow(str(audio / f"{row.cells['fname']}.wav"), label, split)


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
            _rows,
            "200 classes, several a clip",
            clips={ALL: 51_197, "train": 36_796, "valid": 4_170, "test": 10_231},
            labels=200,
        )
    },
)
