"""Deliver events off the caller's path: a bounded queue and one thread that is started on first use.

A queue has room for so many events. When it is full a call is left out whole or loses chunks, never its end: every call
a callback is told of keeps the grammar. What is left out is counted.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from . import _exchange, _faults, _timers
from ._dispatch import Counters, running_hook
from .protocol import HOOKS, Hook, find_hook, name_of
from .types import Content, ErrorContext, Overflow, RequestMetadata, ResponseMetadata, StreamChunk

if TYPE_CHECKING:
    import asyncio

_TEXT_LIMIT: Final = 64 * 1024 * 1024
"""Characters of JSON that may wait in one queue; a hundred long conversations must not fill the memory."""

_Event: TypeAlias = Callable[[], None]

_workers: Final[weakref.WeakSet[Worker]] = weakref.WeakSet()


class Worker:
    """One bounded queue and, once there is something in it, one thread that runs what it holds, in order.

    Args:
        size: Events it holds.
        is_fed: Other workers put events into it, so that it is to be waited for after them.
    """

    def __init__(self, size: int, *, is_fed: bool = False) -> None:
        self.size = size
        self.is_fed = is_fed
        self.queued: weakref.WeakSet[Queued] = weakref.WeakSet()
        self._closed = False
        self._loop = _Loop()
        self._reset()
        _workers.add(self)

    def _reset(self) -> None:
        # Also called in a forked child, where the parent's thread and whoever held its locks do not exist.
        self._events: queue.SimpleQueue[_Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._room = threading.Condition()
        self._waiting = 0
        self._sweep_is_queued = False
        self._text_lock = threading.Lock()
        self._text_bytes = 0
        self._loop.close()
        for queued in self.queued:
            queued.forget()

    @property
    def waiting(self) -> int:
        """Events not yet delivered."""
        return self._events.qsize()

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be queued: too many events, or too much text in them."""
        return self._events.qsize() >= self.size or self._text_bytes >= _TEXT_LIMIT

    def hold(self, text: str) -> None:
        """Count *text* as queued."""
        if text:
            with self._text_lock:
                self._text_bytes += len(text)

    def let_go(self, text: str) -> None:
        """Count *text* as delivered."""
        if text:
            with self._text_lock:
                self._text_bytes -= len(text)

    @property
    def is_running(self) -> bool:
        """Whether there is a thread."""
        return self._thread is not None

    def put(self, event: _Event) -> bool:
        """Queue *event*, whatever the size of the queue; False if there is no thread to be had any more."""
        if self._thread is None and not self._start():
            return False
        self._events.put(event)
        if self._closed:  # a call that was under way has ended; the thread may end again too
            self._events.put(None)
        return self._thread is not None or self._start()  # the thread may have ended just now

    def wait_for_room(self) -> None:
        """Block the calling thread until the queue is below its size."""
        if self._thread is threading.current_thread():
            return
        with self._room:
            self._waiting += 1
            try:
                while not self._closed and self.is_full:
                    self._room.wait(1.0)
            finally:
                self._waiting -= 1

    def flush(self, deadline: float, caller: threading.Thread) -> bool:
        """Wait until what is queued now was delivered; False if *deadline* (monotonic seconds) came first.

        The worker's own thread, as *caller*, would wait for itself and does not.
        """
        if self._thread is None or self._thread is caller:
            return True
        done = threading.Event()

        def event() -> None:
            _timers.run_early()
            done.set()

        return self.put(event) and done.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Let the thread end after what is queued now."""
        self._closed = True
        if self._thread is not None:
            self._events.put(None)

    def run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run *coroutine* on the worker's own event loop."""
        return self._loop.run(coroutine)

    def wake(self) -> None:
        """Have the thread, if there is one, end abandoned exchanges; safe inside a finaliser."""
        if self._thread is not None and not self._sweep_is_queued:  # one is enough, however long the thread is busy
            self._sweep_is_queued = True
            self._events.put(self._sweep)

    def tidy(self) -> None:
        """Have the thread, if there is one, close its event loop, which complains at exit if it is left open."""
        if self._thread is not None:
            self.put(self._loop.close)

    def _start(self) -> bool:
        with self._starting:
            if self._thread is not None:
                return True
            thread = threading.Thread(
                target=_run, args=(weakref.ref(self), self._events, self._loop), name="otel-llm-callback", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # the interpreter is shutting down
                return False
            self._thread = thread
            return True

    def _delivered(self) -> None:
        if self._waiting:
            with self._room:
                self._room.notify_all()

    def _sweep(self) -> None:
        self._sweep_is_queued = False
        _exchange.sweep()

    def _stop(self) -> bool:
        """Let the calling thread, the worker's own, end; False if there is something to do again."""
        with self._starting:
            self._thread = None  # before looking: whoever puts an event from here on starts another one
            if not self._events.empty():
                self._thread = threading.current_thread()
                return False
            self._loop.close()
            return True


def _run(owner: weakref.ref[Worker], events: queue.SimpleQueue[_Event | None], loop: _Loop) -> None:
    """The thread: holds its worker only while there is work, so that a forgotten worker can go."""
    timers = _timers.own_timers(loop.run)
    context = copy_context()  # what is put off is a hook's work: no call of the API in it is told
    context.run(running_hook.set, True)  # noqa: FBT003
    while True:
        if timers.wait_s() == 0:  # also while there are events: a busy callback must not keep another one waiting
            context.run(timers.run_due)
        try:
            event = events.get(timeout=timers.wait_s())
        except queue.Empty:
            continue
        if event is None:
            context.run(timers.run_all)
            if (worker := owner()) is None:
                loop.close()
                return
            if worker._stop():  # noqa: SLF001
                return
            del worker
            timers = _timers.own_timers(loop.run)
            continue
        try:
            event()
        except BaseException as error:  # noqa: BLE001 - the thread outlives whatever happens
            _faults.report("worker", error, "an event was not delivered")
        del event
        if (worker := owner()) is not None:
            worker._delivered()  # noqa: SLF001
        del worker


class _Loop:
    """The event loop that a worker's ``async def`` hooks share, made when the first one runs."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run *coroutine* to its end."""
        if self._loop is None:
            self._loop = _new_loop()
        return self._loop.run_until_complete(coroutine)

    def close(self) -> None:
        """Close the loop; the next coroutine gets a new one."""
        loop, self._loop = self._loop, None
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # a fork while a hook ran on it: the child cannot close its copy
                loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    import asyncio  # takes as long to import as all of us together
    import selectors

    # A forked child closes its copy of the loop; with epoll, which lives in the kernel, that would take the parent's
    # loop apart.
    if hasattr(selectors, "PollSelector"):
        return asyncio.SelectorEventLoop(selectors.PollSelector())
    return asyncio.new_event_loop()


class Queued:
    """A callback that passes its events on to another one through a worker.

    It has exactly the hooks the other one has, plus what it needs to tell calls apart. Nothing in it raises or, unless
    told to by ``block``, waits.
    """

    def __init__(self, callback: object, worker: Worker, overflow: Overflow, counters: Counters) -> None:
        self.callback = callback
        self.content: Content = getattr(callback, "content", "full")
        self.worker = worker
        self._overflow = overflow
        self._counters = counters
        self._chunk_room = worker.size // 2 if overflow == "drop_chunks" else worker.size
        self._open: set[str] = set()
        self._contexts: dict[str, Context] = {}
        hooks = {name: self._hook(name) for name in HOOKS}
        self._request_hook = hooks["on_request_sent"]
        self._chunk_hook = hooks["on_stream_chunk"]
        self._response_hook = hooks["on_response_received"]
        self._error_hook = hooks["on_error"]
        worker.queued.add(self)

    def on_request_sent(self, metadata: RequestMetadata, request_json: str) -> None:
        """Queue a request, or leave the whole call out."""
        worker = self.worker
        if worker.is_full:
            if self._overflow != "block":
                self._drop(self._request_hook)
                return
            worker.wait_for_room()
        context = copy_context()  # so that the hooks see the caller's span and context variables
        context.run(running_hook.set, True)  # noqa: FBT003

        def event() -> None:
            self._contexts[metadata.call_id] = context
            if self._request_hook is not None:
                context.run(self._request_hook, metadata, request_json)
            worker.let_go(request_json)

        worker.hold(request_json)
        self._open.add(metadata.call_id)
        self._put(event, metadata.call_id, self._request_hook)

    def _put_chunk(self, chunk: StreamChunk, index: int) -> None:
        call_id = chunk.request.call_id
        if call_id not in self._open:
            self._drop(self._chunk_hook)
            return
        if self.worker.waiting >= self._chunk_room:
            if self._overflow != "block":
                self._drop(self._chunk_hook)
                return
            self.worker.wait_for_room()
        self._put(_Chunk(self, chunk, index), call_id, self._chunk_hook)

    def on_response_received(self, metadata: ResponseMetadata, response_json: str) -> None:
        """Queue the end of a call."""
        self._put_end(metadata.request.call_id, self._response_hook, metadata, response_json)

    def on_error(self, error: BaseException, context: ErrorContext) -> None:
        """Queue a failure."""
        self._put_end(context.request.call_id, self._error_hook, error, context)

    def forget(self) -> None:
        """Forget calls under way: after a fork they are the parent's."""
        self._open.clear()
        self._contexts.clear()

    def deliver_chunk(self, chunk: StreamChunk, index: int) -> None:
        """Run the chunk hook, on the worker."""
        context = self._contexts.get(chunk.request.call_id)
        if context is not None and self._chunk_hook is not None:
            context.run(self._chunk_hook, chunk, index)

    def _put_end(self, call_id: str, hook: Hook | None, first: Any, second: Any) -> None:
        if call_id not in self._open:
            self._drop(hook)
            return
        self._open.discard(call_id)
        text = second if type(second) is str else ""

        def event() -> None:
            context = self._contexts.pop(call_id, None)
            if context is not None and hook is not None:
                context.run(hook, first, second)
            self.worker.let_go(text)

        self.worker.hold(text)
        self._put(event, call_id, hook)

    def _put(self, event: _Event, call_id: str, hook: Hook | None) -> None:
        if not self.worker.put(event):
            self._open.discard(call_id)
            self._drop(hook)

    def _drop(self, hook: Hook | None) -> None:
        if hook is not None:  # what nobody listens to is not missed
            self._counters.dropped += 1

    def _hook(self, name: str) -> Hook | None:
        """Return a hook as it is run on the worker: awaited if it is to be, made harmless and counted."""
        hook = find_hook(self.callback, name)
        if hook is None:
            return None
        label, counters, worker = f"{name_of(self.callback)}.{name}", self._counters, self.worker

        def run(first: Any, second: Any) -> None:
            try:
                result = hook(first, second)
                if inspect.iscoroutine(result):
                    worker.run_coroutine(result)
            except BaseException as error:  # noqa: BLE001 - no SystemExit of a hook ends the thread
                counters.failed += 1
                _faults.log_failure(error, f"callback {label} failed", first=counters.failed == 1)
            else:
                counters.delivered += 1

        return run


class QueuedWithChunks(Queued):
    """The same for a callback that wants chunks; a class of its own, so that the others are not told of any."""

    def on_stream_chunk(self, chunk: StreamChunk, index: int) -> None:
        """Queue a chunk, or leave it out."""
        self._put_chunk(chunk, index)


def queue_for(callback: object, worker: Worker, overflow: Overflow, counters: Counters) -> Queued:
    """Return what passes events on to *callback*."""
    wants_chunks = find_hook(callback, "on_stream_chunk") is not None
    return (QueuedWithChunks if wants_chunks else Queued)(callback, worker, overflow, counters)


class _Chunk:
    """A queued chunk; smaller and faster to make than a closure, for there may be many."""

    __slots__ = ("_chunk", "_index", "_queued")

    def __init__(self, queued: Queued, chunk: StreamChunk, index: int) -> None:
        self._queued = queued
        self._chunk = chunk
        self._index = index

    def __call__(self) -> None:
        self._queued.deliver_chunk(self._chunk, self._index)


def flush(timeout_s: float, caller: threading.Thread | None = None) -> bool:
    """Deliver what is queued and what callbacks hold back now; False if that took longer than *timeout_s*.

    Args:
        timeout_s: Seconds at most.
        caller: Who waits in truth; None for the calling thread.
    """
    caller = caller or threading.current_thread()
    deadline = time.monotonic() + timeout_s
    workers = sorted(_all_workers(), key=lambda worker: worker.is_fed)
    flushed = [worker.flush(deadline, caller) for worker in workers]  # each is asked, whoever was late
    return _timers.flush(deadline) and all(flushed)


def _all_workers() -> list[Worker]:
    while True:
        try:
            return list(_workers)
        except RuntimeError:  # another thread has made one meanwhile
            continue


def _wake_all() -> None:
    for worker in _all_workers():  # one would be enough to sweep, but any one may be busy with a hook that hangs
        worker.wake()


def _after_fork() -> None:
    for worker in list(_workers):
        worker._reset()  # noqa: SLF001


_exit_timeout_s = 0.0
_exit_began: float | None = None


def drain_at_exit(timeout_s: float) -> Callable[[], None]:
    """Deliver what is queued when the interpreter exits, for at most *timeout_s*.

    Returns:
        What undoes this, provided that nothing was ever queued: what was is delivered all the same.
    """
    global _exit_timeout_s  # noqa: PLW0603
    _exit_timeout_s = timeout_s
    atexit.unregister(_drain)
    atexit.register(_drain)
    _timers.see_to_exit(seen_to=True)
    return _forget_exit


def _forget_exit() -> None:
    if not any(worker.is_running for worker in _all_workers()):
        atexit.unregister(_drain)
        _timers.see_to_exit(seen_to=False)


def _drain() -> None:
    remaining_s = exit_deadline(_exit_timeout_s) - time.monotonic()
    _exchange.end_streams()
    for worker in _all_workers():
        worker.tidy()
    flush(remaining_s)


def exit_deadline(timeout_s: float) -> float:
    """Return when, in monotonic seconds, an exit that may take *timeout_s* is over; it began when first asked."""
    global _exit_began  # noqa: PLW0603
    if _exit_began is None:
        _exit_began = time.monotonic()
    return _exit_began + timeout_s


_exchange.wakers.append(_wake_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
