"""Segments of recordings, each embedded as the clip that it is."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.numpy import load_file

import m2d_hub
from m2d_hub.audio import AudioPart
from m2d_hub.cli.main import main

from ..conftest import TEXT_DIM
from ..signals import noise

RATE = 16_000
TOLERANCE = 1e-5


@pytest.mark.parametrize(
    ("seconds", "options", "starts"),
    [
        (6.0, {"segment_s": 2.0}, [0, 2, 4]),
        (6.5, {"segment_s": 2.0}, [0, 2, 4, 4.5]),  # the last one is moved back
        (6.0, {"segment_s": 3.0, "hop_s": 1.0}, [0, 1, 2, 3]),
        (6.4, {"segment_s": 3.0, "hop_s": 1.0}, [0, 1, 2, 3, 3.4]),
        (12.0, {"segment_s": 5.5, "hop_s": 5.0}, [0, 5, 6.5]),
        (1.5, {"segment_s": 2.0, "hop_s": 0.5}, [0]),
        (2.0, {"segment_s": 2.0, "hop_s": 0.5}, [0]),
    ],
    ids=str,
)
def test_segments_cover_a_recording_and_equal_its_cuts(seconds, options, starts, tiny):
    waveform = noise(round(seconds * RATE))
    segments = tiny.encode_segments(waveform, **options)
    length = min(seconds, options["segment_s"])
    assert segments.start_s.tolist() == pytest.approx(starts)
    assert segments.end_s.tolist() == pytest.approx([start + length for start in starts])
    cuts = [waveform[round(start * RATE) : round((start + length) * RATE)] for start in starts]
    torch.testing.assert_close(segments.features, tiny.encode_clip(cuts), atol=TOLERANCE, rtol=0)


def test_segments_of_several_files_equal_their_parts(tiny, tmp_path):
    lengths = {"a.wav": 5.0, "b.wav": 2.2}
    for name, seconds in lengths.items():
        soundfile.write(tmp_path / name, noise(round(seconds * RATE)).numpy(), RATE, subtype="FLOAT")
    paths = [tmp_path / name for name in lengths]
    segments = tiny.encode_segments(paths, segment_s=2.0, batch_size=2)
    assert segments.clip.tolist() == [0, 0, 0, 1, 1]
    assert segments.start_s.tolist() == pytest.approx([0, 2, 3, 0, 0.2])
    positions = zip(segments.clip.tolist(), segments.start_s.tolist(), segments.end_s.tolist(), strict=True)
    parts = [AudioPart(str(paths[clip]), start_s, end_s) for clip, start_s, end_s in positions]
    torch.testing.assert_close(segments.features, tiny.encode_clip(parts), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment_s": 0}, "segment_s must be a positive number of seconds, got 0"),
        ({"segment_s": 1.0, "hop_s": 2.0}, "hop_s=2.0 is longer than segment_s=1.0"),
    ],
)
def test_segments_out_of_range_are_refused(options, message, tiny):
    with pytest.raises(m2d_hub.ConfigError, match=message):
        tiny.encode_segments(noise(RATE), **options)


def test_segments_of_a_model_with_projections_lie_in_the_text_space(tiny):
    with pytest.raises(m2d_hub.ConfigError, match="no projections into a text space"):
        tiny.encode_segments(noise(RATE), text_space=True)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Three recordings, of 2.5, 1 and 3 s."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, seconds in {"a": 2.5, "b": 1.0, "c": 3.0}.items():
        soundfile.write(folder / f"{name}.wav", noise(round(seconds * RATE)).numpy(), RATE, subtype="FLOAT")
    return folder


def rows_of(out):
    """All segments of an output, as other programs read them: file, start, end, embedding."""
    if out.suffix == ".npz":
        with np.load(out) as arrays:
            columns = [arrays[name] for name in ("file", "start_s", "end_s", "embedding")]
    elif out.suffix == ".safetensors":
        arrays = load_file(out)
        with safe_open(out, "numpy") as opened:
            files = json.loads(opened.metadata()["file"])
        columns = [files, arrays["start_s"], arrays["end_s"], arrays["embedding"]]
    else:
        table = pyarrow.parquet.read_table(out).to_pylist()
        columns = [[row[name] for row in table] for name in ("file", "start_s", "end_s", "embedding")]
    return sorted(
        (str(file), float(start), float(end), np.asarray(vector).tolist())
        for file, start, end, vector in zip(*columns, strict=True)
    )


@pytest.mark.parametrize("suffix", [".parquet", ".dataset", ".npz", ".safetensors"])
def test_an_output_has_one_row_per_segment_and_resumes(suffix, recordings, tiny_folder, tiny, tmp_path):
    out, options = (
        tmp_path / f"out{suffix}",
        {"model": tiny_folder, "segment_s": 1.0, "hop_s": 0.5, "device": "cpu"},
    )
    assert m2d_hub.embed_files(recordings / "a.wav", out, **options).embedded == 1
    summary = m2d_hub.embed_files(recordings, out, **options)
    assert (summary.embedded, summary.already_there) == (2, 1)
    files = sorted(recordings.iterdir())
    expected = tiny.encode_segments(files, segment_s=1.0, hop_s=0.5)
    found = rows_of(out)
    assert [row[:3] for row in found] == [
        (files[clip].as_posix(), start, end)
        for clip, start, end in zip(
            expected.clip.tolist(), expected.start_s.tolist(), expected.end_s.tolist(), strict=True
        )
    ]
    embeddings = torch.tensor([row[3] for row in found])
    torch.testing.assert_close(embeddings, expected.features, atol=TOLERANCE, rtol=0)
    with pytest.raises(m2d_hub.ConfigError, match="started with other settings"):
        m2d_hub.embed_files(recordings, out, **options | {"hop_s": 0.25})


def test_a_folder_has_an_array_of_segments_for_each_file(recordings, tiny_folder, tiny, tmp_path):
    m2d_hub.embed_files(recordings, tmp_path / "out", model=tiny_folder, segment_s=1.0, device="cpu")
    expected = tiny.encode_segments(recordings / "c.wav", segment_s=1.0)
    [array] = (tmp_path / "out").rglob("c.wav.npy")
    torch.testing.assert_close(torch.from_numpy(np.load(array)), expected.features, atol=TOLERANCE, rtol=0)
    assert np.load(array.with_name("c.wav.timestamps_s.npy")).tolist() == [[0, 1], [1, 2], [2, 3]]


def test_a_search_finds_segments_with_their_times(recordings, tiny_folder, tmp_path):
    out = tmp_path / "out.parquet"
    m2d_hub.embed_files(recordings, out, model=tiny_folder, segment_s=1.0, device="cpu")
    waveform = noise(3 * RATE)[RATE : 2 * RATE].numpy()
    best, *_ = m2d_hub.search(waveform, out, model=tiny_folder)
    assert (best.file, best.start_s, best.end_s) == ((recordings / "c.wav").as_posix(), 1, 2)
    assert best.score == pytest.approx(1, abs=1e-5)
    with pytest.raises(m2d_hub.ConfigError, match="is not in the space shared with text"):
        m2d_hub.search(embeddings=out, text="rain")
    with pytest.raises(m2d_hub.ConfigError, match="needs a query or a text"):
        m2d_hub.search(waveform, out, text="rain")


def test_words_find_the_segments_closest_to_them(recordings, tiny_config, text_folder, tmp_path):
    clap = m2d_hub.ClapConfig(dim=24, text_dim=TEXT_DIM, text_encoder=str(text_folder))
    torch.manual_seed(0)
    model = m2d_hub.M2D(replace(tiny_config, clap=clap)).eval()
    model.save_pretrained(tmp_path / "clap")
    out = tmp_path / "words.npz"
    options = ["--model", str(tmp_path / "clap"), "--device", "cpu"]
    command = ["embed", str(recordings), "--out", str(out), "--segment", "1", "--text-space", *options]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["search", "--text", "rain falls", str(out), "--json", *options])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    segments = model.encode_segments(sorted(recordings.iterdir()), segment_s=1.0, text_space=True)
    scores = torch.cosine_similarity(segments.features, model.encode_text(["rain falls"]))
    assert [match["score"] for match in found] == pytest.approx(
        scores.sort(descending=True).values[:5].tolist(), abs=1e-5
    )
    best = int(scores.argmax())
    assert found[0]["start_s"] == segments.start_s[best] and found[0]["end_s"] == segments.end_s[best]


def test_segments_of_frames_are_refused(recordings, tiny_folder, tmp_path):
    with pytest.raises(m2d_hub.ConfigError, match="segment_s and text_space need kind 'clip', got 'frames'"):
        m2d_hub.embed_files(recordings, tmp_path / "out.npz", model=tiny_folder, kind="frames", segment_s=1.0)
    with pytest.raises(m2d_hub.ConfigError, match="hop_s needs segment_s"):
        m2d_hub.embed_files(recordings, tmp_path / "out.npz", model=tiny_folder, hop_s=1.0)
