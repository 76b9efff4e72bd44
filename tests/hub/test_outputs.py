"""Outputs are complete, can be resumed, keep what others wrote, and have one row per file."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path, PureWindowsPath

import filelock
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors
import soundfile
import torch

import m2d_hub
from m2d_hub import ConfigError, embed_files
from m2d_hub.config import EncoderConfig, ModelConfig
from m2d_hub.corpus import outputs
from m2d_hub.corpus.sources import _inside
from m2d_hub.corpus.stored import load_model_of, read_embeddings

OUTS = ["out.parquet", "out.npz", "out.safetensors", "out.dataset", "out"]
KINDS = ["clip", "frames", "layers"]


def save_model(folder, seed=0):
    torch.manual_seed(seed)
    encoder = EncoderConfig(input_size=(80, 32), embed_dim=64, depth=1)
    m2d_hub.M2D(ModelConfig(encoder=encoder)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def embed(small):
    def run(paths, out, model=small, **options):
        return embed_files(paths, out, model=model, device="cpu", **options)

    return run


def write_noise(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(3_000)
    soundfile.write(path, noise, 16_000, format="WAV")
    return path


@pytest.fixture
def clips(tmp_path):
    return [write_noise(tmp_path / "in" / f"{seed}.wav", seed) for seed in range(4)]


def read(out):
    """Embeddings by file, as this package reads them."""
    return {row.file: row.embedding for row in read_embeddings(out).rows()}


def read_elsewhere(out, kind):
    """Embeddings and times by file, as other libraries read them."""
    if out.suffix == ".npz":
        with np.load(out) as arrays:
            files, get = arrays["file"].tolist(), dict(arrays).__getitem__
    elif out.suffix == ".safetensors":
        with safetensors.safe_open(out, framework="numpy") as file:
            files, get = json.loads(file.metadata()["file"]), {k: file.get_tensor(k) for k in file.keys()}.get  # noqa: SIM118
    elif out.suffix:
        columns = pyarrow.parquet.read_table(out).to_pydict()
        times = columns.get("timestamps_s", [None] * len(columns["file"]))
        arrays = map(np.array, columns["embedding"])
        return dict(zip(columns["file"], zip(arrays, times, strict=True), strict=True))
    else:
        with (out / "index.csv").open(newline="", encoding="utf-8") as lines:
            arrays = {row["file"]: out / row["array"] for row in csv.DictReader(lines)}
        times = {file: path.with_name(path.stem + ".timestamps_s.npy") for file, path in arrays.items()}
        return {file: (np.load(arrays[file]), kind != "clip" and np.load(times[file])) for file in arrays}
    if kind == "clip":
        return {file: (row, None) for file, row in zip(files, get("embedding"), strict=True)}
    return {file: (get(f"embedding/{file}"), get(f"timestamps_s/{file}")) for file in files}


@pytest.fixture
def stop_after(monkeypatch):
    """Interrupt the next job when it has stored some batches."""

    @contextlib.contextmanager
    def interrupted(batches):
        add, calls = outputs.Output.add, iter(range(1_000))

        def limited(self, rows):
            if next(calls) == batches:
                raise KeyboardInterrupt
            add(self, rows)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(outputs.Output, "add", limited)
            yield

    return interrupted


# Rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OUTS)
def test_every_format_has_what_the_model_gives(name, kind, embed, small, clips, tmp_path):
    assert embed(clips[0].parent, tmp_path / name, kind=kind).embedded == 4
    model = m2d_hub.load_model(small, device="cpu")
    found = read_elsewhere(tmp_path / name, kind)
    assert sorted(found) == [clip.as_posix() for clip in clips]
    for clip in clips:
        embedding_, times = found[clip.as_posix()]
        if kind == "clip":
            expected = model.encode_clip(clip)[0]
        else:
            frames = (model.encode_frames if kind == "frames" else model.encode_layers)(clip)
            expected = frames.features[0] if kind == "frames" else frames.features[:, 0]
            np.testing.assert_allclose(times, frames.timestamps_s)
        np.testing.assert_allclose(embedding_, expected, atol=1e-5)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"in", name}


@pytest.mark.parametrize("kind", ["clip", "frames"])
def test_a_dataset_is_one_table_for_other_programs(kind, embed, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "PART_ROWS", 2)
    embed(clips, tmp_path / "out.dataset", kind=kind, batch_size=1)
    parts = list((tmp_path / "out.dataset").iterdir())
    assert len(parts) == 2 and {part.suffix for part in parts} == {".parquet"}
    assert len({pyarrow.parquet.read_schema(part) for part in parts}) == 1
    polars, datasets = pytest.importorskip("polars"), pytest.importorskip("datasets")
    assert sorted(polars.read_parquet(tmp_path / "out.dataset")["file"]) == list(map(str, clips))
    table = datasets.load_dataset(str(tmp_path / "out.dataset"), split="train", cache_dir=tmp_path / "cache")
    assert len(table) == 4


# Resuming


@pytest.mark.parametrize("name", OUTS)
def test_an_interrupted_job_resumes_with_each_row_once(name, embed, clips, tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr(outputs, "PART_ROWS", 1)
    clips.append(write_noise(tmp_path / "in" / "deep" / "0.wav", 5))
    with stop_after(2):
        embed(clips[0].parent, tmp_path / name, batch_size=1)
    (tmp_path / f"{name}.parts").mkdir(exist_ok=True)
    unfinished = tmp_path / (name if name == "out.dataset" else f"{name}.parts") / "00000009.parquet.partial"
    unfinished.write_text("of a killed run")
    with pytest.raises(ConfigError, match="was started with other settings"):
        embed(clips, tmp_path / name, kind="frames")
    resumed = embed(clips[0].parent, tmp_path / name)
    assert (resumed.already_there, resumed.embedded) == (2, 3)
    assert sorted(read(tmp_path / name)) == sorted(map(str, clips))
    assert not (tmp_path / f"{name}.parts").exists() and not unfinished.exists()
    assert name != "out" or (tmp_path / "out" / "deep" / "0.wav.npy").exists()
    assert embed(clips, tmp_path / name).already_there == 5


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_a_kill_between_merging_and_removing_the_parts_duplicates_nothing(
    name, embed, clips, tmp_path, monkeypatch
):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        embed(clips[:2], tmp_path / name)
    assert (tmp_path / f"{name}.parts" / "00000001.npz").exists()
    embed(clips, tmp_path / name)
    assert list(read(tmp_path / name)) == list(map(str, clips))


@pytest.mark.parametrize("name", OUTS)
@pytest.mark.parametrize("nth", [1, 2, 3, 5])
def test_a_full_disk_ends_the_job_and_loses_nothing(name, nth, embed, clips, tmp_path, monkeypatch):
    writes = iter(range(1, 1_000))

    def fsync(number, real=os.fsync):
        if next(writes) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    with monkeypatch.context() as patch, contextlib.suppress(OSError):
        patch.setattr(os, "fsync", fsync)
        embed(clips, tmp_path / name, kind="frames", batch_size=2)
    embed(clips, tmp_path / name, kind="frames")
    assert sorted(read(tmp_path / name)) == list(map(str, clips))
    assert {path.name for path in tmp_path.iterdir()} == {"in", name}


@pytest.mark.parametrize("name", OUTS)
def test_a_file_that_changed_is_embedded_again_and_a_deleted_one_keeps_its_row(name, embed, clips, tmp_path):
    for clip, seconds in zip(clips, (0, 0, -(10**9), 10_413_792_000), strict=True):  # 1970, 1938, 2300
        os.utime(clip, (seconds, seconds))
    embed(clips, tmp_path / name)
    before = read(tmp_path / name)
    clips[0].unlink()
    write_noise(clips[1], seed=9)
    os.utime(clips[1], (1, 1))
    again = embed(clips, tmp_path / name)
    assert (again.embedded, again.already_there) == (1, 3)
    after = read(tmp_path / name)
    assert sorted(after) == sorted(before)
    changed = [file for file in after if not np.array_equal(after[file], before[file])]
    assert changed == [str(clips[1])]


@pytest.mark.parametrize("name", OUTS)
def test_other_settings_are_refused(name, embed, clips, small, tmp_path):
    shutil.copytree(small, tmp_path / "mine")
    embed(clips[:1], tmp_path / name, str(tmp_path / "mine"))
    started = rf"{name} was started with other settings"
    with pytest.raises(
        ConfigError, match=rf"{started} \(kind 'clip', now 'frames'; window_s None, now 'inf'\)"
    ):
        embed(clips, tmp_path / name, str(tmp_path / "mine"), kind="frames", window_s=float("inf"))
    save_model(tmp_path / "mine", seed=1)
    with pytest.raises(ConfigError, match=rf"{started} \(weights '[0-9a-f]{{64}}', now '"):
        embed(clips, tmp_path / name, str(tmp_path / "mine"))


def test_a_second_run_at_the_same_time_is_refused(embed, clips, tmp_path):
    (tmp_path / "out.npz.parts").mkdir()
    with (
        filelock.FileLock(tmp_path / "out.npz.parts" / ".lock"),
        pytest.raises(ConfigError, match=r"another run is writing .*out\.npz"),
    ):
        embed(clips, tmp_path / "out.npz")


# Completeness


@pytest.mark.parametrize("name", OUTS)
def test_rows_that_were_removed_meanwhile_are_an_error(name, embed, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "PART_ROWS", 1)
    removed = tmp_path / (name if name == "out.dataset" else f"{name}.parts")
    add = outputs.Output.add

    def add_and_remove(self, rows):
        add(self, rows)
        if rows[0].file == str(clips[2]):
            shutil.rmtree(removed)

    with (
        monkeypatch.context() as patch,
        pytest.raises(ConfigError, match=r"of 4 rows are missing from .* Run the same command again"),
    ):
        patch.setattr(outputs.Output, "add", add_and_remove)
        embed(clips, tmp_path / name, batch_size=1)
    embed(clips, tmp_path / name)
    assert sorted(read(tmp_path / name)) == list(map(str, clips))


def test_a_final_file_that_cannot_be_read_back_replaces_nothing(embed, clips, tmp_path, monkeypatch):
    embed(clips[:2], tmp_path / "out.safetensors")
    before = (tmp_path / "out.safetensors").read_bytes()
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="cannot be read as embeddings"):
        patch.setattr("safetensors.numpy.save_file", lambda _, path, __: path.write_bytes(before[:-100]))
        embed(clips, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == before
    assert embed(clips, tmp_path / "out.safetensors").already_there == 4


@pytest.mark.parametrize("name", OUTS)
def test_files_that_cannot_be_read_are_listed_and_tried_again(name, embed, tmp_path):
    write_noise(tmp_path / "in" / "bad\n.wav").write_text("no audio")
    summary = embed([tmp_path / "in", tmp_path / "gone.wav"], tmp_path / name)
    assert (summary.embedded, summary.failed) == (0, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"in", f"{name}.errors.csv"}
    with open(summary.errors_file, newline="", encoding="utf-8") as lines:
        reasons = {row["file"]: row["error"] for row in csv.DictReader(lines)}
    assert list(reasons) == [f"{tmp_path}/in/bad\\n.wav", f"{tmp_path}/gone.wav"]
    assert "gone.wav does not exist" in reasons[f"{tmp_path}/gone.wav"]
    assert "\n" not in reasons[f"{tmp_path}/in/bad\\n.wav"]
    write_noise(tmp_path / "in" / "bad\n.wav")
    assert embed(tmp_path / "in", tmp_path / name).errors_file is None
    assert not (tmp_path / f"{name}.errors.csv").exists()


# Files of others

FOREIGN = {
    "out.npz": r"cannot be read as embeddings",
    "out.npz.parts/notes.txt.partial": r"contains 'notes\.txt\.partial', which m2d-hub embed did not write",
    "out.npz.errors.csv": r"errors\.csv, the list of .* was not written by m2d-hub embed",
    "out.dataset": "is a link or a file",
    "out.dataset/notes.txt": r"contains 'notes\.txt', which m2d-hub embed did not write",
    "out.dataset/a.parquet": r"a\.parquet cannot be read as embeddings",
    "out/settings.json": "contains files that m2d-hub embed did not write",
    "out": "is a file; an output without a suffix is a folder",
}


@pytest.mark.parametrize("path", FOREIGN)
def test_what_something_else_wrote_is_refused_and_kept(path, embed, clips, tmp_path):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("precious")
    with pytest.raises(ConfigError, match=FOREIGN[path]):
        embed(clips, tmp_path / path.split("/")[0].removesuffix(".parts").removesuffix(".errors.csv"))
    assert (tmp_path / path).read_text() == "precious"
    assert {file.name for file in tmp_path.iterdir()} == {"in", path.split("/")[0]}


def test_links_are_not_written_through(embed, clips, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.npz.parts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link or a file"):
        embed(clips, tmp_path / "out.npz")
    embed(clips[:1], tmp_path / "out")
    (tmp_path / "out" / "deep").symlink_to(tmp_path / "elsewhere")
    write_noise(tmp_path / "in" / "deep" / "a.wav")
    with pytest.raises(ConfigError, match="is a link that leads out of"):
        embed(tmp_path / "in", tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


HEADER = "file,array,size,modified_ns,place\n"
DAMAGED = {
    "columns": ("index.csv", "file,array\n"),
    "a number": ("index.csv", f"{HEADER}a.wav,a.wav.npy,many,1,1\n"),
    "an array elsewhere": ("index.csv", f"{HEADER}a.wav,../secret.npy,1,1,1\n"),
    "settings": ("settings.json", '{"mine": 1}'),
    "nesting": ("settings.json", "[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_folder_is_refused(damage, embed, clips, tmp_path):
    file, text = DAMAGED[damage]
    embed(clips, tmp_path / "out")
    (tmp_path / "out" / file).write_text(text)
    with pytest.raises(ConfigError, match="was not written by"):
        embed(clips, tmp_path / "out")


def bomb(path, kind):
    """A small file that claims to hold gigabytes."""
    if kind == "parquet":
        schema = pyarrow.parquet.read_schema(path)
        wide = pyarrow.array([np.zeros(50_000_000, np.float32)] * 4, pyarrow.list_(pyarrow.float32()))
        origins = {name: [1, 2, 3, 4] for name in schema.names if name.startswith("origin")}
        table = pyarrow.table({"file": list("abcd"), "embedding": wide, **origins})
        pyarrow.parquet.write_table(table.replace_schema_metadata(schema.metadata), path, compression="zstd")
        return
    with np.load(path) as arrays, zipfile.ZipFile(path.with_suffix(".new"), "w", zipfile.ZIP_DEFLATED) as new:
        for name, array in {**arrays, "embedding": np.zeros((4, 10_000_000), np.float32)}.items():
            file = io.BytesIO()
            np.save(file, array)
            new.writestr(f"{name}.npy", file.getvalue())
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_a_small_file_with_gigabytes_of_values_is_refused(kind, embed, clips, tmp_path):
    out = tmp_path / f"out.{kind}"
    embed(clips, out)
    bomb(out, kind)
    assert out.stat().st_size < 1_000_000
    with pytest.raises(ConfigError, match=r"cannot be read as embeddings"):
        read(out)


def test_an_output_never_chooses_a_model_that_is_not_on_this_machine(
    embed, clips, small, tmp_path, monkeypatch
):
    embed(clips, tmp_path / "out")
    settings = tmp_path / "out" / "settings.json"
    assert load_model_of(read_embeddings(tmp_path / "out"), device="cpu").embed_dim == 64
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was used"))
    os.mkfifo(tmp_path / "pipe.pth")
    recorded = json.loads(settings.read_text())
    models = ["hf-hub:evil/repo", "m2d-as-0.7", str(tmp_path / "pipe.pth"), "/dev/zero", "random:80x32p16x16"]
    for model in [*models, "m2d-mini", 5]:
        settings.write_text(json.dumps(recorded | {"model": model}))
        with pytest.raises(
            ConfigError, match=r"is not on this machine with the same weights; name the model"
        ):
            load_model_of(read_embeddings(tmp_path / "out"))
    assert load_model_of(read_embeddings(tmp_path / "out"), small, "cpu").embed_dim == 64


# Names


def test_a_folder_mirrors_the_input_and_refuses_collisions(embed, clips, tmp_path):
    write_noise(tmp_path / "in" / "deep" / "a.wav")
    embed(tmp_path / "in", tmp_path / "out")
    arrays = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.npy")
    )
    assert arrays == ["0.wav.npy", "1.wav.npy", "2.wav.npy", "3.wav.npy", "deep/a.wav.npy"]
    other = write_noise(tmp_path / "b" / "DEEP" / "A.wav").parents[1]
    for paths in ([tmp_path / "in", other], [write_noise(tmp_path / "f" / "index.csv" / "a.wav").parents[1]]):
        with pytest.raises(ConfigError, match="have the same path in"):
            embed(paths, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    (tmp_path / "out" / "d.wav.npy").write_text("precious")
    with pytest.raises(ConfigError, match=r"d\.wav\.npy exists and is not in the index"):
        embed([tmp_path / "in", write_noise(tmp_path / "d.wav")], tmp_path / "out")


@pytest.mark.parametrize(
    "name", [r"..\..\up.wav", r"C:\Users\a.wav", r"\\host\share\a.wav", "a:b.wav", "../a.wav"]
)
def test_foreign_names_stay_inside_the_output_on_every_system(name):
    joined = PureWindowsPath("D:/out") / PureWindowsPath(_inside(name))
    assert joined.is_relative_to("D:/out") and ".." not in joined.parts and ":" not in str(_inside(name))


@pytest.mark.parametrize("name", OUTS[:4])
def test_files_of_one_name_have_rows_of_their_own(name, embed, tmp_path):
    for seed, site in enumerate(("one", "two")):
        write_noise(tmp_path / site / "audio" / "a.wav", seed)
        (tmp_path / site / "list.csv").write_text("file\naudio/a.wav\n")
        for _ in range(2):
            embed(tmp_path / site / "list.csv", tmp_path / name)
    rows = read(tmp_path / name)
    assert sorted(rows) == sorted(["audio/a.wav", str(tmp_path / "two" / "audio" / "a.wav")])
    assert not np.allclose(*rows.values())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
@pytest.mark.parametrize("name", OUTS)
def test_names_that_are_not_text_are_escaped(name, embed, tmp_path):
    names = [b"caf\xe9.wav", b"line\nfeed.wav", "\u2028.wav".encode(), b'quo"te,.wav', "é字.wav".encode()]
    (tmp_path / "in").mkdir()
    for seed, file in enumerate(names):
        os.rename(write_noise(tmp_path / "a.wav", seed), os.fsencode(tmp_path / "in") + b"/" + file)
    assert embed(tmp_path / "in", tmp_path / name).embedded == len(names)
    assert embed(tmp_path / "in", tmp_path / name).already_there == len(names)
    escaped = {"caf\\xe9.wav", "line\\nfeed.wav", "\\u2028.wav", 'quo"te,.wav', "é字.wav"}
    assert {Path(file).name for file in read(tmp_path / name)} == escaped


def test_the_current_folder_may_be_the_output(embed, clips, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    embed([*clips, "gone.wav"], ".")
    assert len(read(tmp_path / "here")) == 4 and (tmp_path / "here.errors.csv").is_file()
    with pytest.raises(ConfigError, match="/ cannot be an output"):
        embed(clips, "/")


def test_folders_that_cannot_be_listed_are_reported_and_hidden_ones_skipped(
    embed, clips, tmp_path, monkeypatch
):
    write_noise(tmp_path / "in" / "closed" / "b.wav")
    write_noise(tmp_path / "in" / ".git" / "c.wav")
    scan = os.scandir

    def refuse(path="."):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    summary = embed(tmp_path / "in", tmp_path / "out.npz")
    assert (summary.embedded, summary.failed) == (4, 1)
    assert "closed cannot be opened (Permission denied)" in Path(summary.errors_file).read_text()
