"""Changes of single fields of a configuration, as ``--set field=value`` writes them."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from m2d_hub.errors import ConfigError

Config = TypeVar("Config")


def apply_settings(config: Config, settings: Sequence[str]) -> Config:
    """Changes fields of a run.

    Args:
        config: Where to start, a dataclass.
        settings: ``field=value``; sizes are written 80x608, nothing ``none``, fields of a part
            ``offline.weight=0.5``. ``offline=none`` takes the part away.

    Raises:
        ConfigError: A field is unknown, or a value not allowed.
    """
    own: dict[str, Any] = {}
    of_parts: dict[str, dict[str, Any]] = defaultdict(dict)
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set takes field=value, got {setting!r}.")
        field, dot, inner = name.partition(".")
        hint = _hint(type(config), field, name)
        part = next((choice for choice in _choices(hint) if _is_part(choice)), None)
        if dot and part is not None:
            of_parts[field][inner] = _parse(name, text, _hint(part, inner, name))
        elif dot:
            raise ConfigError(f"{field} has no fields of its own, got {setting!r}.")
        elif part is None:
            own[name] = _parse(name, text, hint)
        elif text.lower() == "none":
            own[name] = None
        else:
            raise ConfigError(
                f"{name} can only be set to none as a whole, got {text!r}: set {name}.{_needed(part)[0]}."
            )
    for field, changes in of_parts.items():
        own[field] = _changed_part(config, field, changes)
    return dataclasses.replace(config, **own)  # type: ignore[type-var]


def require_given(**arguments: object) -> None:
    """Refuses arguments that are empty.

    Raises:
        ConfigError: The message names them.
    """
    missing = [name for name, value in arguments.items() if not value]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given.")


def with_fields(config: Config, fields: Mapping[str, Any]) -> Config:
    """The same configuration with other values of some fields.

    Raises:
        ConfigError: A field is unknown, or a value not allowed.
    """
    for name in fields:
        _hint(type(config), name, name)
    return dataclasses.replace(config, **fields)  # type: ignore[type-var]


def _changed_part(config: object, field: str, changes: dict[str, Any]) -> Any:
    present = getattr(config, field)
    if present is not None:
        return dataclasses.replace(present, **changes)
    part = next(choice for choice in _choices(_hint(type(config), field, field)) if _is_part(choice))
    missing = [name for name in _needed(part) if name not in changes]
    if missing:
        raise ConfigError(f"there is no {field}: set {field}.{missing[0]} too, got only {sorted(changes)}.")
    return part(**changes)


def _is_part(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _needed(part: type) -> list[str]:
    """Fields without a default."""
    return [field.name for field in dataclasses.fields(part) if field.default is dataclasses.MISSING]


def _hint(owner: type, field: str, name: str) -> Any:
    hints = typing.get_type_hints(owner)
    if field not in hints:
        raise ConfigError(f"Unknown field {name!r}. Available: {', '.join(hints)}.")
    return hints[field]


def _choices(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _parse(name: str, text: str, hint: Any) -> Any:
    choices = _choices(hint)
    if text.lower() == "none" and type(None) in choices:
        return None
    hint = next(choice for choice in choices if choice is not type(None))
    try:
        if hint is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if typing.get_origin(hint) is tuple:
            match = re.fullmatch(r"(\d+)x(\d+)", text)
            if match is None:
                raise ValueError(text)
            return int(match[1]), int(match[2])
        return hint(text) if hint in (int, float) else text
    except (ValueError, KeyError) as error:
        expected = (
            "true or false"
            if hint is bool
            else "a size such as 80x608"
            if hint not in (int, float)
            else hint.__name__
        )
        raise ConfigError(f"{name} must be {expected}, got {text!r}.") from error
