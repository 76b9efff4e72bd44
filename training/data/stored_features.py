"""Precomputed per-frame features of a frozen model, averaged over the frames of each token.

Shapes: B batch, K features, N_T time frames of tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from m2d_hub.errors import AudioError

from .crops import Crop
from .entries import Entry, read_array, read_finite

FRAMES_PER_FEATURE = 2  # a HuBERT feature spans 20 ms, a spectrogram frame 10 ms


def pool_to_tokens(features: Tensor, num_tokens: int, patch_frames: int) -> Tensor:
    """Average features at 50 per second over the frames of each token (paper, section IV-D).

    Args:
        features: Features (B, frames of 20 ms, K), the first one where the first token starts.
        num_tokens: N_T.
        patch_frames: Spectrogram frames of one token.

    Returns:
        (B, N_T, K); where the features end before the tokens, the last feature is repeated.
    """
    first = torch.arange(num_tokens) * patch_frames // FRAMES_PER_FEATURE
    last = (torch.arange(1, num_tokens + 1) * patch_frames - 1) // FRAMES_PER_FEATURE
    first, last = (edge.clamp(max=features.shape[1] - 1) for edge in (first, last))
    frames = torch.arange(features.shape[1])
    inside = (frames >= first[:, None]) & (frames <= last[:, None])  # (N_T, frames)
    weights = (inside / inside.sum(dim=1, keepdim=True)).to(features)
    return weights @ features


def features_width(entry: Entry) -> int:
    """Return K of a clip's stored features.

    Raises:
        AudioError: The features cannot be read.
    """
    return (1, *read_array(entry.features).shape)[-1]


def caption_features(entry: Entry, width: int | None, share: float) -> np.ndarray:
    """Return the precomputed features of one of a clip's captions (K,).

    Args:
        entry: The clip; its features are (K,), or (captions, K).
        width: Required K; None for any.
        share: From 0 to below 1, see :meth:`Entry.drawn_caption`.

    Raises:
        AudioError: They cannot be read, or have another shape.
    """
    stored = read_array(entry.features)
    rows = stored.reshape(-1, (1, *stored.shape)[-1])
    if stored.ndim > 2 or width not in (None, rows.shape[1]):
        expected = f"({width},) or (captions, {width})"
        raise AudioError(f"the features {entry.features} have the shape {stored.shape}, expected {expected}.")
    return read_finite(entry.features, rows[int(share * len(rows))])


def frame_features(
    entry: Entry, width: int | None, crop: Crop, num_tokens: int, patch_frames: int
) -> np.ndarray:
    """Return features of a crop's token frames, from the precomputed ones of the whole clip.

    Args:
        entry: The clip; its features are (clip's frames of 20 ms, K). Where the crop repeats the clip, they
            are repeated with it.
        width: Required K; None for any.
        crop: The part of the clip.
        num_tokens: N_T.
        patch_frames: Spectrogram frames of one token.

    Returns:
        (N_T, K).

    Raises:
        AudioError: They cannot be read, or have another shape.
    """
    stored = read_array(entry.features)
    if stored.ndim != 2 or width not in (None, stored.shape[1]):
        expected = f"(frames, {'features' if width is None else width})"
        raise AudioError(f"the features {entry.features} have the shape {stored.shape}, expected {expected}.")
    count = (num_tokens * patch_frames - 1) // FRAMES_PER_FEATURE + 1
    frames = crop.first_frame // FRAMES_PER_FEATURE + np.arange(count)
    if crop.period is not None:
        frames = (frames % (crop.period / FRAMES_PER_FEATURE)).astype(int)
    frames = frames.clip(max=len(stored) - 1)
    first = int(frames.min())
    part = read_finite(entry.features, stored[first : int(frames.max()) + 1])[frames - first]
    return pool_to_tokens(torch.from_numpy(part)[None], num_tokens, patch_frames)[0].numpy()
