"""The authors' checkpoint layouts: tensor names, sizes and heads, converted to this package's.

Sizes come from the tensors where possible, then from the file's ``args``, then from the folder's name; the
sample rate must be given if none of them states it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from operator import floordiv
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from m2d_hub.config import ClapConfig, EncoderConfig, FrontendConfig, HeadConfig, HeadFeatures, ModelConfig
from m2d_hub.errors import CheckpointError, ConfigError, first_few
from m2d_hub.io import reading
from m2d_hub.nn.clap import INITIAL_LOGIT_SCALE, Clap
from m2d_hub.nn.encoder import Encoder
from m2d_hub.nn.head import Head
from m2d_hub.pretrained.checkpoint import (
    CONFIG_FILE,
    FETCH_AGAIN,
    RUN_STEP,
    Checkpoint,
    assign_tensors,
    load_checkpoint,
    model_files,
    read_pickled,
)
from m2d_hub.pretrained.published_names import AUDIOSET_LABELS, part_of, published_state
from m2d_hub.pretrained.registry import NTT_LICENSE, RELEASES, ModelInfo

# Prefixes that training wrappers add to the names.
_PREFIX = re.compile(r"(module\.)?(ar\.)?(runtime\.)?(backbone\.)?")
_KEPT_IN = {"encoder": "encoder", "statistics": "encoder", "text space": "clap", "text encoder": "clap"}
_IGNORED = re.compile(r"(^|\.)to_spec\.|num_batches_tracked$")
_FOLDER_SIZES = re.compile(r"(\d+)x(\d+)p(\d+)x(\d+)(p32k)?")
_TEXT_ENCODERS: dict[str, tuple[str, Literal["mean", "cls", "own"]]] = {
    "A": ("thenlper/gte-base", "mean"),
    "B": ("google-bert/bert-base-uncased", "cls"),
    "N": ("nvidia/NV-Embed-v2", "own"),
}


def read_weights(path: Path, sample_rate: int | None = None, dtype: torch.dtype | None = None) -> Checkpoint:
    """Read a model's folder or file, of any layout; ``dtype`` converts weights of this package's layout.

    Raises:
        CheckpointError: The weights are unsafe, damaged, non-finite, or of an unknown layout.
        ConfigError: The sample rate is not stated anywhere.
    """
    weights = model_files(path)[0]
    if weights.suffix == ".safetensors":
        return load_checkpoint(weights, dtype)
    return read_published(weights, sample_rate=sample_rate)


def read_published(
    path: str | Path,
    *,
    sample_rate: int | None = None,
    name: str | None = None,
    folder_name: str | None = None,
) -> Checkpoint:
    """Read a published ``.pth``, or a training run's checkpoint.

    The sample rate is only needed if neither the file nor its folder's name states it. ``name`` is that of
    the model, and ``folder_name`` that of the published folder; both default to the file's folder.

    Raises:
        CheckpointError: The file is unsafe, damaged, of an unknown layout, or has non-finite weights.
        ConfigError: Its sample rate is not stated.
    """
    path = Path(path)
    raw, args = read_pickled(path)
    if RUN_STEP in args:
        raw, args = _of_run(path, args[RUN_STEP], raw)
    parts = _sort_tensors(raw, path)
    folder_name = folder_name or path.parent.name
    with reading(path, "weights of an M2D", FETCH_AGAIN, CheckpointError):  # the shapes are unchecked
        config = _infer_config(parts, args, folder_name, path, sample_rate, name)
    tensors = {f"encoder.{key}": value for key, value in parts["encoder"].items() if key != "norm_stats"}
    if parts["head"]:
        tensors |= {"head.norm.num_batches_tracked": torch.tensor(0)} | parts["head"]
    if parts["clap"]:
        tensors["clap.logit_scale"] = torch.tensor(INITIAL_LOGIT_SCALE)  # not in all files
    tensors |= {f"clap.{key}": value for key, value in parts["clap"].items()}
    return Checkpoint(tensors, config, parts["pretraining"])


def check_published(published: Checkpoint, info: ModelInfo, origin: object) -> None:
    """Compare a converted checkpoint with the registry's facts, and its tensors with a model's."""
    config = published.config
    found = {
        "sample_rate": config.frontend.sample_rate,
        "input_size": config.encoder.input_size,
        "patch_size": config.encoder.patch_size,
        "embed_dim": config.encoder.embed_dim,
        "depth": config.encoder.depth,
        "num_classes": None if config.head is None else config.head.num_classes,
        "text_space": config.clap is not None,
        "pretraining": bool(published.pretraining),
    }
    wrong = [
        f"{field} is {value} but must be {getattr(info, field)}"
        for field, value in found.items()
        if value != getattr(info, field)
    ]
    if wrong:
        raise CheckpointError(f"{origin} is not {info.name!r} as published: {'; '.join(wrong)}.")
    with torch.device("meta"):
        model = nn.ModuleDict({"encoder": Encoder(config.encoder)})
        if config.head is not None:
            model["head"] = Head(config.head, config.head_dim)
        if config.clap is not None:
            model["clap"] = Clap(config.clap, config.encoder.embed_dim)
    assign_tensors(model, published.tensors, origin)


def _of_run(path: Path, step: int, model: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of ``RUN/checkpoints/step-….pt``, and the sizes from ``RUN/config.json``."""
    if any(name.startswith("backbone.") for name in model):
        raise CheckpointError(
            f"{path} is a checkpoint of an unfinished fine-tuning; run it to its end and give export/."
        )
    run = path.absolute().parent.parent / CONFIG_FILE
    hint = f"Leave the file in its run's folder, beside {run}, or load the run's export/."
    with reading(path, "a run's checkpoint", hint, CheckpointError):
        values = json.loads(run.read_text(encoding="utf-8"))
        config, offline = values["config"], values["config"].get("offline") or {}
        settings = {
            "run": f"{values.get('preset', 'run')}, step {step}",
            "input_size": config["input_size"],
            "sr": config["sample_rate"],
            "head_width": config.get("head_width"),
            "text": (offline["text_encoder"], offline["text_pooling"]) if "text_encoder" in offline else None,
        }
    return published_state(model), settings


def _sort_tensors(raw: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """Strip the wrappers' prefixes and sort tensors into encoder, head, CLAP and pre-training."""
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "head": {}, "clap": {}, "pretraining": {}}
    unknown = []
    for published, tensor in raw.items():
        key = _PREFIX.sub("", published, count=1)
        if key == "logit_scale":
            parts["clap"][key] = tensor.reshape(())
        elif _IGNORED.search(key):
            continue
        elif key.startswith("head."):
            parts["head"][key.replace("mlp.mlp.0", "linear")] = tensor
        elif (part := part_of(key)) is not None:
            parts[_KEPT_IN.get(part, "pretraining")][key] = tensor
        else:
            unknown.append(published)
    if unknown:
        raise CheckpointError(
            f"{path} has tensors of an unknown layout: {first_few(unknown)}. Give a file with the published "
            "names of M2D's encoder, head, CLAP or pre-training."
        )
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    if missing := [key for key in needed if key not in parts["encoder"]]:
        raise CheckpointError(f"{path} is not an M2D checkpoint: it lacks {', '.join(missing)}.")
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
    encoder_config = _encoder_config(encoder, args, folder)
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
    stated = args.get("sr") or args.get("sample_rate")
    if stated is None and folder is not None:
        stated = 32_000 if folder[5] else 16_000
    if stated is None and given is None:
        raise ConfigError(
            f"{path} does not state its sample rate, neither in its settings nor in its folder's name "
            "(…80x608p16x16…). Give it: load_model(..., sample_rate=16000), or 32000 for weights named p32k."
        )
    return int(stated or given)  # type: ignore[arg-type]


def _encoder_config(
    encoder: Mapping[str, Tensor], args: Mapping[str, Any], folder: re.Match | None
) -> EncoderConfig:
    embed_dim, in_channels, *patch_size = encoder["patch_embed.proj.weight"].shape
    grid = _grid(encoder["pos_embed"])
    stated = [tuple(args["input_size"])] if args.get("input_size") else []
    stated += [(int(folder[1]), int(folder[2]))] if folder else []
    stated += [(grid[0] * patch_size[0], grid[1] * patch_size[1])]
    fitting = (size for size in stated if tuple(map(floordiv, size, patch_size)) == grid)
    mels, frames = next(fitting)
    return EncoderConfig(
        input_size=(int(mels), int(frames)),
        patch_size=(patch_size[0], patch_size[1]),
        in_channels=in_channels,
        embed_dim=embed_dim,
        depth=1 + max(int(key.split(".")[1]) for key in encoder if key.startswith("blocks.")),
        head_width=int(args.get("head_width") or EncoderConfig.head_width),
        mlp_ratio=encoder["blocks.0.mlp.fc1.weight"].shape[0] // embed_dim,
    )


def _grid(pos_embed: Tensor) -> tuple[int, int]:
    """Return (N_F, N_T) of a sin-cos table, whose second half of channels is constant along time."""
    frequency_half = pos_embed[0, 1:, pos_embed.shape[2] // 2 :]
    same_as_first = (frequency_half - frequency_half[:1]).abs().amax(dim=1) < 1e-3
    num_time = int(same_as_first.int().cumprod(dim=0).sum())
    num_freq, rest = divmod(len(frequency_half), num_time)
    if rest or int(same_as_first.sum()) != num_time:
        raise ValueError("its positions are not a sin-cos table")
    return num_freq, num_time


def _head_config(head: Mapping[str, Tensor], encoder: EncoderConfig, path: Path) -> HeadConfig | None:
    if not head:
        return None
    num_classes, in_features = head["head.linear.weight"].shape
    kinds: dict[int, HeadFeatures] = {encoder.frame_dim: "frames", encoder.embed_dim: "tokens"}
    if in_features not in kinds:
        raise CheckpointError(
            f"{path} has a head for {in_features} features; supported are {encoder.embed_dim} (mean token) "
            f"and {encoder.frame_dim} (mean frame)."
        )
    return HeadConfig(num_classes, kinds[in_features])


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
