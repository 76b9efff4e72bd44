"""A task of the evaluation platform EVAR, from its own table."""

from __future__ import annotations

from collections.abc import Iterator

from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import ConfigError

from ..entry import LABEL_SEPARATOR
from .audioset import NAMES
from .dataset import ListRow, PublicDataset, Request, Variant
from .splits import standard_split


def _rows(request: Request) -> Iterator[ListRow]:
    table = request.folder
    rows = read_table(table, ["file_name", "label"], ["split", "fold"])
    if request.audio is None:
        raise ConfigError(f"{table} names clips; give the folder that holds them as audio.")
    if not request.audio.is_dir():
        raise ConfigError(f"{request.audio} is no folder; give the one that holds the clips of {table}.")
    for row in rows:
        split = standard_split(row.cells["split"] or row.cells["fold"])
        if split is None:
            raise ConfigError(
                f"{table}: row {row.number} has the split {row.cells['split']!r} and the fold "
                f"{row.cells['fold']!r}; needed is train, valid, test or a number."
            )
        # Several labels are joined by commas; AudioSet's are MIDs.
        labels = [label.strip() for label in row.cells["label"].split(",")]
        label = LABEL_SEPARATOR.join(NAMES.get(label, label) for label in labels)
        yield ListRow(str(request.audio / row.cells["file_name"]), label, split)


EVAR = PublicDataset(
    title="A task of the evaluation platform EVAR",
    source="https://github.com/nttcslab/eval-audio-repr (evar/metadata/TASK.csv)",
    licence="that of the platform, and of the task's data set",
    reference="the platform's table",
    layout="a CSV with file_name, label and split or fold, and as audio the folder of the clips",
    variants={"task": Variant(_rows, "as the table says")},
)
