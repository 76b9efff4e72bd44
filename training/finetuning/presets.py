"""Settings of fine-tuning by name: the paper's tasks, and one for lists of one's own.

Rates and batches are the paper's. A batch there is that of one optimizer step: on several devices, set
batch_size to each one's share. The paper gives neither momentum nor weight decay: they are 0.9 and 0 of SGD
and LARS here, and 0.01 of AdamW. Where a task has no validation split, take one from the training clips: the
test never chooses the epoch here. Results are the paper's, of M2D/0.7 and the mean of six seeds (Table IV).
"""

from __future__ import annotations

from collections.abc import Callable

from m2d_hub.errors import ConfigError

from .config import FinetuneConfig


def as2m() -> FinetuneConfig:
    """AudioSet, 2 million clips of 10 s, 527 classes (Table II); 200,000 balanced draws an epoch.

    Result: 47.9 mAP.
    Command: m2d-train finetune as2m --model m2d-0.7 --data audioset.csv --out RUN --seeds 6
    """
    return FinetuneConfig(
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
        samples_per_epoch=200_000,
    )


def as20k() -> FinetuneConfig:
    """AudioSet's balanced part, 20 thousand clips of 10 s, 527 classes (Table II).

    Result: 38.6 mAP.
    Command: m2d-train finetune as20k --model m2d-0.7 --data balanced.csv --out RUN --seeds 6
    """
    return FinetuneConfig(
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
    """VoxCeleb1, 153,514 clips of 8.2 s on average, 1,251 speakers (Table II).

    Result: 96.3 % accuracy.
    Command: m2d-train finetune vc1 --model m2d-0.7 --data voxceleb1.csv --out RUN --seeds 6
    """
    return FinetuneConfig(
        crop_frames=821,
        adjust_positions=True,
        frequency_mask=30,
        time_mask=48,
        optimizer="adamw",
        lr=5e-4,
        weight_decay=0.01,
        epochs=50,
        batch_size=64,
    )


def icbhi2017() -> FinetuneConfig:
    """ICBHI 2017, 6,898 respiratory cycles, four classes (section IV-E): a fixed rate, 64 clips a step.

    The paper takes the other settings from the code of its reference [73]: crops of up to 8 s, SpecAugment
    20/40, a cross-entropy weighted by class. Cycles keep their own length here instead of repeating to 8 s.

    Result: Table XII, score 61.93 of M2D/0.7 16×4; Table XIII, 63.29 further pre-trained by M2D-X.
    Command: m2d-train finetune icbhi2017 --model RUN/export --data cycles.csv --out RUN2 --seeds 5
    """
    return FinetuneConfig(
        crop_frames=800,
        metric="icbhi",
        class_weights=True,
        frequency_mask=20,
        time_mask=40,
        optimizer="adamw",
        lr=5e-5,
        min_lr=5e-5,
        warmup_epochs=0,
        weight_decay=1e-4,
        epochs=150,
        batch_size=16,
        accumulate_steps=4,
    )


def sprsound() -> FinetuneConfig:
    """SPRSound, respiratory events of children, seven classes (section IV-E4): as ICBHI 2017 but slower.

    Result: Figure 6, score 89.77 further pre-trained by M2D-X.
    Command: m2d-train finetune sprsound --model RUN/export --data events.csv --out RUN2 --seeds 5
    """
    return FinetuneConfig(
        crop_frames=800,
        metric="icbhi",
        class_weights=True,
        frequency_mask=20,
        time_mask=40,
        optimizer="adamw",
        lr=5e-6,
        min_lr=5e-6,
        warmup_epochs=0,
        weight_decay=1e-4,
        epochs=50,
        batch_size=16,
        accumulate_steps=4,
    )


def small() -> FinetuneConfig:
    """A list of one's own, from some dozens of clips to some thousands, of any length: nothing to tune.

    Where linear evaluation is better on the validation clips, the model ends as that: frozen, with its layer.

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
    "small": small,
}


def load_finetune_preset(name: str) -> FinetuneConfig:
    """The settings of a name.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in FINETUNE_PRESETS:
        raise ConfigError(f"Unknown preset {name!r}. Available: {', '.join(FINETUNE_PRESETS)}.")
    return FINETUNE_PRESETS[name]()
