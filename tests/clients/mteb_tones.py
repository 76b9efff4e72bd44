"""An MTEB task that any features solve: low and high tones."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
from mteb.abstasks import AbsTaskClassification
from mteb.abstasks.task_metadata import TaskMetadata

RATE = 16_000


class Tones(AbsTaskClassification):
    """Classify low (0) and high (1) tones; the last third of the clips is the test set."""

    metadata = TaskMetadata(
        name="Tones",
        description="Low and high tones.",
        type="AudioClassification",
        category="a2t",
        modalities=["audio"],
        eval_splits=["test"],
        eval_langs=["zxx-Zxxx"],
        main_score="accuracy",
        dataset={"path": "local", "revision": "1"},
        date=("2025-01-01", "2025-01-01"),
        domains=[],
        task_subtypes=[],
        license="cc0-1.0",
        annotations_creators="derived",
        dialect=[],
        sample_creation="created",
        bibtex_citation="",
    )
    input_column_name = "audio"

    def __init__(self, clips: list[np.ndarray], labels: list[int]):
        super().__init__()
        self.rows = [
            {"audio": {"array": clip, "sampling_rate": RATE}, "label": label}
            for clip, label in zip(clips, labels, strict=True)
        ]

    def load_data(self, **_: Any) -> None:
        first = len(self.rows) * 2 // 3
        self.dataset = datasets.DatasetDict(
            train=datasets.Dataset.from_list(self.rows[:first]),
            test=datasets.Dataset.from_list(self.rows[first:]),
        )
        self.data_loaded = True
