"""The suites: their tasks, and the figures of the paper and of the authors.

Clips are cropped or zero-padded to the durations of the paper's evaluation platform. Figures are in percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from m2d_hub.errors import ConfigError

LEARNING_RATE = 3e-5  # of linear evaluation (paper, section IV-B)
VALID_SHARE = 0.1  # of the training clips, for lists without a validation split, as on the platform


@dataclass(frozen=True)
class SuiteTask:
    """A task: one list with its evaluation."""

    name: str
    dataset: str  # name as for make_list
    duration_s: float | None = None  # of the cropped or padded clips; None: as in the preset
    preset: str | None = None  # of fine-tuning; None: linear evaluation
    paper: Mapping[str, float] = field(default_factory=dict)  # by the paper's name of the model
    authors: Mapping[str, float] = field(default_factory=dict)  # published with weights, by model name


@dataclass(frozen=True)
class Suite:
    """Tasks that are run one after another and reported in one table."""

    name: str
    about: str
    seeds: int
    tasks: tuple[SuiteTask, ...]
    authors: Mapping[str, float] = field(default_factory=dict)  # published means over all tasks

    @property
    def is_linear(self) -> bool:
        """Whether its tasks are linear evaluations rather than fine-tunings."""
        return self.tasks[0].preset is None


def _finetuned(
    name: str,
    paper: Mapping[str, float],
    authors: Mapping[str, float] | None = None,
    dataset: str | None = None,
) -> SuiteTask:
    return SuiteTask(name, dataset or name, preset=name, paper=paper, authors=authors or {})


_M2D = "M2D/0.7"
SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "paper-linear",
            "the nine tasks of Table III by linear evaluation",
            seeds=6,
            tasks=(
                SuiteTask("esc50", "esc50", 5.0),
                SuiteTask("us8k", "us8k", 4.0),
                SuiteTask("spcv2", "spcv2", 1.0),
                SuiteTask("vc1", "vc1", 8.2),
                SuiteTask("voxforge", "voxforge", 5.8),
                SuiteTask("cremad", "cremad", 2.5),
                SuiteTask("gtzan", "gtzan", 30.0),
                SuiteTask("nsynth", "nsynth", 4.0),
                SuiteTask("surge", "surge", 4.0),
            ),
            authors={"m2d-0.7": 80.2, "m2d-as-0.7": 80.6, "m2d-clap-2024": 80.8, "m2d-clap-2025": 78.8},
        ),
        Suite(
            "paper-finetune",
            "the five tasks of Table II by fine-tuning",
            seeds=6,
            tasks=(
                _finetuned(
                    "as2m",
                    dataset="audioset",
                    paper={_M2D: 47.9},
                    authors={
                        "m2d-0.7": 47.9,
                        "m2d-as-0.7": 48.5,
                        "m2d-clap-2024": 48.5,
                        "m2d-as-0.7-32k": 48.0,
                        "m2d-clap-2025": 49.0,
                    },
                ),
                _finetuned("as20k", paper={_M2D: 38.6}),
                _finetuned("esc50", paper={_M2D: 96.0}),
                _finetuned("spcv2", paper={_M2D: 98.4}),
                _finetuned("vc1", paper={_M2D: 96.3}),
            ),
        ),
        Suite(
            "icbhi",
            "ICBHI 2017, the official 60/40, by fine-tuning (section IV-E)",
            seeds=5,
            tasks=(_finetuned("icbhi2017", paper={f"{_M2D} 16x4": 61.93, "M2D-X": 63.29}),),
        ),
        Suite(
            "sprsound",
            "SPRSound, tested on other patients, by fine-tuning (section IV-E4)",
            seeds=5,
            tasks=(_finetuned("sprsound", paper={"M2D-X": 89.77}),),
        ),
        Suite(
            "imagenet",
            "ImageNet-1K by fine-tuning (appendix A), of an image model",
            seeds=1,  # the paper does not state their number
            tasks=(_finetuned("imagenet", paper={"MAE": 83.22, "M2D all patches": 83.22, "M2D": 83.35}),),
        ),
    )
}


def find_suite(name: str) -> Suite:
    """Return the suite of a name.

    Raises:
        ConfigError: The name is unknown; the message lists the suites.
    """
    if name not in SUITES:
        raise ConfigError(f"Unknown suite {name!r}. Available: {', '.join(SUITES)}.")
    return SUITES[name]


def chosen_tasks(suite: Suite, names: tuple[str, ...]) -> tuple[SuiteTask, ...]:
    """Return the named tasks of a suite in its order, or all tasks without names.

    Raises:
        ConfigError: A name is not one of its tasks.
    """
    known = [task.name for task in suite.tasks]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"tasks of {suite.name} are {', '.join(known)}; got {', '.join(unknown)}.")
    return tuple(task for task in suite.tasks if not names or task.name in names)
