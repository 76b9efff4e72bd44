"""Figures that are taken beside a training: what goes wrong with them never ends it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from m2d_hub.errors import M2DError

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
LONGEST_WAIT = timedelta(days=7)
FAILURES = (
    M2DError,
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextlib.contextmanager
def beside_training(figure: str) -> Iterator[None]:
    """Tells why a figure could not be taken, and goes on."""
    try:
        yield
    except FAILURES as error:
        logger.warning("%s could not be measured, the training goes on without it: %s", figure, error)


@contextlib.contextmanager
def others_wait(accelerator: Any) -> Iterator[None]:
    """Lets the first process work as long as it takes; the others wait for it at the end.

    They wait in a group of their own: the training's would give up after some minutes.
    """
    if accelerator.num_processes == 1:
        yield
        return
    import torch.distributed as dist

    group: Any = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    yield
    dist.barrier(group=group)
    dist.destroy_process_group(group)


def first_tells(accelerator: Any, find: Callable[[], Found]) -> Found:
    """What the first process finds, however long that takes; it tells the others."""
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None]
    with others_wait(accelerator):
        if accelerator.is_main_process:
            found = [find()]
    broadcast_object_list(found)
    return found[0]
