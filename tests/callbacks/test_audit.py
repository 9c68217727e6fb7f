"""AuditLog: what it writes, what it never writes, and what it does when it cannot write."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import resource
import stat
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path

import pytest
import rfc8785
from audit_logs import KEY, SOURCES, ended, kinds, records, run_verify, tell, tell_error
from hypothesis import given
from hypothesis import strategies as st

import otel_llm_callback
from otel_llm_callback import flush, instrument, register, session, status, suppress
from otel_llm_callback.callbacks import AuditLog, verify_audit
from otel_llm_callback.callbacks._audit_chain import canonical, plain
from otel_llm_callback.protocol import check_callback
from otel_llm_callback.testing import JsonReply, make_request, make_response
from otel_llm_callback.types import Retry

CANARY = "canary-8d2f"
STARTED = "2023-11-14T22:13:20.000000000Z"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def whole_records(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith('"}')]


def without_chain(record):
    return {name: value for name, value in record.items() if name not in ("chain", "hash", "prev", "time")}


# What is written.


def test_it_is_a_callback(path):
    log = AuditLog(path)
    check_callback(log)
    log.close()


def test_a_call_is_a_request_and_a_response(path):
    log = AuditLog(path)
    request = make_request(
        session_id="s-1", user_id="bob", attributes={"plan": "pro", "share": 0.5}, trace_id="0" * 32, span_id="1" * 16
    )
    log.on_request_sent(request, '{"n":1}')
    retry = Retry(at_ns=request.started_ns, delay_s=0.25, error="HTTPStatusError", status_code=429)
    log.on_response_received(make_response(request=request, retries=(retry,), cost=Decimal("0.0012")), "")
    log.close()
    call_id = request.call_id
    assert [without_chain(record) for record in records(path)[1:]] == [
        {
            "kind": "request",
            "seq": 1,
            "call_id": call_id,
            "api": "chat_completions",
            "operation": "chat",
            "provider": "openai",
            "model": "gpt-4o-mini",
            "server_address": "api.openai.com",
            "server_port": 443,
            "started": STARTED,
            "stream": False,
            "session_id": "s-1",
            "user_id": "bob",
            "attributes": {"plan": "pro", "share": 0.5},
            "trace_id": "0" * 32,
            "span_id": "1" * 16,
            "content": {"bytes": 7, "sha256": hashlib.sha256(b'{"n":1}').hexdigest()},
        },
        {
            "kind": "response",
            "seq": 2,
            "call_id": call_id,
            "outcome": "completed",
            "ended": "2023-11-14T22:13:20.100000000Z",
            "duration_ns": 100_000_000,
            "response_id": "chatcmpl-1",
            "response_model": "gpt-4o-mini",
            "finish_reasons": ["stop"],
            "status_code": 200,
            "request_id": "req-1",
            "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
            "usage_source": "reported",
            "cost_usd": "0.0012",
            "retries": [{"at": STARTED, "delay_ns": 250_000_000, "error": "HTTPStatusError", "status_code": 429}],
        },
        {"kind": "close", "seq": 3},
    ]


def test_an_error_is_its_type_and_what_had_arrived(path):
    log = AuditLog(path)
    partial = make_response(chunk_count=3, usage=None)
    tell_error(log, ValueError(CANARY), partial=partial, outcome="cancelled")
    log.close()
    error = without_chain(records(path)[2])
    assert CANARY not in path.read_text()
    assert error == {
        "kind": "error",
        "seq": 2,
        "call_id": error["call_id"],
        "where": "chat.completions",
        "error_type": "RateLimitError",
        "outcome": "cancelled",
        "ended": "2023-11-14T22:13:20.100000000Z",
        "duration_ns": 100_000_000,
        "status_code": 429,
        "request_id": "req-1",
        "response_id": "chatcmpl-1",
        "response_model": "gpt-4o-mini",
        "finish_reasons": ["stop"],
        "usage_source": "missing",
        "chunks": 3,
    }


def test_what_the_log_says_of_itself(path):
    log = AuditLog(path, key=KEY)
    log.close()
    first, last = records(path)
    assert (first["kind"], last["kind"]) == ("open", "close")
    assert first["algorithm"] == "hmac-sha256"
    assert re.fullmatch("[0-9a-f]{16}", first["key_id"])
    assert (first["pid"], first["file"], first["content"]) == (os.getpid(), "audit.jsonl", "hash")


@pytest.mark.parametrize(
    ("content", "level", "kept"),
    [
        ("hash", "full", {"bytes", "sha256"}),
        ("none", "none", None),
        ("redacted", "redacted", {"bytes", "sha256", "text"}),
        ("full", "full", {"bytes", "sha256", "text"}),
    ],
)
def test_content_is_kept_as_asked(path, content, level, kept):
    log = AuditLog(path, content=content)
    assert log.content == level
    tell(log, request_json="" if level == "none" else json.dumps({"q": CANARY}))
    log.close()
    request = records(path)[1]
    assert (set(request["content"]) if "content" in request else None) == kept
    assert (CANARY in path.read_text()) == (content in ("redacted", "full"))


def test_a_keyed_content_hash_cannot_be_guessed_at(path):
    log = AuditLog(path, key=KEY)
    tell(log, request_json="{}")
    log.close()
    content = records(path)[1]["content"]
    assert set(content) == {"bytes", "hmac_sha256"}
    assert content["hmac_sha256"] != "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # bare SHA-256


def test_no_content_and_no_secret_is_in_the_file_by_default(path, server, client, expected_logs):
    """The whole way: real client, real server, a prompt, an answer, a header and an error that carry canaries."""
    key = f"{CANARY}-key-of-this-log".encode()
    log = AuditLog(path, key=key)
    instrument(telemetry=False)
    register(log)
    with client.with_options(api_key=f"sk-{CANARY}", default_headers={"x-tenant": CANARY}) as asking:
        asking.chat.completions.create(model="m", messages=[{"role": "user", "content": CANARY}])
        for _ in asking.chat.completions.create(model="m", messages=[{"role": "user", "content": CANARY}], stream=True):
            pass
        server.reply = lambda request: JsonReply({"error": {"message": CANARY, "code": "bad"}}, status=400)
        with pytest.raises(Exception, match=CANARY):
            asking.chat.completions.create(model="m", messages=[{"role": "user", "content": CANARY}])
    assert flush()
    log.close()
    written = path.read_text()
    assert kinds(path) == ["open", *["request", "response"] * 2, "request", "error", "close"]
    assert CANARY not in written
    assert CANARY not in f"{log!r} {log.state} {status()}"
    assert KEY.decode() not in repr(AuditLog(path.with_name("b.jsonl"), key=KEY))


def test_a_suppressed_call_is_recorded_all_the_same(path, client):
    log = AuditLog(path)
    instrument(telemetry=False)
    register(log)
    with suppress(), session("s-9", user="eve", tenant="t"):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert flush()
    log.close()
    request = records(path)[1]
    assert (kinds(path)[1:3], request["session_id"], request["user_id"], request["attributes"]) == (
        ["request", "response"],
        "s-9",
        "eve",
        {"tenant": "t"},
    )


_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT | st.lists(st.floats() | st.integers(), max_size=3)
)


@given(st.dictionaries(_TEXT, _SCALARS, max_size=5))
def test_records_are_canonical_as_the_rfc_has_it(facts):
    record = {name: plain(value) for name, value in facts.items()}
    assert canonical({"attributes": record, **record}) == rfc8785.dumps({"attributes": record, **record})


def test_what_no_json_can_hold_is_written_all_the_same(path):
    """Odd facts come from programs and servers; none of them may cost a record."""
    log = AuditLog(path)
    odd = {"half": "\ud83d", "huge": 10**5000, "nan": float("nan"), "tiny": 5e-324, "long": "x" * 10**6, "\ud83d": 1}
    request = make_request(model="\udfff", attributes={**odd, "object": object(), "several": (1, 2.5)})
    log.on_request_sent(request, "\ud83d")
    log.close()
    attributes = records(path)[1]["attributes"]
    assert attributes.pop("huge").startswith("0x")
    assert attributes == {
        "half": "?",
        "?": 1,
        "nan": "nan",
        "tiny": "5e-324",
        "long": "x" * 4096 + "…",
        "object": "object",
        "several": [1, 2.5],
    }
    assert verify_audit(path).findings == []


# Where it is written.


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_files_are_private_whatever_the_umask(path, tmp_path, umask):
    before = os.umask(umask)
    try:
        log = AuditLog(path, head=tmp_path / "head", max_bytes=500)
        tell(log, 3)
        log.close()
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert len(modes) >= 4
    assert set(modes.values()) == {0o600}


def test_a_file_that_others_could_read_is_made_private(path):
    AuditLog(path).close()
    path.chmod(0o644)
    AuditLog(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_is_refused(path, tmp_path):
    (tmp_path / "victim").touch()
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(PermissionError, match="symbolic link"):
        AuditLog(path)
    assert (tmp_path / "victim").read_bytes() == b""


def test_what_is_no_file_is_refused(path):
    os.mkfifo(path)
    with pytest.raises(PermissionError, match="not a regular file"):
        AuditLog(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(path):
    path.touch()
    os.chown(path, 12345, 12345)
    with pytest.raises(PermissionError, match="another user"):
        AuditLog(path)


def test_a_directory_that_cannot_be_written_is_a_loud_error(tmp_path):
    tmp_path.chmod(0o555)
    program = "import sys; from otel_llm_callback.callbacks import AuditLog; AuditLog(sys.argv[1])"
    if os.geteuid() == 0:  # whom no mode stops
        program = "import os; from otel_llm_callback.callbacks import AuditLog; os.seteuid(65534)\n" + program
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "audit.jsonl")],
        env={**os.environ, "PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    tmp_path.chmod(0o755)
    assert (done.returncode, "PermissionError" in done.stderr) == (1, True)


def test_a_directory_that_is_not_there_is_a_loud_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        AuditLog(tmp_path / "none" / "audit.jsonl")


def test_something_else_is_not_written_into(path):
    path.write_text("dear diary\n")
    with pytest.raises(ValueError, match="not an audit log, or was written with another key"):
        AuditLog(path)
    assert path.read_text() == "dear diary\n"


def test_a_chain_of_another_key_is_not_gone_on_with(path):
    AuditLog(path, key=KEY).close()
    with pytest.raises(ValueError, match="another key"):
        AuditLog(path, key=KEY[::-1])
    AuditLog(path, key=KEY).close()  # the refusal let go of the file
    assert kinds(path) == ["open", "close"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"content": "all"}, "content is 'all'; allowed are 'hash', 'none', 'redacted', 'full'"),
        ({"fsync": "often"}, "fsync is 'often'; allowed are 'always', 'interval', 'never'"),
        ({"interval_s": 0}, "interval_s is 0; it must be greater than 0"),
        ({"max_bytes": -1}, "max_bytes is -1; it must be greater than 0"),
        ({"max_age_s": 0}, "max_age_s is 0; it must be greater than 0"),
        ({"key": b"short"}, "the audit key has 5 bytes; it must have 16 or more"),
        ({"key": KEY, "key_variable": "K"}, "give one of key, key_file and key_variable"),
        ({"key_variable": "NOT_SET"}, "the environment variable NOT_SET holds no audit key"),
    ],
)
def test_wrong_arguments_are_named(path, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AuditLog(path, **arguments)
    assert not path.exists()


def test_the_key_may_be_kept_in_a_file_or_a_variable(path, tmp_path, monkeypatch):
    (tmp_path / "key").write_bytes(KEY + b"\n")
    monkeypatch.setenv("AUDIT_KEY", KEY.decode())
    for place in ({"key": KEY}, {"key_file": tmp_path / "key"}, {"key_variable": "AUDIT_KEY"}):
        log = AuditLog(path, **place)
        tell(log)
        log.close()
    assert verify_audit(path, key=KEY).findings == []
    with pytest.raises(TypeError, match="must be bytes, not str"):
        AuditLog(path, key=KEY.decode())


# Going on, several writers, rotation.


def test_a_chain_goes_on_over_restarts(path):
    for _ in range(3):
        log = AuditLog(path)
        tell(log)
        log.close()
    assert kinds(path) == ["open", "request", "response", "close"] * 3
    report = verify_audit(path)
    assert (report.findings, report.notes, report.chains[0].records) == ([], [], 12)


def test_a_log_that_nobody_holds_any_more_is_closed(path):
    tell(AuditLog(path))
    gc.collect()
    for _ in range(500):  # on a thread of its own
        if kinds(path)[-1] == "close":
            break
        threading.Event().wait(0.01)
    assert kinds(path) == ["open", "request", "response", "close"]


def test_a_call_after_the_close_opens_the_file_again(path):
    log = AuditLog(path)
    log.close()
    tell(log)
    log.close()
    assert kinds(path) == ["open", "close", "open", "request", "response", "close"]
    assert verify_audit(path).findings == []


def test_a_second_writer_takes_a_file_of_its_own(path, tmp_path):
    first, second = AuditLog(path), AuditLog(path)
    tell(first)
    tell(second)
    second.close()
    third = AuditLog(path)  # the number is free again
    tell(third)
    assert (first.state.file, third.state.file) == (path, tmp_path / "audit.1.jsonl")
    first.close()
    third.close()
    report = verify_audit(*tmp_path.glob("audit*.jsonl"))
    assert (report.findings, sorted(chain.records for chain in report.chains)) == ([], [4, 8])


def test_a_chain_goes_on_after_a_long_record(path):
    """Longer than what is read at once to find where the chain stands; whole, and torn."""
    for size in (65_535, 65_536, 300_000):
        log = AuditLog(path, content="full")
        log.on_request_sent(make_request(), "é" * size)
        log.close()
        log = AuditLog(path, content="full")
        log.on_request_sent(make_request(), "x" * size)
        log.close()
        os.truncate(path, path.stat().st_size - size)
    AuditLog(path).close()
    report = verify_audit(path)
    assert (report.findings, len(report.notes), report.chains[0].records) == ([], 3, 14)


def test_a_text_that_is_too_long_is_a_hash_only(path):
    log = AuditLog(path, content="full")
    log.on_request_sent(make_request(), "x" * (10 * 1024 * 1024 + 1))
    log.close()
    assert (set(records(path)[1]["content"]), path.stat().st_size < 5000) == ({"bytes", "sha256"}, True)


def test_the_chain_goes_on_over_files(path, tmp_path):
    log = AuditLog(path, max_bytes=2000)
    tell(log, 20)
    log.close()
    files = sorted(tmp_path.glob("audit*.jsonl"))
    assert len(files) > 5
    assert max(file.stat().st_size for file in files) < 4000
    report = verify_audit(*files)
    assert (report.findings, report.notes, len(report.chains), report.chains[0].requests) == ([], [], 1, 20)
    assert log.state.rotations == len(files) - 1


def test_a_file_is_replaced_when_it_is_old(path, tmp_path):
    log = AuditLog(path, max_age_s=0.01)
    for _ in range(3):
        tell(log)
        threading.Event().wait(0.02)
    log.close()
    AuditLog(path, max_age_s=3600).close()
    files = list(tmp_path.glob("audit*.jsonl"))
    assert len(files) >= 3
    assert verify_audit(*files).findings == []


def test_rotation_under_load_loses_nothing(path, tmp_path):
    log = AuditLog(path, max_bytes=5000, fsync="never", head=tmp_path / "head", interval_s=0.01)
    told = []
    threads = [threading.Thread(target=lambda: told.extend(tell(log, 100))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    files = list(tmp_path.glob("audit*.jsonl"))
    report = verify_audit(*files, heads=[tmp_path / "head"])
    assert (report.findings, report.notes, report.chains[0].requests) == ([], [], 800)
    assert ended(*files) == set(told)
    assert len(files) > 20


def test_a_crash_between_the_two_renames_of_a_rotation_loses_nothing(path, tmp_path):
    log = AuditLog(path, max_bytes=1000)
    tell(log, 5)
    log.close()
    path.rename(path.with_name("audit.jsonl.next"))
    log = AuditLog(path)
    tell(log)
    log.close()
    report = verify_audit(*tmp_path.glob("audit*.jsonl"))
    assert (report.findings, report.chains[0].requests) == ([], 6)


def test_a_file_that_is_moved_away_is_gone_on_with_in_a_new_one(path, tmp_path):
    """As logrotate does it; and if somebody deletes the file, the next one shows it."""
    log = AuditLog(path)
    tell(log)
    path.rename(tmp_path / "audit.old.jsonl")
    tell(log)
    log.close()
    assert kinds(path)[0] == "rotate"
    assert verify_audit(path, tmp_path / "audit.old.jsonl").findings == []
    (finding,) = verify_audit(path).findings
    assert str(finding).startswith(f"{path}:1: is the first record and has number 3: what came before was removed")
    assert verify_audit(path, partial=True).findings == []


def test_a_file_that_is_put_in_the_place_is_not_written_into(path, tmp_path):
    log = AuditLog(path)
    path.rename(tmp_path / "audit.old.jsonl")
    path.write_text("mine\n")
    with pytest.raises(FileExistsError):
        tell(log)
    path.unlink()
    tell(log)
    log.close()
    assert kinds(path) == ["rotate", "gap", "request", "response", "close"]
    assert verify_audit(path, tmp_path / "audit.old.jsonl").findings == []


@pytest.mark.parametrize("text", [b"garbage", b"garbage\n", b'{"unfinished'])
def test_what_others_write_into_the_file_is_set_aside_and_found(path, text):
    log = AuditLog(path)
    tell(log)
    with path.open("ab") as file:
        file.write(text)
    tell(log)
    log.close()
    report = verify_audit(path)
    assert len(report.findings) == 1
    assert "no records of ours" in report.findings[0].text
    assert (report.chains[0].requests, text in path.read_bytes()) == (2, True)


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_file_that_is_cut_while_it_is_written_is_found(path, size):
    log = AuditLog(path)
    tell(log)
    os.truncate(path, size % path.stat().st_size)
    tell(log)
    log.close()
    assert verify_audit(path).findings != []


# When it cannot be written.


def test_a_torn_last_line_stays_and_is_named(path):
    log = AuditLog(path)
    tell(log)
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    log = AuditLog(path)
    tell(log)
    log.close()
    assert path.read_bytes().startswith(whole[:-50])
    lines = path.read_bytes().splitlines()
    recovered = json.loads(lines[4])
    assert (recovered["kind"], recovered["torn"]["cause"]) == ("recovered", "unfinished")
    report = verify_audit(path)
    assert (report.findings, len(report.notes), report.chains[0].requests) == ([], 1, 2)
    assert "unfinished record" in report.notes[0].text


def test_a_first_line_that_is_torn_begins_the_chain_anew(path):
    path.write_bytes(b'{"algorithm":"sha2')
    log = AuditLog(path)
    tell(log)
    log.close()
    report = verify_audit(path)
    assert (report.findings, len(report.notes), report.chains[0].requests) == ([], 1, 1)


def test_a_last_line_without_its_line_break_is_taken_for_what_it_is(path):
    AuditLog(path).close()
    path.write_bytes(path.read_bytes()[:-1])
    AuditLog(path).close()
    assert kinds(path) == ["open", "close"] * 2
    assert verify_audit(path).findings == []


def test_a_last_line_that_was_changed_is_not_whitewashed_by_the_recovery(path):
    log = AuditLog(path)
    tell(log)
    log.close()
    path.write_bytes(path.read_bytes().replace(b'"kind":"close"', b'"kind":"clone"'))
    AuditLog(path).close()
    assert len(verify_audit(path).findings) == 1


DISK_FULL = """
import json, resource, sys
sys.path.insert(0, sys.argv[2])
from audit_logs import tell
from otel_llm_callback.callbacks import AuditLog
log = AuditLog(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
written, failed = [], 0
for _ in range(60):
    try:
        written += tell(log)
    except OSError:
        failed += 1
full = log.state
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
written += tell(log)
after = log.state
log.close()
print(json.dumps([written, failed, full.failing, full.last_error, full.lost, after.failing, after.lost]))
"""


def test_a_full_disk_is_counted_and_leaves_a_gap_record(path):
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(path), str(Path(__file__).parent.parent)],
        env={**os.environ, "PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    written, failed, *state = json.loads(done.stdout)
    assert failed > 10
    gaps = [record for record in records(path) if record["kind"] == "gap"]
    lost = sum(gap["lost"] for gap in gaps)
    assert state == [True, "OSError EFBIG", lost, False, lost]
    assert lost >= failed
    assert set(written) <= ended(path)
    report = verify_audit(path)
    assert (report.findings, report.chains[0].lost) == ([], lost)
    assert "could not be written" in str(report)


def test_a_full_disk_reaches_no_caller_and_shows_in_the_status(path, client, expected_logs):
    log = AuditLog(path)
    instrument(telemetry=False)
    handle = register(log, delivery="inline")
    path.unlink()
    path.mkdir()  # a disk that refuses, for every user
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert (handle.failed, log.state.failing, log.state.lost) == (2, True, 2)
    assert [callback.failed for callback in status().callbacks] == [2]
    path.rmdir()
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert (handle.failed, log.state.failing) == (2, False)
    log.close()
    assert kinds(path) == ["rotate", "gap", "request", "response", "close"]
    assert len(expected_logs) >= 1


def test_a_head_that_cannot_be_written_loses_no_record(path, tmp_path, expected_logs):
    log = AuditLog(path, head=tmp_path / "none" / "head", interval_s=0.01)
    tell(log)
    with pytest.raises(FileNotFoundError):
        log.sync()
    assert (log.state.lost, log.state.last_error) == (0, "FileNotFoundError ENOENT")
    log.close()
    assert kinds(path) == ["open", "request", "response", "close"]


def test_facts_that_cannot_be_read_are_a_gap_like_a_full_disk(path):
    log = AuditLog(path)
    with pytest.raises((OverflowError, OSError)):
        log.on_request_sent(make_request(started_ns=10**40), "")
    assert (log.state.lost, log.state.failing) == (1, True)
    tell(log)
    log.close()
    assert kinds(path) == ["open", "gap", "request", "response", "close"]


def test_rotation_that_fails_costs_no_record(path, tmp_path, expected_logs):
    log = AuditLog(path, max_bytes=500)
    (tmp_path / "audit.jsonl.next").mkdir()
    tell(log, 3)
    log.close()
    assert kinds(path) == ["open", *["request", "response"] * 3, "close"]
    assert otel_llm_callback.status().errors["audit"] >= 1


# Delivery.


def test_delivered_inline_a_request_is_written_before_it_is_sent(path, server, client):
    log = AuditLog(path)
    instrument(telemetry=False)
    register(log, delivery="inline")
    seen = []

    def reply(request):
        seen.append(kinds(path))

    server.reply = reply
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    log.close()
    assert (seen, kinds(path)) == ([["open", "request"]], ["open", "request", "response", "close"])


class Slow(AuditLog):
    """On a slow disk."""

    def on_request_sent(self, metadata, request_json):
        threading.Event().wait(0.005)
        super().on_request_sent(metadata, request_json)


def test_a_full_queue_makes_callers_wait_and_leaves_nothing_out(path, client):
    log = Slow(path)
    instrument(telemetry=False)
    handle = register(log, queue_size=2)
    for _ in range(30):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert flush(30)
    log.close()
    assert (handle.dropped, handle.failed, len(ended(path))) == (0, 0, 30)


EXIT = """
import sys
from openai import OpenAI
from otel_llm_callback import instrument
from otel_llm_callback.callbacks import AuditLog
instrument(AuditLog(sys.argv[1], head=sys.argv[1] + ".head", interval_s=60), telemetry=False)
client = OpenAI()
for _ in range(20):
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
"""


def test_an_exit_delivers_everything_and_closes_the_chain(path, server):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXIT, str(path)],
        env={**os.environ, "PYTHONPATH": SOURCES, "OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "unused"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(ended(path)) == 20
    verified = run_verify(path, "--head", f"{path}.head")
    assert (verified.returncode, verified.stderr) == (0, "")


def test_a_function_for_heads_that_fails_costs_no_record(path, expected_logs):
    log = AuditLog(path, head=lambda line: 1 / 0)
    tell(log)
    log.close()
    assert kinds(path) == ["open", "request", "response", "close"]
    assert [record.levelname for record in expected_logs] == ["ERROR"]


def test_a_cut_that_cannot_be_told_at_once_is_told_later(path):
    log = AuditLog(path)
    tell(log)
    os.truncate(path, path.stat().st_size - 10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            tell(log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    tell(log)
    log.close()
    assert len(verify_audit(path).findings) >= 1
    assert [record["kind"] for record in whole_records(path)][-4:] == ["gap", "request", "response", "close"]


def test_a_head_may_go_to_a_function(path):
    heads = []
    log = AuditLog(path, head=heads.append)
    tell(log)
    log.sync()
    assert json.loads(heads[-1])["seq"] == 2
    assert json.loads(heads[-1])["prev"] == records(path)[-1]["hash"]
    log.close()
    assert json.loads(heads[-1])["seq"] == 3


def test_the_interval_brings_records_to_the_disk_without_a_further_call(path, tmp_path):
    log = AuditLog(path, head=tmp_path / "head", interval_s=0.01)
    tell(log)
    for _ in range(500):
        if not log.state.unsynced and (tmp_path / "head").exists():
            break
        threading.Event().wait(0.01)
    assert not log.state.unsynced
    assert json.loads((tmp_path / "head").read_text())["seq"] == 2
    log.close()


@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_every_policy_writes_the_same(path, fsync):
    log = AuditLog(path, fsync=fsync)
    tell(log, 3)
    assert log.state.unsynced == (fsync != "always")
    log.close()
    assert verify_audit(path).findings == []
