"""Published checkpoints (``.pth`` of the authors' release, in any of its layouts) to this package's tensors.

Sizes come from the tensors where they can, then from the file's ``args``, then from the folder's name; what
none of them tells must be given. Loading never runs code from the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from m2d_hub.config import ClapConfig, EncoderConfig, FrontendConfig, HeadConfig, ModelConfig
from m2d_hub.errors import CheckpointError, ConfigError, first_few
from m2d_hub.io import reading
from m2d_hub.nn.clap import INITIAL_LOGIT_SCALE
from m2d_hub.pretrained.audioset_labels import AUDIOSET_LABELS
from m2d_hub.pretrained.published_names import part_of
from m2d_hub.pretrained.registry import NTT_LICENSE, RELEASES
from m2d_hub.pretrained.tensor_file import read_tensors
from m2d_hub.pretrained.tensors import FETCH_AGAIN, check_finite

# What training wrappers put before the encoder's names, the longest first.
_PREFIXES = (
    "module.ar.runtime.backbone.",
    "ar.runtime.backbone.",
    "runtime.backbone.",
    "backbone.",
    "module.",
)
_HEAD = {
    "head.norm.running_mean": "head.norm.running_mean",
    "head.norm.running_var": "head.norm.running_var",
    "head.norm.num_batches_tracked": "head.norm.num_batches_tracked",
    "head.mlp.mlp.0.weight": "head.linear.weight",
    "head.mlp.mlp.0.bias": "head.linear.bias",
}
_KEPT_IN = {"encoder": "encoder", "statistics": "encoder", "text space": "clap", "text encoder": "clap"}
_IGNORED = re.compile(r"(^|\.)to_spec\.|num_batches_tracked$")
_FOLDER_SIZES = re.compile(r"(\d+)x(\d+)p(\d+)x(\d+)(p32k)?")
_TEXT_ENCODERS: dict[str, tuple[str, Literal["mean", "cls", "own"]]] = {
    "A": ("thenlper/gte-base", "mean"),
    "B": ("google-bert/bert-base-uncased", "cls"),
    "N": ("nvidia/NV-Embed-v2", "own"),
}


@dataclass(frozen=True)
class Published:
    """A published checkpoint, read.

    ``tensors`` carry the names of :class:`m2d_hub.M2D`; ``pretraining`` the predictor, target encoder and
    offline network under their published names.
    """

    tensors: dict[str, Tensor]
    pretraining: dict[str, Tensor]
    config: ModelConfig


def read_published(
    path: str | Path,
    *,
    sample_rate: int | None = None,
    name: str | None = None,
    folder_name: str | None = None,
) -> Published:
    """Reads a published ``.pth``, a kept checkpoint of a run, or ``.safetensors`` with the published names.

    Args:
        path: The file.
        sample_rate: Hz, needed only where neither the file's ``args`` nor the folder's name says it.
        name: Name of the model in its configuration; the folder's name by default.
        folder_name: The published folder's name, where the file no longer lies in it.

    Raises:
        CheckpointError: The file is unsafe, damaged, of an unknown layout, or holds non-finite weights.
        ConfigError: Its sample rate is told nowhere, or contradicts ``sample_rate``.
    """
    path = Path(path)
    raw, args = read_tensors(path)
    sorted_tensors = _sort_tensors(raw, path)
    check_finite(sorted_tensors["encoder"] | sorted_tensors["head"] | sorted_tensors["clap"], path)
    folder_name = folder_name or path.parent.name
    with reading(path, "weights of an M2D", FETCH_AGAIN, CheckpointError):  # their shapes may be any
        config = _infer_config(sorted_tensors, args, folder_name, path, sample_rate, name)
    norm_stats = "norm_stats"
    tensors = {
        f"encoder.{key}": value for key, value in sorted_tensors["encoder"].items() if key != norm_stats
    }
    if sorted_tensors["head"]:
        tensors |= {"head.norm.num_batches_tracked": torch.tensor(0)} | sorted_tensors["head"]
    if sorted_tensors["clap"]:
        tensors["clap.logit_scale"] = torch.tensor(INITIAL_LOGIT_SCALE)  # some files leave it out
    tensors |= {f"clap.{key}": value for key, value in sorted_tensors["clap"].items()}
    return Published(tensors, sorted_tensors["pretraining"], config)


def _sort_tensors(raw: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """Strips the wrappers' prefixes and tells encoder, head, CLAP and pre-training tensors apart."""
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "head": {}, "clap": {}, "pretraining": {}}
    unknown = []
    for published, tensor in raw.items():
        key = next((published.removeprefix(p) for p in _PREFIXES if published.startswith(p)), published)
        if key == "logit_scale":
            parts["clap"][key] = tensor.reshape(())
        elif key in _HEAD:
            parts["head"][_HEAD[key]] = tensor
        elif _IGNORED.search(key):
            continue
        elif (part := part_of(key)) is not None:
            parts[_KEPT_IN.get(part, "pretraining")][key] = tensor
        else:
            unknown.append(published)
    if unknown:
        raise CheckpointError(
            f"{path} holds tensors of an unknown layout: {first_few(unknown)}. Known are the published "
            "M2D encoder, head, CLAP and pre-training names."
        )
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    if missing := [key for key in needed if key not in parts["encoder"]]:
        raise CheckpointError(f"{path} is no M2D checkpoint: it lacks {', '.join(missing)}.")
    return parts


def _infer_config(
    parts: Mapping[str, dict[str, Tensor]],
    args: Mapping[str, Any],
    folder_name: str,
    path: Path,
    sample_rate: int | None,
    name: str | None,
) -> ModelConfig:
    encoder = parts["encoder"]
    folder = _FOLDER_SIZES.search(folder_name)
    rate = _sample_rate(args, folder, path, sample_rate)
    mean, std = encoder["norm_stats"].flatten().tolist() if "norm_stats" in encoder else (-7.1, 4.2)
    encoder_config = _encoder_config(encoder, args, folder, path)
    head = _head_config(parts["head"], encoder_config, path)
    return ModelConfig(
        frontend=FrontendConfig.for_sample_rate(
            rate, n_mels=encoder_config.input_size[0], mean=mean, std=std
        ),
        encoder=encoder_config,
        head=head,
        labels=AUDIOSET_LABELS if head and head.num_classes == len(AUDIOSET_LABELS) else None,
        clap=_clap_config(parts["clap"], args, folder_name),
        name=name or args.get("run") or folder_name,
        license=None if "run" in args else NTT_LICENSE,
        source=None if "run" in args else RELEASES,
    )


def _sample_rate(args: Mapping[str, Any], folder: re.Match | None, path: Path, given: int | None) -> int:
    told = args.get("sr") or args.get("sample_rate")
    if told is None and folder is not None:
        told = 32_000 if folder[5] else 16_000
    if told is None and given is None:
        raise ConfigError(
            f"{path} does not say its sample rate: neither its settings nor its folder's name "
            "(…80x608p16x16…) does. Give it: load_model(..., sample_rate=16000), or 32000 for weights named "
            "p32k."
        )
    if told is not None and given is not None and int(told) != given:
        raise ConfigError(
            f"{path} is for {told} Hz, but sample_rate={given} was given; leave sample_rate out."
        )
    return int(told or given)  # type: ignore[arg-type]


def _encoder_config(
    encoder: Mapping[str, Tensor], args: Mapping[str, Any], folder: re.Match | None, path: Path
) -> EncoderConfig:
    embed_dim, in_channels, *patch_size = encoder["patch_embed.proj.weight"].shape
    told = [tuple(args["input_size"])] if args.get("input_size") else []
    told += [(int(folder[1]), int(folder[2]))] if folder else []
    num_patches = encoder["pos_embed"].shape[1] - 1
    grid = _grid(encoder["pos_embed"])
    fitting = [
        size
        for size in told
        if (size[0] // patch_size[0]) * (size[1] // patch_size[1]) == num_patches
        and grid in (None, (size[0] // patch_size[0], size[1] // patch_size[1]))
    ]
    if not fitting and grid is None:
        raise CheckpointError(
            f"{path} does not say its input size: its {num_patches} positions are no sin-cos table, and "
            "neither its settings nor its folder's name (…80x608p16x16…) fits them."
        )
    mels, frames = (
        fitting[0] if fitting else [n * size for n, size in zip(grid or (), patch_size, strict=True)]
    )
    depth = 1 + max(int(key.split(".")[1]) for key in encoder if key.startswith("blocks."))
    return EncoderConfig(
        input_size=(int(mels), int(frames)),
        patch_size=(patch_size[0], patch_size[1]),
        in_channels=in_channels,
        embed_dim=embed_dim,
        depth=depth,
        head_width=int(args.get("head_width") or EncoderConfig.head_width),
        mlp_ratio=encoder["blocks.0.mlp.fc1.weight"].shape[0] // embed_dim,
    )


def _grid(pos_embed: Tensor) -> tuple[int, int] | None:
    """(N_F, N_T) of a sin-cos table, whose second half of channels is constant along time; else None."""
    frequency_half = pos_embed[0, 1:, pos_embed.shape[2] // 2 :]
    same_as_first = (frequency_half - frequency_half[:1]).abs().amax(dim=1) < 1e-3
    num_time = int(same_as_first.int().cumprod(dim=0).sum())
    num_freq, rest = divmod(len(frequency_half), num_time)
    if rest or int(same_as_first.sum()) != num_time:
        return None
    return num_freq, num_time


def _head_config(head: Mapping[str, Tensor], encoder: EncoderConfig, path: Path) -> HeadConfig | None:
    if not head:
        return None
    if "head.linear.weight" not in head:
        raise CheckpointError(f"{path} holds a head without its linear layer (module.head.mlp.mlp.0.weight).")
    num_classes, in_features = head["head.linear.weight"].shape
    if in_features == encoder.embed_dim:
        return HeadConfig(num_classes, features="tokens")
    if in_features == encoder.frame_dim:
        return HeadConfig(num_classes, features="frames")
    raise CheckpointError(
        f"{path} has a head for {in_features} features; {encoder.embed_dim} (mean token) or "
        f"{encoder.frame_dim} (mean frame) are known."
    )


def _clap_config(clap: Mapping[str, Tensor], args: Mapping[str, Any], folder_name: str) -> ClapConfig | None:
    if not clap:
        return None
    blocks = {key.split(".")[2] for key in clap if key.startswith("audio_proj.sem_blocks.")}
    letter = re.search(r"p\d+k?p([ABN])", folder_name)
    text_encoder, pooling = args.get("text") or _TEXT_ENCODERS[letter[1] if letter else "A"]
    values: dict[str, Any] = {"text_projection": "none"}
    if "text_proj.weight" in clap:
        values = {"text_projection": "linear", "text_dim": clap["text_proj.weight"].shape[1]}
    elif "text_proj.0.weight" in clap:
        hidden_dim, text_dim = clap["text_proj.0.weight"].shape
        values = {"text_projection": "mlp", "text_dim": text_dim, "text_hidden_dim": hidden_dim}
    if "audio_proj.0.weight" in clap:
        values |= {
            "audio_hidden_dim": clap["audio_proj.0.weight"].shape[0],
            "dim": clap["audio_proj.2.weight"].shape[0],
        }
    else:
        values |= {"audio_blocks": len(blocks), "dim": clap["audio_proj.norm.weight"].shape[0]}
    if values["text_projection"] == "none":
        values["text_dim"] = values["dim"]
    return ClapConfig(text_encoder=text_encoder, text_pooling=pooling, **values)
