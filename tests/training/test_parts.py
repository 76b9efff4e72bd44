"""Rows with start_s and end_s: a part of a recording is read as a file that holds only that part."""

import csv

import numpy as np
import pytest
import soundfile
import torch
from m2d_training import FinetuneConfig, PretrainConfig
from m2d_training.data.manifest import read_manifest
from m2d_training.data.sampling import SampleKey
from m2d_training.evaluation.clip_encoder import ClipEncoder, mean_samples
from m2d_training.evaluation.labelled import read_labelled
from m2d_training.finetuning.data import clips_to_score
from m2d_training.linear.features import stored_features
from m2d_training.pretraining.dataset import PretrainDataset

from m2d_hub import ConfigError
from m2d_hub.audio import AudioPart, open_audio
from m2d_hub.errors import AudioError

# (start_s, end_s, split) of twelve parts of a recording of 12 s: low and high tones take turns.
SPLITS = ["train"] * 6 + ["valid"] * 2 + ["test"] * 4
PARTS = [(index + 0.25, index + 0.25 + 0.05 * (index + 3), split) for index, split in enumerate(SPLITS)]


def recording(rate=16_000):
    rng = np.random.default_rng(0)
    time_s = np.arange(12 * rate) / rate
    hertz = np.where(time_s.astype(int) % 2, 3000.0, 300.0)
    return (0.2 * np.sin(2 * np.pi * hertz * time_s) + 0.02 * rng.standard_normal(len(time_s))).astype("f4")


def write_list(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([header, *rows])
    return path


def write_lists(folder, rate=16_000):
    """A list of parts of one recording, and one of files that hold these parts."""
    samples = recording(rate)
    soundfile.write(folder / "all.wav", samples, rate, subtype="FLOAT")
    cut, parts = [], []
    for index, (start, end, split) in enumerate(PARTS):
        piece = samples[round(start * rate) : round(end * rate)]
        soundfile.write(folder / f"{index}.wav", piece, rate, subtype="FLOAT")
        label = ("low", "high")[index % 2]
        cut.append([f"{index}.wav", label, split])
        parts.append(["all.wav", label, split, start, end])
    header = ["file", "label", "split"]
    return (
        write_list(folder / "parts.csv", [*header, "start_s", "end_s"], parts),
        write_list(folder / "cut.csv", header, cut),
    )


@pytest.fixture
def lists(tmp_path):
    return write_lists(tmp_path)


@pytest.mark.parametrize("rate", [16_000, 44_100, 8_000])
def test_evaluation_hears_a_part_as_a_file_of_its_own(tmp_path, tiny, rate):
    parts, cut = (read_labelled(path) for path in write_lists(tmp_path, rate))
    files = [[clip.file for clip in labelled.clips] for labelled in (parts, cut)]
    config = FinetuneConfig()
    lengths = [[len(clip) for clips in clips_to_score(own, tiny, config) for clip in clips] for own in files]
    assert lengths[0] == lengths[1]
    features = [stored_features(ClipEncoder(tiny), own, tmp_path, progress=False).layer(0) for own in files]
    torch.testing.assert_close(*features, atol=1e-6, rtol=0)
    assert mean_samples(files[0], 16_000, 1) == mean_samples(files[1], 16_000, 1)


def test_pretraining_crops_parts_as_files(lists):
    config = PretrainConfig(input_size=(80, 32), embed_dim=64, depth=1)
    parts, cut = (PretrainDataset(config, read_manifest(str(path))) for path in lists)
    for index in range(len(parts)):
        key = SampleKey(epoch=1, position=index, index=index, first=index)
        np.testing.assert_array_equal(parts[key].values, cut[key].values)


def test_a_part_without_start_or_end_reaches_to_the_files(tmp_path):
    soundfile.write(tmp_path / "a.wav", recording(), 16_000, subtype="FLOAT")
    rows = [["a.wav", "", "0.5"], ["a.wav", "11", ""], ["a.wav", "11.5", "99"], ["a.wav", "", ""]]
    path = write_list(tmp_path / "list.csv", ["file", "start_s", "end_s"], rows)
    lengths = []
    for entry in read_manifest(str(path)).entries:
        (clip,) = open_audio(entry.path, 16_000)
        lengths.append(sum(len(block) for block in clip.blocks()))
        assert clip.expected_samples == lengths[-1]
    assert lengths == [8_000, 16_000, 8_000, 192_000]


def test_a_part_beyond_the_files_end_is_named(tmp_path):
    soundfile.write(tmp_path / "a.wav", recording(), 16_000)
    with pytest.raises(AudioError, match=r"a\.wav from 12\.5 s to 13\.0 s is empty: the file ends at 12 s"):
        open_audio(AudioPart(str(tmp_path / "a.wav"), 12.5, 13.0), 16_000)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("2", "1.5", r"row 3 ends at 1.5 s, not after its start at 2 s"),
        ("", "0", r"row 3 ends at 0 s, not after its start at 0 s"),
        ("soon", "1", r"row 3 has the start_s 'soon'; give seconds, 0 or more, or leave it empty"),
        ("-1", "1", r"row 3 has the start_s '-1'"),
        ("0", "inf", r"row 3 has the end_s 'inf'"),
        ("nan", "1", r"row 3 has the start_s 'nan'"),
    ],
)
@pytest.mark.parametrize("read", [lambda path: read_manifest(str(path)), read_labelled])
def test_parts_that_are_none_are_refused_with_the_row(tmp_path, read, start, end, message):
    rows = [["a.wav", "a", "train", "0", "1"], ["a.wav", "b", "train", start, end]]
    path = write_list(tmp_path / "list.csv", ["file", "label", "split", "start_s", "end_s"], rows)
    with pytest.raises(ConfigError, match=message):
        read(path)
