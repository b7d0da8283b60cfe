"""Subscription: a bounded queue of publications, with a policy for when it is full.

Whom it belongs to, a Server or Client, is its `Hub`: what goes over the wire for it is the
hub's business. A Client keeps its subscriptions in a `Subscriptions`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from inspect import iscoroutine
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, Protocol, Self, TypeVar, get_args

import msgspec

from .errors import InterphoneError, LocalProtocolError, Overflow, TopicError
from .hooks import Runner, being_cancelled
from .limits import MAX_QUEUE
from .protocol.payload import Codec
from .protocol.shapes import Ack
from .protocol.topics import Topics, is_pattern, matcher, pattern_fault, topic_fault

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

MAX_QUEUE_BYTES = 8 * 1024 * 1024


class Publication(msgspec.Struct, Generic[T], frozen=True, repr_omit_defaults=True):
    """One item on a topic.

    Attributes:
        topic: The topic it was published on.
        value: What was published.
        retained: Whether it is the last value from before the subscription began.
    """

    topic: str
    value: T
    retained: bool = False


class Gap(msgspec.Struct, frozen=True):
    """The connection was away: what was published meanwhile is lost, unless `resumed`."""

    resumed: bool = False


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
    fault = topic_fault(topic)
    if fault is None and is_pattern(topic):
        fault = f"{topic!r} is a pattern: subscribe to it, publish on a topic"
    if fault is not None:
        raise TopicError(fault)


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
        dropped: Publications lost because the queue was full.
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
        self.dropped = 0
        self.gaps = 0
        self._hub = hub
        self._of = of
        self.blocks = overflow == "block"
        self.max_queue = queue
        self.max_bytes = MAX_QUEUE_BYTES  # of one that blocks, and one publication more
        self._overflow = overflow
        self._wants_gaps = gaps
        self._queue: deque[_Queued | Gap | Overflow] = deque()
        self._items = 0  # publications in it
        self._bytes = 0
        # With "latest": what is queued for each topic. All else in the queue is stale: it is passed
        # over, and taken out when it is the half, as removing from the middle costs the most.
        self._latest: dict[str, _Queued] | None = {} if overflow == "latest" else None
        self._stale = 0
        self._waiter: asyncio.Future[None] | None = None
        self._attached = False
        self._ended = False
        self._error: InterphoneError | None = None

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open" if self._attached else "new"
        queued = len(self._queue) - self._stale
        return f"<Subscription {', '.join(self.topics)} {state}, queued {queued}>"

    async def __aenter__(self) -> Self:
        if self._attached or self._ended:
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
        while not self._queue:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._ended:
                raise StopAsyncIteration
            if not self._attached:
                raise LocalProtocolError(
                    "enter the subscription first: async with client.subscribe(…)"
                )
            await self._wait()
        item: ItemT = self._take()
        return item

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise LocalProtocolError("two tasks iterate over one subscription")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _take(self) -> Any:
        if self._stale:
            self._skip_stale()
        item = self._queue.popleft()
        if isinstance(item, Gap):
            return item
        if isinstance(item, Overflow):
            raise item
        size = len(item.raw)
        self._items -= 1
        self._bytes -= size
        if self._latest is not None:
            del self._latest[item.topic]
        if self.blocks:
            self._hub.took(self, size)
        value = item.codec.decode(item.raw, self._of) if item.raw else None
        return Publication(item.topic, value, item.retained)

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
        if self._ended:
            if isinstance(self._error, Overflow):
                self.dropped += 1
                self._error.dropped = self.dropped
            return False
        if self._latest is not None:
            self._forget(topic, self._latest)
        size = len(raw)
        if self.blocks:  # the last publication may be over what it said may come
            room = self._items < self.max_queue and self._bytes <= self.max_bytes
        else:
            room = self.room(size)
        if not room and not self._make_room(topic, size):
            return False
        item = _Queued(topic, raw, codec, retained)
        self._queue.append(item)
        if self._latest is not None:
            self._latest[topic] = item
        self._items += 1
        self._bytes += size
        self._notify()
        return True

    def room(self, size: int) -> bool:
        """Whether a publication of so many bytes fits into the queue."""
        return self._items < self.max_queue and (
            not self._items or self._bytes + size <= MAX_QUEUE_BYTES
        )

    @property
    def unread(self) -> tuple[int, int]:
        """Publications in the queue, and their bytes."""
        return self._items, self._bytes

    def miss(self, topic: str, count: int) -> None:
        """Note that publishers gave up: `Overflow` is raised where the publications would be."""
        if self._ended:
            return
        self.dropped += count
        last = self._queue[-1] if self._queue else None
        if isinstance(last, Overflow):
            last.dropped += count
        else:
            self._queue.append(Overflow(topic, dropped=count))
        self._notify()

    def _make_room(self, topic: str, size: int) -> bool:
        """Apply the policy to a full queue; return whether the new publication is to be queued."""
        if self._overflow == "drop_newest":
            self.dropped += 1
            return False
        if self._overflow in ("disconnect", "block"):  # a server that sends more than it may
            self.dropped += 1
            self.end(Overflow(topic, dropped=self.dropped))
            return False
        while not self.room(size):  # it may be larger than many that are queued
            self.dropped += 1
            self._lose_oldest()
        return True

    def _forget(self, topic: str, latest: dict[str, _Queued]) -> None:
        """Lose what is queued for the topic: only its last publication counts."""
        lost = latest.pop(topic, None)
        if lost is None:
            return
        self.dropped += 1
        self._items -= 1
        self._bytes -= len(lost.raw)
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
        self._bytes -= len(lost.raw)
        if self._latest is not None:
            del self._latest[lost.topic]

    def _is_stale(self, item: _Queued | Gap | Overflow) -> bool:
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

    def put_gap(self, *, resumed: bool = False) -> None:
        """Note that the connection was away."""
        self.gaps += 1
        if self._wants_gaps and not self._ended:
            self._queue.append(Gap(resumed))
            self._notify()

    def end(self, error: InterphoneError | None = None) -> None:
        """End the iteration: normally, or with an error, after what is queued."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._notify()

    @property
    def ended(self) -> bool:
        """Whether nothing will be queued any more."""
        return self._ended

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Queued(NamedTuple):
    """A publication in a queue, not decoded yet."""

    topic: str
    raw: msgspec.Raw
    codec: Codec
    retained: bool


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

    def _notify(self) -> None:
        if self._reader is None and (self._queue or self._error is not None):
            self._reader = reader = self._start(self._read())
            if reader.done():
                self._reader = None
            else:
                reader.add_done_callback(self._stopped)

    def _stopped(self, reader: asyncio.Task[None]) -> None:
        """Its task ended, or was cancelled with its Server or Client; what is queued stays."""
        self._reader = None
        if self._queue and not reader.cancelled():
            self._notify()

    def _make_room(self, topic: str, size: int) -> bool:
        made = super()._make_room(topic, size)
        if not self._reported and self._error is None:  # once per time the queue fills up
            self._reported = True
            self._runner.report(Overflow(topic, dropped=self.dropped), ())
        return made

    async def _read(self) -> None:
        self._reader = asyncio.current_task()  # an eager task runs before it is returned
        while self._queue:
            try:
                result = self._call(self._take())
                if iscoroutine(result):
                    await result
            except asyncio.CancelledError:
                if being_cancelled():
                    raise
                self._runner.report(RuntimeError("the handler was cancelled by somebody else"), ())
            except Exception as exc:
                self._runner.report(exc, ())
        self._reported = False
        if self._error is not None:
            error, self._error = self._error, None
            self._runner.report(error, ())


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
