"""Changes of single fields of a configuration, as ``--set field=value`` writes them.

What is set is never outweighed in silence: fields of a preset give way where the configuration says so
(``YIELDS``), and a field that does nothing beside the others (``NEEDS``) is told.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import types
import typing
from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar, Protocol, TypeVar

from m2d_hub.errors import ConfigError

logger = logging.getLogger(__name__)

Needs = Mapping[str, Mapping[str, Any]]  # a field → others, one of which must be among these values
Yields = Mapping[str, Mapping[str, Any]]  # a field that is set → others that become this


class Settable(Protocol):
    """A configuration, a dataclass, that says which of its fields hang together."""

    NEEDS: ClassVar[Needs]
    YIELDS: ClassVar[Yields]


Config = TypeVar("Config", bound=Settable)


def apply_settings(config: Config, settings: Sequence[str]) -> Config:
    """Changes fields of a run.

    Args:
        config: Where to start.
        settings: As for :func:`parse_settings`.

    Raises:
        ConfigError: A field is unknown, or a value not allowed.
    """
    return with_fields(config, parse_settings(config, settings))


def parse_settings(config: object, settings: Sequence[str]) -> dict[str, Any]:
    """Fields that settings change, with their new values.

    Args:
        config: A dataclass, whose parts a setting may change a field of.
        settings: ``field=value``; sizes are written 80x608, nothing ``none``, fields of a part
            ``offline.weight=0.5``. ``offline=none`` takes the part away.

    Raises:
        ConfigError: A field is unknown, or a value cannot be read.
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
    return own | {field: _changed_part(config, field, changes) for field, changes in of_parts.items()}


def parse_sweep(config: Any, sweep: str) -> dict[str, dict[str, Any]]:
    """Values of one field that are tried one after another, by a name for the folder of each.

    Args:
        config: Where to start, a dataclass.
        sweep: ``field=value,value``, each written as for :func:`parse_settings`.

    Raises:
        ConfigError: It names one value only, one twice, or one that is not allowed.
    """
    field, values = split_sweep(sweep)
    found = {f"{field}-{value}": parse_settings(config, [f"{field}={value}"]) for value in values}
    for fields in found.values():
        dataclasses.replace(config, **fields)  # refuses what is not allowed before any run begins
    return found


def split_sweep(sweep: str) -> tuple[str, list[str]]:
    """A sweep's field and its values as they are written; the folder of each is ``FIELD-VALUE``.

    Raises:
        ConfigError: It names one value only, or one twice.
    """
    field, _, text = sweep.partition("=")
    values = [value.strip() for value in text.split(",")]
    if len(set(values)) < max(2, len(values)) or not all(values):
        raise ConfigError(
            f"--sweep takes field=value,value with two or more different values, got {sweep!r}."
        )
    return field, values


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
    given_way = {
        other: value
        for name in fields
        if fields[name] is not None
        for other, value in config.YIELDS.get(name, {}).items()
        if other not in fields and getattr(config, other) != value
    }
    for other, value in given_way.items():
        outweighing = f"{other}={getattr(config, other)!r}"
        logger.warning("%s of the preset gives way to what was set: it is %r.", outweighing, value)
    changed = dataclasses.replace(config, **{**given_way, **fields})  # type: ignore[type-var]
    _tell_what_does_nothing(changed, fields.keys())
    return changed


def _tell_what_does_nothing(config: Settable, names: AbstractSet[str], prefix: str = "") -> None:
    """Warns of fields that were set and are not looked at, as others are."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    for name in config.NEEDS.keys() & names:
        others = config.NEEDS[name]
        if getattr(config, name) == defaults[name] or any(
            getattr(config, other) in allowed for other, allowed in others.items()
        ):
            continue
        present = " and ".join(f"{prefix}{other} is {getattr(config, other)!r}" for other in others)
        wanted = " or ".join(f"{prefix}{other} {_words(allowed)}" for other, allowed in others.items())
        logger.warning(
            "%s%s=%r does nothing where %s: it is for %s.",
            prefix,
            name,
            getattr(config, name),
            present,
            wanted,
        )


def _words(allowed: Any) -> str:
    return " or ".join(map(repr, allowed)) if isinstance(allowed, tuple) else str(allowed)


def _changed_part(config: object, field: str, changes: dict[str, Any]) -> Any:
    present = getattr(config, field)
    if present is not None:
        changed = dataclasses.replace(present, **changes)
    else:
        part = next(choice for choice in _choices(_hint(type(config), field, field)) if _is_part(choice))
        missing = [name for name in _needed(part) if name not in changes]
        if missing:
            raise ConfigError(
                f"there is no {field}: set {field}.{missing[0]} too, got only {sorted(changes)}."
            )
        changed = part(**changes)
    _tell_what_does_nothing(changed, changes.keys(), f"{field}.")
    return changed


def _is_part(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _needed(part: type) -> list[str]:
    """Fields without a default."""
    return [field.name for field in dataclasses.fields(part) if field.default is dataclasses.MISSING]


def _hint(owner: type, field: str, name: str) -> Any:
    fields = [own.name for own in dataclasses.fields(owner)]
    if field not in fields:
        raise ConfigError(f"Unknown field {name!r}. Available: {', '.join(fields)}.")
    return typing.get_type_hints(owner)[field]


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
