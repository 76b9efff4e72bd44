"""Checks of settings: allowed numbers, choices and types, and their messages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real

from m2d_hub.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with ``message`` unless ``condition`` is true."""
    if not condition:
        raise ConfigError(message)


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a ConfigError unless ``value`` is one of ``choices``."""
    require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}.")


@dataclass(frozen=True)
class Numbers:
    """A range of finite numbers, numpy's included; ``str()`` describes it."""

    min: float = -math.inf
    max: float = math.inf
    is_whole: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, Integral if self.is_whole else Real):
            return False
        return math.isfinite(value) and self.min <= float(value) <= self.max

    def __str__(self) -> str:
        if self == POSITIVE_INTEGER:
            return "a positive integer"
        kind = "an integer" if self.is_whole else "a finite number"
        limits = (self.min, self.max)
        low, high = (f"{limit:,}" if isinstance(limit, int) else f"{limit:g}" for limit in limits)
        if math.isfinite(self.max):
            return f"{kind} from {low} to {high}"
        return f"{kind} of at least {low}" if math.isfinite(self.min) else kind


POSITIVE_INTEGER = Numbers(1, is_whole=True)
COUNT = Numbers(0, is_whole=True)
SHARE = Numbers(0, 1)


def require_numbers(config: object, allowed: Mapping[str, Numbers]) -> None:
    """Raise a ConfigError for the first field of ``config`` that is not in its allowed range."""
    for name, numbers in allowed.items():
        value = getattr(config, name)
        require(value in numbers, f"{name} must be {numbers}, got {value!r}.")


def require_size(config: object, name: str, limits: tuple[int, int]) -> None:
    """Raise a ConfigError unless a field has two integers up to ``limits``; convert them to a tuple."""
    value = getattr(config, name)
    require(
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(n in Numbers(1, limit, is_whole=True) for n, limit in zip(value, limits, strict=True)),
        f"{name} must be two positive integers (mels, frames) of at most {limits[0]:,} and {limits[1]:,}, "
        f"got {value!r:.60}.",
    )
    object.__setattr__(config, name, tuple(value))


def require_types(config: object, allowed: Mapping[str, type | tuple[type, ...]]) -> None:
    """Raise a ConfigError for the first field of ``config`` that does not have an allowed type."""
    for name, types in allowed.items():
        value = getattr(config, name)
        require(isinstance(value, types), f"{name} must not be {value!r:.60}.")
