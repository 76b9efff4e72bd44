"""AudioSet's 527 classes in the order of the published heads' outputs.

The heads order their outputs by machine identifier (MID) sorted as a string, not by AudioSet's own index.
``weights/audioset_labels.csv`` holds names and identifiers of the AudioSet ontology
(https://research.google.com/audioset/), by Google, licensed under CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/).
"""

import csv
from pathlib import Path

with (Path(__file__).parents[1] / "weights" / "audioset_labels.csv").open(
    encoding="utf-8", newline=""
) as file:
    _CLASSES = sorted((row["mid"], row["name"]) for row in csv.DictReader(file))

AUDIOSET_MIDS: tuple[str, ...] = tuple(mid for mid, _ in _CLASSES)
AUDIOSET_LABELS: tuple[str, ...] = tuple(name for _, name in _CLASSES)
