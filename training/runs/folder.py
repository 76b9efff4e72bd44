"""The folder of a run: its files, lock, configuration and metrics; and its progress."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2d_hub.errors import CheckpointError, ConfigError
from m2d_hub.io import json_text, lock_output, reading_file, replacing

if TYPE_CHECKING:
    from tqdm import tqdm

    from m2d_hub.audio import AudioPart

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
LOCK_WAIT_S = 10.0  # workers of a run that was killed end some seconds after it
PLOT_INTERVAL_S = LINE_INTERVAL_S = 300.0
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


class RunFolder:
    """Paths of a run's files."""

    def __init__(self, root: Path):
        self.root = root
        self.config_file = root / "config.json"  # resolved configuration
        self.metrics_file = root / "metrics.jsonl"  # one JSON line per step
        self.checkpoints = root / "checkpoints"  # folder of step-….pt
        self.tensorboard = root / "tensorboard"
        self.plots = root / "plots"  # curves as PNG
        self.export = root / "export"  # for m2d_hub.load_model


def is_first_process() -> bool:
    """Return whether this is the first of the processes that a launcher started, the one that logs."""
    return os.environ.get("RANK", "0") == "0"


def make_folder(folder: Path) -> None:
    """Create the folder that a command writes into.

    Raises:
        ConfigError: A file has that name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"out must be a folder, but {folder} is a file or lies in one.") from error


@contextlib.contextmanager
def one_run_in(folder: Path) -> Iterator[None]:
    """Create a folder and keep other runs out of it; of a run's processes, the first one does.

    Raises:
        ConfigError: Another run works in it, or it is not a folder.
    """
    if not is_first_process():
        yield
        return
    make_folder(folder)
    lock = lock_output(folder / LOCK_NAME, folder, LOCK_WAIT_S)
    try:
        yield
    finally:
        lock.release()


def same_or_refuse(
    folder: RunFolder,
    run: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
    may_change: AbstractSet[str] = frozenset(),
) -> None:
    """Write ``config.json`` of a new run, or check that the folder holds the same run.

    Args:
        folder: The run.
        run: Values that must be the same: ``config``, the settings; and further ones, such as hashes of the
            clips and of the weights. Those that an earlier release did not write are not compared.
        notes: Values that are only recorded.
        may_change: Settings that change no weights.

    Raises:
        ConfigError: The folder holds another run.
        CheckpointError: ``config.json`` is damaged.
    """
    run = json.loads(json.dumps(run))
    if folder.config_file.exists():
        old = read_config(folder)
        pairs = {key: (old[key], value) for key, value in run.items() if key in old and key != "config"}
        for name, value in run["config"].items():
            if name not in may_change:
                pairs[name] = (old["config"].get(name), value)
        if different := [f"{key} was {was!r}, is {now!r}" for key, (was, now) in pairs.items() if was != now]:
            raise ConfigError(
                f"{folder.root} holds another run: {'; '.join(different)}. Give the same settings and data "
                "to resume it, or another out."
            )
    with replacing(folder.config_file) as partial:
        partial.write_text(json.dumps({**(notes or {}), **run}, indent=2) + "\n", encoding="utf-8")


def read_config(folder: RunFolder) -> dict[str, Any]:
    """Return what :func:`same_or_refuse` wrote.

    Raises:
        CheckpointError: The file is damaged.
    """
    hint = "Delete it: it is written again from the settings that you give."
    with reading_file(folder.config_file, "a run's configuration", hint, CheckpointError):
        values: dict[str, Any] = json.loads(folder.config_file.read_text(encoding="utf-8"))
        if not isinstance(values["config"], dict):
            raise TypeError("its 'config' is not an object")
    return values


def clips_digest(files: Sequence[str | AudioPart], *columns: Sequence[str]) -> str:
    """Return a hash of a list of clips, which is the same wherever their common folder lies.

    Args:
        files: Paths, or parts of files.
        columns: Further values of each clip, such as its label.
    """
    from m2d_hub.audio import AudioPart

    parts = [file if isinstance(file, AudioPart) else AudioPart(file) for file in files]
    folders = {os.path.dirname(os.path.abspath(part.path)) for part in parts}
    root = os.path.commonpath(folders) if folders else ""
    digest = hashlib.sha256()
    for part, *values in zip(parts, *columns, strict=True):
        name = os.path.relpath(part.path, root).replace(os.sep, "/")
        row = json.dumps([name, part.start_s or 0, part.end_s, *values])
        digest.update(row.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


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
    from ..evaluation.charts import draw_steps

    lines = read_metrics(metrics_file)
    for title, names in CURVES.items():
        points = {
            name: [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            for name in names
        }
        points = {name: values for name, values in points.items() if values}
        if points:
            draw_steps(plots / f"{title}.png", points)


def progress_bar(name: str, done: int, total: int, unit: str, is_shown: bool) -> tqdm:
    """Return a progress bar; without a terminal it becomes a line every few minutes and at the end."""
    from tqdm import tqdm

    if getattr(sys.stderr, "isatty", bool)():
        return tqdm(desc=name, total=total, initial=done, unit=unit, disable=not is_shown)
    lines = "{desc}: {unit} {n_fmt} of {total_fmt}{postfix}, {rate_fmt}, {remaining} left"
    return tqdm(
        desc=name,
        total=total,
        initial=done,
        unit=unit,
        disable=not is_shown,
        file=_Lines(),
        bar_format=lines,
        mininterval=LINE_INTERVAL_S,
    )


class _Lines:
    """A stream of lines that are logged, or printed if nothing is logged."""

    def write(self, text: str) -> None:
        if not (line := text.strip()):
            return
        if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
            logger.info("%s", line)
        else:
            print(line, file=sys.stderr)

    def flush(self) -> None:
        """Lines are written at once."""
