"""Save models, write their model cards, and publish them on Hugging Face."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from m2d_hub.config import ModelConfig
from m2d_hub.errors import ConfigError, DownloadError, M2DError, reason_of
from m2d_hub.io import as_text, plain_tensors
from m2d_hub.nn.int8_linear import Int8Linear
from m2d_hub.pretrained.checkpoint import Checkpoint, assign_tensors, save_checkpoint
from m2d_hub.pretrained.published import read_weights
from m2d_hub.pretrained.registry import NTT_LICENSE, RELEASES
from m2d_hub.pretrained.source import resolve_pretrained

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from typing_extensions import Self

Metrics = Mapping[str, Mapping[str, float]]
Program = Literal["m2d_hub", "transformers"]

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

A Masked Modeling Duo (M2D) model for audio, in the format of `{program}`.

| | |
|---|---|
{facts}

## Use

```python
{use}
```

## Licence

{license}.

## Citation

Daisuke Niizumi, Daiki Takeuchi, Yasunori Ohishi, Noboru Harada and Kunio Kashino: "Masked Modeling Duo:
Towards a Universal Audio Pre-training Framework", IEEE/ACM Transactions on Audio, Speech, and Language
Processing, 2024.
"""


class Pretrained(nn.Module):
    """A module that is built from its configuration alone, and so can be saved, loaded and published."""

    config: ModelConfig

    @property
    def is_int8(self) -> bool:
        """Whether the weights are rounded to 8 bits."""
        return any(isinstance(module, Int8Linear) for module in self.modules())

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        repo_id: str | None = None,
        metrics: Metrics | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> str | None:
        """Write weights, configuration and, unless there is one, a model card.

        Args:
            save_directory: Folder; it is created if it does not exist.
            repo_id: ``org/repo`` that the card names, by default that of an upload.
            metrics: Results for the card, as for :meth:`push_to_hub`.
            push_to_hub: Upload the model too, to ``repo_id`` or to the folder's name.
            **options: Of :meth:`push_to_hub`.

        Returns:
            Address of the commit of an upload, or None.

        Raises:
            ConfigError: The weights are rounded to 8 bits.
        """
        if self.is_int8:
            raise ConfigError(
                "a model of dtype='int8' is not saved: its weights are rounded. Load it with the default "
                "dtype, save that, and give dtype='int8' when you load it."
            )
        folder = Path(save_directory)
        save_checkpoint(folder, self.state_dict(), self.config)
        if not (folder / "README.md").exists():
            model_card(self.config, repo_id=repo_id, metrics=metrics).save(folder / "README.md")
        return self.push_to_hub(repo_id or folder.name, metrics=metrics, **options) if push_to_hub else None

    def push_to_hub(
        self,
        repo_id: str,
        *,
        metrics: Metrics | None = None,
        have_right_to_publish: bool = False,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        **options: Any,
    ) -> str:
        """Upload weights, configuration and a model card; others then load ``"hf-hub:" + repo_id``.

        Args:
            repo_id: ``org/repo``; it is created if it does not exist.
            metrics: Results for the card, such as ``{"ESC-50": {"accuracy": 0.95}}``.
            have_right_to_publish: State that you may redistribute weights that derive from the authors'.
            private: Make a new repository private.
            token: None: the one saved by ``hf auth login``.
            branch: Branch to upload to; it must exist.
            **options: Of ``huggingface_hub.HfApi.upload_folder``, such as ``create_pr``.

        Returns:
            Address of the commit.

        Raises:
            ConfigError: The weights derive from the authors' and the right to publish them is not stated.
            DownloadError: The hub cannot be reached, or refuses the upload.
        """
        from huggingface_hub import HfApi

        config = self.config
        if _is_authors(config) and not have_right_to_publish:
            raise ConfigError(
                f"The weights of {config.name!r} derive from the authors' ({config.source}), whose licence "
                f"({config.license}) forbids redistributing them. If you have the right to publish them, "
                "state it: push_to_hub(..., have_right_to_publish=True)."
            )
        options.setdefault("commit_message", f"Upload {config.name or 'an M2D model'} with m2d_hub")
        api = HfApi(token=token)
        try:
            with tempfile.TemporaryDirectory() as folder:
                repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                self.save_pretrained(folder, repo_id=repo_id, metrics=metrics)
                return api.upload_folder(repo_id=repo_id, folder_path=folder, revision=branch, **options)
        except M2DError:
            raise
        except Exception as error:  # of the hub, its HTTP library, or the network
            raise DownloadError(
                f"{repo_id!r} could not be uploaded ({reason_of(error)}). Check the network, HF_HUB_OFFLINE "
                "and your access (hf auth login); save_pretrained writes the same files to a folder."
            ) from error

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, origin: object) -> Self:
        """Build a model around loaded tensors, in eval mode.

        Raises:
            CheckpointError: The tensors do not match the configuration; the message names ``origin``.
        """
        with torch.inference_mode(mode=False), torch.device("meta"):
            model = cls(checkpoint.config)
        assign_tensors(model, checkpoint.tensors, origin)
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load a folder that :meth:`save_pretrained` wrote, a repository, or a model by name, on the CPU.

        Args:
            pretrained_model_name_or_path: As for :func:`m2d_hub.load_model`; ``org/repo`` that is not on disk
                is a repository too.
            **options: ``revision``, ``cache_dir``, ``local_files_only`` and ``token`` as for
                :func:`m2d_hub.load_model`; ``force_download`` to download a repository's files again.

        Raises:
            DownloadError: The repository does not exist, or cannot be downloaded or stored.
            CheckpointError: The weights are damaged, non-finite, or of an unknown layout.
        """
        path = resolve_pretrained(pretrained_model_name_or_path, **options)
        with plain_tensors():
            return cls.from_checkpoint(read_weights(path), path)


def model_card(
    config: ModelConfig,
    *,
    repo_id: str | None = None,
    metrics: Metrics | None = None,
    program: Program = "m2d_hub",
) -> ModelCard:
    """Return the README.md of a published model for the program that loads it; ``repo_id`` is org/repo."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

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
    is_authors = _is_authors(config)
    stated = (config.license or "unknown").lower()
    identifier = re.sub(r"[^a-z0-9.]+", "-", stated).strip("-")
    licence: dict[str, Any] = {"license": identifier}
    if is_authors or identifier != stated:
        licence = {"license": "other", "license_name": identifier, "license_link": config.source}
    data = ModelCardData(
        library_name=program,
        pipeline_tag="feature-extraction" if config.head is None else "audio-classification",
        tags=["audio", "audio-embeddings", "masked-modeling-duo", "m2d"],
        model_name=config.name or "M2D model",
        eval_results=results or None,
        **licence,
    )
    source, license = (
        _plain(config.source or RELEASES),
        _plain(config.license or "Not stated by the publisher"),
    )
    use = _USES[program].format(
        name=(f"hf-hub:{repo_id}" if repo_id else "path/to/this/folder"),
        frame_dim=config.encoder.frame_dim,
        sample_rate=config.frontend.sample_rate,
    )
    return ModelCard(
        _CARD.format(
            card_data=data.to_yaml(),
            title=_plain(config.name or "M2D model"),
            program=program,
            facts=_facts(config),
            use=use,
            license=f"{license}: the weights derive from the release {source}" if is_authors else license,
        )
    )


def _facts(config: ModelConfig) -> str:
    """Return the rows of the card's table."""
    encoder, hop_s = config.encoder, config.frontend.hop_s
    (mels, frames), hop_ms = encoder.patch_size, encoder.patch_size[1] * hop_s * 1000
    rows = [
        f"Sample rate | {config.frontend.sample_rate} Hz",
        f"Window | {'own length' if config.own_length_windows else f'{encoder.input_size[1] * hop_s:.2f} s'}",
        f"Frames | one per {hop_ms:g} ms, {encoder.frame_dim} features",
        f"Encoder | {encoder.depth} blocks, width {encoder.embed_dim}, {mels}x{frames} patches",
    ]
    if config.head is not None:
        rows.append(f"Head | {config.head.num_classes} classes, {config.head.activation}")
    if config.clap is not None:
        text_encoder = _plain(config.clap.text_encoder)
        rows.append(f"Text space | {config.clap.dim} dimensions, text encoder {text_encoder}")
    return "\n".join(f"| {row} |" for row in rows)


def _is_authors(config: ModelConfig) -> bool:
    """Return whether weights were published by the authors, or derive from such weights."""
    return config.license == NTT_LICENSE or (config.source or "").startswith(RELEASES)


def _plain(text: str) -> str:
    """Return text of a file as one line of Markdown without markup."""
    return re.sub(r"[\\`<>|\[\]]", r"\\\g<0>", as_text(text))
