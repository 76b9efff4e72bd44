"""Tar shards as input of ``m2d-hub embed``."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2d_hub import ConfigError, embed_files, find_sources
from m2d_hub.corpus.stored import read_embeddings

from ..signals import noise


def wav(seed, samples=4_000):
    file = io.BytesIO()
    soundfile.write(file, noise(samples + seed).numpy(), 16_000, format="WAV")
    return file.getvalue()


def pack(path, members):
    """Write a shard of ``(name, bytes)`` and prepared headers."""
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def link(name, kind, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def embed(tiny_folder, tmp_path):
    def run(paths, out="out.npz", **options):
        return embed_files(paths, tmp_path / out, model=tiny_folder, batch_size=2, device="cpu", **options)

    return run


def errors(tmp_path, out="out.npz"):
    with (tmp_path / f"{out}.errors.csv").open(encoding="utf-8") as lines:
        return {row["file"]: row["error"] for row in csv.DictReader(lines)}


def embeddings(path):
    return {row.file: row.embedding for row in read_embeddings(path).rows()}


@pytest.mark.parametrize("kind", ["clip", "frames"])
def test_members_are_embedded_like_files(kind, embed, tmp_path):
    contents = {f"{seed:06}.wav": wav(seed) for seed in range(5)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    notes = [("000000.json", b"{}"), ("000001.txt", b"a dog"), ("._000002.wav", b"of another system")]
    pack(tmp_path / "a.tar", [*contents.items(), *notes])
    assert embed(tmp_path / "a.tar", kind=kind).embedded == 5
    embed(sorted(tmp_path.glob("*.wav")), "files.npz", kind=kind)
    found, expected = embeddings(tmp_path / "out.npz"), embeddings(tmp_path / "files.npz")
    assert sorted(found) == sorted(contents)
    for file, embedding in expected.items():
        np.testing.assert_array_equal(found[file.rsplit("/", 1)[1]], embedding)


@pytest.mark.parametrize("how", ["folder", "pattern", "list"])
def test_shards_are_found_beside_files(how, tmp_path):
    (tmp_path / "in").mkdir()
    pack(tmp_path / "in" / "a.tar", [("x.wav", wav(0)), ("y.flac", b"")])
    pack(tmp_path / "in" / "b.tar", [("x.wav", wav(1))])
    pack(tmp_path / "in" / "notes.tar", [("notes.txt", b"")])
    (tmp_path / "in" / "z.wav").write_bytes(wav(2))
    (tmp_path / "list.csv").write_text("file\nin/a.tar\nin/b.tar\nin/z.wav\n")
    given = {"folder": "in", "pattern": "in/*", "list": "list.csv"}[how]
    names = [source.file for source in find_sources(tmp_path / given)]
    assert names[:2] == ["x.wav", "y.flac"]
    assert names[2].endswith("b.tar:x.wav") and names[3].endswith("z.wav") and len(names) == 4


def test_a_job_on_shards_resumes_and_embeds_changed_ones(embed, tmp_path):
    shards = [pack(tmp_path / f"{name}.tar", [("x.wav", wav(0)), (f"{name}.wav", wav(1))]) for name in "ab"]
    assert embed(shards[:1]).embedded == 2
    again = embed(shards)
    assert (again.embedded, again.already_there, again.failed) == (2, 2, 0)
    pack(shards[0], [("x.wav", wav(3_000)), ("a.wav", wav(1))])
    assert embed(shards).already_there == 2


def test_members_that_are_not_audio_are_reported_and_tried_again(embed, tmp_path):
    pack(tmp_path / "a.tar", [("good.wav", wav(0)), ("bad.wav", b"no audio"), ("empty.wav", b"")])
    for embedded in (1, 0):
        summary = embed(tmp_path / "a.tar")
        assert (summary.embedded, summary.failed) == (embedded, 2)
    reasons = errors(tmp_path)
    assert sorted(reasons) == ["bad.wav", "empty.wav"]
    assert reasons["bad.wav"].startswith(f"{tmp_path / 'a.tar'}:bad.wav cannot be read as audio")
    assert "is empty" in reasons["empty.wav"]


@pytest.mark.parametrize("name", ["../../evil.wav", "/evil.wav"])
@pytest.mark.parametrize("out", ["here/out", "here/out.npz"])
def test_names_that_lead_out_of_a_shard_are_only_names(name, out, embed, tmp_path):
    pack(tmp_path / "a.tar", [(name, wav(0))])
    (tmp_path / "here").mkdir()
    assert embed(tmp_path / "a.tar", out, kind="frames").embedded == 1
    assert not list(tmp_path.glob("evil*")) and not list((tmp_path / "here").glob("evil*"))
    assert list(read_embeddings(tmp_path / out).fingerprints) == [name]


def second_header_damaged(content):
    return content[:1_536] + b"\xff" * 76 + content[1_612:]


UNREADABLE = {
    "a symbolic link": (link("evil.wav", tarfile.SYMTYPE, "/etc/passwd"), bytes, "evil.wav is a link"),
    "a hard link": (link("evil.wav", tarfile.LNKTYPE, "x.wav"), bytes, "evil.wav is a link"),
    "a device": (link("evil.wav", tarfile.CHRTYPE, ""), bytes, "evil.wav is a link"),
    "a repeated name": (("./x.wav", wav(1)), bytes, "it contains x.wav twice"),
    "a cut member": (("y.wav", wav(1, 40_000)), lambda content: content[:20_000], "before its member y.wav"),
    "a cut between members": (("y.wav", wav(1)), lambda content: content[:1_536], "cut off at byte 1,536"),
    "an archive that follows": (("y.txt", b""), lambda content: content * 2, "or another archive follows"),
    "a damaged header": (("y.wav", wav(1)), second_header_damaged, "damaged or cut off at byte 1,536"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_members_before_what_cannot_be_read_are_embedded(case, embed, tmp_path):
    member, damage, reason = UNREADABLE[case]
    shard = pack(tmp_path / "a.tar", [("x.wav", wav(0, 300)), member])
    shard.write_bytes(damage(shard.read_bytes()))
    summary = embed(shard)
    assert (summary.embedded, summary.failed) == (1, 1)
    [message] = errors(tmp_path).values()
    assert message.startswith(f"{shard} cannot be read as a tar shard (") and reason in message


def test_a_shard_without_audio_is_refused(tmp_path):
    pack(tmp_path / "a.tar", [("notes.txt", b"")])
    with pytest.raises(ConfigError, match=r"a\.tar holds no audio files"):
        find_sources(tmp_path / "a.tar")


def negative_size(path):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.wav")
        info.pax_headers = {"size": "-5000"}
        tar.addfile(info)


def nested_headers(path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1
    path.write_bytes((header.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * 20_000)


def not_a_shard(path):
    path.write_bytes(b"no archive" * 100)


@pytest.mark.parametrize("damage", [negative_size, nested_headers, not_a_shard, Path.touch])
def test_a_malformed_shard_does_not_stop_the_rest(damage, embed, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.wav").write_bytes(wav(0))
    damage(tmp_path / "in" / "z.tar")
    summary = embed(tmp_path / "in")
    assert (summary.embedded, summary.failed) == (1, 1)
    assert "z.tar cannot be read as a tar shard" in "".join(errors(tmp_path).values())
