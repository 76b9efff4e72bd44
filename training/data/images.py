"""Images: reading, and random crops, flipped and normalised as for ImageNet."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import numpy as np

from m2d_hub.errors import AudioError
from m2d_hub.io import reading

from .entries import Entry

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA_SHARE = (0.2, 1.0)  # of the image, as in masked autoencoders
ASPECT_RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 80_000_000  # 240 MB


def is_image(name: str) -> bool:
    """Return whether a file name is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def read_image(entry: Entry, min_size: tuple[int, int] | None = None) -> Image.Image:
    """Read a whole image as RGB.

    Args:
        entry: The image file.
        min_size: Width and height that suffice; JPEG is then decoded at the smallest size above.

    Raises:
        AudioError: The file is not a readable image.
    """
    from PIL import Image

    hint = f"Give one of {', '.join(FORMATS)}."
    with (
        reading(entry, "an image", hint, AudioError),
        entry.open() as file,
        Image.open(file, formats=FORMATS) as stored,
    ):
        if stored.width * stored.height > MAX_PIXELS:
            raise AudioError(
                f"{entry} has {stored.width}x{stored.height} pixels; the maximum is {MAX_PIXELS:,}."
            )
        if min_size is not None:
            stored.draft("RGB", min_size)
        return stored.convert("RGB")


def crop_image(entry: Entry, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Read an image, resize a random part of it, and flip it half of the time (paper, appendix A).

    Args:
        entry: The image file.
        size: Height and width of the result, pixels.
        rng: Source of randomness.

    Returns:
        (3, height, width) float32.

    Raises:
        AudioError: The file is not a readable image.
    """
    from PIL import Image

    image = read_image(entry)
    box = _random_box(image.width, image.height, rng)
    resized = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(resized, dtype=np.float32) / 255.0  # (height, width, 3)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    mean, std = (np.array(values, dtype=np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return left, upper, right and lower edge of a part with a random area and aspect ratio."""
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
