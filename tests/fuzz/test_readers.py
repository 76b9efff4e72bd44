"""Readers on randomly damaged files raise only the package's errors, without delay.

The suite tries 200 mutations per reader; ``FUZZ_ROUNDS`` sets another number, and ``FUZZ_MINUTES`` the time
per reader (``make fuzz``). A failure names the seed that reproduces it.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import m2d_hub
from m2d_hub.audio.clips import open_audio
from m2d_hub.audio.live import Interrupt, open_pipe
from m2d_hub.config import EncoderConfig, ModelConfig
from m2d_hub.corpus.formats import FORMATS
from m2d_hub.corpus.records import Fingerprint, Row
from m2d_hub.corpus.stored import read_embeddings
from m2d_hub.corpus.tables import read_table
from m2d_hub.pretrained.checkpoint import load_checkpoint
from m2d_hub.pretrained.published import read_published
from m2d_hub.pretrained.release import extract_checkpoint

MAX_SAMPLES = 50_000_000  # that a small file may give
AUDIO = {
    "wav": {"format": "WAV"},
    "wav-float": {"format": "WAV", "subtype": "FLOAT"},
    "wav-adpcm": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "caf": {"format": "CAF"},
    "w64": {"format": "W64"},
    "flac": {"format": "FLAC"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
}


@pytest.mark.parametrize("kind", AUDIO)
def test_audio(kind, fuzz):
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 4_000).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, noise, 16_000, **AUDIO[kind])

    def read(data):
        [clip] = open_audio(io.BytesIO(data), 16_000)
        total = 0
        for block in clip.blocks():
            assert block.isfinite().all()
            total += len(block)
            if total > MAX_SAMPLES:
                return

    fuzz(file.getvalue(), read)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    m2d_hub.M2D(
        ModelConfig(encoder=EncoderConfig(input_size=(80, 16), embed_dim=4, head_width=4, depth=1))
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_models_folder(name, model, tmp_path, fuzz):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((model / file).read_bytes())

    def read(data):
        (tmp_path / name).write_bytes(data)
        load_checkpoint(tmp_path)

    fuzz((model / name).read_bytes(), read)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_published_weights(is_zip, model, tmp_path, fuzz):
    tensors = {
        name.removeprefix("encoder."): tensor.clone()
        for name, tensor in load_checkpoint(model).tensors.items()
    }
    file = io.BytesIO()
    torch.save({"model": tensors}, file, _use_new_zipfile_serialization=is_zip)

    def read(data):
        (tmp_path / "a.pth").write_bytes(data)
        read_published(tmp_path / "a.pth", sample_rate=16_000)

    fuzz(file.getvalue(), read)


def test_a_releases_zip(tmp_path, fuzz):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/checkpoint.pth", np.random.default_rng(0).bytes(500))

    def read(data):
        (tmp_path / "a.zip").write_bytes(data)
        (tmp_path / "out").mkdir(exist_ok=True)
        extract_checkpoint(tmp_path / "a.zip", tmp_path / "out")

    fuzz(file.getvalue(), read)


def test_a_table(tmp_path, fuzz):
    def read(data):
        (tmp_path / "a.csv").write_bytes(data)
        read_table(tmp_path / "a.csv", ["file"], ["label"])

    fuzz('file,label\n"a, b.wav",dog;cat\ncafé.wav,\n'.encode(), read)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_an_output(suffix, tmp_path, fuzz):
    pytest.importorskip("pyarrow")
    rows = [Row(name, np.ones(8, np.float32), None, Fingerprint(1, 2, 3)) for name in ("a.wav", "b.wav")]
    settings = {"model": "m", "weights": "w", "kind": "clip", "window_s": None}
    path = tmp_path / f"out{suffix}"
    FORMATS[suffix].write(path, settings, rows)

    def read(data):
        path.write_bytes(data)
        list(read_embeddings(path).rows())

    fuzz(path.read_bytes(), read)


@pytest.mark.parametrize("kind", ["m4a", "webm", "mka", "wma", "wv", "aac", "alac.m4a", "mp4"])
def test_audio_that_pyav_decodes(kind, fuzz):
    from ..hub import test_decode as formats

    def read(data):
        [clip] = open_audio(io.BytesIO(data), 16_000)
        for block in itertools.islice(clip.blocks(), 200):
            assert block.isfinite().all()

    fuzz(formats.encoded(kind), read)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "aiff"])
def test_audio_from_a_pipe(kind, fuzz):
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 4_000).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, noise, 16_000, **AUDIO[kind])

    def read(data):
        _, blocks = open_pipe(io.BytesIO(data), Interrupt())
        assert sum(map(len, itertools.islice(blocks, 1_000))) <= MAX_SAMPLES

    fuzz(file.getvalue(), read)
