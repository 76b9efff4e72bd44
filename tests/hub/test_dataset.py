"""Embeddings as a folder of Parquet files: gone on with, each file once, whatever was killed where."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow.parquet
import pytest
import soundfile

import m2d_hub
from m2d_hub.corpus import dataset_output
from m2d_hub.corpus.parquet import Parquet

from ..signals import noise


@pytest.fixture
def files(tmp_path):
    for index in range(9):
        soundfile.write(tmp_path / f"{index}.wav", noise(2_000 + index).numpy(), 16_000)
    return sorted(tmp_path.glob("*.wav"))


@pytest.fixture
def embed(tiny_folder, tmp_path, monkeypatch):
    """Embeds into parts of four files."""
    monkeypatch.setattr(dataset_output, "_PART_RECORDS", 4)

    def run(paths, kind="clip", out="out.dataset"):
        return m2d_hub.embed_files(
            paths, tmp_path / out, model=tiny_folder, kind=kind, batch_size=2, device="cpu"
        )

    return run


def rows(folder):
    return pyarrow.parquet.read_table(folder).to_pydict()


@pytest.mark.parametrize("kind", ["clip", "frames", "layers"])
def test_a_folder_of_parts_is_one_table(kind, embed, files, tmp_path):
    assert embed(files, kind).embedded == 9
    assert len(list((tmp_path / "out.dataset").glob("part-*.parquet"))) == 3
    embed(files, kind, "out.parquet")
    whole = {record.file: record for record in Parquet().records(tmp_path / "out.parquet")}
    found = [
        record for part in (tmp_path / "out.dataset").glob("part-*") for record in Parquet().records(part)
    ]
    assert sorted(record.file for record in found) == sorted(whole)
    for record in found:
        np.testing.assert_array_equal(record.embedding, whole[record.file].embedding)


def test_the_index_says_where_each_row_is(embed, files, tmp_path):
    embed(files)
    index = rows(tmp_path / "out.dataset" / "_index.parquet")
    assert sorted(index["file"]) == [file.as_posix() for file in files]
    for file, part, row in zip(index["file"], index["part"], index["row"], strict=True):
        assert rows(tmp_path / "out.dataset" / part)["file"][row] == file


def test_new_files_are_added_and_failed_ones_tried_again(embed, files, tmp_path):
    good = files[3].read_bytes()
    files[3].write_text("no audio")
    first = embed(files[:5])
    assert (first.embedded, first.failed) == (4, 1)
    files[3].write_bytes(good)
    second = embed(files)
    assert (second.embedded, second.already_there, second.failed) == (5, 4, 0)
    assert sorted(rows(tmp_path / "out.dataset")["file"]) == [file.as_posix() for file in files]


def test_what_a_stopped_job_had_is_kept(embed, files, tmp_path):
    def interrupt(batches, job):
        from m2d_hub.corpus.embed_files import _run_here

        for number, result in enumerate(_run_here(batches, job)):
            if number == 3:
                raise KeyboardInterrupt
            yield result

    with pytest.raises(KeyboardInterrupt):
        m2d_hub.embed_files(
            files, tmp_path / "out.dataset", model=tmp_path / "tiny", batch_size=2, engine=interrupt
        )
    resumed = embed(files)
    assert (resumed.already_there, resumed.embedded) == (6, 3)


def test_rows_of_a_worker_that_outlived_its_job_are_not_there_twice(embed, files, tmp_path):
    """It finished a part of six files after the next job, which does all nine, had looked."""
    embed(files[:6], out="late.dataset")
    embed(files)
    for number, part in enumerate((tmp_path / "late.dataset").glob("part-*")):
        shutil.copy(part, tmp_path / "out.dataset" / f"part-{'f' * 15}{number}.parquet")
    assert len(rows(tmp_path / "out.dataset")["file"]) == 15
    embed(files)
    assert sorted(rows(tmp_path / "out.dataset")["file"]) == [file.as_posix() for file in files]


def test_a_part_that_is_the_rest_of_another_is_kept(embed, files, tmp_path):
    """As a job leaves it that is killed after it wrote what only one of two overlapping parts has."""
    embed(files[:6])
    embed(files[2:6], out="late.dataset")
    folder = tmp_path / "out.dataset"
    first = next(part for part in folder.glob("part-*") if len(rows(part)["file"]) == 4)
    first.rename(folder / f"part-{0:016}.parquet")
    shutil.copy(next((tmp_path / "late.dataset").glob("part-*")), folder / f"part-{1:016}.parquet")
    assert len(list(folder.glob("part-*"))) == 3
    embed(files)
    assert sorted(rows(folder)["file"]) == [file.as_posix() for file in files]
    index = rows(folder / "_index.parquet")
    assert sorted(index["file"]) == sorted(rows(folder)["file"])


def test_footers_are_read_once_at_the_end(embed, files, tmp_path, monkeypatch):
    read = []
    contents = Parquet.contents
    monkeypatch.setattr(
        Parquet, "contents", lambda self, path, name: read.append(path) or contents(self, path, name)
    )
    embed(files)
    assert len(read) == len(set(read)) == 3


def test_another_kind_is_refused(embed, files):
    embed(files)
    with pytest.raises(m2d_hub.ConfigError, match=r"kind 'clip', now 'frames'"):
        embed(files, "frames")


@pytest.mark.parametrize("name", ["notes.txt", "0.npy", "part-1.parquet"])
def test_a_folder_of_somebody_else_is_left_alone(name, embed, files, tmp_path):
    (tmp_path / "out.dataset").mkdir()
    (tmp_path / "out.dataset" / name).write_text("precious")
    with pytest.raises(m2d_hub.ConfigError, match="which m2d-hub embed did not write"):
        embed(files)
    assert [path.name for path in (tmp_path / "out.dataset").iterdir()] == [name]


def test_a_file_of_the_name_is_left_alone(embed, files, tmp_path):
    (tmp_path / "out.dataset").write_text("precious")
    with pytest.raises(m2d_hub.ConfigError, match="is a link or a file"):
        embed(files)


def test_a_job_that_can_read_nothing_leaves_no_folder(embed, tmp_path):
    (tmp_path / "a.wav").write_text("no audio")
    assert embed([tmp_path / "a.wav"]).failed == 1
    assert not (tmp_path / "out.dataset").exists()
