"""What this package's extras bring: where it is missing or does not load, that is told in one way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from m2d_hub.errors import ConfigError, M2DError, reason_of


@contextlib.contextmanager
def importing(
    packages: str, by: str, extra: str, way_out: str = "", failure: type[M2DError] = ConfigError
) -> Iterator[None]:
    """Imports what an extra brings.

    Args:
        packages: What is imported inside, as users know it: "scikit-learn".
        by: What needs it, as the beginning of a sentence: "ONNX export".
        extra: The extra of this package that brings it.
        way_out: What to do without it, as a sentence.
        failure: The error that is raised.

    Raises:
        M2DError: A ``failure``, where something is missing, or does not load; why it does not is told.
    """
    try:
        yield
    except (ImportError, OSError) as error:  # the latter: a library of the system is missing
        need = f"{by} needs {packages}"
        if not isinstance(error, ModuleNotFoundError):
            need += f", which cannot be imported ({reason_of(error)})"
        raise failure(f"{need}: pip install 'm2d-hub[{extra}]'. {way_out}".rstrip()) from error


def require_extra(extra: str, by: str) -> None:
    """Looks, before hours of work, whether all that an extra brings is installed; nothing is imported.

    Raises:
        ConfigError: Something is not; all that is missing is named.
    """
    missing = [name for name in _packages(extra) if not _is_installed(name)]
    if missing:
        raise ConfigError(f"{by} needs {', '.join(missing)}: pip install 'm2d-hub[{extra}]'.")


def _packages(extra: str) -> list[str]:
    """Names of the packages that only an extra brings; of a source tree that is not installed, none."""
    from packaging.requirements import Requirement

    try:
        needs = [Requirement(need) for need in requires("m2d-hub") or ()]
    except PackageNotFoundError:
        return []
    return [
        need.name
        for need in needs
        if need.marker and need.marker.evaluate({"extra": extra}) and not need.marker.evaluate({"extra": ""})
    ]


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
