"""Subscription: a bounded queue of publications, with a policy for when it is full.

Whom it belongs to, a Server or Client, is its `Hub`: what goes over the wire for it is the
hub's business. A Client keeps its subscriptions in a `Subscriptions`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from functools import lru_cache
from inspect import iscoroutine, iscoroutinefunction
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, get_args

import msgspec

from .backlog import Backlog
from .errors import InterphoneError, LocalProtocolError, Overflow, TopicError
from .hooks import Runner, being_cancelled
from .limits import MAX_QUEUE
from .protocol.payload import Codec
from .protocol.shapes import Ack
from .protocol.topics import Topics, is_pattern, matcher, pattern_fault, topic_fault
from .publication import Gap, Publication

__all__ = [
    "MAX_QUEUE",
    "Ack",
    "Gap",
    "Hub",
    "OverflowPolicy",
    "Publication",
    "Receipt",
    "Subscription",
    "Subscriptions",
    "TopicHandler",
    "check_group",
    "check_topic",
]

T = TypeVar("T")
ItemT = TypeVar("ItemT")

OverflowPolicy = Literal["disconnect", "drop_oldest", "drop_newest", "latest", "block"]
"""What a full queue does: end this subscription with `Overflow` once what is queued has been read
(the default), lose the oldest or the newest publication, keep only the last one of each topic, or
make publishers wait. Whatever is lost is counted in `Subscription.dropped`."""

POLICIES = get_args(OverflowPolicy)


class Receipt(msgspec.Struct, frozen=True):
    """What became of a publication; always true.

    Attributes:
        matched: Subscriptions it was for; a queue group counts as one, and so does a Node client.
            None where a Node server does not say.
        queued: How many of them it was queued for.
        dropped: How many of them did not take it: too slow, or just gone.
        delivered: To how many of those queued it had left in time; None unless asked for.
    """

    matched: int | None = None
    queued: int | None = None
    dropped: int | None = None
    delivered: int | None = None

    def __bool__(self) -> bool:
        return True


def check_topic(topic: str) -> None:
    """Raise `TopicError` if nothing can be published on `topic`."""
    fault = _fault(topic)
    if fault is not None:
        raise TopicError(fault)


@lru_cache(maxsize=1024)  # hot path: the same topics come again and again
def _fault(topic: str) -> str | None:
    fault = topic_fault(topic)
    if fault is None and is_pattern(topic):
        return f"{topic!r} is a pattern: subscribe to it, publish on a topic"
    return fault


def check_group(group: str) -> None:
    """Raise `ValueError` if `group` cannot be the name of a queue group."""
    fault = topic_fault(group)
    if fault is not None:
        raise ValueError(f"a queue group is named as a topic: {fault}")


class Hub(Protocol):
    """Whom a subscription belongs to: a Server or a Client."""

    async def attach(self, subscription: Subscription[Any], /) -> None:
        """Begin to receive."""
        ...

    async def detach(self, subscription: Subscription[Any], topics: Iterable[str], /) -> None:
        """Stop receiving these topics."""
        ...

    def took(self, subscription: Subscription[Any], size: int, /) -> None:
        """Hear that a subscription that blocks has read a publication of so many bytes."""
        ...


class Subscription(Generic[ItemT]):
    """Publications on some topics, as an async iterator inside ``async with``.

    Its items are `Publication`s, and with ``gaps=True`` also `Gap`s.

    Attributes:
        topics: The topics and patterns, in the order they were given.
        group: The queue group, or None.
        backlog: What is queued; for Server and Client.
        gaps: How often the connection was away meanwhile.
    """

    def __init__(
        self,
        hub: Hub,
        topics: tuple[str, ...],
        of: Any = Any,
        *,
        overflow: OverflowPolicy = "disconnect",
        queue: int = MAX_QUEUE,
        gaps: bool = False,
        group: str | None = None,
    ) -> None:
        if not topics:
            raise TopicError("subscribe to at least one topic")
        for topic in topics:
            fault = pattern_fault(topic)
            if fault is not None:
                raise TopicError(fault)
        if group is not None:
            check_group(group)
        if overflow not in POLICIES:
            raise ValueError(f"no such policy for overflow: {overflow!r}")
        if queue < 1:
            raise ValueError(f"the queue must hold at least one publication, not {queue}")
        self.topics = tuple(dict.fromkeys(topics))
        self.group = group
        self.gaps = 0
        self.backlog = Backlog(self, of, overflow, queue)
        self._hub = hub
        self._wants_gaps = gaps
        self._waiter: asyncio.Future[None] | None = None
        self._attached = False

    def __repr__(self) -> str:
        state = "ended" if self.ended else "open" if self._attached else "new"
        return f"<Subscription {', '.join(self.topics)} {state}, queued {len(self.backlog)}>"

    @property
    def dropped(self) -> int:
        """Publications lost because the queue was full."""
        return self.backlog.dropped

    async def __aenter__(self) -> Self:
        if self._attached or self.ended:
            raise LocalProtocolError("a subscription is entered once: make another")
        await self._hub.attach(self)
        self._attached = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ItemT:
        """Wait for the next publication. Cancelling is safe: none is lost.

        With ``gaps=True`` a `Gap` may come instead.

        Raises:
            PayloadError: What came is not of the type that was asked for; the next may be.
            Overflow: The queue was full; see `OverflowPolicy`. With ``overflow="block"`` it stands
                in the place of what publishers gave up, and what came later follows.
            ConnectionLost: The client gave up reconnecting.
            StopAsyncIteration: The subscription, or its client, was closed.
        """
        backlog = self.backlog
        while not backlog:
            if backlog.error is not None:
                error, backlog.error = backlog.error, None
                raise error
            if backlog.ended:
                raise StopAsyncIteration
            if not self._attached:
                raise LocalProtocolError(
                    "enter the subscription first: async with client.subscribe(…)"
                )
            await self._wait()
        item: ItemT = backlog.take()
        return item

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise LocalProtocolError("two tasks iterate over one subscription")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def unsubscribe(self, *topics: str) -> None:
        """Stop receiving some of the topics; the subscription ends with the last of them."""
        held = set(self.topics)
        gone = {topic: None for topic in topics if topic in held}
        await self._hub.detach(self, gone)
        self.topics = tuple(topic for topic in self.topics if topic not in gone)
        if not self.topics:
            self.end()

    async def close(self) -> None:
        """Stop receiving. What is queued may still be read; then the iteration ends."""
        if self._attached:
            self._attached = False
            self.end()
            await self._hub.detach(self, self.topics)

    # What the owner calls

    def put(self, topic: str, raw: msgspec.Raw, codec: Codec, *, retained: bool = False) -> bool:
        """Queue a publication, or do what the policy says; return whether it was queued."""
        return self.backlog.put(topic, raw, codec, retained)

    def room(self, size: int) -> bool:
        """Whether a publication of so many bytes fits into the queue."""
        return self.backlog.room(size)

    @property
    def unread(self) -> tuple[int, int]:
        """Publications in the queue, and their bytes."""
        return self.backlog.unread

    def miss(self, topic: str, count: int) -> None:
        """Note that publishers gave up: `Overflow` is raised where the publications would be."""
        self.backlog.miss(topic, count)

    def put_gap(self, *, resumed: bool = False) -> None:
        """Note that the connection was away."""
        self.gaps += 1
        if self._wants_gaps:
            self.backlog.put_gap(Gap(resumed))

    def end(self, error: InterphoneError | None = None) -> None:
        """End the iteration: normally, or with an error, after what is queued."""
        self.backlog.end(error)

    @property
    def ended(self) -> bool:
        """Whether nothing will be queued any more."""
        return self.backlog.ended

    # What the backlog calls

    def notify(self) -> None:
        """There is something to read."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def took(self, size: int) -> None:
        """A publication was read, of one that blocks."""
        self._hub.took(self, size)

    def full(self, topic: str) -> None:
        """There is no room for a publication."""


class TopicHandler(Subscription[Publication[T]]):
    """A subscription that is read by a handler instead of an iterator, in order, one at a time."""

    def __init__(
        self,
        hub: Hub,
        topics: tuple[str, ...],
        of: Any,
        handler: Callable[[Publication[T]], object],
        runner: Runner,
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        *,
        overflow: OverflowPolicy = "drop_oldest",
        queue: int = MAX_QUEUE,
        group: str | None = None,
    ) -> None:
        super().__init__(hub, topics, of, overflow=overflow, queue=queue, group=group)
        self.handler = handler
        self._call = runner.placed(handler)
        self._runner = runner
        self._start = start
        self._reader: asyncio.Task[None] | None = None
        self._reported = False
        if self._call is handler and not iscoroutinefunction(handler):
            self.backlog.listen(handler, self)

    def notify(self) -> None:
        """There is something to read: read it, unless somebody does."""
        backlog = self.backlog
        if not backlog.busy and (backlog or backlog.error is not None):
            self._read_on(None)

    def go_on(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """A handler that was called has to be awaited, and then the queue to be read."""
        self._read_on(coroutine)

    def _read_on(self, first: Coroutine[Any, Any, object] | None) -> None:
        self.backlog.busy = True
        self._reader = reader = self._start(self._read(first))

        def stopped(_: object) -> None:
            """It ended, or was cancelled with its Server or Client; what is queued stays."""
            if self._reader is reader:
                self._reader, self.backlog.busy = None, False
            if first is not None:
                first.close()  # it may have been cancelled before its first step
            if self.backlog and not reader.cancelled():
                self.notify()

        if reader.done():
            stopped(reader)
        else:
            reader.add_done_callback(stopped)

    def full(self, topic: str) -> None:
        """There is no room for a publication: say so, once per time the queue fills up."""
        if not self._reported and self.backlog.error is None:
            self._reported = True
            self.report(Overflow(topic, dropped=self.dropped))

    def report(self, error: Exception) -> None:
        """Something went wrong with a publication."""
        self._runner.report(error, ())

    async def _read(self, first: Coroutine[Any, Any, object] | None) -> None:
        self._reader = asyncio.current_task()  # an eager task runs before it is returned
        backlog = self.backlog
        while first is not None or backlog:
            try:
                result: object = first if first is not None else self._call(backlog.take())
                first = None
                if iscoroutine(result):
                    await result
            except asyncio.CancelledError:
                if being_cancelled():
                    raise
                self.report(RuntimeError("the handler was cancelled by somebody else"))
            except Exception as exc:
                self.report(exc)
        self._reported = False
        if backlog.error is not None:
            error, backlog.error = backlog.error, None
            self.report(error)


class Subscriptions:
    """The subscribers in this process of a Client."""

    def __init__(self) -> None:
        self._topics: Topics[Subscription[Any]] = Topics()
        self._patterns: dict[Subscription[Any], Callable[[str], bool]] = {}  # whether one matches

    def add(self, subscription: Subscription[Any]) -> list[str]:
        """Add a subscriber; return the topics nobody here wanted before."""
        new = [topic for topic in subscription.topics if not self._topics.holders(topic)]
        self._patterns.pop(subscription, None)
        for topic in subscription.topics:
            self._topics.add(subscription, topic)
        return new

    def remove(self, subscription: Subscription[Any], topics: Iterable[str]) -> list[str]:
        """Remove a subscriber from topics; return those nobody here wants any more."""
        removed = [topic for topic in topics if self._topics.remove(subscription, topic)]
        self._patterns.pop(subscription, None)
        return [topic for topic in removed if not self._topics.holders(topic)]

    def names(self) -> tuple[str, ...]:
        """Every topic and pattern somebody here wants."""
        return self._topics.names()

    def of(self, subscription: Subscription[Any]) -> tuple[str, ...]:
        """What a subscriber wants."""
        return self._topics.of(subscription)

    def holders(self, topic: str) -> tuple[Subscription[Any], ...]:
        """Who subscribed to this very topic or pattern."""
        return self._topics.holders(topic)

    def wants(self, subscription: Subscription[Any], topic: str) -> bool:
        """Whether a publication on the topic is for this subscriber."""
        if self._topics.has(subscription, topic):
            return True
        if not self._topics.count(subscription):
            return False
        wanted = self._patterns.get(subscription)
        if wanted is None:
            wanted = matcher(filter(is_pattern, self._topics.of(subscription)))
            self._patterns[subscription] = wanted
        return wanted(topic)

    def has(self, subscription: Subscription[Any], topic: str) -> bool:
        """Whether a subscriber wants this very topic or pattern."""
        return self._topics.has(subscription, topic)

    def on(self, topic: str) -> tuple[Subscription[Any], ...]:
        """Who wants what is published on this topic."""
        return self._topics.matching(topic)

    def all(self) -> tuple[Subscription[Any], ...]:
        """Every subscriber."""
        return self._topics.subscribers()

    def end(self, error: InterphoneError | None = None) -> None:
        """End every iteration. Handlers stay: they live as long as their Server or Client."""
        for subscription in self.all():
            if not isinstance(subscription, TopicHandler):
                subscription.end(error)
                self.remove(subscription, subscription.topics)
