"""Damaged and hostile files: each reader raises one error that names the file, in bounded time and memory."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from m2d_training import OfflineConfig, PretrainConfig
from m2d_training.data.crops import CropPlan, crop_spectrogram
from m2d_training.data.entries import Entry, read_array
from m2d_training.data.images import crop_image
from m2d_training.data.manifest import Manifest
from m2d_training.data.sampling import SampleKey
from m2d_training.pretraining.dataset import PretrainDataset

from m2d_hub.config import FrontendConfig
from m2d_hub.errors import AudioError

PLAN = CropPlan(FrontendConfig(), num_frames=32, short_clips="pad")


def npy(array, **header):
    """Bytes of a ``.npy`` file, optionally with another header."""
    file = io.BytesIO()
    np.save(file, np.asarray(array), allow_pickle=True)
    if not header:
        return file.getvalue()
    values = {"descr": "<f4", "fortran_order": False, "shape": (80, 50), **header}
    file = io.BytesIO()
    file.write(np.lib.format.magic(1, 0))
    text = repr(values).encode() + b"\n"
    return file.getvalue() + struct.pack("<H", len(text)) + text + np.zeros(4000, np.float32).tobytes()


def npz(array):
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


GOOD = np.random.default_rng(0).standard_normal((80, 50)).astype(np.float32)
BAD_ARRAYS = {
    "empty file": b"",
    "text": b"no array at all",
    "cut header": npy(GOOD)[:40],
    "cut values": npy(GOOD)[:-1000],
    "npz": npz(GOOD),
    "objects": npy(np.array([{}, None], dtype=object)),
    "records": npy(np.zeros(3, dtype=[("a", "f4"), ("é", "f4")])),
    "no elements": npy(np.zeros((80, 0), np.float32)),
    "other mels": npy(np.zeros((64, 50), np.float32)),
    "NaN": npy(np.full((80, 50), np.nan)),
    "terabytes": npy(GOOD, shape=(80, 1 << 40)),
    "more than can be counted": npy(GOOD, shape=(1 << 62, 1 << 62)),
    "deep header": np.lib.format.magic(1, 0) + struct.pack("<H", 9000) + b"(" * 9000,
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
@pytest.mark.parametrize("kind", ["file", "member"])
def test_invalid_arrays_are_refused_by_name(tmp_path, name, kind):
    entry = write_entry(tmp_path, "bad.npy", BAD_ARRAYS[name], kind)
    with pytest.raises(AudioError, match=r"bad\.npy"):
        crop_spectrogram(entry, PLAN, np.random.default_rng(0))


def write_entry(folder, name, content, kind):
    """A file, or a member in the middle of a tar shard."""
    if kind == "file":
        (folder / name).write_bytes(content)
        return Entry(str(folder / name))
    (folder / "shard.tar").write_bytes(bytes(512) + content + bytes(512))
    return Entry(str(folder / "shard.tar"), 512, max(1, len(content)), name)


@pytest.mark.parametrize("kind", ["file", "member"])
@pytest.mark.parametrize("stored", [GOOD, GOOD[None], np.asfortranarray(GOOD), GOOD.astype(">f8")])
def test_arrays_of_all_layouts_and_types_are_read(tmp_path, kind, stored):
    entry = write_entry(tmp_path, "good.npy", npy(stored), kind)
    np.testing.assert_allclose(read_array(entry), stored)
    assert crop_spectrogram(entry, PLAN, np.random.default_rng(0)).values.shape == (80, 32)


def test_members_beyond_their_shard_are_refused_before_allocation(tmp_path):
    (tmp_path / "shard.tar").write_bytes(bytes(2000))
    for offset, size in [(512, 1 << 60), (1 << 60, 100), (-5, 100), (1900, 200)]:
        with pytest.raises(AudioError, match=r"shard\.tar:a\.npy"):
            read_array(Entry(str(tmp_path / "shard.tar"), offset, size, "a.npy"))


def test_pipes_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "folder.npy").mkdir()
    for name, problem in [("pipe", "is a pipe"), ("folder", "is a folder"), ("none", "does not exist")]:
        with pytest.raises(AudioError, match=f"{name}.npy {problem}"):
            read_array(Entry(str(tmp_path / f"{name}.npy")))


def png(width=40, height=30, broken=None):
    """A black PNG, optionally with one damaged part."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes((1 + 3 * width) * min(height, 50)))
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    if broken == "text":
        chunks.insert(1, chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(1 << 28))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BAD_IMAGES = {
    "empty": b"",
    "text bomb": png(broken="text"),
    "bomb": png(20_000, 20_000),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    "cut jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(20),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.parametrize("kind", ["file", "member"])
@pytest.mark.filterwarnings("ignore")
def test_invalid_images_are_refused_by_name(tmp_path, name, kind):
    entry = write_entry(tmp_path, "bad.png", BAD_IMAGES[name], kind)
    with pytest.raises(AudioError, match=r"bad\.png"):
        crop_image(entry, (32, 32), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("png", "RGB"), ("png", "P"), ("jpg", "L"), ("jpg", "CMYK"), ("webp", "RGB"), ("bmp", "1")],
)
@pytest.mark.parametrize("kind", ["file", "member"])
def test_images_of_all_formats_and_modes_are_read(tmp_path, suffix, mode, kind):
    from PIL import Image

    Image.new("L", (40, 30), 90).convert("RGB").convert(mode).save(tmp_path / f"a.{suffix}")
    entry = write_entry(tmp_path, f"a.{suffix}", (tmp_path / f"a.{suffix}").read_bytes(), kind)
    assert crop_image(entry, (32, 32), np.random.default_rng(0)).shape == (3, 32, 32)


SMALL = {"input_size": (80, 32), "embed_dim": 64, "depth": 1, "predictor_dim": 64, "predictor_depth": 1}
BAD_FEATURES = {
    **{name: BAD_ARRAYS[name] for name in ("empty file", "cut values", "terabytes")},
    "other width": npy(np.zeros((60, 23), np.float32)),
    "NaN": npy(np.full((60, 24), np.nan)),
}


@pytest.mark.parametrize("bad", [*BAD_FEATURES, "missing"])
@pytest.mark.parametrize("signal", ["features", "text"])
def test_a_clip_with_damaged_features_is_skipped(tmp_path, bad, signal):
    entries = []
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", GOOD)
        features = np.full((60, 24) if signal == "features" else 24, index, np.float32)
        np.save(tmp_path / f"{index}.features.npy", features)
        entries.append(
            Entry(
                str(tmp_path / f"{index}.npy"),
                features_path=str(tmp_path / f"{index}.features.npy"),
                row=index + 1,
            )
        )
    spoiled = tmp_path / "1.features.npy"
    spoiled.unlink() if bad == "missing" else spoiled.write_bytes(BAD_FEATURES[bad])
    offline = OfflineConfig(kind=signal, dim=24, text_dim=24)
    manifest = Manifest("list", "spectrogram", entries)
    sample = PretrainDataset(PretrainConfig(**SMALL, offline=offline), manifest)[SampleKey(0, 0, 1)]
    assert [(clip.row, clip.file) for _, clip in sample.left_out][:1] == [(2, str(tmp_path / "1.npy"))]
    assert "1.features.npy" in sample.left_out[0][1].error
    assert np.unique(sample.target).tolist() in ([0.0], [2.0])
