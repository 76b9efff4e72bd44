"""Changes of single fields of a configuration, as ``--set field=value`` writes them."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from m2d_hub.errors import ConfigError

from .config import OfflineConfig, PretrainConfig

OFFLINE = "offline"


def apply_settings(config: PretrainConfig, settings: Sequence[str]) -> PretrainConfig:
    """Changes fields of a run.

    Args:
        config: Where to start.
        settings: ``field=value``; sizes are written 80x608, nothing ``none``, fields of the offline network
            ``offline.weight=0.5``. ``offline=none`` takes it away.

    Raises:
        ConfigError: A field is unknown, or a value not allowed.
    """
    own: dict[str, Any] = {}
    offline: dict[str, Any] = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set takes field=value, got {setting!r}.")
        if name.startswith(f"{OFFLINE}."):
            field = name.removeprefix(f"{OFFLINE}.")
            offline[field] = _parse(name, text, _hint(OfflineConfig, field, name))
        elif name == OFFLINE:
            if text.lower() != "none":
                raise ConfigError(
                    f"offline can only be set to none as a whole, got {text!r}: set offline.kind."
                )
            own[OFFLINE] = None
        else:
            own[name] = _parse(name, text, _hint(PretrainConfig, name, name))
    if offline:
        own[OFFLINE] = _changed_offline(config.offline, offline)
    return dataclasses.replace(config, **own)


def _changed_offline(offline: OfflineConfig | None, changes: dict[str, Any]) -> OfflineConfig:
    if offline is not None:
        return dataclasses.replace(offline, **changes)
    if "kind" not in changes:
        raise ConfigError(
            f"this method has no offline network: set offline.kind too, got only {sorted(changes)}."
        )
    return OfflineConfig(**changes)


def _hint(owner: type, field: str, name: str) -> Any:
    hints = typing.get_type_hints(owner)
    if field not in hints:
        raise ConfigError(f"Unknown field {name!r}. Available: {', '.join(hints)}.")
    return hints[field]


def _parse(name: str, text: str, hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        parts = typing.get_args(hint)
        if text.lower() == "none" and type(None) in parts:
            return None
        hint = next(part for part in parts if part is not type(None))
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
