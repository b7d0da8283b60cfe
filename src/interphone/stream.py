"""Stream: an ordered, bounded flow of items between a method and whoever calls it.

The one that reads gives credit, the one that writes spends it and waits when there is none:
however fast the one and slow the other, no more than the credit lies between them, and
calls on the same connection pass by.

`Source` is the end that reads and `Sink` the end that writes, the same for items and for
input, at the caller and at the method. A `Stream` is what the caller has of both.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

import msgspec

from .connection import Connection
from .errors import LocalProtocolError, StreamClosed
from .hooks import being_cancelled
from .protocol.credit import MAX_WINDOW, UNIT
from .protocol.events import Nonce
from .protocol.payload import Codec
from .protocol.session import Session
from .protocol.wire import Outgoing

__all__ = ["WINDOW", "BlockingSource", "Line", "Sink", "Source", "Stream", "check_window"]

T = TypeVar("T")

WINDOW = 256
"""Credit of one direction of a stream unless told otherwise: items, or 1 KiB of them each."""

BURST = 8
"""Items (or KiB) that one stream sends or reads before others have a turn: calls, other streams."""


def check_window(window: int) -> None:
    """Raise `ValueError` if no stream can have so much credit."""
    if not 1 <= window <= MAX_WINDOW:
        raise ValueError(f"window={window}: a stream has credit for 1 to {MAX_WINDOW} items")


class Source(Generic[T]):
    """The reading end: an async iterator over what has come.

    Args:
        codec: How items are written.
        of: Type of the items.
        taken: Hears of the size of each item that is taken, so that it can be paid for.
        connection: What they come over.
    """

    def __init__(
        self, codec: Codec, of: Any, taken: Callable[[int], None], connection: Connection
    ) -> None:
        self._codec = codec
        self._of = of
        self._taken = taken
        self._connection = connection
        self._discarded = False
        self._queue: deque[msgspec.Raw] = deque()
        self._burst = 0
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: Exception | None = None

    @property
    def buffered(self) -> int:
        """Items that have come and were not taken yet."""
        return len(self._queue)

    def put(self, raw: msgspec.Raw) -> None:
        """An item came."""
        if self._discarded:
            return
        self._queue.append(raw)
        self._connection.keep(len(raw))
        self._notify()

    def finish(self, error: Exception | None = None) -> None:
        """No more will come; an error is raised behind the last item."""
        if not self._ended:
            self._ended, self._error = True, error
            self._notify()

    def discard(self, error: Exception | None = None) -> None:
        """Nobody shall take what has come; whoever waits is told, with an error if there is one."""
        self._discarded = True
        self._connection.keep(-sum(map(len, self._queue)))
        self._queue.clear()
        self.finish(error)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Wait for the next item. Cancelling is safe: none is lost."""
        if self._burst >= BURST:
            self._burst = 0
            await asyncio.sleep(0)
        while not self._queue:
            if self._ended:
                error, self._error = self._error, None
                raise error or StopAsyncIteration
            await self.wait()
        raw = self._queue.popleft()
        self._burst += 1 + len(raw) // UNIT
        self._connection.keep(-len(raw))
        self._taken(len(raw))
        item: T = self._codec.decode(raw, self._of)
        return item

    async def wait(self) -> None:
        """Wait until something comes: an item or the end."""
        if self._waiter is not None:
            raise LocalProtocolError("two tasks iterate over one stream")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class BlockingSource(Generic[T]):
    """A source as a plain iterator, for a method that runs in a thread."""

    def __init__(self, source: Source[T]) -> None:
        self._source = source
        self._loop = asyncio.get_running_loop()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """Wait for the next item; raises what `Source` raises."""
        coming = asyncio.run_coroutine_threadsafe(self._source.__anext__(), self._loop)
        try:
            return coming.result()
        except StopAsyncIteration:
            raise StopIteration from None


class Sink:
    """The writing end.

    Args:
        connection: What it goes over.
        codec: How items are written.
        offer: Sends a payload if there is credit for it, and says whether there was.
    """

    def __init__(
        self, connection: Connection, codec: Codec, offer: Callable[[Outgoing], bool]
    ) -> None:
        self._connection = connection
        self._codec = codec
        self._offer = offer
        self._burst = 0
        self._more = asyncio.Event()
        self._closed: str | None = None

    async def send(self, item: object) -> None:
        """Send an item, when there is credit for it.

        Cancelling is safe: it was sent whole or not at all.

        Raises:
            StreamClosed: Nobody reads any more.
            PayloadError: It has no form on the wire.
            MessageTooBig: It is over the limit.
        """
        payload = self._codec.pack(item)
        if self._burst >= BURST:
            self._burst = 0
            await asyncio.sleep(0)
        self._check()
        if self._connection.crowded():
            await self._connection.writable()
            self._check()
        while not self._offer(payload):
            self._more.clear()
            await self._more.wait()
            self._check()
        self._burst += 1 + len(payload) // UNIT
        self._connection.flush_soon()

    def _check(self) -> None:
        if self._closed is not None:
            raise StreamClosed(self._closed)

    def more(self) -> None:
        """There is more credit."""
        self._more.set()

    def close(self, why: str) -> None:
        """Nothing can be sent any more; whoever waits for credit is told why."""
        self._closed = self._closed or why
        self._more.set()


class Line(NamedTuple):
    """What a stream goes over, once it is known."""

    session: Session
    connection: Connection


class Stream(Generic[T]):
    """A call whose answer comes piece by piece; inside ``async with``, an async iterator.

        async with client.stream("primes.below", 100, of=int) as primes:
            async for prime in primes:
                print(prime)

    What the method asks for piece by piece is sent by `send`, or by what was given as
    `items`; what it returns besides is `result`. Leaving ``async with`` early cancels it.

    Attributes:
        progress: Whether it asks to hear of progress; for `call`.
        window: Credit the other end has: so many items, or 1 KiB of them each, come ahead.
    """

    def __init__(
        self,
        ask: Callable[[Stream[Any]], Awaitable[tuple[Line, Nonce]]],
        *,
        of: Any = Any,
        items: AsyncIterable[object] | Iterable[object] | None = None,
        window: int = WINDOW,
        progress: bool = False,
    ) -> None:
        check_window(window)
        self.progress = progress
        self.window = window
        self._ask = ask
        self._of = of
        self._items = items
        self._line: Line | None = None
        self._nonce: Nonce = None
        self._source: Source[T] | None = None
        self._sink: Sink | None = None
        self._ended: asyncio.Future[msgspec.Raw] | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._finished = False  # nothing more of ours follows

    def __repr__(self) -> str:
        state = "new" if self._ended is None else "ended" if self._ended.done() else "open"
        return f"<Stream {state}, buffered {self.buffered}>"

    @property
    def buffered(self) -> int:
        """Items that have come and were not taken yet; never more than the window."""
        return 0 if self._source is None else self._source.buffered

    async def __aenter__(self) -> Self:
        """Begin the call. That the method is there shows with the first item or the result."""
        if self._ended is not None:
            raise LocalProtocolError("a stream is entered once: make another")
        self._ended = asyncio.get_running_loop().create_future()
        self._ended.add_done_callback(_looked_at)
        self._line, self._nonce = await self._ask(self)
        session, connection = self._line
        streams, nonce = session.streams, self._nonce

        def taken(size: int) -> None:
            streams.taken(nonce, size)
            connection.flush_soon()

        self._source = Source(session.codec, self._of, taken, connection)
        self._sink = Sink(
            connection, session.codec, lambda payload: streams.question(nonce, payload)
        )
        connection.flush_soon()
        connection.arm()
        if self._items is not None:
            self._feeder = asyncio.get_running_loop().create_task(self._feed(self._items))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Wait for the next item. Cancelling is safe: none is lost.

        Raises:
            RemoteError: The method raised.
            MethodNotFound: There is no such method.
            InvalidParams: The parameters do not fit it; it did not run.
            RequestTimeout: The time of the stream is over.
            ConnectionLost: The connection ended.
            PayloadError: What came is no `of`; the next item may be.
            StopAsyncIteration: That was all, or this side has closed it.
        """
        return await self._reading().__anext__()

    async def send(self, item: object) -> None:
        """Send the method an item, when it has asked for more.

        Cancelling is safe: it was sent whole or not at all.

        Raises:
            StreamClosed: The method has ended, or `finish` was called; `result` tells more.
            PayloadError: It has no form on the wire.
        """
        self._reading()
        assert self._sink is not None  # it is made with the source
        await self._sink.send(item)

    async def finish(self) -> None:
        """Tell the method that no more items follow. Idempotent."""
        self._reading()
        self._finish()

    def _finish(self) -> None:
        assert self._line is not None
        assert self._sink is not None
        if not self._finished:
            self._finished = True
            self._sink.close("this side said that no more items follow")
            self._line.session.streams.finish(self._nonce)
            self._line.connection.flush_soon()

    async def result(self, *, returns: Any = Any) -> Any:
        """Send no more, and wait for what the method returns; None if it yields its answer.

        Cancelling is safe; it may be waited for again.

        Raises:
            LocalProtocolError: Items have come that nobody has taken.
            Everything that iterating raises.
        """
        source = self._reading()
        assert self._ended is not None
        if self._feeder is None:
            self._finish()
        while not self._ended.done():
            if source.buffered:
                raise LocalProtocolError("the method yields items: take them first")
            await source.wait()
        if source.buffered:
            raise LocalProtocolError("the method yields items: take them first")
        assert self._line is not None
        raw = self._ended.result()
        return self._line.session.codec.decode(raw, returns) if raw else None

    async def aclose(self) -> None:
        """End it: a method that still runs is cancelled, what has come is dropped. Idempotent."""
        if self._ended is None or self._line is None:
            return
        if not self._ended.done():
            self._line.session.forget(self._nonce)
            self._line.connection.flush_soon()
            self._ended.set_exception(StreamClosed("this side has closed the stream"))
        assert self._source is not None
        assert self._sink is not None
        self._source.discard()
        self._sink.close("this side has closed the stream")
        if self._feeder is not None:
            self._feeder.cancel()
            await asyncio.wait([self._feeder])

    def _reading(self) -> Source[T]:
        if self._source is None:
            raise LocalProtocolError("enter the stream first: async with client.stream(…)")
        return self._source

    async def _feed(self, items: AsyncIterable[object] | Iterable[object]) -> None:
        """Send what was given; if that fails the stream fails with it."""
        assert self._sink is not None
        try:
            if isinstance(items, AsyncIterable):
                async for item in items:
                    await self._sink.send(item)
            else:
                for item in items:
                    await self._sink.send(item)
            self._finish()
        except StreamClosed:
            pass  # the method has had enough
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            self._break(RuntimeError("what was to be sent was cancelled by somebody else"))
        except Exception as exc:
            self._break(exc)
        finally:
            await self._leave(items)

    async def _leave(self, items: AsyncIterable[object] | Iterable[object]) -> None:
        if isinstance(items, AsyncGenerator):
            try:
                await items.aclose()
            except Exception as exc:
                self._break(exc)

    def _break(self, error: Exception) -> None:
        """What this side streams failed: cancel the method, and raise that here."""
        assert self._ended is not None
        assert self._line is not None
        if not self._ended.done():
            self._line.session.forget(self._nonce)
            self._line.connection.flush_soon()
            self.set_exception(error)

    # What the connection tells it: it is the token of its request.

    def done(self) -> bool:
        """Whether it has ended."""
        return self._ended is None or self._ended.done()

    def set_result(self, raw: msgspec.Raw) -> None:
        """The method has returned."""
        assert self._ended is not None
        self._ended.set_result(raw)
        self._end(None)

    def set_exception(self, error: Exception) -> None:
        """It ends with an error."""
        assert self._ended is not None
        self._ended.set_exception(error)
        self._end(error)

    def put(self, raw: msgspec.Raw) -> None:
        """An item came."""
        assert self._source is not None
        self._source.put(raw)

    def more(self) -> None:
        """The method wants more items."""
        assert self._sink is not None
        self._sink.more()

    def _end(self, error: Exception | None) -> None:
        if self._source is not None and self._sink is not None:
            self._source.finish(error)
            self._sink.close("the method has ended")


def _looked_at(ended: asyncio.Future[msgspec.Raw]) -> None:
    ended.exception()  # who iterates is told by the source
