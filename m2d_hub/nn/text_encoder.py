"""Text encoders of the shared space, loaded through transformers and pooled to one feature per text.

Shapes: B batch, P text tokens, E features of the text encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from m2d_hub.errors import CheckpointError, ConfigError, DownloadError, reason_of
from m2d_hub.io import importing

MAX_TOKENS = 512


@dataclass
class TextEncoder:
    """A transformers model with its tokenizer and pooling."""

    tokenizer: Any
    model: Any
    pooling: str

    @torch.no_grad()
    def encode(self, texts: list[str], device: torch.device) -> Tensor:
        """Return features (B, E) of texts, truncated to 512 tokens each."""
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(device)
        output = self.model.to(device)(**batch)
        if self.pooling == "own":
            return output["sentence_embeddings"].float()
        return pool(output["last_hidden_state"].float(), batch["attention_mask"], self.pooling)


def pool(tokens: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool the tokens of each text to one feature.

    Args:
        tokens: Text tokens (B, P, E).
        mask: 1 for tokens, 0 for padding (B, P).
        pooling: ``"mean"`` over the tokens, ``"cls"`` (the first) or ``"last"``; padding may be on either
            side.

    Returns:
        Features (B, E).
    """
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * weights).sum(1) / weights.sum(1)
    rows = torch.arange(len(tokens), device=tokens.device)
    if pooling == "cls":
        return tokens[rows, mask.argmax(1)]
    order = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    return tokens[rows, (mask * order).argmax(1)]


def load_text_encoder(
    source: str,
    pooling: str,
    *,
    tensors: dict[str, Tensor] | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
) -> TextEncoder:
    """Load a text encoder and its tokenizer; see :meth:`m2d_hub.nn.clap.Clap.load_text_encoder`.

    Args:
        source: Hugging Face repository, or a folder with its files.
        pooling: See :func:`pool`; ``"own"`` uses the model's ``sentence_embeddings``.
        tensors: Weights stored with the audio model, used instead of the repository's.
        local_files_only: Use the Hugging Face cache only.
        trust_remote_code: Allow code from the repository to run.
    """
    with importing("transformers", "encoding text", "clap"):
        from transformers import AutoConfig, AutoModel, AutoTokenizer
    options = {"local_files_only": local_files_only, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if tensors:
            model = AutoModel.from_config(
                AutoConfig.from_pretrained(source, **options), trust_remote_code=trust_remote_code
            )
            _fill(model, tensors, source)
        else:
            model = AutoModel.from_pretrained(source, **options)
    except OSError as error:
        raise DownloadError(
            f"The text encoder {source!r} could not be loaded: {reason_of(error)}. "
            f"To work offline, download it on another machine (hf download {source} --local-dir FOLDER) and "
            "pass the folder: model.clap.load_text_encoder('FOLDER')."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"The text encoder {source!r} cannot be used: {reason_of(error)}. If it needs code from its "
            "repository and you trust that code, use model.clap.load_text_encoder(trust_remote_code=True)."
        ) from error
    return TextEncoder(tokenizer, model.eval().requires_grad_(False), pooling)


def _fill(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    tensors = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    if not tensors.keys() & model.state_dict().keys():  # saved from a wrapper, which adds a prefix
        tensors = {name.partition(".")[2]: value for name, value in tensors.items()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"The text encoder's weights inside the checkpoint do not fit {source!r}: {str(error)[:1_000]}"
        ) from error
