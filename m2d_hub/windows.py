"""Which frames form which window, how many tokens each gives, and when those tokens sound. Pure planning.

Windows stand one after another over a clip's spectrogram. The last one is zero-padded up to a whole patch; a
window that is not a whole number of patches loses its odd frames (1001 frames of 16 give 62 tokens).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Part of a clip that the encoder sees at once."""

    first_frame: int  # within the clip's spectrogram
    num_frames: int  # frames of the clip that it covers
    first_token: int  # within the clip's tokens along time
    num_tokens: int  # tokens along time, N_T


def plan_windows(num_frames: int, window_frames: int | None, patch_frames: int) -> list[Window]:
    """Cuts a clip of ``num_frames`` frames into windows.

    Args:
        num_frames: Spectrogram frames of the clip, at least 1.
        window_frames: Frames of a window; None for one window of the clip's own length.
        patch_frames: Frames of a token.
    """
    window_frames = window_frames or num_frames + patch_frames
    most_tokens = window_frames // patch_frames
    return [
        Window(
            first_frame=first,
            num_frames=min(window_frames, num_frames - first),
            first_token=index * most_tokens,
            num_tokens=min(-(-min(window_frames, num_frames - first) // patch_frames), most_tokens),
        )
        for index, first in enumerate(range(0, num_frames, window_frames))
    ]


def count_tokens(windows: Sequence[Window]) -> int:
    """Tokens along time of a planned clip, T."""
    return windows[-1].first_token + windows[-1].num_tokens


def timestamps_s(num_tokens: int, window_frames: int | None, patch_frames: int, hop_s: float) -> Tensor:
    """Centres of the tokens' frames in seconds, (T,) float64.

    Token i of a window that starts at frame w covers frames w + i·p … w + (i + 1)·p − 1, each ``hop_s``
    apart.
    """
    tokens = torch.arange(num_tokens, dtype=torch.float64, device="cpu")
    if window_frames is None:
        first_frames = tokens * patch_frames
    else:
        window_tokens = window_frames // patch_frames
        first_frames = tokens // window_tokens * window_frames + tokens % window_tokens * patch_frames
    return (first_frames + (patch_frames - 1) / 2) * hop_s


def cut_windows(
    log_mel_blocks: Iterable[Tensor], window_frames: int | None, patch_frames: int
) -> Iterator[tuple[Window, Tensor]]:
    """Forms windows from a stream of spectrogram blocks, holding no more than one window and one block.

    A window of the clip's own length is the whole clip.

    Args:
        log_mel_blocks: Normalised blocks (F, t), in order.
        window_frames: Frames of a window; None for one window of the clip's own length.
        patch_frames: Frames of a token.

    Yields:
        Each window with its frames (F, N_T · patch frames), zero-padded where the clip ends.
    """
    pending: list[Tensor] = []
    pending_frames = first_frame = first_token = 0

    def take(num_frames: int) -> tuple[Window, Tensor]:
        nonlocal pending, pending_frames, first_frame, first_token
        joined = torch.cat(pending, dim=-1)
        used = plan_windows(num_frames, window_frames, patch_frames)[0].num_tokens
        window = Window(first_frame, num_frames, first_token, used)
        kept = joined[:, : min(num_frames, used * patch_frames)]
        pending, pending_frames = [joined[:, num_frames:]], pending_frames - num_frames
        first_frame, first_token = first_frame + num_frames, first_token + used
        return window, F.pad(kept, (0, used * patch_frames - kept.shape[-1]))

    for block in log_mel_blocks:
        pending.append(block)
        pending_frames += block.shape[-1]
        while window_frames is not None and pending_frames >= window_frames:
            yield take(window_frames)
    if pending_frames:
        yield take(pending_frames)
