"""Exchange: who of a server's peers gets a publication; how it gets there is `Traffic`.

It keeps the subscriptions of all peers and of the server itself, and the last values, and
answers what peers ask about them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from typing import Any

import msgspec

from .errors import InterphoneError, Overloaded, PayloadError
from .handlers import Tasks
from .lanes import KEPT, LOCAL, Arrears, Item, Lane, OwnLane, PeerLane, Tally
from .peer import DEFAULT_TIMEOUT, Peer
from .protocol.allowance import Allowance
from .protocol.events import Nonce
from .protocol.messages import Failure
from .protocol.retained import Retained
from .protocol.shapes import Ack, Posting, Terms
from .protocol.topics import Topics, is_pattern, pattern_fault, topic_fault
from .protocol.wire import Outgoing
from .subscription import Receipt, Subscription, TopicHandler
from .traffic import Traffic

__all__ = ["Exchange"]

REMEMBERED = 10.0  # seconds the topics of a Node client outlive its lost connection
ON_THE_WAY = 0.25, 1.0  # of a publisher's time: the part, and the seconds at most, for the way


class Exchange:
    """Topics of a server's peers and of the server itself.

    Attributes:
        retained: The last values.
    """

    def __init__(
        self, *, max_subscriptions: int, max_retained: int, max_retained_bytes: int, tasks: Tasks
    ) -> None:
        self.retained = Retained(max_retained, max_retained_bytes)
        self._max_subscriptions = max_subscriptions
        self._tasks = tasks
        self._topics: Topics[Lane] = Topics()
        self._traffic = Traffic(self._topics)
        self._lanes: dict[Peer, dict[int, PeerLane]] = {}
        self._counts: dict[Peer, int] = {}  # topics of all lanes of a peer
        self._own: dict[Subscription[Any], OwnLane] = {}
        self._own_topics = 0  # of the server itself: they count for no limit
        self._publishing: dict[Peer, set[Tally]] = {}
        # Of who left, and until when: the oldest first.
        self._left: OrderedDict[tuple[int | str | None, str], tuple[float, tuple[str, ...]]]
        self._left = OrderedDict()

    def names(self) -> set[str]:
        """Every topic and pattern somebody is subscribed to."""
        return {*self._topics.names()}

    @property
    def dropped(self) -> int:
        """Publications and broadcasts that a subscriber was too slow for, or gone."""
        return self._traffic.dropped

    # What peers ask

    def subscribe(self, peer: Peer, nonce: Nonce, topics: list[str], terms: Terms) -> None:
        """Subscribe a peer, to all of the topics or none."""
        lanes = self._lanes.get(peer, {})
        lane = lanes.get(terms.id)
        new = list(dict.fromkeys(topics))
        if lane is not None:
            new = [topic for topic in new if not self._topics.has(lane, topic)]
        limit = peer.protocol.limits.max_subscriptions
        fault = _fault(peer, topics, terms)
        if fault is None and lane is not None and lane.group != terms.group:
            fault = "a subscription stays in its queue group"
        if fault is not None:
            peer.inbox.fail(nonce, Failure("invalid", fault))
        elif self._counts.get(peer, 0) + len(new) > limit:
            peer.inbox.fail(nonce, Failure("overloaded", f"over {limit} subscriptions of one peer"))
        elif self._topics.total - self._own_topics + len(new) > self._max_subscriptions:
            peer.inbox.fail(nonce, Failure("overloaded", "the server has too many subscriptions"))
        else:
            if lane is None:
                allowance = None if terms.credit is None else Allowance(*terms.credit)
                lane = PeerLane(peer, terms.id, group=terms.group, allowance=allowance)
            self._add(lane, new)
            peer.inbox.respond(nonce, {"result": bool(new)})

    def _add(self, lane: PeerLane, topics: Iterable[str]) -> None:
        """Subscribe, and give the last values to who can tell that it is them."""
        self._lanes.setdefault(lane.peer, {})[lane.id] = lane
        added = sum([self._topics.add(lane, topic, exact=not lane.id) for topic in topics])
        self._counts[lane.peer] = self._counts.get(lane.peer, 0) + added
        if lane.id:
            self._give_retained(lane, topics)

    def unsubscribe(self, peer: Peer, nonce: Nonce, topics: list[str], terms: Terms) -> None:
        """Unsubscribe a peer."""
        lane = self._lanes.get(peer, {}).get(terms.id)
        removed = [lane is not None and self._topics.remove(lane, topic) for topic in topics]
        if lane is not None:
            self._counts[peer] -= sum(removed)
            self._traffic.trim(lane)
            if not self._topics.count(lane):
                self._discard(lane)
        peer.inbox.respond(nonce, {"result": any(removed)})

    def _discard(self, lane: PeerLane) -> None:
        lanes = self._lanes[lane.peer]
        del lanes[lane.id]
        if not lanes:
            del self._lanes[lane.peer], self._counts[lane.peer]

    def forget(self, peer: Peer, nonce: Nonce, topic: str) -> None:
        """Forget the last value of a topic for a peer."""
        peer.inbox.respond(nonce, {"result": self.retained.forget(topic)})

    def publish(
        self,
        peer: Peer,
        nonce: Nonce,
        topic: str,
        raw: msgspec.Raw,
        whole: msgspec.Raw,
        posting: Posting,
    ) -> None:
        """Publish for a peer, and answer it; deliveries to itself come before the answer."""
        knows = "topics" in peer.protocol.can
        fault = topic_fault(topic)
        if fault is None and knows and is_pattern(topic):
            fault = f"{topic!r} is a pattern"
        if fault is not None:
            peer.inbox.fail(nonce, Failure("invalid", fault))
            return
        if posting.retain:
            try:
                self.retained.keep(topic, raw, peer.protocol.codec)
            except Overloaded as exc:
                peer.inbox.fail(nonce, Failure("overloaded", str(exc)))
                return
        tally = Tally(posting.ack)
        self._traffic.spread(Item.relayed(topic, raw, peer, whole), tally)
        if tally.pending:
            self._publishing.setdefault(peer, set()).add(tally)
            timeout = posting.deadline if knows else DEFAULT_TIMEOUT
            over = partial(self._published, peer, tally)
            peer.inbox.answer(nonce, raw, self._answer_in_time(peer, tally, timeout), over)
        elif not self._traffic.concluded(tally):
            self._tasks.spawn(self._answer_settled(peer, nonce, tally))
        else:
            peer.inbox.respond(nonce, _answer(peer, tally))

    async def _answer_settled(self, peer: Peer, nonce: Nonce, tally: Tally) -> None:
        """Answer a publisher that is faster than its subscribers after they had a moment."""
        peer.connection.stop_reading("publishing")
        await self._traffic.settle(tally.connections)
        peer.connection.go_on_reading("publishing")
        peer.inbox.respond(nonce, _answer(peer, tally))

    async def _answer_in_time(self, peer: Peer, tally: Tally, timeout: float | None) -> object:
        """Answer a publisher that waits for its subscribers before its own time is over."""
        if timeout is not None:
            part, most = ON_THE_WAY
            timeout -= min(part * timeout, most)
        await self._traffic.conclude(tally, timeout)
        return _answer(peer, tally)

    def _published(self, peer: Peer, tally: Tally) -> None:
        """Nobody waits for a publication any more, even if it was cancelled before it began to."""
        self._publishing.get(peer, set()).discard(tally)
        self._traffic.give_up(tally)
        tally.let_go()

    def allowed(self, peer: Peer, id: int, items: int, size: int) -> None:
        """A subscription of a peer may be sent more."""
        lane = self._lanes.get(peer, {}).get(id)
        if lane is not None and lane.allowance is not None:
            lane.allowance.grant(items, size)
            lane.tell_missed()
            self._traffic.pump(lane)
            peer.connection.flush_soon()

    # What the server says

    async def publish_local(
        self, topic: str, value: object, *, retain: bool, ack: Ack, timeout: float | None
    ) -> Receipt:
        """Publish for the server itself."""
        item = Item.said(topic, value)
        if retain:
            self._keep(item, value)
        tally = Tally(ack)
        self._traffic.spread(item, tally)
        if not self._traffic.concluded(tally):
            await self._traffic.conclude(tally, timeout)
        return tally.receipt()

    def _keep(self, item: Item, value: object) -> None:
        try:
            raw = msgspec.Raw(KEPT.encode(value))
        except PayloadError:
            self.retained.keep(item.topic, item.raw, item.codec)
        else:
            self.retained.keep(item.topic, raw, KEPT)

    async def broadcast(self, peers: tuple[Peer, ...], data: object) -> Receipt:
        """Send every peer a message."""
        LOCAL.encode(data)  # a value nobody can be sent is refused even if nobody is there
        bodies: dict[object, Outgoing] = {}
        tally = Tally()

        def body(peer: Peer) -> Outgoing:
            flavour = peer.protocol.flavour
            if flavour not in bodies:
                bodies[flavour] = peer.protocol.message_body(peer.protocol.codec.pack(data))
            return bodies[flavour]

        for peer in peers:
            tally.matched += 1
            try:
                taken = self._traffic.deliver(peer, body(peer))
            except InterphoneError:  # there is no form of the value it takes
                taken = False
            if taken:
                tally.took(peer.connection)
            else:
                self._traffic.drop(tally)
        await self._traffic.settle([peer.connection for peer in peers])
        return tally.receipt()

    # The server's own subscriptions; it is their hub

    async def attach(self, subscription: Subscription[Any]) -> None:
        """Begin to receive."""
        self.handle(subscription)

    def handle(self, subscription: Subscription[Any]) -> None:
        """Add a subscription of the server's own."""
        lane = self._own[subscription] = OwnLane(subscription)
        for topic in subscription.topics:
            self._own_topics += self._topics.add(lane, topic)
        self._give_retained(lane, subscription.topics)

    async def detach(self, subscription: Subscription[Any], topics: Iterable[str]) -> None:
        """Stop receiving these topics."""
        lane = self._own.get(subscription)
        if lane is not None:
            self._own_topics -= sum([self._topics.remove(lane, topic) for topic in topics])
            self._traffic.trim(lane)
            if not self._topics.count(lane):
                del self._own[subscription]

    def took(self, subscription: Subscription[Any], size: int) -> None:
        """One that blocks has room again."""
        lane = self._own.get(subscription)
        if lane is not None:
            self._traffic.pump(lane)

    def _give_retained(self, lane: Lane, topics: Iterable[str]) -> None:
        """Give a new subscription the last values; of a group each would be given to many."""
        if lane.group is None:
            names = [kept.topic for kept in self.retained.matching(topics)]
            if names:
                Arrears(lane, self.retained, names)
                self._traffic.pump(lane)

    # Coming and going

    def drop(self, peer: Peer, *, remember: bool) -> None:
        """Forget a peer that is gone; a Node client's topics are kept for a moment."""
        self._traffic.left(peer.connection)
        for tally in self._publishing.pop(peer, ()):
            self._traffic.give_up(tally)
        lanes = self._lanes.pop(peer, {})
        self._counts.pop(peer, None)
        topics = [topic for lane in lanes.values() for topic in self._topics.drop(lane)]
        for lane in lanes.values():
            self._traffic.trim(lane)
        now = asyncio.get_running_loop().time()
        while self._left and next(iter(self._left.values()))[0] <= now:
            self._left.popitem(last=False)
        if topics and remember:
            self._left.pop(_key(peer), None)  # the newest stands last
            self._left[_key(peer)] = now + REMEMBERED, tuple(topics)

    def welcome_back(self, peer: Peer) -> None:
        """Give a Node client that lost its connection its topics again; it does not ask itself."""
        until, topics = self._left.pop(_key(peer), (0.0, ()))
        if not peer.interphone and until > asyncio.get_running_loop().time():
            self._add(PeerLane(peer, 0), topics)

    def close(self) -> None:
        """End the server's own subscriptions; handlers stay, they live as long as the server."""
        for subscription in list(self._own):
            if not isinstance(subscription, TopicHandler):
                lane = self._own.pop(subscription)
                self._own_topics -= len(self._topics.drop(lane))
                self._traffic.trim(lane)
                subscription.end()
        self._left.clear()


def _fault(peer: Peer, topics: list[str], terms: Terms) -> str | None:
    """Say what is wrong with a subscription of a peer."""
    if "topics" not in peer.protocol.can:
        return next(filter(None, map(topic_fault, topics)), None)
    if not terms.id:
        return "a subscription has an id"
    if not topics:  # it would cost, and count for no limit
        return "a subscription is to at least one topic"
    group = None if terms.group is None else topic_fault(terms.group)
    return next(filter(None, [*map(pattern_fault, topics), group]), None)


def _answer(peer: Peer, tally: Tally) -> dict[str, object]:
    """What a publisher is told: a Node client no more than it knows."""
    if not peer.interphone:
        return {"result": True}
    numbers = msgspec.to_builtins(tally.receipt())
    return {"result": True} | {
        name: number for name, number in numbers.items() if number is not None
    }


def _key(peer: Peer) -> tuple[int | str | None, str]:
    """The user, as the system names him, and the id."""
    who = peer.credentials
    return (None if who is None else who.uid if who.sid is None else who.sid), peer.id
