"""M2D for transformers: configuration, feature extractor, encoder and classifier.

``m2d_hub.clients.transformers.register()`` adds these classes to the Auto classes. A saved folder contains
this code, with all that it imports from m2d_hub, for ``trust_remote_code=True`` without m2d_hub.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import asdict
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from m2d_hub.audio.inputs import is_numbers, to_waveform
from m2d_hub.config import EncoderConfig, FrontendConfig, HeadConfig
from m2d_hub.nn.encoder import initialise_weights
from m2d_hub.nn.head import Head
from m2d_hub.nn.windowed_encoder import WindowedEncoder


class _SavedWithCode:
    """Save the code that the configuration names beside it."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Save as other objects of transformers, with the code."""
        super().save_pretrained(save_directory, **options)  # type: ignore[misc]
        # Code loaded from a folder is copied by transformers itself.
        if __name__.startswith("m2d_hub.") and getattr(self, "auto_map", None):
            importlib.import_module("m2d_hub.clients.transformers").write_code(save_directory)


class M2DConfig(_SavedWithCode, PreTrainedConfig):
    """Configuration of frontend, encoder and head, as in m2d_hub."""

    model_type = "m2d"

    def __init__(
        self,
        frontend: dict[str, Any] | None = None,
        encoder: dict[str, Any] | None = None,
        head_features: Literal["frames", "tokens"] = "frames",
        **options: Any,
    ):
        # m2d_hub's own classes check the fields and fill in defaults.
        self.frontend = asdict(FrontendConfig(**(frontend or {})))
        self.encoder = asdict(EncoderConfig(**(encoder or {})))
        self.head_features = head_features
        self.hidden_size = EncoderConfig(**self.encoder).frame_dim
        super().__init__(**options)


class M2DFeatureExtractor(_SavedWithCode, SequenceFeatureExtractor):
    """Pad waveforms to one length, with a mask of the samples; the model computes the spectrogram."""

    model_input_names = ["input_values", "attention_mask"]  # noqa: RUF012

    def __init__(
        self, feature_size: int = 1, sampling_rate: int = 16_000, padding_value: float = 0.0, **options: Any
    ):
        super().__init__(
            feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **options
        )
        self.return_attention_mask = True

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        **options: Any,
    ) -> BatchFeature:
        """Make a batch of one mono clip, or of several of different lengths.

        Args:
            raw_speech: A 1-D array, a 2-D one (a batch of clips), or a list of 1-D arrays. Integers are
                scaled to [-1, 1).
            sampling_rate: Sample rate of the clips in Hz; it must be that of the model.
            padding: As for other feature extractors.
            **options: ``max_length``, ``truncation``, ``pad_to_multiple_of`` and ``return_tensors``, as for
                other feature extractors.

        Raises:
            ValueError: The rate is not that of the model.
            AudioError: A clip is not a waveform.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"The model takes audio at {self.sampling_rate} Hz, but sampling_rate is {sampling_rate}; "
                "resample the audio first."
            )
        if isinstance(raw_speech, (list, tuple)) and raw_speech and not is_numbers(raw_speech):
            clips = [to_waveform(clip, f"clip {index}", "mix") for index, clip in enumerate(raw_speech)]
        else:
            clips = list(torch.atleast_2d(to_waveform(raw_speech, "raw_speech")))
        values = BatchFeature({"input_values": [clip.numpy() for clip in clips]})
        return self.pad(values, padding=padding, **(options | {"return_attention_mask": True}))


class M2DPreTrainedModel(PreTrainedModel):
    """Base of the encoder and the classifier."""

    config_class = M2DConfig
    base_model_prefix = "m2d"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    _keep_in_fp32_modules_strict = {"stft_filters", "mel_filters"}  # noqa: RUF012
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True

    def _init_weights(self, module: Any) -> None:
        """Initialise weights that a checkpoint lacks, such as those of a new head."""
        if isinstance(module, torch.nn.BatchNorm1d):
            for buffer in module.buffers():
                torch.nn.init.zeros_(buffer)
            torch.nn.init.ones_(module.get_buffer("running_var"))
        else:
            initialise_weights(module)


class M2DModel(M2DPreTrainedModel):
    """Map waveforms to frames."""

    def __init__(self, config: M2DConfig):
        super().__init__(config)
        self.windowed = WindowedEncoder(FrontendConfig(**config.frontend), EncoderConfig(**config.encoder))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode waveforms.

        Args:
            input_values: Waveforms (B, S).
            attention_mask: 1 for the samples of each clip and 0 for the padding after them (B, S); None if
                nothing is padded.
            output_hidden_states: Return the frames of every layer; None: as configured.

        Returns:
            ``last_hidden_state`` (B, T, N_F·D), zero after the end of a clip; ``pooler_output`` (B, N_F·D),
            the mean over the frames of each clip; and, if requested, ``hidden_states``: the frames
            (B, T, N_F·D) of the embedded patches and of each block, the last equal to ``last_hidden_state``.

        Raises:
            ValueError: The mask does not have the shape of the waveforms, has no samples for a clip, or has
                padding before or inside a clip.
        """
        lengths = None if attention_mask is None else _lengths(input_values, attention_mask)
        hidden_states = None
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            layers, mask = self.windowed.layers(input_values, lengths)
            hidden_states, frames = tuple(layers.unbind(0)), layers[-1]
        else:
            frames, mask = self.windowed(input_values, lengths)
        clip = frames.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return BaseModelOutputWithPooling(
            last_hidden_state=frames, pooler_output=clip, hidden_states=hidden_states
        )


class M2DForAudioClassification(M2DPreTrainedModel):
    """Map waveforms to logits of classes."""

    def __init__(self, config: M2DConfig):
        super().__init__(config)
        self.m2d = M2DModel(config)
        encoder = EncoderConfig(**config.encoder)
        width = encoder.frame_dim if config.head_features == "frames" else encoder.embed_dim
        self.head = Head(HeadConfig(config.num_labels, features=config.head_features), width)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify waveforms.

        Args:
            input_values: Waveforms (B, S), as for :class:`M2DModel`.
            attention_mask: As for :class:`M2DModel`.
            labels: Class numbers (B,), or scores (B, num_labels) with ``problem_type`` multi-label.
            output_hidden_states: As for :class:`M2DModel`.

        Returns:
            ``logits`` (B, num_labels), ``loss`` if labels are given, ``hidden_states`` if requested.

        Raises:
            ValueError: As for :class:`M2DModel`.
        """
        encoded = self.m2d(input_values, attention_mask, output_hidden_states, return_dict=True)
        logits = self.head(self.head.clip_input(encoded.pooler_output))
        loss = None
        if labels is not None and self.config.problem_type == "multi_label_classification":
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits))
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)


def _lengths(input_values: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the number of samples of each clip (B,), given that padding only follows a clip."""
    is_audio = attention_mask != 0
    lengths = is_audio.sum(dim=1)
    expected = torch.arange(is_audio.shape[1], device=is_audio.device) < lengths[:, None]
    is_padded_right = torch.equal(is_audio, expected) and bool(lengths.all())
    if not is_padded_right or is_audio.shape != input_values.shape:
        raise ValueError(
            f"attention_mask of shape {tuple(attention_mask.shape)} does not mark the samples of each clip, "
            f"followed by padding, in input_values of shape {tuple(input_values.shape)}; pad clips on the "
            "right, and leave out empty ones."
        )
    return lengths
