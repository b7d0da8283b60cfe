"""Exchange: who of a server's peers gets a publication, and how it gets there.

A publication is encoded once for each flavour of connection, and queued for every
subscriber before anything waits. Then the publisher waits for slow subscribers, 10 ms at
most, so that it does not run ahead of those who merely need a moment; one that took
nothing in that time is not waited for again until it has caught up. Nobody waits for
anybody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import get_clock_info

import msgspec

from .errors import InterphoneError
from .handlers import Tasks
from .peer import Peer
from .protocol.events import Nonce
from .protocol.messages import Failure
from .protocol.payload import Json
from .protocol.topics import Topics, topic_fault
from .subscription import Receipt, Subscriptions

__all__ = ["LOCAL", "Exchange"]

# Seconds a publisher waits for slow subscribers, at most. Where the clock ticks every 16 ms, as on
# Windows before Python 3.13, a shorter wait would be none.
STALL = max(0.010, 2 * get_clock_info("monotonic").resolution)
REMEMBERED = 10.0  # seconds the topics of a Node client outlive its lost connection

LOCAL = Json(lenient=True)
"""How publications are kept for subscribers of this very process."""


class Exchange:
    """Topics of a server's peers and of the server itself.

    Attributes:
        local: The server's own subscriptions.
        dropped: Publications and broadcasts that a peer was too slow for.
    """

    def __init__(self, *, max_subscriptions: int, tasks: Tasks) -> None:
        self.local = Subscriptions()
        self.dropped = 0
        self._max_subscriptions = max_subscriptions
        self._tasks = tasks
        self._topics: Topics[Peer] = Topics()
        self._stalled: set[Peer] = set()
        self._left: dict[tuple[int | None, str], tuple[float, tuple[str, ...]]] = {}

    def topics_of(self, peer: Peer) -> tuple[str, ...]:
        """What a peer is subscribed to."""
        return self._topics.of(peer)

    # What peers ask

    def subscribe(self, peer: Peer, nonce: Nonce, topics: list[str]) -> None:
        """Subscribe a peer, all of the topics or none."""
        fault = next(filter(None, map(topic_fault, topics)), None)
        limit = peer.protocol.limits.max_subscriptions
        new = [topic for topic in dict.fromkeys(topics) if topic not in self._topics.of(peer)]
        if fault is not None:
            peer.inbox.fail(nonce, Failure("invalid", fault))
        elif len(self._topics.of(peer)) + len(new) > limit:
            peer.inbox.fail(nonce, Failure("overloaded", f"over {limit} subscriptions of one peer"))
        elif self._topics.total + len(new) > self._max_subscriptions:
            peer.inbox.fail(nonce, Failure("overloaded", "the server has too many subscriptions"))
        else:
            for topic in new:
                self._topics.add(peer, topic)
            peer.inbox.respond(nonce, {"result": bool(new)})

    def unsubscribe(self, peer: Peer, nonce: Nonce, topics: list[str]) -> None:
        """Unsubscribe a peer."""
        removed = [self._topics.remove(peer, topic) for topic in topics]
        peer.inbox.respond(nonce, {"result": any(removed)})

    def publish(
        self, peer: Peer, nonce: Nonce, topic: str, raw: msgspec.Raw, whole: msgspec.Raw
    ) -> None:
        """Publish for a peer, and answer it; deliveries to itself come before the answer."""
        fault = topic_fault(topic)
        if fault is not None:
            peer.inbox.fail(nonce, Failure("invalid", fault))
            return
        codec = peer.protocol.codec
        origin = None if peer.interphone else whole

        def body(subscriber: Peer) -> bytes:
            same = subscriber.protocol.flavour == peer.protocol.flavour
            if same or not raw:
                return subscriber.protocol.publication(topic, raw, origin if same else None)
            value = subscriber.protocol.codec.encode(codec.decode(raw))
            return subscriber.protocol.publication(topic, value)

        subscribers = self._topics.matching(topic)
        receipt = self._queue(subscribers, body)
        receipt = _with_local(receipt, self.local.deliver(topic, raw, codec))
        answer: dict[str, object] = {"result": True}
        if peer.interphone:
            answer |= {
                "matched": receipt.matched,
                "queued": receipt.queued,
                "dropped": receipt.dropped,
            }
        if any(subscriber.connection.blocked for subscriber in subscribers):
            self._tasks.spawn(self._answer_settled(peer, nonce, answer, subscribers))
        else:
            peer.inbox.respond(nonce, answer)

    async def _answer_settled(
        self, peer: Peer, nonce: Nonce, answer: object, subscribers: tuple[Peer, ...]
    ) -> None:
        """Answer a publisher that is faster than its subscribers after they had a moment."""
        peer.connection.stop_reading("publishing")
        await self.settle(subscribers)
        peer.connection.go_on_reading("publishing")
        peer.inbox.respond(nonce, answer)

    # What the server says

    async def publish_local(self, topic: str, value: object) -> Receipt:
        """Publish for the server itself."""
        raw = msgspec.Raw(LOCAL.encode(value))
        local = self.local.deliver(topic, raw, LOCAL)
        subscribers = self._topics.matching(topic)
        receipt = self._queue(
            subscribers,
            lambda peer: peer.protocol.publication(topic, peer.protocol.codec.encode(value)),
        )
        await self.settle(subscribers)
        return _with_local(receipt, local)

    async def broadcast(self, peers: tuple[Peer, ...], data: object) -> Receipt:
        """Send every peer a message."""
        LOCAL.encode(data)  # a value nobody can be sent is refused even if nobody is there
        receipt = self._queue(
            peers, lambda peer: peer.protocol.message_body(peer.protocol.codec.encode(data))
        )
        await self.settle(peers)
        return receipt

    def _queue(self, peers: Iterable[Peer], body: Callable[[Peer], bytes]) -> Receipt:
        """Queue one body for each peer; encode it once per flavour."""
        bodies: dict[object, bytes] = {}
        matched = queued = 0
        for peer in peers:
            matched += 1
            flavour = peer.protocol.flavour
            try:
                if flavour not in bodies:
                    bodies[flavour] = body(peer)
                peer.protocol.deliver(bodies[flavour])
            except InterphoneError:  # it is going, or there is no form of the value it takes
                continue
            peer.connection.flush_soon()
            queued += peer.open
        self.dropped += matched - queued
        return Receipt(matched, queued, matched - queued)

    async def settle(self, peers: Iterable[Peer]) -> None:
        """Give slow peers up to `STALL` to take what was queued for them."""
        slow = [peer for peer in peers if peer.connection.blocked]
        self._stalled = {peer for peer in self._stalled if peer.connection.blocked}
        waiting = [peer for peer in slow if peer not in self._stalled]
        if not waiting:
            return
        before = {peer: peer.connection.taken for peer in waiting}
        moments = [asyncio.ensure_future(peer.connection.writable()) for peer in waiting]
        try:
            await asyncio.wait(moments, timeout=STALL)
        finally:
            for moment in moments:
                moment.cancel()
        still = {peer for peer in waiting if peer.connection.blocked}
        self._stalled |= {peer for peer in still if peer.connection.taken == before[peer]}

    # Coming and going

    def drop(self, peer: Peer, *, remember: bool) -> None:
        """Forget a peer that is gone; a Node client's topics are kept for a moment."""
        self._stalled.discard(peer)
        topics = self._topics.drop(peer)
        now = asyncio.get_running_loop().time()
        self._left = {key: kept for key, kept in self._left.items() if kept[0] > now}
        if topics and remember:
            self._left[_key(peer)] = now + REMEMBERED, topics

    def welcome_back(self, peer: Peer) -> None:
        """Give a Node client that lost its connection its topics again; it does not ask itself."""
        until, topics = self._left.pop(_key(peer), (0.0, ()))
        if not peer.interphone and until > asyncio.get_running_loop().time():
            for topic in topics:
                self._topics.add(peer, topic)

    def close(self) -> None:
        """End the server's own subscriptions."""
        self.local.end()
        self._left.clear()


def _key(peer: Peer) -> tuple[int | None, str]:
    return getattr(peer.credentials, "uid", None), peer.id


def _with_local(receipt: Receipt, local: int) -> Receipt:
    return Receipt((receipt.matched or 0) + local, (receipt.queued or 0) + local, receipt.dropped)
