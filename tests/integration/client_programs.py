"""Each client's own program, run with an M2D model.

$ python -m tests.integration.client_programs [NAME...] --model m2d-mini

Install the programs with ``pip install 'm2d-hub[sklearn,datasets,mteb,ray]' s3prl xares torchcodec``, and
``pip install --no-deps hearvalidator``. scikit-learn, transformers and ONNX Runtime run in the tests.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import logging
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

import m2d_hub

from ..signals import tones

torch.set_num_threads(1)


def run_hearvalidator(model: str, folder: Path) -> str:
    tensorflow: Any = types.ModuleType("tensorflow")  # which HEAR imports for an isinstance, einops for types
    tensorflow.__spec__ = importlib.machinery.ModuleSpec("tensorflow", None)
    tensorflow.Module = tensorflow.Tensor = tensorflow.Variable = type("Module", (), {})
    sys.modules["tensorflow"] = tensorflow
    from hearvalidator.validate import ValidateModel

    validator = ValidateModel("m2d_hub.clients.hear", model, "cpu")
    validator()
    return "hear-validator: all checks passed (with a warning about frames longer than 50 ms)"


def run_s3prl(model: str, folder: Path) -> str:
    from m2d_hub.clients.s3prl import register

    register("m2d_hub", model)
    from s3prl.nn import Featurizer, S3PRLUpstream

    upstream = S3PRLUpstream("m2d_hub").eval()
    wavs = torch.zeros(3, 48_000)
    lengths = torch.tensor([48_000, 800, 20_000])
    for wav, length in zip(wavs, lengths, strict=True):
        wav[:length] = 0.1 * torch.randn(int(length))
    states, state_lengths = upstream(wavs, lengths)
    features, _ = Featurizer(upstream)(states, state_lengths)
    features.sum().backward()
    return (
        f"S3PRLUpstream and Featurizer: {upstream.num_layers} layers, sizes {set(upstream.hidden_sizes)}, "
        f"features {tuple(features.shape)}, gradients flow"
    )


def run_xares(model: str, folder: Path) -> str:
    os.environ["M2D_XARES_MODEL"] = model
    from xares.audio_encoder_checker import check_audio_encoder
    from xares.utils import attr_from_py_path

    encoder = attr_from_py_path("m2d_hub/clients/xares.py", endswith="Encoder")()
    if not check_audio_encoder(encoder):
        raise RuntimeError("X-ARES rejects the encoder; see its log.")
    return f"found by path, check_audio_encoder passed, output_dim {encoder.output_dim}"


def run_datasets(model: str, folder: Path) -> str:
    import datasets

    from m2d_hub.clients.datasets import embed

    clips, _ = tones(12)
    rows = datasets.Dataset.from_dict({"wave": clips})
    mapped = rows.map(
        lambda batch: {"embedding": embed(batch["wave"], 16_000, model)}, batched=True, batch_size=5
    )
    expected = m2d_hub.load_model(model, device="cpu").encode_clip(clips).numpy()
    difference = np.abs(np.array(mapped["embedding"]) - expected).max()
    audio = [{"array": clip, "sampling_rate": 16_000} for clip in clips]
    decoded = datasets.Dataset.from_dict({"audio": audio}).cast_column("audio", datasets.Audio())
    by_decoders = np.abs(embed(decoded["audio"], name=model) - expected).max()
    return (
        f"Dataset.map in batches: largest difference {difference:.1e}; a column of torchcodec's decoders: "
        f"{by_decoders:.1e}"
    )


def run_mteb(model: str, folder: Path) -> str:
    import mteb

    from m2d_hub.clients.mteb import META, M2DWrapper

    from ..clients.mteb_tones import Tones

    given, listed = (
        mteb.evaluate(subject, Tones(*tones(40)), cache=None).task_results[0].get_score()
        for subject in (M2DWrapper(model), META)
    )
    return f"mteb.evaluate on a local task of two tones: accuracy {given:.3f}; of META {listed:.3f}"


def run_ray(model: str, folder: Path) -> str:
    import ray

    from m2d_hub.clients.ray import EmbedAudio

    for index, clip in enumerate(tones(80, seconds=20.0)[0]):
        soundfile.write(folder / f"{index:03d}.wav", clip, 16_000)
    paths = sorted(map(str, folder.glob("*.wav")))
    expected = m2d_hub.load_model(model).encode_clip(paths).cpu().numpy()
    ray.init(num_cpus=2, log_to_driver=False, logging_level=logging.ERROR)
    rows = (
        ray.data.from_items([{"path": path} for path in paths])
        .map_batches(EmbedAudio, fn_constructor_args=(model,), batch_size=8, concurrency=2)
        .take_all()
    )
    ray.shutdown()
    difference = max(np.abs(row["embedding"] - expected[paths.index(row["path"])]).max() for row in rows)
    return f"EmbedAudio in map_batches, {len(rows)} of {len(paths)} files: {difference:.1e}"


# EVAR is not on PyPI. This makes the calls of its programs (ar_m2d.py, lineareval.py) with its settings
# (config/m2d.yaml), of which it reads feature_d again.
EVAR_SETTINGS = {
    **{"feature_d": 3840, "sample_rate": 16_000, "n_mels": 80, "hop_size": 160, "output_layers": [-1]},
    **{"encoder_only": True, "freeze_embed": True, "training_mask": 0.0},
}


def run_evar(model: str, folder: Path) -> str:
    from sklearn.linear_model import LogisticRegression

    from m2d_hub.clients.evar import RuntimeM2D

    cfg = types.SimpleNamespace(**EVAR_SETTINGS, weight_file=model)
    runtime = RuntimeM2D(cfg=cfg, weight_file=cfg.weight_file).eval()
    clips, labels = tones(40)
    features = []
    with torch.no_grad():
        for clip in clips:
            log_mel = runtime.normalize_batch(runtime.to_feature(torch.from_numpy(clip)[None]))
            features.append(runtime.encode_lms(log_mel).mean(dim=1)[0].numpy())
    assert cfg.feature_d == len(features[0])
    probe = LogisticRegression(max_iter=1_000).fit(features[:24], labels[:24])
    accuracy = probe.score(features[24:], labels[24:])
    return f"two tones: linear evaluation {accuracy:.3f}"


PROGRAMS: dict[str, Callable[[str, Path], str]] = {
    "evar": run_evar,
    "hearvalidator": run_hearvalidator,
    "s3prl": run_s3prl,
    "xares": run_xares,
    "datasets": run_datasets,
    "mteb": run_mteb,
    "ray": run_ray,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(PROGRAMS))
    parser.add_argument("--model", default="m2d-mini")
    arguments = parser.parse_args()
    if len(arguments.names) > 1:  # one process per program, since replaced modules stay
        command = [sys.executable, "-m", "tests.integration.client_programs", "--model", arguments.model]
        failed = [name for name in arguments.names if subprocess.run([*command, name]).returncode]
        sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
    (name,) = arguments.names
    torch.manual_seed(0)
    start_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        answer = PROGRAMS[name](arguments.model, Path(folder))
    print(f"RESULT | {name} | {answer} | {time.perf_counter() - start_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
