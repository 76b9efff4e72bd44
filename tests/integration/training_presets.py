"""Starts every preset for two steps at full width through the console script, on generated data.

    python tests/integration/training_presets.py [PRESET...]

Batches are small so that a laptop can do it; widths, depths, sizes, masks and losses are the presets' own.
Teachers and start weights have the right shapes and random values: the published ones may not be at hand.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from m2d_training.pretraining.presets import PRESETS

from m2d_hub import M2D, ModelConfig
from m2d_hub.config import EncoderConfig

RESULTS = Path(__file__).resolve().parent / "results" / "training_presets.md"
BATCH = 2
CLIPS = 2 * BATCH  # two steps of one epoch
SECONDS = 7.0
LABELS = ("Speech;Music", "Bird", "Cough", "Engine knocking")  # of AudioSet


def write_sounds(folder: Path) -> Path:
    """A list of generated clips with labels and captions."""
    rng = np.random.default_rng(0)
    rows = [["file", "label", "caption"]]
    for index in range(CLIPS):
        soundfile.write(folder / f"{index}.wav", 0.1 * rng.standard_normal(int(SECONDS * 32_000)), 32_000)
        rows.append([f"{index}.wav", LABELS[index % len(LABELS)], f"sound {index}"])
    with (folder / "list.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows(rows)
    return folder / "list.csv"


def write_pictures(folder: Path) -> Path:
    """A folder of generated pictures."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(CLIPS):
        Image.fromarray(rng.integers(0, 255, (256, 320, 3), dtype=np.uint8)).save(folder / f"{index}.jpg")
    return folder


def write_hubert(folder: Path) -> Path:
    """HuBERT-base with random weights."""
    from transformers import HubertConfig, HubertModel

    HubertModel(HubertConfig()).save_pretrained(folder)
    return folder


def write_text_encoder(folder: Path) -> Path:
    """A one-layer BERT of GTE-base's width with random weights."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sound", "0", "1", "2", "3"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(words), num_hidden_layers=1)).save_pretrained(folder)
    return folder


def write_m2d(folder: Path) -> Path:
    """M2D 80×200 16×4 with random weights."""
    encoder = EncoderConfig(input_size=(80, 200), patch_size=(16, 4))
    M2D(ModelConfig(encoder=encoder)).save_pretrained(folder)
    return folder


def options_of(preset: str, folder: Path, sounds: Path) -> list[str]:
    """Data, noise, weights and teachers that a preset needs."""
    if preset == "m2d-image":
        return ["--data", str(write_pictures(folder / "pictures"))]
    options = ["--data", str(sounds)]
    if PRESETS[preset]().config.noise_ratio:
        options += ["--noise", str(sounds)]
    if preset.startswith("m2d-s-"):
        options += ["--teacher", str(write_hubert(folder / "hubert"))]
    if preset == "m2d-clap":
        options += ["--teacher", str(write_text_encoder(folder / "text"))]
    if preset == "m2d-mini-x":
        options += ["--start", "m2d-mini", "--teacher", "m2d-mini"]
    if preset.startswith("m2d-x-"):
        model = str(write_m2d(folder / "m2d"))
        options += ["--start", model, "--teacher", model]
    return options


def start(preset: str) -> dict[str, object]:
    """Two steps of one preset; what they gave and how long they took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sounds = write_sounds(folder)
        settings = [f"batch_size={BATCH}", "accumulate_steps=1", "min_list_size=0", "epochs=1"]
        command = [sys.executable, "-m", "m2d_training", "pretrain", preset, "--out", str(folder / "run")]
        command += options_of(preset, folder, sounds)
        command += [part for setting in settings for part in ("--set", setting)]
        subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ))
        metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        exported = sorted(path.name for path in (folder / "run" / "export").iterdir())
    return {
        "steps": len(metrics),
        "loss": metrics[-1]["loss"],
        "m2d": metrics[-1]["m2d"],
        "offline": metrics[-1].get("offline"),
        "exported": exported,
    }


def report(results: dict[str, dict[str, object]]) -> str:
    """Results as a page."""
    lines = [
        "# Every preset, started for two steps at full width",
        "",
        f"`python tests/integration/training_presets.py`, torch {torch.__version__}, {BATCH} clips a step.",
        "The losses are of fresh weights: they say that each objective runs, not how well it learns.",
        "",
        "| preset | steps | loss | M2D | offline |",
        "|---|---|---|---|---|",
    ]
    for preset, result in results.items():
        cells = [result.get(name) for name in ("steps", "loss", "m2d", "offline")]
        lines.append(f"| {preset} | {' | '.join(map(_shown, cells))} |")
    return "\n".join(lines) + "\n"


def _shown(cell: object) -> str:
    return "–" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def main() -> None:
    """Starts the presets and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*", default=list(PRESETS))
    presets = parser.parse_args().presets
    results: dict[str, dict[str, object]] = {}
    for preset in presets:
        try:
            results[preset] = start(preset)
        except subprocess.CalledProcessError as error:
            results[preset] = {"error": error.stderr[-2000:]}
        print(preset, json.dumps(results[preset]), flush=True)
    if set(results) == set(PRESETS):
        RESULTS.write_text(report(results), encoding="utf-8")
    sys.exit(any("error" in result for result in results.values()))


if __name__ == "__main__":
    main()
