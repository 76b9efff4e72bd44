"""The command line, as users and programs call it."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pyarrow.parquet
import pytest
import safetensors
import safetensors.numpy
import soundfile
import torch
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli import main as cli
from m2d_hub.config import EncoderConfig, HeadConfig, ModelConfig
from m2d_hub.corpus import embed_batch
from m2d_hub.corpus import embed_files as embedding

from ..processes import ONE_THREAD

DATA = Path(__file__).parents[1] / "data"
CLIPS = [
    DATA / "speech_en_1.wav",
    DATA / "tabla_stroke.flac",
    DATA / "bang_explosion.ogg",
    DATA / "tabla_loop.mp3",
]
CONSOLE_SCRIPT = Path(sys.executable).parent / "m2d-hub"
TOLERANCE = 1e-5  # the contract's, for a clip in other company


def save_model(folder, **settings):
    torch.manual_seed(0)
    encoder = EncoderConfig(input_size=(80, 96), embed_dim=64, depth=2)
    m2d_hub.M2D(ModelConfig(encoder=encoder, **settings)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "other")


@pytest.fixture(scope="session")
def tagger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tagger"
    return save_model(folder, head=HeadConfig(3), labels=("dog", "cat", "rain"))


@pytest.fixture(scope="session")
def model(tiny):
    return m2d_hub.load_model(tiny, device="cpu")


def run(*arguments, status=0):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def embed(*arguments, model, status=0):
    return run("embed", *arguments, "--model", model, "--device", "cpu", status=status)


def write_noise(path, seed=0, seconds=0.3):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(16_000 * seconds))
    soundfile.write(path, noise, 16_000)
    return path


def read_clips(path):
    """Embeddings by file, each format with its own library."""
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        return dict(zip(table["file"].to_pylist(), np.array(table["embedding"].to_pylist()), strict=True))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(zip(arrays["file"].tolist(), arrays["embedding"], strict=True))
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, framework="numpy") as file:
            return dict(zip(json.loads(file.metadata()["file"]), file.get_tensor("embedding"), strict=True))
    return {row["file"]: np.load(path / row["array"]) for row in read_csv(path / "index.csv")}


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


OUTS = ["out.parquet", "out.npz", "out.safetensors", "out"]


@pytest.mark.parametrize("name", OUTS)
def test_embed_writes_what_encode_clip_gives(name, tiny, model, tmp_path):
    out = tmp_path / name
    embed(*CLIPS, "--out", out, "--batch-size", 3, model=tiny)
    clips = read_clips(out)
    assert list(clips) == [clip.as_posix() for clip in CLIPS]
    for clip in CLIPS:
        expected = model.encode_clip(clip)[0].numpy()
        np.testing.assert_allclose(clips[clip.as_posix()], expected, atol=TOLERANCE)
    assert not out.with_name(name + ".parts").exists()
    assert not out.with_name(name + ".errors.csv").exists()


@pytest.mark.parametrize("kind", ["frames", "layers"])
@pytest.mark.parametrize("name", OUTS)
def test_frames_and_layers_come_without_padding_and_with_times(name, kind, tiny, model, tmp_path):
    out = tmp_path / name
    embed(*CLIPS[:2], "--out", out, "--kind", kind, model=tiny)
    for clip in CLIPS[:2]:
        frames = (model.encode_frames if kind == "frames" else model.encode_layers)(clip)
        features, times = read_frames(out, clip.as_posix())
        expected = frames.features[0] if kind == "frames" else frames.features[:, 0]
        np.testing.assert_allclose(features, expected.numpy(), atol=TOLERANCE)
        np.testing.assert_allclose(times, frames.timestamps_s.numpy())


def read_frames(path, file):
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        row = table["file"].to_pylist().index(file)
        times = np.array(table["timestamps_s"][row].as_py())
        assert table["num_frames"][row].as_py() == len(times)
        return np.array(table["embedding"][row].as_py()), times
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays[f"embedding/{file}"], arrays[f"timestamps_s/{file}"]
    if path.suffix == ".safetensors":
        arrays = safetensors.numpy.load_file(path)
        return arrays[f"embedding/{file}"], arrays[f"timestamps_s/{file}"]
    array = path / {row["file"]: row["array"] for row in read_csv(path / "index.csv")}[file]
    return np.load(array), np.load(array.with_name(array.name.removesuffix(".npy") + ".timestamps_s.npy"))


def test_folder_output_keeps_relative_paths_and_never_collides(tiny, tmp_path):
    for place in ("one/deep/a.wav", "one/deep/a.flac", "one/b.wav", "two/b.wav", "two/B.wav"):
        write_noise(tmp_path / place, seed=len(place) + place.count("B"))
    out = tmp_path / "out"
    embed(tmp_path / "one", tmp_path / "two", "--out", out, model=tiny)
    arrays = {
        Path(row["file"]).relative_to(tmp_path).as_posix(): row["array"]
        for row in read_csv(out / "index.csv")
    }
    assert arrays["one/deep/a.wav"] == "deep/a.wav.npy"
    assert arrays["one/deep/a.flac"] == "deep/a.flac.npy"
    assert arrays["one/b.wav"] == "b.wav.npy"
    assert len({array.lower() for array in arrays.values()}) == 5
    assert all((out / array).is_file() for array in arrays.values())


def test_csv_names_files_relative_to_itself_and_outputs_keep_its_names(tiny, tmp_path):
    write_noise(tmp_path / "corpus" / "audio" / "x.wav")
    table = tmp_path / "corpus" / "list.csv"
    table.write_text("label,file\nnoise,audio/x.wav\n")
    embed(table, "--out", tmp_path / "out.npz", model=tiny)
    assert list(read_clips(tmp_path / "out.npz")) == ["audio/x.wav"]


def test_a_list_of_parts_is_taken_as_files_and_says_so(tiny, tmp_path, caplog):
    write_noise(tmp_path / "a.wav")
    (tmp_path / "list.csv").write_text("file,start_s,end_s\na.wav,0,0.02\na.wav,0.02,\n")
    embed(tmp_path / "list.csv", "--out", tmp_path / "out.npz", model=tiny)
    assert list(read_clips(tmp_path / "out.npz")) == ["a.wav"]
    assert "names parts of files in 2 rows" in caplog.text


def test_file_that_is_meant_twice_is_embedded_once(tiny, tmp_path, monkeypatch):
    write_noise(tmp_path / "a.wav")
    write_noise(tmp_path / "b.wav")
    (tmp_path / "notes.txt").write_text("no audio")
    monkeypatch.chdir(tmp_path)
    embed("*", "a.wav", tmp_path / "b.wav", ".", "--out", "out.npz", model=tiny)
    assert list(read_clips(tmp_path / "out.npz")) == ["a.wav", "b.wav"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_file_name_that_is_no_text_does_not_stop_the_rest(tiny, tmp_path):
    write_noise(tmp_path / "in" / "a.wav")
    os.rename(write_noise(tmp_path / "x.wav"), os.fsencode(tmp_path / "in") + b"/\xff.wav")
    for name in OUTS:
        arguments = ["embed", str(tmp_path / "in"), "--out", str(tmp_path / name), "--model", tiny]
        result = CliRunner().invoke(cli.main, arguments)
        assert result.exit_code in (0, 3), result.output
        errors = tmp_path / f"{name}.errors.csv"
        failed = [row["file"] for row in read_csv(errors)] if errors.exists() else []
        names = sorted(Path(file).name for file in [*read_clips(tmp_path / name), *failed])
        assert names == ["\\xff.wav", "a.wav"]


@pytest.mark.parametrize("name", OUTS)
def test_unreadable_files_are_reported_and_do_not_stop_the_rest(name, tiny, tmp_path):
    good = [write_noise(tmp_path / "in" / f"{index}.wav", index) for index in (1, 3)]
    (tmp_path / "in" / "2.wav").write_text("not audio")
    (tmp_path / "in" / "4.m4a").write_text("of a kind that is not read")
    out = tmp_path / name
    result = embed(tmp_path / "in", tmp_path / "gone.wav", "--out", out, model=tiny, status=3)
    errors = read_csv(tmp_path / f"{name}.errors.csv")
    assert [Path(row["file"]).name for row in errors] == ["2.wav", "4.m4a", "gone.wav"]
    assert "gone.wav does not exist" in errors[2]["error"]
    assert f"Files that could not be read: 3; see {out}.errors.csv." in result.output
    assert list(read_clips(out)) == [path.as_posix() for path in good]


@pytest.mark.parametrize("name", OUTS)
def test_second_run_tries_failed_files_again_and_adds_new_ones(name, tiny, model, tmp_path):
    write_noise(tmp_path / "in" / "a.wav", 1)
    (tmp_path / "in" / "b.wav").write_text("not audio yet")
    out = tmp_path / name
    embed(tmp_path / "in", "--out", out, model=tiny, status=3)
    write_noise(tmp_path / "in" / "b.wav", 2)
    write_noise(tmp_path / "in" / "c.wav", 3)
    result = embed(tmp_path / "in", "--out", out, model=tiny)
    assert f"Files embedded into {out}: 2 (already there: 1)." in result.output
    assert not (tmp_path / f"{name}.errors.csv").exists()
    clips = read_clips(out)
    assert sorted(Path(file).name for file in clips) == ["a.wav", "b.wav", "c.wav"]
    for file, clip in clips.items():
        np.testing.assert_allclose(clip, model.encode_clip(file)[0].numpy(), atol=TOLERANCE)


def test_finished_job_does_nothing_when_run_again(tiny, tmp_path, monkeypatch):
    out = tmp_path / "out.npz"
    embed(CLIPS[1], "--out", out, model=tiny)
    before = out.stat().st_mtime_ns
    monkeypatch.setattr(embed_batch, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    result = embed(CLIPS[1], "--out", out, "--json", model=tiny)
    assert json.loads(result.stdout) == {
        "out": str(out),
        "embedded": 0,
        "already_there": 1,
        "failed": 0,
        "errors_file": None,
    }
    assert out.stat().st_mtime_ns == before


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_killed_job_goes_on_and_does_no_file_twice(name, tiny, tmp_path):
    total = 40
    for index in range(total):
        write_noise(tmp_path / "in" / f"{index:03d}.wav", index)
    out = tmp_path / name
    command = [
        CONSOLE_SCRIPT,
        "embed",
        "in",
        "--model",
        tiny,
        "--out",
        name,
        "--batch-size",
        "1",
        "--device",
        "cpu",
    ]

    def finished():
        parts = tmp_path / "out.parquet.parts"
        return len(list(out.rglob("*.npy") if name == "out" else parts.glob("*.safetensors")))

    with subprocess.Popen(command, cwd=tmp_path, env=ONE_THREAD, stderr=subprocess.DEVNULL) as process:
        while finished() < 4:
            assert process.poll() is None, "the job ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    assert not out.is_file()

    summary = json.loads(subprocess.check_output([*command, "--json"], cwd=tmp_path, env=ONE_THREAD))
    assert 3 <= summary["already_there"] < total
    assert summary["embedded"] + summary["already_there"] == total
    assert sorted(read_clips(out)) == [f"in/{index:03d}.wav" for index in range(total)]
    kept = [path for path, time_ns in written.items() if path.stat().st_mtime_ns == time_ns]
    # One array may have been there whose line in the index was not.
    assert len(kept) >= len(written) - 1
    assert not (tmp_path / "out.parquet.parts").exists()


@pytest.mark.parametrize("name", ["out.parquet", "out.npz", "out.safetensors"])
def test_kill_between_merging_and_tidying_up_duplicates_nothing(name, tiny, tmp_path, monkeypatch):
    write_noise(tmp_path / "in" / "a.wav")
    out = tmp_path / name

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("m2d_hub.corpus.folders.shutil.rmtree", killed)
        CliRunner().invoke(cli.main, ["embed", str(tmp_path / "in"), "--out", str(out), "--model", tiny])
    assert out.exists() and (tmp_path / f"{name}.parts").exists()
    write_noise(tmp_path / "in" / "b.wav")
    embed(tmp_path / "in", "--out", out, model=tiny)
    assert [Path(file).name for file in read_clips(out)] == ["a.wav", "b.wav"]
    assert len(pyarrow.parquet.read_table(out) if out.suffix == ".parquet" else read_clips(out)) == 2


def test_index_line_that_a_kill_cut_short_is_done_again(tiny, tmp_path):
    for name in ("a", "b"):
        write_noise(tmp_path / "in" / f"{name}.wav")
    out = tmp_path / "out"
    embed(tmp_path / "in", "--out", out, model=tiny)
    index = out / "index.csv"
    index.write_bytes(index.read_bytes()[:-9])
    result = embed(tmp_path / "in", "--out", out, model=tiny)
    assert f"Files embedded into {out}: 1 (already there: 1)." in result.output
    assert [Path(row["file"]).name for row in read_csv(index)] == ["a.wav", "b.wav"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["--kind", "frames"], "kind 'clip', now 'frames'"),
        (["--window", "0.5"], "window_s None, now 0.5"),
        (["--window", "inf"], "window_s None, now 'inf'"),
    ],
)
@pytest.mark.parametrize("name", OUTS)
def test_going_on_with_other_settings_is_refused(name, changed, told, tiny, tmp_path):
    out = tmp_path / name
    embed(CLIPS[1], "--out", out, model=tiny)
    result = embed(CLIPS[1], "--out", out, *changed, model=tiny, status=1)
    assert f"Error: {out} was begun with other settings ({told})." in result.output


def test_going_on_with_another_model_is_refused_while_parts_are_there(tiny, other, tmp_path, monkeypatch):
    files = [write_noise(tmp_path / f"{name}.wav") for name in ("a", "b")]
    out = tmp_path / "out.npz"
    encode = embed_batch._encode

    def interrupted(model, batch, *rest):
        if batch[0].path == files[1]:
            raise KeyboardInterrupt
        return encode(model, batch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(embed_batch, "_encode", interrupted)
        embed(*files, "--out", out, "--batch-size", 1, model=tiny, status=1)
    result = embed(*files, "--out", out, model=other, status=1)
    assert f"model {tiny!r}, now {other!r}" in result.output
    assert "(already there: 1)" in embed(*files, "--out", out, model=tiny).output


@pytest.mark.parametrize("name", ["out.npz", "out"])
def test_mistyped_model_leaves_nothing_behind(name, tiny, tmp_path):
    out = tmp_path / name
    result = embed(CLIPS[1], "--out", out, model=str(tmp_path / "no-such-model"), status=1)
    assert result.output.startswith("Error: ") and "no-such-model" in result.output
    assert not list(tmp_path.iterdir())
    embed(CLIPS[1], "--out", out, model=tiny)


@pytest.mark.parametrize("name", ["out.parquet", "out.npz", "out.safetensors"])
def test_file_of_somebody_else_is_left_alone(name, tiny, tmp_path):
    out = tmp_path / name
    out.write_text("precious")
    result = embed(CLIPS[1], "--out", out, model=tiny, status=1)
    assert f"{out} cannot be read as embeddings" in result.output
    assert out.read_text() == "precious"


def test_second_run_at_the_same_time_is_refused(tiny, tmp_path):
    out = tmp_path / "out.npz"
    parts = tmp_path / "out.npz.parts"
    parts.mkdir()
    with filelock.FileLock(parts / ".lock"):
        assert f"another run is writing {out}" in embed(CLIPS[1], "--out", out, model=tiny, status=1).output


def test_missing_pyarrow_is_told_before_any_work(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = embed(CLIPS[1], "--out", tmp_path / "out.parquet", model=tiny, status=1)
    assert "pip install 'm2d-hub[parquet]'" in result.output


def test_long_recordings_make_smaller_batches(tmp_path):
    sources = []
    for index in range(4):
        path = tmp_path / f"{index}.wav"
        with open(path, "wb") as file:
            file.truncate(embedding.BATCH_BYTES // 2)  # sparse: takes no room
        sources.append(embedding.Source(path, path.name, Path(path.name)))
    assert [len(batch) for batch in embedding._batches(sources, 16)] == [2, 2]
    assert [len(batch) for batch in embedding._batches(sources, 1)] == [1, 1, 1, 1]


def test_number_in_a_folders_name_is_no_suffix(tiny, tmp_path):
    embed(CLIPS[1], "--out", tmp_path / "m2d-as-0.7", model=tiny)
    assert list(read_clips(tmp_path / "m2d-as-0.7")) == [CLIPS[1].as_posix()]


def test_device_out_of_memory_says_what_to_do_and_keeps_what_is_done(tiny, tmp_path, monkeypatch):
    files = [write_noise(tmp_path / f"{name}.wav") for name in ("a", "b")]
    encode = embed_batch._encode

    def exhausted(model, batch, *rest):
        if batch[0].path == files[1]:
            raise torch.OutOfMemoryError
        return encode(model, batch, *rest)

    arguments = [*files, "--out", tmp_path / "out.npz", "--batch-size", 1]
    with monkeypatch.context() as patch:
        patch.setattr(embed_batch, "_encode", exhausted)
        result = embed(*arguments, model=tiny, status=1)
    assert "out of memory at batch_size 1; run again with a smaller one" in result.output
    assert "(already there: 1)" in embed(*arguments, model=tiny).output


def test_window_option_is_that_of_load_model(tiny, tmp_path):
    embed(CLIPS[0], "--out", tmp_path / "out.npz", "--window", "inf", model=tiny)
    expected = m2d_hub.load_model(tiny, device="cpu", window_s=math.inf).encode_clip(CLIPS[0])[0]
    clip = read_clips(tmp_path / "out.npz")[CLIPS[0].as_posix()]
    np.testing.assert_allclose(clip, expected.numpy(), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["embed"], "Missing argument 'PATH...'"),
        (["embed", "a.wav"], "Missing option '--out'"),
        (["embed", "a.wav", "--out", "x.csv"], "unknown suffix '.csv'. Use .parquet, "),
        (["embed", "a.wav", "--out", "x", "--window", "long"], "'long' is not a positive number of seconds"),
        (["embed", "a.wav", "--out", "x", "--batch-size", "0"], "0 is not in the range"),
        (["embed", "a.wav", "--out", "x", "--kind", "words"], "'words' is not one of"),
        (["embed", ".", "--out", "x"], "folder . holds no audio files"),
        (["embed", "*.wav", "--out", "x"], "pattern '*.wav' matches no audio files"),
        (["embed", "list.csv", "--out", "x"], "list.csv has no column 'file'; its columns: path, label"),
        (["embed", "gap.csv", "--out", "x"], "gap.csv: 1 row has no file (row 3)"),
        (["embed", "gone.csv", "--out", "x"], "gone.csv does not exist; give a CSV with the columns file"),
        (["tag", "."], "folder . holds no audio files"),
        (["tag", "a.wav", "--top", "0"], "0 is not in the range"),
        (["convert", "a.pth"], "Missing option '--out'"),
        (["plot", "a.wav"], "Missing option '--out'"),
        (["info"], "Missing argument 'NAME'"),
        (["sing"], "No such command 'sing'"),
    ],
)
def test_wrong_usage_is_told_with_status_2(arguments, told, tmp_path, monkeypatch):
    (tmp_path / "list.csv").write_text("path,label\na.wav,x\n")
    (tmp_path / "gap.csv").write_text("file,label\na.wav,x\n,y\n")
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, status=2)
    assert told in " ".join(result.output.split())


def test_tag_prints_the_labels_that_classify_gives(tagger):
    expected = m2d_hub.load_model(tagger, device="cpu").classify(CLIPS[1], top_k=2)[0]
    output = run("tag", CLIPS[1], "--model", tagger, "--top", 2).output
    lines = [f"  {tag.score:.3f}  {tag.label}" for tag in expected]
    assert output.splitlines() == [str(CLIPS[1]), *lines]


def test_tag_answers_programs_in_json_and_goes_past_unreadable_files(tagger, tmp_path):
    (tmp_path / "bad.wav").write_text("not audio")
    result = run("tag", tmp_path / "bad.wav", CLIPS[1], "--model", tagger, "--json", status=3)
    (answer,) = json.loads(result.stdout)
    assert answer["file"] == CLIPS[1].as_posix()
    assert {tag["label"] for tag in answer["tags"]} == {"dog", "cat", "rain"}
    assert all(0 <= tag["score"] <= 1 for tag in answer["tags"])
    assert "bad.wav cannot be read as audio" in result.stderr


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_names_beyond_the_encoding_of_a_pipe_are_escaped(as_json, tagger, tmp_path):
    write_noise(tmp_path / "犬é.wav")
    command = [CONSOLE_SCRIPT, "tag", tmp_path / "犬é.wav", "--model", tagger, "--device", "cpu", *as_json]
    environment = {**ONE_THREAD, "PYTHONIOENCODING": "cp1252"}
    answer = subprocess.run(command, capture_output=True, env=environment, check=True).stdout.decode("cp1252")
    if as_json:
        assert json.loads(answer)[0]["file"].endswith("犬é.wav")
    else:
        assert "\\u72acé.wav" in answer


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("command", ["embed", "tag"])
def test_a_closed_error_stream_stops_nothing(command, tagger, tmp_path):
    write_noise(tmp_path / "a.wav")
    out = f"--out {tmp_path}/x.npz" if command == "embed" else ""
    line = f"{CONSOLE_SCRIPT} {command} {tmp_path}/a.wav --model {tagger} --device cpu {out} 2>&-"
    subprocess.run(line, shell=True, check=True, env=ONE_THREAD, stdout=subprocess.DEVNULL)
    assert command == "tag" or (tmp_path / "x.npz").is_file()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_file_that_does_not_fit_memory_stops_itself_only(error, tiny, tmp_path, monkeypatch):
    files = [write_noise(tmp_path / f"{name}.wav", index) for index, name in enumerate("abc")]
    encode = embed_batch._encode

    def limited(model, batch, *rest):
        if any(source.path == files[1] for source in batch):
            raise error
        return encode(model, batch, *rest)

    monkeypatch.setattr(embed_batch, "_encode", limited)
    embed(*files, "--out", tmp_path / "out.npz", model=tiny, status=3)
    assert len(read_clips(tmp_path / "out.npz")) == 2
    assert "too long for this machine's memory" in (tmp_path / "out.npz.errors.csv").read_text()


def test_tag_without_a_head_says_which_weights_have_one(tiny):
    result = run("tag", CLIPS[1], "--model", tiny, status=1)
    assert result.output.startswith("Error: ") and "has no classification head" in result.output


def test_list_gives_the_names_of_list_models():
    assert json.loads(run("list", "--json").output) == m2d_hub.list_models()
    lines = run("list", "m2d-as-*").output.splitlines()
    assert [line.split()[0] for line in lines] == m2d_hub.list_models("m2d-as-*")
    assert all("NTT evaluation licence" in line for line in lines)


def test_list_says_that_nothing_matches():
    assert "Error: no model is named like 'whisper-*'" in run("list", "whisper-*", status=1).output


def test_info_gives_what_model_info_knows():
    answer = json.loads(run("info", "m2d-as-0.7", "--json").output)
    known = m2d_hub.model_info("m2d-as-0.7")
    assert (answer["name"], answer["license"], answer["source"]) == (known.name, known.license, known.source)
    assert answer["on_disk"] is known.on_disk
    assert known.license in run("info", "m2d-as-0.7").output


def test_info_of_an_unknown_name_lists_the_known_ones():
    result = run("info", "m2d-as-0.8", status=1)
    assert "Error: Unknown model 'm2d-as-0.8'. Available: m2d-as-0.7" in result.output


def test_convert_makes_a_folder_that_gives_the_same_embeddings(tmp_path, publish):
    published = publish("renamed", input_size=(80, 96), embed_dim=64, depth=1)
    run("convert", published, "--out", tmp_path / "own", "--sample-rate", 16_000)
    expected = m2d_hub.load_model(published, sample_rate=16_000, device="cpu").encode_clip(CLIPS[1])
    own = m2d_hub.load_model(tmp_path / "own", device="cpu").encode_clip(CLIPS[1])
    assert torch.equal(own, expected)


def test_convert_asks_for_a_sample_rate_that_nothing_tells(tmp_path, publish):
    published = publish("renamed", input_size=(80, 96), embed_dim=64, depth=1)
    result = run("convert", published, "--out", tmp_path / "own", status=1)
    assert result.output.startswith("Error: ") and "sample_rate" in result.output
    assert not (tmp_path / "own").exists()


def test_convert_does_not_write_over_a_folder(tiny, tmp_path):
    (tmp_path / "kept.txt").write_text("precious")
    assert "is not an empty folder" in run("convert", tiny, "--out", tmp_path, status=1).output
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_plot_writes_a_picture(tiny, tmp_path):
    run("plot", CLIPS[1], "--model", tiny, "--out", tmp_path / "new" / "clip.png")
    assert (tmp_path / "new" / "clip.png").read_bytes().startswith(b"\x89PNG")


def test_console_script_tells_errors_without_traceback(tmp_path):
    answer = subprocess.run(
        [
            CONSOLE_SCRIPT,
            "plot",
            tmp_path / "gone.wav",
            "--out",
            tmp_path / "x.png",
            "--model",
            tmp_path / "gone",
        ],
        capture_output=True,
        text=True,
        env=ONE_THREAD,
    )
    assert answer.returncode == 1
    assert answer.stderr.startswith("Error: ") and len(answer.stderr.splitlines()) == 1
    assert answer.stdout == ""
