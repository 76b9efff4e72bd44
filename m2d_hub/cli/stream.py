"""``m2d-hub stream``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from m2d_hub.cli.options import SECONDS, device_option, echo, model_option, window_option
from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.pretrained.registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from m2d_hub.audio.live import Interrupt
    from m2d_hub.results import Frames
    from m2d_hub.stream import Stream

MICROPHONE = "microphone"
_RAW = ("s16le", "s24le", "s32le", "f32le", "f64le")


@click.command()
@click.argument("source", type=click.Choice(["-", MICROPHONE]), default="-", metavar="[-|microphone]")
@model_option(DEFAULT_MODEL)
@click.option("--rate", "sample_rate", type=int, metavar="HZ", help="Sample rate of raw samples.")
@click.option(
    "--channels", type=click.IntRange(min=1), metavar="C", help="Channels of raw samples.  [default: 1]"
)
@click.option(
    "--format",
    "sample_format",
    type=click.Choice(_RAW),
    help="Format of raw samples.  [default: s16le, unless the stream is WAV or encoded]",
)
@click.option(
    "--kind",
    type=click.Choice(["tags", "clip", "frames"]),
    help="Print tags or an embedding per window, or every frame.  [default: tags with a head, else clip]",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, metavar="K", help="Tags per window."
)
@click.option(
    "--hop", "hop_s", type=SECONDS, metavar="S", help="Seconds between results.  [default: a window]"
)
@window_option
@device_option
def stream(
    source: str,
    model: str,
    sample_rate: int | None,
    channels: int | None,
    sample_format: str | None,
    kind: str | None,
    top: int,
    hop_s: float | None,
    window: float | None,
    device: str | None,
) -> None:
    """Embed or tag audio while it arrives, one JSON line per result.

    Standard input is WAV, encoded audio (MP3, Ogg, ...), or raw samples with --rate. A microphone needs
    `pip install 'm2d-hub[live]'`. Times are seconds since the first sample. A result is printed as soon as
    its window is complete; with --hop, windows overlap and results come more often. At the end of the stream,
    or after Ctrl-C, the last, incomplete window is printed too.

    \b
    Lines:
      {"start_s": 0.0, "end_s": 2.08, "tags": [{"label": "Dog", "score": 0.9, "index": 74}]}
      {"start_s": 0.0, "end_s": 2.08, "embedding": [0.1, ...]}
      {"time_s": 0.075, "frame": [0.1, ...]}

    \b
    Examples:
      ffmpeg -i rtsp://camera -f s16le -ac 1 -ar 16000 - | m2d-hub stream - --rate 16000 --hop 1
      arecord -f S16_LE -r 16000 -t wav | m2d-hub stream --model m2d-as-0.7-as2m
      m2d-hub stream microphone --kind clip > embeddings.jsonl
    """
    from m2d_hub.audio.live import Interrupt, open_microphone, open_pipe
    from m2d_hub.hub import load_model

    loaded = load_model(model, device=device, window_s=window)
    kind = kind or ("clip" if loaded.head is None else "tags")
    if kind == "tags":
        loaded.required_head()
    with Interrupt() as interrupt:
        if source == MICROPHONE:
            rate = sample_rate or loaded.sample_rate
            blocks = open_microphone(rate, channels or 1, interrupt)
        elif sys.stdin is None or sys.stdin.isatty():
            raise ConfigError(
                "standard input is a terminal, not audio; pipe audio into the command, or give 'microphone'."
            )
        else:
            rate, blocks = open_pipe(sys.stdin.buffer, interrupt, sample_format, sample_rate, channels)
        try:
            for result in _results(loaded.stream(rate, hop_s), blocks, interrupt, kind, top):
                click.echo(json.dumps(result))
        except BrokenPipeError:  # the reader of the results has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _results(
    stream: Stream, blocks: Iterator[Tensor], interrupt: Interrupt, kind: str, top: int
) -> Iterator[dict[str, Any]]:
    """Yield the results; an error of the input is raised after the results of what came before."""
    is_empty, failure = True, None
    try:
        for block in blocks:
            is_empty = False
            try:
                frames = stream.push(block)
            except AudioError as error:
                echo(f"Warning: {error} It is skipped.", err=True)
                continue
            yield from _lines(stream, frames, kind, top)
    except AudioError as error:
        failure = error
    if not is_empty or not (interrupt.is_requested or failure):
        yield from _lines(stream, stream.finish(), kind, top)
    if failure is not None:
        raise failure


def _lines(stream: Stream, frames: Frames, kind: str, top: int) -> Iterator[dict[str, Any]]:
    """Yield the results for the windows that are complete now."""
    if kind == "frames":
        for time_s, frame in zip(frames.timestamps_s.tolist(), frames.features[0].tolist(), strict=True):
            yield {"time_s": round(time_s, 6), "frame": frame}
        return
    tags = stream.classify(top) if kind == "tags" else [[] for _ in stream.windows]
    for window, found in zip(stream.windows, tags, strict=True):
        line: dict[str, Any] = {"start_s": round(window.start_s, 6), "end_s": round(window.end_s, 6)}
        if kind == "tags":
            line["tags"] = [dataclasses.asdict(tag) for tag in found]
        else:
            line["embedding"] = window.embedding.tolist()
        yield line
