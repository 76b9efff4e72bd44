"""Images: ImageNet-1K."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m2d_hub.corpus.tables import read_table

from ..folders import class_folders
from .dataset import ALL, ListRow, PublicDataset, Request, Variant

SOLUTION = "LOC_val_solution.csv"


def _rows(request: Request) -> Iterator[ListRow]:
    folder = request.find("train", "ILSVRC/Data/CLS-LOC/train").parent
    yield from (ListRow(file, label, split) for file, label, split in class_folders(folder))
    flat = sorted(path for path in (folder / "val").glob("*.JPEG") if not path.name.startswith("."))
    if flat:
        yield from _solved(request, flat)


def _solved(request: Request, files: list[Path]) -> Iterator[ListRow]:
    """Yield the validation images as published: in one folder, with their classes in a table."""
    table = request.split_file(SOLUTION)
    labels = {
        row.cells["ImageId"]: row.cells["PredictionString"].partition(" ")[0]
        for row in read_table(table, ["ImageId", "PredictionString"])
    }
    for file in files:
        if file.stem not in labels:
            raise request.lacks(f"class of {file.name} in {table}")
        yield ListRow(str(file), labels[file.stem], "test")


IMAGENET = PublicDataset(
    title="ImageNet-1K",
    source="https://www.kaggle.com/c/imagenet-object-localization-challenge or https://image-net.org",
    licence="non-commercial research",
    reference="Russakovsky et al., International Journal of Computer Vision 2015",
    layout=(
        "train/CLASS/*.JPEG and val/CLASS/*.JPEG, or val/*.JPEG with LOC_val_solution.csv in the folder or "
        "beside it"
    ),
    variants={
        "classes": Variant(
            _rows,
            "1,000 classes; the validation images are the test images",
            clips={ALL: 1_331_167, "train": 1_281_167, "test": 50_000},
            labels=1_000,
        )
    },
    split=f"{SOLUTION} of the Kaggle challenge, where val/ has no folders of classes",
)
