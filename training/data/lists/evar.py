"""Tasks of the evaluation platform EVAR, from its tables."""

from __future__ import annotations

from collections.abc import Iterator

from m2d_hub.corpus.tables import read_table
from m2d_hub.errors import ConfigError

from ..annotations import LABEL_SEPARATOR, standard_split
from .audioset import NAMES
from .dataset import EVAR_URL, ListRow, PublicDataset, Request, Variant


def _rows(request: Request) -> Iterator[ListRow]:
    table = request.folder
    rows = read_table(table, ["file_name", "label"], ["split", "fold"])
    if request.audio is None:
        raise ConfigError(f"{table} needs the folder of its clips; give it as audio (--audio).")
    if not request.audio.is_dir():
        raise ConfigError(f"{request.audio} is not a folder; give the one that holds the clips of {table}.")
    for row in rows:
        split = standard_split(row.cells["split"] or row.cells["fold"])
        if split is None:
            raise ConfigError(
                f"{table}: row {row.number} has the split {row.cells['split']!r} and the fold "
                f"{row.cells['fold']!r}; required is train, valid, test or a number."
            )
        # Several labels are joined by commas; AudioSet's are MIDs.
        labels = [label.strip() for label in row.cells["label"].split(",")]
        label = LABEL_SEPARATOR.join(NAMES.get(label, label) for label in labels)
        yield ListRow(str(request.audio / row.cells["file_name"]), label, split)


EVAR = PublicDataset(
    title="A task of the evaluation platform EVAR",
    source=f"{EVAR_URL} (evar/metadata/TASK.csv)",
    licence="those of the platform and of the task's data set",
    reference="the platform's table",
    layout="a CSV with file_name, label and split or fold; audio is the folder of the clips",
    variants={"task": Variant(_rows, "as in the table")},
)
