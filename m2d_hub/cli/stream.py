"""``m2d-hub stream``."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from m2d_hub.cli.options import Seconds, device_option, model_option, window_option
from m2d_hub.errors import ConfigError
from m2d_hub.pretrained.registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from m2d_hub.results import Frames
    from m2d_hub.stream import Stream

MICROPHONE = "microphone"
_RAW = ("s16le", "s24le", "s32le", "f32le", "f64le")


@click.command()
@click.argument("source", type=click.Choice(["-", MICROPHONE]), default="-", metavar="[-|microphone]")
@model_option(DEFAULT_MODEL)
@click.option("--rate", "sample_rate", type=int, metavar="HZ", help="Of raw samples; WAV says its own.")
@click.option(
    "--channels", type=click.IntRange(min=1), metavar="C", help="Of raw samples, averaged.  [default: 1]"
)
@click.option(
    "--format",
    "sample_format",
    type=click.Choice(_RAW),
    help="Of raw samples.  [default: WAV where it begins as WAV, else s16le]",
)
@click.option(
    "--kind",
    type=click.Choice(["tags", "clip", "frames"]),
    help="A line a window with its tags or its embedding, or a line a frame.  [default: tags with a head, "
    "else clip]",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, metavar="K", help="Tags a window."
)
@click.option(
    "--hop", "hop_s", type=Seconds(), metavar="S", help="Seconds between answers.  [default: a window]"
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
    """Listen to raw samples or WAV from standard input, or to a microphone: a line of JSON an answer.

    A microphone needs `pip install 'm2d-hub[live]'`. Times are seconds since the first sample. An answer
    comes as soon as its window is whole; with --hop, windows overlap and answers come more often. Ends with
    the stream, or by Ctrl-C: what does not fill a window then is answered too.

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
    from m2d_hub.hub import load_model

    loaded = load_model(model, device=device, window_s=window)
    kind = kind or ("clip" if loaded.head is None else "tags")
    if kind == "tags":
        loaded.required_head()
    rate, blocks = (
        _microphone(sample_rate or loaded.sample_rate, channels)
        if source == MICROPHONE
        else _standard_input(sample_format, sample_rate, channels)
    )
    listening = loaded.stream(rate, hop_s)
    try:
        for answer in _answers(listening, blocks, kind, top):
            click.echo(json.dumps(answer))
    except BrokenPipeError:  # who read the answers has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _answers(listening: Stream, blocks: Iterator[Tensor], kind: str, top: int) -> Iterator[dict[str, Any]]:
    is_interrupted = heard = False
    for block in _until_interrupted(blocks):
        if block is None:
            is_interrupted = True
            break
        heard = True
        yield from _lines(listening, listening.push(block), kind, top)
    if heard or not is_interrupted:
        yield from _lines(listening, listening.finish(), kind, top)


def _until_interrupted(blocks: Iterator[Tensor]) -> Iterator[Tensor | None]:
    """Blocks, and None once Ctrl-C was pressed, which never falls between a block and its answers."""
    is_waiting = is_interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal is_interrupted
        is_interrupted = True
        if is_waiting:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        while not is_interrupted:
            is_waiting = True
            block = next(blocks, None)
            is_waiting = False
            if block is None:
                return
            yield block
    except KeyboardInterrupt:
        is_waiting = False
    finally:
        signal.signal(signal.SIGINT, before)
    yield None


def _lines(listening: Stream, frames: Frames, kind: str, top: int) -> Iterator[dict[str, Any]]:
    """What is to be told of the windows that are complete now."""
    if kind == "frames":
        for time_s, frame in zip(frames.timestamps_s.tolist(), frames.features[0].tolist(), strict=True):
            yield {"time_s": round(time_s, 6), "frame": frame}
        return
    tags = listening.classify(top) if kind == "tags" else [[] for _ in listening.windows]
    for window, heard in zip(listening.windows, tags, strict=True):
        line: dict[str, Any] = {"start_s": round(window.start_s, 6), "end_s": round(window.end_s, 6)}
        if kind == "tags":
            line["tags"] = [dataclasses.asdict(tag) for tag in heard]
        else:
            line["embedding"] = window.embedding.tolist()
        yield line


def _standard_input(
    sample_format: str | None, sample_rate: int | None, channels: int | None
) -> tuple[int, Iterator[Tensor]]:
    from m2d_hub.audio.pcm_stream import PcmStream

    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(
            "standard input is a terminal, not audio: pipe raw samples or WAV into the command, or give "
            "'microphone'."
        )
    pcm = PcmStream(sys.stdin.buffer, sample_format, sample_rate, channels)
    return pcm.format.sample_rate, pcm.blocks()


def _microphone(sample_rate: int, channels: int | None) -> tuple[int, Iterator[Tensor]]:
    from m2d_hub.audio.microphone import listen

    return sample_rate, listen(sample_rate, channels or 1)
