"""What a run writes down: a JSON line a step, TensorBoard and curves as PNG."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from m2d_hub.errors import CheckpointError
from m2d_hub.io import json_text, reading_file, replacing

from ..evaluation.charts import draw_steps
from .folder import RunFolder

PLOT_INTERVAL_S = 300.0
CURVES = {
    "loss": ("loss", "m2d", "offline", "validation_loss"),
    "schedule": ("lr", "tau"),
    "analysis": (
        "rank_me",
        "explained_variance_auc",
        "validation_rank_me",
        "validation_explained_variance_auc",
    ),
    "evaluation": ("linear_eval",),
}


class RunLog:
    """Writes the metrics of one run; only the first process has one."""

    def __init__(self, folder: RunFolder, first_step: int):
        """Opens the files, leaving out what was written after the step that the run goes on from."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        kept = _keep_lines(folder.metrics_file, first_step)
        self._left_out = kept[-1].get("steps_left_out", 0) if kept else 0
        self._metrics = folder.metrics_file.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=first_step + 1)
        self._plotted_at = time.monotonic()

    def write(self, step: int, values: dict[str, Any], is_left_out: bool = False) -> None:
        """Adds one step, counted from 1, and how many were left out so far."""
        self._left_out += is_left_out
        values = {**values, "steps_left_out": self._left_out}
        self._metrics.write(json_text({"step": step, **values}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def plot(self) -> None:
        """Draws the curves, at most every few minutes."""
        if time.monotonic() - self._plotted_at > PLOT_INTERVAL_S:
            plot_metrics(self.folder.metrics_file, self.folder.plots)
            self._plotted_at = time.monotonic()

    def close(self) -> None:
        """Closes the files."""
        self._metrics.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """One dictionary a step; a line that was cut off, or is none of a step's numbers, is left out."""
    if not path.exists():
        return []
    lines = []
    with reading_file(path, "metrics of a run", "Delete it: metrics then begin anew.", CheckpointError):
        written = path.read_text(encoding="utf-8", errors="replace")
    for text in written.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append({name: value for name, value in line.items() if _is_figure(value)})
    return lines


def _is_figure(value: object) -> bool:
    return value is None or isinstance(value, (int, float, bool))


def _keep_lines(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Drops lines of later steps, and what is none; returns the others."""
    kept = [line for line in read_metrics(path) if line["step"] <= last_step]
    if path.exists():
        with replacing(path) as partial:
            partial.write_text("".join(json_text(values) + "\n" for values in kept), encoding="utf-8")
    return kept


def plot_metrics(metrics_file: Path, plots: Path) -> None:
    """Draws each group of curves that the metrics hold into ``plots``; what was not finite leaves a gap."""
    lines = read_metrics(metrics_file)
    for title, names in CURVES.items():
        points = {
            name: [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            for name in names
        }
        points = {name: values for name, values in points.items() if values}
        if points:
            draw_steps(plots / f"{title}.png", points)
