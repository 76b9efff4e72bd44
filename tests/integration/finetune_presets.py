"""Starts every fine-tuning preset at full width on real clips, and draws what its augmentations make of them.

    python tests/integration/finetune_presets.py

One optimizer step each of a ViT-Base with random weights: published ones may not be at hand. Batches are
small so that a laptop can do it; all else is the preset's own. The figures go to
tests/integration/results/finetune_presets.md, the picture beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from m2d_training.data.sampling import SampleKey
from m2d_training.evaluation.labelled import Subset
from m2d_training.finetuning.config import FinetuneConfig
from m2d_training.finetuning.data import FinetuneBatch, FinetuneDataset, augmented
from m2d_training.finetuning.model import build_audio_classifier
from m2d_training.finetuning.presets import FINETUNE_PRESETS
from m2d_training.finetuning.trainer import FinetuneTrainer, TaskObjective

from m2d_hub import M2D, ModelConfig
from m2d_hub.config import EncoderConfig
from m2d_hub.nn.patchout import KeptTokens
from m2d_hub.windows import Windows

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "finetune_presets.md"
CLIPS = ("speech_en_2.flac", "bang_fireworks.ogg")
CLASSES = {"as2m": 527, "as20k": 527, "esc50": 50, "spcv2": 35, "vc1": 1251, "icbhi2017": 4, "sprsound": 7}
SMALL_CLASSES = 8
RESPIRATORY = ("icbhi2017", "sprsound")  # the paper's model for these: patches of 16×4 over 2 s


@dataclasses.dataclass(frozen=True)
class Start:
    """What one step of a preset gave."""

    preset: str
    clean: np.ndarray  # (B, F, T) normalised log-mel
    augmented: np.ndarray  # NaN where patches are dropped
    ratios: list[float]  # of mixup
    loss: float
    grad_norm: float
    encoded: str  # patches that the encoder saw, of how many
    seconds: float


def write_model(preset: str, folder: Path) -> str:
    """A ViT-Base of the shape that the paper fine-tunes."""
    encoder = (
        EncoderConfig(input_size=(80, 200), patch_size=(16, 4)) if preset in RESPIRATORY else EncoderConfig()
    )
    M2D(ModelConfig(encoder=encoder)).save_pretrained(folder)
    return str(folder)


def without_augmentation(config: FinetuneConfig) -> FinetuneConfig:
    """The same crops as they are."""
    return dataclasses.replace(
        config, mixup_ratio=0.0, frequency_mask=0, time_mask=0, resized_crop=False, patchout_ratio=0.0
    )


def start(preset: str) -> Start:
    """One step of a preset."""
    config = dataclasses.replace(FINETUNE_PRESETS[preset](), batch_size=len(CLIPS))
    size = CLASSES.get(preset, SMALL_CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        labels = tuple(f"class {index}" for index in range(size))
        name, is_multi_label = write_model(preset, Path(folder)), config.loss == "bce"
        classifier = build_audio_classifier(name, config, labels, is_multi_label, config.seed)
    model = classifier.backbone
    files, rows = [str(ROOT / "tests" / "data" / name) for name in CLIPS], list(range(len(CLIPS)))
    subset = Subset(files, [(row % size,) for row in rows], size, rows)
    dataset = FinetuneDataset(subset, config, model.config.frontend, model.config.encoder, config.seed)
    batch = dataset.stack([dataset[SampleKey(1, index, index)] for index in range(len(CLIPS))])
    clean, _ = augmented(batch, model.frontend, without_augmentation(config))
    inputs, _ = augmented(batch, model.frontend, config)
    encoder = model.config.encoder
    windows = Windows.of(encoder).fitted(inputs.shape[-1])
    objective = TaskObjective(config.loss == "bce")
    warm = dataclasses.replace(config, warmup_epochs=0)  # or the first step's rate is zero
    trainer = FinetuneTrainer(warm, classifier, objective, 100, Accelerator(cpu=True))
    started = time.perf_counter()
    step = trainer.train_step([batch], 0)
    mels = encoder.patch_size[0]
    if batch.kept is not None:
        inputs = with_gaps(inputs, batch.kept, windows, mels)
    return Start(
        preset,
        clean.numpy(),
        inputs.numpy(),
        batch.mix_ratios.tolist(),
        step.loss,
        step.grad_norm,
        seen(batch, windows, encoder.grid[0]),
        time.perf_counter() - started,
    )


def with_gaps(log_mel: torch.Tensor, kept: KeptTokens, windows: Windows, mels: int) -> torch.Tensor:
    """NaN in place of the patches that patchout drops."""
    seen_tokens = torch.zeros(
        len(kept.ids), log_mel.shape[1] // mels * windows.window_tokens, dtype=torch.bool
    )
    seen_tokens[torch.arange(len(kept.ids))[:, None].expand_as(kept.ids)[kept.mask], kept.ids[kept.mask]] = (
        True
    )
    grid = seen_tokens.unflatten(1, (-1, windows.window_tokens))
    grid = grid.repeat_interleave(mels, dim=1).repeat_interleave(windows.patch_frames, dim=2)
    grid = F.pad(grid, (0, windows.window_frames - grid.shape[2]))[..., : windows.window_frames]
    grid = grid.unflatten(0, (len(log_mel), -1)).transpose(1, 2).flatten(2)  # (B, F, K·W)
    grid = F.pad(grid, (0, max(0, log_mel.shape[2] - grid.shape[2])))[..., : log_mel.shape[2]]
    return log_mel.masked_fill(~grid, torch.nan)


def seen(batch: FinetuneBatch, windows: Windows, num_freq: int) -> str:
    """Patches of the batch that the encoder sees, of those that sound."""
    num_windows = len(windows.plan(int(batch.num_frames.max())))
    whole = int(windows.token_mask(batch.num_frames, num_windows).sum()) * num_freq
    return f"{whole if batch.kept is None else int(batch.kept.mask.sum())} of {whole}"


def draw(starts: list[Start], path: Path) -> None:
    """Each preset's first clips, before and after."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(starts), 2 * len(CLIPS), figsize=(5 * len(CLIPS) * 1.6, 1.7 * len(starts)), layout="constrained"
    )
    colours = matplotlib.colormaps["magma"].with_extremes(bad="lightgrey")
    for row, one in zip(panels, starts, strict=True):
        for clip in range(len(CLIPS)):
            for axes, values, name in (
                (row[2 * clip], one.clean[clip], f"{one.preset}: {CLIPS[clip]}"),
                (row[2 * clip + 1], one.augmented[clip], f"augmented, λ = {one.ratios[clip]:.2f}"),
            ):
                axes.imshow(values, origin="lower", aspect="auto", cmap=colours, vmin=-2.5, vmax=2.5)
                axes.set_title(name, fontsize=8)
                axes.tick_params(labelsize=6)
    figure.supxlabel("frames of 10 ms (grey: patches that patchout drops; 0, the mean, where a mask lies)")
    figure.supylabel("mels")
    figure.savefig(path, dpi=60)


def report(starts: list[Start]) -> str:
    """Results as a page."""
    lines = [
        "# Every fine-tuning preset, one step at full width on real clips",
        "",
        f"`python tests/integration/finetune_presets.py`, torch {torch.__version__}, {len(CLIPS)} clips,",
        "ViT-Base with random weights; a fresh head has the loss of chance, ln 2 for sigmoids, else",
        "ln(classes).",
        "",
        "![Clips before and after each preset's augmentation](finetune_presets.png)",
        "",
        "| preset | classes | patches encoded | loss | gradient norm | s |",
        "|---|---|---|---|---|---|",
    ]
    for one in starts:
        size = CLASSES.get(one.preset, SMALL_CLASSES)
        lines.append(
            f"| {one.preset} | {size} | {one.encoded} | {one.loss:.3f} | {one.grad_norm:.3g} | "
            f"{one.seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Starts the presets, and writes page and picture."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    starts = []
    for preset in (name for name, config in FINETUNE_PRESETS.items() if config().images is None):
        starts.append(start(preset))
        print(preset, f"loss {starts[-1].loss:.3f}", flush=True)
    draw(starts, RESULTS.with_suffix(".png"))
    RESULTS.write_text(report(starts), encoding="utf-8")


if __name__ == "__main__":
    main()
