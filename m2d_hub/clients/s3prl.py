"""s3prl: M2D as an upstream of its hub, with the frames of every block as hidden states.

>>> from m2d_hub.clients.s3prl import register
>>> register()  # then s3prl.hub.m2d_hub(), or S3PRLUpstream("m2d_hub") of s3prl.nn
>>> register("m2d_as", "m2d-as-0.7")
>>> register("m2d_ks", "m2d-s-6s", mean=-11.51, std=4.31)  # of a task's own data, as in the paper

Call :func:`register` before you import s3prl: it imports functions that torchaudio has removed, and
:func:`register` puts stand-ins into torchaudio. Scripts that call them, such as run_downstream.py, do not
work with current versions of torchaudio.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.inference import FrameStore, encode_batched, split_windows
from m2d_hub.pretrained.registry import DEFAULT_MODEL


class UpstreamExpert(nn.Module):
    """Map waveforms to the frames of every block, differentiable."""

    def __init__(
        self,
        ckpt: str | os.PathLike[str] | None = None,
        refresh: bool = False,
        mean: float | None = None,
        std: float | None = None,
        **_: Any,
    ):
        """Load a model on the CPU; s3prl moves it.

        Args:
            ckpt: As for :func:`m2d_hub.load_model`; None for ``m2d-mini``.
            refresh: Ignored; for s3prl's own downloads.
            mean: Mean of the task's log-mel values, as ``m2d-train statistics`` measures; None: the model's.
            std: Their standard deviation; None: the model's.
        """
        super().__init__()
        self.model = load_model(ckpt or DEFAULT_MODEL, device="cpu", mean=mean, std=std)

    def get_downsample_rates(self, key: str) -> int:
        """Return the number of samples between frames."""
        return round(self.model.frame_hop_s * self.model.sample_rate)

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
        """Encode 1-D waveforms at 16 kHz, of different lengths.

        Returns:
            ``hidden_states``: frames (B, T, N_F·D) of each block, zero after the end of a clip.
        """
        model = self.model
        lengths = [len(wav) for wav in wavs]
        waveform = nn.utils.rnn.pad_sequence(list(wavs), batch_first=True).to(model.device)
        windows = split_windows(waveform, lengths, model.frontend, model.windows)
        store = FrameStore(len(lengths), 1)
        encode = model.encoder.layer_frames
        for batch in encode_batched(windows, model.frontend, encode, len(windows), model.device):
            store.put(batch)
        layers, _ = store.features_and_mask()
        return {"hidden_states": list(layers.unbind(0))}


def register(
    name: str = "m2d_hub", model: str | os.PathLike[str] = DEFAULT_MODEL, **options: float | None
) -> None:
    """Add an upstream to s3prl's hub.

    Args:
        name: Name of the upstream.
        model: Model to load when no ``ckpt`` is given.
        **options: ``mean`` and ``std``, as for :class:`UpstreamExpert`.

    Raises:
        ConfigError: s3prl is not installed, or cannot be imported.
    """
    import torchaudio

    if not hasattr(torchaudio, "sox_effects"):
        effects: Any = ModuleType("torchaudio.sox_effects")
        effects.apply_effects_file = effects.apply_effects_tensor = _refuse
        sys.modules.setdefault(effects.__name__, effects)
    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda backend: None
    try:
        import s3prl.hub
        import s3prl.nn
    except (ImportError, AttributeError, OSError) as error:
        raise ConfigError(
            f"s3prl cannot be imported ({error}): pip install s3prl. It is tested with version 0.4.18."
        ) from error

    def entry(ckpt: str | os.PathLike[str] | None = None, **given: Any) -> UpstreamExpert:
        return UpstreamExpert(ckpt or model, **(options | given))

    setattr(s3prl.hub, name, entry)


def _refuse(*_: Any) -> None:
    raise ConfigError("This part of s3prl needs torchaudio.sox_effects, which torchaudio has removed.")
