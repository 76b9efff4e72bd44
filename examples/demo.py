"""Demo (`make demo`): embed and tag the clips of tests/data, find similar clips, and plot one."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F

import m2d_hub
from m2d_hub.plots import plot_clip

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ROOT / "tests" / "data"
PLOTTED = "bang_fireworks.ogg"
AUDIO = {".wav", ".flac", ".ogg", ".mp3"}


def main() -> None:
    """Run the demo."""
    model = m2d_hub.load_model("m2d-mini")  # both models are included in the package
    tagger = m2d_hub.load_model("m2d-mini-tags")
    files = sorted(path for path in CLIPS.iterdir() if path.suffix in AUDIO)

    start = time.perf_counter()
    clips = model.encode_clip(files)  # (B, N_F·D)
    took_s = time.perf_counter() - start
    frames = model.encode_frames(CLIPS / PLOTTED)
    print(f"encode_clip of {len(files)} files, 8 to 48 kHz: {tuple(clips.shape)} in {took_s:.1f} s")
    print(
        f"encode_frames of {PLOTTED}: {tuple(frames.features.shape)}, a frame every "
        f"{model.frame_hop_s * 1000:g} ms, first centre at {frames.timestamps_s[0]:.3f} s\n"
    )
    tags = [
        ", ".join(f"{tag.label} {tag.score:.2f}" for tag in best) for best in tagger.classify(files, top_k=2)
    ]
    print(results_table([path.name for path in files], clips, tags))

    plot = ROOT / "demo" / f"{Path(PLOTTED).stem}.png"
    plot_clip(model, CLIPS / PLOTTED, plot)
    print(f"\nPlot (spectrogram and similarity of frames): {plot.relative_to(ROOT)}")


def results_table(names: list[str], clips: torch.Tensor, tags: list[str]) -> str:
    """Return a table with the most similar other clip and the tags of each clip.

    Args:
        names: File names (B,); the part before the first underscore is the category.
        clips: Embeddings (B, D).
        tags: Tags of each clip (B,).
    """
    unit = F.normalize(clips, dim=-1)
    similarity, nearest = (unit @ unit.T).fill_diagonal_(-2).max(dim=-1)
    width = max(map(len, names))
    lines = [f"{'clip':{width}}  {'nearest':{width + 8}}  tags (score 0-1)"]
    hits = 0
    for name, score, other, own in zip(names, similarity.tolist(), nearest.tolist(), tags, strict=True):
        same = category(names[other]) == category(name)
        hits += same
        lines.append(f"{name:{width}}  {'*' if same else ' '} {names[other]:{width}} {score:.3f}  {own}")
    lines.append(f"* same category: {hits} of {len(names)} nearest clips")
    return "\n".join(lines)


def category(name: str) -> str:
    """Return the category of a clip from its file name: ``speech_en_1.wav`` is speech."""
    return name.split("_")[0]


if __name__ == "__main__":
    main()
