"""Per-frame features of a frozen model, averaged over the frames of each token.

Shapes: B batch, K features, N_T time frames of tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from m2d_hub.errors import AudioError

from .entry import Entry

FRAMES_PER_FEATURE = 2  # a HuBERT feature spans 20 ms, a spectrogram frame 10 ms


def pool_to_tokens(features: Tensor, num_tokens: int, patch_frames: int) -> Tensor:
    """Averages features at 50 a second over the frames of each token (paper, section IV-D).

    Args:
        features: (B, frames of 20 ms, K), the first one where the first token starts.
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


def read_features(entry: Entry) -> np.ndarray:
    """Features of a clip that were computed beforehand, (frames of 20 ms, K) or (K,) of a caption.

    Raises:
        AudioError: The file cannot be read.
    """
    where = entry.features
    try:
        stored = np.load(where.source())
    except (OSError, ValueError) as error:
        raise AudioError(f"{where} cannot be read as features: {error}.") from error
    return stored.astype(np.float32)


def crop_features(features: np.ndarray, first_frame: int, num_tokens: int, patch_frames: int) -> np.ndarray:
    """Features of a crop's token frames, out of those of the whole clip.

    Args:
        features: (clip's frames of 20 ms, K).
        first_frame: Of the crop, in spectrogram frames of 10 ms.
        num_tokens: N_T.
        patch_frames: Spectrogram frames of one token.

    Returns:
        (N_T, K).
    """
    part = features[first_frame // FRAMES_PER_FEATURE :]
    clip = torch.from_numpy(part if len(part) else features[-1:])
    return pool_to_tokens(clip[None], num_tokens, patch_frames)[0].numpy()
