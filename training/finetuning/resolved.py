"""What must be the same when a fine-tuning run goes on: settings, weights and clips, wherever they lie."""

from __future__ import annotations

import os
from typing import Any

from m2d_hub.pretrained.checkpoint import sha256_of_model
from m2d_hub.pretrained.source import resolve

from ..evaluation.labelled import LabelledList
from ..runs.folder import RunFolder
from ..runs.lists import ListedClips, write_or_compare_lists
from ..runs.resolved import write_or_compare
from .config import FinetuneConfig

MAY_CHANGE = {"num_workers", "compile", "save_every_steps"}


def write_or_compare_run(
    folder: RunFolder,
    config: FinetuneConfig,
    labelled: LabelledList,
    model: str | os.PathLike[str],
    told: dict[str, Any],
    num_processes: int,
) -> None:
    """Writes the resolved configuration and the list, or checks that a run that goes on has the same.

    Args:
        folder: The run.
        config: The settings.
        labelled: The clips.
        model: As for :func:`m2d_hub.load_model`.
        told: What is only written down.
        num_processes: That share a batch.

    Raises:
        ConfigError: The folder holds another run.
    """
    run = {
        "model_sha256": sha256_of_model(resolve(model)),
        "global_batch": config.batch_size * config.accumulate_steps * num_processes,
        "clips": len(labelled.clips),
        "labels": list(labelled.labels),
    }
    write_or_compare(folder, told, run, config.to_dict(), MAY_CHANGE)
    columns = {
        "label": [";".join(clip.labels) for clip in labelled.clips],
        "split": [clip.split for clip in labelled.clips],
    }
    write_or_compare_lists(folder, {"data": ListedClips.of([clip.file for clip in labelled.clips], columns)})
