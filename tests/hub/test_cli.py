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

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

import m2d_hub
from m2d_hub.cli import main as cli
from m2d_hub.config import EncoderConfig, HeadConfig, ModelConfig
from m2d_hub.corpus import embed_files as embedding
from m2d_hub.corpus.stored import read_embeddings

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
    """Embeddings by file."""
    return {row.file: row.embedding for row in read_embeddings(path).rows()}


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_names_files_relative_to_itself_and_outputs_keep_its_names(tiny, tmp_path):
    write_noise(tmp_path / "corpus" / "audio" / "x.wav")
    table = tmp_path / "corpus" / "list.csv"
    table.write_text("label,file\nnoise,audio/x.wav\n")
    embed(table, "--out", tmp_path / "out.npz", model=tiny)
    assert list(read_clips(tmp_path / "out.npz")) == ["audio/x.wav"]


def test_a_list_of_parts_is_embedded_by_file_with_a_warning(tiny, tmp_path, caplog):
    write_noise(tmp_path / "a.wav")
    (tmp_path / "list.csv").write_text("file,start_s,end_s\na.wav,0,0.02\na.wav,0.02,\n")
    embed(tmp_path / "list.csv", "--out", tmp_path / "out.npz", model=tiny)
    assert list(read_clips(tmp_path / "out.npz")) == ["a.wav"]
    assert "has parts of files in 2 rows" in caplog.text


def test_a_file_that_is_given_twice_is_embedded_once(tiny, tmp_path, monkeypatch):
    write_noise(tmp_path / "a.wav")
    write_noise(tmp_path / "b.wav")
    (tmp_path / "notes.txt").write_text("no audio")
    monkeypatch.chdir(tmp_path)
    embed("*", "a.wav", tmp_path / "b.wav", ".", "--out", "out.npz", model=tiny)
    assert list(read_clips(tmp_path / "out.npz")) == ["a.wav", "b.wav"]


def test_unreadable_files_are_reported_and_do_not_stop_the_rest(tiny, tmp_path):
    write_noise(tmp_path / "in" / "1.wav")
    (tmp_path / "in" / "2.m4a").write_text("not audio")
    out = tmp_path / "out.npz"
    result = embed(tmp_path / "in", "--out", out, model=tiny, status=3)
    assert f"Files that could not be read: 1; see {out}.errors.csv." in result.output
    errors = read_csv(tmp_path / "out.npz.errors.csv")
    assert [Path(row["file"]).name for row in errors] == ["2.m4a"]
    assert len(read_clips(out)) == 1


def test_finished_job_does_nothing_when_run_again(tiny, tmp_path, monkeypatch):
    out = tmp_path / "out.npz"
    embed(CLIPS[1], "--out", out, model=tiny)
    before = out.stat().st_mtime_ns
    monkeypatch.setattr(embedding, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
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
def test_a_killed_job_resumes_with_each_file_once(name, tiny, tmp_path):
    total = 40
    for index in range(total):
        write_noise(tmp_path / "in" / f"{index:03d}.wav", index)
    options = ["--model", tiny, "--out", name, "--batch-size", "1", "--device", "cpu", "--json"]
    command = [CONSOLE_SCRIPT, "embed", "in", *options]
    parts = tmp_path / f"{name}.parts"
    with subprocess.Popen(command, cwd=tmp_path, env=ONE_THREAD, stderr=subprocess.DEVNULL) as process:
        while len(list(parts.glob("*.npz"))) < 4:
            assert process.poll() is None, "the job ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    summary = json.loads(subprocess.check_output(command, cwd=tmp_path, env=ONE_THREAD))
    assert 4 <= summary["already_there"] < total
    assert summary["embedded"] + summary["already_there"] == total
    assert sorted(read_clips(tmp_path / name)) == [f"in/{index:03d}.wav" for index in range(total)]
    assert not parts.exists()


def test_mistyped_model_leaves_nothing_behind(tmp_path):
    result = embed(CLIPS[1], "--out", tmp_path / "out", model=str(tmp_path / "no-such-model"), status=1)
    assert result.output.startswith("Error: ") and "no-such-model" in result.output
    assert not list(tmp_path.iterdir())


def test_missing_pyarrow_is_reported_before_any_work(tiny, tmp_path, monkeypatch):
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
    batches = embedding.batched(sources, embedding._size_of, embedding.BATCH_BYTES, 16)
    assert [len(batch) for batch in batches] == [2, 2]


def test_device_out_of_memory_says_what_to_do_and_keeps_what_is_done(tiny, tmp_path, monkeypatch):
    files = [write_noise(tmp_path / f"{name}.wav") for name in ("a", "b")]
    encode = embedding._encode

    def exhausted(model, batch, *rest):
        if batch[0].path == files[1]:
            raise torch.OutOfMemoryError
        return encode(model, batch, *rest)

    arguments = [*files, "--out", tmp_path / "out.npz", "--batch-size", 1]
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "_encode", exhausted)
        result = embed(*arguments, model=tiny, status=1)
    assert "out of memory at batch_size 1; run again with a smaller one" in result.output
    assert "(already there: 1)" in embed(*arguments, model=tiny).output


def test_window_option_is_that_of_load_model(tiny, tmp_path):
    out = tmp_path / "m2d-as-0.7"  # a number is part of a folder's name
    embed(CLIPS[0], "--out", out, "--window", "inf", model=tiny)
    expected = m2d_hub.load_model(tiny, device="cpu", window_s=math.inf).encode_clip(CLIPS[0])[0]
    np.testing.assert_allclose(read_clips(out)[CLIPS[0].as_posix()], expected.numpy(), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed"], "Missing argument 'PATH...'"),
        (["embed", "a.wav"], "Missing option '--out'"),
        (["embed", "a.wav", "--out", "x", "--window", "0"], "0.0 is not in the range"),
        (["embed", "a.wav", "--out", "x", "--batch-size", "0"], "0 is not in the range"),
        (["embed", "a.wav", "--out", "x", "--kind", "words"], "'words' is not one of"),
        (["plot", "gone.wav", "--out", "x.png"], "'gone.wav' does not exist"),
        (["sing"], "No such command 'sing'"),
    ],
)
def test_wrong_usage_ends_with_status_2(arguments, message):
    assert message in " ".join(run(*arguments, status=2).output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "gone", "--out", "x"], "gone does not exist"),
        (["tag", "gone.wav"], "gone.wav does not exist"),
        (["embed", str(CLIPS[1]), "--out", "x.csv"], "unknown suffix '.csv'. Use .parquet, "),
        (["embed", "*.wav", "--out", "x"], "pattern '*.wav' matches no audio files"),
        (["embed", "list.csv", "--out", "x"], "list.csv has no column 'file'; its columns: path, label"),
        (["tag", "."], "folder . holds no audio files"),
    ],
)
def test_wrong_paths_are_refused_before_any_work(arguments, message, tmp_path, monkeypatch):
    (tmp_path / "list.csv").write_text("path,label\na.wav,x\n")
    monkeypatch.chdir(tmp_path)
    assert message in " ".join(run(*arguments, "--model", "no such model", status=1).output.split())


def test_first_lines_of_help_fit_80_columns():
    result = CliRunner().invoke(cli.main, ["--help"], terminal_width=80)
    assert "..." not in result.output.split("Commands:")[1]


def test_tag_prints_the_labels_that_classify_gives(tagger, tiny):
    expected = m2d_hub.load_model(tagger, device="cpu").classify(CLIPS[1], top_k=2)[0]
    output = run("tag", CLIPS[1], "--model", tagger, "--top", 2).output
    lines = [f"  {tag.score:.3f}  {tag.label}" for tag in expected]
    assert output.splitlines() == [str(CLIPS[1]), *lines]
    result = run("tag", CLIPS[1], "--model", tiny, status=1)
    assert result.output.startswith("Error: ") and "has no classification head" in result.output


def test_tag_prints_json_and_skips_unreadable_files(tagger, tmp_path):
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
    encode = embedding._encode

    def limited(model, batch, *rest):
        if any(source.path == files[1] for source in batch):
            raise error
        return encode(model, batch, *rest)

    monkeypatch.setattr(embedding, "_encode", limited)
    embed(*files, "--out", tmp_path / "out.npz", model=tiny, status=3)
    assert len(read_clips(tmp_path / "out.npz")) == 2
    assert "too long for this machine's memory" in (tmp_path / "out.npz.errors.csv").read_text()


def test_list_gives_the_names_of_list_models():
    assert json.loads(run("list", "--json").output) == m2d_hub.list_models()
    lines = run("list", "m2d-as-*").output.splitlines()
    assert [line.split()[0] for line in lines] == m2d_hub.list_models("m2d-as-*")
    assert "Error: no model name matches 'whisper-*'" in run("list", "whisper-*", status=1).output


def test_info_gives_what_model_info_knows():
    answer = json.loads(run("info", "m2d-as-0.7", "--json").output)
    known = m2d_hub.model_info("m2d-as-0.7")
    assert (answer["name"], answer["license"], answer["source"]) == (known.name, known.license, known.source)
    assert answer["on_disk"] is known.on_disk
    assert known.license in run("info", "m2d-as-0.7").output


def test_convert_writes_a_folder_that_gives_the_same_embeddings(tmp_path, publish):
    published = publish("renamed", input_size=(80, 96), embed_dim=64, depth=1)
    result = run("convert", published, "--out", tmp_path / "own", status=1)
    assert "sample_rate" in result.output and not (tmp_path / "own").exists()
    run("convert", published, "--out", tmp_path / "own", "--sample-rate", 16_000)
    expected = m2d_hub.load_model(published, sample_rate=16_000, device="cpu").encode_clip(CLIPS[1])
    own = m2d_hub.load_model(tmp_path / "own", device="cpu").encode_clip(CLIPS[1])
    assert torch.equal(own, expected)


def test_convert_does_not_overwrite_a_folder(tiny, tmp_path):
    (tmp_path / "kept.txt").write_text("precious")
    assert "is not an empty folder" in run("convert", tiny, "--out", tmp_path, status=1).output
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_plot_writes_an_image(tiny, tmp_path):
    run("plot", CLIPS[1], "--model", tiny, "--out", tmp_path / "new" / "clip.png")
    assert (tmp_path / "new" / "clip.png").read_bytes().startswith(b"\x89PNG")


def test_console_script_prints_errors_without_traceback(tmp_path):
    command = [CONSOLE_SCRIPT, "plot", CLIPS[1], "--out", tmp_path / "x.png", "--model", tmp_path / "gone"]
    answer = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD)
    assert answer.returncode == 1 and answer.stdout == ""
    assert answer.stderr.startswith("Error: ") and len(answer.stderr.splitlines()) == 1
