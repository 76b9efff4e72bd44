"""Classification by texts: no training, no fixed set of classes, for weights that carry a text space."""

from __future__ import annotations

from typing import Any

import torch

from m2d_hub.errors import ConfigError
from m2d_hub.model import M2D
from m2d_hub.results import Tag


@torch.no_grad()
def classify_by_text(
    model: M2D,
    audio: Any,
    texts: list[str],
    *,
    sample_rate: int | None = None,
    top_k: int = 5,
    batch_size: int = 16,
    progress: bool = False,
) -> list[list[Tag]]:
    """Says which of the texts fit each clip best.

    Args:
        model: A model with a text space, such as ``m2d-clap-2024``.
        audio: As for :meth:`m2d_hub.M2D.encode_clip`.
        texts: Descriptions, such as ``"the sound of a dog barking"``.
        sample_rate: Hz of arrays; None means the model's own.
        top_k: Most texts per clip.
        batch_size: Most windows encoded at once.
        progress: Show a progress bar over the clips.

    Returns:
        For each clip the likeliest texts, the best first. Scores are a softmax over all texts of their cosine
        similarity, scaled as in training; ``index`` is the text's place in ``texts``.

    Raises:
        ConfigError: The weights carry no text space, or ``top_k`` is less than 1.
    """
    if not isinstance(top_k, int) or top_k < 1:
        raise ConfigError(f"top_k must be a whole number of at least 1, got {top_k!r}.")
    if model.clap is None:
        raise ConfigError(f"model {model.config.name!r} has no text space. Load 'm2d-clap-2024'.")
    words = model.encode_text(texts, normalize=True)  # (C, E)
    clips = model.encode_audio_text_space(
        audio, sample_rate=sample_rate, batch_size=batch_size, progress=progress, normalize=True
    )  # (B, E)
    logits = model.clap.logit_scale.exp().float().cpu() * clips @ words.T  # (B, C)
    best = logits.topk(min(top_k, len(texts)), dim=-1).indices
    scores = logits.softmax(dim=-1).gather(1, best)
    return [
        [Tag(texts[index], score, index) for score, index in zip(*pair, strict=True)]
        for pair in zip(scores.tolist(), best.tolist(), strict=True)
    ]
