"""Batches of a corpus's files, opened in turn and read ahead of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from m2d_hub.audio.ahead import CLIPS_AHEAD, ReadAhead
from m2d_hub.audio.clips import AudioClip, open_audio
from m2d_hub.corpus.sources import Source
from m2d_hub.errors import AudioError


@dataclass(frozen=True)
class OpenedBatch:
    """The files of a batch: those that could be opened, each with its clip, and why the others could not."""

    sources: list[Source]
    clips: list[AudioClip]
    failed: list[tuple[Source, str]]


def open_batch(batch: Iterable[Source], sample_rate: int) -> OpenedBatch:
    """Opens files, whose clips are at ``sample_rate``."""
    opened = OpenedBatch([], [], [])
    for source in batch:
        try:
            opened.clips.extend(open_audio(source.path, sample_rate))
            opened.sources.append(source)
        except AudioError as error:
            opened.failed.append((source, str(error)))
    return opened


def opened_ahead(
    batches: Iterable[list[Source]], sample_rate: int, reader: ReadAhead
) -> Iterator[OpenedBatch]:
    """Batches in order; while one is worked on, ``reader`` reads the next. Each clip is taken, or closed."""
    ahead: deque[OpenedBatch] = deque()
    num_clips = 0
    for batch in batches:
        opened = open_batch(batch, sample_rate)
        opened.clips[:] = [reader.add(clip) for clip in opened.clips]
        ahead.append(opened)
        num_clips += len(opened.clips)
        while num_clips - len(ahead[0].clips) >= CLIPS_AHEAD:
            num_clips -= len(ahead[0].clips)
            yield ahead.popleft()
    while ahead:
        yield ahead.popleft()
