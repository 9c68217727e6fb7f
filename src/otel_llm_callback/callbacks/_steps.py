"""Run one thing after the other, each whatever became of the ones before it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any


def run_all(steps: Sequence[Callable[[], object]]) -> object:
    """Run *steps* in order, each of them whatever the ones before it raise.

    Returns:
        None, or a coroutine that does the rest, from the first step that is to be awaited.

    Raises:
        Exception: What the first step that failed raised.
    """
    failure: Exception | None = None
    for index, step in enumerate(steps):
        try:
            result = step()
        except Exception as error:  # noqa: BLE001 - raised again when all were run
            failure = failure or error
            continue
        if inspect.iscoroutine(result):
            return _run_rest(result, steps[index + 1 :], failure)
    if failure is not None:
        raise failure
    return None


async def _run_rest(
    first: Coroutine[Any, Any, Any], steps: Sequence[Callable[[], object]], failure: Exception | None
) -> None:
    pending: Coroutine[Any, Any, Any] | None = first
    for step in (None, *steps):
        try:
            result = pending if step is None else step()
            if inspect.iscoroutine(result):
                await result
        except Exception as error:  # noqa: BLE001 - raised again when all were run
            failure = failure or error
    if failure is not None:
        raise failure
