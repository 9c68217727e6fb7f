"""What the caller holds while an answer arrives: the SDK's own objects, which end the exchange on time.

Nothing here iterates, reads or closes anything on its own account.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from wrapt import ObjectProxy

from ._exchange import Exchange

if TYPE_CHECKING:
    from typing_extensions import Self


class Observed:
    """What a stream or response becomes when it is observed: itself, with a class of ours in front of its own.

    The attributes are shared, methods and ``isinstance`` are the SDK's, and nothing of the SDK refers to the new
    object, so that dropping it is noticed at once.
    """

    __slots__ = ()
    _otel_exchange: Exchange


_classes: dict[tuple[type, type], type] = {}


def observe(original: Any, exchange: Exchange, behaviour: type[Observed]) -> Any:
    """Return *original* with the methods of *behaviour* in front of its own."""
    base = type(original)
    observed = _classes.get((base, behaviour)) or _make_class(base, behaviour)
    copy: Any = object.__new__(observed)
    copy.__dict__ = original.__dict__
    copy._otel_exchange = exchange  # noqa: SLF001 - ours; the name keeps clear of the SDK's
    return copy


def _make_class(base: type, behaviour: type[Observed]) -> type:
    names = {
        "__slots__": ("_otel_exchange",),
        "__class__": property(lambda _: base),
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__copy__": lambda self: _copy(self, base),
    }
    made = _classes[base, behaviour] = type(base.__name__, (behaviour, base), names)
    return made


def _copy(observed: Any, base: type) -> Any:
    copy: Any = object.__new__(base)
    copy.__dict__.update(observed.__dict__)
    return copy


class ObservedStream(Observed):
    """A ``Stream`` whose chunks are observed.

    Each iterator keeps it alive, as the SDK's keep the stream, so only the last one to go leaves it abandoned.
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        exchange = self._otel_exchange
        waiting = exchange.pulling = True  # while we wait, a closing body is ours to explain, not an early close
        try:
            for chunk in super().__iter__():  # type: ignore[misc]
                if exchange.hides_usage and exchange.takes_usage(chunk):
                    continue
                waiting = exchange.pulling = False
                exchange.chunk(chunk)
                yield chunk
                waiting = exchange.pulling = True
        except GeneratorExit:  # this iterator is done with; the stream may be read on, perhaps by another one already
            if waiting:
                exchange.pulling = False
            raise
        except BaseException as error:
            exchange.fail(error)
            raise
        else:
            exchange.finish()

    def __next__(self) -> Any:
        exchange = self._otel_exchange
        exchange.pulling = True
        try:
            chunk = super().__next__()  # type: ignore[misc]
            while exchange.hides_usage and exchange.takes_usage(chunk):
                chunk = super().__next__()  # type: ignore[misc]
        except StopIteration:
            exchange.finish()
            raise
        except BaseException as error:
            exchange.fail(error)
            raise
        exchange.pulling = False
        exchange.chunk(chunk)
        return chunk

    def __del__(self) -> None:
        self._otel_exchange.abandon()


class ObservedAsyncStream(Observed):
    """An ``AsyncStream`` whose chunks are observed."""

    __slots__ = ()

    async def __aiter__(self) -> AsyncIterator[Any]:
        exchange = self._otel_exchange
        waiting = exchange.pulling = True
        try:
            async for chunk in super().__aiter__():  # type: ignore[misc]
                if exchange.hides_usage and exchange.takes_usage(chunk):
                    continue
                waiting = exchange.pulling = False
                exchange.chunk(chunk)
                yield chunk
                waiting = exchange.pulling = True
        except GeneratorExit:
            if waiting:
                exchange.pulling = False
            raise
        except BaseException as error:
            exchange.fail(error)
            raise
        else:
            exchange.finish()

    async def __anext__(self) -> Any:
        exchange = self._otel_exchange
        exchange.pulling = True
        try:
            chunk = await super().__anext__()  # type: ignore[misc]
            while exchange.hides_usage and exchange.takes_usage(chunk):
                chunk = await super().__anext__()  # type: ignore[misc]
        except StopAsyncIteration:
            exchange.finish()
            raise
        except GeneratorExit:  # the waiting coroutine was thrown away, perhaps by the collector
            exchange.pulling = False
            raise
        except BaseException as error:
            exchange.fail(error)
            raise
        exchange.pulling = False
        exchange.chunk(chunk)
        return chunk

    def __del__(self) -> None:
        self._otel_exchange.abandon()


class ObservedResponse(Observed):
    """A ``with_streaming_response`` result; the caller's ``with`` block ends the exchange."""

    __slots__ = ()

    def close(self) -> Any:
        try:
            return super().close()  # type: ignore[misc]
        finally:
            self._otel_exchange.body_closed()


class ObservedAsyncResponse(Observed):
    """The same for an asynchronous client."""

    __slots__ = ()

    async def close(self) -> Any:
        try:
            return await super().close()  # type: ignore[misc]
        finally:
            self._otel_exchange.body_closed()


class Body(ObjectProxy):  # type: ignore[type-arg]
    """A response body that tells the exchange when it was read, broke or was closed.

    With *ends* false its closing is not the end: a ``with_streaming_response`` body is closed before it is parsed.
    """

    def __init__(self, stream: Any, exchange: Exchange, *, ends: bool) -> None:
        super().__init__(stream)
        self._self_exchange = exchange
        self._self_ends = ends

    def __iter__(self) -> Iterator[bytes]:
        return _Parts(iter(self.__wrapped__), self._self_exchange)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _AsyncParts(self.__wrapped__.__aiter__(), self._self_exchange)

    def close(self) -> None:
        try:
            self.__wrapped__.close()
        finally:
            self._self_closed()

    async def aclose(self) -> None:
        try:
            await self.__wrapped__.aclose()
        finally:
            self._self_closed()

    def _self_closed(self) -> None:
        if self._self_ends:
            self._self_exchange.body_closed()


class _Parts:
    """The parts of a body; not a generator, which would have to be closed."""

    __slots__ = ("_exchange", "_parts")

    def __init__(self, parts: Iterator[bytes], exchange: Exchange) -> None:
        self._parts = parts
        self._exchange = exchange

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._parts)
        except StopIteration:
            self._exchange.body_read = True
            raise
        except BaseException as error:
            if not self._exchange.pulling:  # else the SDK turns it into an exception of its own, which we see
                self._exchange.fail(error)
            raise


class _AsyncParts:
    """The same for an asynchronous body."""

    __slots__ = ("_exchange", "_parts")

    def __init__(self, parts: AsyncIterator[bytes], exchange: Exchange) -> None:
        self._parts = parts
        self._exchange = exchange

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._parts.__anext__()
        except StopAsyncIteration:
            self._exchange.body_read = True
            raise
        except GeneratorExit:
            raise
        except BaseException as error:
            if not self._exchange.pulling:
                self._exchange.fail(error)
            raise
