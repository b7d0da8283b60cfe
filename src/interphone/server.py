"""Server: many peers at once."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType, TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, overload

import msgspec

from .address import Address, resolve
from .admission import Admission
from .awake import Latency, awake_on, check_latency
from .connection import Connection
from .declared import Declared
from .errors import (
    ConnectionClosed,
    InterphoneError,
    LocalProtocolError,
)
from .exchange import Exchange
from .handlers import Chain, Handlers, Tasks, handling, log_error, log_raised
from .hooks import Hook
from .host import Poll
from .inspector import Inspector
from .introspection import Introspection, Sources
from .limits import Limits
from .methods import Methods
from .peer import DEFAULT_TIMEOUT, Call, Peer, PeerEvents, reason_of
from .protocol.session import Session
from .subscription import (
    MAX_QUEUE,
    Ack,
    OverflowPolicy,
    Publication,
    Receipt,
    Subscription,
    TopicHandler,
    check_topic,
)
from .transports import Listener, listen, shares_memory

__all__ = ["Outcome", "Server"]

T = TypeVar("T")
AuthorizeT = TypeVar("AuthorizeT", bound="Callable[[Peer, Any], object]")
TopicHandlerT = TypeVar("TopicHandlerT", bound="Callable[[Publication[Any]], object]")


class Outcome(msgspec.Struct, Generic[T], frozen=True):
    """What one peer answered to a survey: a value or an error.

    Attributes:
        peer: Who was asked.
        value: Its answer; None if there is none.
        error: Why there is none, an `InterphoneError` or one declared here; or None.
    """

    peer: Peer
    value: T | None = None
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether it answered."""
        return self.error is None


class Server:
    """Serves an address to many peers at once.

        server = Server("myapp")

        @server.on_request
        async def echo(peer: Peer, data: object) -> object:
            return data

        async with server:
            await server.serve_forever()

    Entering is listening, leaving is closed. Handlers may be registered at any time; every
    `on_…` is a hook, `on_request` a chain (the first result that is not `PASS` answers).

    Args:
        address: A name (a socket in a private directory of this user), a path, `isdk_path(…)`,
            `net_ipc_path(…)`, `tcp_address(…)` or a `MemoryAddress`.
        limits: What each peer may cost.
        max_connections: Open connections; one more is refused.
        max_incomplete: Unfinished handshakes; one more evicts the oldest.
        max_subscriptions: Subscriptions of all peers together.
        max_retained: Topics that may have a last value.
        max_retained_bytes: The last values of all of them.
        generate_id: Makes the id of a new peer.
        compress: Grant compression to Node clients that ask for it.
        messagepack: Grant MessagePack to Node clients that ask for it.
        upgrade: Accept the HTTP upgrade in front of a connection.
        tls: For a TCP address.
        allowed_uids: Users that may connect over a Unix socket; default: only this one.
        heartbeat: Seconds of silence after which an interphone peer is asked for a sign of
            life, and again until it is given up; None: never. Node peers are never asked.
        dialect: What is spoken with interphone clients that can: "classic" is Node's, for
            debugging.
        debug: Show interphone peers the traceback when a handler raises.
        host: Has plain handlers run in the thread that polls it, unless they say otherwise.
        latency: "balanced" keeps the loop awake some tens of microseconds after a message, as
            long as messages come quickly and that pays; "low" always, and longer; "idle" never.
            On systems with ``sched_yield``; elsewhere nothing stays awake.
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | Address,
        *,
        limits: Limits | None = None,
        max_connections: int = 4096,
        max_incomplete: int = 64,
        max_subscriptions: int = 65_536,
        max_retained: int = 4_096,
        max_retained_bytes: int = 4 * 1024 * 1024,
        generate_id: Callable[[], str] | None = None,
        compress: bool = False,
        messagepack: bool = False,
        upgrade: bool = False,
        tls: ssl.SSLContext | None = None,
        allowed_uids: Iterable[int] | None = None,
        heartbeat: float | None = 20.0,
        dialect: Literal["native", "classic"] = "native",
        debug: bool = False,
        host: Poll | None = None,
        latency: Latency = "balanced",
    ) -> None:
        check_latency(latency)
        if dialect not in ("native", "classic"):
            raise ValueError(f"the dialect is 'native' or 'classic', not {dialect!r}")
        self.limits = limits or Limits()
        self._address = resolve(address)
        self._options = {
            "limits": self.limits,
            "compress": compress,
            "messagepack": messagepack,
            "dialects": ("native", "classic") if dialect == "native" else ("classic",),
            "upgrades": upgrade,
            "heartbeat": heartbeat,
            "pools": shares_memory(self._address),
        }
        self._latency: Latency = latency
        self._tls = tls
        self._allowed_uids = None if allowed_uids is None else frozenset(allowed_uids)
        self._listener: Listener | None = None
        self._closing: asyncio.Future[None] | None = None
        self._finished: asyncio.Future[None] | None = None
        self._peers: dict[str, Peer] = {}
        self._starting = False
        self._paused = False
        self._tasks = Tasks(self._report_handler, host)
        self._exchange = Exchange(
            max_subscriptions=max_subscriptions,
            max_retained=max_retained,
            max_retained_bytes=max_retained_bytes,
            tasks=self._tasks,
        )
        self._admission = Admission(
            peers=self._peers,
            admit=self._admit,
            report=self._report,
            tasks=self._tasks,
            generate_id=generate_id,
            max_connections=max_connections,
            max_incomplete=max_incomplete,
        )
        self.on_ready: Hook[[Address]] = Hook(self._tasks)
        self.on_connect: Hook[[Peer, Any]] = Hook(self._tasks)
        self.on_disconnect: Hook[[Peer, Any]] = Hook(self._tasks)
        self.on_message: Hook[[Peer, Any]] = Hook(self._tasks)
        self.on_request: Chain[[Peer, Any]] = Chain(hosted=host is not None)
        self.method = Methods(Call, hosted=host is not None)
        self.error = Declared(debug=debug)
        self.on_error: Hook[[Exception, Peer | None]] = Hook(self._tasks)
        self.on_close: Hook[[]] = Hook(self._tasks, awaited=False)
        self._handlers = Handlers(
            tasks=self._tasks,
            on_message=self.on_message,
            on_request=self.on_request,
            methods=self.method,
            errors=self.error,
            told=True,
        )
        self._introspection = Introspection(
            "server",
            Sources(
                address=lambda: self.address,
                peers=self._peers.values,
                topics=self._exchange.names,
                publications_dropped=lambda: self._exchange.dropped,
                evicted=lambda: self._admission.evicted,
            ),
            self._handlers,
            self.limits,
        )
        self._inspector = Inspector(self._peers.values, self._handlers)
        self._handlers.builtins = self._introspection.methods | self._inspector.methods
        self._events = PeerEvents(
            made=self._made,
            hello=self._admission.asked,
            opened=lambda peer, welcome: None,  # only a client hears a welcome
            subscribe=self._exchange.subscribe,
            unsubscribe=self._exchange.unsubscribe,
            publish=self._exchange.publish,
            forget=self._exchange.forget,
            allowed=self._exchange.allowed,
            publication=lambda peer, topic, raw, marks: None,  # only a client hears a publication
            missed=lambda peer, id, count, topic: None,
            report=self._report_of,
            raised=self._raised,
            lost=self._lost,
        )

    def __repr__(self) -> str:
        state = "ready" if self.ready else "closed"
        return f"<Server {self.address} {state}, {len(self._peers)} peers>"

    # Life

    @property
    def address(self) -> Address:
        """Where it listens; after `start` the place it really has (the port, for port 0)."""
        return self._address if self._listener is None else self._listener.address

    @property
    def ready(self) -> bool:
        """Whether it listens."""
        return self._listener is not None and self._closing is None

    @property
    def peers(self) -> Mapping[str, Peer]:
        """The open peers by id."""
        return MappingProxyType(self._peers)

    async def start(self) -> None:
        """Listen.

        Raises:
            AddressInUse: A live server is there, or a file that is no socket.
            AddressError: The place is not safe, or does not exist.
            LocalProtocolError: It is started already.
        """
        if self._listener is not None or self._starting:
            raise LocalProtocolError("the server is started already")
        self._starting = True
        try:
            self._listener = await listen(
                self._address, self._new_connection, allowed_uids=self._allowed_uids, tls=self._tls
            )
        finally:
            self._starting = False
        self._introspection.begin()
        self.on_ready.fire(self.address)

    async def serve_forever(self) -> None:
        """Serve until `close`, starting first if need be. Cancelling it closes the server."""
        if self._listener is None:
            await self.start()
        if self._finished is None:
            self._finished = asyncio.get_running_loop().create_future()
        try:
            await asyncio.shield(self._finished)
        finally:
            await self.close()

    async def close(
        self,
        reason: object = "Server was shut down",
        *,
        grace: float = 5.0,
        allow_reconnect: bool = False,
    ) -> None:
        """Stop listening, say goodbye to every peer, end the handlers. Idempotent.

        Args:
            reason: Peers are told.
            grace: Seconds that running handlers have to finish and answer. A handler that
                closes its own server is not waited for, and cannot answer any more.
            allow_reconnect: Whether clients may come back (to a server that is restarted).
        """
        if self._listener is None:
            return
        if self._closing is not None:
            await asyncio.shield(self._closing)
            return
        loop = asyncio.get_running_loop()
        self._closing = loop.create_future()
        until = loop.time() + grace
        self._listener.close()
        self._inspector.close()
        try:
            self._abort_all(reason, but={*self._peers.values()})
            me = handling()
            goodbyes = (
                peer.close_besides(me, reason, grace=grace, reconnect=allow_reconnect)
                for peer in self._peers.values()
            )
            await asyncio.gather(*goodbyes, return_exceptions=True)
        except asyncio.CancelledError:
            until = 0
            raise
        finally:
            await self._tidy(reason, max(0.0, until - loop.time()))

    def _abort_all(
        self, reason: object, *, but: AbstractSet[Peer] = frozenset()
    ) -> list[asyncio.Future[None]]:
        peers = (*self._peers.values(), *self._admission.waiting)
        aborted = [peer.connection for peer in peers if peer not in but]
        for connection in aborted:
            connection.abort(ConnectionClosed(reason))
        return [connection.closed for connection in aborted]

    async def _tidy(self, reason: object, grace: float) -> None:
        try:
            if ending := self._abort_all(reason):
                await asyncio.wait(ending)
            self._exchange.close()
            await self._tasks.close(grace)
            for coroutine in self.on_close.start():
                await self.on_close.guard(coroutine, ())
        finally:
            self._listener = None
            for future in (self._closing, self._finished):
                if future is not None and not future.done():
                    future.set_result(None)
            self._closing = self._finished = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close(grace=5.0 if exc is None else 0)

    # Letting peers in

    def authorize(self, decide: AuthorizeT) -> AuthorizeT:
        """Decide who comes in; a decorator for one function ``(peer, payload)``.

        It runs before the client is answered; the peer cannot be sent anything yet. Raise
        `Refuse` with a reason to turn it away; what you return is `peer.session`.

        Raises:
            ValueError: There is one already.
        """
        if self._admission.authorize is not None:
            raise ValueError("the server has an authorize function already")
        self._admission.authorize = decide
        return decide

    def _new_connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        session = Session("server", now=loop.time(), **self._options)  # type: ignore[arg-type]  # the dict of its options
        return Peer(self._events, self._handlers, session).connection

    def _made(self, peer: Peer) -> None:
        peer.connection.awake = awake_on(asyncio.get_running_loop(), self._latency)
        if self._closing is None:
            self._admission.came(peer)
        else:
            peer.connection.abort()

    def _admit(self, peer: Peer) -> None:
        """A peer is let in. Coroutines of on_connect take a step before its first message."""
        self._peers[peer.id] = peer
        self._exchange.welcome_back(peer)
        if self._paused:
            peer.pause()
        self._inspector.came(peer)
        self.on_connect.fire(peer, peer.payload)

    def _lost(self, peer: Peer, error: InterphoneError) -> None:
        """A connection ended."""
        self._admission.left(peer)
        self._introspection.left(peer)
        self._inspector.left(peer)
        remember = not peer.interphone and not isinstance(error, ConnectionClosed)
        self._exchange.drop(peer, remember=remember)
        if self._peers.get(peer.id) is peer:
            del self._peers[peer.id]
            peer.inbox.when_read(lambda: self.on_disconnect.fire(peer, reason_of(error)))

    # To many

    async def broadcast(self, data: object) -> Receipt:
        """Send a message to every peer. None waits for another, and no failure stops it.

        Raises:
            PayloadError: `data` has no form on the wire.
        """
        return await self._exchange.broadcast(tuple(self._peers.values()), data)

    @overload
    async def survey(
        self, data: object, *, returns: type[T], timeout: float | None = DEFAULT_TIMEOUT
    ) -> list[Outcome[T]]: ...
    @overload
    async def survey(
        self, data: object, *, returns: Any = Any, timeout: float | None = DEFAULT_TIMEOUT
    ) -> list[Outcome[Any]]: ...
    async def survey(
        self, data: object, *, returns: Any = Any, timeout: float | None = DEFAULT_TIMEOUT
    ) -> list[Outcome[Any]]:
        """Ask every peer the same; return one outcome for each, in the order of `peers`."""
        return await self._ask_all(
            lambda peer: peer.request(data, returns=returns, timeout=timeout)
        )

    async def ping(self, *, timeout: float | None = DEFAULT_TIMEOUT) -> list[Outcome[float]]:
        """Ping every peer; return one outcome for each: seconds, or an error."""
        return await self._ask_all(lambda peer: peer.ping(timeout=timeout))

    async def _ask_all(self, ask: Callable[[Peer], Awaitable[T]]) -> list[Outcome[T]]:
        known: tuple[type[Exception], ...] = (InterphoneError, *self.error.classes)

        async def outcome(peer: Peer) -> Outcome[T]:
            try:
                return Outcome(peer, await ask(peer))
            except known as exc:
                return Outcome(peer, error=exc)

        return list(await asyncio.gather(*map(outcome, tuple(self._peers.values()))))

    def pause(self) -> None:
        """Stop reading what the peers send, until `resume`; new peers are paused, too."""
        self._paused = True
        for peer in self._peers.values():
            peer.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._paused = False
        for peer in self._peers.values():
            peer.resume()

    # Publish and subscribe

    async def publish(
        self,
        topic: str,
        value: object,
        *,
        retain: bool = False,
        ack: Ack = "queued",
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> Receipt:
        """Publish to every peer that subscribed to the topic, and to this side's own.

        It returns when the publication is queued for each of them; for subscribers that are
        slow it waits 10 ms at most. One that falls more than `Limits.hard_queue` behind, or
        takes nothing for `Limits.stalled_after`, is cut off and counted as dropped.

        Cancelling is safe: whoever had no room does not get it.

        Args:
            topic: A name, no pattern.
            value: Any value the wire carries.
            retain: Whether to keep it as the topic's last value, for subscriptions to come.
            ack: "delivered" waits until it has left to every peer it was queued for, or never
                will: `Receipt.delivered` counts those it has left to.
            timeout: Seconds to wait for subscriptions with ``overflow="block"``, which then
                count as dropped, and for "delivered"; None waits without limit.

        Raises:
            PayloadError: `value` has no form on the wire.
            TopicError: `topic` is no name for one.
            Overloaded: There are too many last values; nothing was published.
        """
        check_topic(topic)
        return await self._exchange.publish_local(
            topic, value, retain=retain, ack=ack, timeout=timeout
        )

    async def forget(self, topic: str) -> bool:
        """Keep no last value of the topic any more; return whether there was one."""
        check_topic(topic)
        return self._exchange.retained.forget(topic)

    @overload
    def subscribe(
        self,
        *topics: str,
        of: type[T],
        overflow: OverflowPolicy = ...,
        queue: int = ...,
        group: str | None = ...,
    ) -> Subscription[Publication[T]]: ...
    @overload
    def subscribe(
        self,
        *topics: str,
        of: Any = Any,
        overflow: OverflowPolicy = ...,
        queue: int = ...,
        group: str | None = ...,
    ) -> Subscription[Publication[Any]]: ...
    def subscribe(
        self,
        *topics: str,
        of: Any = Any,
        overflow: OverflowPolicy = "disconnect",
        queue: int = MAX_QUEUE,
        group: str | None = None,
    ) -> Subscription[Any]:
        """Hear what is published: ``async with server.subscribe("a.*") as items``.

        The arguments are those of `Client.subscribe`.
        """
        return Subscription(self._exchange, topics, of, overflow=overflow, queue=queue, group=group)

    def on_topic(
        self,
        *topics: str,
        of: Any = Any,
        overflow: OverflowPolicy = "drop_oldest",
        group: str | None = None,
    ) -> Callable[[TopicHandlerT], TopicHandlerT]:
        """Handle what is published, in order: ``@server.on_topic("a.*", of=Item)``."""

        def register(handler: TopicHandlerT) -> TopicHandlerT:
            hub, tasks = self._exchange, self._tasks
            hub.handle(
                TopicHandler(
                    hub, topics, of, handler, tasks, tasks.start, overflow=overflow, group=group
                )
            )
            return handler

        return register

    # Failures

    def _report_of(self, peer: Peer, error: Exception) -> None:
        self._report(error, peer)

    def _raised(self, peer: Peer, error: Exception) -> None:
        """A handler raised instead of answering."""
        log_raised(error, peer)
        self.on_error.fire(error, peer)

    def _report_handler(self, error: Exception, args: tuple[object, ...]) -> None:
        """A hook's handler raised. Who hears of errors and raises is only logged."""
        peer = args[0] if args and isinstance(args[0], Peer) else None
        if args and isinstance(args[0], Exception):
            log_error(error, self)
        else:
            self._report(error, peer)

    def _report(self, error: Exception, peer: Peer | None) -> None:
        log_error(error, peer or self)
        self.on_error.fire(error, peer)
