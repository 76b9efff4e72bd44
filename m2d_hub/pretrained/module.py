"""What a model has of its weights' way in and out: folders, Hugging Face repositories, cards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import nn

from m2d_hub.config import ModelConfig
from m2d_hub.errors import ConfigError
from m2d_hub.io import plain_tensors
from m2d_hub.nn.clap import Clap
from m2d_hub.nn.int8_linear import Int8Linear
from m2d_hub.pretrained.folder import Checkpoint, assign_tensors, save_checkpoint
from m2d_hub.pretrained.locate import locate_pretrained
from m2d_hub.pretrained.model_card import Metrics, model_card, push_options
from m2d_hub.pretrained.weights import read_weights

if TYPE_CHECKING:
    from typing_extensions import Self


class Pretrained(nn.Module, PyTorchModelHubMixin):
    """A module that is built of its configuration alone, and so can be saved and loaded."""

    config: ModelConfig

    @property
    def is_int8(self) -> bool:
        """Whether the weights are rounded to 8 bits."""
        return any(isinstance(module, Int8Linear) for module in self.modules())

    def generate_model_card(self, *, repo_id: str | None = None, metrics: Metrics | None = None) -> ModelCard:
        """The README.md that :meth:`save_pretrained` and :meth:`push_to_hub` write beside the weights."""
        return model_card(self.config, repo_id=repo_id, metrics=metrics)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        metrics: Metrics | None = None,
        have_right_to_publish: bool = False,
        **options: Any,
    ) -> str:
        """Uploads weights, configuration and a model card; others then load ``"hf-hub:" + repo_id``.

        Args:
            repo_id: ``org/repo``; it is made if it does not exist.
            metrics: Results for the card, such as ``{"ESC-50": {"accuracy": 0.95}}``.
            have_right_to_publish: State that you may redistribute weights that derive from the authors'.
            **options: Other arguments of ``huggingface_hub.PyTorchModelHubMixin.push_to_hub``, such as
                ``private``, ``token``, ``branch`` and ``commit_message``.

        Returns:
            Address of the commit.

        Raises:
            ConfigError: The weights derive from the authors' and the right to publish them is not stated.
        """
        options = push_options(self.config, repo_id, metrics, have_right_to_publish, options)
        return super().push_to_hub(repo_id, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.is_int8:
            raise ConfigError(
                "a model of dtype='int8' is not saved: its weights are rounded. Load it with the default "
                "dtype, save that, and give dtype='int8' when you load."
            )
        save_checkpoint(save_directory, self.state_dict(), self.config)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, origin: object) -> Self:
        """Builds a model around loaded tensors, in eval mode.

        Raises:
            CheckpointError: The tensors do not fit the configuration; the message names ``origin``.
        """
        with torch.inference_mode(mode=False), torch.device("meta"):
            model = cls(checkpoint.config)
        text_encoder = None if checkpoint.config.clap is None else f"clap.{Clap.OPTIONAL_PREFIX}"
        assign_tensors(model, checkpoint.tensors, origin, optional=text_encoder)
        return model.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the hub's own would look for a configuration first
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Loads a folder that :meth:`save_pretrained` wrote, a repository, or a model by name, on the CPU.

        Args:
            pretrained_model_name_or_path: As for :func:`m2d_hub.load_model`; ``org/repo`` that is not on disk
                is a repository too.
            revision: Branch, tag or commit of a repository.
            cache_dir: Where downloads are kept.
            force_download: Fetch the files again.
            local_files_only: Use what is on disk; never the network.
            token: For private repositories; None: the one that ``hf auth login`` kept.

        Raises:
            DownloadError: The repository does not exist, or cannot be fetched or stored.
            CheckpointError: The weights are damaged, non-finite, or not this package's.
        """
        path = locate_pretrained(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        with plain_tensors():
            return cls.from_checkpoint(read_weights(path), path)
