"""transformers: M2D through AutoModel, AutoFeatureExtractor, AutoModelForAudioClassification and pipelines.

>>> from m2d_hub.clients.transformers import register, save_pretrained
>>> save_pretrained("folder", "m2d-mini")
>>> register(); model = AutoModel.from_pretrained("folder")  # or, without m2d_hub, trust_remote_code=True
"""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from typing import Any

import torch

import m2d_hub
from m2d_hub.export import windowed_encoder
from m2d_hub.hub import load_model
from m2d_hub.io import importing
from m2d_hub.model import M2D
from m2d_hub.pretrained.publish import model_card
from m2d_hub.pretrained.registry import DEFAULT_MODEL

CODE_FILE = "modeling_m2d"
PACKAGE = Path(__file__).parents[1]


def register() -> None:
    """Add M2D to the Auto classes of this process.

    Raises:
        ConfigError: transformers is not installed.
    """
    modeling = _modeling()
    import transformers as auto

    config, extractor = modeling.M2DConfig, modeling.M2DFeatureExtractor
    auto.AutoConfig.register(config.model_type, config, exist_ok=True)
    auto.AutoModel.register(config, modeling.M2DModel, exist_ok=True)
    auto.AutoModelForAudioClassification.register(config, modeling.M2DForAudioClassification, exist_ok=True)
    auto.AutoFeatureExtractor.register(config, extractor, exist_ok=True)
    # pipeline("feature-extraction") loads a tokenizer for any input.
    auto.AutoTokenizer.register(config, tokenizer_class=extractor, exist_ok=True)


def save_pretrained(
    folder: str | os.PathLike[str], name: str | os.PathLike[str] | M2D = DEFAULT_MODEL
) -> None:
    """Save a folder that transformers loads, with m2d_hub (after :func:`register`) or without it.

    Args:
        folder: Folder for model.safetensors, config.json, preprocessor_config.json, the code to run them, and
            a model card.
        name: As for :func:`m2d_hub.load_model`, or a model.

    Raises:
        ConfigError: transformers is not installed, or the model has no fixed window.
    """
    modeling, folder = _modeling(), Path(folder)
    source = name if isinstance(name, M2D) else load_model(name, device="cpu")
    windowed = windowed_encoder(source)
    config = modeling.M2DConfig(**_settings(source))
    config.auto_map = {
        "AutoConfig": f"{CODE_FILE}.M2DConfig",
        "AutoModel": f"{CODE_FILE}.M2DModel",
        "AutoModelForAudioClassification": f"{CODE_FILE}.M2DForAudioClassification",
    }
    if source.head is None:
        model = modeling.M2DModel(config)
        model.windowed = windowed
    else:
        model = modeling.M2DForAudioClassification(config)
        model.m2d.windowed = windowed
        model.head.load_state_dict({key: value.float() for key, value in source.head.state_dict().items()})
    model.save_pretrained(folder)
    extractor = modeling.M2DFeatureExtractor(sampling_rate=source.sample_rate)
    extractor.auto_map = {"AutoFeatureExtractor": f"{CODE_FILE}.M2DFeatureExtractor"}
    extractor.save_pretrained(folder)
    tokenizer = {"auto_map": {"AutoTokenizer": [f"{CODE_FILE}.M2DFeatureExtractor", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n", encoding="utf-8")
    model_card(source.config, program="transformers").save(folder / "README.md")


def _settings(model: M2D) -> dict[str, Any]:
    values = model.config.to_dict()
    settings = {"frontend": values["frontend"], "encoder": values["encoder"], "dtype": torch.float32}
    if model.config.head is not None:
        labels = model.labels or [str(index) for index in range(model.config.head.num_classes)]
        settings["id2label"] = dict(enumerate(labels))
        settings["label2id"] = {label: index for index, label in enumerate(labels)}
        settings["head_features"] = model.config.head.features
        is_multi_label = model.config.head.activation == "sigmoid"
        settings["problem_type"] = f"{'multi' if is_multi_label else 'single'}_label_classification"
    return settings


def write_code(folder: str | os.PathLike[str]) -> None:
    """Write one module made of ``modeling_m2d`` and all modules of this package that it imports."""
    parts: dict[str, str] = {}
    _collect(f"clients/{CODE_FILE}", parts)
    origin = f"# Made by m2d_hub {m2d_hub.__version__} of its modules {', '.join(parts)}."
    code = "\n\n".join([f"{origin}\nfrom __future__ import annotations\n", *parts.values()])
    Path(folder, f"{CODE_FILE}.py").write_text(code, encoding="utf-8")


def _collect(module: str, parts: dict[str, str]) -> None:
    """Add the text of a module, after those of the modules that it imports."""
    text = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.parse(text).body:
        origin = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        package, _, inside = origin.partition(".")
        if package in ("m2d_hub", "__future__"):
            end = node.end_lineno or node.lineno
            lines[node.lineno - 1 : end] = [""] * (end - node.lineno + 1)
        used = inside.replace(".", "/")
        if package == "m2d_hub" and used not in parts:
            _collect(used, parts)
    parts[module] = "\n".join(lines).strip() + "\n"


def _modeling() -> Any:
    with importing("transformers", "a model for transformers", "transformers"):
        from m2d_hub.clients import modeling_m2d
    return modeling_m2d
