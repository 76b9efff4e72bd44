"""The folder of a linear evaluation: made ready, with nothing in it of an earlier one but the features."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from m2d_hub.errors import CheckpointError, ConfigError

from ..data.left_out import ERRORS_FILE
from ..evaluation.report import CONFUSION_FILE, PRECISION_FILE, REPORT_FILE, WORST_FILE, read_report
from .options import LinearEvalOptions
from .report import CURVES_FILE, LAYERS_FILE, METHOD, MIX_FILE

CONFIG_FILE = "config.json"
PICTURES = (CURVES_FILE, LAYERS_FILE, MIX_FILE, CONFUSION_FILE, PRECISION_FILE)


@dataclass(frozen=True)
class LinearFolder:
    """Where an evaluation keeps its files."""

    root: Path

    @property
    def features(self) -> Path:
        """Features, where no other cache was named."""
        return self.root / "features"

    @property
    def errors_file(self) -> Path:
        """Clips that cannot be read."""
        return self.root / ERRORS_FILE

    @property
    def model(self) -> Path:
        """Folder that ``m2d_hub.load_model`` takes."""
        return self.root / "model"

    def prepare(self, options: LinearEvalOptions) -> None:
        """Removes what an earlier evaluation left, but its features, and writes the options.

        Raises:
            ConfigError: What stands in the model's place is something else, or the model to evaluate.
        """
        is_own = self._is_evaluation()
        if self.model.exists() and (not is_own or self.model.resolve() == Path(options.model).resolve()):
            what = "is the model to evaluate" if is_own else "is not of a linear evaluation"
            raise ConfigError(f"{self.model} {what}, and would be replaced: give another output.")
        if is_own:
            shutil.rmtree(self.model, ignore_errors=True)
            for name in (*PICTURES, WORST_FILE, self.errors_file.name, REPORT_FILE):
                (self.root / name).unlink(missing_ok=True)
        self.root.mkdir(parents=True, exist_ok=True)
        text = json.dumps(options.to_dict(), indent=2, ensure_ascii=False) + "\n"
        (self.root / CONFIG_FILE).write_text(text, encoding="utf-8")

    def _is_evaluation(self) -> bool:
        try:
            return bool(read_report(self.root).get("method") == METHOD)
        except CheckpointError:
            return False
