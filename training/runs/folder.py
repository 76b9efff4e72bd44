"""Where a run keeps its files."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from m2d_hub.errors import ConfigError

from .devices import is_first_process

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
LOCK_WAIT_S = 10.0  # workers of a run that was killed end some seconds after it


def make_folder(folder: Path) -> None:
    """Makes the folder that a command writes into.

    Raises:
        ConfigError: There is a file of that name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"out must be a folder, but {folder} is a file or lies in one.") from error


@contextlib.contextmanager
def one_run_in(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other runs out of it; of a run's processes the first one does.

    Raises:
        ConfigError: Another run works in it, or it is no folder.
    """
    from filelock import FileLock, Timeout

    if not is_first_process():
        yield
        return
    make_folder(folder)
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=LOCK_WAIT_S)
    except Timeout as error:
        raise ConfigError(
            f"another run works in {folder}: wait until it has ended, or give another out."
        ) from error
    except NotImplementedError:
        logger.warning("The file system of %s knows no locks: start no other run in it.", folder)
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files."""

    root: Path

    @property
    def config_file(self) -> Path:
        """Resolved configuration."""
        return self.root / "config.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON line a step."""
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of ``step-….pt``."""
        return self.root / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard logs."""
        return self.root / "tensorboard"

    @property
    def plots(self) -> Path:
        """Curves as PNG."""
        return self.root / "plots"

    @property
    def export(self) -> Path:
        """Folder that ``m2d_hub.load_model`` takes, and the published layout beside it."""
        return self.root / "export"
