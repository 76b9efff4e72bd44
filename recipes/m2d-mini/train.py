"""Train m2d-mini and the encoder of m2d-mini-tags from the list of ``corpus.py``.

    python recipes/m2d-mini/train.py DATA/corpus.csv --out OUT [--set precision=bf16]

Run the command again to resume. ``OUT/first`` is pre-trained with labels. Three runs continue from it:
``OUT/longer`` with the same labels; ``OUT/further`` taught by YAMNet and Resemblyzer (``teach.py``), the
encoder of m2d-mini-tags; and ``OUT/speech`` taught by Google's speech embedding. ``OUT/average``, the mean of
the weights of all four, is m2d-mini.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from average import average

PROCESSES = 2  # for training and for the teachers
CLIPS = 64  # per step, over all processes
LONGER = "start_parts=encoder", "epochs=12", "decay_epochs=3", "seed=43"
SPEECH = ("seed=44",)


def pretrain(preset: str, data: Path, out: Path, settings: list[str], *options: str) -> None:
    """Run one pre-training with one process per core."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={PROCESSES}",
        "-m",
        "--",
        "m2d_training",
    ]
    command += ["pretrain", preset, "--data", str(data), "--out", str(out), *options]
    for setting in (f"batch_size={CLIPS // PROCESSES}", *settings):
        command += ["--set", setting]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def taught(corpus: Path, lesson: str) -> Path:
    """Return the list with the features of the teachers of a lesson, computed once."""
    path = corpus.with_name(f"{corpus.stem}-{lesson}.csv")
    if not path.exists():
        teach = [sys.executable, str(Path(__file__).with_name("teach.py")), lesson, str(corpus)]
        subprocess.run([*teach, "--out", str(path), "--jobs", str(PROCESSES)], check=True)
    return path


def train(corpus: Path, out: Path, settings: list[str]) -> None:
    """Run all steps."""
    runs = [out / name / "export" for name in ("first", "longer", "further", "speech")]
    start = "--start", str(runs[0])
    pretrain("m2d-mini", corpus, out / "first", settings)
    pretrain("m2d-mini", corpus, out / "longer", [*LONGER, *settings], *start)
    pretrain("m2d-mini-x", taught(corpus, "clips"), out / "further", settings, *start)
    pretrain("m2d-mini-x", taught(corpus, "speech"), out / "speech", [*SPEECH, *settings], *start)
    average(runs, out / "average")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="list written by corpus.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="FIELD=VALUE")
    arguments = parser.parse_args()
    train(arguments.corpus, arguments.out, arguments.settings)


if __name__ == "__main__":
    main()
