"""Settings that only fine-tuning on pictures has: what masked autoencoders' recipe does beside."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from m2d_hub.checks import NOT_NEGATIVE, Numbers, require, require_numbers

from ..runs.settings import Needs, Yields

_BELOW_ONE = Numbers(least=0, most=1, without_ends="most")
_NUMBERS = {
    "drop_path": _BELOW_ONE,
    "cutmix_ratio": NOT_NEGATIVE,
    "label_smoothing": _BELOW_ONE,
    "erase_share": Numbers(least=0, most=1),
}
_RAND_AUGMENT = re.compile(r"rand(-[a-z]+[\d.]+)*")


@dataclass(frozen=True)
class ImageConfig:
    """Augmentation and regularisation of pictures; the defaults are masked autoencoders' for ViT-Base."""

    NEEDS: ClassVar[Needs] = {}
    YIELDS: ClassVar[Yields] = {}

    drop_path: float = 0.1  # share of samples that pass by the last block; it grows evenly from the first on
    cutmix_ratio: float = (
        1.0  # both parameters of CutMix's beta distribution, drawn as often as mixup; 0: none
    )
    label_smoothing: float = 0.1
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"  # RandAugment as timm writes it
    erase_share: float = 0.25  # of pictures, a random part of which is erased

    def __post_init__(self) -> None:
        require_numbers(self, _NUMBERS, "images.")
        require(
            self.rand_augment is None or _RAND_AUGMENT.fullmatch(self.rand_augment) is not None,
            "images.rand_augment must be RandAugment as timm writes it, such as 'rand-m9-mstd0.5-inc1', or "
            f"none; got {self.rand_augment!r}.",
        )
