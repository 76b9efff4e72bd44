"""`make demo`: embeds the clips of tests/data, prints the nearest and the tags of each, draws a picture."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F

import m2d_hub
from m2d_hub.plots import plot_clip

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ROOT / "tests" / "data"
PICTURE_OF = "bang_fireworks.ogg"
AUDIO = {".wav", ".flac", ".ogg", ".mp3"}


def main() -> None:
    """Runs the demo."""
    model = m2d_hub.load_model("m2d-mini")  # its weights are in the package, and the tagger's
    tagger = m2d_hub.load_model("m2d-mini-tags")
    files = sorted(path for path in CLIPS.iterdir() if path.suffix in AUDIO)

    begun = time.perf_counter()
    clips = model.encode_clip(files)  # (B, N_F·D)
    took_s = time.perf_counter() - begun
    frames = model.encode_frames(CLIPS / PICTURE_OF)
    print(f"encode_clip of {len(files)} files, 8 to 48 kHz: {tuple(clips.shape)} in {took_s:.1f} s")
    print(
        f"encode_frames of {PICTURE_OF}: {tuple(frames.features.shape)}, a frame every "
        f"{model.frame_hop_s * 1000:g} ms, the first centred on {frames.timestamps_s[0]:.3f} s\n"
    )
    tags = [
        ", ".join(f"{tag.label} {tag.score:.2f}" for tag in best) for best in tagger.classify(files, top_k=2)
    ]
    print(answers([path.name for path in files], clips, tags))

    picture = ROOT / "demo" / f"{Path(PICTURE_OF).stem}.png"
    plot_clip(model, CLIPS / PICTURE_OF, picture)
    print(f"\nPicture (spectrogram, and how alike its frames are): {picture.relative_to(ROOT)}")


def answers(names: list[str], clips: torch.Tensor, tags: list[str]) -> str:
    """Each clip's nearest other by cosine similarity, and its tags; ``*`` marks one of the same kind.

    Args:
        names: File names (B,); what stands before the first underscore is the kind.
        clips: Embeddings (B, D).
        tags: What the tagger says of each (B,).
    """
    unit = F.normalize(clips, dim=-1)
    similarity, nearest = (unit @ unit.T).fill_diagonal_(-2).max(dim=-1)
    width = max(map(len, names))
    lines = [f"{'clip':{width}}  {'nearest':{width + 8}}  tags, of 0 to 1"]
    hits = 0
    for name, score, other, own in zip(names, similarity.tolist(), nearest.tolist(), tags, strict=True):
        same = kind(names[other]) == kind(name)
        hits += same
        lines.append(f"{name:{width}}  {'*' if same else ' '} {names[other]:{width}} {score:.3f}  {own}")
    lines.append(f"* of the same kind: {hits} of {len(names)} nearest clips")
    return "\n".join(lines)


def kind(name: str) -> str:
    """What a clip is of, by its file name: ``speech_en_1.wav`` is speech."""
    return name.split("_")[0]


if __name__ == "__main__":
    main()
