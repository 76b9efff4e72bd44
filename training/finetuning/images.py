"""A model of pictures that is fine-tuned as masked autoencoders are, on timm's parts (paper, appendix A).

Shapes: B batch, H height, W width, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2d_hub.checks import require
from m2d_hub.hub import load_model

from ..data.annotations import AudioFile
from ..data.images import IMAGENET_MEAN, IMAGENET_STD
from ..data.sampling import StepSampler
from ..evaluation.labelled import Subset
from ..runs.devices import autocast
from ..runs.loader import read_by_workers
from .config import FinetuneConfig
from .image_config import ImageConfig
from .image_data import TEST_CROP_SHARE, ImageBatch, ImageDataset, WholeImages

ARCHITECTURE = "vit_base_patch16_224"  # of timm, whose sizes give way to the model's


class ImageLearner:
    """See Learner: timm's vision transformer, which takes the mean over all patches."""

    fit_head = None

    def __init__(
        self, model: nn.Module, arguments: dict[str, Any], labels: tuple[str, ...], config: FinetuneConfig
    ):
        """Holds a model.

        Args:
            model: Of timm.
            arguments: That it was made with.
            labels: Names of the classes.
            config: The run.
        """
        self.model = self.network = model
        self.blocks: Iterable[nn.Module] = model.blocks  # type: ignore[assignment]
        self.arguments, self.labels, self.config = arguments, labels, config

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See Learner."""
        from timm.optim import param_groups_layer_decay

        config, unchanged = self.config, self.model.no_weight_decay()  # type: ignore[operator]
        return param_groups_layer_decay(
            self.model,
            config.weight_decay,
            no_weight_decay_list=() if config.decay_all else unchanged,
            weight_decay_exclude_1d=not config.decay_all,
            layer_decay=config.layer_decay,
        )

    def batches(self, part: Subset, sampler: StepSampler, seed: int) -> Iterable[ImageBatch]:
        """See Learner."""
        dataset = ImageDataset(part, self.config, self.arguments["img_size"], seed)
        return read_by_workers(
            dataset,
            self.config.num_workers,
            batch_sampler=sampler,
            collate_fn=dataset.stack,
            pinned=True,
        )

    def inputs(self, batch: ImageBatch) -> tuple[tuple[Any, ...], Tensor]:
        """See Learner."""
        torch.manual_seed(batch.seed)  # of the residual branches that are dropped: a run goes on as it was
        return (batch.pixels,), batch.targets

    def logits(self, files: Sequence[AudioFile]) -> Iterator[Tensor]:
        """See Learner: of the middle of each picture, as is usual."""
        pictures = WholeImages(files, self.arguments["img_size"])
        device = next(self.model.parameters()).device
        batches = read_by_workers(
            pictures,
            self.config.num_workers,
            batch_size=self.config.batch_size,
            pinned=True,
        )
        for pixels in batches:
            with autocast(device, self.config.precision):
                logits = self.model(pixels.to(device, non_blocking=True))
            yield logits.float().cpu()

    def probabilities(self, logits: Tensor) -> Tensor:
        """See Learner."""
        return logits.softmax(dim=-1)

    def save(self, folder: Path) -> None:
        """See Learner: for ``timm.create_model("local-dir:…", pretrained=True)``."""
        from timm.models._hub import save_for_hf

        names = {"label_names": list(self.labels)}
        save_for_hf(self.model, str(folder), names, model_args=self.arguments, safe_serialization=True)


def build_image_learner(name: str, config: FinetuneConfig, labels: tuple[str, ...]) -> ImageLearner:
    """Loads a model of pictures into timm's vision transformer with a fresh head, as masked autoencoders do.

    The final norm gives way to a fresh one after the mean over patches, and positions are trained on.

    Args:
        name: As for :func:`m2d_hub.load_model`.
        config: The run.
        labels: Names of the classes.

    Raises:
        ConfigError: The model is none of pictures.
    """
    import timm

    images = config.images or ImageConfig()
    source = load_model(name, device="cpu")
    encoder = source.config.encoder
    require(
        encoder.in_channels == 3,
        f"{name} takes {encoder.in_channels} channel of sound; pictures need a model of 3 channels, which "
        "the pre-training m2d-image gives.",
    )
    arguments = {
        "img_size": list(encoder.input_size),
        "patch_size": list(encoder.patch_size),
        "embed_dim": encoder.embed_dim,
        "depth": encoder.depth,
        "num_heads": encoder.num_heads,
        "mlp_ratio": encoder.mlp_ratio,
        "num_classes": len(labels),
        "global_pool": "avg",
    }
    told = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop_pct": TEST_CROP_SHARE}
    model = timm.create_model(
        ARCHITECTURE, drop_path_rate=images.drop_path, pretrained_cfg_overlay=told, **arguments
    )
    weights = source.encoder.state_dict()
    model.load_state_dict(
        {key: value for key, value in weights.items() if not key.startswith("norm.")}, strict=False
    )
    nn.init.trunc_normal_(model.head.weight, std=config.head_std)
    return ImageLearner(model, arguments, labels, config)
