"""Locks of outputs."""

import errno
import os

import pytest

from m2d_hub import ConfigError
from m2d_hub.io import lock_output


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
