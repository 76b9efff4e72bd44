"""Batches that are read by processes of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from .stopping import leave_signals_to_parent


def read_by_workers(
    dataset: Dataset, num_workers: int, *, ahead: int = 4, pinned: bool = False, **options: Any
) -> DataLoader:
    """Batches of a data set, read by ``num_workers`` processes, or by this one.

    Args:
        dataset: What is read.
        num_workers: Processes; signals are left to the one that started them.
        ahead: Batches that each of them reads ahead.
        pinned: On a machine with CUDA, puts tensors into memory that it copies from.
        options: Further ones of ``DataLoader``.
    """
    return DataLoader(
        dataset,
        num_workers=num_workers,
        prefetch_factor=ahead if num_workers else None,
        pin_memory=pinned and torch.cuda.is_available(),
        worker_init_fn=leave_signals_to_parent,
        **options,
    )
