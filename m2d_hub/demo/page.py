"""Components of the demo page, and the functions behind them."""

from __future__ import annotations

import contextlib
import functools
import html
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio
import torch

from m2d_hub.audio.clips import open_audio, read_part
from m2d_hub.corpus.index import EmbeddingIndex
from m2d_hub.errors import M2DError
from m2d_hub.model import M2D
from m2d_hub.plots import MIN_CERTAIN_SCORE, draw_clip, draw_cross_similarity, tags_over_time
from m2d_hub.results import Frames

MAX_SECONDS = 60  # of a sound
MAX_MATCHES = 5
EXCERPT_SECONDS = 10  # of a match, to play
MAX_FILE_MB = 50
_EQUAL_SCORE = 0.9995  # from which a match is the uploaded sound itself
_EXAMPLES = sorted(str(path) for path in (Path(__file__).parent / "sounds").iterdir())  # CC0


@dataclass(frozen=True)
class Answers:
    """Functions that the page's components call. They take paths of uploads."""

    model: M2D
    library: EmbeddingIndex | None  # of the folder in which similar sounds are searched for

    def one(self, path: str | None) -> list[Any]:
        """Return a plot, tags, and the choice of the folder's most similar sounds."""
        if not path:
            return [None, None, gradio.Radio(choices=[], value=None)]
        with _shown_errors(path):
            waveform, frames = self._encode(path)
            with torch.no_grad():
                log_mel = self.model.frontend.log_mel(waveform[None].to(self.model.device))[0].cpu()
            figure = draw_clip(self.model, log_mel, frames, Path(path).name)
            return [figure, self._tags(frames), gradio.Radio(choices=self._matches(frames), value=None)]

    def two(self, path: str | None, other: str | None) -> tuple[Any, str | None]:
        """Return a plot of the similarity of two sounds over time, and the cosine of their embeddings."""
        if not path or not other:
            return None, None
        with _shown_errors(path, other):
            one, two = (self._encode(sound)[1].features[0] for sound in (path, other))
            names = Path(path).name, Path(other).name
            figure = draw_cross_similarity(one, two, names, self.model.frame_hop_s)
            return figure, f"{torch.cosine_similarity(one.mean(dim=0), two.mean(dim=0), dim=0):.3f}"

    def excerpt(self, file: str | None) -> tuple[int, Any] | None:
        """Return the sample rate and the first samples of a file of the folder."""
        if not file or self.library is None or file not in self.library.files:
            return None
        with _shown_errors():
            samples = self._read(file, EXCERPT_SECONDS).clamp(-1, 1)
            return self.model.sample_rate, (samples * 32767).short().numpy()

    def _read(self, path: str, max_seconds: int) -> torch.Tensor:
        rate = self.model.sample_rate
        return read_part(open_audio(path, rate)[0], 0, max_seconds * rate)

    def _encode(self, path: str) -> tuple[torch.Tensor, Frames]:
        waveform = self._read(path, MAX_SECONDS)
        return waveform, self.model.encode_frames(waveform)

    def _tags(self, frames: Frames) -> dict[str, float] | str:
        tags = [] if self.model.head is None else tags_over_time(self.model, frames.features[0])[0]
        certain = {tag.label: tag.score for tag in tags if tag.score >= MIN_CERTAIN_SCORE}
        return certain or "Nothing certain"

    def _matches(self, frames: Frames) -> list[tuple[str, str]]:
        """Return labels and names of similar sounds, without the sound itself."""
        if self.library is None:
            return []
        mean = frames.features[0].mean(dim=0).float().cpu().numpy()
        others = [match for match in self.library.nearest(mean, None) if match.score < _EQUAL_SCORE]
        return [
            (f"{match.score:.2f}  {os.path.relpath(match.file, self.library.folder)}", match.file)
            for match in others[:MAX_MATCHES]
        ]


def build_page(answers: Answers, name: str) -> gradio.Blocks:
    """Build the page of a model called ``name``."""
    sound = functools.partial(gradio.Audio, type="filepath", sources=["upload", "microphone"], editable=False)
    # One request at a time uses the model.
    options = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
    page = gradio.Blocks(title=f"m2d_hub: {name}", analytics_enabled=False, delete_cache=(600, 3600))
    with page:
        gradio.HTML(f"<h2>Model {html.escape(name)}</h2><p>{_introduction(answers)}</p>")
        with gradio.Tab("One sound"):
            given = sound(label="Sound", elem_id="one")
            gradio.Examples(_EXAMPLES, given, label="Examples", api_visibility="private")
            tags = gradio.Label(label="Tags", visible=answers.model.head is not None, elem_id="tags")
            plot = gradio.Plot(label="Spectrogram and frames", elem_id="plot")
            has_library = answers.library is not None
            similar = gradio.Radio([], label="Similar sounds: select one to hear it", visible=has_library)
            player = gradio.Audio(label="Similar sound", interactive=False, visible=has_library)
            given.change(answers.one, given, [plot, tags, similar], **options)
            similar.change(answers.excerpt, similar, player, **options)
        with gradio.Tab("Two sounds"):
            with gradio.Row():
                pair = [sound(label="First sound", elem_id="first"), sound(label="Second sound")]
            button = gradio.Button("Compare", variant="primary")
            score = gradio.Label(label="Cosine similarity of the two sounds", elem_id="score")
            plot = gradio.Plot(label="Similarity over time")
            button.click(answers.two, pair, [plot, score], **options)
    return page


def _introduction(answers: Answers) -> str:
    """Return the introduction as HTML."""
    similar = ""
    if answers.library is not None:
        similar = f", and the most similar sounds of {html.escape(answers.library.folder.name)}"
    return (
        "Upload or record a sound, or click an example, to see what the model hears: the spectrogram, tags "
        f"over time and the similarity of moments{similar}. A file may have {MAX_FILE_MB} MB; the first "
        f"{MAX_SECONDS} s are used. Nothing is sent elsewhere."
    )


@contextlib.contextmanager
def _shown_errors(*uploads: str) -> Iterator[None]:
    """Show errors of this package on the page, with the names of uploads instead of their paths."""
    try:
        yield
    except M2DError as error:
        message = str(error)
        for path in uploads:
            message = message.replace(path, Path(path).name)
        raise gradio.Error(html.escape(message), print_exception=False) from error
