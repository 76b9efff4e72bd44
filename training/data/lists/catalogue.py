"""The data sets whose lists can be made, by name."""

from __future__ import annotations

from m2d_hub.errors import ConfigError

from .audioset import AS20K, AUDIOSET
from .cremad import CREMAD
from .dataset import PublicDataset, Variant
from .esc50 import ESC50
from .evar import EVAR
from .fsd50k import FSD50K
from .gtzan import GTZAN
from .icbhi2017 import ICBHI2017
from .imagenet import IMAGENET
from .librispeech import LIBRISPEECH
from .nsynth import NSYNTH
from .speech_commands import SPCV1, SPCV2
from .sprsound import SPRSOUND
from .surge import SURGE
from .us8k import US8K
from .voxceleb1 import VC1
from .voxforge import VOXFORGE

DATASETS: dict[str, PublicDataset] = {
    "esc50": ESC50,
    "us8k": US8K,
    "spcv1": SPCV1,
    "spcv2": SPCV2,
    "vc1": VC1,
    "nsynth": NSYNTH,
    "gtzan": GTZAN,
    "surge": SURGE,
    "cremad": CREMAD,
    "voxforge": VOXFORGE,
    "audioset": AUDIOSET,
    "as20k": AS20K,
    "fsd50k": FSD50K,
    "icbhi2017": ICBHI2017,
    "sprsound": SPRSOUND,
    "librispeech": LIBRISPEECH,
    "imagenet": IMAGENET,
    "evar": EVAR,
}


def find_dataset(name: str) -> PublicDataset:
    """Finds a data set.

    Raises:
        ConfigError: The name is not known; the message lists those that are.
    """
    if name not in DATASETS:
        raise ConfigError(f"Unknown data set {name!r}. Available: {', '.join(DATASETS)}.")
    return DATASETS[name]


def find_variant(name: str, variant: str | None) -> Variant:
    """Finds a data set's variant; None: its first.

    Raises:
        ConfigError: The name is not known; the message lists those that are.
    """
    variants = find_dataset(name).variants
    chosen = variant or next(iter(variants))
    if chosen not in variants:
        raise ConfigError(f"{name} has no variant {variant!r}. Available: {', '.join(variants)}.")
    return variants[chosen]
