"""Append records to the files of one chain: one writer a file, nothing overwritten, nothing lost but a line.

Each process has a file of its own. The first takes ``audit.jsonl``, a second one beside it ``audit.1.jsonl`` and so on;
the lowest number that no living process holds is taken, so that chains go on over restarts and files stay few.
"""

from __future__ import annotations

import _thread
import atexit
import calendar
import contextlib
import errno
import hashlib
import os
import secrets
import socket
import stat
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from .. import _faults
from ._audit_chain import (
    FIRST_PREV,
    LINE_LIMIT,
    Seal,
    UnreadableRecordError,
    read_body,
    take_apart,
    timestamp,
)
from ._lock import ForkSafeLock

Fsync: TypeAlias = Literal["always", "interval", "never"]
Head: TypeAlias = "str | os.PathLike[str] | Callable[[str], object]"

_SLOTS: Final = 4096
_LINES_BACK: Final = 1000
_RETRY_ROTATION_S: Final = 1.0
_MODE: Final = 0o600
_BLOCK: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditState:
    """How an audit log fares in this process.

    Attributes:
        file: The file that is being written; None before the first record in a forked child.
        chain: The id of its chain.
        sequence: Number of the last record written; None if there is none.
        written: Records written by this process.
        lost: Records that could not be written.
        failing: True if the last attempt to write failed; a program that may make no call unaudited asks this first.
        last_error: Class and code of the last failure, such as ``OSError ENOSPC``; never its text.
        recoveries: Unfinished or foreign bytes that were found and set aside.
        rotations: Files that were finished and replaced.
        unsynced: True if records are written that the disk may not have yet.
    """

    file: Path | None
    chain: str | None
    sequence: int | None
    written: int
    lost: int
    failing: bool
    last_error: str | None
    recoveries: int
    rotations: int
    unsynced: bool


@dataclass(slots=True)
class _Losses:
    """Records that could not be written since the last one that could."""

    count: int
    since: str
    error: str


class ChainFile:
    """The file one process writes.

    Args:
        path: The file, or what its name is made from if another process holds it.
        seal: Makes the hashes.
        header: Facts that go into the first record of a file and of a process.
        max_bytes: Size at which the file is replaced; None for never.
        max_age_s: Seconds after which it is; None for never.
        fsync: When to wait for the disk.
        interval_s: Seconds between two waits, and between two heads.
        head: Where the head goes: a file, or a function that takes its line.
    """

    def __init__(
        self,
        path: Path,
        seal: Seal,
        header: Mapping[str, Any],
        *,
        max_bytes: int | None,
        max_age_s: float | None,
        fsync: Fsync,
        interval_s: float,
        head: Head | None,
    ) -> None:
        self._base = path
        self._seal = seal
        self._header = header
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._fsync = fsync
        self._interval_s = interval_s
        self._head = head
        self._lock = ForkSafeLock()
        self._settling = ForkSafeLock()  # taken before the other; the disk may take its time, and heads their order
        self._forget()
        _files.add(self)

    def _forget(self) -> None:
        self._fd = self._lock_fd = -1
        self._path: Path | None = None
        self._number = 0
        self._chain: str | None = None
        self._seq = 0
        self._prev = FIRST_PREV
        self._size = 0
        self._identity = (0, 0)
        self._begun_s = 0.0
        self._is_empty = True  # but for its first record
        self._losses: _Losses | None = None
        self._failing = False
        self._last_error: str | None = None
        self._written = self._lost = self._recoveries = self._rotations = 0
        self._unsynced = False
        self._head_is_due = False
        self._rotate_from_s = 0.0
        self._timer: threading.Timer | None = None

    @property
    def path(self) -> Path:
        """The file that was asked for."""
        return self._base

    @property
    def state(self) -> AuditState:
        """What there is to know."""
        with self._lock:
            self._leave_parent()
            return AuditState(
                file=self._path,
                chain=self._chain,
                sequence=self._seq - 1 if self._seq else None,
                written=self._written,
                lost=self._lost,
                failing=self._failing,
                last_error=self._last_error,
                recoveries=self._recoveries,
                rotations=self._rotations,
                unsynced=self._unsynced,
            )

    def open(self) -> None:
        """Take a file and write that this process writes it.

        Raises:
            OSError: No file can be had, or it cannot be written.
            ValueError: There is something else in it, or it was written with another key.
        """
        with self._lock:
            self._leave_parent()
            if self._fd < 0:
                self._open()
                self._settle_later()

    def append(self, kind: str, read_facts: Callable[[], Mapping[str, Any]]) -> None:
        """Write a record of what *read_facts* returns.

        Raises:
            OSError: It could not be written; it is counted, and the next record that can be is preceded by a ``gap``.
            Exception: *read_facts* failed, or the record has no canonical form or is too long; likewise.
        """
        try:
            facts = read_facts()
        except BaseException as error:
            with self._lock:
                self._leave_parent()
                self._lose(error)
            raise
        with self._lock:
            try:
                self._leave_parent()
                if self._fd < 0:
                    self._open()
                self._look()
                self._rotate_if_due()
                self._write_gap()
                self._write(kind, facts)
            except BaseException as error:
                self._lose(error)
                raise
            self._failing = False
            self._settle_later()
            if self._fsync == "always":
                self._wait_for_disk()

    def _wait_for_disk(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:  # written, and nobody knows how far
            self._failing = True
            self._last_error = _error_name(error)
            raise
        self._unsynced = False

    def sync(self) -> None:
        """Have the disk take what was written, and write the head.

        Raises:
            OSError: The disk did not.
        """
        self._settle()

    def close(self) -> None:
        """Write that this process has ended its part, and let go of the file; a later record opens it again."""
        with self._lock:
            self._leave_parent()
            if self._fd < 0:
                return
            try:
                self._look()
                self._write_gap()
                self._write("close", {})
            except (OSError, ValueError) as error:
                self._lose(error)
        try:
            self._settle()
        except Exception as error:  # noqa: BLE001 - the function for heads may raise anything, and this may be the exit
            _faults.report("audit", error, "the audit log was closed without its head, or before the disk had it")
        with self._lock:
            self._let_go()

    def close_from_finaliser(self) -> None:
        """Close it on another thread: the garbage collector may have interrupted one that holds the lock."""
        with contextlib.suppress(RuntimeError):  # at exit, where all are closed
            _thread.start_new_thread(self.close, ())

    def abandon(self) -> None:
        """Close what a forked child has from its parent; the parent's locks stay."""
        for fd in (self._fd, self._lock_fd):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._fd = self._lock_fd = -1

    def _leave_parent(self) -> None:
        if self._lock.forked:
            self._lock.forked = False
            self.abandon()
            self._forget()

    def _let_go(self) -> None:
        self.abandon()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Opening and finding out where the chain stands.

    def _open(self) -> None:
        try:
            self._begin_chain()
        except BaseException:
            self._let_go()
            raise

    def _begin_chain(self) -> None:
        self._number, self._path, self._lock_fd, self._fd = _claim(self._base)
        status = os.fstat(self._fd)
        self._identity = (status.st_ino, status.st_dev)
        found = _last_record(self._fd, self._seal, 0)
        if found is None and _starts_a_line(self._fd, status.st_size) is False:
            raise ValueError(f"{self._path} is not an audit log, or was written with another key")
        if found is None:
            self._chain, self._seq, self._prev, self._size = secrets.token_hex(8), 0, FIRST_PREV, 0
            self._begun_s = time.time()
        else:
            self._follow(found)
            self._begun_s = status.st_mtime if self._max_age_s is None else _begun_s(self._fd, status.st_mtime)
        self._is_empty = False
        size = os.fstat(self._fd).st_size
        if self._size < size:
            self._recover(self._size, size, cause="unfinished", facts=self._begin())
        else:
            self._write("open", self._begin())
        if self._fsync != "never":
            os.fsync(self._fd)
            _sync_directory(self._path)

    def _begin(self) -> dict[str, Any]:
        """What the first record of a process or file says of both."""
        return {
            **self._header,
            "algorithm": self._seal.algorithm,
            "file": self._path.name if self._path is not None else "",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **({} if self._seal.key_id is None else {"key_id": self._seal.key_id}),
        }

    def _look(self) -> None:
        """Find out what others did to the file since the last record: moved, cut, or wrote into it."""
        path = self._path
        if path is None:  # not after _open
            return
        try:
            status = path.lstat()
        except FileNotFoundError:
            status = None
        if status is None or (status.st_ino, status.st_dev) != self._identity:
            self._replace(path)
        elif status.st_size != self._size:
            self._adopt(status.st_size)
        if not self._size:
            self._write("rotate", {**self._begin(), "cause": "moved"})

    def _replace(self, path: Path) -> None:
        """The file was taken away under us: go on in a new one."""
        fd = _open_private(path)
        is_ours = False
        try:
            _lock_fd(fd)
            is_ours = os.fstat(fd).st_size == 0
        finally:
            if not is_ours:
                os.close(fd)
        if not is_ours:
            raise FileExistsError(errno.EEXIST, "another file was put in its place", str(path))
        os.close(self._fd)
        self._take(fd)

    def _take(self, fd: int) -> None:
        status = os.fstat(fd)
        self._fd, self._identity, self._size = fd, (status.st_ino, status.st_dev), status.st_size
        self._begun_s = time.time()
        self._is_empty = True

    def _adopt(self, size: int) -> None:
        """The size is not what we made it: a record of ours that was interrupted, or someone else's bytes."""
        if size < self._size:
            self._recover(size, size, cause="cut")
            return
        found = _last_record(self._fd, self._seal, self._size)
        if found is not None and found.chain == self._chain and found.seq == self._seq + 1:
            self._follow(found)
        size = os.fstat(self._fd).st_size
        if self._size < size:
            self._recover(self._size, size, cause="unfinished" if self._failing else "foreign")

    def _follow(self, found: _Found) -> None:
        self._chain, self._seq, self._prev, self._size = found
        if os.pread(self._fd, 1, self._size - 1) != b"\n":  # whole but for its line break
            self._put(b"\n")
            self._size += 1

    def _recover(self, start: int, size: int, *, cause: str, facts: Mapping[str, Any] | None = None) -> None:
        """Leave what is not ours where it is, as evidence, and name it in a record of its own."""
        digest, ends_line = _hash_region(self._fd, start, size)
        torn = {"bytes": size - start, "cause": cause, "sha256": digest}
        before, self._size = self._size, size
        try:
            self._write("recovered", {**(facts or {}), "torn": torn}, before=b"" if ends_line else b"\n")
        except BaseException:  # so that the next record finds it again
            self._size = before
            raise
        self._recoveries += 1

    # Writing.

    def _write(self, kind: str, facts: Mapping[str, Any], *, before: bytes = b"") -> None:
        record = {
            **facts,
            "chain": self._chain,
            "kind": kind,
            "prev": self._prev,
            "seq": self._seq,
            "time": timestamp(time.time_ns()),
        }
        line, digest = self._seal.line(record)
        if len(line) > LINE_LIMIT:
            raise ValueError(f"a record of {len(line)} bytes is too long")
        self._put(before + line)
        self._prev = digest
        self._seq += 1
        self._size += len(before) + len(line)
        self._written += 1
        self._unsynced = self._head_is_due = True
        if kind != "rotate":
            self._is_empty = False

    def _put(self, line: bytes) -> None:
        done = 0
        try:
            while done < len(line):  # short only if the disk is about to be full
                done += os.write(self._fd, line[done:])
        except OSError:
            if done:
                with contextlib.suppress(OSError):  # what stays is found by its size and set aside
                    os.ftruncate(self._fd, self._size)
            raise

    def _write_gap(self) -> None:
        losses = self._losses
        if losses is not None:
            self._write("gap", {"error": losses.error, "lost": losses.count, "since": losses.since})
            self._losses = None

    def _lose(self, error: BaseException) -> None:
        self._lost += 1
        self._failing = True
        self._last_error = _error_name(error)
        if self._losses is None:
            self._losses = _Losses(0, timestamp(time.time_ns()), self._last_error)
        self._losses.count += 1

    # Rotation.

    def _rotate_if_due(self) -> None:
        is_due = (self._max_bytes is not None and self._size >= self._max_bytes) or (
            self._max_age_s is not None and time.time() - self._begun_s >= self._max_age_s
        )
        if not is_due or self._is_empty or time.monotonic() < self._rotate_from_s:
            return
        try:
            self._rotate()
        except OSError as error:  # better a file that is too long than a record that is lost
            self._rotate_from_s = time.monotonic() + _RETRY_ROTATION_S
            self._last_error = _error_name(error)
            _faults.report("audit", error, "an audit file was not replaced")

    def _rotate(self) -> None:
        """Replace the file so that at every moment a crash leaves a whole chain."""
        path = self._path
        if path is None:
            return
        following = _following(path)
        archive = _archive(path)
        fd = _open_anew(following)
        old = (self._fd, self._identity, self._size, self._begun_s, self._seq, self._prev, self._written)
        try:
            _lock_fd(fd)
            if self._fsync != "never":
                os.fsync(self._fd)
            self._take(fd)
            self._write("rotate", {**self._begin(), "after": archive.name})
            if self._fsync != "never":
                os.fsync(fd)
            path.rename(archive)
            following.rename(path)
        except BaseException:
            self._fd, self._identity, self._size, self._begun_s, self._seq, self._prev, self._written = old
            self._is_empty = False
            os.close(fd)
            if os.path.lexists(path):  # else the next record finds that its file has moved
                with contextlib.suppress(OSError):
                    following.unlink()
            raise
        os.close(old[0])
        if self._fsync != "never":
            _sync_directory(path)
        self._rotations += 1

    # Disk and head.

    def _settle_later(self) -> None:
        """See that within the interval the disk has it and the head is out, off the path of the calls."""
        wants_sync = self._fsync == "interval" and self._unsynced
        if self._timer is None and (wants_sync or (self._head is not None and self._head_is_due)):
            timer = threading.Timer(self._interval_s, self._settle_quietly)
            timer.daemon = True
            timer.name = "otel-llm-callback-audit"
            try:
                timer.start()
            except RuntimeError:  # the interpreter is shutting down; close() does it
                return
            self._timer = timer

    def _settle_quietly(self) -> None:
        with self._lock:
            self._timer = None
        try:
            self._settle()
        except Exception as error:  # noqa: BLE001 - a thread of ours, with nobody to raise to
            _faults.report("audit", error, "the audit log was not synced or its head not written")

    def _settle(self) -> None:
        with self._settling:
            self._settle_in_order()

    def _settle_in_order(self) -> None:
        with self._lock:
            self._leave_parent()
            if self._fd < 0:
                return
            fd = os.dup(self._fd)
            sequence, self._unsynced = self._seq, False
            head = self._head_line() if self._head_is_due else None
            self._head_is_due = False
        try:
            if self._fsync != "never":
                os.fsync(fd)
            if head is not None:  # after the disk has what it stands for
                self._write_head(head)
        except BaseException as error:
            with self._lock:
                self._unsynced = self._head_is_due = True
                self._last_error = _error_name(error)
            raise
        finally:
            os.close(fd)
        with self._lock:
            if self._seq != sequence:
                self._unsynced = True
                self._settle_later()

    def _head_line(self) -> bytes | None:
        if self._head is None or self._path is None or not self._seq:
            return None
        head = {
            "chain": self._chain,
            "file": self._path.name,
            "kind": "head",
            "prev": self._prev,
            "seq": self._seq - 1,
            "time": timestamp(time.time_ns()),
        }
        return self._seal.line(head)[0]

    def _write_head(self, line: bytes) -> None:
        if callable(self._head):
            self._head(line.decode())
        elif self._head is not None:
            path = _numbered(Path(self._head), self._number)
            temporary = path.with_name(f"{path.name}.{os.getpid()}.next")
            fd = _open_anew(temporary)
            try:
                os.write(fd, line)
                if self._fsync != "never":
                    os.fsync(fd)
            finally:
                os.close(fd)
            temporary.replace(path)


class _Found(NamedTuple):
    """Where a chain stands: its id, the next sequence number, the last hash, and the offset after the last record."""

    chain: str
    seq: int
    prev: str
    end: int


def _last_record(fd: int, seal: Seal, lowest: int) -> _Found | None:
    """Return where the last whole record at or after *lowest* leaves the chain.

    Only the last thousand lines are looked at: what is damaged further back is the verifier's business.
    """
    end = os.fstat(fd).st_size
    for _ in range(_LINES_BACK):
        if end <= lowest:
            break
        stop = end - 1 if os.pread(fd, 1, end - 1) == b"\n" else end
        start = _line_start(fd, lowest, stop)
        sealed = take_apart(os.pread(fd, stop - start, start)) if stop - start <= LINE_LIMIT else None
        if sealed is not None and seal.fits(sealed):
            with contextlib.suppress(UnreadableRecordError):
                record = read_body(sealed.body)
                return _Found(record["chain"], record["seq"] + 1, sealed.digest, end)
        end = start
    return None


def _line_start(fd: int, lowest: int, stop: int) -> int:
    """Return where the line begins that ends at *stop*."""
    while stop > lowest:  # not by mmap: if the file is cut meanwhile, that kills the process
        start = max(lowest, stop - _BLOCK)
        found = os.pread(fd, stop - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        stop = start
    return lowest


def _starts_a_line(fd: int, size: int) -> bool:
    """Return whether there is nothing in the file but, at most, the beginning of its very first record."""
    beginning = os.pread(fd, _BLOCK, 0)
    return size < _BLOCK and b"\n" not in beginning and (b'{"algorithm":"').startswith(beginning[:14])


def _begun_s(fd: int, default: float) -> float:
    """Return when the file was begun, as its first record says."""
    line = os.pread(fd, _BLOCK, 0).partition(b"\n")[0]
    sealed = take_apart(line)
    try:
        text = read_body(sealed.body)["time"] if sealed is not None else ""
        begun = time.strptime(text[:19] + "+0000", "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return default
    return float(calendar.timegm(begun))


def _hash_region(fd: int, start: int, end: int) -> tuple[str, bool]:
    """Return the SHA-256 of a part of the file without its last line break, and whether a line ends there."""
    ends_line = end == 0 or os.pread(fd, 1, end - 1) == b"\n"
    digest = hashlib.sha256()
    stop = end - 1 if ends_line and end > start else end
    while start < stop:
        piece = os.pread(fd, min(1 << 20, stop - start), start)
        if not piece:
            break
        digest.update(piece)
        start += len(piece)
    return digest.hexdigest(), ends_line


def _claim(base: Path) -> tuple[int, Path, int, int]:
    """Return number, path, lock and file of the first file that no other process writes."""
    for number in range(_SLOTS):
        path = _numbered(base, number)
        lock_fd = _open_private(path.with_name(path.name + ".lock"))
        fd = -1
        try:
            _lock_fd(lock_fd)
            following = _following(path)
            if not os.path.lexists(path) and os.path.lexists(following):
                following.rename(path)  # a crash came between the two renames of a rotation
            fd = _open_private(path)
            _lock_fd(fd)
        except BlockingIOError:
            for held in (fd, lock_fd):
                if held >= 0:
                    os.close(held)
            continue
        except BaseException:
            for held in (fd, lock_fd):
                if held >= 0:
                    os.close(held)
            raise
        return number, path, lock_fd, fd
    raise OSError(f"{_SLOTS} processes write {base} already")


def _lock_fd(fd: int) -> None:
    """Lock a file against other processes, until the last descriptor of this opening is closed or the process dies.

    Raises:
        BlockingIOError: Another one has it.
    """
    import fcntl

    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _open_private(path: Path, flags: int = 0) -> int:
    """Open a file of ours for appending, and make sure that it is one and that nobody else can read it.

    Raises:
        OSError: It cannot be opened.
        PermissionError: It is a link, no regular file, or belongs to someone else.
    """
    if path.is_symlink():  # O_NOFOLLOW closes the gap after this look; this is for the message
        raise PermissionError(f"{path} is a symbolic link; name the file itself")
    mode = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, mode | flags, _MODE)
    status = os.fstat(fd)
    problem = None
    if not stat.S_ISREG(status.st_mode):
        problem = "is not a regular file"
    elif status.st_uid != os.geteuid():
        problem = "belongs to another user"
    if problem is not None:
        os.close(fd)
        raise PermissionError(f"{path} {problem}")
    if stat.S_IMODE(status.st_mode) != _MODE:
        os.fchmod(fd, _MODE)
    return fd


def _open_anew(path: Path) -> int:
    """Open a new file in the place of one that a crash has left; never one that somebody has put there."""
    path.unlink(missing_ok=True)
    return _open_private(path, os.O_EXCL)


def _sync_directory(path: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _numbered(path: Path, number: int) -> Path:
    """Return ``audit.2.jsonl`` for number 2."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}") if number else path


def _following(path: Path) -> Path:
    return path.with_name(path.name + ".next")


def _archive(path: Path) -> Path:
    """Return a name for a finished file that sorts by time, such as ``audit.20260131T120000.000000000Z.jsonl``."""
    while True:
        when = timestamp(time.time_ns()).replace("-", "").replace(":", "")
        archive = path.with_name(f"{path.stem}.{when}{path.suffix}")
        if not os.path.lexists(archive):
            return archive


def _error_name(error: BaseException) -> str:
    name = type(error).__name__
    code = errno.errorcode.get(error.errno) if isinstance(error, OSError) and error.errno is not None else None
    return name if code is None else f"{name} {code}"


_files: Final[weakref.WeakSet[ChainFile]] = weakref.WeakSet()


def _abandon_all() -> None:
    for file in list(_files):
        file.abandon()


def _close_all() -> None:
    for file in list(_files):
        file.close()


atexit.register(_close_all)  # so early that it runs late: after what is queued was delivered
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_abandon_all)
