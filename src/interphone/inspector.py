"""Inspector: shows what goes between one server and its peers, to whoever looks on: `$tap`.

It is a method that the library answers, with a stream of `Sighting`s, to interphone ends of
the same user. When the first looks on, the open connections of the server are watched
(`Session.watch`); when the last has left, none is any more. So it costs nothing until then.

- A connection from which somebody looks on is not watched: what it is shown would be
  shown again, for ever.
- Nobody is waited for. Who reads too slowly misses sightings, and is told how many.
- Payloads are cut and secrets left out before they leave the server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from fnmatch import fnmatchcase
from functools import partial
from time import perf_counter, time
from typing import Annotated, NamedTuple

import msgspec

from .errors import MethodNotFound
from .handlers import Handlers
from .methods import Method
from .peer import Call, Peer
from .protocol.events import Way
from .protocol.messages import (
    CANCEL,
    DEMAND,
    GRANT,
    INPUT,
    ITEM,
    OPEN,
    PING,
    PONG,
    PROGRESS,
    REQUEST,
    RESPONSE,
    Packet,
    read_failure,
)
from .sightings import MAX_SHOWN, Sighting, SightingKind, Subject, subject_of, text_of

__all__ = ["MAX_QUEUE", "Inspector"]

MAX_QUEUE = 1_024
"""Sightings that wait for one who looks on; what comes beyond is missed."""

MAX_ASKED = 4_096
"""Requests of one peer, each way, that are remembered until they are answered."""

MAX_NONCE = 75  # characters; a Node peer's may be anything

Characters = Annotated[int, msgspec.Meta(ge=0, le=MAX_SHOWN)]

_ASKING = {REQUEST: "request", OPEN: "request", PING: "ping"}
_OF_THE_ASKER = {INPUT: "request", CANCEL: "request", GRANT: "request"}
_OF_THE_ANSWERER = {
    RESPONSE: "request",
    ITEM: "request",
    DEMAND: "request",
    PROGRESS: "request",
    PONG: "ping",
}
_BACK: dict[Way, Way] = {"in": "out", "out": "in"}


class Inspector:
    """Shows what goes between a server and its peers.

    Attributes:
        methods: How to make `$tap`, by its name.
    """

    def __init__(self, peers: Callable[[], Collection[Peer]], handlers: Handlers) -> None:
        self._peers = peers
        self._handlers = handlers
        self._taps: list[_Tap] = []
        self._watched: dict[Peer, _Memory] = {}
        self.methods: dict[str, Callable[[], Method]] = {
            "$tap": partial(Method, "$tap", self.tap, call_type=Call)
        }

    async def tap(
        self,
        call: Call,
        *,
        kinds: list[SightingKind] | None = None,
        peer: str | None = None,
        name: str | None = None,
        cut: Characters = 200,
        redact: bool = True,
    ) -> AsyncIterator[Sighting]:
        """Show what goes by, from now on, but for what the caller's own connection carries.

        Args:
            call: Who looks on.
            kinds: Show only these.
            peer: Show only what the peer of this id says and hears.
            name: Show only what is about methods and topics that fit this shell pattern.
            cut: Characters of each payload; 0: none is shown.
            redact: Leave out values whose names speak of a secret.
        """
        tap = _Tap(call.peer, kinds, peer, name, cut, redact=redact)
        self._taps.append(tap)
        self._look_anew()
        try:
            yield Sighting(time=time(), kind="tap", peer=call.peer.id)
            while (sighting := await tap.next()) is not None:
                yield sighting
        finally:
            self._taps.remove(tap)
            self._look_anew()

    def close(self) -> None:
        """Show what was seen, and then no more."""
        for tap in self._taps:
            tap.close()

    def came(self, peer: Peer) -> None:
        """A peer was let in."""
        if self._taps:
            self._watch(peer)
            self._tell(peer, "connect")

    def left(self, peer: Peer) -> None:
        """A peer is gone."""
        if self._watched.pop(peer, None) is not None:
            self._tell(peer, "disconnect")

    # Looking

    def _look_anew(self) -> None:
        """Watch every peer while anybody looks on, but for those from where they do."""
        lookers = {tap.looker for tap in self._taps}
        chosen = {peer for peer in self._peers() if peer not in lookers} if lookers else set()
        for peer in [peer for peer in self._watched if peer not in chosen]:
            del self._watched[peer]
            peer.protocol.watch(None)
        for peer in chosen - self._watched.keys():
            self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        self._watched[peer] = memory = _Memory()
        peer.protocol.watch(partial(self._see, peer, memory))

    def _see(self, peer: Peer, memory: _Memory, way: Way, packet: Packet, size: int) -> None:
        """A packet goes by: note what is needed to understand its answer, and show it."""
        subject = subject_of(peer.protocol.codec, packet, interphone=peer.interphone)
        asked, took = memory.place(way, packet, subject)
        seen = Sighting(
            time=time(),
            kind=subject.kind,
            peer=peer.id,
            pid=_pid_of(peer),
            way=way,
            name=subject.name if asked is None else asked.name,
            nonce=None if packet.n is None else str(packet.n)[:MAX_NONCE],
            size=size,
            took=took,
            code=None if packet.e is None else read_failure(packet.e).code,
        )
        for tap in self._taps:
            if tap.wants(seen):
                value = self._value(peer, packet, subject, tap) if tap.cut else None
                tap.put(msgspec.structs.replace(seen, value=value) if value else seen)

    def _tell(self, peer: Peer, kind: SightingKind) -> None:
        seen = Sighting(time=time(), kind=kind, peer=peer.id, pid=_pid_of(peer))
        for tap in self._taps:
            if tap.wants(seen):
                tap.put(seen)

    def _value(self, peer: Peer, packet: Packet, subject: Subject, tap: _Tap) -> str:
        codec = peer.protocol.codec
        text = text_of(codec, packet, subject, redact=tap.redact, names=self._names_of)
        return text if len(text) <= tap.cut else f"{text[: tap.cut]}…"

    def _names_of(self, method: str) -> list[str]:
        try:
            params = self._handlers.methods.get(method).params
        except MethodNotFound:
            return []
        return [param.name for param in params if param.kind in ("positional", "either")]


def _pid_of(peer: Peer) -> int | None:
    return getattr(peer.credentials, "pid", None)


class _Asked(NamedTuple):
    name: str | None
    at: float


class _Memory:
    """The requests of one connection that wait for an answer, since it is watched."""

    def __init__(self) -> None:
        self._asked: dict[Way, dict[tuple[str, str], _Asked]] = {"in": {}, "out": {}}

    def place(
        self, way: Way, packet: Packet, subject: Subject
    ) -> tuple[_Asked | None, float | None]:
        """What request a packet belongs to, and how long that took if this is its answer."""
        now = perf_counter()
        if packet.t in _ASKING:
            waiting, key = self._asked[way], (_ASKING[packet.t], str(packet.n))
            if len(waiting) >= MAX_ASKED:
                del waiting[next(iter(waiting))]
            waiting[key] = _Asked(subject.name, now)
            return None, None
        if packet.t in _OF_THE_ASKER:
            return self._asked[way].get((_OF_THE_ASKER[packet.t], str(packet.n))), None
        if packet.t not in _OF_THE_ANSWERER:
            return None, None
        waiting, key = self._asked[_BACK[way]], (_OF_THE_ANSWERER[packet.t], str(packet.n))
        if packet.t not in (RESPONSE, PONG):
            return waiting.get(key), None
        asked = waiting.pop(key, None)
        return asked, None if asked is None else now - asked.at


class _Tap:
    """One who looks on: what it wants to see, and what waits for it."""

    def __init__(
        self,
        looker: Peer,
        kinds: list[SightingKind] | None,
        peer: str | None,
        name: str | None,
        cut: int,
        *,
        redact: bool,
    ) -> None:
        self.looker = looker
        self.cut = cut
        self.redact = redact
        self._kinds = None if kinds is None else frozenset(kinds)
        self._peer = peer
        self._name = name
        self._queue: deque[Sighting] = deque()
        self._missed = 0
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def wants(self, seen: Sighting) -> bool:
        """Whether it wants to see this."""
        return (
            (self._kinds is None or seen.kind in self._kinds)
            and (self._peer is None or seen.peer == self._peer)
            and (self._name is None or fnmatchcase(seen.name or "", self._name))
        )

    def put(self, seen: Sighting) -> None:
        """Keep it until it is taken, if there is room."""
        if len(self._queue) >= MAX_QUEUE:
            self._missed += 1
            return
        if self._missed:
            seen, self._missed = msgspec.structs.replace(seen, missed=self._missed), 0
        self._queue.append(seen)
        self._notify()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._notify()

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Sighting | None:
        """Wait for the next one; None when there will be no more."""
        while not self._queue:
            if self._closed:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._queue.popleft()
