"""Mean and standard deviation that a run standardises its inputs by, where they are not given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m2d_hub.errors import ConfigError

from ..data.crops import CropPlan
from ..data.manifest import Manifest, Statistics
from ..data.statistics import measure_statistics
from ..runs.measuring import first_tells
from .config import PretrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


def with_statistics(
    config: PretrainConfig,
    manifest: Manifest,
    noise: Manifest | None,
    stored: Mapping[str, Any],
    accelerator: Accelerator,
) -> PretrainConfig:
    """Fills in mean, std and noise_mean: as given, prepared, stored by this very run, or measured.

    Args:
        config: Of the run.
        manifest: Its clips.
        noise: Its noise.
        stored: Configuration of a run that goes on.
        accelerator: Its processes, of which the first one measures.

    Raises:
        ConfigError: The data were prepared at another rate.
    """
    if config.is_image:
        return config
    measured = _Measured(stored, accelerator)
    plan = CropPlan(config.frontend, config.input_size[1], short_clips=config.short_clips)
    found: dict[str, float] = {}
    if config.mean is None or config.std is None:
        found |= measured.mean_and_std(manifest, plan, ("mean", "std"))
    if noise is not None and config.noise_mean is None:
        noise_plan = dataclasses.replace(plan, short_clips="repeat")
        found |= measured.mean_and_std(noise, noise_plan, ("noise_mean",))
    return dataclasses.replace(
        config,
        mean=found.get("mean") if config.mean is None else config.mean,
        std=found.get("std") if config.std is None else config.std,
        noise_mean=found.get("noise_mean") if config.noise_mean is None else config.noise_mean,
    )


@dataclass(frozen=True)
class _Measured:
    """Where statistics come from that are not given."""

    stored: Mapping[str, Any]  # by this very run, which goes on
    accelerator: Accelerator

    def mean_and_std(self, manifest: Manifest, plan: CropPlan, names: tuple[str, ...]) -> dict[str, float]:
        """The statistics of a list under some names, the mean first."""
        if manifest.statistics is None and all(self.stored.get(name) is not None for name in names):
            return {name: self.stored[name] for name in names}
        statistics = manifest.statistics or first_tells(
            self.accelerator, lambda: measure_statistics(manifest, plan)
        )
        _check_rate(manifest, statistics, plan.frontend.sample_rate)
        return dict(zip(names, (statistics.mean, statistics.std), strict=False))


def _check_rate(manifest: Manifest, statistics: Statistics, sample_rate: int) -> None:
    if statistics.sample_rate != sample_rate:
        raise ConfigError(
            f"{manifest.name} was prepared at {statistics.sample_rate} Hz, but sample_rate is {sample_rate}: "
            "prepare it at that rate, or give mean and std (noise_mean of noise)."
        )
