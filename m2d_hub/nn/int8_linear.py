"""Linear layers in 8-bit integers for CPUs, with one scale per token and one per output channel.

Each token is scaled by its own largest value, so that a clip's embedding does not depend on what else is in
its batch, as it would with one scale for the whole tensor.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from m2d_hub.errors import ConfigError
from m2d_hub.nn.encoder import Encoder
from m2d_hub.nn.packed_linear import Linear

# Products of a 7-bit and an 8-bit number can be added in pairs within 16 bits, as AVX2 adds them.
TOKEN_LEVELS, TOKEN_ZERO_POINT = 63, 64
WEIGHT_LEVELS = 127


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and 7-bit tokens, for inference."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / WEIGHT_LEVELS
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())
        self._packed: torch.ScriptObject | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (..., in_features) to (..., out_features)."""
        tokens = features.reshape(-1, self.in_features).float()
        peak = torch.maximum(tokens.amax(dim=1, keepdim=True), tokens.amin(dim=1, keepdim=True).neg())
        token_scale = peak.clamp_min(1e-12) / TOKEN_LEVELS
        products = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            tokens / token_scale, 1.0, TOKEN_ZERO_POINT, self._pack()
        )
        projected = (
            products * token_scale if self.bias is None else torch.addcmul(self.bias, products, token_scale)
        )
        return projected.view(*features.shape[:-1], self.out_features)

    def _pack(self) -> torch.ScriptObject:
        if self._packed is None:
            with warnings.catch_warnings():
                # torch announces that quantised tensors will go; pyproject bounds torch below that.
                warnings.filterwarnings("ignore", category=UserWarning)
                weight = torch._make_per_channel_quantized_tensor(
                    self.weight,
                    self.weight_scale.double(),
                    torch.zeros(self.out_features, dtype=torch.int64),
                    0,
                )
                self._packed = torch.ops.quantized.linear_prepack(weight, None)
        return self._packed

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_packed": None}


def quantize_encoder(encoder: Encoder) -> Encoder:
    """Replaces the linear layers of the encoder's blocks by 8-bit ones, in place.

    Raises:
        ConfigError: This build of torch has no 8-bit matrix product for the CPU.
    """
    if not {"x86", "fbgemm"} & set(torch.backends.quantized.supported_engines):
        raise ConfigError(
            "dtype='int8' needs a torch build with the x86 quantised engine; use torch.float32 on this "
            "machine."
        )
    for parent in [module for block in encoder.blocks for module in block.modules()]:
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                setattr(parent, name, Int8Linear(child))
    return encoder
