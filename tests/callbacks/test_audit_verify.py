"""Verification of audit logs: every edit is found or is among those it says it cannot find."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest
from audit_logs import KEY, SOURCES, records, run_verify, tell, tell_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_llm_callback.callbacks import AuditLog, verify_audit
from otel_llm_callback.callbacks._audit_chain import FIRST_PREV, Seal

CANARY = "canary-77aa"


def make_chain(directory, key=None, *, restart=True):
    """Write a log with calls, an error, a restart and a close; returns its bytes."""
    path = directory / "audit.jsonl"
    log = AuditLog(path, key=key)
    tell(log, 2)
    if restart:
        log.close()
        log = AuditLog(path, key=key)
    tell_error(log, ValueError("text"))
    log.close()
    return path.read_bytes()


@pytest.fixture(scope="module", params=[None, KEY], ids=["plain", "keyed"])
def key(request):
    return request.param


@pytest.fixture(scope="module")
def chain(tmp_path_factory, key):
    return make_chain(tmp_path_factory.mktemp("chain"), key)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "audit.jsonl"


def findings(path, text, key, **options):
    path.write_bytes(text)
    return [str(finding) for finding in verify_audit(path, key=key, **options).findings]


def test_a_chain_nobody_touched_is_in_order(chain, key, scratch):
    scratch.write_bytes(chain)
    report = verify_audit(scratch, key=key)
    assert (report.ok, report.findings, report.notes) == (True, [], [])
    row = report.chains[0]
    assert (row.records, row.first, row.last, row.requests, row.unended, row.lost, row.closed) == (
        10,
        0,
        9,
        3,
        0,
        0,
        True,
    )


@st.composite
def edits(draw, text):
    """One edit of a file: of a byte, of a line, of its end."""
    lines = text.splitlines(keepends=True)
    at = draw(st.integers(0, len(text) - 1))
    line = draw(st.integers(0, len(lines) - 1))
    other = draw(st.integers(0, len(lines) - 1))
    piece = draw(st.binary(min_size=1, max_size=20))
    of_bytes = {
        "flip": text[:at] + bytes([text[at] ^ draw(st.integers(1, 255))]) + text[at + 1 :],
        "drop": text[:at] + text[at + 1 :],
        "squeeze in": text[:at] + piece + text[at:],
        "cut": text[:at],
        "append": text + piece,
        "hollow out": text[: min(at, len(text) // 2)] + text[max(at, len(text) // 2) :],
    }
    kind = draw(st.sampled_from([*of_bytes, "delete", "swap", "duplicate", "insert"]))
    if kind in of_bytes:
        return of_bytes[kind]
    if kind == "delete":
        del lines[line]
    elif kind == "swap":
        lines[line], lines[other] = lines[other], lines[line]
    elif kind == "duplicate":
        lines.insert(other, lines[line])
    else:
        lines.insert(line, piece + b"\n")
    return b"".join(lines)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=st.data())
def test_any_single_edit_is_found_but_whole_lines_gone_from_the_end(choice, chain, key, scratch):
    edited = choice.draw(edits(chain))
    found = findings(scratch, edited, key)
    out_of_reach = edited == chain or (chain.startswith(edited) and edited.endswith(b"\n"))
    assert bool(found) != out_of_reach


def test_every_byte_that_is_flipped_is_found(chain, key, scratch):
    """Exhaustive where the property test samples."""
    unfound = [
        at
        for at in range(len(chain))
        if not findings(scratch, chain[:at] + bytes([chain[at] ^ 1]) + chain[at + 1 :], key)
    ]
    assert unfound == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=st.integers(0, 9))
def test_a_head_finds_that_the_end_is_gone(tmp_path_factory, kept):
    directory = tmp_path_factory.mktemp("head")
    log = AuditLog(directory / "audit.jsonl", head=directory / "head")
    tell(log, 4)
    log.close()
    lines = (directory / "audit.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 10
    found = findings(directory / "audit.jsonl", b"".join(lines[:kept]), None, heads=[directory / "head"])
    assert found != []
    if kept:
        assert f"ends with record {kept - 1}, but its head of" in found[-1]


def test_a_head_finds_a_chain_that_was_made_anew(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl", head=tmp_path / "head")
    tell(log)
    log.close()
    seal, prev, forged = Seal(), FIRST_PREV, []
    for record in records(tmp_path / "audit.jsonl"):
        del record["hash"]
        line, prev = seal.line({**record, "prev": prev, **({"model": "other"} if "model" in record else {})})
        forged.append(line)
    assert findings(tmp_path / "audit.jsonl", b"".join(forged), None) == []
    assert "chains anew" in str(verify_audit(tmp_path / "audit.jsonl"))  # among what it cannot tell
    (found,) = findings(tmp_path / "audit.jsonl", b"".join(forged), None, heads=[tmp_path / "head"])
    assert "the chain was made anew" in found
    (found,) = findings(tmp_path / "audit.jsonl", b"".join(forged), KEY)
    assert "written without a key" in found


def test_a_head_of_a_chain_that_is_not_there_is_a_finding(tmp_path):
    AuditLog(tmp_path / "a.jsonl", head=tmp_path / "head").close()
    AuditLog(tmp_path / "b.jsonl").close()
    (finding,) = verify_audit(tmp_path / "b.jsonl", heads=[tmp_path / "head"]).findings
    assert "of which no file is given" in finding.text


@pytest.mark.parametrize("text", [b"", b"garbage\n", b"{}\n", b"\xff" * 100])
def test_a_head_that_is_none_is_a_finding(tmp_path, text):
    AuditLog(tmp_path / "audit.jsonl").close()
    (tmp_path / "head").write_bytes(text)
    (finding,) = verify_audit(tmp_path / "audit.jsonl", heads=[tmp_path / "head"]).findings
    assert "head" in finding.text


def test_another_key_is_one_finding_and_not_one_for_each_line(tmp_path):
    make_chain(tmp_path, KEY)
    path = tmp_path / "audit.jsonl"
    (other,) = verify_audit(path, key=KEY[::-1]).findings
    (none,) = verify_audit(path).findings
    assert "another key" in other.text
    assert "was written with a key" in none.text


def test_lines_of_another_chain_do_not_fit_in(tmp_path):
    """Both chains have the same key, so each line is a true one."""
    first, second = tmp_path / "one", tmp_path / "two"
    first.mkdir()
    second.mkdir()
    ours, theirs = (make_chain(directory, KEY).splitlines(keepends=True) for directory in (first, second))
    mixed = b"".join([*ours[:3], theirs[3], *ours[4:]])
    found = findings(first / "audit.jsonl", mixed, KEY)
    assert [text.partition(": ")[2] for text in found] == [
        "belongs to another chain",
        "has number 4 where 3 is due: 1 record removed before it",
    ]


def test_a_file_that_is_missing_in_the_middle_is_found(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=1500)
    tell(log, 10)
    log.close()
    files = sorted(tmp_path.glob("audit*.jsonl"))
    assert verify_audit(*files).findings == []
    (finding,) = verify_audit(files[0], *files[2:]).findings
    assert "removed before it" in finding.text


# What is no log at all.

SEAL = Seal()


def forged(**over):
    """A line with a true hash, as a forger without need of a key can make."""
    record = {"chain": "c", "kind": "open", "prev": FIRST_PREV, "seq": 0, "time": "t", **over}
    return SEAL.line(record)[0]


def sealed(body):
    return body[:-1] + b',"hash":"' + SEAL._digest(body).encode() + b'"}\n'


HOSTILE = {
    "nothing": b"",
    "blank lines": b"\n\n\n",
    "garbage": os.urandom(5000),
    "zeros": bytes(5000),
    "no UTF-8": sealed(b'{"chain":"\xff"}'),
    "deep nesting": sealed(b"[" * 200_000 + b"]" * 200_000),
    "deep objects": sealed(b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
    "NaN": sealed(b'{"chain":"c","kind":"open","prev":"","seq":0,"time":"","x":NaN}'),
    "a huge number": sealed(b'{"chain":"c","kind":"open","prev":"","seq":' + b"9" * 10_000 + b',"time":""}'),
    "a name given twice": sealed(b'{"chain":"c","chain":"c","kind":"open","prev":"","seq":0,"time":""}'),
    "spaces": sealed(b'{"chain": "c","kind":"open","prev":"","seq":0,"time":""}'),
    "no object": sealed(b"[1]"),
    "no members": sealed(b"{}"),
    "a bool for a number": forged(seq=True),
    "a negative number": forged(seq=-1),
    "an odd gap": forged() + forged(kind="gap", seq=1, lost="many"),
    "an odd recovery": forged() + forged(kind="recovered", seq=1, torn={"bytes": "x", "sha256": 1}),
    "a recovery of nothing": forged() + forged(kind="recovered", seq=1, torn=7),
    "an odd call": forged() + forged(kind="request", seq=1, call_id=[1]),
    "a chain with escapes": forged(chain="\x1b[2J" * 1000, seq=3),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_input_is_a_finding_and_never_a_traceback(tmp_path, text):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(text)
    for where in (text, make_chain(tmp_path / "x", None) if (tmp_path / "x").mkdir() is None else b""):
        path.write_bytes(where if where is text else where + text)
        report = verify_audit(path)
        assert (report.findings != [] or text == b"", "\x1b" in str(report)) == (True, False)
        json.dumps(report.as_json())


def test_findings_do_not_quote_the_file(tmp_path):
    (tmp_path / "audit.jsonl").write_bytes(forged(kind=CANARY) + CANARY.encode() + b"\n" + forged(seq=7, x=CANARY))
    report = verify_audit(tmp_path / "audit.jsonl")
    assert len(report.findings) >= 2
    assert CANARY not in f"{report} {json.dumps(report.as_json())}"


def test_many_findings_are_counted(tmp_path):
    (tmp_path / "audit.jsonl").write_bytes(forged() + b"garbage\n" * 5000)
    report = verify_audit(tmp_path / "audit.jsonl")
    assert (len(report.findings), report.more_findings) == (100, 4900)
    assert "NOT OK: 5,000 findings." in str(report)


@pytest.mark.parametrize("ends", [b"\n", b""])
def test_a_line_of_any_length_takes_no_more_memory(tmp_path, ends):
    """A file of one line of 400 MB (sparse) is read in pieces."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(forged())
    with path.open("r+b") as file:
        file.seek(400_000_000)
        file.write(b"x" + ends)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (finding,) = verify_audit(path).findings
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert "too long" in finding.text
    assert grown_kb < 250_000


# The command.


def test_the_command_says_ok_and_what_it_cannot_tell(tmp_path):
    make_chain(tmp_path)
    done = run_verify(tmp_path / "audit.jsonl")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0].endswith(" · 1 file · 10 records (0 to 9) · 3 calls")
    assert lines[1:] == [
        "OK: no record was changed, removed, inserted or moved, as far as can be told.",
        "Cannot tell: whether someone who can write the files made whole chains anew, since they have no key.",
        "Cannot tell: whether records were removed from the end, or whole chains; that takes a head (--head).",
        "Intact is not complete: a call that was never told to the log is not in it, and nothing here shows that.",
    ]


def test_the_command_names_file_and_line_of_a_change(tmp_path):
    text = make_chain(tmp_path)
    path = tmp_path / "audit.jsonl"
    path.write_bytes(text.replace(b'"input_tokens":10', b'"input_tokens":11', 1))
    done = run_verify(path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[1:3] == [
        f"WRONG  {path}:3: was changed: its hash does not fit",
        "NOT OK: 1 finding.",
    ]


def test_the_command_takes_key_and_head_and_speaks_json(tmp_path):
    (tmp_path / "key").write_bytes(KEY + b"\n")
    log = AuditLog(tmp_path / "audit.jsonl", key_file=tmp_path / "key", head=tmp_path / "head")
    tell(log)
    log.close()
    for place in (["--key-file", tmp_path / "key"], ["--key-variable", "AUDIT_KEY"]):
        done = run_verify(
            tmp_path / "audit.jsonl", *place, "--head", tmp_path / "head", "--json", AUDIT_KEY=KEY.decode()
        )
        report = json.loads(done.stdout)
        assert (done.returncode, report["ok"], report["findings"], report["chains"][0]["requests"]) == (0, True, [], 1)
        assert KEY.decode() not in done.stdout


@pytest.mark.parametrize(
    "arguments", [["none.jsonl"], ["--key-file", "none", "a"], ["--key-variable", "NONE", "a"], []]
)
def test_the_command_says_when_it_could_not_find_out(tmp_path, arguments):
    done = run_verify(*arguments)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, unbuffered):
    make_chain(tmp_path)
    command = [sys.executable, "-m", "otel_llm_callback.cli", "audit", "verify", str(tmp_path / "audit.jsonl")]
    environment = {**os.environ, "PYTHONPATH": SOURCES, "PYTHONUNBUFFERED": unbuffered}
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as output:
        done = subprocess.run(
            command, env=environment, stdout=output, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_twenty_thousand_lines_are_verified_in_bounded_memory(tmp_path):
    """Counted, not timed: the memory that Python holds does not grow with the file."""
    import tracemalloc

    path, prev = tmp_path / "audit.jsonl", FIRST_PREV
    with path.open("wb") as file:
        for number in range(20_000):
            kind = "open" if not number else "request" if number % 2 else "response"
            line, prev = SEAL.line(
                {
                    "chain": "c",
                    "kind": kind,
                    "prev": prev,
                    "seq": number,
                    "time": "t",
                    "call_id": str((number + 1) // 2),
                }
            )
            file.write(line)
    tracemalloc.start()
    assert verify_audit(path).findings == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
