"""Celery tasks in prefork workers, each of which is replaced after one task, and no span is lost.

The program starts a worker of its own, with a folder as broker. Spans go to a collector on this machine, or where
``OTEL_EXPORTER_OTLP_ENDPOINT`` says.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from _server import MODEL, api_in_environment
from celery import Celery
from celery.signals import task_postrun, worker_process_init
from openai import OpenAI

from otel_llm_callback import configure, flush, instrument, session

FOLDER = Path(os.environ.get("BROKER_FOLDER") or tempfile.mkdtemp())

app = Celery("celery_task", broker="filesystem://", backend=(FOLDER / "results").as_uri())
places = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
app.conf.update(
    broker_transport_options={option: str(FOLDER / place) for option, place in places.items()},
    worker_max_tasks_per_child=1,
    worker_proc_alive_timeout=30,  # by default a new process has 4 s for the imports, which a busy machine exceeds
)


@worker_process_init.connect
def start_telemetry(**_):
    """In each process of the pool, after the fork: threads of an SDK do not survive one."""
    configure(service_name="tasks")
    instrument()


@task_postrun.connect
def send_telemetry(**_):
    """Once a task is done, since a process that is replaced ends without running what `atexit` was given."""
    flush()


@app.task(bind=True)
def answer(self, question):
    with OpenAI() as client, session(self.request.id):
        said = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}])
    return os.getpid(), said.choices[0].message.content


if __name__ == "__main__":
    for place in ("queue", "control", "results"):
        (FOLDER / place).mkdir()
    os.environ["BROKER_FOLDER"] = str(FOLDER)  # for the worker
    command = [sys.executable, "-m", "celery", "--app=celery_task", "--quiet", "worker", "--concurrency=2"]
    # What the worker says of itself is no answer.
    with api_in_environment(), subprocess.Popen([*command, "--loglevel=ERROR"], stdout=sys.stderr) as worker:
        try:
            asked = [answer.delay(question) for question in ("Who are you?", "What is a trace?", "And a callback?")]
            answers = [result.get(timeout=60) for result in asked]
        finally:
            worker.terminate()
    shutil.rmtree(FOLDER)
    print(*[f"Bob: {text}" for _, text in answers], sep="\n")
    print(f"{len(answers)} answers by {len({process for process, _ in answers})} processes")
