"""Read the files of audit logs and say what is wrong with them, and what cannot be told from them.

Memory is bounded whatever the files hold: they are read line by line, findings beyond a hundred are only counted. The
content of a line is never quoted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from ._audit_chain import FIRST_PREV, LINE_LIMIT, STARTS, Seal, UnreadableRecordError, read_body, take_apart
from ._text import plural, printable

__all__ = ["AuditReport", "ChainReport", "Finding", "verify_audit"]

_FINDINGS_LIMIT: Final = 100
_OPEN_CALLS_LIMIT: Final = 100_000
_HEAD_BYTES: Final = 1 << 20
_ENDS: Final = frozenset({"response", "error"})

_INTACT_IS_NOT_COMPLETE: Final = (
    "Intact is not complete: a call that was never told to the log is not in it, and nothing here shows that."
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong.

    Attributes:
        file: Where.
        line: The line, counted from 1; None if it is about the file or chain as a whole.
        text: What, in words.
    """

    file: str
    line: int | None
    text: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.text}"


@dataclass(slots=True)
class ChainReport:
    """One chain.

    Attributes:
        chain: Its id.
        files: Its files in the order of the chain.
        records: How many were read.
        first: The first sequence number; None if there is no record.
        last: The last one.
        requests: Requests recorded.
        unended: Requests without an end: under way, or cut off with their process. None if there are too many to count.
        lost: Records the writer itself says it could not write.
        closed: Whether the last record says that the writer ended in order.
    """

    chain: str
    files: list[str] = field(default_factory=list)
    records: int = 0
    first: int | None = None
    last: int | None = None
    requests: int = 0
    unended: int | None = 0
    lost: int = 0
    closed: bool = False


@dataclass(slots=True)
class AuditReport:
    """What verification found.

    Attributes:
        chains: One row per chain.
        findings: What is wrong; at most a hundred.
        more_findings: How many more there are.
        notes: What is no proof of a change but worth knowing, such as a crash.
        limits: What these files cannot show, whoever looks.
    """

    chains: list[ChainReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    more_findings: int = 0
    notes: list[Finding] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if nothing is wrong as far as can be told."""
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        """Return the report for a terminal."""
        lines = [_chain_line(chain) for chain in self.chains]
        lines += [f"WRONG  {finding}" for finding in self.findings]
        if self.more_findings:
            lines.append(f"WRONG  and {self.more_findings} more")
        lines += [f"Note   {note}" for note in self.notes]
        lines.append(
            "OK: no record was changed, removed, inserted or moved, as far as can be told."
            if self.ok
            else f"NOT OK: {plural(len(self.findings) + self.more_findings, 'finding')}."
        )
        return "\n".join(printable(line) for line in [*lines, *self.limits])


def _chain_line(chain: ChainReport) -> str:
    facts = [
        f"chain {chain.chain[:64]}",
        plural(len(chain.files), "file"),
        plural(chain.records, "record") + ("" if chain.first is None else f" ({chain.first} to {chain.last})"),
        plural(chain.requests, "call"),
        *([f"{chain.unended} without an end"] if chain.unended else []),
        *([f"{chain.lost} lost by the writer"] if chain.lost else []),
    ]
    return " · ".join(facts)


def verify_audit(
    *files: str | os.PathLike[str],
    key: bytes | None = None,
    heads: Iterable[str | os.PathLike[str]] = (),
    partial: bool = False,
) -> AuditReport:
    """Return what is wrong with audit logs; give all files of a chain, in any order.

    Args:
        files: The files.
        key: The key they were written with; None if there was none.
        heads: Files with heads, as ``AuditLog(head=…)`` writes them; one line each, of any chain.
        partial: Accept chains whose beginning is not among the files, because it was archived elsewhere.

    Raises:
        OSError: A file cannot be read.
        ValueError: No file is given, or the key is too short.
    """
    if not files:
        raise ValueError("no file to verify")
    seal = Seal(key)
    report = AuditReport()
    known_heads = _read_heads(heads, seal, report)
    for chain, paths in _by_chain(files, report).items():
        _Chain(chain, seal, report, known_heads.get(chain), partial=partial).read(paths)
    seen = {chain.chain for chain in report.chains}
    for chain, head in known_heads.items():
        if chain not in seen:
            _add(report, Finding(head.path, None, f"is the head of chain {chain[:64]}, of which no file is given"))
    report.limits += _limits(seal, known_heads)
    return report


def _limits(seal: Seal, heads: Mapping[str, _Head]) -> list[str]:
    return [
        "Cannot tell: whether someone who can write the files made whole chains anew, since they have no key."
        if seal.key_id is None
        else "Cannot tell: whether someone who has the key made chains anew.",
        "Cannot tell: whether records after the head, or chains without one, were removed from the end."
        if heads
        else "Cannot tell: whether records were removed from the end, or whole chains; that takes a head (--head).",
        _INTACT_IS_NOT_COMPLETE,
    ]


def _add(report: AuditReport, finding: Finding) -> None:
    if len(report.findings) < _FINDINGS_LIMIT:
        report.findings.append(finding)
    else:
        report.more_findings += 1


class _Head(NamedTuple):
    """The newest head of a chain."""

    path: str
    seq: int
    digest: str
    time: str


def _read_heads(paths: Iterable[str | os.PathLike[str]], seal: Seal, report: AuditReport) -> dict[str, _Head]:
    newest: dict[str, _Head] = {}
    for path in [os.fspath(path) for path in paths]:
        with Path(path).open("rb") as file:
            lines = file.read(_HEAD_BYTES).splitlines()
        if not lines:
            _add(report, Finding(path, None, "holds no head"))
        for number, line in enumerate(lines, 1):
            try:
                head = _read_head(line, seal)
            except UnreadableRecordError as error:
                _add(report, Finding(path, number, f"the head {error}"))
                continue
            known = newest.get(head["chain"])
            if known is None or known.seq <= head["seq"]:
                newest[head["chain"]] = _Head(path, head["seq"], head["prev"], head["time"][:40])
    return newest


def _read_head(line: bytes, seal: Seal) -> dict[str, Any]:
    sealed = take_apart(line)
    if sealed is None or not seal.fits(sealed):
        raise UnreadableRecordError("was changed, or made with another key")
    head = read_body(sealed.body)
    if head["kind"] != "head":
        raise UnreadableRecordError("is no head")
    return head


def _by_chain(files: Sequence[str | os.PathLike[str]], report: AuditReport) -> dict[str, list[str]]:
    """Put the files of each chain together, in the order of their first records."""
    first: dict[str, tuple[str, int]] = {}
    for path in dict.fromkeys(os.fspath(file) for file in files):
        first[path] = ("", 0)
        with Path(path).open("rb") as file:
            for line in _lines(file):
                sealed = take_apart(line.text)
                if sealed is None:
                    continue
                try:
                    record = read_body(sealed.body)
                except UnreadableRecordError:
                    continue
                first[path] = (record["chain"], record["seq"])
                break
            else:
                _add(report, Finding(path, None, "holds no record"))
                del first[path]
    chains: dict[str, list[str]] = {}
    for path in sorted(first, key=lambda path: (first[path], path)):
        chains.setdefault(first[path][0], []).append(path)
    return chains


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    text: bytes  # without the line break; empty if it is too long
    ends: bool  # with a line break
    fault: str | None = None


def _lines(file: BinaryIO) -> Iterator[_Line]:
    number = 0
    while text := file.readline(LINE_LIMIT + 1):
        number += 1
        if len(text) <= LINE_LIMIT or text.endswith(b"\n"):
            yield _Line(number, text.removesuffix(b"\n"), text.endswith(b"\n"))
            continue
        ends = False
        while piece := file.readline(1 << 20):
            ends = piece.endswith(b"\n")
            if ends:
                break
        yield _Line(number, b"", ends, fault="is too long to be a record")


class _Chain:
    """Go through the files of one chain and keep only where it stands."""

    def __init__(self, chain: str, seal: Seal, report: AuditReport, head: _Head | None, *, partial: bool) -> None:
        self._seal = seal
        self._report = report
        self._head = head
        self._partial = partial
        self._chain = ChainReport(chain)
        self._next = 0
        self._prev: str | None = FIRST_PREV
        self._open: set[int] | None = set()  # hashes: an id may be as long as a line
        self._path = ""
        self._line = 0
        self._region: _Region | None = None
        self._is_first = True  # no record of the chain was seen yet
        self._begins_file = True

    def read(self, paths: Iterable[str]) -> None:
        self._report.chains.append(self._chain)
        for path in paths:
            self._path, self._begins_file = path, True
            self._chain.files.append(path)
            if self._is_first and self._has_other_key(path):
                return
            with Path(path).open("rb") as file:
                for line in _lines(file):
                    self._line = line.number
                    self._read_line(line)
            self._give_up_region()
        self._chain.unended = None if self._open is None else len(self._open)
        self._finish()

    def _finish(self) -> None:
        chain = self._chain
        head = self._head
        if head is not None and (chain.last is None or chain.last < head.seq):
            self._find(
                f"ends with record {chain.last}, but its head of {head.time} knows record {head.seq}: "
                f"{plural(head.seq - (chain.last if chain.last is not None else -1), 'record')} removed from the end",
                whole=True,
            )
        if not chain.closed:
            self._note("was not closed: it is being written, its process was killed, or its end was removed")

    def _find(self, text: str, *, whole: bool = False) -> None:
        _add(self._report, Finding(self._path, None if whole else self._line, text))

    def _note(self, text: str) -> None:
        if len(self._report.notes) < _FINDINGS_LIMIT:
            self._report.notes.append(Finding(self._path, None, text))

    def _read_line(self, line: _Line) -> None:
        sealed = None if line.fault else take_apart(line.text)
        fault = line.fault
        if fault is None and sealed is None:
            fault = "is not a record" if line.ends else "is an unfinished record: a crash, a full disk, or a cut file"
        elif sealed is not None and not self._seal.fits(sealed):
            fault = "was changed: its hash does not fit"
        elif sealed is not None and not line.ends:
            fault = "is an unfinished record: its line break is missing"
        record: dict[str, Any] | None = None
        if fault is None and sealed is not None:
            try:
                record = read_body(sealed.body)
            except UnreadableRecordError as error:
                fault = str(error)
        if record is None or sealed is None:
            region = self._region = self._region or _Region(self._prev, self._next)
            region.add(line, fault or "")
            if sealed is not None:  # so that one changed line is one finding
                self._prev = sealed.digest
                self._next += 1
            else:
                self._prev = None
            return
        self._close_region(record)
        self._read_record(record, sealed.digest)

    def _has_other_key(self, path: str) -> bool:
        """One finding instead of one for each line, if that is why no hash fits."""
        with Path(path).open("rb") as file:
            sealed = take_apart(next(_lines(file)).text)
        try:
            first = {} if sealed is None or self._seal.fits(sealed) else read_body(sealed.body)
        except UnreadableRecordError:
            return False
        algorithm, key_id = first.get("algorithm"), first.get("key_id")
        if algorithm == self._seal.algorithm and key_id == self._seal.key_id:
            return False
        if algorithm == "hmac-sha256":
            given = "another key" if self._seal.key_id is not None else "a key"
            self._find(f"was written with {given}; without that key nothing can be told", whole=True)
        elif algorithm == "sha256":
            self._find("was written without a key, or made anew by someone who has none", whole=True)
        return algorithm in ("hmac-sha256", "sha256")

    def _read_record(self, record: Mapping[str, Any], digest: str) -> None:
        sequence, kind, chain = record["seq"], record["kind"], self._chain
        if self._is_first:
            self._begin(record)
        elif record["chain"] != chain.chain:
            self._find("belongs to another chain")
            return
        elif sequence > self._next:
            missing = plural(sequence - self._next, "record")
            self._find(f"has number {sequence} where {self._next} is due: {missing} removed before it")
        elif sequence < self._next:
            self._find(f"has number {sequence} where {self._next} is due: moved, repeated or inserted")
            return
        elif self._prev is not None and record["prev"] != self._prev:
            self._find("does not follow the record before it: that one was replaced")
        if self._begins_file and kind not in STARTS:
            self._find("does not begin a file: lines before it were removed")
        self._begins_file = self._is_first = False
        self._next, self._prev = sequence + 1, digest
        chain.records += 1
        chain.last = sequence
        chain.closed = kind == "close"
        self._check_head(sequence, digest)
        self._count(kind, record)

    def _begin(self, record: Mapping[str, Any]) -> None:
        chain, sequence = self._chain, record["seq"]
        chain.first = sequence
        if sequence and not self._partial:
            self._find(
                f"is the first record and has number {sequence}: what came before was removed, or is in files that "
                "were not given (then say --partial)"
            )
        elif sequence:
            self._note(f"begins with record {sequence}; what came before was not looked at")
        elif record["prev"] != FIRST_PREV:
            self._find("is the first record and yet follows another one")

    def _check_head(self, sequence: int, digest: str) -> None:
        head = self._head
        if head is not None and head.seq == sequence and head.digest != digest:
            self._find(f"is not the record {sequence} that the head of {head.time} knows: the chain was made anew")

    def _count(self, kind: str, record: Mapping[str, Any]) -> None:
        chain, call_id = self._chain, record.get("call_id")
        if kind == "gap":
            lost = record.get("lost")
            lost = lost if isinstance(lost, int) else 0
            chain.lost += lost
            self._note(f"has a gap at record {record['seq']}: {plural(lost, 'record')} could not be written")
        elif kind == "request":
            chain.requests += 1
            if self._open is not None and isinstance(call_id, str):
                self._open.add(hash(call_id))
                if len(self._open) > _OPEN_CALLS_LIMIT:
                    self._open = None
        elif kind in _ENDS and self._open is not None and isinstance(call_id, str):
            self._open.discard(hash(call_id))

    def _close_region(self, record: Mapping[str, Any]) -> None:
        """Bytes that are no record are in order if the record after them names them; else each line is a finding."""
        torn = record.get("torn") if record["kind"] == "recovered" else None
        region = self._region
        if region is None:
            if isinstance(torn, dict) and torn.get("bytes"):
                self._find(f"names {torn.get('bytes')} bytes that were set aside and are not there")
            elif isinstance(torn, dict):
                self._find("says that the file was cut while it was being written")
            return
        if not isinstance(torn, dict) or not region.is_named_by(torn):
            self._give_up_region()
            return
        self._region = None
        self._prev, self._next = region.prev, region.next
        if torn.get("cause") == "unfinished" and region.lines == 1 and torn.get("bytes") == region.size:
            what = f"{plural(region.size, 'byte')} of an unfinished record before record {record['seq']}"
            self._note(f"has {what}: a crash or a full disk")
        else:
            self._find(
                f"{region.size} bytes before it are no records of ours; the writer found them and set them aside"
            )

    def _give_up_region(self) -> None:
        if self._region is not None:
            for number, fault in self._region.faults:
                _add(self._report, Finding(self._path, number, fault))
            self._report.more_findings += self._region.lines - len(self._region.faults)
            self._region = None


class _Region:
    """Lines in a row that are no records."""

    def __init__(self, prev: str | None, sequence: int) -> None:
        self.prev = prev
        self.next = sequence
        self.lines = 0
        self.size = 0  # without the last line break
        self.faults: list[tuple[int, str]] = []
        self._digest = hashlib.sha256()
        self._is_whole = True
        self._break = False

    def add(self, line: _Line, fault: str) -> None:
        if self._break:
            self._digest.update(b"\n")
            self.size += 1
        self._digest.update(line.text)
        self.size += len(line.text)
        self._break = line.ends
        self._is_whole = self._is_whole and line.fault is None
        self.lines += 1
        if len(self.faults) < _FINDINGS_LIMIT:
            self.faults.append((line.number, fault))

    def is_named_by(self, torn: Mapping[str, Any]) -> bool:
        size, digest = torn.get("bytes"), torn.get("sha256")
        return self._is_whole and size in (self.size, self.size + 1) and digest == self._digest.hexdigest()
