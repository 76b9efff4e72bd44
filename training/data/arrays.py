"""Arrays of numbers in ``.npy`` files and members: the header is looked at before anything is allocated."""

from __future__ import annotations

import io
import math
from typing import Literal

import numpy as np

from m2d_hub.errors import AudioError
from m2d_hub.io import reading

from .entry import Entry

NUMBERS = "fiu"  # kinds of dtype: floats, and integers with and without sign


def read_array(entry: Entry) -> np.ndarray:
    """An array of floats or integers, not empty; that of a file stays on disk until it is used.

    Raises:
        AudioError: The file is no such array, or does not hold what its header says.
    """
    with reading(entry, "an array", "Write it by numpy.save.", AudioError), entry.open() as file:
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read_header(file)
        start, end = file.tell(), file.seek(0, io.SEEK_END)
        if dtype.kind not in NUMBERS:
            raise AudioError(f"{entry} holds {dtype}, expected floats or integers.")
        if not 0 < math.prod(shape) * dtype.itemsize <= end - start:
            raise AudioError(f"{entry} has the shape {shape} of {dtype} but holds {end - start:,} bytes.")
        file.seek(start)
        order: Literal["F", "C"] = "F" if is_fortran else "C"
        if entry.name:
            return np.frombuffer(file.read(), dtype, math.prod(shape)).reshape(shape, order=order)
        return np.memmap(file, dtype, "r", start, shape, order)


def read_finite(entry: Entry, part: np.ndarray) -> np.ndarray:
    """Some of an entry's array as float32, in memory.

    Raises:
        AudioError: It holds values that are not finite.
    """
    with np.errstate(over="ignore"):
        values = np.array(part, dtype=np.float32)
    if not np.isfinite(values).all():
        raise AudioError(f"{entry} holds non-finite values.")
    return values
