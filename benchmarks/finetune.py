"""Compare fine-tuning with linear evaluation on the dev tasks, with all clips of train, valid and test.

    python benchmarks/finetune.py DATA/dev --model m2d-mini --out RUNS --budget-minutes 120

Each task and method has a folder in RUNS. Finished tasks are not repeated, and unfinished ones resume from
their last checkpoint with the same result. The table is written to benchmarks/results/finetune.md; an
unfinished task has a dash. Intervals of 95 % are bootstrapped over the test clips and seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "finetune.md"
DIAGNOSTIC = "gcin_tone_xspk"  # speakers that are not in the training clips: shown, not averaged
SOME_SKIPPED = 3  # exit status if a file cannot be read
METHODS = {"linear": ["linear-eval"], "finetune": ["finetune", "small"]}


def write_lists(data: Path, out: Path) -> dict[str, Path]:
    """Write a labelled list for each task of ``manifest.csv``."""
    rows: dict[str, list[list[str]]] = defaultdict(list)
    with (data / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            rows[row["task"]].append([str((data / row["file"]).resolve()), row["label"], row["split"]])
    lists = {}
    for task, own in sorted(rows.items(), key=lambda item: len(item[1])):  # short ones first
        lists[task] = out / "lists" / f"{task}.csv"
        lists[task].parent.mkdir(parents=True, exist_ok=True)
        with lists[task].open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines).writerows([["file", "label", "split"], *own])
    return lists


def evaluate(method: str, task: Path, folder: Path, arguments: argparse.Namespace, left_s: float) -> None:
    """Run or resume one method on one task, for at most the given number of seconds."""
    command = [sys.executable, "-m", "m2d_training", *METHODS[method], "--model", arguments.model]
    command += ["--data", str(task), "--out", str(folder), "--seeds", str(arguments.seeds)]
    if method == "finetune":
        command += [part for setting in arguments.settings for part in ("--set", setting)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("a", encoding="utf-8") as output:
        try:
            status = subprocess.run(command, timeout=left_s, stdout=output, stderr=output).returncode
        except subprocess.TimeoutExpired:
            print(
                f"{method} on {task.stem}: the budget is used up; run the command again to resume", flush=True
            )
            return
    if status not in (0, SOME_SKIPPED):
        sys.exit(f"{method} on {task.stem} failed; {folder / 'output.txt'} has the reason")


def read_report(folder: Path) -> dict[str, Any] | None:
    """Read the report of a finished evaluation."""
    path = folder / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def table(reports: dict[str, dict[str, dict[str, Any] | None]], arguments: argparse.Namespace) -> str:
    """Return the page."""
    counted = [
        (own["linear"]["value"], own["finetune"]["value"])
        for task, own in reports.items()
        if task != DIAGNOSTIC and own["linear"] and own["finetune"]
    ]
    better = sum(finetuned > linear for linear, finetuned in counted)
    lines = [
        "# Fine-tuning and linear evaluation on the dev tasks",
        "",
        f"`python benchmarks/finetune.py DATA/dev --model {arguments.model} --seeds {arguments.seeds}`;",
        "accuracy on the test clips in %, with the 95 % interval over clips and seeds. Fine-tuning is the",
        "preset `small`"
        + (
            f" with {', '.join(arguments.settings)}." if arguments.settings else " with its default settings."
        ),
        f"Fine-tuning is better on {better} of {len(counted)} tasks ({DIAGNOSTIC} is not included).",
        "",
        "| task (train / test clips, classes) | linear evaluation | fine-tuned | difference | minutes |",
        "|---|---|---|---|---|",
    ]
    for task, own in reports.items():
        linear, finetuned = own["linear"], own["finetune"]
        clips = arguments.counts[task]
        cells = [_cell(linear), _cell(finetuned)]
        if linear and finetuned:
            cells += [f"{100 * (finetuned['value'] - linear['value']):+.1f}"]
        else:
            cells += ["–"]
        cells += [f"{_minutes(finetuned):.1f}" if finetuned else "–"]
        lines.append(f"| {task} ({clips}) | {' | '.join(cells)} |")
    if counted:
        linear_mean, finetuned_mean = (
            100 * sum(column) / len(counted) for column in zip(*counted, strict=True)
        )
        lines.append(
            f"| mean of {len(counted)} | {linear_mean:.1f} | {finetuned_mean:.1f} | "
            f"{finetuned_mean - linear_mean:+.1f} | |"
        )
    return "\n".join(lines) + "\n"


def _cell(report: dict[str, Any] | None) -> str:
    if report is None:
        return "–"
    return f"{100 * report['value']:.1f} ({100 * report['low']:.1f}-{100 * report['high']:.1f})"


def _minutes(report: dict[str, Any]) -> float:
    """Return the time of the optimizer steps of all seeds."""
    return sum(training["seconds"] for training in report["trainings"]) / 60


def count_clips(task: Path) -> str:
    """Return the numbers of training clips, test clips and classes."""
    with task.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    train, test = (sum(row["split"] == split for row in rows) for split in ("train", "test"))
    return f"{train} / {test}, {len({row['label'] for row in rows})}"


def main() -> None:
    """Evaluate until the budget is used up, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the dev tasks, with manifest.csv")
    parser.add_argument("--model", required=True, help="name or folder of the model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--task", action="append", help="only this task; repeatable")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--budget-minutes", type=float, default=120.0)
    arguments = parser.parse_args()
    ends = time.monotonic() + 60 * arguments.budget_minutes
    lists = write_lists(arguments.data, arguments.out)
    lists = {task: path for task, path in lists.items() if not arguments.task or task in arguments.task}
    arguments.counts = {task: count_clips(path) for task, path in lists.items()}
    reports: dict[str, dict[str, dict[str, Any] | None]] = {}
    for task, path in lists.items():
        reports[task] = {}
        for method in METHODS:
            folder = arguments.out / task / method
            left_s = ends - time.monotonic()
            if read_report(folder) is None and left_s > 0:
                evaluate(method, path, folder, arguments, left_s)
            reports[task][method] = read_report(folder)
        print(task, *(_cell(reports[task][method]) for method in METHODS), flush=True)
    RESULTS.write_text(table(reports, arguments), encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
