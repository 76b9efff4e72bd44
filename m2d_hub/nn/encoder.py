"""Vision transformer: patch embedding, blocks, and the two steps ``embed`` and ``encode``.

The steps are separate so that patches can be dropped between them: by masking in pre-training, by structured
patchout in fine-tuning. Parameters have the names and granularity of the published checkpoints.

Shapes: B batch, C channels, F mels, T frames, N patch tokens, D width, H heads, L layers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2d_hub.config import EncoderConfig
from m2d_hub.errors import ConfigError
from m2d_hub.nn.linear import Linear
from m2d_hub.nn.positional import resample_positions, sincos_positions

_IGNORED = -1e4  # added to scores of attention; finite, since padding may ignore everything


class Attention(nn.Module):
    """Multi-head self-attention with fused, biased query, key and value."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(embed_dim, 3 * embed_dim)
        self.proj = Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D) to (B, N, D).

        ``mask`` is False for tokens to ignore (B, 1, 1, N), or is added to the scores (B, H, N, N).
        """
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3)  # (B, H, 3, N, D/H)
        query, key, value = qkv.unbind(2)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, H, N, D/H)
        return self.proj(attended.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with an exact GELU in between."""

    def __init__(self, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = Linear(embed_dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D) to (B, N, D)."""
        hidden = self.fc1(tokens)
        # In place when no gradient needs the input, so that the widest tensor is not written twice.
        hidden = F.gelu(hidden) if torch.is_grad_enabled() else torch.ops.aten.gelu_(hidden)
        return self.fc2(hidden)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: int = 4, norm_eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attn = Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.mlp = MLP(embed_dim, mlp_ratio * embed_dim)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D) to (B, N, D); ``mask`` as for :class:`Attention`."""
        tokens = tokens + self.attn(self.norm1(tokens), mask)
        return tokens + self.mlp(self.norm2(tokens))


class PatchEmbed(nn.Module):
    """Split a spectrogram into patches and project each linearly to D channels."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.proj = nn.Conv2d(
            config.in_channels, config.embed_dim, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        """Map log_mel (B, C, F, T) to tokens (B, N, D) in frequency-major order, with the weights' dtype."""
        weight, bias = self.proj.weight, self.proj.bias
        if log_mel.device.type == "cpu" and weight.dtype in (torch.float16, torch.bfloat16):
            # In torch 2.14, the half-precision convolution for CPUs with AMX reads uninitialised memory if
            # the input is one patch long, and occasionally returns NaN.
            bias = None if bias is None else bias.float()
            tokens = F.conv2d(log_mel.float(), weight.float(), bias, self.proj.stride).to(weight.dtype)
        else:
            tokens = self.proj(log_mel.to(weight.dtype))
        return tokens.flatten(2).transpose(1, 2)  # (B, N, D)


def initialise_weights(module: nn.Module) -> None:
    """Initialise like masked autoencoders: Xavier-uniform linear layers, zero biases, unit norms."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


class Encoder(nn.Module):
    """The online encoder f_θ (paper, section III-A1): a pre-norm ViT with a class token."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        positions = sincos_positions(config.embed_dim, config.grid)
        if config.time_reach is not None:
            positions[..., : config.embed_dim // 2] = 0  # the half that encodes the position in time
            num_biases = 2 * config.time_reach + 1
            self.time_bias = nn.Parameter(torch.zeros(config.depth, config.num_heads, num_biases))
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio, config.norm_eps)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        if not self.cls_token.is_meta:  # where loaded weights replace the parameters
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; positions are unchanged."""
        self.apply(initialise_weights)
        projection = self.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def set_input_frames(self, num_frames: int) -> None:
        """Adapt the positions to windows of ``num_frames`` frames: interpolate if longer, cut if shorter."""
        config = replace(self.config, input_size=(self.config.input_size[0], num_frames))  # checks the size
        positions = resample_positions(self.pos_embed.data, self.config.grid, config.grid[1])
        self.pos_embed = nn.Parameter(positions.contiguous(), requires_grad=False)
        self.config = config

    def embed(self, log_mel: Tensor) -> Tensor:
        """Return patch tokens with their positions, without the class token.

        Inputs shorter than ``config.input_size`` use the first positions in time, longer ones interpolated
        positions. Frames after the last complete patch are ignored.

        Args:
            log_mel: Normalised spectrogram (B, C, F, T).

        Returns:
            Tokens (B, N, D), N = N_F · (T // patch frames), in frequency-major order.

        Raises:
            ConfigError: The number of channels, mels or frames does not fit the encoder.
        """
        channels, (mels, _), (_, patch_frames) = (
            self.config.in_channels,
            self.config.input_size,
            self.config.patch_size,
        )
        if log_mel.ndim != 4 or log_mel.shape[1:3] != (channels, mels) or log_mel.shape[3] < patch_frames:
            raise ConfigError(
                f"the encoder takes (B, {channels}, {mels}, T >= {patch_frames}), got {tuple(log_mel.shape)}."
            )
        tokens = self.patch_embed(log_mel)
        positions = resample_positions(self.pos_embed, self.config.grid, log_mel.shape[3] // patch_frames)
        return tokens + positions[:, 1:].to(tokens.dtype)

    def frames(self, log_mel: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed and encode a window, and stack the tokens of each time frame.

        Args:
            log_mel: As for :meth:`embed`.
            mask: As for :meth:`encode`.

        Returns:
            Frames (B, N_T, N_F·D).
        """
        return tokens_to_frames(self.encode(self.embed(log_mel), mask)[:, 1:], self.config.grid[0])

    def layer_frames(self, log_mel: Tensor) -> Tensor:
        """Like :meth:`frames`, for the output of every block; the last one is normalised.

        Returns:
            Frames of all layers (L, B, N_T, N_F·D).
        """
        return tokens_to_frames(self.encode_layers(self.embed(log_mel))[:, :, 1:], self.config.grid[0])

    @property
    def class_token(self) -> Tensor:
        """The class token with its position (1, 1, D)."""
        return self.cls_token + self.pos_embed[:, :1]

    def encode(self, tokens: Tensor, mask: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        """Prepend the class token and run the blocks and the final norm.

        Args:
            tokens: Patch tokens with positions (B, N, D): all of a window, or a subset.
            mask: (B, N) bool, False for tokens to ignore; None to use all.
            ids: Patches of a subset (B, N), as indices into the grid; None if the tokens are whole frames.

        Returns:
            Encoded tokens (B, 1 + N, D), the class token first.
        """
        encoded = tokens
        for after_block in self._run_blocks(tokens, mask, ids):
            encoded = after_block
        return self.norm(encoded)

    def encode_layers(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Like :meth:`encode`, for the output of every block; the last one is normalised.

        Returns:
            Tokens of all layers (L, B, 1 + N, D).
        """
        layers = list(self._run_blocks(tokens, mask, None))
        layers[-1] = self.norm(layers[-1])
        return torch.stack(layers)

    def _run_blocks(self, tokens: Tensor, mask: Tensor | None, ids: Tensor | None) -> Iterator[Tensor]:
        """Yield the class token and the tokens (B, 1 + N, D) after each block."""
        class_token = self.class_token.to(tokens.dtype)
        tokens = torch.cat([class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        if mask is not None:
            mask = F.pad(mask, (1, 0), value=True)[:, None, None]  # (B, 1, 1, 1 + N)
        for block, scores in zip(self.blocks, self._attention_scores(tokens, mask, ids), strict=True):
            tokens = block(tokens, scores)
            yield tokens

    def _attention_scores(
        self, tokens: Tensor, mask: Tensor | None, ids: Tensor | None
    ) -> list[Tensor] | list[Tensor | None]:
        """Return for each block the mask, or what to add to its scores if attention is limited in time."""
        reach = self.config.time_reach
        if reach is None:
            return [mask] * self.config.depth
        if ids is None:
            num_time = (tokens.shape[1] - 1) // self.config.grid[0]
            times = torch.arange(num_time, device=tokens.device).repeat(self.config.grid[0])[None]
        else:
            times = ids % self.config.grid[1]
        offsets = times[:, None] - times[:, :, None]  # (B, N, N): of keys from queries
        is_far = (offsets.abs() > reach)[:, None]
        scores = []
        for biases in self.time_bias:  # (H, 2·reach + 1)
            near = biases[:, (offsets.clamp(-reach, reach) + reach)].transpose(0, 1)  # (B, H, N, N)
            # Patches ignore the class token, which would carry the whole window to them.
            padded = F.pad(near.masked_fill(is_far, _IGNORED), (1, 0), value=_IGNORED)
            padded = F.pad(padded, (0, 0, 1, 0))
            if mask is not None:
                padded = padded.masked_fill(~mask, _IGNORED)
            scores.append(padded.to(tokens.dtype))
        return scores


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Select tokens (B, n, D) from (B, N, D) by ids (B, n)."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def tokens_to_frames(tokens: Tensor, num_freq: int) -> Tensor:
    """Stack the tokens of each time frame (paper, equation 4).

    Args:
        tokens: Patch tokens without the class token (..., N_F·N_T, D), frequency-major.
        num_freq: N_F.

    Returns:
        Frames (..., N_T, N_F·D).
    """
    return tokens.unflatten(-2, (num_freq, -1)).transpose(-3, -2).flatten(-2)


def mask_of_tokens(time_mask: Tensor, num_freq: int) -> Tensor:
    """Expand a mask over tokens along time (B, N_T) to all patch tokens (B, N_F·N_T)."""
    return time_mask[:, None].expand(-1, num_freq, -1).flatten(1)


def frames_to_tokens(frames: Tensor, num_freq: int) -> Tensor:
    """Invert :func:`tokens_to_frames`: frames (..., N_T, N_F·D) to tokens (..., N_F·N_T, D)."""
    return frames.unflatten(-1, (num_freq, -1)).transpose(-3, -2).flatten(-3, -2)


def compile_blocks(blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Compile transformer blocks in place: the same weights under the same names, faster on GPUs.

    Args:
        blocks: Blocks; each is compiled when it first runs, and copies of it are not.
        device: Device that they will run on.

    Raises:
        ConfigError: The device is a CPU, and no C++ compiler is installed.
    """
    compilers = [os.environ.get("CXX", ""), "g++", "c++", "clang++", "cl"]
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers if name):
        raise ConfigError(
            "compile=True needs a C++ compiler on a CPU: install g++, set the environment variable CXX, or "
            "omit compile."
        )
    for block in blocks:
        block.compile()
