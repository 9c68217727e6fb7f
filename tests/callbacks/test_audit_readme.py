"""The README's audit section runs as it stands and prints what it shows, and the page has every member of a record."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

from audit_logs import KEY, records, tell_error
from programs import write_app

from otel_llm_callback.callbacks import AuditLog
from otel_llm_callback.testing import (
    JsonReply,
    ScriptedServer,
    chat_completion,
    make_request,
    make_response,
)
from otel_llm_callback.types import Retry

ROOT = Path(__file__).parent.parent.parent
FACTS = {"session_id": "s", "user_id": "u", "attributes": {"a": 1}, "trace_id": "0", "span_id": "1", "response_id": "r"}


def shape(text: str) -> str:
    return re.sub(r"chain [0-9a-f]{16}", "chain <id>", text)


def test_the_section_prints_what_it_shows(tmp_path):
    after = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- audit -->")[2]
    program, session = re.findall(r"```(?:python|console)\n(.*?)```", after, flags=re.DOTALL)[:2]
    commands = [line[2:] for line in session.splitlines() if line.startswith("$ ")]
    write_app(tmp_path)
    scripts = Path(sys.executable).parent
    printed = ""
    with ScriptedServer(lambda _: JsonReply(chat_completion("Goethe", model="tiny-chat"))) as server:
        environment = {
            **os.environ,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "AUDIT_KEY": KEY.decode(),
            "OPENAI_API_KEY": "unused",
            "OPENAI_BASE_URL": server.url,
            "PYTHONUTF8": "1",
        }
        for command in ([sys.executable, "-X", "dev", "-W", "error", "-c", program], *commands):
            done = subprocess.run(
                command,
                shell=isinstance(command, str),
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                timeout=60,
                check=False,
            )
            printed += (f"$ {command}\n" if isinstance(command, str) else "") + done.stdout
    assert shape(printed) == shape(session)


def test_the_page_has_every_member_of_a_record(tmp_path):
    """What the code writes and what the page says of it do not drift apart."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, key=KEY, content="full", max_bytes=1)
    request = make_request(**FACTS, conversation_id="c", previous_response_id="p")
    log.on_request_sent(request, "{}")
    retry = Retry(at_ns=0, delay_s=1.0, error="E", status_code=500)
    told = {"retries": (retry,), "cost": Decimal(1), "status": "failed", "failure": "f", "truncated": True}
    log.on_response_received(make_response(request=request, chunk_count=1, **told), "{}")
    tell_error(log, ValueError())
    log.close()
    with path.open("ab") as file:
        file.write(b"torn")
    AuditLog(path, key=KEY, max_bytes=1).close()
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    members = {name for record in records(*tmp_path.glob("audit.2*.jsonl")) for name in record}
    assert len(members) > 45
    assert {name for name in members if f"`{name}`" not in page} == set()
