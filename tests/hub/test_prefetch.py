"""Prefetched files: the samples and errors of files that are read one by one, in bounded memory."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import m2d_hub
from m2d_hub.audio import decode, open_audio, prefetch
from m2d_hub.audio.prefetch import Prefetcher
from m2d_hub.corpus import embed_files as embedding

from ..signals import noise

RATE = 16_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for index in range(40):
        suffix, rate = [("wav", 16_000), ("mp3", 44_100), ("flac", 22_050), ("ogg", 48_000)][index % 4]
        seconds = 0.1 + 3.9 * ((index * 7) % 40) / 39
        soundfile.write(folder / f"{index:02d}.{suffix}", noise(int(seconds * rate), 2).numpy(), rate)
    return folder


@pytest.fixture
def files(made, tmp_path):
    """Forty files of several formats and rates, from 0.1 to 4 s."""
    return sorted(Path(shutil.copytree(made, tmp_path / "files")).iterdir())


def read_here(file):
    """What the file holds, read by this thread."""
    return torch.cat(list(open_audio(file, RATE)[0].blocks()))


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("m2d_hub prefetch")]


@pytest.mark.parametrize("num_workers", [1, 7])
def test_samples_are_those_of_files_read_one_by_one(num_workers, files):
    with Prefetcher(num_workers) as reader:
        clips = [reader.add(clip) for file in files for clip in open_audio(file, RATE)]
        assert 1 <= len(readers()) <= num_workers
        for file, clip in zip(files, clips, strict=True):
            assert torch.equal(torch.cat(list(clip.blocks())), read_here(file))
    assert not readers()


def test_memory_is_bounded_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "BLOCK_S", 0.5)
    monkeypatch.setattr(prefetch, "BYTES_AHEAD", 8 * 4 * RATE // 2)
    decoded, original = [], decode.decode
    monkeypatch.setattr("m2d_hub.audio.clips.decode", lambda *arguments: map(count, original(*arguments)))

    def count(block):
        decoded.append(len(block))
        return block

    for index in range(6):
        soundfile.write(tmp_path / f"{index}.wav", noise(20 * RATE).numpy(), RATE)
    with Prefetcher(6) as reader:
        clips = [reader.add(clip) for path in sorted(tmp_path.iterdir()) for clip in open_audio(path, RATE)]
        time.sleep(0.3)
        # The blocks that wait together, one more of the first clip, and one in hand of each thread.
        assert 8 <= len(decoded) <= 8 + 1 + 6
        assert [sum(map(len, clip.blocks())) for clip in clips] == 6 * [20 * RATE]


@pytest.mark.parametrize("bad", ["NaN", "cut", "gone"])
def test_a_bad_file_raises_what_it_raises_alone(bad, tiny, files, tmp_path):
    """The last goes between being opened and being read, as on a disk that others use."""
    path = files[5]
    if bad == "NaN":
        soundfile.write(path.with_suffix(".wav"), np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
        path = files[5] = path.with_suffix(".wav")
    elif bad == "cut":
        path.write_bytes(path.read_bytes()[:60])
    clips = [clip for file in files if file != path or bad == "gone" for clip in open_audio(file, RATE)]
    if bad == "gone":
        path.unlink()
        with Prefetcher(2) as reader, pytest.raises(m2d_hub.AudioError, match=path.name):
            tiny.encode_clip([reader.add(clip) for clip in clips])
    with pytest.raises(m2d_hub.AudioError) as alone:
        tiny.encode_clip(path)
    with pytest.raises(m2d_hub.AudioError) as among:
        tiny.encode_clip(files)
    assert str(among.value) == str(alone.value) and not readers()


def test_threads_end_where_encoding_fails(tiny, files, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("encoder")

    monkeypatch.setattr(tiny.encoder, "frames", fail)
    with pytest.raises(ValueError, match="encoder") as kept:
        tiny.encode_clip(files)
    assert kept.value and not readers()


def test_threads_end_where_a_job_is_stopped(tiny, files, tmp_path, monkeypatch):
    tiny.save_pretrained(tmp_path / "model")
    encode = embedding._encode

    def interrupted(model, batch, *rest):
        if files[12] in [source.path for source in batch]:
            raise KeyboardInterrupt
        return encode(model, batch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "_encode", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            m2d_hub.embed_files(files, tmp_path / "out.npz", model=tmp_path / "model", batch_size=4)
        assert kept.value and not readers()
    resumed = m2d_hub.embed_files(files, tmp_path / "out.npz", model=tmp_path / "model", batch_size=4)
    assert (resumed.already_there, resumed.embedded) == (12, 28)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_control_c_ends_a_program_that_waits_for_a_reader(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "a.wav", noise(RATE).numpy(), RATE)
    code = (
        "import signal, sys, time, m2d_hub\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a job in the background ignores
        "from m2d_hub.audio import Clip\n"
        "def slowly(clip):\n"
        "    print('reading', flush=True)\n"
        "    for _ in range(600):\n"
        "        time.sleep(0.1)\n"
        "        yield clip_blocks\n"
        "import torch; clip_blocks = torch.zeros(0); Clip.blocks = slowly\n"
        "m2d_hub.load_model(sys.argv[1], device='cpu').encode_clip(sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "model", tmp_path / "a.wav"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "reading\n"
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors


def test_file_objects_are_not_prefetched_since_they_may_share_a_position(files):
    [clip] = open_audio(io.BytesIO(files[0].read_bytes()), RATE)
    with Prefetcher() as reader:
        assert reader.add(clip) is clip


@pytest.mark.parametrize("num_workers", [0, -1, 1.5, "2"])
def test_a_wrong_number_of_workers_is_refused(num_workers):
    with pytest.raises(m2d_hub.ConfigError, match=r"num_workers must be .* got"):
        Prefetcher(num_workers)
