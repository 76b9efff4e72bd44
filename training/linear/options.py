"""Options of a linear evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from m2d_hub.errors import ConfigError

from ..evaluation.clip_encoder import Pooling
from ..evaluation.division import Division
from ..evaluation.linear_layers import MAX_EPOCHS, PATIENCE

FIRST_SEED = 42
SEEDS = 6  # as the paper's tables average


@dataclass(frozen=True)
class LinearEvalOptions:
    """Model, data, and how features are made and told apart; by default as the paper's section IV-B."""

    model: str | os.PathLike[str]  # as for m2d_hub.load_model
    data: str | os.PathLike[str]  # CSV with file, label and split
    out: Path

    layer: int | Literal["last", "all", "mix"] = "last"  # a block from 1; each; or all by learned weights
    pooling: Pooling = "mean"  # of a clip's frames
    duration: float | Literal["mean", "none"] = "mean"  # seconds that clips are cropped or padded to
    window_s: float | None = None  # that the encoder sees at once; None: as pre-trained

    learning_rate: float | None = None  # of Adam; None: 3e-5, or higher where that does not converge
    seeds: Sequence[int] | int = SEEDS  # of the trainings; a number of them counts up from 42
    max_epochs: int = MAX_EPOCHS
    patience: int = PATIENCE  # epochs
    valid_share: float = 0.0  # of the training clips, held out to choose the epoch; 0: the list's valid split
    multi_label: bool | None = None  # None: whether any row has several labels

    cache: Path | None = None  # folder of the features; None: features/ in ``out``
    device: str | None = None  # None: the best there is
    batch_size: int = 16  # windows encoded at once; changes no number
    num_workers: int = 2  # threads that read audio
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        Division(valid_share=self.valid_share)
        allowed = {
            "layer": self.layer in ("last", "all", "mix") or _is_count(self.layer),
            "duration": self.duration in ("mean", "none") or _is_positive(self.duration),
            "pooling": self.pooling in get_args(Pooling),
            "learning_rate": self.learning_rate is None or _is_positive(self.learning_rate),
            "seeds": _is_count(self.seeds) or _are_seeds(self.seeds),
        }
        allowed |= {
            name: _is_count(getattr(self, name))
            for name in ("max_epochs", "patience", "batch_size", "num_workers")
        }
        for name, is_allowed in allowed.items():
            if not is_allowed:
                raise ConfigError(
                    f"{name} must be {_ALLOWED.get(name, _COUNT)}, got {getattr(self, name)!r}."
                )

    @property
    def training_seeds(self) -> tuple[int, ...]:
        """The seed of each training."""
        if isinstance(self.seeds, int):
            return tuple(range(FIRST_SEED, FIRST_SEED + self.seeds))
        return tuple(self.seeds)

    @property
    def features_folder(self) -> Path:
        """Where features are kept."""
        return self.cache or self.out / "features"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        paths = {name: str(getattr(self, name)) for name in ("model", "data", "out")}
        return {
            **asdict(self),
            **paths,
            "cache": str(self.features_folder),
            "seeds": list(self.training_seeds),
        }


_COUNT = "a whole number of at least 1"
_ALLOWED = {
    "layer": "'last', 'all', 'mix', or a block's number from 1",
    "duration": "'mean', 'none', or a positive number of seconds",
    "pooling": f"one of {', '.join(get_args(Pooling))}",
    "learning_rate": "a positive number, or None",
    "seeds": "a number of trainings, or one or more whole numbers",
}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def _are_seeds(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return len(value) > 0 and all(isinstance(seed, int) for seed in value)


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 < value < float("inf")
