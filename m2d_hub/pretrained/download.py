"""Downloads one file: resumed where it stopped, retried, hashed on the way; complete, or not there at all."""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import queue
import re
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2d_hub.errors import DownloadError
from m2d_hub.io import CHUNK_BYTES, FORBIDDEN, FULL, hash_into, storage_errors

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0  # without a byte
ATTEMPTS = 5  # in a row that bring nothing new
FIRST_DELAY_S = 1.0  # before the second attempt; doubled each time
LONGEST_DELAY_S = 60.0
ANSWER_S = 120.0  # until the headers are whole
LEAST_BYTES_PER_S = 500  # over PACE_S; slower ones count as interrupted
PACE_S = 60.0
MAX_BYTES = 8 << 30  # where the server does not say how much comes; the largest release has about 1 GB
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_RETRIED_STATUS = {408, 416, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Download:
    """A complete file on disk."""

    path: Path
    sha256: str
    size: int  # bytes


class _InterruptedError(Exception):
    """A failure that another attempt may overcome."""

    def __init__(self, reason: str, wait_s: float = 0.0, is_slow: bool = False):
        super().__init__(reason)
        self.wait_s, self.is_slow = wait_s, is_slow


def download(url: str, target: Path) -> Download:
    """Fetches ``url`` into ``target``, which no other process must do meanwhile (see ``files.locked``).

    What has arrived is kept in ``<target>.partial`` when the connection or the process ends; the next call
    goes on from there if the server still has the same file, by its ETag or date.

    Raises:
        DownloadError: The address is none, the server does not give the file, or it cannot be written.
    """
    check_address(url, "the address")
    partial = target.with_name(target.name + ".partial")
    with storage_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            digest = _attempts(url, partial, target)
        except OSError as error:
            if error.errno in FULL:
                _remove(partial)
            raise
        size = partial.stat().st_size
        os.replace(partial, target)
        _validator(partial).unlink(missing_ok=True)
    return Download(target, digest, size)


def check_address(url: str, what: str) -> str:
    """An address that can be asked, unchanged.

    Raises:
        DownloadError: It is none; the message begins with ``what``.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = bool(parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:
        is_address = False
    if not is_address or not url.isascii() or not url.isprintable() or " " in url:
        raise DownloadError(
            f"{what} {url!r} is no address to download from: it must look like https://host/path, with "
            "letters beyond ASCII and spaces written as %XX."
        )
    return url


def offline_advice(url: str, target: Path) -> str:
    """Advice for a machine that cannot fetch the file."""
    return f"To go on offline, fetch {url} on another machine and put it at {target}."


def _attempts(url: str, partial: Path, target: Path) -> str:
    failures, most = 0, -1
    while True:
        try:
            return _attempt(url, partial)
        except _InterruptedError as error:
            arrived = partial.stat().st_size if partial.exists() else 0
            is_new = arrived > most and not error.is_slow
            failures, most = (1, arrived) if is_new else (failures + 1, most)
            if failures >= ATTEMPTS:
                kept = (
                    f" {arrived / 1e6:.1f} MB are kept; the next call goes on from there." if arrived else ""
                )
                raise DownloadError(
                    f"{url} could not be downloaded: {error}, {ATTEMPTS} times in a row.{kept} "
                    f"{offline_advice(url, target)}"
                ) from error
            delay = min(max(FIRST_DELAY_S * 2 ** (failures - 1), error.wait_s), LONGEST_DELAY_S)
            logger.warning("%s: %s; trying again in %.0f s", url, error, delay)
            time.sleep(delay)
        except urllib.error.HTTPError as error:
            raise DownloadError(
                f"{url} could not be downloaded: the server answered {error.code} {error.reason}. "
                f"{offline_advice(url, target)}"
            ) from error
        except ValueError as error:  # an address that the server sent on to
            raise DownloadError(
                f"{url} could not be downloaded: what the server answered is no HTTP ({error}). "
                f"{offline_advice(url, target)}"
            ) from error


def _attempt(url: str, partial: Path) -> str:
    """Appends what is missing to ``partial`` and returns the sha256 of all of it."""
    digest = hashlib.sha256()
    request = urllib.request.Request(url, headers={"User-Agent": "m2d_hub"})  # noqa: S310  # checked before
    offset = _ask_for_rest(request, partial, digest)
    try:
        with _open(request) as response:
            return _receive(response, partial, offset, digest)
    except urllib.error.HTTPError as error:
        error.close()
        if offset and error.headers.get("Content-Range") == f"bytes */{offset}":  # nothing was missing
            return digest.hexdigest()
        if error.code not in _RETRIED_STATUS:
            raise
        if error.code == 416:  # what is there is no beginning of this file
            _remove(partial)
        wait = error.headers.get("Retry-After", "")
        answer = f"the server answered {error.code} {error.reason}"
        wait_s = float(wait) if wait.isascii() and wait.isdecimal() and len(wait) < 12 else 0.0
        raise _InterruptedError(answer, wait_s) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in FULL | FORBIDDEN:
            raise
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise _InterruptedError(str(reason) or type(error).__name__) from error


def _open(request: urllib.request.Request) -> Any:
    """The server's answer, once its headers are whole."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    given_up = threading.Event()

    def ask() -> None:
        try:
            response = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310  # as above
        except BaseException as error:  # noqa: BLE001 - raised by who waits for the answer
            answers.put(error)
            return
        answers.put(response)
        if given_up.is_set():
            response.close()

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_S)
    except queue.Empty:
        given_up.set()
        raise _InterruptedError(f"no whole answer within {ANSWER_S:.0f} s", is_slow=True) from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _ask_for_rest(request: urllib.request.Request, partial: Path, digest: Any) -> int:
    """Asks for what follows ``partial``, if the file is still the same; returns the bytes that are there."""
    validator = _validator(partial)
    mark = validator.read_text(encoding="latin-1") if partial.is_file() and validator.is_file() else ""
    if not mark.isprintable() or not mark:
        return 0
    offset = hash_into(digest, partial)
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        request.add_header("If-Range", mark)
    return offset


def _receive(response: Any, partial: Path, offset: int, digest: Any) -> str:
    if response.status == 206:
        total = _total_of_part(response, partial, offset)
    else:
        offset, digest = 0, hashlib.sha256()
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else None
    _prepare(partial, response.headers, needed=0 if total is None else total - offset)
    most = MAX_BYTES if total is None else total
    pace = _Pace()
    with partial.open("ab" if offset else "wb") as file, _progress(partial, offset, total) as bar:
        while chunk := response.read1(CHUNK_BYTES):
            offset += len(chunk)
            if offset > most:
                break
            file.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
            pace.check(len(chunk))
    if offset > most:
        _remove(partial)
        raise DownloadError(
            f"more came than the {most:,} bytes that were to come: the server gives something else than the "
            "file. Look at its address."
        )
    if total is not None and offset != total:
        raise _InterruptedError(f"the connection ended after {offset} of {total} bytes")
    return digest.hexdigest()


def _total_of_part(response: Any, partial: Path, offset: int) -> int | None:
    """Size of the whole file, by an answer that holds what follows ``offset``."""
    told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if told is None or int(told[1]) != offset or not offset:
        _remove(partial)  # so that the whole is asked for next
        raise _InterruptedError("the server answered another part of the file than was asked for")
    return None if told[3] == "*" else int(told[3])


class _Pace:
    """Gives up a connection that brings next to nothing."""

    def __init__(self) -> None:
        self._since, self._bytes = time.monotonic(), 0

    def check(self, num_bytes: int) -> None:
        self._bytes += num_bytes
        passed = time.monotonic() - self._since
        if passed < PACE_S:
            return
        if self._bytes < LEAST_BYTES_PER_S * passed:
            raise _InterruptedError(f"{self._bytes / passed:.0f} bytes a second are too slow", is_slow=True)
        self._since, self._bytes = time.monotonic(), 0


def _prepare(partial: Path, headers: Any, needed: int) -> None:
    """Remembers which file is coming, and refuses one that the disk cannot hold."""
    free = shutil.disk_usage(partial.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free")
    mark = headers.get("ETag") or headers.get("Last-Modified")
    if mark:
        _validator(partial).write_text(mark, encoding="latin-1", errors="replace")
    else:
        _validator(partial).unlink(missing_ok=True)


def _validator(partial: Path) -> Path:
    return partial.with_name(partial.name + ".etag")


def _remove(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _validator(partial).unlink(missing_ok=True)


def _progress(partial: Path, offset: int, total: int | None) -> Any:
    from huggingface_hub.utils import tqdm  # obeys HF_HUB_DISABLE_PROGRESS_BARS

    name = partial.name.removesuffix(".partial")
    return tqdm(desc=name, initial=offset, total=total, unit="B", unit_scale=True)
