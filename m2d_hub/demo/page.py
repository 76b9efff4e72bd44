"""Components of the demo page, and the functions behind them."""

from __future__ import annotations

import contextlib
import functools
import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio
import torch

from m2d_hub.audio.clips import open_audio, read_part
from m2d_hub.corpus.index import EmbeddingIndex
from m2d_hub.corpus.search import Match
from m2d_hub.errors import AudioError, M2DError
from m2d_hub.model import M2D
from m2d_hub.plots import draw_clip, draw_cross_similarity, tags_over_time
from m2d_hub.results import Frames, Tag
from m2d_hub.zero_shot import classify_by_text

MAX_SECONDS = 60  # of a sound
MAX_MATCHES = 5
EXCERPT_SECONDS = 10  # of a match, to play
MAX_FILE_MB = 50


@dataclass(frozen=True)
class Answers:
    """Functions that the page's components call. They take paths of uploads."""

    model: M2D
    library: EmbeddingIndex | None  # of the folder in which similar sounds are searched for

    def one(self, path: str | None) -> list[Any]:
        """Return a plot, tags, and players of the most similar sounds of the folder."""
        if not path:
            return [None, None, *self._players([])]
        with _shown_errors(path):
            waveform, frames = self._encode(path)
            features = frames.features[0]
            with torch.no_grad():
                log_mel = self.model.frontend.log_mel(waveform[None].to(self.model.device))[0].cpu()
            figure = draw_clip(self.model, log_mel, frames, Path(path).name)
            tags = [] if self.model.head is None else tags_over_time(self.model, features)[0]
            mean = features.mean(dim=0).float().cpu().numpy()
            matches = self.library.nearest(mean, MAX_MATCHES) if self.library else []
            return [figure, _scores(tags), *self._players(matches)]

    def two(self, path: str | None, other: str | None) -> tuple[Any, str | None]:
        """Return a plot of the similarity of two sounds over time, and the cosine of their embeddings."""
        if not path or not other:
            return None, None
        with _shown_errors(path, other):
            one, two = (self._encode(sound)[1].features[0] for sound in (path, other))
            names = Path(path).name, Path(other).name
            figure = draw_cross_similarity(one, two, names, self.model.frame_hop_s)
            return figure, f"{torch.cosine_similarity(one.mean(dim=0), two.mean(dim=0), dim=0):.3f}"

    def words(self, path: str | None, text: str) -> dict[str, float] | None:
        """Return the score of each line of ``text`` for a sound."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not path or not lines:
            return None
        with _shown_errors(path):
            waveform = self._read(path, MAX_SECONDS)
            return _scores(classify_by_text(self.model, waveform, lines, top_k=len(lines))[0])

    def _read(self, path: str | Path, max_seconds: int) -> torch.Tensor:
        rate = self.model.sample_rate
        return read_part(open_audio(path, rate)[0], 0, max_seconds * rate)

    def _encode(self, path: str) -> tuple[torch.Tensor, Frames]:
        waveform = self._read(path, MAX_SECONDS)
        return waveform, self.model.encode_frames(waveform)

    def _players(self, matches: Sequence[Match]) -> list[Any]:
        players = [self._player(match) for match in matches]
        return players + [gradio.Audio(value=None, visible=False)] * (MAX_MATCHES - len(players))

    def _player(self, match: Match) -> Any:
        assert self.library is not None  # noqa: S101 - the match comes from it
        path = self.library.paths[match.file]
        label = f"{match.score:.3f}  {os.path.relpath(path, self.library.folder)}"
        try:
            samples = (self._read(path, EXCERPT_SECONDS).clamp(-1, 1) * 32767).short().numpy()
        except AudioError:  # deleted or changed since it was embedded
            return gradio.Audio(value=None, label=f"{label} (cannot be read)", visible=True)
        return gradio.Audio((self.model.sample_rate, samples), label=label, visible=True)


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
            tags = gradio.Label(label="Tags", visible=answers.model.head is not None, elem_id="tags")
            plot = gradio.Plot(label="Spectrogram and frames", elem_id="plot")
            players = [gradio.Audio(visible=False, interactive=False) for _ in range(MAX_MATCHES)]
            given.change(answers.one, given, [plot, tags, *players], **options)
        with gradio.Tab("Two sounds"):
            with gradio.Row():
                pair = [sound(label="First sound", elem_id="first"), sound(label="Second sound")]
            button = gradio.Button("Compare", variant="primary")
            score = gradio.Label(label="Cosine similarity of the two sounds", elem_id="score")
            plot = gradio.Plot(label="Similarity over time")
            button.click(answers.two, pair, [plot, score], **options)
        if answers.model.clap is not None:
            with gradio.Tab("Text"):
                given = sound(label="Sound")
                text = gradio.Textbox("a dog barks\nrain falls", lines=4, label="Descriptions, one per line")
                button = gradio.Button("Score", variant="primary")
                button.click(answers.words, [given, text], gradio.Label(label="Scores"), **options)
    return page


def _introduction(answers: Answers) -> str:
    """Return the introduction as HTML."""
    parts = ["its spectrogram", "the similarity of its frames"]
    if answers.model.head is not None:
        parts.insert(1, "its tags over time")
    if answers.library is not None:
        parts.append(f"the most similar sounds of {html.escape(answers.library.folder.name)}")
    return (
        f"Upload or record a sound to see {', '.join(parts[:-1])} and {parts[-1]}. A file may have "
        f"{MAX_FILE_MB} MB; the first {MAX_SECONDS} s are used. Nothing is sent elsewhere."
    )


def _scores(tags: Sequence[Tag]) -> dict[str, float]:
    return {tag.label: tag.score for tag in tags}


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
