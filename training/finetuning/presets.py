"""Fine-tuning presets: the paper's tasks, and one for any other list.

Rates and batches are the paper's. Its batch is that of one optimizer step; on several devices, set batch_size
to each device's share. Table II is interpreted as on the evaluation platform that the paper names: the cross-
entropy is also averaged over the classes, which SGD's rate of 0.5 requires; "LARS" is without weight decay
and thus SGD with a momentum of 0.9; SpecAugment uses one mask for the whole batch; clips are cropped or
padded with silence to one length, also in the test; the cosine starts at the first epoch. For a task without
a validation split, hold out training clips: here the test never chooses the epoch, whereas the paper's
figures of ESC-50 and AudioSet are those of the best epoch on the test. Results are the paper's, of M2D/0.7,
averaged over six seeds (Table IV).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from m2d_hub.errors import ConfigError

from .config import FinetuneConfig, ImageConfig

# Settings of all tasks of Table II.
TABLE_II: dict[str, Any] = {
    "head_std": 0.01,
    "shared_masks": True,
    "short_clips": "pad",
    "crop_test": True,
    "min_lr": 1e-7,
}


def as2m() -> FinetuneConfig:
    """AudioSet, 2 million clips of 10 s, 527 classes (Table II); 200,000 balanced draws per epoch.

    Result: 47.9 mAP.
    Command: m2d-train finetune as2m --model m2d-0.7 --data audioset.csv --out RUN --seeds 6
    """
    return FinetuneConfig(
        **TABLE_II,
        mixed="log-mel",
        crop_frames=1001,
        adjust_positions=True,
        loss="bce",
        mixup_ratio=0.5,
        frequency_mask=30,
        time_mask=192,
        patchout_ratio=0.5,
        optimizer="lars",
        lr=2.0,
        warmup_epochs=15,
        epochs=70,
        batch_size=64,
        weighted_sampling=True,
        balance=1 / 1.5,
        samples_per_epoch=200_000,
    )


def as20k() -> FinetuneConfig:
    """AudioSet's balanced part, 20 thousand clips of 10 s, 527 classes (Table II).

    Result: 38.6 mAP.
    Command: m2d-train finetune as20k --model m2d-0.7 --data balanced.csv --out RUN --seeds 6
    """
    return FinetuneConfig(
        **TABLE_II,
        crop_frames=1001,
        adjust_positions=True,
        loss="bce",
        mixup_ratio=0.3,
        frequency_mask=30,
        time_mask=192,
        resized_crop=True,
        patchout_ratio=0.5,
        optimizer="sgd",
        lr=0.5,
        epochs=200,
        batch_size=64,
    )


def esc50() -> FinetuneConfig:
    """ESC-50, 2,000 clips of 5 s, 50 classes, five folds (Table II).

    Result: 96.0 % accuracy.
    Command: m2d-train finetune esc50 --model m2d-0.7 --data esc50.csv --out RUN --seeds 6
    """
    return FinetuneConfig(
        **TABLE_II,
        loss_over_classes=True,
        crop_frames=501,
        freeze_patch_embed=True,
        frequency_mask=15,
        time_mask=48,
        resized_crop=True,
        patchout_ratio=0.5,
        optimizer="sgd",
        lr=0.5,
        epochs=200,
        batch_size=128,
    )


def spcv2() -> FinetuneConfig:
    """Speech Commands V2, 105,829 clips of 1 s, 35 words (Table II).

    Result: 98.4 % accuracy.
    Command: m2d-train finetune spcv2 --model m2d-0.7 --data commands.csv --out RUN --seeds 6
    """
    return FinetuneConfig(
        **TABLE_II,
        loss_over_classes=True,
        crop_frames=101,
        mixup_ratio=0.3,
        frequency_mask=30,
        time_mask=48,
        resized_crop=True,
        patchout_ratio=0.5,
        optimizer="sgd",
        lr=0.5,
        epochs=200,
        batch_size=128,
    )


def vc1() -> FinetuneConfig:
    """VoxCeleb1, 153,516 clips of 8.2 s on average, 1,251 speakers (Table II).

    Result: 96.3 % accuracy.
    Command: m2d-train finetune vc1 --model m2d-0.7 --data voxceleb1.csv --out RUN --seeds 6
    """
    return FinetuneConfig(
        **TABLE_II,
        loss_over_classes=True,
        crop_frames=821,
        adjust_positions=True,
        frequency_mask=30,
        time_mask=48,
        optimizer="adamw",
        lr=5e-4,
        weight_decay=1e-4,
        decay_all=True,
        beta2=0.95,
        amsgrad=True,
        epochs=50,
        batch_size=64,
    )


# Settings of both respiratory tasks (section IV-E), which the paper takes from its reference [73].
RESPIRATORY: dict[str, Any] = {
    "crop_frames": 800,
    "crop_from_start": True,
    "short_clips": "repeat",
    "crop_test": True,
    "freeze_patch_embed": True,
    "head_norm": False,
    "metric": "icbhi",
    "frequency_mask": 20,
    "time_mask": 40,
    "num_masks": 2,
    "optimizer": "adam",
    "min_lr": 1e-6,
    "warmup_epochs": 0,
    "cosine_epochs": 40,
    "weight_decay": 1e-4,
    "decay_all": True,
    "batch_size": 16,
    "accumulate_steps": 4,
}


def icbhi2017() -> FinetuneConfig:
    """ICBHI 2017, 6,898 respiratory cycles, four classes (section IV-E): 64 clips per step.

    The first 8 s of a cycle, shorter ones repeated; a linear head; Adam with an L2 penalty and a cosine of 40
    epochs that rises again. The log-mel is the model's, not the reference's (torchaudio's in dB, scaled by
    minimum and maximum of the batch). The official 60/40 split has no validation clips: hold out some of the
    training patients.

    Result: Table XII, score 61.93 of M2D/0.7 16×4; Table XIII, 63.29 further pre-trained by M2D-X.
    Command: m2d-train finetune icbhi2017 --model RUN/export --data cycles.csv --out RUN2 --seeds 5
    """
    return FinetuneConfig(**RESPIRATORY, class_weights=True, lr=5e-5, epochs=150)


def sprsound() -> FinetuneConfig:
    """SPRSound, respiratory events of children, seven classes (section IV-E4): as ICBHI 2017 but slower.

    Result: Figure 6, score 89.77 further pre-trained by M2D-X.
    Command: m2d-train finetune sprsound --model RUN/export --data events.csv --out RUN2 --seeds 5
    """
    return FinetuneConfig(**RESPIRATORY, lr=5e-6, epochs=50)


def imagenet() -> FinetuneConfig:
    """ImageNet-1K, 1,281,167 training and 50,000 test images, 1,000 classes (appendix A), for image models.

    The recipe is masked autoencoders' for ViT-B, "the same code and parameters as in the MAE": 1,024 images
    per step, with a rate of 5e-4 per 256 images. The result is that of the last epoch; select="test" gives
    the best epoch on the test images, which their code reports too.

    Result: Table XIV, top-1 accuracy 83.35 % of M2D.
    Command: torchrun --nproc_per_node=8 -m m2d_training finetune imagenet --model RUN/export \\
        --data imagenet/ --out RUN2 --set accumulate_steps=1
    """
    return FinetuneConfig(
        images=ImageConfig(),
        select="last",
        mixup_ratio=0.8,
        optimizer="adamw",
        lr=5e-4 * 1024 / 256,
        min_lr=1e-6,
        cosine_after_warmup=True,
        warmup_epochs=5,
        epochs=100,
        batch_size=128,
        accumulate_steps=8,
        weight_decay=0.05,
        layer_decay=0.65,
        precision="auto",
    )


def small() -> FinetuneConfig:
    """Any list from dozens to thousands of clips of any length, without tuning.

    If linear evaluation is better on the validation clips, the result is the frozen model with its layer.

    Command: m2d-train finetune small --model m2d-mini --data labelled.csv --out RUN
    """
    return FinetuneConfig(
        try_linear=True,
        frequency_mask=8,
        time_mask=8,
        optimizer="adamw",
        lr=1e-3,
        warmup_epochs=2,
        epochs=20,
        min_steps=600,
        batch_size=16,
        weight_decay=0.05,
        layer_decay=0.75,
        clip_norm=3.0,
        patience=8,
    )


FINETUNE_PRESETS: dict[str, Callable[[], FinetuneConfig]] = {
    "as2m": as2m,
    "as20k": as20k,
    "esc50": esc50,
    "spcv2": spcv2,
    "vc1": vc1,
    "icbhi2017": icbhi2017,
    "sprsound": sprsound,
    "imagenet": imagenet,
    "small": small,
}


def load_finetune_preset(name: str) -> FinetuneConfig:
    """Return the settings of a preset.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in FINETUNE_PRESETS:
        raise ConfigError(f"Unknown preset {name!r}. Available: {', '.join(FINETUNE_PRESETS)}.")
    return FINETUNE_PRESETS[name]()
