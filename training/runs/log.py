"""Training logs: JSON lines, TensorBoard, PNG curves, and progress."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from m2d_hub.errors import CheckpointError
from m2d_hub.io import json_text, reading_file, replacing

from ..evaluation.charts import draw_steps
from .folder import RunFolder

logger = logging.getLogger(__name__)

PLOT_INTERVAL_S = 300.0
LINES = 20  # of progress, at least, where no bar is drawn
LINE_INTERVAL_S = 600.0  # maximum between two of them
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
    """Metrics of one run; only the first process has one."""

    def __init__(self, folder: RunFolder, first_step: int):
        """Open the files, without the lines after the step that the run resumes from."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        path = folder.metrics_file
        kept = [line for line in read_metrics(path) if line["step"] <= first_step]
        with replacing(path) as partial:
            partial.write_text("".join(json_text(line) + "\n" for line in kept), encoding="utf-8")
        self._skipped = int(kept[-1].get("steps_left_out") or 0) if kept else 0
        self._metrics = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=first_step + 1)
        self._plotted_at = time.monotonic()

    def write(self, step: int, values: dict[str, Any], is_skipped: bool = False) -> None:
        """Add one step, counted from 1, and how many steps were skipped so far."""
        self._skipped += is_skipped
        values = {**values, "steps_left_out": self._skipped}
        self._metrics.write(json_text({"step": step, **values}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def plot(self) -> None:
        """Draw the curves, at most every few minutes."""
        if time.monotonic() - self._plotted_at > PLOT_INTERVAL_S:
            plot_metrics(self.folder.metrics_file, self.folder.plots)
            self._plotted_at = time.monotonic()

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return one dictionary per step; lines that are cut off or hold something else are skipped."""
    if not path.exists():
        return []
    lines = []
    with reading_file(path, "metrics of a run", "Delete it: metrics then start over.", CheckpointError):
        written = path.read_text(encoding="utf-8", errors="replace")
    for text in written.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append({name: value for name, value in line.items() if _is_figure(value)})
    return lines


def _is_figure(value: object) -> bool:
    return value is None or isinstance(value, (int, float, bool))


def plot_metrics(metrics_file: Path, plots: Path) -> None:
    """Draw each group of curves that the metrics hold into ``plots``; values that are not finite are gaps."""
    lines = read_metrics(metrics_file)
    for title, names in CURVES.items():
        points = {
            name: [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            for name in names
        }
        points = {name: values for name, values in points.items() if values}
        if points:
            draw_steps(plots / f"{title}.png", points)


class Progress:
    """A progress bar on a terminal, else a line now and then: logged, or printed if nothing is logged."""

    def __init__(self, name: str, done: int, total: int, unit: str, is_shown: bool):
        """Start counting ``unit`` from ``done`` to ``total``."""
        from tqdm import tqdm

        self.name, self.done, self.total, self.unit = name, done, total, unit
        has_terminal = getattr(sys.stderr, "isatty", bool)()
        self._writes_lines = is_shown and not has_terminal and sys.stderr is not None
        self._bar = tqdm(
            desc=name, total=total, initial=done, unit=unit, disable=not (is_shown and has_terminal)
        )
        self._started = self._line_at = time.monotonic()
        self._first = self._line_done = done

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, count: int = 1, note: str = "") -> None:
        """Count further units; ``note`` is added to the line."""
        self._bar.update(count)
        self.done += count
        now = time.monotonic()
        is_due = (self.done - self._line_done) * LINES >= self.total or self.done == self.total
        if not self._writes_lines or not (is_due or now - self._line_at > LINE_INTERVAL_S):
            return
        speed = (self.done - self._first) / max(now - self._started, 1e-9)
        line = f"{self.name}: {self.unit} {self.done} of {self.total}{note}, {speed:.3g} {self.unit}s/s, "
        line += f"{(self.total - self.done) / speed / 60:.0f} min left"
        if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
            logger.info("%s", line)
        else:
            print(line, file=sys.stderr)
        self._line_at, self._line_done = now, self.done
