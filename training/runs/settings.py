"""Settings as frozen pydantic dataclasses, and their changes by ``--set field=value``."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import typing
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import dataclass_transform

from m2d_hub.errors import ConfigError

logger = logging.getLogger(__name__)

Config = TypeVar("Config")


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, str) and re.fullmatch(r"\d+x\d+", value):
        value = [int(side) for side in value.split("x")]
    if isinstance(value, (tuple, list)) and len(value) == 2:
        sides = [side.item() if isinstance(side, np.generic) else side for side in value]
        if all(type(side) is int and side > 0 for side in sides):
            return sides[0], sides[1]
    raise ValueError("two positive integers, on the command line a size such as 80x608")


PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]  # torch's largest seed
Size = Annotated[tuple[int, int], PlainValidator(_size)]


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def settings(config: type[Config]) -> type[Config]:
    """Make a class a frozen dataclass that checks its fields' types and bounds.

    Values are not converted, except numpy's numbers; :class:`ConfigError` names each field that is wrong.
    """
    strict = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
    checked: Any = pydantic_dataclass(frozen=True, config=strict)(config)
    validate = checked.__init__

    @functools.wraps(validate)
    def initialise(self: Any, *args: Any, **fields: Any) -> None:
        plain = {name: _plain(checked, name, value) for name, value in fields.items()}
        try:
            validate(self, *args, **plain)
        except ValidationError as error:
            raise ConfigError(_message(error, checked)) from None

    checked.__init__ = initialise
    return typing.cast(type[Config], checked)


def apply_settings(config: Config, texts: Sequence[str]) -> Config:
    """Change fields of a configuration by ``field=value``, see :func:`parse_settings`.

    Raises:
        ConfigError: A field is unknown, or a value is not allowed.
    """
    return with_fields(config, parse_settings(config, texts))


def parse_settings(config: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Return the fields that settings change, with their new values.

    Args:
        config: A dataclass, whose fields may be dataclasses.
        texts: ``field=value``; sizes are written 80x608, None as ``none``, fields of a nested configuration
            ``offline.weight=0.5``. ``offline=none`` removes it.

    Raises:
        ConfigError: A field is unknown, or a value cannot be read.
    """
    own: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = defaultdict(dict)
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"--set takes field=value, got {text!r}.")
        field, dot, inner = name.partition(".")
        part = _nested(type(config), field)
        if bool(dot) != bool(part) and value.lower() != "none":
            known = (
                f"set a field of it, such as {field}.{next(iter(_hints(part)))}" if part else "no such field"
            )
            raise ConfigError(f"{field} cannot be set by {text!r}: {known}.")
        if part and dot:
            nested[field][inner] = _parse(name, value, _hint(part, inner))
        else:
            own[name] = _parse(name, value, _hint(type(config), name))
    return own | {field: _changed(config, field, changes) for field, changes in nested.items()}


def with_fields(config: Config, fields: Mapping[str, Any]) -> Config:
    """Return the configuration with other values of some fields.

    A class may name, in ``YIELDS``, fields of a preset that would outweigh a field that is set: they become
    what it says there, with a warning.

    Raises:
        ConfigError: A field is unknown, or a value is not allowed.
    """
    for name in fields:
        _hint(type(config), name)
    yields: Mapping[str, Mapping[str, Any]] = getattr(config, "YIELDS", {})
    reset = {
        other: value
        for name in fields
        if fields[name] is not None
        for other, value in yields.get(name, {}).items()
        if other not in fields and getattr(config, other) != value
    }
    for other, value in reset.items():
        present = f"{other}={getattr(config, other)!r}"
        logger.warning("%s of the preset is overridden by what was set: it is now %r.", present, value)
    return dataclasses.replace(config, **{**reset, **fields})  # type: ignore[type-var]


def require_given(**arguments: object) -> None:
    """Refuse empty arguments.

    Raises:
        ConfigError: The message names them.
    """
    missing = [name for name, value in arguments.items() if not value]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given.")


@functools.cache
def _hints(config: type) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(config)]
    hints = typing.get_type_hints(config, include_extras=True)
    return {name: hints[name] for name in names}


def _hint(config: type, name: str) -> Any:
    hints = _hints(config)
    if name not in hints:
        raise ConfigError(f"Unknown field {name!r}. Available: {', '.join(hints)}.")
    return hints[name]


def _nested(config: type, name: str) -> Any:
    """The dataclass that a field may hold, or None."""
    choices = typing.get_args(_hint(config, name))  # of a union
    return next((one for one in choices if isinstance(one, type) and dataclasses.is_dataclass(one)), None)


def _plain(config: type, name: str, value: Any) -> Any:
    """A number of numpy as Python's own, a nested configuration from JSON as its class."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping) and (part := _nested(config, name)):
        return part(**value)
    return value


def _changed(config: Any, field: str, changes: dict[str, Any]) -> Any:
    """The nested configuration of a field with some of its fields changed, or a new one."""
    present = getattr(config, field)
    if present is not None:
        return dataclasses.replace(present, **changes)
    try:
        return _nested(type(config), field)(**changes)
    except ConfigError as error:
        raise ConfigError(f"{field}.{error}") from None


def _parse(name: str, text: str, hint: Any) -> Any:
    if text.lower() == "none" and type(None) in typing.get_args(hint):
        return None
    try:
        return TypeAdapter(hint).validate_strings(text)
    except ValidationError as error:
        raise ConfigError(_message(error, None, name)) from None


def _message(error: ValidationError, config: type | None, name: str = "") -> str:
    """What is wrong, in the words of pydantic."""
    texts = []
    names = [] if config is None else list(_hints(config))
    for one in error.errors():
        where = name or ".".join(names[key] if isinstance(key, int) else key for key in one["loc"])
        if one["type"] == "unexpected_keyword_argument":
            texts.append(f"Unknown field {where!r}. Available: {', '.join(names)}.")
        elif one["type"] == "missing":
            texts.append(f"{where} must be given.")
        else:
            wanted = one["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            wanted = wanted.partition(", unable")[0]
            texts.append(f"{where} must be {wanted}, got {one['input']!r}.")
    return " ".join(texts)
