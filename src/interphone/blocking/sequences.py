"""Subscriptions and streams, as plain iterators inside ``with``."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ..errors import InterphoneError
from ..stream import Stream as AsyncStream
from ..subscription import Subscription as AsyncSubscription
from .seat import Seat, at_once

__all__ = ["Stream", "Subscription"]

T = TypeVar("T")
ItemT = TypeVar("ItemT")


class _Items(Generic[ItemT]):
    """The next items of something, with those that came although nobody waited any more.

    Several threads may ask at once: each item goes to one of them, the first to the first.
    """

    def __init__(
        self,
        seat: Seat,
        take: Callable[[], Coroutine[Any, Any, ItemT]],
        *,
        ended: Callable[[], bool] = bool,
    ) -> None:
        self._seat = seat
        self._take = take
        self._ended = ended
        self._kept: deque[ItemT] = deque()
        self._turn = asyncio.Lock()
        self._taker: asyncio.Task[Any] | None = None
        self._woken = False

    def next(self) -> ItemT:
        with suppress(IndexError):
            return self._kept.popleft()
        try:
            if self._seat.vacant and self._ended():  # what is queued is still there
                return at_once(self._take())
            return self._seat.run(self._take_in_turn, late=self._give_back)
        except StopAsyncIteration:
            raise StopIteration from None

    async def _take_in_turn(self) -> ItemT:
        async with self._turn:
            self._taker = task = asyncio.current_task()
            assert task is not None  # the seat runs tasks
            try:
                while True:
                    with suppress(IndexError):
                        return self._kept.popleft()
                    try:
                        return await self._take()
                    except asyncio.CancelledError:
                        woken, self._woken = self._woken, False
                        if not woken or task.uncancel():
                            raise
            finally:
                self._taker = None

    def _give_back(self, item: ItemT) -> None:
        """Keep what came for a thread that waits no more; another one may wait for it."""
        self._kept.append(item)
        with suppress(InterphoneError, RuntimeError):  # the portal has ended, and nobody waits
            self._seat.portal.loop.call_soon_threadsafe(self._wake_taker)

    def _wake_taker(self) -> None:
        if self._taker is not None and self._kept:
            self._woken = True
            self._taker.cancel()


class Subscription(Generic[ItemT]):
    """Publications on some topics, as an iterator inside ``with``.

        with client.subscribe("news.*") as news:
            for publication in news: ...

    Its items are `Publication`s, and with ``gaps=True`` also `Gap`s. Another thread may
    `close` it: then the iteration ends. If several iterate, each item goes to one of them.
    """

    def __init__(self, seat: Seat, subscription: AsyncSubscription[ItemT]) -> None:
        self._seat = seat
        self._subscription = subscription
        self._items = _Items(seat, subscription.__anext__, ended=lambda: subscription.ended)

    def __repr__(self) -> str:
        return repr(self._subscription)

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics and patterns, in the order they were given."""
        return self._subscription.topics

    @property
    def group(self) -> str | None:
        """The queue group, or None."""
        return self._subscription.group

    @property
    def dropped(self) -> int:
        """Publications lost because the queue was full."""
        return self._subscription.dropped

    @property
    def gaps(self) -> int:
        """How often the connection was away meanwhile."""
        return self._subscription.gaps

    @property
    def ended(self) -> bool:
        """Whether nothing will be queued any more."""
        return self._subscription.ended

    def __enter__(self) -> Self:
        try:
            self._seat.run(self._subscription.__aenter__)
        except BaseException:
            self._leave()  # it may have been entered although the waiting was interrupted
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._seat.taken:  # else its owner is closed, and so is this
            self._seat.run(self._subscription.close)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ItemT:
        """Wait for the next publication. An interrupt is safe: none is lost.

        Raises:
            Everything `interphone.Subscription` raises.
            StopIteration: The subscription, or its client, was closed.
        """
        return self._items.next()

    def unsubscribe(self, *topics: str) -> None:
        """Stop receiving some of the topics; the subscription ends with the last of them."""
        self._seat.run(lambda: self._subscription.unsubscribe(*topics))

    def close(self) -> None:
        """Stop receiving. What is queued may still be read; then the iteration ends."""
        self._leave()


class Stream(Generic[T]):
    """A call whose answer comes piece by piece; inside ``with``, an iterator.

        with client.stream("primes.below", 100, of=int) as primes:
            for prime in primes:
                print(prime)

    What the method asks for piece by piece is sent by `send`, or by what was given as
    `items`; what it returns besides is `result`. Leaving ``with`` early cancels it. If several
    threads iterate, each item goes to one of them.
    """

    def __init__(self, seat: Seat, stream: AsyncStream[T]) -> None:
        self._seat = seat
        self._stream = stream
        self._items = _Items(seat, stream.__anext__)

    def __repr__(self) -> str:
        return repr(self._stream)

    @property
    def window(self) -> int:
        """Credit the other end has: so many items, or 1 KiB of them each, come ahead."""
        return self._stream.window

    @property
    def buffered(self) -> int:
        """Items that have come and were not taken yet; never more than the window."""
        return self._stream.buffered

    def __enter__(self) -> Self:
        """Begin the call. That the method is there shows with the first item or the result."""
        try:
            self._seat.run(self._stream.__aenter__)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """Wait for the next item. An interrupt is safe: none is lost.

        Raises:
            Everything `interphone.Stream` raises.
            StopIteration: That was all, or this side has closed it.
        """
        return self._items.next()

    def send(self, item: object) -> None:
        """Send the method an item, when it has asked for more.

        Raises:
            StreamClosed: The method has ended, or `finish` was called; `result` tells more.
            PayloadError: It has no form on the wire.
        """
        self._seat.run(lambda: self._stream.send(item))

    def finish(self) -> None:
        """Tell the method that no more items follow. Idempotent."""
        self._seat.run(self._stream.finish)

    def result(self, *, returns: Any = Any) -> Any:
        """Send no more, and wait for what the method returns; None if it yields its answer.

        Raises:
            LocalProtocolError: Items have come that nobody has taken.
            Everything that iterating raises.
        """
        return self._seat.run(lambda: self._stream.result(returns=returns))

    def close(self) -> None:
        """End it: a method that still runs is cancelled, what has come is dropped. Idempotent."""
        if self._seat.taken:
            self._seat.run(self._stream.aclose)
