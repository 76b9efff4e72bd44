"""Tar shards: which members are clips, what belongs to a clip, and how an index is checked."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from m2d_training import prepare
from m2d_training.data.manifest import read_manifest

from m2d_hub.errors import ConfigError

RATE = 16_000


def tone(hertz=440, format="FLAC"):
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(np.arange(RATE) * 2 * np.pi * hertz / RATE), RATE, format=format)
    return file.getvalue()


SOUND = tone()


def write_shard(path, *members, **options):
    """Write a tar of (name, content); text content is a link to it, None a folder."""
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            elif content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return str(path)


def read(path):
    """Label and caption of each clip by its name."""
    return {entry.name: (entry.label, entry.caption) for entry in read_manifest(str(path)).entries}


def test_clips_that_share_the_name_before_the_first_dot_are_separate(tmp_path):
    shard = write_shard(
        tmp_path / "a.tar",
        *((f"rec.{index}.flac", SOUND) for index in range(3)),
        ("rec.1.json", b'{"label": "one"}'),
        ("rec.2.txt", b"two"),
        ("rec.7.json", b'{"label": "of no clip"}'),
    )
    expected = {"rec.0.flac": ("", ""), "rec.1.flac": ("one", ""), "rec.2.flac": ("", "two")}
    assert read(shard) == expected


def test_annotations_of_a_key_belong_to_all_its_clips(tmp_path):
    shard = write_shard(
        tmp_path / "a.tar",
        ("x/0.mix.flac", SOUND),
        ("x/0.src.flac", SOUND),
        ("x/0.json", b'{"label": "both"}'),
        ("x/0.src.txt", b"the source"),
        ("1.wav", tone(format="WAV")),
        ("1.flac", SOUND),
        ("1.json", b'{"label": "two formats"}'),
        ("Y-abc_0.000_10.000.wav", SOUND),
        ("Y-abc_0.000_10.000.json", b'{"label": "dots in its name"}'),
        ("2.flac", SOUND),
        ("2.meta.json", b'{"label": "a longer suffix"}'),
    )
    labels = {name: label for name, (label, _) in read(shard).items()}
    assert labels == {
        "x/0.mix.flac": "both",
        "x/0.src.flac": "",
        "1.wav": "two formats",
        "1.flac": "two formats",
        "Y-abc_0.000_10.000.wav": "dots in its name",
        "2.flac": "a longer suffix",
    }


def test_images_beside_audio_are_skipped(tmp_path):
    shard = write_shard(tmp_path / "a.tar", ("0.flac", SOUND), ("0.jpg", b"\xff\xd8"), ("cover.png", b""))
    assert list(read(shard)) == ["0.flac"]
    (tmp_path / "album").mkdir()
    for name in ("1.flac", "cover.jpg"):
        (tmp_path / "album" / name).write_bytes(SOUND)
    (entry,) = read_manifest(str(tmp_path / "album")).entries
    assert entry.path.endswith("1.flac")


def test_suffixes_in_capitals_and_hidden_files(tmp_path):
    shard = write_shard(
        tmp_path / "a.tar",
        ("./A.FLAC", SOUND),
        ("./A.TXT", b"loud"),
        ("._A.FLAC", b"left by a Mac"),
        ("._A.txt", b"\xff"),
        ("readme.md", b""),
        ("folder.wav", None),
    )
    assert read(shard) == {"./A.FLAC": ("", "loud")}


NOTES = [
    ({"label": None, "caption": None}, ("", "")),
    ({"labels": ["a", None, "b"], "captions": ["a dog", "barks"]}, ("a;b", "a dog\nbarks")),
    ({"text": ["a dog barks"], "tag": ["dog"], "label": ""}, ("", "a dog barks")),
    ({"label": 7, "caption": "first", "text": "second"}, ("7", "first")),
]


def test_labels_and_captions_are_read_under_all_their_names(tmp_path):
    notes = [(f"{index}.json", json.dumps(note).encode()) for index, (note, _) in enumerate(NOTES)]
    sounds = [(f"{index}.flac", SOUND) for index in range(len(NOTES))]
    assert list(read(write_shard(tmp_path / "a.tar", *sounds, *notes)).values()) == [b for _, b in NOTES]
    (tmp_path / "list.csv").write_text("file,text,labels,caption\n0.flac,a dog,x;y,\n")
    (entry,) = read_manifest(str(tmp_path / "list.csv")).entries
    assert (entry.label, entry.caption) == ("x;y", "a dog")


BAD_ANNOTATIONS = {
    "0.json": [b"[]", b"[" * 200_000, b'{"label": {"a": 1}}', bytes(2 << 20)],
    "0.txt": [b"caf\xe9"],
}


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name, contents in BAD_ANNOTATIONS.items() for content in contents],
)
def test_unreadable_annotations_are_named_with_their_shard(tmp_path, name, content):
    shard = write_shard(tmp_path / "a.tar", ("0.flac", SOUND), (name, content))
    with pytest.raises(ConfigError, match=f"a.tar:{name}"):
        read(shard)


def with_size(shard, size):
    """Change the size in the first header of a shard."""
    content = bytearray(Path(shard).read_bytes())
    info = tarfile.TarInfo.frombuf(bytes(content[:512]), "utf-8", "strict")
    info.size = size
    content[:512] = info.tobuf(tarfile.GNU_FORMAT)[-512:]
    Path(shard).write_bytes(content)
    return shard


def test_shards_that_are_none_are_refused_by_name(tmp_path):
    good = write_shard(tmp_path / "good.tar", ("0.flac", SOUND), ("1.flac", SOUND))
    content = Path(good).read_bytes()
    damaged = bytearray(content)
    damaged[len(SOUND) // 512 * 512 + 1024 + 10] ^= 255  # in the second header
    os.mkfifo(tmp_path / "pipe.tar")
    bad = {
        "empty": b"",
        "text": b"no tar",
        "cut": content[:1000],
        "damaged": bytes(damaged),
        "twice": Path(write_shard(tmp_path / "t.tar", ("0.flac", SOUND), ("./0.flac", SOUND))).read_bytes(),
        "zipped": Path(write_shard(tmp_path / "z.tar", ("0.flac", SOUND))).read_bytes(),
        "link": Path(write_shard(tmp_path / "l.tar", ("0.flac", "/etc/passwd"))).read_bytes(),
        "note": Path(write_shard(tmp_path / "n.tar", ("0.flac", SOUND), ("0.json", "gone"))).read_bytes(),
        "huge": Path(with_size(write_shard(tmp_path / "h.tar", ("0.flac", SOUND)), 1 << 60)).read_bytes(),
    }
    bad["zipped"] = gzip.compress(bad["zipped"])
    (tmp_path / "bad").mkdir()
    for name, spoiled in bad.items():
        path = tmp_path / "bad" / f"{name}.tar"
        path.write_bytes(spoiled)
        with pytest.raises(ConfigError, match=rf"{name}\.tar"):
            read(path)
    (tmp_path / "pipes").mkdir()
    os.rename(tmp_path / "pipe.tar", tmp_path / "pipes" / "pipe.tar")
    with pytest.raises(ConfigError, match=r"pipe\.tar is a pipe or a device, not a tar shard"):
        read(tmp_path / "pipes")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    for index in range(6):
        (folder / f"{index}.flac").write_bytes(tone(300 + 100 * index))
    prepare(str(folder), folder / "shards", progress=False)
    return folder / "shards"


@pytest.fixture
def shards(prepared, tmp_path):
    import shutil

    return shutil.copytree(prepared, tmp_path / "shards")


def test_shards_that_the_index_lacks_are_read_by_their_headers(shards, caplog):
    write_shard(shards / "added.tar", ("new.flac", SOUND))
    assert len(read(shards)) == len(read(shards / "*.tar")) == 7
    assert "index.csv lacks 1 shards" in caplog.text


def test_shards_that_the_index_names_must_exist(shards):
    os.rename(shards / "shard-000000.tar", shards / "other.tar")
    with pytest.raises(ConfigError, match=r"names shard-000000\.tar, which is missing.*delete"):
        read(shards)
    os.unlink(shards / "index.csv")
    assert len(read(shards)) == 6


@pytest.mark.parametrize("change", ["one more", "cut"])
def test_a_rewritten_shard_does_not_match_an_old_index(shards, change):
    path = shards / "shard-000000.tar"
    if change == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        with tarfile.open(path, "a") as tar:
            info = tarfile.TarInfo("zzz.flac")
            info.size = 20_000
            tar.addfile(info, io.BytesIO(bytes(20_000)))
    with pytest.raises(ConfigError, match=r"index\.csv cannot be used: .*shard-000000\.tar.* delete it"):
        read(shards)


@pytest.mark.parametrize(
    ("column", "value"), [("offset", "-512"), ("size", "9" * 30), ("features_size", "1e3")]
)
def test_an_index_with_invalid_numbers_is_refused(shards, column, value):
    header, first, *rows = (shards / "index.csv").read_text().splitlines()
    cells = dict(zip(header.split(","), first.split(","), strict=True)) | {column: value}
    (shards / "index.csv").write_text("\n".join([header, ",".join(cells.values()), *rows]))
    with pytest.raises(ConfigError, match=r"index\.csv.*delete"):
        read(shards)


@pytest.mark.parametrize("content", ["", "file,label\na,b\n", "\x00" * 50])
def test_a_foreign_index_is_refused(shards, content):
    (shards / "index.csv").write_text(content)
    with pytest.raises(ConfigError, match=r"index\.csv.*delete"):
        read(shards)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[" * 100_000,
        '{"mean": NaN, "std": 1, "sample_rate": 1}',
        '{"mean": 1, "std": 0, "sample_rate": 1}',
    ],
)
def test_invalid_statistics_are_refused(shards, content):
    (shards / "statistics.json").write_text(content)
    with pytest.raises(ConfigError, match=r"statistics\.json"):
        read(shards)
