"""Take one optimizer step of every fine-tuning preset at full width on real clips.

    python tests/integration/finetune_presets.py

The model is a ViT-Base with random weights, and batches are small; everything else is the preset's. The
figures are written to tests/integration/results/finetune_presets.md.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from m2d_training.data.sampling import SampleKey
from m2d_training.evaluation.labelled import Subset
from m2d_training.finetuning.data import FinetuneBatch, FinetuneDataset
from m2d_training.finetuning.model import build_audio_classifier
from m2d_training.finetuning.presets import FINETUNE_PRESETS
from m2d_training.finetuning.trainer import FinetuneTrainer, TaskObjective

from m2d_hub import M2D, ModelConfig
from m2d_hub.config import EncoderConfig
from m2d_hub.windows import Windows

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "finetune_presets.md"
CLIPS = ("speech_en_2.flac", "bang_fireworks.ogg")
CLASSES = {"as2m": 527, "as20k": 527, "esc50": 50, "spcv2": 35, "vc1": 1251, "icbhi2017": 4, "sprsound": 7}
SMALL_CLASSES = 8
RESPIRATORY = ("icbhi2017", "sprsound")  # the paper's model for these: patches of 16×4 over 2 s


def step_of(preset: str) -> str:
    """Take one step of a preset; return its row of the table."""
    config = dataclasses.replace(FINETUNE_PRESETS[preset], batch_size=len(CLIPS))
    size, is_multi_label = CLASSES.get(preset, SMALL_CLASSES), config.loss == "bce"
    encoder = EncoderConfig()
    if preset in RESPIRATORY:
        encoder = EncoderConfig(input_size=(80, 200), patch_size=(16, 4))
    with tempfile.TemporaryDirectory() as folder:
        M2D(ModelConfig(encoder=encoder)).save_pretrained(folder)
        labels = tuple(f"class {index}" for index in range(size))
        classifier = build_audio_classifier(folder, config, labels, is_multi_label, config.seed)
    model, rows = classifier.backbone.config, list(range(len(CLIPS)))
    files = [str(ROOT / "tests" / "data" / name) for name in CLIPS]
    subset = Subset(files, [(row % size,) for row in rows], size, rows)
    dataset = FinetuneDataset(subset, config, model.frontend, model.encoder, config.seed)
    batch = dataset.stack([dataset[SampleKey(1, index, index)] for index in rows])
    warm = dataclasses.replace(config, warmup_epochs=0)  # otherwise the first step's rate is zero
    objective = TaskObjective(is_multi_label)
    trainer = FinetuneTrainer(warm, classifier, objective, 100, Accelerator(cpu=True))
    started = time.perf_counter()
    step = trainer.train_step([batch], 0)
    seconds = time.perf_counter() - started
    figures = f"{step.loss:.3f} | {step.grad_norm:.3g} | {seconds:.1f}"
    return f"| {preset} | {size} | {encoded_patches(batch, model.encoder)} | {figures} |"


def encoded_patches(batch: FinetuneBatch, encoder: EncoderConfig) -> str:
    """Return how many patches of the batch are encoded, and how many contain audio."""
    max_frames = int(batch.num_frames.max())
    windows = Windows.of(encoder).fitted(max_frames)
    valid = windows.token_mask(batch.num_frames, len(windows.plan(max_frames)))
    whole = int(valid.sum()) * encoder.grid[0]
    return f"{whole if batch.kept is None else int(batch.kept.mask.sum())} of {whole}"


def main() -> None:
    """Write the table."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    lines = [
        "# Every fine-tuning preset, one step at full width on real clips",
        "",
        f"`python tests/integration/finetune_presets.py`, torch {torch.__version__}, {len(CLIPS)} clips,",
        "ViT-Base with random weights. A new head has the loss of chance: ln 2, or ln(classes) of a softmax.",
        "",
        "| preset | classes | patches encoded | loss | gradient norm | s |",
        "|---|---|---|---|---|---|",
    ]
    for preset in (name for name, config in FINETUNE_PRESETS.items() if config.images is None):
        lines.append(step_of(preset))
        print(lines[-1], flush=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
