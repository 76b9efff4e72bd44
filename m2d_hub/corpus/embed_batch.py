"""Batches of files through a model, wherever a job runs: records of what is read, reasons for the rest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch

from m2d_hub.audio.clips import AudioClip
from m2d_hub.corpus.dataset_output import PartWriter
from m2d_hub.corpus.reading import OpenedBatch, open_batch
from m2d_hub.corpus.records import Record
from m2d_hub.corpus.sources import Source
from m2d_hub.errors import AudioError
from m2d_hub.hub import load_model
from m2d_hub.model import M2D

Kind = Literal["clip", "frames", "layers"]


@dataclass(frozen=True)
class Job:
    """How files are embedded, wherever that happens."""

    model: str | os.PathLike[str]
    kind: Kind = "clip"
    batch_size: int = 16
    device: str | None = None
    window_s: float | None = None
    num_workers: int | None = None
    parts: PartWriter | None = None  # with which workers elsewhere write their records

    def load_model(self) -> M2D:
        """The model, where the job runs."""
        return load_model(self.model, device=self.device, window_s=self.window_s)


@dataclass(frozen=True)
class EmbeddedBatch:
    """Result of one batch of files."""

    records: list[Record]
    failed: list[tuple[Source, str]]
    num_written: int = 0  # of records that a worker has written, and that are not here


def embed_batch(model: M2D, batch: list[Source], kind: Kind, batch_size: int) -> EmbeddedBatch:
    """Embeds the files of a batch."""
    return embed_opened(model, open_batch(batch, model.sample_rate), kind, batch_size)


def embed_opened(model: M2D, opened: OpenedBatch, kind: Kind, batch_size: int) -> EmbeddedBatch:
    """Embeds a batch; where a file of it cannot be read to its end, the files are done one by one."""
    sources, failed = opened.sources, list(opened.failed)
    if not sources:
        return EmbeddedBatch([], failed)
    try:
        return EmbeddedBatch(_encode(model, sources, opened.clips, kind, batch_size), failed)
    except AudioError as error:
        reason = str(error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not _is_memory(error):
            raise
        reason = f"{sources[0].path} is too long for this machine's memory, as kind={kind!r}"
    if len(sources) == 1:
        return EmbeddedBatch([], [*failed, (sources[0], reason)])
    for clip in opened.clips:
        clip.close()
    records: list[Record] = []
    for source in sources:
        alone = embed_batch(model, [source], kind, batch_size)
        records += alone.records
        failed += alone.failed
    return EmbeddedBatch(records, failed)


def _is_memory(error: Exception) -> bool:
    """Whether memory of the CPU could not be had, which torch tells by its text alone."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _encode(
    model: M2D, sources: list[Source], clips: list[AudioClip], kind: Kind, batch_size: int
) -> list[Record]:
    if kind == "clip":
        means = model.encode_clip(clips, batch_size=batch_size).float().cpu().numpy()
        return [Record(source.file, mean) for source, mean in zip(sources, means, strict=True)]
    encode = model.encode_frames if kind == "frames" else model.encode_layers
    frames = encode(clips, batch_size=batch_size)
    features = frames.features.float().cpu().numpy()  # (B, T, D) or (L, B, T, D)
    lengths = frames.mask.sum(dim=1).tolist()
    times = frames.timestamps_s.double().cpu().numpy()
    return [
        Record(source.file, features[..., index, :length, :], times[:length])
        for index, (source, length) in enumerate(zip(sources, lengths, strict=True))
    ]
