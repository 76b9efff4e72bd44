"""The model: waveform to frames, clips, tags."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm.auto import tqdm

from m2d_hub.audio.ahead import ReadAhead
from m2d_hub.audio.clips import AudioClip, open_audio
from m2d_hub.audio.given import Channels
from m2d_hub.checks import POSITIVE_INTEGER, require
from m2d_hub.config import Activation, HeadConfig, HeadFeatures, ModelConfig
from m2d_hub.errors import ConfigError
from m2d_hub.export import export_onnx
from m2d_hub.inference import (
    ClipMeans,
    EncodedBatch,
    FrameStore,
    check_lengths,
    encode_batched,
    encode_together,
    read_windows,
    split_windows,
)
from m2d_hub.nn.clap import Clap
from m2d_hub.nn.encoder import Encoder, frames_to_tokens
from m2d_hub.nn.frontend import LogMelFrontend
from m2d_hub.nn.head import Head
from m2d_hub.pretrained.module import Pretrained
from m2d_hub.results import Frames, Tag, require_top_k, top_tags
from m2d_hub.stream import Stream
from m2d_hub.windows import Windows


class M2D(Pretrained):
    """A frontend, an encoder and, where the weights have them, a head and projections to a text space.

    Methods that begin with ``encode`` or ``classify`` (but :meth:`classify_waveform`) take any audio, run
    without gradients and answer on the CPU; ``forward`` and ``classify_waveform`` take waveforms on the
    model's device and are differentiable. A clip's result never depends on the other clips of a call, nor on
    ``batch_size``.

    Shapes: B clips, S samples, F mels, T tokens along time, N_F tokens along frequency, D width, L layers.

    Attributes:
        config: All that is needed to build the model again.
        frontend: Waveform to normalised log-mel spectrogram.
        encoder: The vision transformer.
        head: Classifier, or None.
        clap: Projections into a space shared with text, or None.
    """

    def __init__(self, config: ModelConfig):
        """Builds a model with fresh random weights; :func:`m2d_hub.load_model` loads pre-trained ones."""
        super().__init__()
        self.config = config
        self.frontend = LogMelFrontend(config.frontend)
        self.encoder = Encoder(config.encoder)
        self.head = None if config.head is None else Head(config.head, config.head_dim)
        self.clap = None if config.clap is None else Clap(config.clap, config.encoder.embed_dim)

    @property
    def sample_rate(self) -> int:
        """Hz that ``forward`` expects and other audio is resampled to."""
        return self.config.frontend.sample_rate

    @property
    def embed_dim(self) -> int:
        """Width D of a token."""
        return self.config.encoder.embed_dim

    @property
    def frame_dim(self) -> int:
        """Features of a frame or clip, N_F·D."""
        return self.config.encoder.frame_dim

    @property
    def frame_hop_s(self) -> float:
        """Seconds between the frames that ``encode_frames`` gives."""
        return self.config.encoder.patch_size[1] * self.config.frontend.hop_s

    @property
    def window_s(self) -> float:
        """Seconds that the encoder sees at once; infinity where each clip is one window."""
        return (
            math.inf
            if self.config.own_length_windows
            else self.config.encoder.input_size[1] * self.config.frontend.hop_s
        )

    @property
    def labels(self) -> list[str] | None:
        """Class names in the head's order, or None."""
        return None if self.config.labels is None else list(self.config.labels)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.cls_token.device

    @property
    def windows(self) -> Windows:
        """How a clip's spectrogram is cut into what the encoder sees at once."""
        windows = Windows.of(self.config.encoder)
        return replace(windows, window_frames=None) if self.config.own_length_windows else windows

    def set_window(self, window_s: float) -> None:
        """Changes how much the encoder sees at once (paper, section III-A2).

        Args:
            window_s: Seconds. A longer window than now gets interpolated positions, a shorter one the first
                of the present positions; infinity makes one window of each clip's own length.

        Raises:
            ConfigError: The window is shorter than one token, or no number.
        """
        if not isinstance(window_s, (int, float)) or math.isnan(window_s) or window_s <= 0:
            raise ConfigError(f"window_s must be a positive number of seconds, got {window_s!r}.")
        if math.isinf(window_s):
            self.config = replace(self.config, own_length_windows=True)
            return
        frames = round(window_s / self.config.frontend.hop_s)
        if frames < self.config.encoder.patch_size[1]:
            raise ConfigError(
                f"window_s={window_s} is shorter than one token of {self.frame_hop_s:g} s; give at least "
                "that."
            )
        self.encoder.set_input_frames(frames)
        self.config = replace(self.config, encoder=self.encoder.config, own_length_windows=False)

    def set_head(
        self,
        num_classes: int,
        *,
        features: HeadFeatures = "frames",
        activation: Activation = "sigmoid",
        labels: Sequence[str] | None = None,
    ) -> None:
        """Puts a fresh, untrained head in place of the present one.

        Args:
            num_classes: Classes to tell apart.
            features: What it takes of a clip: the mean over time frames (N_F·D), or over all tokens (D).
            activation: Of scores: ``"sigmoid"`` for several labels a clip, ``"softmax"`` for one.
            labels: Names of the classes.

        Raises:
            ConfigError: An argument is none of these, or the labels are not as many as the classes.
        """
        head = HeadConfig(num_classes, features, activation)
        self.config = replace(self.config, head=head, labels=None if labels is None else tuple(labels))
        self.head = Head(head, self.config.head_dim).to(self.encoder.cls_token)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Frames:
        """Encodes a batch of waveforms.

        Args:
            waveform: (B, S) float at ``sample_rate``, on the model's device.
            lengths: Samples of each clip (B,); what lies beyond is padding and changes nothing. None: all S.

        Returns:
            Frames with features (B, T, N_F·D).

        Raises:
            AudioError: A shape, type or length is not as above.
        """
        samples = check_lengths(waveform, lengths)
        windows = split_windows(waveform, samples, self.frontend, self.windows)
        store = FrameStore(len(samples), self._expected_tokens(max(samples)))
        if self.device.type == "cpu":
            encode = self.encoder.frames
            for batch in encode_batched(windows, self.frontend, encode, len(windows), self.device):
                store.put(batch)
        else:
            store.put(encode_together(windows, self.frontend, self.encoder, self.device))
        return self._frames(store)

    def classify_waveform(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of a batch of waveforms; arguments as for :meth:`forward`.

        Raises:
            ConfigError: The model has no head.
        """
        head = self.required_head()
        frames = self(waveform, lengths)
        weights = frames.mask.to(frames.features.dtype)[..., None]
        clip = (frames.features * weights).sum(dim=1) / weights.sum(dim=1)
        return head(head.clip_input(clip))

    @torch.no_grad()
    def encode_clip(
        self,
        audio: Any,
        *,
        sample_rate: int | None = None,
        channels: Channels | None = None,
        batch_size: int = 16,
        progress: bool = False,
    ) -> Tensor:
        """Embeds each clip as the mean of its frames (paper, section III-A2).

        Args:
            audio: A path, a file object, a 1-D array, tensor or list of numbers, a 2-D one (a batch of
                clips); one recording with its rate: ``(waveform, rate)``, a mapping with ``array`` and
                ``sampling_rate`` as in Hugging Face datasets, an ``AudioDecoder`` or ``AudioSamples`` of
                torchcodec; or a list, a data frame's column or an array of any of these, of different
                lengths. Files of any rate and channel count, read in blocks.
            sample_rate: Hz of arrays that come without; None means the model's own.
            channels: What the rows of a 2-D array are: ``"clips"``; ``"mix"``: the channels of one clip,
                averaged; None: clips, with a warning where they are two. Where the rate comes with the
                array, they are channels.
            batch_size: Most windows encoded at once.
            progress: Show a progress bar over the clips.

        Returns:
            (B, N_F·D) float32; B is 1 for a single clip.

        Raises:
            AudioError: A clip is empty, non-finite or unreadable; the message names it.
        """
        with self._reading(audio, sample_rate, channels, batch_size) as clips:
            means = ClipMeans(len(clips))
            for batch in self._encode_clips(clips, self.encoder.frames, batch_size, progress):
                means.put(batch)
            return means.means()

    @torch.no_grad()
    def encode_frames(
        self,
        audio: Any,
        *,
        sample_rate: int | None = None,
        channels: Channels | None = None,
        batch_size: int = 16,
        progress: bool = False,
    ) -> Frames:
        """Embeds each time frame; arguments as for :meth:`encode_clip`.

        Returns:
            Frames with features (B, T, N_F·D) float32.
        """
        return self._encode_to_frames(audio, self.encoder.frames, sample_rate, channels, batch_size, progress)

    @torch.no_grad()
    def encode_layers(
        self,
        audio: Any,
        *,
        sample_rate: int | None = None,
        channels: Channels | None = None,
        batch_size: int = 16,
        progress: bool = False,
    ) -> Frames:
        """As :meth:`encode_frames` for every block; the last one is normalised.

        Returns:
            Frames with features (L, B, T, N_F·D) float32.
        """
        return self._encode_to_frames(
            audio, self.encoder.layer_frames, sample_rate, channels, batch_size, progress
        )

    @torch.no_grad()
    def encode_tokens(
        self,
        audio: Any,
        *,
        sample_rate: int | None = None,
        channels: Channels | None = None,
        batch_size: int = 16,
        progress: bool = False,
    ) -> Frames:
        """Embeds each patch; arguments as for :meth:`encode_clip`.

        Returns:
            Frames with features (B, N_F·T, D) float32: window after window, frequency-major within each; mask
            (B, N_F·T) and timestamps (N_F·T,) likewise.
        """
        frames = self.encode_frames(
            audio, sample_rate=sample_rate, channels=channels, batch_size=batch_size, progress=progress
        )
        num_freq = self.config.encoder.grid[0]

        def by_window(values: Tensor, pattern: str) -> Tensor:
            parts = values.split(self.windows.window_tokens, dim=1)
            return torch.cat([rearrange(part, pattern, f=num_freq) for part in parts], dim=1)

        per_token = frames.timestamps_s[None, :, None].expand(-1, -1, num_freq)
        return Frames(
            by_window(frames.features, "b t (f d) -> b (f t) d"),
            by_window(frames.mask[..., None].expand(-1, -1, num_freq), "b t f -> b (f t)"),
            by_window(per_token, "b t f -> b (f t)")[0],
        )

    @torch.no_grad()
    def classify(
        self,
        audio: Any,
        *,
        sample_rate: int | None = None,
        channels: Channels | None = None,
        top_k: int = 5,
        batch_size: int = 16,
        progress: bool = False,
    ) -> list[list[Tag]]:
        """The ``top_k`` classes of each clip, the best first; other arguments as for :meth:`encode_clip`.

        Raises:
            ConfigError: The model has no head, or ``top_k`` is less than 1.
        """
        self.required_head()  # told before any work
        require_top_k(top_k)
        clip = self.encode_clip(
            audio, sample_rate=sample_rate, channels=channels, batch_size=batch_size, progress=progress
        )
        return self.classify_embeddings(clip, top_k=top_k)

    @torch.no_grad()
    def classify_embeddings(self, clips: Tensor, *, top_k: int = 5) -> list[list[Tag]]:
        """The ``top_k`` classes of clips that :meth:`encode_clip` embedded, the best first.

        Args:
            clips: (B, N_F·D), of this model.
            top_k: Most tags of a clip.

        Raises:
            ConfigError: The model has no head, or ``top_k`` is less than 1.
        """
        head = self.required_head()
        require_top_k(top_k)
        logits = head.infer(clips)
        labels = self.labels or [str(index) for index in range(logits.shape[1])]
        return top_tags(logits, head.scores(logits), labels, top_k)

    @torch.no_grad()
    def classify_frames(
        self,
        audio: Any,
        *,
        sample_rate: int | None = None,
        channels: Channels | None = None,
        batch_size: int = 16,
        progress: bool = False,
    ) -> Frames:
        """Scores of all classes over time, for detection; arguments as for :meth:`encode_clip`.

        Returns:
            Frames with features (B, T, num_classes), scores from 0 to 1 in the head's order.

        Raises:
            ConfigError: The model has no head.
        """
        head = self.required_head()
        frames = self.encode_frames(
            audio, sample_rate=sample_rate, channels=channels, batch_size=batch_size, progress=progress
        )
        logits = head.infer(frames.features.flatten(0, 1))
        scores = head.scores(logits).unflatten(0, frames.mask.shape) * frames.mask[..., None]
        return Frames(scores, frames.mask, frames.timestamps_s)

    @torch.no_grad()
    def encode_audio_text_space(
        self,
        audio: Any,
        *,
        sample_rate: int | None = None,
        channels: Channels | None = None,
        batch_size: int = 16,
        progress: bool = False,
        normalize: bool = False,
    ) -> Tensor:
        """Embeds clips in the space that :meth:`encode_text` embeds texts in.

        Args:
            audio: Clips, as for :meth:`encode_clip`.
            sample_rate: Of arrays and tensors, in Hz; None: the model's.
            channels: As for :meth:`encode_clip`.
            batch_size: Windows that are encoded at a time.
            progress: Show a bar.
            normalize: Scale each embedding to unit length.

        Returns:
            (B, dim) float32.

        Raises:
            ConfigError: The weights carry no projections.
        """
        clap = self.required_clap()
        options: dict[str, Any] = {
            "sample_rate": sample_rate,
            "channels": channels,
            "batch_size": batch_size,
            "progress": progress,
        }
        clips: Iterable[Tensor]  # frames (T, N_F·D) of each, or their mean (1, N_F·D) where that suffices
        if clap.config.audio_blocks:
            frames = self.encode_frames(audio, **options)
            clips = (features[mask] for features, mask in zip(frames.features, frames.mask, strict=True))
        else:
            clips = self.encode_clip(audio, **options)[:, None]
        tokens = (frames_to_tokens(clip[None], self.config.encoder.grid[0]) for clip in clips)
        embeddings = (
            torch.cat([clap.project_audio(clip_tokens.to(clap.logit_scale)) for clip_tokens in tokens])
            .float()
            .cpu()
        )
        return nn.functional.normalize(embeddings, dim=-1) if normalize else embeddings

    @torch.no_grad()
    def encode_text(self, texts: list[str], normalize: bool = False) -> Tensor:
        """Embeds texts in the space of :meth:`encode_audio_text_space`.

        Args:
            texts: One or more strings.
            normalize: Scale each embedding to unit length.

        Returns:
            (B, dim) float32.

        Raises:
            ConfigError: The weights carry no projections, or transformers is not installed.
        """
        embeddings = self.required_clap().encode_text(texts).float().cpu()
        return nn.functional.normalize(embeddings, dim=-1) if normalize else embeddings

    def stream(self, sample_rate: int | None = None, hop_s: float | None = None) -> Stream:
        """Begins to listen to audio that arrives block by block.

        Args:
            sample_rate: Hz of the blocks; None means the model's own.
            hop_s: Seconds from one window to the next, rounded to whole frames; None: windows stand one after
                another, as in :meth:`encode_frames`. A shorter hop gives answers sooner and costs more.

        Raises:
            AudioError: The rate cannot be resampled.
            ConfigError: ``hop_s`` is not above 0, or longer than the window, or there is no fixed window.
        """
        return Stream(self, sample_rate, hop_s)

    def export_onnx(self, path: str | os.PathLike[str]) -> None:
        """Writes an ONNX file: waveform in, frames out, the frontend included, any batch size and length.

        Raises:
            ConfigError: onnx is not installed, or the model has no fixed window.
        """
        export_onnx(self, path)

    @contextlib.contextmanager
    def _reading(
        self, audio: Any, sample_rate: int | None, channels: Channels | None, batch_size: int
    ) -> Iterator[list[AudioClip]]:
        """The clips of a call, whose files are read ahead until the end of the ``with``."""
        require(batch_size in POSITIVE_INTEGER, f"batch_size must be {POSITIVE_INTEGER}, got {batch_size!r}.")
        given = audio if isinstance(audio, list) else [audio]
        if given and all(isinstance(clip, AudioClip) for clip in given):  # opened by a job of many calls
            yield given
            return
        clips = open_audio(audio, self.sample_rate, sample_rate, channels)
        with ReadAhead(device=self.device) as reader:
            yield [reader.add(clip) for clip in clips]

    def _encode_to_frames(
        self,
        audio: Any,
        encode: Callable[[Tensor], Tensor],
        sample_rate: int | None,
        channels: Channels | None,
        batch_size: int,
        progress: bool,
    ) -> Frames:
        with self._reading(audio, sample_rate, channels, batch_size) as clips:
            store = FrameStore(len(clips), self._expected_tokens(max(c.expected_samples for c in clips)))
            for batch in self._encode_clips(clips, encode, batch_size, progress):
                store.put(EncodedBatch(batch.windows, batch.features.to("cpu", torch.float32)))
            return self._frames(store)

    def _encode_clips(
        self, clips: list[AudioClip], encode: Callable[[Tensor], Tensor], batch_size: int, progress: bool
    ) -> Iterator[EncodedBatch]:
        shown = tqdm(clips, unit="clip", disable=not progress)
        windows = read_windows(shown, self.frontend, self.windows)
        return encode_batched(windows, self.frontend, encode, batch_size, self.device)

    def _expected_tokens(self, num_samples: int) -> int:
        return self.windows.count(self.config.frontend.num_frames(num_samples))

    def _frames(self, store: FrameStore) -> Frames:
        features, mask = store.features_and_mask()
        return Frames(
            features, mask, self.windows.timestamps_s(features.shape[-2], self.config.frontend.hop_s)
        )

    def required_head(self) -> Head:
        """The head.

        Raises:
            ConfigError: The model has none.
        """
        if self.head is None:
            raise ConfigError(
                f"model {self.config.name!r} has no classification head. Load weights that have one, for "
                "instance 'm2d-as-0.7-as2m', or give load_model(..., num_classes=N) and train it."
            )
        return self.head

    def required_clap(self) -> Clap:
        """The projections into a space shared with text.

        Raises:
            ConfigError: The model has none.
        """
        if self.clap is None:
            raise ConfigError(
                f"model {self.config.name!r} has no projections into a text space. Load 'm2d-clap-2024'."
            )
        return self.clap
