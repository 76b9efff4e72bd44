"""Publishing a model: its card, and the right to publish weights that derive from the authors'."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from m2d_hub.config import ModelConfig
from m2d_hub.errors import ConfigError
from m2d_hub.pretrained.registry import NTT_LICENSE, RELEASES

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

Metrics = Mapping[str, Mapping[str, float]]
Program = Literal["m2d_hub", "transformers"]

_TAGS = ["audio", "audio-embeddings", "masked-modeling-duo", "m2d"]
_PROGRAM_TAGS: dict[Program, list[str]] = {
    "m2d_hub": ["pytorch_model_hub_mixin"],
    "transformers": ["custom_code"],
}
_USES: dict[Program, str] = {
    "m2d_hub": """\
import m2d_hub

model = m2d_hub.load_model("{name}")
clip = model.encode_clip("dog.wav")  # Tensor (1, {frame_dim})""",
    "transformers": """\
# pip install torch transformers; nothing else is needed
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained("{name}", trust_remote_code=True)
model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
waveform = [0.0] * {sample_rate}  # a second, mono
inputs = extractor(waveform, sampling_rate={sample_rate}, return_tensors="pt")
clip = model(**inputs).pooler_output  # Tensor (1, {frame_dim})""",
}

_CARD = """---
{card_data}
---

# {title}

A Masked Modeling Duo (M2D) model for audio, in the format of `{program}`{origin}.

| | |
|---|---|
{facts}

## Use

```python
{use}
```
{results}
## Licence

{license}

## Citation

Daisuke Niizumi, Daiki Takeuchi, Yasunori Ohishi, Noboru Harada and Kunio Kashino: "Masked Modeling Duo:
Towards a Universal Audio Pre-training Framework", IEEE/ACM Transactions on Audio, Speech, and Language
Processing, 2024.
"""


def check_right_to_publish(config: ModelConfig, have_right: bool) -> None:
    """Refuses to publish weights that derive from the authors', unless the caller states the right to.

    Raises:
        ConfigError: The weights are under the authors' licence and ``have_right`` is False.
    """
    if is_authors(config) and not have_right:
        raise ConfigError(
            f"The weights of {config.name!r} derive from the authors' ({config.source}), whose licence "
            f"({config.license}) forbids redistributing them. If you have the right to publish them, say so: "
            "push_to_hub(..., have_right_to_publish=True)."
        )


def push_options(
    config: ModelConfig, repo_id: str, metrics: Metrics | None, have_right: bool, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments with which ``PyTorchModelHubMixin.push_to_hub`` uploads a model, its card among them.

    Raises:
        ConfigError: As :func:`check_right_to_publish`.
    """
    check_right_to_publish(config, have_right)
    message = f"Push {config.name or 'an M2D model'} with m2d_hub"
    card = {"repo_id": repo_id, "metrics": metrics}
    return {"commit_message": message, **options, "model_card_kwargs": card}


def is_authors(config: ModelConfig) -> bool:
    """Whether weights were published by the authors, or derive from such weights."""
    return config.license == NTT_LICENSE or (config.source or "").startswith(RELEASES)


def model_card(
    config: ModelConfig,
    *,
    repo_id: str | None = None,
    metrics: Metrics | None = None,
    program: Program = "m2d_hub",
) -> ModelCard:
    """The README.md of a published model.

    Args:
        config: The model's configuration.
        repo_id: ``org/repo`` that it goes to.
        metrics: Results by data set and metric, such as ``{"ESC-50": {"accuracy": 0.95}}``.
        program: What loads the files beside it.
    """
    from huggingface_hub import ModelCard

    title = config.name or "M2D model"
    use = _USES[program].format(
        name=(f"hf-hub:{repo_id}" if repo_id else "path/to/this/folder"),
        frame_dim=config.encoder.frame_dim,
        sample_rate=config.frontend.sample_rate,
    )
    text = _CARD.format(
        card_data=_card_data(config, title, metrics, program).to_yaml(),
        title=title,
        origin=f", from weights published at {config.source}" if "://" in (config.source or "") else "",
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(config).items()),
        program=program,
        use=use,
        results=_results(metrics),
        license=_licence(config),
    )
    return ModelCard(text)


def _card_data(config: ModelConfig, title: str, metrics: Metrics | None, program: Program) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    task = "feature-extraction" if config.head is None else "audio-classification"
    results = [
        EvalResult(
            task_type="audio-classification",
            dataset_type=dataset.lower().replace(" ", "-"),
            dataset_name=dataset,
            metric_type=metric,
            metric_value=value,
        )
        for dataset, values in (metrics or {}).items()
        for metric, value in values.items()
    ]
    return ModelCardData(
        library_name=program,
        pipeline_tag=task,
        tags=[*_TAGS, *_PROGRAM_TAGS[program]],
        model_name=title,
        eval_results=results or None,
        **_licence_data(config),
    )


def _licence_data(config: ModelConfig) -> dict[str, Any]:
    """The card's licence fields: the hub's identifier (lower case, no spaces), or ``other`` and a name."""
    if config.license is None:
        return {}
    identifier = config.license.lower()
    if not is_authors(config) and re.fullmatch(r"[a-z0-9.-]+", identifier):
        return {"license": identifier}
    name = re.sub(r"[^a-z0-9.]+", "-", identifier).strip("-")
    link = {"license_link": config.source} if config.source else {}
    return {"license": "other", "license_name": name, **link}


def _facts(config: ModelConfig) -> dict[str, str]:
    encoder, hop_s = config.encoder, config.frontend.hop_s
    facts = {
        "Sample rate": f"{config.frontend.sample_rate} Hz",
        "Window": "each clip's own length"
        if config.own_length_windows
        else f"{encoder.input_size[1] * hop_s:.2f} s",
        "Frames": f"one each {encoder.patch_size[1] * hop_s * 1000:g} ms, {encoder.frame_dim} features",
        "Encoder": f"{encoder.depth} blocks, {encoder.embed_dim} wide, patches of "
        f"{encoder.patch_size[0]}x{encoder.patch_size[1]} (mels x frames)",
    }
    if config.head is not None:
        facts["Head"] = f"{config.head.num_classes} classes, {config.head.activation}"
    if config.clap is not None:
        facts["Text space"] = f"{config.clap.dim} dimensions, text encoder {config.clap.text_encoder}"
    return facts


def _results(metrics: Metrics | None) -> str:
    if not metrics:
        return ""
    rows = [
        f"| {dataset} | {name} | {value:g} |" for dataset, of in metrics.items() for name, value in of.items()
    ]
    return "\n".join(["", "## Results", "", "| Data set | Metric | Value |", "|---|---|---|", *rows, ""])


def _licence(config: ModelConfig) -> str:
    if is_authors(config):
        return (
            f"{NTT_LICENSE}: the weights derive from the authors' release, see {config.source or RELEASES}."
        )
    return f"{config.license}." if config.license else "Not stated by the publisher."
