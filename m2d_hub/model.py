"""The M2D model: waveforms to frame features, clip features and tags."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm.auto import tqdm

from m2d_hub.audio.clips import AudioClip, open_audio
from m2d_hub.audio.inputs import Channels
from m2d_hub.audio.prefetch import Prefetcher
from m2d_hub.checks import POSITIVE_INTEGER, require
from m2d_hub.config import Activation, HeadConfig, HeadFeatures, ModelConfig
from m2d_hub.detect import SILENCE_DBFS, Detection, Event, EventFinder, Threshold
from m2d_hub.errors import ConfigError
from m2d_hub.export import Output, Precision, export_onnx
from m2d_hub.inference import (
    ClipLevels,
    ClipMeans,
    EncodedBatch,
    FrameStore,
    check_lengths,
    cut_segments,
    encode_batched,
    encode_together,
    read_windows,
    segment_samples,
    split_windows,
)
from m2d_hub.nn.clap import Clap
from m2d_hub.nn.encoder import Encoder, frames_to_tokens
from m2d_hub.nn.frontend import LogMelFrontend
from m2d_hub.nn.head import Head
from m2d_hub.pretrained.publish import Pretrained
from m2d_hub.results import Frames, Segments, Tag, require_top_k, top_tags
from m2d_hub.stream import Stream
from m2d_hub.windows import Windows


class M2D(Pretrained):
    """A log-mel frontend, an encoder and, depending on the weights, a head and projections to a text space.

    The methods ``encode_…`` and ``classify…`` (except :meth:`classify_waveform`) accept any audio, run
    without gradients and return results on the CPU. ``forward`` and ``classify_waveform`` take waveforms on
    the model's device and are differentiable. The result for a clip never depends on the other clips of a
    call or on ``batch_size``.

    Shapes: B clips, S samples, F mels, T tokens along time, N_F tokens along frequency, D width, L layers.

    Attributes:
        config: Everything needed to build the model.
        frontend: Log-mel frontend.
        encoder: The vision transformer.
        head: Classifier, or None.
        clap: Projections into a space shared with text, or None.
    """

    def __init__(self, config: ModelConfig):
        """Build a model with random weights; :func:`m2d_hub.load_model` loads pre-trained weights."""
        super().__init__()
        self.config = config
        self.frontend = LogMelFrontend(config.frontend)
        self.encoder = Encoder(config.encoder)
        self.head = None if config.head is None else Head(config.head, config.head_dim)
        self.clap = None if config.clap is None else Clap(config.clap, config.encoder.embed_dim)

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz that ``forward`` expects and that other audio is resampled to."""
        return self.config.frontend.sample_rate

    @property
    def embed_dim(self) -> int:
        """Width D of a token."""
        return self.config.encoder.embed_dim

    @property
    def frame_dim(self) -> int:
        """Width of a frame or clip feature, N_F·D."""
        return self.config.encoder.frame_dim

    @property
    def frame_hop_s(self) -> float:
        """Seconds between the frames that ``encode_frames`` returns."""
        return self.config.encoder.patch_size[1] * self.config.frontend.hop_s

    @property
    def window_s(self) -> float:
        """Seconds that the encoder processes at once; infinity if each clip is one window."""
        return (
            math.inf
            if self.config.own_length_windows
            else self.config.encoder.input_size[1] * self.config.frontend.hop_s
        )

    @property
    def labels(self) -> list[str] | None:
        """Class names in the order of the head's outputs, or None."""
        return None if self.config.labels is None else list(self.config.labels)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.encoder.cls_token.device

    @property
    def windows(self) -> Windows:
        """Division of a clip's spectrogram into windows."""
        windows = Windows.of(self.config.encoder)
        return replace(windows, window_frames=None) if self.config.own_length_windows else windows

    def set_window(self, window_s: float) -> None:
        """Change the window, the duration that the encoder processes at once (paper, section III-A2).

        Args:
            window_s: Seconds. Positions are interpolated for a longer window and cut for a shorter one.
                Infinity makes each clip one window.

        Raises:
            ConfigError: The window is not a number or is shorter than one token.
        """
        if not isinstance(window_s, (int, float)) or math.isnan(window_s) or window_s <= 0:
            raise ConfigError(f"window_s must be a positive number of seconds, got {window_s!r}.")
        if math.isinf(window_s):
            self.config = replace(self.config, own_length_windows=True)
            return
        frames = round(window_s / self.config.frontend.hop_s)
        if frames < self.config.encoder.patch_size[1]:
            raise ConfigError(
                f"window_s={window_s} is shorter than one token; use at least {self.frame_hop_s:g} seconds."
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
        """Replace the head by a new, untrained one.

        Args:
            num_classes: Number of classes.
            features: Input of the head: the mean over time frames (N_F·D), or over all tokens (D).
            activation: ``"sigmoid"`` for several labels per clip, ``"softmax"`` for one.
            labels: Names of the classes.

        Raises:
            ConfigError: An argument is not allowed, or the number of labels differs from ``num_classes``.
        """
        head = HeadConfig(num_classes, features, activation)
        self.config = replace(self.config, head=head, labels=None if labels is None else tuple(labels))
        self.head = Head(head, self.config.head_dim).to(self.encoder.cls_token)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Frames:
        """Encode a batch of waveforms.

        Args:
            waveform: (B, S) float at ``sample_rate``, on the model's device.
            lengths: Number of samples of each clip (B,); later samples are padding and are ignored. None for
                all S.

        Returns:
            Frames with features (B, T, N_F·D).

        Raises:
            AudioError: The shape, dtype or a length is not as described.
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
        """Return logits (B, num_classes) of a batch of waveforms; arguments as for :meth:`forward`.

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
        """Embed each clip as the mean of its frames (paper, section III-A2).

        Args:
            audio: One clip, or a list, array or data frame column of clips with different lengths. A clip is
                a path, a file object, a 1-D array, tensor or list of numbers, or a recording with its sample
                rate: ``(waveform, rate)``, a mapping with ``array`` and ``sampling_rate`` as in Hugging Face
                datasets, or an ``AudioDecoder`` or ``AudioSamples`` of torchcodec. A 2-D array is a batch of
                clips. Files may have any sample rate and number of channels and are read in blocks.
            sample_rate: Sample rate in Hz of arrays that come without one; None for the model's sample rate.
            channels: Meaning of the rows of a 2-D array: ``"clips"``, or ``"mix"`` for the channels of one
                clip, which are averaged. None means clips, with a warning if there are two rows. Rows of an
                array that comes with its sample rate are always channels.
            batch_size: Maximum number of windows encoded at once.
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
    def encode_segments(
        self,
        audio: Any,
        *,
        segment_s: float = 3.0,
        hop_s: float | None = None,
        text_space: bool = False,
        sample_rate: int | None = None,
        channels: Channels | None = None,
        batch_size: int = 16,
        progress: bool = False,
    ) -> Segments:
        """Embed segments of each clip as :meth:`encode_clip` embeds a clip.

        The last segment of a clip is moved back to its end, so that all segments have the same length. A clip
        shorter than ``segment_s`` is one segment. Recordings of hours are read in blocks.

        Args:
            audio: As for :meth:`encode_clip`.
            segment_s: Length of a segment in seconds.
            hop_s: Seconds from the start of a segment to that of the next, at most ``segment_s``; None for
                ``segment_s``.
            text_space: Embed in the space shared with text, as :meth:`encode_audio_text_space`.
            sample_rate: As for :meth:`encode_clip`.
            channels: As for :meth:`encode_clip`.
            batch_size: As for :meth:`encode_clip`.
            progress: As for :meth:`encode_clip`.

        Returns:
            Segments with features (N, N_F·D), or (N, dim) in the space shared with text, float32.

        Raises:
            AudioError: A clip is empty, non-finite or unreadable; the message names it.
            ConfigError: ``segment_s`` or ``hop_s`` is out of range, or the weights have no projections.
        """
        rate = self.sample_rate
        length, hop = segment_samples(segment_s, hop_s, rate)
        encode = self.encode_audio_text_space if text_space else self.encode_clip
        features, positions = [], []
        with self._reading(audio, sample_rate, channels, batch_size) as clips:
            segments = (
                (index, first, samples)
                for index, clip in enumerate(tqdm(clips, unit="clip", disable=not progress))
                for first, samples in cut_segments(clip.blocks(), length, hop)
            )
            while batch := list(islice(segments, batch_size)):
                features.append(encode([samples for _, _, samples in batch], batch_size=batch_size))
                positions += [(index, first, first + len(samples)) for index, first, samples in batch]
        clip_indices, starts, ends = torch.tensor(positions, device="cpu").unbind(1)
        return Segments(torch.cat(features), clip_indices, starts.double() / rate, ends.double() / rate)

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
        """Embed each time frame; arguments as for :meth:`encode_clip`.

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
        """Like :meth:`encode_frames`, for the output of every block; the last one is normalised.

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
        """Embed each patch; arguments as for :meth:`encode_clip`.

        Returns:
            Frames with features (B, N_F·T, D) float32, mask (B, N_F·T) and timestamps (N_F·T,), window after
            window and frequency-major within each window.
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
        silence_dbfs: float = SILENCE_DBFS,
    ) -> list[list[Tag]]:
        """Return the ``top_k`` classes of each clip, best first; other arguments as for :meth:`encode_clip`.

        A clip without a window of at least ``silence_dbfs`` (RMS, in dB relative to full scale) has no tags;
        minus infinity disables this check.

        Raises:
            ConfigError: The model has no head, or ``top_k`` is less than 1.
        """
        self.required_head()  # raise before any work is done
        require_top_k(top_k)
        with self._reading(audio, sample_rate, channels, batch_size) as clips:
            means, levels = ClipMeans(len(clips)), ClipLevels(len(clips), self.frontend)
            for batch in self._encode_clips(clips, self.encoder.frames, batch_size, progress):
                means.put(batch)
                levels.put(batch)
        tags = self.classify_embeddings(means.means(), top_k=top_k)
        silent = levels.are_silent(silence_dbfs)
        return [[] if is_silent else found for is_silent, found in zip(silent, tags, strict=True)]

    @torch.no_grad()
    def classify_embeddings(self, clips: Any, *, top_k: int = 5) -> list[list[Tag]]:
        """Return the ``top_k`` classes of clips embedded by :meth:`encode_clip` of this model, best first.

        Args:
            clips: (B, N_F·D) tensor, array or list.
            top_k: Maximum number of tags per clip.

        Raises:
            ConfigError: The model has no head, ``top_k`` is less than 1, or the embeddings have another shape
                or are not finite.
        """
        head = self.required_head()
        require_top_k(top_k)
        clips = torch.as_tensor(clips)
        if clips.shape[1:] != (self.frame_dim,) or not clips.isfinite().all():
            raise ConfigError(
                f"clips must be finite embeddings of shape (B, {self.frame_dim}), got shape "
                f"{tuple(clips.shape)}; use the result of encode_clip of this model."
            )
        logits = head.infer(clips)
        return top_tags(logits, head.scores(logits), self.required_labels(), top_k)

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
        """Return scores of all classes over time, for detection; arguments as for :meth:`encode_clip`.

        Returns:
            Frames with features (B, T, num_classes): scores from 0 to 1, in the order of the head's outputs.

        Raises:
            ConfigError: The model has no head.
        """
        self.required_head()  # raise before any work is done
        frames = self.encode_frames(
            audio, sample_rate=sample_rate, channels=channels, batch_size=batch_size, progress=progress
        )
        scores = self._frame_scores(frames.features) * frames.mask[..., None]
        return Frames(scores, frames.mask, frames.timestamps_s)

    def _frame_scores(self, features: Tensor) -> Tensor:
        """Return the scores (B, T, num_classes) of frames (B, T, N_F·D)."""
        head = self.required_head()
        return head.scores(head.infer(features.flatten(0, 1))).unflatten(0, features.shape[:2])

    @torch.no_grad()
    def detect(
        self,
        audio: Any,
        *,
        threshold: Threshold = 0.5,
        offset_threshold: Threshold | None = None,
        median_s: float = 0.0,
        max_gap_s: float = 0.0,
        min_duration_s: float = 0.0,
        silence_dbfs: float = SILENCE_DBFS,
        sample_rate: int | None = None,
        channels: Channels | None = None,
        batch_size: int = 16,
        progress: bool = False,
    ) -> list[list[Event]]:
        """Find the events of each clip in the scores of its frames.

        An event is a longest sequence of frames with at least ``offset_threshold``, one of which reaches
        ``threshold``. Scores are not kept, so that memory does not grow with the length of a clip.

        Args:
            audio: As for :meth:`encode_clip`.
            threshold: Score from 0 to 1 for all classes, or one per class by label; classes without a
                threshold are then not detected.
            offset_threshold: The same; None for half of ``threshold``.
            median_s: Length of a median filter over the scores of each class, rounded to an odd number of
                frames.
            max_gap_s: Longest gap between two events of a class that are joined.
            min_duration_s: Shortest duration of an event.
            silence_dbfs: RMS level, in dB relative to full scale; windows below it have no events.
            sample_rate: As for :meth:`encode_clip`.
            channels: As for :meth:`encode_clip`.
            batch_size: As for :meth:`encode_clip`.
            progress: As for :meth:`encode_clip`.

        Returns:
            The events of each clip, sorted by start. Times are in seconds, rounded to frames.

        Raises:
            AudioError: A clip is empty, non-finite or unreadable; the message names it.
            ConfigError: The model has no head, or a setting is out of range.
        """
        labels = self.required_labels()
        settings = Detection(threshold, offset_threshold, median_s, max_gap_s, min_duration_s, silence_dbfs)
        with self._reading(audio, sample_rate, channels, batch_size) as clips:
            finders = [EventFinder(labels, settings, self.frame_hop_s) for _ in clips]
            num_frames = [0] * len(clips)  # of the spectrogram
            last: list[tuple[EventFinder, Any]] = []  # scores of short last windows, encoded before others
            for batch in self._encode_clips(clips, self.encoder.frames, batch_size, progress):
                scores = self._frame_scores(batch.features)
                for item, window_scores in zip(batch.windows, scores.numpy(), strict=True):
                    finder, window = finders[item.clip], item.window
                    audible = window_scores * (item.level_dbfs(self.frontend) >= silence_dbfs)
                    if window.first_token == finder.num_frames:
                        finder.push(audible)
                    else:
                        last.append((finder, audible))
                    num_frames[item.clip] = max(num_frames[item.clip], window.first_frame + window.num_frames)
        for finder, audible in last:
            finder.push(audible)
        return [self._events(finder, frames) for finder, frames in zip(finders, num_frames, strict=True)]

    def _events(self, finder: EventFinder, num_frames: int) -> list[Event]:
        hop_s, token_frames = self.config.frontend.hop_s, self.config.encoder.patch_size[1]
        centres = self.windows.timestamps_s(finder.num_frames, hop_s).numpy()
        starts = (centres - (token_frames - 1) / 2 * hop_s).round(9)
        return finder.finish(starts, max(1, num_frames - 1) * hop_s)  # frames are centred on samples

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
        """Embed clips in the space shared with text; arguments as for :meth:`encode_clip`.

        Returns:
            (B, dim) float32, scaled to unit length if ``normalize`` is true.

        Raises:
            ConfigError: The weights have no projections.
        """
        clap = self.required_clap()
        options: dict[str, Any] = {
            "sample_rate": sample_rate,
            "channels": channels,
            "batch_size": batch_size,
            "progress": progress,
        }
        clips: Iterable[Tensor]  # frames (T, N_F·D) of each clip, or their mean (1, N_F·D) if that suffices
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
        """Embed texts in the space shared with :meth:`encode_audio_text_space`.

        Args:
            texts: One or more strings.
            normalize: Scale each embedding to unit length.

        Returns:
            (B, dim) float32.

        Raises:
            ConfigError: The weights have no projections, or transformers is not installed.
        """
        embeddings = self.required_clap().encode_text(texts).float().cpu()
        return nn.functional.normalize(embeddings, dim=-1) if normalize else embeddings

    def stream(self, sample_rate: int | None = None, hop_s: float | None = None) -> Stream:
        """Start a stream for audio that arrives block by block.

        Args:
            sample_rate: Sample rate of the blocks in Hz; None for the model's sample rate.
            hop_s: Seconds from one window to the next, rounded to whole frames. None means windows without
                overlap, as in :meth:`encode_frames`. A shorter hop gives results sooner at a higher cost.

        Raises:
            AudioError: The sample rate is not supported.
            ConfigError: ``hop_s`` is not positive or is longer than the window, or the model has no fixed
                window.
        """
        return Stream(
            self.frontend,
            self.encoder,
            self.windows,
            sample_rate=sample_rate,
            hop_s=hop_s,
            classify=self.classify_embeddings,
        )

    def export_onnx(
        self,
        path: str | os.PathLike[str],
        outputs: Sequence[Output] = ("frames",),
        dtype: Precision = "float32",
    ) -> None:
        """Write an ONNX file that maps waveforms to embeddings; see :func:`m2d_hub.export.export_onnx`."""
        export_onnx(self, path, outputs, dtype)

    @contextlib.contextmanager
    def _reading(
        self, audio: Any, sample_rate: int | None, channels: Channels | None, batch_size: int
    ) -> Iterator[list[AudioClip]]:
        """Open the clips of a call; their files are prefetched until the end of the ``with`` block."""
        require(batch_size in POSITIVE_INTEGER, f"batch_size must be {POSITIVE_INTEGER}, got {batch_size!r}.")
        clips = audio if isinstance(audio, list) else [audio]
        if clips and all(isinstance(clip, AudioClip) for clip in clips):  # opened by a job of many calls
            yield clips
            return
        clips = open_audio(audio, self.sample_rate, sample_rate, channels)
        with Prefetcher() as reader:
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
        clips_with_progress = tqdm(clips, unit="clip", disable=not progress)
        windows = read_windows(clips_with_progress, self.frontend, self.windows)
        return encode_batched(windows, self.frontend, encode, batch_size, self.device)

    def _expected_tokens(self, num_samples: int) -> int:
        return self.windows.count(self.config.frontend.num_frames(num_samples))

    def _frames(self, store: FrameStore) -> Frames:
        features, mask = store.features_and_mask()
        return Frames(
            features, mask, self.windows.timestamps_s(features.shape[-2], self.config.frontend.hop_s)
        )

    def required_head(self) -> Head:
        """Return the head.

        Raises:
            ConfigError: The model has no head.
        """
        if self.head is None:
            raise ConfigError(
                f"Model {self.config.name!r} has no classification head. Load weights with a head, for "
                "example 'm2d-mini-tags', or use load_model(..., num_classes=N) and train it."
            )
        return self.head

    def required_labels(self) -> list[str]:
        """Return the class names, or their indices if the weights have no names.

        Raises:
            ConfigError: The model has no head.
        """
        num_classes = self.required_head().config.num_classes
        return self.labels or [str(index) for index in range(num_classes)]

    def required_clap(self) -> Clap:
        """Return the projections into the space shared with text.

        Raises:
            ConfigError: The model has no projections.
        """
        if self.clap is None:
            raise ConfigError(
                f"Model {self.config.name!r} has no projections into a text space; load 'm2d-clap-2025'."
            )
        return self.clap
