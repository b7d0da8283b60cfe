"""Backlog: the publications that a subscription has not read, and what to do about too many.

It does what has to be done for every publication: count it, apply the policy, wake the reader, say
what was read. Who reads, by iterating or by a handler, is a `Subscription`. A handler that is a
plain function is called at once, as long as nothing waits to be handled before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from inspect import iscoroutine
from typing import Any, Protocol

import msgspec

from .errors import InterphoneError, Overflow
from .protocol.allowance import Account
from .protocol.deliveries import one_value
from .protocol.payload import Codec
from .publication import Gap, Publication

__all__ = ["Backlog", "Listener", "Reader", "Route"]

MAX_QUEUE_BYTES = 8 * 1024 * 1024


class Reader(Protocol):
    """Who reads a backlog."""

    def notify(self) -> None:
        """Hear that there is something to read."""
        ...

    def took(self, size: int) -> None:
        """Hear that a publication of so many bytes was read, where publishers wait for room."""
        ...

    def full(self, topic: str) -> None:
        """Hear that there is no room for a publication."""
        ...


class Listener(Protocol):
    """Who answers for a plain handler that is called at once."""

    def report(self, error: Exception) -> None:
        """Hear what it raised."""
        ...

    def go_on(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Await what it returned, and then read on; the backlog is `busy` until that has ended."""
        ...


class _Queued:
    """A publication in a queue, not decoded yet."""

    __slots__ = ("codec", "raw", "retained", "topic")

    def __init__(self, topic: str, raw: msgspec.Raw, codec: Codec, retained: bool) -> None:
        self.topic = topic
        self.raw = raw
        self.codec = codec
        self.retained = retained


class Backlog:
    """The queue of one subscription.

    Args:
        of: What values are decoded as.
        overflow: The policy; see `subscription.OverflowPolicy`.
        max_items: Publications it holds.

    Attributes:
        dropped: Publications lost because the queue was full.
        blocks: Whether publishers wait for room.
        max_items: Publications it holds.
        max_bytes: Bytes it holds, of one that blocks, and one publication more.
        busy: Whether a handler is at work, so that the next publication must wait.
        ended: Whether nothing will be queued any more.
        error: What its reader is to be told at the end.
        account: What its reader has to give back to a server, and by what; else `Reader.took`.
    """

    __slots__ = (
        "_grant",
        "_handle",
        "_items",
        "_latest",
        "_listener",
        "_of",
        "_overflow",
        "_queue",
        "_reader",
        "_size",
        "_stale",
        "account",
        "blocks",
        "busy",
        "dropped",
        "ended",
        "error",
        "max_bytes",
        "max_items",
    )

    def __init__(self, reader: Reader, of: Any, overflow: str, max_items: int) -> None:
        self.dropped = 0
        self.blocks = overflow == "block"
        self.max_items = max_items
        self.max_bytes = MAX_QUEUE_BYTES
        self.busy = False
        self.ended = False
        self.error: InterphoneError | None = None
        self.account: Account | None = None
        self._grant: Callable[[int, int], object] | None = None
        self._reader = reader
        self._handle: Callable[[Publication[Any]], object] | None = None
        self._listener: Listener | None = None
        self._of = of
        self._overflow = overflow
        self._queue: deque[Any] = deque()  # of _Queued, Gap and Overflow
        self._items = 0  # publications in it
        self._size = 0  # their bytes
        # With "latest": what is queued for each topic. All else in the queue is stale: it is passed
        # over, and taken out when it is the half, as removing from the middle costs the most.
        self._latest: dict[str, _Queued] | None = {} if overflow == "latest" else None
        self._stale = 0

    def __len__(self) -> int:
        return len(self._queue) - self._stale

    def listen(self, handle: Callable[[Publication[Any]], object], listener: Listener) -> None:
        """Call a plain handler at once, where `hear` can."""
        self._handle, self._listener = handle, listener

    def keep_account(self, account: Account | None, grant: Callable[[int, int], object]) -> None:
        """Have this account kept of what is read, and what it grants granted; or no more."""
        self.account, self._grant = account, grant

    # What comes

    def hear(self, topic: str, raw: bytes | msgspec.Raw, codec: Codec, retained: bool) -> bool:
        """Have a publication handled, now or in its turn; False if bytes are no MessagePack."""
        handle, listener = self._handle, self._listener
        if handle is None or listener is None or self.busy or self._queue or self.ended:
            whole = one_value(raw) if isinstance(raw, bytes) else raw
            if whole is None:
                return False
            self.put(topic, whole, codec, retained)
            return True
        value: Any = None
        fault: Exception | None = None
        try:
            if raw:
                value = codec.decode(raw, self._of)
        except asyncio.CancelledError:
            fault = _cancelled()
        except Exception as exc:
            if isinstance(raw, bytes) and one_value(raw) is None:
                return False
            fault = exc
        self.busy = True
        result: object = None
        try:
            if self.blocks:
                self._took(len(raw))
            if fault is None:
                result = handle(Publication(topic, value, retained))
            else:
                listener.report(fault)
        except asyncio.CancelledError:
            listener.report(_cancelled())
        except Exception as error:
            listener.report(error)
        finally:
            self.busy = False
        if result is not None and iscoroutine(result):
            listener.go_on(result)
        elif self._queue or self.error is not None:  # it made something come
            self._reader.notify()
        return True

    def put(self, topic: str, raw: msgspec.Raw, codec: Codec, retained: bool) -> bool:
        """Queue a publication, or do what the policy says; return whether it was queued."""
        if self.ended:
            if isinstance(self.error, Overflow):
                self.dropped += 1
                self.error.dropped = self.dropped
            return False
        if self._latest is not None:
            self._forget(topic, self._latest)
        size = len(raw)
        if self.blocks:  # the last publication may be over what it said may come
            room = self._items < self.max_items and self._size <= self.max_bytes
        else:
            room = self.room(size)
        if not room and not self._make_room(topic, size):
            return False
        item = _Queued(topic, raw, codec, retained)
        self._queue.append(item)
        if self._latest is not None:
            self._latest[topic] = item
        self._items += 1
        self._size += size
        self._reader.notify()
        return True

    def put_gap(self, gap: Gap) -> None:
        """Queue the news that the connection was away."""
        if not self.ended:
            self._queue.append(gap)
            self._reader.notify()

    def miss(self, topic: str, count: int) -> None:
        """Note that publishers gave up: `Overflow` is raised where the publications would be."""
        if self.ended:
            return
        self.dropped += count
        last = self._queue[-1] if self._queue else None
        if isinstance(last, Overflow):
            last.dropped += count
        else:
            self._queue.append(Overflow(topic, dropped=count))
        self._reader.notify()

    def end(self, error: InterphoneError | None = None) -> None:
        """Queue nothing any more; its reader is told of the error after what is queued."""
        if not self.ended:
            self.ended = True
            self.error = error
            self._reader.notify()

    # Reading

    def take(self) -> Any:
        """Return what is next, a `Publication` or a `Gap`; raise `Overflow` where that stands.

        Raises:
            PayloadError: What came is not of the type that was asked for.
        """
        if self._stale:
            self._skip_stale()
        item = self._queue.popleft()
        if not isinstance(item, _Queued):
            if isinstance(item, Overflow):
                raise item
            return item
        size = len(item.raw)
        self._items -= 1
        self._size -= size
        if self._latest is not None:
            del self._latest[item.topic]
        if self.blocks:
            self._took(size)
        value = item.codec.decode(item.raw, self._of) if item.raw else None
        return Publication(item.topic, value, item.retained)

    def _took(self, size: int) -> None:
        account, grant = self.account, self._grant
        if account is None or grant is None:
            self._reader.took(size)
            return
        granted = account.take(size)
        if granted is not None:
            grant(*granted)

    # Room

    def room(self, size: int) -> bool:
        """Whether a publication of so many bytes fits into the queue."""
        return self._items < self.max_items and (
            not self._items or self._size + size <= MAX_QUEUE_BYTES
        )

    @property
    def unread(self) -> tuple[int, int]:
        """Publications in the queue, and their bytes."""
        return self._items, self._size

    def _make_room(self, topic: str, size: int) -> bool:
        """Apply the policy to a full queue; return whether the new publication is to be queued."""
        if self._overflow == "drop_newest":
            self.dropped += 1
        elif self._overflow in ("disconnect", "block"):  # a server that sends more than it may
            self.dropped += 1
            self.end(Overflow(topic, dropped=self.dropped))
        else:
            while not self.room(size):  # it may be larger than many that are queued
                self.dropped += 1
                self._lose_oldest()
        self._reader.full(topic)
        return self._overflow in ("drop_oldest", "latest")

    def _forget(self, topic: str, latest: dict[str, _Queued]) -> None:
        """Lose what is queued for the topic: only its last publication counts."""
        lost = latest.pop(topic, None)
        if lost is None:
            return
        self.dropped += 1
        self._items -= 1
        self._size -= len(lost.raw)
        self._stale += 1
        if 2 * self._stale > len(self._queue):
            self._queue = deque([item for item in self._queue if not self._is_stale(item)])
            self._stale = 0

    def _lose_oldest(self) -> None:
        self._skip_stale()
        index, lost = next(
            (index, item)
            for index, item in enumerate(self._queue)
            if isinstance(item, _Queued) and not self._is_stale(item)
        )
        del self._queue[index]
        self._items -= 1
        self._size -= len(lost.raw)
        if self._latest is not None:
            del self._latest[lost.topic]

    def _is_stale(self, item: object) -> bool:
        return (
            self._latest is not None
            and isinstance(item, _Queued)
            and self._latest.get(item.topic) is not item
        )

    def _skip_stale(self) -> None:
        """Take stale publications off the front; behind one there is always one that is not."""
        while self._stale and self._is_stale(self._queue[0]):
            self._queue.popleft()
            self._stale -= 1


def _cancelled() -> RuntimeError:
    return RuntimeError("the handler was cancelled by somebody else")


class Route:
    """The way of the publications of one connection, on one topic, to one backlog.

    Attributes:
        open: Whether they still go there.
    """

    __slots__ = ("_backlog", "_codec", "_retained", "_topic", "open")

    def __init__(self, backlog: Backlog, topic: str, codec: Codec, retained: bool) -> None:
        self.open = True
        self._backlog = backlog
        self._topic = topic
        self._codec = codec
        self._retained = retained

    def take(self, value: bytes) -> bool:
        """Give it another publication; False if it is none, or they go there no more."""
        return self.open and self._backlog.hear(self._topic, value, self._codec, self._retained)
