"""Where a run keeps its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
    def skipped_file(self) -> Path:
        """Clips that could not be read, and why."""
        return self.root / "skipped.csv"

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
