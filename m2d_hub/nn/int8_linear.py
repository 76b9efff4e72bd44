"""8-bit linear layers for CPUs, with one scale per token and one per output channel.

Each token is scaled by its largest value, so that a clip's embedding does not depend on the rest of its
batch, as it would with one scale for the whole tensor.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from m2d_hub.errors import ConfigError
from m2d_hub.nn.encoder import Encoder

# Pairs of products of a 7-bit and an 8-bit number fit into 16 bits, in which AVX2 adds them.
TOKEN_LEVELS, TOKEN_ZERO_POINT = 63, 64
WEIGHT_LEVELS = 127


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and 7-bit tokens, for inference.

    The weights exist only in the packed form of the matrix product, so that no copy can be out of date.
    """

    bias: Tensor | None

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / WEIGHT_LEVELS
        self._product = _packed((weight / scale[:, None]).round().to(torch.int8), scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, features: Tensor) -> Tensor:
        """Map features (..., in_features) to (..., out_features), with the dtype of the features.

        Raises:
            ConfigError: The features are not on the CPU.
        """
        if features.device.type != "cpu":
            raise ConfigError(
                f"8-bit weights only run on the CPU, but the input is on {features.device}; load the "
                "model with another dtype for that device."
            )
        tokens = features.reshape(-1, self.in_features).float()
        peak = torch.maximum(tokens.amax(dim=1, keepdim=True), tokens.amin(dim=1, keepdim=True).neg())
        token_scale = peak.clamp_min(1e-12) / TOKEN_LEVELS
        projected = token_scale * torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            tokens / token_scale, 1.0, TOKEN_ZERO_POINT, self._product
        )
        if self.bias is not None:
            projected += self.bias
        return projected.to(features.dtype).view(*features.shape[:-1], self.out_features)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return copies of the 8-bit weights (out_features, in_features) and their scales (out_features,)."""
        weight = torch.ops.quantized.linear_unpack(self._product)[0]
        return weight.int_repr(), weight.q_per_channel_scales().float()

    def get_extra_state(self) -> tuple[Tensor, Tensor]:
        """Return the weights for a state dict."""
        return self.weights()

    def set_extra_state(self, state: tuple[Tensor, Tensor]) -> None:
        """Load weights from a state dict."""
        self._product = _packed(*state)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_product": self.weights()}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__({**state, "_product": _packed(*state["_product"])})


def _packed(weight: Tensor, scale: Tensor) -> torch.ScriptObject:
    """Pack weights (out_features, in_features) and scales (out_features,) for the matrix product."""
    with warnings.catch_warnings(), torch.device("cpu"):
        # torch deprecates quantised tensors; quantize_encoder checks that this version has them.
        warnings.filterwarnings("ignore", category=UserWarning)
        no_offset = torch.zeros(len(scale), dtype=torch.int64)
        quantised = torch._make_per_channel_quantized_tensor(weight, scale.double(), no_offset, 0)
        return torch.ops.quantized.linear_prepack(quantised, None)


def quantize_encoder(encoder: Encoder) -> Encoder:
    """Replace the linear layers of the encoder's blocks by 8-bit ones, in place.

    Raises:
        ConfigError: This build of torch has no 8-bit matrix product for the CPU.
    """
    has_product = hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
    if not has_product or not {"x86", "fbgemm"} & set(torch.backends.quantized.supported_engines):
        raise ConfigError(
            "dtype='int8' needs a torch build with the x86 quantised engine; use torch.float32 on this "
            "machine."
        )
    for parent in [module for block in encoder.blocks for module in block.modules()]:
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
    return encoder
