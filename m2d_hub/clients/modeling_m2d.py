"""M2D for transformers: configuration, feature extractor, encoder and classifier.

With ``m2d_hub.clients.transformers.register()`` the Auto classes find these; a folder that
``m2d_hub.clients.transformers.save_pretrained`` wrote carries this code, with all that it uses, for
``trust_remote_code=True`` where m2d_hub is not installed.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from m2d_hub.config import EncoderConfig, FrontendConfig, HeadConfig
from m2d_hub.nn.encoder import initialise_weights
from m2d_hub.nn.head import Head
from m2d_hub.nn.windowed_encoder import WindowedEncoder


class M2DConfig(PreTrainedConfig):
    """Fields of m2d_hub's own configuration, beside those that all of transformers' have."""

    model_type = "m2d"

    def __init__(
        self,
        frontend: dict[str, Any] | None = None,
        encoder: dict[str, Any] | None = None,
        head_features: Literal["frames", "tokens"] = "frames",
        **options: Any,
    ):
        # Checked, and written in full, as m2d_hub's own.
        self.frontend = asdict(FrontendConfig(**(frontend or {})))
        self.encoder = asdict(EncoderConfig(**(encoder or {})))
        self.head_features = head_features
        self.hidden_size = EncoderConfig(**self.encoder).frame_dim
        super().__init__(**options)


class M2DFeatureExtractor(SequenceFeatureExtractor):
    """Pads waveforms to one length and says which samples are audio; the spectrogram is the model's."""

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
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Makes a batch of one mono clip, or of several of different lengths.

        Args:
            raw_speech: A 1-D array, a 2-D one (a batch of clips), or a list of 1-D arrays.
            sampling_rate: Hz of the clips; another than the model's is refused.
            padding: As for other feature extractors.
            max_length: Samples, with ``truncation`` or ``padding="max_length"``.
            truncation: Cut clips at ``max_length``.
            return_tensors: ``"pt"`` or ``"np"``.
            **options: As for other feature extractors.

        Raises:
            ValueError: The rate is not the model's.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"this model takes audio at {self.sampling_rate} Hz, but sampling_rate={sampling_rate} was "
                "given; resample it first."
            )
        first = raw_speech if isinstance(raw_speech, (np.ndarray, Tensor)) else np.asarray(raw_speech[0])
        is_batch = first.ndim == 2 or (isinstance(raw_speech, (list, tuple)) and first.ndim == 1)
        clips = list(raw_speech) if is_batch else [raw_speech]
        values = {"input_values": [np.asarray(clip, dtype=np.float32) for clip in clips]}
        return self.pad(
            BatchFeature(values),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            return_attention_mask=True,
            return_tensors=return_tensors,
        )


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
        """Draws what a checkpoint does not have, which may be on the meta device until then: a head."""
        if isinstance(module, torch.nn.BatchNorm1d):
            for buffer in module.buffers():
                torch.nn.init.zeros_(buffer)
            torch.nn.init.ones_(module.get_buffer("running_var"))
        else:
            initialise_weights(module)


class M2DModel(M2DPreTrainedModel):
    """Waveforms to frames."""

    def __init__(self, config: M2DConfig):
        super().__init__(config)
        self.windowed = WindowedEncoder(FrontendConfig(**config.frontend), EncoderConfig(**config.encoder))
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool = True,
        **_: Any,
    ) -> Any:
        """Encodes waveforms (B, S); ``attention_mask`` (B, S) is 1 where they are audio.

        Returns:
            ``last_hidden_state`` (B, T, N_F·D), zero beyond a clip's end, and ``pooler_output`` (B, N_F·D),
            the mean over each clip's own frames.
        """
        lengths = None if attention_mask is None else attention_mask.sum(dim=1).long()
        frames, heard = self.windowed(input_values, lengths)
        clip = frames.sum(dim=1) / heard.sum(dim=1, keepdim=True)
        output = BaseModelOutputWithPooling(last_hidden_state=frames, pooler_output=clip)
        return output if return_dict else output.to_tuple()


class M2DForAudioClassification(M2DPreTrainedModel):
    """Waveforms to logits of classes."""

    def __init__(self, config: M2DConfig):
        super().__init__(config)
        self.m2d = M2DModel(config)
        encoder = EncoderConfig(**config.encoder)
        width = encoder.frame_dim if config.head_features == "frames" else encoder.embed_dim
        self.head = Head(HeadConfig(config.num_labels, features=config.head_features), width)
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **_: Any,
    ) -> Any:
        """Classifies waveforms.

        Args:
            input_values: Waveforms (B, S), as for :class:`M2DModel`.
            attention_mask: Which samples are the clip's (B, S); None: all.
            labels: Class numbers (B,), or scores (B, num_labels) with ``problem_type`` multi-label.
            return_dict: False: a tuple.

        Returns:
            ``logits`` (B, num_labels), and ``loss`` where labels are given.
        """
        clip = self.m2d(input_values, attention_mask).pooler_output
        logits = self.head(self.head.clip_input(clip))
        loss = None
        if labels is not None and self.config.problem_type == "multi_label_classification":
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits))
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return output if return_dict else output.to_tuple()
