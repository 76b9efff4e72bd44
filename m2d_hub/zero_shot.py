"""Zero-shot classification by text descriptions, for weights with a text space."""

from __future__ import annotations

from typing import Any

import torch

from m2d_hub.audio.inputs import Channels
from m2d_hub.model import M2D
from m2d_hub.results import Tag, require_top_k, top_tags


@torch.no_grad()
def classify_by_text(
    model: M2D,
    audio: Any,
    texts: list[str],
    *,
    sample_rate: int | None = None,
    channels: Channels | None = None,
    top_k: int = 5,
    batch_size: int = 16,
    progress: bool = False,
) -> list[list[Tag]]:
    """Rank texts by how well they describe each clip.

    Args:
        model: A model with a text space, such as ``m2d-clap-2024``.
        audio: As for :meth:`m2d_hub.M2D.encode_clip`.
        texts: Descriptions, such as ``"the sound of a dog barking"``.
        sample_rate: Hz of arrays; None means the model's own.
        channels: As for :meth:`m2d_hub.M2D.encode_clip`.
        top_k: Maximum number of texts per clip.
        batch_size: Maximum number of windows encoded at once.
        progress: Show a progress bar over the clips.

    Returns:
        For each clip the most likely texts, the best first. Scores are a softmax over all texts of their
        cosine similarity, scaled as in training; ``index`` is the text's position in ``texts``.

    Raises:
        ConfigError: The weights have no text space, or ``top_k`` is less than 1.
    """
    require_top_k(top_k)
    clap = model.required_clap()
    words = model.encode_text(texts, normalize=True)  # (C, E)
    clips = model.encode_audio_text_space(
        audio,
        sample_rate=sample_rate,
        channels=channels,
        batch_size=batch_size,
        progress=progress,
        normalize=True,
    )  # (B, E)
    logits = clap.logit_scale.exp().float().cpu() * clips @ words.T  # (B, C)
    return top_tags(logits, logits.softmax(dim=-1), texts, top_k)
