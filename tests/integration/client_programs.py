"""Each client's own program, run with an M2D model.

$ python -m tests.integration.client_programs [NAME...] --model m2d-mini

Install the programs with ``pip install 'm2d-hub[sklearn,datasets,mteb,ray]' s3prl xares torchcodec``, those
of HEAR with ``pip install --no-deps hearvalidator heareval pytorch-lightning==1.9.5 intervaltree
sortedcontainers torchinfo "setuptools<81"``. scikit-learn, transformers and ONNX Runtime run in the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import io
import json
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


def stand_in(name: str, **contents: Any) -> types.ModuleType:
    """Add a module in place of a missing one."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(contents)
    sys.modules[name] = module
    return module


def stand_in_tensorflow() -> None:
    """Replace tensorflow, which HEAR imports for one isinstance and einops for two types."""
    stand_in(
        "tensorflow", Module=type("Module", (), {}), Tensor=type("T", (), {}), Variable=type("V", (), {})
    )


def run_hearvalidator(model: str, folder: Path) -> str:
    stand_in_tensorflow()
    from hearvalidator.validate import ValidateModel

    validator = ValidateModel("m2d_hub.clients.hear", model, "cpu")
    validator()
    return "hear-validator: all checks passed (with a warning about frames longer than 50 ms)"


def run_heareval(model: str, folder: Path) -> str:
    # Beside tensorflow it imports sound event metrics, which this task does not use.
    stand_in_tensorflow()
    metrics = types.SimpleNamespace(SoundEventMetrics=None, EventBasedMetrics=None, SegmentBasedMetrics=None)
    stand_in("sed_eval", sound_event=metrics)
    stand_in("dcase_util", containers=stand_in("dcase_util.containers", MetaDataContainer=None))
    from heareval.embeddings.task_embeddings import Embedding, task_embeddings
    from heareval.predictions.task_predictions import task_predictions

    task = folder / "tones"
    clips, labels = tones(48)
    bounds = {"train": (0, 24), "valid": (24, 36), "test": (36, 48)}
    for split, (first, last) in bounds.items():
        audio = task / "16000" / split
        audio.mkdir(parents=True)
        for index in range(first, last):
            soundfile.write(audio / f"{index}.wav", clips[index], 16_000)
        names = {f"{index}.wav": [("low", "high")[labels[index]]] for index in range(first, last)}
        (task / f"{split}.json").write_text(json.dumps(names))
    (task / "labelvocabulary.csv").write_text("idx,label\n0,low\n1,high\n")
    metadata = {
        "task_name": "tones",
        "version": "1",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": "trainvaltest",
        "splits": list(bounds),
        "sample_duration": None,
        "evaluation": ["top1_acc"],
        "evaluation_params": {"task_specific_param_grid": {"lr": [1e-2], "batch_size": [8]}},
    }
    (task / "task_metadata.json").write_text(json.dumps(metadata))
    embedding = Embedding("m2d_hub.clients.hear", model)
    task_embeddings(embedding, task, folder / "embeddings")
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # its own checkpoints hold classes
    with contextlib.chdir(folder):  # it writes its logs where it is run
        task_predictions(
            folder / "embeddings",
            embedding.model.scene_embedding_size,
            grid_points=1,
            gpus=None,
            in_memory=True,
            deterministic=True,
            grid="faster",
            logger=logging.getLogger("heareval"),
        )
    results = json.loads((folder / "embeddings" / "test.predicted-scores.json").read_text())
    return f"embeddings and predictions of a local scene task, accuracy {results['test']['test_score']:.3f}"


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
    (accuracy, _), (neighbours, _) = run_xares_task(encoder, folder)
    return (
        f"found by path, check_audio_encoder passed, output_dim {encoder.output_dim}; a local task of two "
        f"tones: linear layer {accuracy:.3f}, nearest neighbours {neighbours:.3f}"
    )


def run_xares_task(encoder: torch.nn.Module, folder: Path) -> Any:
    """Return scores and sizes of the linear layer and the nearest neighbours on shards of tones."""
    import torchaudio
    import webdataset
    from xares.common import XaresSettings
    from xares.task import TaskConfig, XaresTask

    def load(file: Any, **_: Any) -> tuple[torch.Tensor, int]:
        samples, sample_rate = soundfile.read(file, dtype="float32", always_2d=True)
        return torch.from_numpy(samples.T), sample_rate

    # torchaudio 2.11 cannot decode without torchcodec, and X-ARES skips clips that cannot be decoded.
    torchaudio.load = load
    clips, labels = tones(64)
    bounds = {"train": (0, 40), "valid": (40, 52), "test": (52, 64)}
    task_folder = folder / "tones"
    task_folder.mkdir()
    for split, (first, last) in bounds.items():
        with webdataset.TarWriter(str(task_folder / f"{split}-000.tar")) as shard:
            for index in range(first, last):
                flac = io.BytesIO()
                soundfile.write(flac, clips[index], 16_000, format="FLAC")
                shard.write(
                    {"__key__": f"{index:03}", "flac": flac.getvalue(), "json": {"label": labels[index]}}
                )
    (task_folder / XaresSettings().audio_ready_filename).touch()
    config = TaskConfig(
        name="tones",
        env_root=folder,
        private=True,
        encoder=encoder,
        output_dim=2,
        label_processor=lambda row: row["label"],
        num_encoder_workers=0,
        eval_weight=bounds["test"][1] - bounds["test"][0],
    )
    return XaresTask(config).run()


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


# EVAR is not on PyPI. This makes the calls of its programs (ar_m2d.py, lineareval.py, finetune.py) with its
# settings (config/m2d.yaml), of which it reads feature_d again.
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
    return f"two tones: linear evaluation {accuracy:.3f}; fine-tuning {_evar_finetune(model):.3f}"


def _evar_finetune(model: str) -> float:
    """Return the accuracy after the loop of finetune.py: BatchNorm and a linear layer, trained with SGD."""
    from m2d_hub.clients.evar import RuntimeM2D

    cfg = types.SimpleNamespace(**EVAR_SETTINGS, weight_file=model)
    runtime = RuntimeM2D(cfg=cfg, weight_file=cfg.weight_file)
    head = torch.nn.Sequential(
        torch.nn.BatchNorm1d(cfg.feature_d, affine=False), torch.nn.Linear(cfg.feature_d, 2)
    )
    clips, labels = tones(40)
    log_mel = runtime.normalize_batch(
        runtime.to_feature(torch.from_numpy(np.stack([np.resize(clip, 16_000) for clip in clips])))
    )
    targets = torch.as_tensor(labels)
    network = torch.nn.ModuleList([runtime, head])
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    for _ in range(20):
        network.train()
        logits = head(runtime.encode_lms(log_mel[:24]).transpose(1, 2).mean(dim=-1))
        torch.nn.functional.cross_entropy(logits, targets[:24]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        network.eval()
        found = head(runtime.encode_lms(log_mel[24:]).transpose(1, 2).mean(dim=-1)).argmax(dim=1)
    return float((found == targets[24:]).float().mean())


PROGRAMS: dict[str, Callable[[str, Path], str]] = {
    "evar": run_evar,
    "hearvalidator": run_hearvalidator,
    "heareval": run_heareval,
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
