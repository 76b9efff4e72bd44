"""Pictures: how they are read, and random crops of them, flipped and normalised as on ImageNet."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import numpy as np

from m2d_hub.errors import AudioError
from m2d_hub.io import reading

from .entry import Entry

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA_SHARE = (0.2, 1.0)  # of the picture, as in masked autoencoders
ASPECT_RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 80_000_000  # 240 MB


def is_image(name: str) -> bool:
    """Whether a file is a picture, by its name."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def read_image(entry: Entry, least: tuple[int, int] | None = None) -> Image.Image:
    """A picture in RGB, whole.

    Args:
        entry: The picture's file.
        least: Width and height that it is only to be looked at in: JPEG is then decoded as small as that.

    Raises:
        AudioError: The file is no readable picture.
    """
    from PIL import Image

    way_out = f"Give one of {', '.join(FORMATS)}."
    with (
        reading(entry, "a picture", way_out, AudioError),
        entry.open() as file,
        Image.open(file, formats=FORMATS) as stored,
    ):
        if stored.width * stored.height > MAX_PIXELS:
            raise AudioError(f"{entry} has {stored.width}x{stored.height} pixels; {MAX_PIXELS:,} are read.")
        if least is not None:
            stored.draft("RGB", least)
        return stored.convert("RGB")


def crop_image(entry: Entry, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Reads a picture, cuts and resizes a random part, and flips it half of the time (paper, appendix A).

    Args:
        entry: The picture's file.
        size: Height and width wanted, pixels.
        rng: Source of randomness.

    Returns:
        (3, height, width) float32.

    Raises:
        AudioError: The file is no readable picture.
    """
    from PIL import Image

    picture = read_image(entry)
    box = _random_box(picture.width, picture.height, rng)
    resized = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(resized, dtype=np.float32) / 255.0  # (height, width, 3)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    mean, std = (np.array(values, dtype=np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge of a part with a random area and aspect ratio."""
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*AREA_SHARE)
        aspect = math.exp(rng.uniform(*np.log(ASPECT_RATIO)))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(rng.integers(width - box_width + 1))
            upper = int(rng.integers(height - box_height + 1))
            return left, upper, left + box_width, upper + box_height
    side = min(width, height)
    left, upper = (width - side) // 2, (height - side) // 2
    return left, upper, left + side, upper + side
