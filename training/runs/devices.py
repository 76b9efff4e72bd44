"""Devices, processes, precision and random numbers of a run."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from m2d_hub.errors import ConfigError, M2DError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Found = TypeVar("Found")
MAX_WAIT = timedelta(days=7)
UNSUPPORTED = ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")  # of accelerate
FAILURES = (
    *(M2DError, ArithmeticError, AttributeError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
random_lock = threading.RLock()  # held while the process's random state is changed


def build_accelerator() -> Accelerator:
    """Return an accelerator for the available devices and processes.

    Settings of accelerate in the environment that would change gradients have no effect.

    Raises:
        ConfigError: The environment asks for an engine that runs do not support.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    for engine in UNSUPPORTED:
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise ConfigError(f"ACCELERATE_USE_{engine} is not supported: launch with DDP or FSDP.")
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # explicit, or several processes do not find each other
        mixed_precision="no",  # see autocast
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
    )


def resolve_precision(
    precision: Precision, device: torch.device, earlier: Precision | None = None
) -> Precision:
    """Replace ``auto``: by the precision of the earlier run that is resumed, else by the device's.

    That is bfloat16 on CUDA (float16 where the GPU lacks it), and float32 elsewhere.
    """
    import torch

    if precision != "auto":
        return precision
    if earlier is not None:
        return earlier
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context of a forward pass in half precision; weights and losses stay in float32."""
    import torch

    dtypes: dict[str, Any] = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes.get(precision, torch.bfloat16), enabled=precision in dtypes)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's CPU random numbers from ``seed``, and leave the process's own as they were.

    torch has one generator for all threads: trainings in other threads wait until this block ends.
    """
    import torch

    with random_lock, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def best_effort(figure: str) -> Iterator[None]:
    """Log why a figure could not be measured, and continue the training without it."""
    try:
        yield
    except FAILURES as error:
        logger.warning("%s could not be measured, the training continues without it: %s", figure, error)


@contextlib.contextmanager
def wait_for_main(accelerator: Accelerator) -> Iterator[None]:
    """Let the first process work as long as it takes; the others wait for it at the end.

    They wait in a process group with a long timeout: the training's group would give up after some minutes.
    """
    if accelerator.num_processes == 1:
        yield
        return
    import torch.distributed as dist

    group: Any = dist.new_group(backend="gloo", timeout=MAX_WAIT)
    yield
    dist.barrier(group=group)
    dist.destroy_process_group(group)


def broadcast_from_main(accelerator: Accelerator, find: Callable[[], Found]) -> Found:
    """Return, in all processes, what the first one finds, however long that takes."""
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None]
    with wait_for_main(accelerator):
        if accelerator.is_main_process:
            found = [find()]
    broadcast_object_list(found)
    return found[0]
