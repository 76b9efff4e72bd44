"""Devices, processes, precision and random numbers of a run; stop signals; workers that read batches."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from datetime import timedelta
from multiprocessing.synchronize import Event
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from m2d_hub.errors import ConfigError, M2DError

if TYPE_CHECKING:
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
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_REQUEST_S = 2.0  # launchers pass on a signal that the process has already received
random_lock = threading.RLock()  # held while the process's random state is changed


def build_accelerator() -> Accelerator:
    """Return an accelerator for the available devices and processes.

    Settings of accelerate in the environment that would change gradients have no effect.

    Raises:
        ConfigError: The environment asks for an engine that runs do not support.
    """
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
    if precision != "auto":
        return precision
    if earlier is not None:
        return earlier
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context of a forward pass in half precision; weights and losses stay in float32."""
    dtypes: dict[str, Any] = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes.get(precision, torch.bfloat16), enabled=precision in dtypes)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's CPU random numbers from ``seed``, and leave the process's own as they were.

    torch has one generator for all threads: trainings in other threads wait until this block ends.
    """
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


class Stopped(SystemExit):
    """The end that a signal asked for; its exit status is 128 + the signal's number."""

    def __init__(self, number: int, what: str = ""):
        super().__init__(128 + number)
        name = signal.Signals(number).name
        self.message = f"Stopped by {name}{what}; run the same command to resume."


class StopRequests:
    """The signal that was received, if any."""

    def __init__(self) -> None:
        self._number = 0
        self._received_at = 0.0
        self._is_held = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold requests back until :meth:`agreed` is called; a second one, seconds later, is not held."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def agreed(self, accelerator: Any) -> int:
        """Return the number of the signal that any process has received; 0: none."""
        if accelerator.num_processes == 1:
            return self._number
        number = torch.tensor([self._number], device=accelerator.device)
        return int(accelerator.gather(number).max())

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        is_repeated = self._number and now - self._received_at > SAME_REQUEST_S
        if not self._is_held or is_repeated:
            raise Stopped(number)
        if not self._number:
            self._number, self._received_at = number, now


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Handle stop signals in the main thread, and log why the run ended."""
    requests = StopRequests()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, requests.receive)
    try:
        yield requests
    except Stopped as stopped:
        logger.warning("%s", stopped.message)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def read_by_workers(
    dataset: Dataset,
    num_workers: int,
    *,
    collate_fn: Callable[[list], Any] = default_collate,
    prefetch: int = 4,
    pinned: bool = False,
    **options: Any,
) -> Iterator[Any]:
    """Yield batches of a data set, read by worker processes or by this one.

    Closing the iterator ends the workers.

    Args:
        dataset: What is read.
        num_workers: Number of processes; 0: this process reads.
        collate_fn: Builds a batch of samples.
        prefetch: Batches that each worker reads ahead.
        pinned: Use page-locked memory on a machine with CUDA.
        options: Further arguments of ``DataLoader``.

    Raises:
        M2DError: A worker was killed, or shared memory is full.
    """
    loader = DataLoader(
        dataset,
        num_workers=num_workers,
        prefetch_factor=prefetch if num_workers else None,
        pin_memory=pinned and torch.cuda.is_available(),
        worker_init_fn=functools.partial(_handle_signals, _exiting()) if num_workers else None,
        collate_fn=functools.partial(_collate_shared, collate_fn),
        generator=torch.Generator(),  # else an epoch draws from the process's random numbers
        **options,
    )
    batches = iter(loader)
    try:
        yield from batches
    except RuntimeError as error:
        if "shared memory" in str(error) or "/torch_" in str(error):
            raise M2DError(
                f"shared memory is full: {num_workers} workers pass batches through it (/dev/shm). Give it "
                "more space (docker run --shm-size=8g), or set a smaller num_workers or batch_size."
            ) from error
        if str(error).startswith("DataLoader worker"):
            raise M2DError(
                f"a worker that reads clips was killed, probably for lack of memory: {error} Run the same "
                "command to resume, with a smaller num_workers."
            ) from error
        raise
    finally:
        shutdown = getattr(batches, "_shutdown_workers", None)  # references in a traceback keep them alive
        if shutdown is not None:
            shutdown()


def _collate_shared(collate_fn: Callable[[list], Any], samples: list) -> Any:
    """Build a batch; in a worker, move it to shared memory.

    The queue would do that later in a thread of its own, where a full memory raises nothing: the batch is
    lost, and the process that waits for it waits forever.
    """
    batch = collate_fn(samples)
    if get_worker_info() is not None:
        _share(batch)
    return batch


def _share(values: Any) -> None:
    if isinstance(values, Tensor):
        values.share_memory_()
    elif isinstance(values, (list, tuple, dict)):
        for value in values.values() if isinstance(values, dict) else values:
            _share(value)
    elif is_dataclass(values):
        _share(vars(values))


@functools.cache
def _exiting() -> Event:
    """Event that is set when this process exits, before its children are terminated."""
    event = multiprocessing.Event()
    atexit.register(event.set)
    return event


def _handle_signals(exiting: Event, worker: int) -> None:
    """Ignore stop signals in a worker until its parent exits.

    A signal to the whole group must not end workers that the parent needs until it has saved; SIGTERM is also
    how multiprocessing ends its children.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        if exiting.is_set():
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, receive)
