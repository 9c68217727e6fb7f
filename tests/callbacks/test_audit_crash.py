"""AuditLog among processes that are killed, run side by side, or fork: no file is ever corrupted."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from audit_logs import KEY, SOURCES, ended, kinds, records, tell

from otel_llm_callback.callbacks import AuditLog, verify_audit

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCES, str(Path(__file__).parent.parent)])}

WRITE = """
import os, sys, threading
from audit_logs import KEY, tell
from otel_llm_callback.callbacks import AuditLog
log = AuditLog(sys.argv[1], key=KEY, max_bytes=50_000, interval_s=0.01)
def work():
    while True:
        (call_id,) = tell(log, request_json="x" * 2000)
        os.write(1, call_id.encode() + bytes([10]))
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
threading.Event().wait()
"""


def test_a_killed_process_loses_at_most_the_line_it_was_writing(tmp_path):
    """Thirty times at a random moment under load, three threads, rotation on: what was acknowledged is there."""
    path = tmp_path / "audit.jsonl"
    random.seed(4711)
    told: dict[int, list[str]] = {}
    for round_number in range(30):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(path)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        with process:
            first = process.stdout.readline().strip()
            threading.Timer(random.uniform(0, 0.15), process.kill).start()
            lines = process.stdout.read().splitlines()
        told[process.pid] = [first, *lines]
        assert first, f"round {round_number} wrote nothing"
    AuditLog(path, key=KEY).close()
    files = list(tmp_path.glob("audit*.jsonl"))
    report = verify_audit(*files, key=KEY)
    assert (report.findings, len(report.chains)) == ([], 1)
    ordered = sorted((record for record in records(*whole(files))), key=lambda record: record["seq"])
    assert [record["seq"] for record in ordered] == list(range(len(ordered)))
    assert recorded_by_process(ordered) >= {(pid, call_id) for pid, ids in told.items() for call_id in ids}
    assert report.chains[0].unended <= 3 * 30


def whole(files):
    """The files with their unfinished lines left out."""
    for file in files:
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(line for line in lines if line.endswith(b'"}\n')))
    return files


def recorded_by_process(ordered):
    """Pairs of process and call whose end is recorded."""
    pid, pairs = None, set()
    for record in ordered:
        pid = record.get("pid", pid)
        if record["kind"] == "response":
            pairs.add((pid, record["call_id"]))
    return pairs


def test_an_unfinished_line_at_any_byte_is_recovered(tmp_path):
    """What a kill or a power cut can leave: every length of the last line."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    tell(log)
    log.close()
    text = path.read_bytes()
    start = text[:-1].rfind(b"\n") + 1
    for end in range(start, len(text)):
        path.write_bytes(text[:end])
        AuditLog(path).close()
        report = verify_audit(path)
        assert (report.findings, len(report.notes)) == ([], int(start < end < len(text) - 1)), end
        assert kinds_of_whole(path)[-2:] == ["recovered" if report.notes else "open", "close"]


def kinds_of_whole(path):
    whole([path])
    return kinds(path)


MANY = """
import sys, threading
from audit_logs import KEY, tell
from otel_llm_callback.callbacks import AuditLog
log = AuditLog(sys.argv[1], key=KEY, max_bytes=20_000, head=sys.argv[1] + ".head", interval_s=0.01)
threads = [threading.Thread(target=tell, args=(log, 25)) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
log.close()
"""


def test_eight_processes_of_four_threads_do_not_corrupt_one_another(tmp_path):
    path = tmp_path / "audit.jsonl"
    command = [sys.executable, "-c", MANY, str(path)]
    for _ in range(2):  # the second eight go on with the files of the first
        processes = [subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) for _ in range(8)]
        assert [process.communicate(timeout=120)[1] for process in processes] == [""] * 8
    files = list(tmp_path.glob("audit*.jsonl"))
    report = verify_audit(*files, key=KEY, heads=tmp_path.glob("*.head"))
    assert (report.findings, report.notes) == ([], [])
    assert (sum(chain.requests for chain in report.chains), sum(chain.unended for chain in report.chains)) == (1600, 0)
    assert len(report.chains) <= 8


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_writes_a_file_of_its_own(tmp_path):
    """Forked under load, so that the lock may be held and a line half written in the parent."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, interval_s=0.01)
    stop = threading.Event()
    told: list[str] = []

    def work():
        while not stop.is_set():
            told.extend(tell(log))

    thread = threading.Thread(target=work)
    thread.start()
    children = []
    for _ in range(5):
        time.sleep(0.01)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                tell(log, 3)
                log.close()
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    stop.set()
    thread.join()
    log.close()
    report = verify_audit(*tmp_path.glob("audit*.jsonl"))
    assert codes == [0] * 5
    assert (report.findings, report.notes) == ([], [])
    assert set(told) <= ended(path)
    assert sum(chain.requests for chain in report.chains) == len(told) + 15
    pids = {record["pid"] for record in records(*tmp_path.glob("audit.*.jsonl")) if record["kind"] == "open"}
    assert pids == set(children)


def test_a_child_that_outlives_its_parent_does_not_hold_the_parents_file(tmp_path):
    program = """
import os, sys, time
from otel_llm_callback.callbacks import AuditLog
log = AuditLog(sys.argv[1])
if not os.fork():
    os.close(1); os.close(2)
    time.sleep(20)
    os._exit(0)
print("parent ends", flush=True)
os._exit(0)
"""
    path = tmp_path / "audit.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "parent ends\n"
    log = AuditLog(path)
    assert log.state.file == path
    log.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_really_full_and_then_freed(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        log = AuditLog(disk / "audit.jsonl")
        (disk / "ballast").write_bytes(b"x" * 30_000)
        lost = 0
        for _ in range(100):
            try:
                tell(log)
            except OSError:
                lost += 1
        assert (lost > 50, log.state.failing, log.state.last_error) == (True, True, "OSError ENOSPC")
        (disk / "ballast").unlink()
        tell(log, 3)
        state = log.state
        log.close()
        report = verify_audit(disk / "audit.jsonl")
        assert (report.findings, state.failing, report.chains[0].lost) == ([], False, state.lost)
    finally:
        subprocess.run(["umount", disk], check=True)
