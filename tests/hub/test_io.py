"""Locks of outputs, faults of the machine, and cells of tables."""

import csv
import errno
import os

import pytest
import soundfile

import m2d_hub
from m2d_hub import AudioError, ConfigError
from m2d_hub.io import as_cell, lock_output, reading

from ..signals import noise


def _failing_flock(monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", flock)


def test_one_run_at_a_time_writes_an_output(tmp_path):
    lock = lock_output(tmp_path / "new" / ".lock", "out.npz")
    with pytest.raises(ConfigError, match=r"another run is writing out\.npz"):
        lock_output(tmp_path / "new" / ".lock", "out.npz")
    lock.release()
    lock_output(tmp_path / "new" / ".lock", "out.npz").release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM])
def test_disks_without_locks_are_used_with_a_warning(number, tmp_path, monkeypatch, caplog):
    _failing_flock(monkeypatch, number)
    lock_output(tmp_path / ".lock", "out.npz").release()
    assert "has no locks" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_other_faults_of_a_lock_file_are_errors(number, tmp_path, monkeypatch):
    _failing_flock(monkeypatch, number)
    with pytest.raises(OSError) as raised:
        lock_output(tmp_path / ".lock", "out.npz")
    assert raised.value.errno == number


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_faults_of_the_machine_are_not_those_of_a_file(error):
    with pytest.raises(type(error)), reading("a.wav", "audio", "Convert it.", AudioError):
        raise error


def test_one_open_file_too_many_ends_a_job_and_no_file_counts_as_unreadable(
    tiny_folder, tmp_path, monkeypatch
):
    soundfile.write(tmp_path / "a.wav", noise(8_000), 16_000)
    out = tmp_path / "out.npz"

    def embed():
        return m2d_hub.embed_files(tmp_path / "a.wav", out, model=tiny_folder, device="cpu")

    def failing_open(path, *arguments, **options):
        if os.fspath(path).endswith("a.wav"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return open(path, *arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Too many open files"):
        patched.setattr("m2d_hub.io.open", failing_open, raising=False)
        embed()
    assert not (tmp_path / "out.npz.errors.csv").exists()
    assert embed().embedded == 1


def test_cells_of_tables_are_never_formulas():
    assert as_cell("=cmd()") == "'=cmd()" and as_cell("+1") == "'+1" and as_cell("a=b") == "a=b"


def test_reasons_in_a_list_of_unreadable_files_are_never_formulas(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "=cmd().wav").write_bytes(b"no audio")
    m2d_hub.embed_files("=cmd().wav", "out.npz", model=tiny_folder, device="cpu")
    with open("out.npz.errors.csv", newline="", encoding="utf-8") as lines:
        (row,) = csv.DictReader(lines)
    assert row["file"] == "'=cmd().wav" and row["error"].startswith("'=cmd().wav cannot be read")
