"""Checks of settings: the numbers, choices and types that a field may have, in words too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

from m2d_hub.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raises a ConfigError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises a ConfigError unless ``value`` is among ``choices``."""
    require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}.")


@dataclass(frozen=True)
class Numbers:
    """The numbers that a field may have, in words too."""

    least: float = -math.inf
    most: float = math.inf
    is_whole: bool = False
    without_ends: Literal["", "least", "most"] = ""  # an end that is not allowed itself
    or_none: str = ""  # what None means, where it is allowed
    or_inf: str = ""  # what infinity means, where it is allowed

    def __contains__(self, value: object) -> bool:
        if value is None:
            return bool(self.or_none)
        kind = Integral if self.is_whole else Real  # numpy's numbers are registered as these
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        value = float(value)
        if not math.isfinite(value):
            return value == math.inf and bool(self.or_inf)
        is_at_end = value == {"least": self.least, "most": self.most}.get(self.without_ends)
        return self.least <= value <= self.most and not is_at_end

    def __str__(self) -> str:
        words = self._range() + (f" (inf: {self.or_inf})" if self.or_inf else "")
        return f"{words}, or None for {self.or_none}" if self.or_none else words

    def _range(self) -> str:
        least, most = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.least, self.most))
        if math.isfinite(self.most):
            prefix = "an integer " if self.is_whole else ""
            if self.without_ends == "least":
                return f"{prefix}above {least} and at most {most}"
            return f"{prefix}from {least} to {'below ' if self.without_ends else ''}{most}"
        if self.without_ends == "least" and not self.least:
            return "positive"
        if self.is_whole:
            return "a positive integer" if self.least == 1 else f"an integer of at least {least}"
        return f"a finite number of at least {least}" if math.isfinite(self.least) else "a finite number"


POSITIVE_INTEGER = Numbers(least=1, is_whole=True)
COUNT = Numbers(least=0, is_whole=True)
POSITIVE = Numbers(least=0, without_ends="least")
NOT_NEGATIVE = Numbers(least=0)
SHARE = Numbers(least=0, most=1)
FINITE = Numbers()


def require_numbers(config: object, allowed: Mapping[str, Numbers], prefix: str = "") -> None:
    """Raises a ConfigError for the first of a configuration's fields that is none of the numbers it may be.

    Args:
        config: The configuration.
        allowed: By the field's name.
        prefix: Of the names in the message, for a part of a configuration.
    """
    for name, numbers in allowed.items():
        value = getattr(config, name)
        require(value in numbers, f"{prefix}{name} must be {numbers}, got {value!r}.")


def require_positive_integers(config: object, *names: str) -> None:
    """Raises a ConfigError for the first of a configuration's fields that is no positive integer."""
    require_numbers(config, dict.fromkeys(names, POSITIVE_INTEGER))


def require_size(config: object, name: str) -> None:
    """Raises a ConfigError unless a field is two positive integers; makes them a tuple."""
    value = getattr(config, name)
    require(
        isinstance(value, (tuple, list)) and len(value) == 2 and all(n in POSITIVE_INTEGER for n in value),
        f"{name} must be two positive integers (mels, frames), got {value!r}.",
    )
    object.__setattr__(config, name, tuple(value))


def require_types(config: object, allowed: Mapping[str, type | tuple[type, ...]]) -> None:
    """Raises a ConfigError for the first of a configuration's fields that is of no allowed type."""
    for name, types in allowed.items():
        value = getattr(config, name)
        require(isinstance(value, types), f"{name} must not be {brief(value)}.")


def brief(value: object) -> str:
    """A value in a message, of 60 characters at most."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
