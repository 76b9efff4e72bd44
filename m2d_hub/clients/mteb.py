"""MTEB: M2D for its audio tasks.

>>> from m2d_hub.clients.mteb import META, M2DWrapper
>>> mteb.evaluate(M2DWrapper("m2d-as-0.7"), mteb.get_tasks(modalities=["audio"]))
>>> mteb.evaluate(META, mteb.get_tasks(["ESC50"]))  # m2d-mini
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from m2d_hub.errors import ConfigError
from m2d_hub.hub import load_model
from m2d_hub.io import importing
from m2d_hub.pretrained.registry import DEFAULT_MODEL

with importing("mteb", "M2DWrapper", "mteb"):
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder


class M2DWrapper(AbsEncoder):
    """Embed the audio of MTEB's tasks, each clip at full length."""

    def __init__(
        self,
        model_name: str | os.PathLike[str] = DEFAULT_MODEL,
        revision: str | None = None,
        device: str | None = None,
        **_: Any,
    ):
        """Load a model as :func:`m2d_hub.load_model` does; ``revision`` is ignored."""
        name = str(model_name).removeprefix(ORGANISATION)
        self.model = load_model(name, device=device)
        self.mteb_model_meta = model_meta(name)

    def encode(
        self, inputs: Any, *, show_progress_bar: bool = True, batch_size: int = 16, **_: Any
    ) -> np.ndarray:
        """Embed clips.

        Args:
            inputs: MTEB's data loader of rows with ``audio``.
            show_progress_bar: Show a progress bar.
            batch_size: Maximum number of windows encoded at once.

        Returns:
            (n, N_F·D) float32.

        Raises:
            ConfigError: The task has no audio.
        """
        from tqdm.auto import tqdm

        inputs.collate_fn = _audio_of
        batches = tqdm(inputs, disable=not show_progress_bar, desc="M2D")
        return np.concatenate(
            [self.model.encode_clip(clips, batch_size=batch_size).numpy() for clips in batches]
        )


def _audio_of(rows: list[dict[str, Any]]) -> list[Any]:
    """Return the audio of a batch's rows, each with its rate.

    Raises:
        ConfigError: The rows have no audio.
    """
    if "audio" not in rows[0]:
        raise ConfigError(f"M2D embeds audio, but this task has {', '.join(sorted(rows[0]))}.")
    return [row["audio"] for row in rows]


ORGANISATION = "m2d-hub/"


def model_meta(name: str = DEFAULT_MODEL, **known: Any) -> ModelMeta:
    """Return MTEB's record of a model; fields that are not known before loading are empty."""
    return ModelMeta.create_empty(
        {
            "loader": M2DWrapper,
            "name": ORGANISATION + os.path.basename(name),
            "revision": "1",
            "max_tokens": float("inf"),
            "open_weights": True,
            "framework": ["PyTorch"],
            "similarity_fn_name": "cosine",
            "use_instructions": False,
            "modalities": ["audio"],
            **known,
        }
    )


META = model_meta(n_parameters=1_386_240, embed_dim=1536, license="apache-2.0")
