"""s3prl: M2D as an upstream of its hub, every block's frames as hidden states.

>>> from m2d_hub.clients.s3prl import register
>>> register()  # then s3prl.hub.m2d_hub(), S3PRLUpstream("m2d_hub"), run_downstream.py -u m2d_hub
>>> register("m2d_as", "m2d-as-0.7")
"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.inference import FrameStore, encode_batched, split_windows
from m2d_hub.pretrained.registry import DEFAULT_MODEL


class UpstreamExpert(nn.Module):
    """Waveforms to the frames of every block, differentiable."""

    def __init__(self, ckpt: str | os.PathLike[str] | None = None, refresh: bool = False, **options: Any):
        """Loads what :func:`m2d_hub.load_model` takes; s3prl moves it.

        Args:
            ckpt: Name, file or folder; None for ``m2d-mini``.
            refresh: Of s3prl's own downloads; not used.
            **options: s3prl's own; not used.
        """
        super().__init__()
        self.model = load_model(ckpt or DEFAULT_MODEL, device="cpu")

    def get_downsample_rates(self, key: str) -> int:
        """Samples between frames."""
        return round(self.model.frame_hop_s * self.model.sample_rate)

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
        """Encodes clips; what one gives never depends on the others.

        Args:
            wavs: 1-D waveforms at 16 kHz, of different lengths.

        Returns:
            ``hidden_states``: frames (B, T, N_F·D) of each block, zero beyond a clip's end.
        """
        model = self.model
        lengths = [len(wav) for wav in wavs]
        waveform = nn.utils.rnn.pad_sequence(list(wavs), batch_first=True).to(model.device)
        windows = split_windows(waveform, lengths, model.frontend, model.windows)
        store = FrameStore(len(lengths), 1)
        for batch in encode_batched(windows, model.encoder.layer_frames, batch_size=len(windows)):
            store.put(batch)
        layers, _ = store.features_and_mask()
        return {"hidden_states": list(layers.unbind(0))}


def register(name: str = "m2d_hub", model: str | os.PathLike[str] = DEFAULT_MODEL) -> None:
    """Puts an upstream into s3prl's hub.

    Args:
        name: Its name there.
        model: Loaded when no ``ckpt`` is given.

    Raises:
        ConfigError: s3prl is not installed, or does not load with this torchaudio.
    """
    try:
        import s3prl.hub
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"register() needs s3prl, which cannot be imported ({error}): pip install s3prl."
        ) from error

    def entry(ckpt: str | os.PathLike[str] | None = None, **options: Any) -> UpstreamExpert:
        return UpstreamExpert(ckpt or model, **options)

    setattr(s3prl.hub, name, entry)
