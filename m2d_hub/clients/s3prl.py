"""s3prl: M2D as an upstream of its hub, every block's frames as hidden states.

>>> from m2d_hub.clients.s3prl import register
>>> register()  # then s3prl.hub.m2d_hub(), or S3PRLUpstream("m2d_hub") of s3prl.nn
>>> register("m2d_as", "m2d-as-0.7")
>>> register("m2d_ks", "m2d-s-6s", mean=-11.51, std=4.31)  # of a task's own data, as SUPERB in the paper

s3prl 0.4.18 imports functions that torchaudio has dropped: :func:`register` lends it their names while it is
imported, so call that before s3prl is imported. Its scripts, such as run_downstream.py, call these functions
when they run, which they cannot with any torchaudio that this package takes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.inference import FrameStore, encode_batched, split_windows
from m2d_hub.pretrained.registry import DEFAULT_MODEL


class UpstreamExpert(nn.Module):
    """Waveforms to the frames of every block, differentiable."""

    def __init__(
        self,
        ckpt: str | os.PathLike[str] | None = None,
        refresh: bool = False,
        *,
        mean: float | None = None,
        std: float | None = None,
        **options: Any,
    ):
        """Loads what :func:`m2d_hub.load_model` takes; s3prl moves it.

        Args:
            ckpt: Name, file or folder; None for ``m2d-mini``.
            refresh: Of s3prl's own downloads; not used.
            mean: Of the task's log-mel values, as ``m2d-train statistics`` measures; None: the model's own.
            std: Their standard deviation; None: the model's own.
            **options: s3prl's own; not used.
        """
        super().__init__()
        self.model = load_model(ckpt or DEFAULT_MODEL, device="cpu", mean=mean, std=std)

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
        encode = model.encoder.layer_frames
        for batch in encode_batched(windows, model.frontend, encode, len(windows), model.device):
            store.put(batch)
        layers, _ = store.features_and_mask()
        return {"hidden_states": list(layers.unbind(0))}


def register(
    name: str = "m2d_hub",
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    mean: float | None = None,
    std: float | None = None,
) -> None:
    """Puts an upstream into s3prl's hub.

    Args:
        name: Its name there.
        model: Loaded when no ``ckpt`` is given.
        mean: Of the task's log-mel values; None: the model's own.
        std: Their standard deviation; None: the model's own.

    Raises:
        ConfigError: s3prl is not installed, or does not load with this torchaudio.
    """
    try:
        with _names_gone_from_torchaudio():
            import s3prl.hub
            import s3prl.nn  # here, where it finds those names
    except (ImportError, AttributeError, OSError) as error:
        is_there = find_spec("s3prl") is not None
        raise ConfigError(
            f"register() needs s3prl, which {'is installed, but ' if is_there else ''}cannot be imported "
            f"({error}): {'0.4.18 is the version that was tried' if is_there else 'pip install s3prl'}."
        ) from error

    def entry(ckpt: str | os.PathLike[str] | None = None, **options: Any) -> UpstreamExpert:
        return UpstreamExpert(ckpt or model, **({"mean": mean, "std": std} | options))

    setattr(s3prl.hub, name, entry)


@contextlib.contextmanager
def _names_gone_from_torchaudio() -> Iterator[None]:
    """Lends torchaudio the names that s3prl looks for when it is imported, and takes them back."""
    import torchaudio

    effects = ModuleType("torchaudio.sox_effects")
    vars(effects).update(dict.fromkeys(("apply_effects_file", "apply_effects_tensor"), _dropped))
    has_backends, has_effects = (hasattr(torchaudio, name) for name in ("set_audio_backend", "sox_effects"))
    if not has_backends:
        torchaudio.set_audio_backend = lambda backend: None
    if not has_effects:
        sys.modules[effects.__name__] = effects
    try:
        yield
    finally:
        if not has_backends:
            del torchaudio.set_audio_backend
        if not has_effects:
            del sys.modules[effects.__name__]


def _dropped(*_: Any, **__: Any) -> None:
    raise ConfigError(
        f"this part of s3prl needs torchaudio.sox_effects, which torchaudio {version('torchaudio')} does not "
        "have any more."
    )
