"""One pre-training model: encoder, target encoder, predictor, loss and offline network.

Shapes: B batch, C channels, F mels, T frames, N patches, D encoder width, P predictor width, O width of one
prediction.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from m2d_hub.config import EncoderConfig
from m2d_hub.errors import CheckpointError, ConfigError
from m2d_hub.nn.encoder import Block, Encoder, initialise_weights, take_tokens
from m2d_hub.nn.linear import Linear
from m2d_hub.nn.positional import sincos_positions
from m2d_hub.pretrained.published_names import PARTS, part_of, published_state

from ..runs.processes import seeded
from .config import PredictorConfig, PretrainConfig
from .losses import cosine_loss, mse_loss, standardise
from .offline import EncodedTokens, build_offline

logger = logging.getLogger(__name__)


class Predictor(nn.Module):
    """Transformer g_θ over visible tokens and mask tokens (paper, equation 1)."""

    def __init__(self, config: PredictorConfig, encoder_dim: int, out_dim: int, grid: tuple[int, int]):
        super().__init__()
        self.embed = Linear(encoder_dim, config.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(sincos_positions(config.dim, grid), requires_grad=False)
        num_heads = config.dim // config.head_width
        self.blocks = nn.ModuleList(Block(config.dim, num_heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        self.projection = Linear(config.dim, out_dim)
        self.apply(initialise_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoded: Tensor, visible_ids: Tensor, masked_ids: Tensor) -> Tensor:
        """Predict the masked patches.

        Attention ignores the order of the tokens, so each token only needs its patch's position: nothing is
        sorted into the grid and back.

        Args:
            encoded: Output of the online encoder (B, 1 + n_visible, D), the class token first.
            visible_ids: Patches of ``encoded`` (B, n_visible).
            masked_ids: Patches to predict (B, n_masked).

        Returns:
            (B, n_masked, O), in the order of ``masked_ids``.
        """
        batch, num_masked = masked_ids.shape
        mask_tokens = self.mask_token.expand(batch, num_masked, -1)
        tokens = torch.cat([self.embed(encoded), mask_tokens], dim=1)  # (B, 1 + N, P)
        ids = torch.cat([visible_ids, masked_ids], dim=1) + 1
        ids = torch.cat([torch.zeros_like(ids[:, :1]), ids], dim=1)
        tokens = tokens + self.pos_embed[0, ids]
        for block in self.blocks:
            tokens = block(tokens)
        return self.projection(self.norm(tokens[:, -num_masked:]))


class TargetEncoder(nn.Module):
    """Momentum encoder f_ξ (paper, section III-A1).

    Its blocks and norm start from separate random weights; patch embedding, positions and class token are
    those of the online encoder. Gradients never reach it.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio, config.norm_eps)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.apply(initialise_weights)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, tokens: Tensor, class_token: Tensor) -> Tensor:
        """Encode patch tokens.

        Args:
            tokens: Embedded patches with positions (B, N, D).
            class_token: With its position (1, 1, D).

        Returns:
            Encoded tokens (B, N, D), without the class token.
        """
        tokens = torch.cat([class_token.expand(len(tokens), -1, -1), tokens], dim=1)  # (B, 1 + N, D)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 1:]

    @torch.no_grad()
    def update(self, online: Encoder, decay: float) -> None:
        """Move the weights towards the online encoder's: ξ ← τ·ξ + (1 − τ)·θ (paper, equation 3)."""
        moved: list[Tensor] = [*self.blocks.parameters(), *self.norm.parameters()]
        others: list[Tensor] = [*online.blocks.parameters(), *online.norm.parameters()]
        torch._foreach_lerp_(moved, others, 1.0 - decay)


@dataclass
class LossTerms:
    """Losses of one forward pass, with what they were computed from."""

    total: Tensor  # equation 6 of the paper, a scalar
    m2d: Tensor  # loss of the masked prediction, a scalar
    offline: Tensor | None  # loss of the offline network, a scalar; None where there is none
    prediction: Tensor  # (B, n_masked, D), or pixels of the patches for msm-mae
    encoded: Tensor  # class token and visible tokens of the online encoder (B, 1 + n_visible, D), detached


class Pretrainer(nn.Module):
    """Masked Modeling Duo and its variants (paper, section III)."""

    def __init__(self, config: PretrainConfig):
        super().__init__()
        self.config = config = config.resolve()
        self.encoder = Encoder(config.encoder)
        predicts_pixels = config.method == "msm-mae"
        out_dim = config.patch_pixels if predicts_pixels else config.embed_dim
        self.predictor = Predictor(config.predictor, config.embed_dim, out_dim, config.grid)
        self.target_encoder = None if predicts_pixels else TargetEncoder(config.encoder)
        self.offline = (
            None if config.offline is None else build_offline(config.offline, config.embed_dim, config.grid)
        )
        self.norm_stats: Tensor
        self.register_buffer("norm_stats", torch.tensor([config.mean, config.std], dtype=torch.float32))

    def forward(
        self, log_mel: Tensor, visible_ids: Tensor, masked_ids: Tensor, offline_target: Tensor | None = None
    ) -> LossTerms:
        """Compute the losses of one batch.

        Args:
            log_mel: Normalised spectrograms (B, C, F, T).
            visible_ids: Patches that the online encoder sees (B, n_visible), frequency-major.
            masked_ids: Patches to predict (B, n_masked).
            offline_target: Target of the offline network: labels (B, K), per-frame features
                (B, N_T, K), or captions' features (B, K).
        """
        self._check_offline_target(offline_target)
        tokens = self.encoder.embed(log_mel)  # (B, N, D)
        encoded = self.encoder.encode(take_tokens(tokens, visible_ids), ids=visible_ids)  # (B, 1 + n, D)
        prediction = self.predictor(encoded, visible_ids, masked_ids)
        with torch.no_grad():
            target = self._target(log_mel, tokens, masked_ids)
        loss_function = cosine_loss if self.config.loss == "cosine" else mse_loss
        m2d = loss_function(prediction, target)
        total = self.config.m2d_weight * m2d
        offline = None
        if self.offline is not None and self.config.offline is not None:
            predicted = None if self.config.method == "msm-mae" else prediction
            seen = EncodedTokens(encoded[:, 1:], predicted, visible_ids, masked_ids)
            offline = self.offline(seen, offline_target)
            total = total + self.config.offline.weight * offline
        return LossTerms(total, m2d, offline, prediction, encoded.detach())

    def update_target_encoder(self, decay: float) -> None:
        """Take one EMA step of the target encoder (paper, equation 3); nothing for msm-mae."""
        if self.target_encoder is not None:
            self.target_encoder.update(self.encoder, decay)

    def load_published(self, tensors: dict[str, Tensor]) -> None:
        """Load weights under their published names.

        The encoder must be complete. Of predictor, target encoder, offline network and statistics, a missing
        part keeps its initial weights and a part that this method lacks is ignored; both are logged.

        Raises:
            CheckpointError: Tensors are missing, unknown, or of another shape.
        """
        present = published_state(self.state_dict())
        tensors = {name: torch.as_tensor(tensor) for name, tensor in tensors.items()}
        own, given = {part_of(name) for name in present}, {part_of(name) for name in tensors}
        for part in PARTS:
            if part in own - given - {"encoder"}:
                logger.warning("The weights hold no %s: it keeps its initial weights.", part)
                present = {name: tensor for name, tensor in present.items() if part_of(name) != part}
            if part in given - own:
                logger.warning("This method has no %s: that of the weights is ignored.", part)
                tensors = {name: tensor for name, tensor in tensors.items() if part_of(name) != part}
        shapes = {
            name: f"{name} {tuple(tensors[name].shape)} (expected {tuple(present[name].shape)})"
            for name in sorted(present.keys() & tensors)
            if present[name].shape != tensors[name].shape
        }
        missing, unknown = sorted(present.keys() - tensors), sorted(tensors.keys() - present)
        if missing or unknown or shapes:
            raise CheckpointError(
                f"the weights do not fit this pre-training configuration: missing {missing or 'none'}; "
                f"unknown {unknown or 'none'}; of another shape {list(shapes.values()) or 'none'}. "
                + _advice({part_of(name) for name in (*missing, *unknown, *shapes)})
            )
        with torch.no_grad():
            for name, tensor in present.items():
                tensor.copy_(tensors[name])

    def export_published(self) -> dict[str, Tensor]:
        """Return all weights under their published names, copied to the CPU."""
        state = published_state(self.state_dict())
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def _target(self, log_mel: Tensor, tokens: Tensor, masked_ids: Tensor) -> Tensor:
        if self.target_encoder is None:
            target = take_tokens(patchify(log_mel, self.config.patch_size), masked_ids)
        else:
            class_token = self.encoder.class_token
            if self.config.method == "m2d-all-patches":
                target = take_tokens(self.target_encoder(tokens, class_token), masked_ids)
            else:
                target = self.target_encoder(take_tokens(tokens, masked_ids), class_token)
        return standardise(target) if self.config.standardise_target else target

    def _check_offline_target(self, offline_target: Tensor | None) -> None:
        if self.offline is not None and offline_target is None:
            raise ConfigError("this method has an offline network: give offline_target, got None.")
        if self.offline is None and offline_target is not None:
            raise ConfigError(
                f"this method has no offline network, got a target of {tuple(offline_target.shape)} for it: "
                "set offline in PretrainConfig, or give none."
            )


def _advice(parts: set[str | None]) -> str:
    """Return a hint for parts of weights that do not fit."""
    if parts & {"encoder", None}:
        return "Check input_size, patch_size, embed_dim and depth."
    names = " and the ".join(sorted(filter(None, parts)))
    return (
        f'The encoder fits, but not the {names}: set start_parts="encoder" to start from the encoder alone, '
        "or give these parts the sizes of the weights."
    )


def encoder_part(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights, under published names, of the encoder and of unknown parts."""
    return {name: tensor for name, tensor in tensors.items() if part_of(name) in ("encoder", None)}


def patchify(log_mel: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Return the pixels (B, N, patch mels · patch frames · C) of patches of a spectrogram (B, C, F, T)."""
    mels, frames = patch_size
    log_mel = log_mel[..., : log_mel.shape[-1] // frames * frames]
    return rearrange(log_mel, "b c (f p) (t q) -> b (f t) (p q c)", p=mels, q=frames)


def build_pretrainer(config: PretrainConfig) -> Pretrainer:
    """Build a pre-training model with fresh random weights."""
    return Pretrainer(config)


def build_started(config: PretrainConfig, weights: dict[str, Tensor] | None) -> Pretrainer:
    """Build a model with the random weights of the seed, or published tensors that it starts from."""
    with seeded(config.seed):
        pretrainer = build_pretrainer(config)
    if weights is not None:
        pretrainer.load_published(encoder_part(weights) if config.start_parts == "encoder" else weights)
        pretrainer.norm_stats.copy_(torch.tensor([config.frontend.mean, config.frontend.std]))
    has_target = weights is not None and config.start_parts == "all" and "target_norm.weight" in weights
    if config.target_start == "encoder" and not has_target:
        pretrainer.update_target_encoder(0.0)
    return pretrainer
