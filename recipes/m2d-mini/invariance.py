"""How little embeddings change with level, noise, resampler and window, and how well frames locate sounds.

    python recipes/m2d-mini/invariance.py MODEL... --clips DATA/dev --originals DATA/unpacked

``DATA/dev`` has a ``manifest.csv``, of which 200 clips of the train split are used. ``--originals`` is a
folder of audio at 8, 44.1 and 48 kHz. Prints a table with one column per model.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torchaudio.functional import resample

from m2d_hub import M2D, load_model

NUM_CLIPS = 200
RATE = 16_000
CLIPS = Path(__file__).parents[2] / "tests" / "data"
MAX_S = 10.0


def evenly(items: list, number: int) -> list:
    """Return ``number`` items at equal distances."""
    return [items[index] for index in np.linspace(0, len(items) - 1, min(number, len(items))).astype(int)]


def read(path: Path) -> tuple[np.ndarray, int]:
    """Return the first seconds of a file (S,), mono, with its rate."""
    with soundfile.SoundFile(path) as file:
        samples = file.read(int(MAX_S * file.samplerate), dtype="float32", always_2d=True)
        return samples.mean(axis=1), file.samplerate


def dev_clips(folder: Path) -> list[np.ndarray]:
    """Return clips of the train split (S,)."""
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        rows = [row["file"] for row in csv.DictReader(lines) if row["split"] == "train"]
    return [read(folder / file)[0] for file in evenly(rows, NUM_CLIPS)]


def originals(folder: Path) -> dict[int, list[np.ndarray]]:
    """Return clips of 1 s and more by sample rate."""
    found: dict[int, list[Path]] = {8_000: [], 44_100: [], 48_000: []}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".wav", ".ogg", ".flac"):
            try:
                info = soundfile.info(path)
            except soundfile.LibsndfileError:
                continue
            if info.samplerate in found and info.duration > 1:
                found[info.samplerate].append(path)
    return {rate: [read(path)[0] for path in evenly(paths, 60)] for rate, paths in found.items() if paths}


def median_cosine(model: M2D, first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """Return the median cosine similarity of the embeddings of two versions of clips."""
    pair = (model.encode_clip(clips) for clips in (first, second))
    return float(torch.cosine_similarity(*pair).median())


def level(clips: list[np.ndarray], decibels: float) -> list[np.ndarray]:
    """Return clips at another level, in 16 bits."""
    gain = 10 ** (decibels / 20)
    return [np.round(clip * gain * 32_768).astype(np.float32) / 32_768 for clip in clips]


def noisy(clips: list[np.ndarray]) -> list[np.ndarray]:
    """Return clips with white noise 20 dB below them."""
    rng = np.random.default_rng(0)
    return [clip + 0.1 * clip.std() * rng.standard_normal(len(clip)).astype(np.float32) for clip in clips]


def edge_difference(model: M2D, waveform: np.ndarray) -> float:
    """Return how much less similar neighbouring frames are across the edge of a window than within it."""
    frames = model.encode_frames(waveform).features[0]
    cosines = torch.cosine_similarity(frames[:-1], frames[1:])
    tokens = model.windows.window_tokens
    is_edge = (torch.arange(len(cosines)) + 1) % tokens == 0
    return float(cosines[~is_edge].mean() - cosines[is_edge].mean())


def burst_ratio(model: M2D, burst: np.ndarray) -> float:
    """Return how much a burst of 0.5 s changes the frames in it, relative to the others of its window."""
    num_samples = round(model.window_s * RATE) - 200
    quiet = 0.003 * np.random.default_rng(0).standard_normal(num_samples).astype(np.float32)
    start = 5 * round(model.frame_hop_s * RATE)
    with_burst = quiet.copy()
    with_burst[start : start + RATE // 2] += 0.1 * burst[: RATE // 2] / burst[: RATE // 2].std()
    before, after = model.encode_frames([quiet, with_burst]).features
    change = (after - before).norm(dim=-1)
    times = model.encode_frames(quiet).timestamps_s
    inside = (times > start / RATE) & (times < start / RATE + 0.5)
    return float(change[inside].mean() / change[~inside].mean())


def loudest(path: Path) -> np.ndarray:
    """Return the loudest half second of a clip."""
    waveform, rate = read(path)
    waveform = soxr.resample(waveform, rate, RATE)
    starts = range(0, len(waveform) - RATE // 2, RATE // 10)
    start = max(starts, key=lambda first: np.square(waveform[first : first + RATE // 2]).sum())
    return waveform[start : start + RATE // 2]


def rows(clips: list[np.ndarray], by_rate: dict[int, list[np.ndarray]]) -> dict[str, Callable[[M2D], float]]:
    """Return a function of a model for each row of the table."""
    white = 0.1 * np.random.default_rng(1).standard_normal(60 * RATE).astype(np.float32)
    found: dict[str, Callable[[M2D], float]] = {
        "cosine at -12 dB": lambda model: median_cosine(model, clips, level(clips, -12)),
        "cosine at -20 dB": lambda model: median_cosine(model, clips, level(clips, -20)),
        "cosine at -30 dB": lambda model: median_cosine(model, clips, level(clips, -30)),
        "cosine with noise 20 dB below": lambda model: median_cosine(model, clips, noisy(clips)),
    }
    for rate, own in by_rate.items():
        by_soxr = [soxr.resample(clip, rate, RATE) for clip in own]
        by_torchaudio = [resample(torch.from_numpy(clip), rate, RATE).numpy() for clip in own]
        found[f"cosine of resamplers, {rate} Hz"] = lambda model, pair=(by_soxr, by_torchaudio): (
            median_cosine(model, *pair)
        )
    music = [clip for rate in (44_100, 48_000) for clip in by_rate.get(rate, []) if len(clip) >= 9 * rate]
    music = [soxr.resample(clip, 44_100, RATE) for clip in music[:20]]
    found["difference across edges, noise"] = lambda model: edge_difference(model, white)
    found["difference across edges, music"] = lambda model: float(
        np.mean([edge_difference(model, clip) for clip in music])
    )
    bursts = {
        "noise": white,
        "speech": loudest(CLIPS / "speech_en_1.wav"),
        "bird": loudest(CLIPS / "birds_1.ogg"),
    }
    for name, burst in bursts.items():
        found[f"burst ratio, {name}"] = lambda model, burst=burst: burst_ratio(model, burst)
    return found


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--originals", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="an array of two rows")
    models = [load_model(name, device="cpu") for name in arguments.models]
    print(f"| | {' | '.join(arguments.models)} |")
    print(f"|{'---|' * (len(models) + 1)}")
    for name, measure in rows(dev_clips(arguments.clips), originals(arguments.originals)).items():
        print(f"| {name} | {' | '.join(f'{measure(model):.3f}' for model in models)} |", flush=True)


if __name__ == "__main__":
    main()
