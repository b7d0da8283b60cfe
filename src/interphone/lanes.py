"""Lanes: the ways that publications take to each of their subscribers.

A lane is one subscription: of a peer (`PeerLane`) or of the server itself (`OwnLane`). A
Node client, and an older one of ours, does not tell its subscriptions apart: it has one
lane for all of them.

A subscription with ``overflow="block"`` lets publishers wait. What waits for it is
`Parked` in its lane, in order, until there is room, or its publisher gives up. Last values,
for which no publisher waits, stay where they are kept until then: only their names are
parked, as `Arrears`. What becomes of one publication at all its subscribers is added up in
a `Tally`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec

from .connection import Connection
from .peer import Peer
from .protocol.allowance import Allowance
from .protocol.payload import Codec, Json, MessagePack
from .protocol.retained import Kept, Retained
from .protocol.session import Session
from .protocol.shapes import Ack, Marks
from .protocol.states import State
from .protocol.wire import Outgoing
from .subscription import Receipt, Subscription

__all__ = ["LOCAL", "Arrears", "Item", "Lane", "OwnLane", "Parked", "PeerLane", "Tally"]

LOCAL = Json(lenient=True)
"""How publications are kept for subscribers of this very process."""

KEPT = MessagePack()
"""How last values of this process are kept, if they have a form in it: nothing is lost."""

_OPEN: Final = State.OPEN  # hot path: a member costs 100 ns on Python 3.11


class Item:
    """One publication on its way to many, encoded once for each flavour of connection.

    Attributes:
        topic: What it is published on.
        raw: Its value, for subscribers in this process.
        codec: How that is written.
        retained: Whether it is the last value from before a subscription.
    """

    def __init__(
        self,
        topic: str,
        raw: msgspec.Raw,
        codec: Codec,
        encode: Callable[[Session], bytes | msgspec.Raw],
        *,
        whole: msgspec.Raw | None = None,
        origin: object = None,
        retained: bool = False,
    ) -> None:
        self.topic = topic
        self.raw = raw
        self.codec = codec
        self.retained = retained
        self._encode = encode
        self._whole = whole  # the object a Node publisher sent, for those of its flavour
        self._origin = origin
        self._values: dict[object, bytes | msgspec.Raw] = {}
        self._bodies: dict[object, Outgoing] = {}
        # The last body that was asked for by `body_for`, and for whom.
        self._flavour: object = None
        self._id = 0
        self._body: Outgoing = b""
        self._size = 0

    @classmethod
    def said(cls, topic: str, value: object) -> Item:
        """One that this process publishes; raise `PayloadError` if it has no form at all."""
        raw = msgspec.Raw(LOCAL.encode(value))
        return cls(topic, raw, LOCAL, lambda session: session.codec.encode(value))

    @classmethod
    def relayed(cls, topic: str, raw: msgspec.Raw, publisher: Peer, whole: msgspec.Raw) -> Item:
        """One that a peer publishes; `whole` is the object it sent."""
        codec = publisher.protocol.codec
        return cls(
            topic,
            raw,
            codec,
            _translation(raw, codec),
            whole=None if publisher.interphone else whole,
            origin=publisher.protocol.flavour,
        )

    @classmethod
    def kept(cls, kept: Kept) -> Item:
        """The last value of a topic."""
        topic, raw, codec, _ = kept
        return cls(topic, raw, codec, _translation(raw, codec), retained=True)

    def value(self, session: Session) -> bytes | msgspec.Raw:
        """The value as this session writes it; `PayloadError` if it has no such form."""
        if session.flavour not in self._values:
            self._values[session.flavour] = self._encode(session)
        return self._values[session.flavour]

    def body(self, session: Session, to: tuple[int, ...]) -> Outgoing:
        """The body that delivers it to these subscriptions of this session's other end."""
        key = (session.flavour, to)
        if key not in self._bodies:
            whole = self._whole if session.flavour == self._origin else None
            marks = Marks(to, self.retained)
            value = self.value(session)
            self._bodies[key] = session.publication(self.topic, value, whole, marks)
        return self._bodies[key]

    # Hot path: most subscribers of a topic have one flavour, and one id for it.

    def body_for(self, lane: PeerLane) -> Outgoing:
        """The body that delivers it to one subscription of a peer; as `body`."""
        session = lane.session
        if session.flavour is not self._flavour or lane.id != self._id:
            body = self.body(session, (lane.id,) if lane.id else ())
            self._size = len(self.value(session))
            self._flavour, self._id, self._body = session.flavour, lane.id, body
        return self._body

    def size_for(self, lane: PeerLane) -> int:
        """Bytes of the value in that body."""
        session = lane.session
        return self._size if session.flavour is self._flavour else len(self.value(session))


def _translation(raw: msgspec.Raw, codec: Codec) -> Callable[[Session], bytes | msgspec.Raw]:
    def translate(session: Session) -> bytes | msgspec.Raw:
        theirs = session.codec
        if not raw or (type(theirs) is type(codec) and theirs.lenient == codec.lenient):
            return raw
        encoded: bytes = theirs.encode(codec.decode(raw))
        return encoded

    return translate


class PeerLane:
    """A subscription of a peer.

    Attributes:
        peer: Whose it is.
        session: The peer's.
        connection: The peer's.
        id: Which of the peer's; 0: all of a peer that does not tell.
        group: Its queue group, or None.
        allowance: What it may be sent, if its publishers wait for it; else None.
        parked: What waits for it, in order.
        used: When it was last chosen in its group.
    """

    def __init__(
        self, peer: Peer, id: int, *, group: str | None = None, allowance: Allowance | None = None
    ) -> None:
        self.peer = peer
        self.session: Session = peer.protocol
        self.connection: Connection = peer.connection
        self.id = id
        self.group = group
        self.allowance = allowance
        self.parked: dict[Parked | Arrears, None] = {}
        self.used = 0
        self._missed: tuple[int, str] | None = None

    @property
    def open(self) -> bool:
        """Whether it can be given anything."""
        return self.session.state is _OPEN

    def must_wait(self, item: Item) -> bool:
        """Whether publishers have to wait for it."""
        return self.allowance is not None and not self.allowance

    def reluctance(self, item: Item) -> int:
        """How little it is to be chosen of a group: 0 ready, 1 slow, 2 publishers wait."""
        if self.parked or self.must_wait(item):
            return 2
        return int(self.connection.blocked)

    def miss(self, topic: str) -> None:
        """Note that it misses a publication; it is told as soon as it reads on."""
        count, first = self._missed or (0, topic)
        self._missed = count + 1, first

    def tell_missed(self) -> None:
        """Tell it what it missed."""
        if self._missed is not None and self.open:
            count, topic = self._missed
            self.session.miss(self.id, count, topic)
            self._missed = None


class OwnLane:
    """A subscription of the server itself; attributes as those of `PeerLane`.

    Attributes:
        subscription: It.
    """

    def __init__(self, subscription: Subscription[Any]) -> None:
        self.subscription = subscription
        self.group = subscription.group
        self.parked: dict[Parked | Arrears, None] = {}
        self.used = 0

    @property
    def open(self) -> bool:
        """Whether it can be given anything."""
        return not self.subscription.ended

    def must_wait(self, item: Item) -> bool:
        """Whether publishers have to wait for it."""
        subscription = self.subscription
        return subscription.backlog.blocks and self.open and not subscription.room(len(item.raw))

    def reluctance(self, item: Item) -> int:
        """As that of `PeerLane`; 3: full, and something would be lost."""
        if self.parked or self.must_wait(item):
            return 2
        return 0 if self.subscription.room(len(item.raw)) else 3

    def put(self, item: Item) -> bool:
        """Give it a publication; False if that is lost."""
        return self.subscription.put(item.topic, item.raw, item.codec, retained=item.retained)

    def miss(self, topic: str) -> None:
        """Note that it misses a publication."""
        self.subscription.miss(topic, 1)


Lane = PeerLane | OwnLane


class Parked:
    """A publication that waits for room in a lane, or in any of the lanes of a group.

    Attributes:
        item: It.
        lanes: Where it waits.
        tally: Who waits for it.
    """

    def __init__(self, item: Item, lanes: list[Lane], tally: Tally) -> None:
        self.item = item
        self.lanes = dict.fromkeys(lanes)
        self.tally = tally
        for lane in lanes:
            lane.parked[self] = None
        tally.waiting[self] = None

    def withdraw_from(self, lane: Lane) -> None:
        """Do not wait for this lane any more."""
        del lane.parked[self]
        del self.lanes[lane]

    def withdraw(self) -> None:
        """Wait nowhere any more."""
        for lane in self.lanes:
            del lane.parked[self]
        self.lanes.clear()


class Arrears:
    """Last values that a lane is to be given when it has room.

    One that is forgotten meanwhile, or has a successor, is not given: its successor was
    published to the lane as to every other.

    Args:
        names: Their topics, in order.
    """

    def __init__(self, lane: Lane, retained: Retained, names: list[str]) -> None:
        self._retained = retained
        self._before = retained.count
        self._names = names[::-1]
        lane.parked[self] = None

    def __len__(self) -> int:
        """How many are left, at most."""
        return len(self._names)

    def first(self) -> Item | None:
        """The next one; None if none is left."""
        while self._names:
            kept = self._retained.get(self._names[-1], self._before)
            if kept is not None:
                return Item.kept(kept)
            self._names.pop()
        return None

    def drop_first(self) -> None:
        """The next one is given now."""
        self._names.pop()

    def keep(self, wanted: Callable[[str], bool]) -> None:
        """Only these topics are still wanted."""
        self._names = [name for name in self._names if wanted(name)]


class Tally:
    """What becomes of one publication: the numbers of its `Receipt`, and what is waited for.

    Attributes:
        connections: Those it was queued for; one may be there twice.
        waiting: What of it waits for room.
    """

    def __init__(self, ack: Ack = "queued") -> None:
        self.ack = ack
        self._awaits_departures = ack != "queued"
        self.matched = self.queued = self.dropped = 0
        self.connections: list[Connection] = []
        self.waiting: dict[Parked, None] = {}
        self._delivered = 0
        self._departures: dict[asyncio.Future[bool], int] = {}
        self._room: asyncio.Future[None] | None = None

    @property
    def pending(self) -> bool:
        """Whether there is anything to wait for."""
        return bool(self.waiting or self._departures)

    def took(self, connection: Connection | None, count: int = 1) -> None:
        """So many subscriptions, of a peer or of our own, have it in their queue."""
        self.queued += count
        if connection is not None:
            self.connections.append(connection)
        if not self._awaits_departures:
            return
        if connection is None:
            self._delivered += count
            return
        departure = connection.departure()
        if departure.done():
            self._delivered += count * departure.result()
        else:
            self._departures[departure] = count

    def stop_waiting(self, parked: Parked) -> None:
        """One of those waits is over."""
        self.waiting.pop(parked, None)
        if not self.waiting and self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def wait_for_room(self, timeout: float | None) -> None:
        """Wait until nothing waits any more, so many seconds at most."""
        if self.waiting:
            self._room = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._room], timeout=timeout)

    async def wait_for_departures(self, timeout: float | None) -> None:
        """Wait until it has left to every peer, or never will, so many seconds at most."""
        if not self._departures:
            return
        done, _ = await asyncio.wait(self._departures, timeout=timeout)
        self._delivered += sum(self._departures[left] for left in done if left.result())

    def let_go(self) -> None:
        """Do not wait for departures any more."""
        for departure in self._departures:
            departure.cancel()

    def receipt(self) -> Receipt:
        """The numbers."""
        delivered = None if self.ack == "queued" else self._delivered
        return Receipt(self.matched, self.queued, self.dropped, delivered)
