"""``m2d-train prepare``: shards that hold the same audio with its statistics, whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from m2d_training import prepare
from m2d_training.cli.main import main
from m2d_training.data.crops import CropPlan, crop_waveform
from m2d_training.data.entries import Entry
from m2d_training.data.manifest import read_manifest

from m2d_hub.config import FrontendConfig
from m2d_hub.errors import AudioError, ConfigError
from m2d_hub.nn.frontend import LogMelFrontend

RATE = 16_000
FRONTEND = LogMelFrontend(FrontendConfig())


def write_tone(path, seconds=1.0, rate=RATE, seed=0):
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * (200 + 300 * time_s) * time_s) + 0.05 * rng.standard_normal(len(time_s))
    soundfile.write(path, tone, rate)


def write_list(folder, names, **columns):
    rows = [["file", *columns], *zip(names, *columns.values(), strict=True)]
    with (folder / "list.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows(rows)
    return str(folder / "list.csv")


def test_shards_hold_the_same_audio_as_the_files(tmp_path):
    names = ["a.wav", "b.wav", "c.flac"]
    for index, name in enumerate(names):
        write_tone(tmp_path / name, seconds=1 + index, rate=(RATE, 44_100, RATE)[index], seed=index)
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    data = write_list(tmp_path, [*names, "broken.wav"], label=["x", "y", "x;y", "z"])
    result = prepare(data, tmp_path / "shards", progress=False)
    manifest = read_manifest(str(tmp_path / "shards"))
    assert (result.clips, result.left_out) == (3, 1)
    assert [entry.label for entry in manifest.entries] == ["x", "y", "x;y"]
    with (tmp_path / "shards" / "errors.csv").open(newline="") as errors:
        (named,) = csv.DictReader(errors)
    assert (named["row"], named["file"]) == ("5", str(tmp_path / "broken.wav"))
    assert "cannot be read as audio" in named["error"]
    plan = CropPlan(FRONTEND.config, 64, short_clips="pad")
    for entry, name in zip(manifest.entries, names, strict=True):
        stored = crop_waveform(entry, plan, np.random.default_rng(0))
        direct = crop_waveform(Entry(str(tmp_path / name)), plan, np.random.default_rng(0))
        np.testing.assert_allclose(stored.values, direct.values, atol=1e-3)


def test_the_same_audio_gives_the_same_bytes(tmp_path, monkeypatch):
    write_tone(tmp_path / "a.wav")
    data = write_list(tmp_path, ["a.wav"], label=["x"])
    prepare(data, tmp_path / "one", progress=False)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    prepare(data, tmp_path / "two", progress=False)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")
    )
    assert one == two


def test_prepared_statistics_are_those_of_all_log_mel_values(tmp_path):
    write_tone(tmp_path / "a.wav", seed=1)
    write_tone(tmp_path / "b.wav", seconds=2.0, seed=2)
    prepare(write_list(tmp_path, ["a.wav", "b.wav"]), tmp_path / "shards", progress=False)
    values = torch.cat(
        [
            FRONTEND.log_mel(torch.from_numpy(soundfile.read(tmp_path / name, dtype="float32")[0])[None])[0]
            for name in ("a.wav", "b.wav")
        ],
        dim=1,
    )
    stored = json.loads((tmp_path / "shards" / "statistics.json").read_text())
    assert stored["mean"] == pytest.approx(values.mean().item(), abs=1e-3)
    assert stored["std"] == pytest.approx(values.std().item(), abs=1e-3)
    assert (
        read_manifest(str(tmp_path / "shards" / "shard-{000000..000000}.tar")).statistics.mean
        == stored["mean"]
    )


def test_long_clips_are_split_into_parts(tmp_path):
    write_tone(tmp_path / "a.wav", seconds=4.6)
    result = prepare(write_list(tmp_path, ["a.wav"]), tmp_path / "shards", split_s=2.0, progress=False)
    assert result.clips == 2
    assert result.hours * 3600 == pytest.approx(4.6, abs=1e-3)


def test_lists_of_which_more_than_half_cannot_be_read_are_refused(tmp_path):
    write_tone(tmp_path / "0.wav")
    names = ["0.wav", "missing 1.wav", "missing 2.wav"]
    with pytest.raises(AudioError, match=r"2 of 3 clips cannot be read, the first in row 3: .*exist"):
        prepare(write_list(tmp_path, names), tmp_path / "shards", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.wav", "list.csv"]


@pytest.mark.parametrize(
    ("option", "value"), [("split_s", float("nan")), ("num_workers", -1), ("sample_rate", 0)]
)
def test_invalid_options_are_refused_by_name(tmp_path, option, value):
    with pytest.raises(ConfigError, match=f"{option} must be"):
        prepare(tmp_path, tmp_path / "out", **{option: value})


def test_a_folder_that_holds_something_is_not_replaced(tmp_path, monkeypatch):
    write_tone(tmp_path / "0.wav")
    data = write_list(tmp_path, ["0.wav"])
    (tmp_path / "shards").mkdir()
    prepare(data, tmp_path / "shards", progress=False)  # an empty one may be there
    for out in (tmp_path / "shards", tmp_path / "0.wav"):
        with pytest.raises(ConfigError, match=f"{out.name} already exists: give another folder as out"):
            prepare(data, out, progress=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="cannot be replaced as a whole"):
        prepare(data, tmp_path / "here", progress=False)


@pytest.mark.slow
def test_a_killed_preparation_cannot_be_trained_on_and_starts_again(tmp_path):
    (tmp_path / "sounds").mkdir()
    for index in range(8):
        write_tone(tmp_path / "sounds" / f"{index}.wav", seconds=20.0, seed=index)
    out, partial = tmp_path / "shards", tmp_path / "shards.partial"
    command = ["prepare", str(tmp_path / "sounds"), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "m2d_training", *command], env=environment, stderr=subprocess.DEVNULL
    ) as child:
        deadline = time.monotonic() + 120
        while not any(shard.stat().st_size > 500_000 for shard in partial.glob("*.tar")):
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
    assert not out.exists()
    with pytest.raises(ConfigError, match="the rest of an interrupted preparation"):
        read_manifest(str(partial))
    assert CliRunner().invoke(main, command).exit_code == 0
    assert len(read_manifest(str(out)).entries) == 8 and not partial.exists()


def test_a_linked_folder_is_written_through_and_percent_signs_are_kept(tmp_path):
    write_tone(tmp_path / "a.wav")
    (tmp_path / "100%d disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "100%d disk")
    assert prepare(write_list(tmp_path, ["a.wav"]), tmp_path / "link", progress=False).clips == 1
    assert (tmp_path / "link").is_symlink() and (tmp_path / "100%d disk" / "shard-000000.tar").is_file()
