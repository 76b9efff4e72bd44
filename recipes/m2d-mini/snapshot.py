"""Export the latest checkpoint of an unfinished run, to evaluate it or to start another run from it.

    python recipes/m2d-mini/snapshot.py RUN OUT

``load_model`` and ``m2d-train pretrain --start`` accept ``OUT/export``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from m2d_training import PretrainConfig
from m2d_training.pretraining.weights import export_run
from m2d_training.runs.folder import RunFolder, read_config
from m2d_training.runs.state import list_checkpoints, read_state

from m2d_hub.errors import CheckpointError


def snapshot(run: Path, out: Path) -> int:
    """Export the latest checkpoint of ``run`` to ``out`` and return its step.

    Raises:
        CheckpointError: The run has no checkpoint yet.
    """
    folder = RunFolder(run)
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise CheckpointError(f"{run} has no checkpoint yet.")
    state = read_state(checkpoints[-1])
    out.mkdir(parents=True, exist_ok=True)
    config = PretrainConfig.from_dict(read_config(folder)["config"])
    export_run(RunFolder(out), state["model"], config, f"{run.name}-{state['step']}")
    return state["step"]


def main() -> None:
    """Export one checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    print(f"step {snapshot(arguments.run, arguments.out)} is in {arguments.out / 'export'}")


if __name__ == "__main__":
    main()
