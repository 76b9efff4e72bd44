"""Presets: the scenarios of the paper, each of which can be started by name and changed field by field.

On four GPUs, start one with
``torchrun --nproc_per_node=4 -m m2d_training pretrain NAME --data DATA --out RUN``; docs/paper.md has the
command of each table.

Times are of the paper's appendix B, Table XV, with forward passes in half precision, as ``precision="auto"``
has them on GPUs: bfloat16, or float16 where a GPU lacks it. On a CPU all is float32.

Results are the paper's; reproducing them takes its data:
AudioSet (2,005,132 clips), LibriSpeech (960 h), FSD50K, ICBHI2017, SPRSound or ImageNet-1K.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from m2d_hub.errors import ConfigError

from .config import OfflineConfig, PretrainConfig


@dataclass(frozen=True)
class Preset:
    """Configuration of a run, and the names of the weights that it needs."""

    config: PretrainConfig
    start: str | None = None  # weights to start from
    teacher: str | None = None  # frozen offline encoder
    name: str = "custom"


def m2d_07() -> Preset:
    """M2D/0.7, general-purpose audio (section IV-B).

    Result: Tables III and IV, linear-evaluation mean 80.2; fine-tuned AS2M 47.9 mAP, ESC-50 96.0 %.
    Hardware and time: 4 × A100 80 GB, 55 h.
    """
    return Preset(PretrainConfig(mask_ratio=0.7))


def m2d_06() -> Preset:
    """M2D/0.6, general-purpose audio (section IV-B).

    Result: Tables III and IV, linear-evaluation mean 80.1; fine-tuned AS2M 47.7 mAP.
    Hardware and time: 4 × A100 80 GB, 55 h.
    """
    return Preset(PretrainConfig(mask_ratio=0.6))


def m2d_07_16x4() -> Preset:
    """M2D/0.7 with 40 ms frames over 2 s, the start of the medical scenarios (section IV-E).

    Result: Table XII, ICBHI2017 score 61.93 without further pre-training.
    Hardware and time: 4 × A100 80 GB, 109 h.
    """
    return Preset(PretrainConfig(input_size=(80, 200), patch_size=(16, 4)))


def m2d_07_32k() -> Preset:
    """M2D/0.7 at 32 kHz: windows of 800 samples, hops of 320, 50-16000 Hz.

    Result: not in the paper; published are M2D-AS weights at 32 kHz, fine-tuned AS2M 0.480 mAP.
    Hardware and time: as m2d-0.7, 4 × A100 80 GB, about 55 h.
    """
    return Preset(PretrainConfig(sample_rate=32_000))


def msm_mae_075() -> Preset:
    """MSM-MAE/0.75, the baseline that predicts pixels (section IV-B).

    Result: Tables III and IV, linear-evaluation mean 79.1; fine-tuned AS2M 47.4 mAP.
    Hardware and time: at most those of m2d-0.7, 4 × A100 80 GB, 55 h: it has no target encoder.
    """
    return Preset(PretrainConfig(method="msm-mae", mask_ratio=0.75))


def m2d_all_patches() -> Preset:
    """M2D/0.7 with a target encoder that sees all patches, the conventional variant (section IV-B).

    Result: Tables III and IV, linear-evaluation mean 80.1 (0.1 below M2D/0.7); fine-tuned AS2M 47.6 mAP.
    Hardware and time: not reported; somewhat more than m2d-0.7, 4 × A100 80 GB, 55 h.
    """
    return Preset(PretrainConfig(method="m2d-all-patches"))


def m2d_as() -> Preset:
    """M2D-AS/0.7, specialised in AudioSet by its 527 labels (section IV-C).

    The data's ``label`` column holds AudioSet's class names, joined by ';'.

    Result: Tables V and VI, linear-evaluation mean 80.6; fine-tuned AS2M 48.5, AS20K 41.8 mAP.
    Hardware and time: 4 × A100 80 GB, 55 h.
    """
    return Preset(PretrainConfig(offline=OfflineConfig(kind="labels", weight=1.0)))


def m2d_as_32k() -> Preset:
    """M2D-AS/0.7 at 32 kHz, as the published 32 kHz weights are.

    Result: not in the paper; fine-tuned AS2M 48.0 mAP by the authors.
    Hardware and time: not reported; as m2d-as, 4 × A100 80 GB, about 55 h.
    """
    return Preset(PretrainConfig(sample_rate=32_000, offline=OfflineConfig(kind="labels", weight=1.0)))


def _m2d_s(num_frames: int, batch_size: int, accumulate_steps: int) -> Preset:
    config = PretrainConfig(
        input_size=(80, num_frames),
        patch_size=(80, 2),
        mask_ratio=0.6,
        epochs=1000,
        warmup_epochs=60,
        batch_size=batch_size,
        accumulate_steps=accumulate_steps,
        noise_ratio=0.2,
        offline=OfflineConfig(kind="features", weight=0.5),
        keep_every_epochs=100,
    )
    return Preset(config, teacher="hubert-base-l9")


def m2d_s_4s() -> Preset:
    """M2D-S/0.6 on 4 s of speech, distilling HuBERT's ninth layer (section IV-D).

    Result: Table X, PR 5.72, KS 96.47, IC 97.80, SID 81.97, ER 66.36.
    Hardware and time: 4 × A100 80 GB, 56 h.
    """
    return _m2d_s(400, batch_size=512, accumulate_steps=1)


def m2d_s_5s() -> Preset:
    """M2D-S/0.6 on 5.12 s of speech, distilling HuBERT's ninth layer (section IV-D).

    Result: Table X, PR 5.64, KS 96.87, IC 97.65, SID 80.69, ER 65.35.
    Hardware and time: 4 × A100 80 GB, 65 h.
    """
    return _m2d_s(512, batch_size=256, accumulate_steps=2)


def m2d_s_6s() -> Preset:
    """M2D-S/0.6 on 6.08 s of speech, distilling HuBERT's ninth layer (section IV-D).

    Result: Table X, PR 5.33, KS 96.80, IC 97.63, SID 81.74, ER 66.13.
    Hardware and time: 4 × A100 80 GB, 77 h.
    """
    return _m2d_s(608, batch_size=256, accumulate_steps=2)


def m2d_speech_80x4() -> Preset:
    """M2D/0.6 on 6.08 s of speech without the offline network, 40 ms frames (section IV-D).

    Result: Tables IX and X, PR 7.74, KS 97.17, IC 95.50, SID 80.48, ER 64.06.
    Hardware and time: not reported; 4 × A100 80 GB, at most the 77 h of m2d-s-6s.
    """
    config = PretrainConfig(
        input_size=(80, 608),
        patch_size=(80, 4),
        mask_ratio=0.6,
        epochs=1000,
        warmup_epochs=60,
        noise_ratio=0.2,
        keep_every_epochs=100,
    )
    return Preset(config)


def _further_pretraining(
    noise_ratio: float, min_list_size: int, short_clips: Literal["pad", "repeat"] = "pad"
) -> Preset:
    config = PretrainConfig(
        input_size=(80, 200),
        patch_size=(16, 4),
        epochs=600,
        warmup_epochs=24,
        batch_size=64,
        accumulate_steps=2,
        noise_ratio=noise_ratio,
        min_list_size=min_list_size,
        short_clips=short_clips,
        offline=OfflineConfig(kind="features", weight=1.0),
        keep_every_epochs=100,
    )
    return Preset(config, start="m2d-0.7-16x4", teacher="m2d-0.7-16x4")


def m2d_x_icbhi2017() -> Preset:
    """M2D-X/0.7 further pre-trained on ICBHI2017's 539 recordings, kept near its teacher (section IV-E).

    As in the paper, the teacher encodes the clean input with its own statistics; the authors' script uses
    the statistics of the new data and exchanges clean and noisy input. The authors padded the noise of FSD50K
    with silence to 6.1 s, so many of their crops hold none; here each crop holds noise, and the effective
    noise ratio is higher.

    Result: Table XIII, sensitivity 45.08, specificity 81.51, score 63.29 after fine-tuning.
    Hardware and time: one RTX 3090 Ti of 24 GB, 7 h.
    """
    return _further_pretraining(noise_ratio=0.3, min_list_size=10_000)


def m2d_x_sprsound() -> Preset:
    """M2D-X/0.7 further pre-trained on SPRSound, whose events are repeated to 2 s (section IV-E4).

    Teacher and noise differ from the authors' script as in m2d-x-icbhi2017.

    Result: Figure 6, highest score 89.77 after fine-tuning.
    Hardware and time: one RTX 3090 Ti of 24 GB; not reported, less than a day.
    """
    return _further_pretraining(noise_ratio=0.01, min_list_size=0, short_clips="repeat")


def m2d_clap() -> Preset:
    """M2D-CLAP: M2D/0.7 with captions, contrasted against a frozen text encoder (GTE-base).

    The data's ``caption`` column holds the texts; where it is empty, the labels are the caption. The authors
    weigh the loss by 0.01 over four processes, each of which computes a quarter of the gradient; here all
    processes together compute the gradient of the loss over the whole batch.

    Result: not in the paper; the published weights have a linear-evaluation mean of 80.8.
    Hardware and time: not reported; as m2d-0.7, 4 × A100 80 GB, about 55 h.
    """
    return Preset(PretrainConfig(offline=OfflineConfig(kind="text", dim=768, weight=0.0025)))


def m2d_image() -> Preset:
    """M2D on ImageNet-1K images, with rate, warm-up and gradients as in masked autoencoders (appendix A).

    Result: Table XIV, top-1 accuracy 83.35 % after fine-tuning.
    Hardware and time: not reported; batch 2048 in all, 300 epochs.
    """
    config = PretrainConfig(
        input_size=(224, 224),
        in_channels=3,
        mask_ratio=0.75,
        warmup_epochs=40,
        base_lr=1.5e-4,
        clip_norm=math.inf,
    )
    return Preset(config)


def m2d_mini() -> Preset:
    """A small MSM-MAE over 2 s with labels, for 10 s in less than 60 ms on one core of a CPU.

    The first of the four runs whose average the released m2d-mini is (recipes/m2d-mini/train.py). Labels are
    names of packages, folders and files, joined by ';', as recipes/m2d-mini/corpus.py lists them; mean and
    std are those of that audio.

    Result: not in the paper; see the model card.
    Hardware and time: two CPU cores, a process each with batch_size=32: 3.8 hours.
    """
    config = PretrainConfig(
        method="msm-mae",
        input_size=(80, 208),
        patch_size=(10, 16),
        embed_dim=192,
        depth=3,
        predictor_dim=128,
        predictor_depth=1,
        predictor_head_width=32,
        mask_ratio=0.6,
        offline=OfflineConfig(kind="labels", weight=50.0),
        epochs=24,
        warmup_epochs=0.5,
        decay_epochs=4,
        batch_size=64,
        base_lr=4e-3,
        mean=-8.34,
        std=4.78,
        transform="fft",
        short_clips="repeat",
        save_every_steps=200,
    )
    return Preset(config)


def m2d_mini_x() -> Preset:
    """m2d-mini further pre-trained as M2D-X, with other models as teachers (recipes/m2d-mini/teach.py).

    Two of the four runs whose average m2d-mini is: one by features of whole clips, the encoder of
    m2d-mini-tags, and one by features of frames of speech.

    Result: not in the paper; see the model card.
    Hardware and time: two CPU cores that multiply in bfloat16, a process each with batch_size=32: 47 minutes.
    """
    config = dataclasses.replace(
        m2d_mini().config,
        offline=OfflineConfig(kind="features"),
        start_parts="encoder",
        epochs=12,
        decay_epochs=3,
    )
    return Preset(config)


PRESETS: dict[str, Callable[[], Preset]] = {
    "m2d-0.7": m2d_07,
    "m2d-0.6": m2d_06,
    "m2d-0.7-16x4": m2d_07_16x4,
    "m2d-0.7-32k": m2d_07_32k,
    "msm-mae-0.75": msm_mae_075,
    "m2d-all-patches": m2d_all_patches,
    "m2d-as": m2d_as,
    "m2d-as-32k": m2d_as_32k,
    "m2d-s-4s": m2d_s_4s,
    "m2d-s-5s": m2d_s_5s,
    "m2d-s-6s": m2d_s_6s,
    "m2d-speech-80x4": m2d_speech_80x4,
    "m2d-x-icbhi2017": m2d_x_icbhi2017,
    "m2d-x-sprsound": m2d_x_sprsound,
    "m2d-clap": m2d_clap,
    "m2d-image": m2d_image,
    "m2d-mini": m2d_mini,
    "m2d-mini-x": m2d_mini_x,
}


def load_preset(name: str) -> Preset:
    """Return a preset.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in PRESETS:
        raise ConfigError(f"Unknown preset {name!r}. Available: {', '.join(PRESETS)}.")
    return dataclasses.replace(PRESETS[name](), name=name)
