"""Outputs go on with the same content, take nothing that is not theirs, and have a name for every file."""

import contextlib
import csv
import errno
import os
import shutil
import sys
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import m2d_hub
from m2d_hub import ConfigError, Source, embed_files, find_sources
from m2d_hub.config import EncoderConfig, ModelConfig
from m2d_hub.corpus import formats
from m2d_hub.corpus.formats import FORMATS

OUTS = ["out.parquet", "out.npz", "out.safetensors", "out"]
pyarrow = pytest.importorskip("pyarrow")


def save_model(folder, seed=0):
    torch.manual_seed(seed)
    m2d_hub.M2D(
        ModelConfig(encoder=EncoderConfig(input_size=(80, 32), embed_dim=64, depth=1))
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def write_noise(path, seed=0):
    Path(os.fsdecode(path)).parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(3_000)
    with open(path, "wb") as file:
        soundfile.write(file, noise, 16_000, format="WAV")
    return path


def embed(paths, out, model, **options):
    return embed_files(paths, out, model=model, device="cpu", **options)


def read(out):
    """Embeddings by file."""
    if out.suffix:
        return {record.file: record.embedding for record in FORMATS[out.suffix].records(out)}
    with open(out / "index.csv", newline="", encoding="utf-8") as file:
        return {row["file"]: np.load(out / row["array"]) for row in csv.DictReader(file)}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The same content


@pytest.mark.parametrize("name", OUTS)
@pytest.mark.parametrize("place", range(1, 7))
def test_a_disk_that_is_full_at_any_write_loses_and_leaves_nothing(name, place, tiny, tmp_path, monkeypatch):
    for seed in range(3):
        write_noise(tmp_path / "in" / f"{seed}.wav", seed)
    embed(tmp_path / "in", tmp_path / "whole" / name, tiny, kind="frames")
    writes = iter(range(1, 1_000))

    def fsync(number, real=os.fsync):
        if next(writes) == place:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    with monkeypatch.context() as patch, contextlib.suppress(OSError):
        patch.setattr(os, "fsync", fsync)
        embed(tmp_path / "in", tmp_path / "again" / name, tiny, kind="frames")
    embed(tmp_path / "in", tmp_path / "again" / name, tiny, kind="frames")
    whole, again = contents(tmp_path / "whole"), contents(tmp_path / "again")
    assert list(again) == list(whole) and sorted(again) == sorted(whole)
    if not Path(name).suffix:
        assert again == whole


@pytest.mark.parametrize("name", OUTS)
def test_another_file_of_the_same_relative_name_is_embedded_too(name, tiny, tmp_path):
    for seed, site in enumerate(("one", "two")):
        write_noise(tmp_path / site / "audio" / "20230101_000000.WAV", seed)
        (tmp_path / site / "list.csv").write_text("file\naudio/20230101_000000.WAV\n")
        for _ in range(2):  # the second time, all is there
            embed(tmp_path / site / "list.csv", tmp_path / name, tiny)
    first, second = read(tmp_path / name).items()
    assert first[0] == "audio/20230101_000000.WAV"
    assert second[0] == str(tmp_path / "two" / "audio" / "20230101_000000.WAV")
    assert not np.allclose(first[1], second[1])


def test_the_same_relative_name_from_another_folder_is_another_file(tiny, tmp_path, monkeypatch):
    for seed, site in enumerate(("one", "two")):
        write_noise(tmp_path / site / "audio" / "a.wav", seed)
        monkeypatch.chdir(tmp_path / site)
        embed("audio", tmp_path / "out.npz", tiny)
    assert len(read(tmp_path / "out.npz")) == 2


@pytest.mark.parametrize("name", OUTS)
@pytest.mark.parametrize("change", ["content", "time"])
def test_a_file_that_changed_is_refused_by_name(name, change, tiny, tmp_path):
    write_noise(tmp_path / "a.wav")
    embed(tmp_path / "a.wav", tmp_path / name, tiny)
    before = read(tmp_path / name)
    if change == "content":
        write_noise(tmp_path / "a.wav", seed=1)
    else:
        os.utime(tmp_path / "a.wav", ns=(0, 12345))
    with pytest.raises(ConfigError, match=rf"a\.wav changed since .*{name} got their embeddings"):
        embed(tmp_path / "a.wav", tmp_path / name, tiny)
    assert list(read(tmp_path / name)) == list(before)


@pytest.mark.parametrize("name", OUTS)
def test_a_file_that_is_gone_stays_done(name, tiny, tmp_path):
    path = write_noise(tmp_path / "a.wav")
    embed(path, tmp_path / name, tiny)
    path.unlink()
    assert embed(path, tmp_path / name, tiny).already_there == 1


@pytest.mark.parametrize("name", OUTS)
@pytest.mark.parametrize("changed", ["weights", "configuration"])
def test_other_weights_of_the_same_name_are_refused(name, changed, tiny, tmp_path):
    model = tmp_path / "mine"
    shutil.copytree(tiny, model)
    embed(write_noise(tmp_path / "a.wav"), tmp_path / name, str(model))
    if changed == "weights":
        save_model(model, seed=1)
    else:
        config = model / "config.json"
        config.write_text(config.read_text().replace('"std": 4.2', '"std": 4.0'))
    write_noise(tmp_path / "b.wav")
    with pytest.raises(ConfigError, match=r"begun with other settings \(weights '[0-9a-f]{64}', now '"):
        embed([tmp_path / "a.wav", tmp_path / "b.wav"], tmp_path / name, str(model))


# Folders that may not be entered


def test_a_folder_that_may_not_be_entered_is_reported(tiny, tmp_path, monkeypatch):
    write_noise(tmp_path / "rec" / "a.wav")
    write_noise(tmp_path / "rec" / "in" / "b.wav")
    scan = os.scandir

    def refuse(path="."):
        if str(path) == str(tmp_path / "rec" / "in"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    summary = embed(tmp_path / "rec", tmp_path / "out.npz", tiny)
    assert (summary.embedded, summary.failed) == (1, 1)
    [_, line] = (tmp_path / "out.npz.errors.csv").read_text().splitlines()
    problem = "cannot be opened (Permission denied): check its name and permissions."
    assert line == f"{tmp_path}/rec/in,{tmp_path}/rec/in {problem}"
    [closed] = find_sources(tmp_path / "rec" / "in")
    assert closed.path == tmp_path / "rec" / "in"


# What is not the output's own


@pytest.mark.parametrize(
    "theirs",
    ["settings.json", "index.csv", ".lock", "notes.txt", "a.wav.npy", "settings.json/deep"],
)
def test_a_folder_of_somebody_else_is_left_alone(theirs, tiny, tmp_path):
    out = tmp_path / "proj"
    (out / theirs).parent.mkdir(parents=True)
    (out / theirs).write_text('{"mine": 1}')
    (out / "thesis.tex").write_text("precious")
    before = contents(out)
    for path in (write_noise(tmp_path / "a.wav"), tmp_path / "nothere.wav"):
        with pytest.raises(ConfigError, match=r"not write|not written by"):
            embed(path, out, tiny)
    assert contents(out) == before


@pytest.mark.parametrize("name", OUTS[:3])
def test_a_parts_folder_of_somebody_else_is_left_alone(name, tiny, tmp_path):
    parts = tmp_path / f"{name}.parts"
    parts.mkdir()
    (parts / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"holds 'notes\.txt', which m2d-hub embed did not write"):
        embed(write_noise(tmp_path / "a.wav"), tmp_path / name, tiny)
    assert contents(parts) == {Path("notes.txt"): b"x"}


def test_what_is_put_beside_the_parts_meanwhile_is_kept(tiny, tmp_path):
    paths = [write_noise(tmp_path / f"{index}.wav") for index in range(2)]

    def engine(batches, job):
        (tmp_path / "out.npz.parts" / "notes.txt").write_text("x")
        from m2d_hub.corpus.embed_files import _run_here

        return _run_here(batches, job)

    embed(paths, tmp_path / "out.npz", tiny, engine=engine)
    assert len(read(tmp_path / "out.npz")) == 2
    assert (tmp_path / "out.npz.parts" / "notes.txt").read_text() == "x"


@pytest.mark.parametrize("name", OUTS)
def test_an_errors_file_of_somebody_else_is_left_alone(name, tiny, tmp_path):
    errors = tmp_path / f"{name}.errors.csv"
    errors.write_text("my,own\n")
    with pytest.raises(ConfigError, match=r"errors\.csv, where .* was not written by m2d-hub embed"):
        embed(write_noise(tmp_path / "a.wav"), tmp_path / name, tiny)
    assert errors.read_text() == "my,own\n"


def test_an_empty_folder_stays_where_nothing_could_be_embedded(tiny, tmp_path):
    (tmp_path / "made").mkdir()
    for name in ("made", "new"):
        embed(tmp_path / "nothere.wav", tmp_path / name, tiny)
    assert (tmp_path / "made").is_dir() and not list((tmp_path / "made").iterdir())
    assert not (tmp_path / "new").exists()


def test_an_array_that_is_not_in_the_index_is_not_written_over(tiny, tmp_path):
    out = tmp_path / "out"
    embed(write_noise(tmp_path / "a.wav"), out, tiny)
    (out / "b.wav.npy").write_bytes(b"precious")
    embed(write_noise(tmp_path / "b.wav", 1), out, tiny)
    assert (out / "b.wav.npy").read_bytes() == b"precious"
    assert len(read(out)) == 2


@pytest.mark.parametrize("link", ["in", "b.wav.npy", "b.wav.npy.partial", "index.csv", "settings.json"])
def test_links_inside_an_output_are_not_written_through(link, tiny, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    write_noise(tmp_path / "rec" / "a.wav")
    embed(tmp_path / "rec", out, tiny)
    if link == "in":
        elsewhere.mkdir()
    elif (out / link).exists():
        shutil.move(out / link, elsewhere)
    else:
        elsewhere.write_bytes(b"precious")
    (out / link).symlink_to(elsewhere)
    before = elsewhere.is_file() and elsewhere.read_bytes()
    write_noise(tmp_path / "rec" / "b.wav")
    write_noise(tmp_path / "rec" / "in" / "c.wav")
    if link in ("index.csv", "settings.json"):
        with pytest.raises(ConfigError, match="was not written by"):
            embed(tmp_path / "rec", out, tiny)
    else:
        embed(tmp_path / "rec", out, tiny)
        assert len(read(out)) == 3
    assert (elsewhere.is_dir() and not list(elsewhere.iterdir())) or elsewhere.read_bytes() == before


def test_parts_that_are_a_link_are_refused(tiny, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.npz.parts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link or a file"):
        embed(write_noise(tmp_path / "a.wav"), tmp_path / "out.npz", tiny)


@pytest.mark.parametrize(
    "index",
    [
        b"file,array\n",
        b"\xff\xfe",
        b"file,array,size,modified_ns,place\na.wav,a.wav.npy\n",
        b"file,array,size,modified_ns,place\na.wav,a.wav.npy,many,1,1\n",
        b'file,array,size,modified_ns,place\n"a.wav,a.wav.npy,1,1,1\n',
    ],
)
def test_an_index_that_is_damaged_is_refused(index, tiny, tmp_path):
    out = tmp_path / "out"
    embed(write_noise(tmp_path / "a.wav"), out, tiny)
    (out / "index.csv").write_bytes(index)
    with pytest.raises(
        ConfigError, match=r"index\.csv cannot be read as embeddings .* It was not written by"
    ):
        embed(tmp_path / "a.wav", out, tiny)


@pytest.mark.parametrize("settings", ["", "[]", "null", '{"mine": 1}', "[" * 100_000, "\x00"])
def test_settings_that_are_damaged_are_refused(settings, tiny, tmp_path):
    out = tmp_path / "out"
    embed(write_noise(tmp_path / "a.wav"), out, tiny)
    (out / "settings.json").write_text(settings)
    with pytest.raises(ConfigError, match="was not written by"):
        embed(tmp_path / "a.wav", out, tiny)


@pytest.mark.parametrize("name", OUTS[:3])
def test_a_file_that_is_damaged_is_refused_and_left_alone(name, tiny, tmp_path):
    out = tmp_path / name
    embed([write_noise(tmp_path / f"{index}.wav", index) for index in range(3)], out, tiny)
    whole = out.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        broken = bytearray(whole)
        for place in rng.integers(0, len(broken), 8):
            broken[place] = rng.integers(256)
        if rng.random() < 0.5:
            broken = broken[: rng.integers(1, len(broken))]
        out.write_bytes(broken)
        try:
            embed(tmp_path / "0.wav", out, tiny)
        except ConfigError:
            assert out.read_bytes() == broken


def test_an_archive_of_objects_is_refused(tiny, tmp_path):
    out = tmp_path / "out.npz"
    objects = {"settings": np.array([{}]), "file": np.array([None]), "origin": np.zeros((1, 3))}
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in objects.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.save(file, array)
    with pytest.raises(ConfigError, match="was not written by"):
        embed(write_noise(tmp_path / "a.wav"), out, tiny)


# The limits of a format


def test_a_header_that_cannot_be_read_is_told_before_any_work(tiny, tmp_path, monkeypatch):
    paths = [write_noise(tmp_path / f"{index}.wav") for index in range(3)]
    monkeypatch.setattr(formats, "MAX_HEADER_BYTES", 600)
    for kind in ("frames", "layers"):
        with pytest.raises(ConfigError, match=r"out\.safetensors cannot hold 3 files.*safetensors reads"):
            embed(paths, tmp_path / "out.safetensors", tiny, kind=kind)
    assert not (tmp_path / "out.safetensors.parts").exists()


def test_parts_are_kept_where_the_merged_file_could_not_be_read(tiny, tmp_path, monkeypatch):
    path = write_noise(tmp_path / "a.wav")
    out = tmp_path / "out.npz"
    with monkeypatch.context() as patch:
        patch.setattr(FORMATS[".npz"], "_names", None, raising=False)
        patch.setattr(type(FORMATS[".npz"]), "contents", lambda *_: formats.Contents({}, {}))
        with pytest.raises(ConfigError, match="its parts are kept"):
            embed(path, out, tiny)
    assert not out.exists()
    assert embed(path, out, tiny).already_there == 1
    assert len(read(out)) == 1


# Names

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")


@linux
@pytest.mark.parametrize("kind", ["clip", "frames"])
@pytest.mark.parametrize("name", OUTS)
def test_every_name_that_a_file_can_have_is_embedded_once_and_gone_on_with(name, kind, tiny, tmp_path):
    folder = os.fsencode(tmp_path / "rec") + b"/"
    names = [
        b"caf\xe9.wav",
        b"caf\\xe9.wav",
        b"caf\xe8.wav",
        b"line\nfeed.wav",
        b"return\r.wav",
        b"\xc2\x85.wav",
    ]
    names += ["\u2028.wav".encode(), b"\x0b\x0c\x1c.wav", b'quo"te,.wav', b" spaces .wav", b"A.wav", b"a.wav"]
    names += [unicodedata.normalize(form, "é.wav").encode() for form in ("NFC", "NFD")]
    names += [b"d.wav", b"d.wav.timestamps_s.wav", b"e.wav", b"e.wav.npy/f.wav", b"index.csv/g.wav"]
    names += [
        b"x" * 251 + b".wav",
        b"y" * 231 + b".wav",
        "字".encode() * 83 + b".wav",
        b"\xe9" * 200 + b".wav",
    ]
    for seed, file in enumerate(names):
        write_noise(folder + file, seed)
    out = tmp_path / name
    summary = embed(tmp_path / "rec", out, tiny, kind=kind)
    assert (summary.embedded, summary.failed) == (len(names), 0)
    found = read(out)
    assert len(found) == len(names) and all(file.isprintable() or "\n" not in file for file in found)
    assert len({embedding.tobytes() for embedding in found.values()}) == len(names)
    assert embed(tmp_path / "rec", out, tiny, kind=kind).already_there == len(names)


@pytest.mark.parametrize("name", OUTS)
def test_a_name_that_another_ones_suffix_makes_collides_with_nothing(name, tiny, tmp_path):
    """Files of a list may have any suffix, also those of the arrays."""
    files = ["d.wav", "d.wav.timestamps_s", "d.wav.npy", "d.wav.timestamps_s.npy"]
    for seed, file in enumerate(files):
        write_noise(tmp_path / file, seed)
    (tmp_path / "list.csv").write_text("\n".join(["file", *files]))
    embed(tmp_path / "list.csv", tmp_path / name, tiny, kind="frames")
    model = m2d_hub.load_model(tiny, device="cpu")
    for file, embedding in read(tmp_path / name).items():
        expected = model.encode_frames(tmp_path / file).features[0]
        np.testing.assert_allclose(embedding, expected, atol=1e-5)
    if name == "out.npz":  # as numpy gives it, by name
        with np.load(tmp_path / name) as arrays:
            files = arrays["file"].tolist()
            assert len({arrays[f"embedding/{file}"].tobytes() for file in files}) == 4


def test_sources_of_one_name_are_told_apart(tiny, tmp_path):
    paths = [write_noise(tmp_path / f"{index}.wav", index) for index in range(2)]
    sources = [Source(path, "same", Path("same")) for path in paths]
    for name in ("out", "out.npz"):
        embed([*sources, sources[0]], tmp_path / name, tiny)
        assert list(read(tmp_path / name)) == ["same", str(paths[1])]


def test_the_folder_itself_may_be_the_output(tiny, tmp_path, monkeypatch):
    write_noise(tmp_path / "rec" / "a.wav")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    embed([tmp_path / "rec" / "a.wav", "gone.wav"], ".", tiny)
    assert len(read(tmp_path / "here")) == 1
    assert (tmp_path / "here.errors.csv").is_file()


def test_an_empty_path_is_refused():
    with pytest.raises(ConfigError, match="an empty path was given"):
        find_sources([""])


def test_a_damaged_file_that_is_open_is_called_by_its_name():
    parquet = FORMATS[".parquet"]
    for read in (parquet.contents, lambda *given: list(parquet.records(*given))):
        with pytest.raises(ConfigError, match=r"^s3://bucket/part\.parquet cannot be read as embeddings"):
            read(pyarrow.BufferReader(b"no Parquet"), "s3://bucket/part.parquet")
