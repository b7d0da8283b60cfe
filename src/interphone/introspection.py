"""Introspection: what a Server or Client tells of itself: `$info`, `$describe` and `$stats`.

They are methods that the library answers, to interphone ends of the same user and to nobody
else: the kernel says who asks, and over TCP nobody does.
"""

from __future__ import annotations

import inspect
import os
import platform
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from functools import partial
from time import perf_counter
from typing import Any, Literal, TypeVar

import msgspec

from .handlers import Handlers, Place
from .limits import Limits
from .methods import Method
from .peer import Call, Peer
from .protocol.events import Counts, Role
from .protocol.messages import CAPABILITIES, POOL, VERSION
from .protocol.pool import PoolCounts
from .signatures import Kind, Param
from .version import __version__

__all__ = [
    "Description",
    "Info",
    "Introspection",
    "MethodDescription",
    "MethodStats",
    "ParamDescription",
    "Sources",
    "Stats",
]

Schema = dict[str, Any]
CountsT = TypeVar("CountsT", Counts, PoolCounts)


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers: the result of `$info`.

    Attributes:
        role: "server" or "client".
        address: Where it listens, or is connected to.
        pid: Its process.
        interphone: Its version of this library.
        wire: The highest version of the wire that it speaks.
        dialect: What is spoken on the connection that asked.
        capabilities: What it can do beyond that version, as words.
        python: Its version of Python.
        started: When it began to listen, or to connect.
        uptime: Seconds since then.
        limits: What a peer may cost it.
    """

    role: Role
    address: str
    pid: int
    interphone: str
    wire: int
    dialect: Literal["native", "classic"]
    capabilities: tuple[str, ...]
    python: str
    started: datetime
    uptime: float
    limits: Limits


class ParamDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter of a method.

    Attributes:
        name: Its name.
        type: Its annotation, as text.
        required: Whether it must be given.
        kind: "positional", "either" (by place or by name), "named", or "extra" (any number).
        schema: Its JSON schema; None if there is none.
    """

    name: str
    type: str
    required: bool
    kind: Kind
    schema: Schema | None = None


class MethodDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A method that may be called.

    Attributes:
        name: Its name.
        doc: Its docstring.
        params: What it takes.
        returns: The type of its result, or of each piece if it streams, as text.
        returns_schema: The JSON schema of that; None if there is none.
        place: Where it runs: "loop", "thread" or "inline".
        limit: How many calls of it may be under way; None: any number.
        stream: Whether it yields its answer piece by piece.
        reads: The type of the items that its caller sends piece by piece, as text; None if it
            reads none.
    """

    name: str
    doc: str
    params: tuple[ParamDescription, ...]
    returns: str
    returns_schema: Schema | None = None
    place: Place
    limit: int | None = None
    stream: bool = False
    reads: str | None = None


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What may be asked of the one who answers: the result of `$describe`.

    Attributes:
        methods: Its methods, by name.
        errors: Names of the exceptions that it has declared.
        topics: Topics that somebody is subscribed to, at a server; none at a client.
    """

    methods: tuple[MethodDescription, ...]
    errors: tuple[str, ...]
    topics: tuple[str, ...]


class MethodStats(msgspec.Struct, frozen=True, kw_only=True):
    """How a method is used.

    Attributes:
        name: Its name.
        calls: How often it was run.
        failures: How often it raised, also on purpose.
        running: How often it runs now.
    """

    name: str
    calls: int
    failures: int
    running: int


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """How the one who answers is doing: the result of `$stats`.

    What is counted is counted since it was made, and includes peers that are gone.

    Attributes:
        uptime: Seconds since it began to listen, or to connect.
        peers: Open connections.
        methods: How its methods are used, by name.
        inflight: Requests and messages of its peers that are being handled; this one, too.
        pending: Its own requests that wait for an answer.
        backlog: Bytes that its peers have not taken yet.
        unheard: Messages that came when nobody listened.
        dropped: What else was dropped, by reason.
        publications_dropped: Publications and broadcasts that a peer was too slow for, at a
            server; at a client those that its open subscriptions lost.
        evicted: Unfinished handshakes that were cut off to make room.
        pool: What became of large payloads, where memory can be shared.
    """

    uptime: float
    peers: int
    methods: tuple[MethodStats, ...]
    inflight: int
    pending: int
    backlog: int
    unheard: int
    dropped: Counts
    publications_dropped: int
    evicted: int
    pool: PoolCounts = msgspec.field(default_factory=PoolCounts)


class Sources(msgspec.Struct, frozen=True):
    """Where the facts of one Server or Client come from."""

    address: Callable[[], object]
    peers: Callable[[], Collection[Peer]]
    topics: Callable[[], Iterable[str]]
    publications_dropped: Callable[[], int]
    evicted: Callable[[], int]


class Introspection:
    """The facts about one Server or Client, and the methods that tell them.

    Attributes:
        methods: How to make the methods, by name.
    """

    def __init__(self, role: Role, sources: Sources, handlers: Handlers, limits: Limits) -> None:
        self._role = role
        self._sources = sources
        self._handlers = handlers
        self._limits = limits
        self._gone = Counts()
        self._gone_pool = PoolCounts()
        self._gone_unheard = 0
        self.begin()
        own: dict[str, Callable[..., object]] = {
            "$info": self.info,
            "$describe": self.describe,
            "$stats": self.stats,
        }
        self.methods: dict[str, Callable[[], Method]] = {
            name: partial(Method, name, function, call_type=Call, on="inline")
            for name, function in own.items()
        }

    def begin(self) -> None:
        """It starts now."""
        self._started, self._began = datetime.now(UTC), perf_counter()

    def left(self, peer: Peer) -> None:
        """A peer is gone: keep what was counted."""
        self._gone = _sum((self._gone, peer.counts))
        self._gone_pool = _sum((self._gone_pool, peer.pool))
        self._gone_unheard += peer.unheard

    def info(self, call: Call) -> Info:
        """Say who this is."""
        session = call.peer.protocol
        return Info(
            role=self._role,
            address=str(self._sources.address()),
            pid=os.getpid(),
            interphone=__version__,
            wire=VERSION,
            dialect="native" if session.native else "classic",
            capabilities=(*CAPABILITIES, POOL) if session.pools else CAPABILITIES,
            python=platform.python_version(),
            started=self._started,
            uptime=perf_counter() - self._began,
            limits=self._limits,
        )

    def describe(self) -> Description:
        """Say what may be asked here."""
        return Description(
            methods=tuple(_description_of(method) for method in self._handlers.methods),
            errors=tuple(self._handlers.errors),
            topics=tuple(sorted(self._sources.topics())),
        )

    def stats(self) -> Stats:
        """Say how things are going."""
        peers, running = self._sources.peers(), self._handlers.running
        return Stats(
            uptime=perf_counter() - self._began,
            peers=len(peers),
            methods=tuple(
                MethodStats(
                    name=method.name,
                    calls=method.calls,
                    failures=method.failures,
                    running=running.get(method.name, 0),
                )
                for method in self._handlers.methods
            ),
            inflight=sum(peer.inflight for peer in peers),
            pending=sum(peer.pending for peer in peers),
            backlog=sum(peer.backlog for peer in peers),
            unheard=self._gone_unheard + sum(peer.unheard for peer in peers),
            dropped=_sum((self._gone, *(peer.counts for peer in peers))),
            publications_dropped=self._sources.publications_dropped(),
            evicted=self._sources.evicted(),
            pool=_sum((self._gone_pool, *(peer.pool for peer in peers))),
        )


def _sum(counts: tuple[CountsT, ...]) -> CountsT:
    rows = [msgspec.structs.astuple(each) for each in counts]
    return type(counts[0])(*map(sum, zip(*rows, strict=True)))


def _description_of(method: Method) -> MethodDescription:
    return MethodDescription(
        name=method.name,
        doc=method.doc,
        params=tuple(map(_param_description_of, method.params)),
        returns=inspect.formatannotation(method.returns),
        returns_schema=_schema_of(method.returns),
        place=method.handler.place,
        limit=method.limit,
        stream=method.stream,
        reads=None if method.reads is None else inspect.formatannotation(method.reads),
    )


def _param_description_of(param: Param) -> ParamDescription:
    return ParamDescription(
        name=param.name,
        type=inspect.formatannotation(param.type),
        required=param.required,
        kind=param.kind,
        schema=_schema_of(param.type),
    )


def _schema_of(annotation: Any) -> Schema | None:
    """Return the JSON schema of a type; None of what msgspec cannot describe."""
    try:
        return msgspec.json.schema(annotation)
    except (TypeError, ValueError, RecursionError):
        return None
