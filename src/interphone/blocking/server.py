"""Server: many peers at once, for programs without an event loop."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, overload

import msgspec

from ..address import Address
from ..awake import Latency
from ..errors import InterphoneError, LocalProtocolError
from ..host import Poll
from ..limits import DEFAULT_TIMEOUT, MAX_QUEUE, Limits
from ..peer import Peer as AsyncPeer
from ..server import Outcome as AsyncOutcome
from ..server import Server as AsyncServer
from ..subscription import Ack, OverflowPolicy, Publication, Receipt
from .peer import Call, Peer
from .seat import Chain, Hook, Seat, check_plain
from .sequences import Subscription

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
    """Serves an address to many peers at once, from a thread of its own.

        server = Server("myapp")

        @server.method
        def add(a: int, b: int) -> int:
            return a + b

        with server:
            server.serve_forever()

    Entering is listening, leaving is closed. The arguments are those of `interphone.Server`.
    Handlers are plain functions; they run in a bounded pool of threads, or in the host's
    thread where there is one, and may call every method here and of their peer.
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
        server = self._server = AsyncServer(
            address,
            limits=limits,
            max_connections=max_connections,
            max_incomplete=max_incomplete,
            max_subscriptions=max_subscriptions,
            max_retained=max_retained,
            max_retained_bytes=max_retained_bytes,
            generate_id=generate_id,
            compress=compress,
            messagepack=messagepack,
            upgrade=upgrade,
            tls=tls,
            allowed_uids=allowed_uids,
            heartbeat=heartbeat,
            dialect=dialect,
            debug=debug,
            host=host,
            latency=latency,
        )
        seat = self._seat = Seat(host, Peer, _not_started)
        self.on_ready: Hook[[Address]] = Hook(seat, server.on_ready)
        self.on_connect: Hook[[Peer, Any]] = Hook(seat, server.on_connect)
        self.on_disconnect: Hook[[Peer, Any]] = Hook(seat, server.on_disconnect)
        self.on_message: Hook[[Peer, Any]] = Hook(seat, server.on_message, in_turn=False)
        self.on_request: Chain[[Peer, Any]] = Chain(seat, server.on_request)
        self.method = server.method.inject(Call, lambda call: Call(call, seat))
        self.error = server.error
        self.on_error: Hook[[Exception, Peer | None]] = Hook(seat, server.on_error)
        self.on_close: Hook[[]] = Hook(seat, server.on_close)

    def __repr__(self) -> str:
        return repr(self._server)

    # Life

    @property
    def limits(self) -> Limits:
        """What each peer may cost."""
        return self._server.limits

    @property
    def address(self) -> Address:
        """Where it listens; after `start` the place it really has (the port, for port 0)."""
        return self._server.address

    @property
    def ready(self) -> bool:
        """Whether it listens."""
        return self._server.ready

    @property
    def peers(self) -> Mapping[str, Peer]:
        """The open peers by id, as they are now."""
        peers = self._seat.call(lambda: dict(self._server.peers))
        return MappingProxyType({id: self._seat.view(peer) for id, peer in peers.items()})

    def start(self) -> None:
        """Listen; returns when it does.

        Raises:
            Everything `interphone.Server.start` raises.
        """
        self._seat.take(self)
        try:
            self._seat.run(self._server.start)
        except LocalProtocolError:  # it is started, or another thread is about to
            raise
        except BaseException:
            self._end(None, grace=0)  # it may listen although the waiting was interrupted
            raise

    def serve_forever(self) -> None:
        """Serve until `close`, starting first if need be. Ctrl-C closes the server."""
        self._seat.take(self)
        try:
            self._seat.run(self._server.serve_forever, serve=True)
        finally:
            if not self._server.ready:  # else it could not start, being started
                self._seat.leave(self)

    def close(
        self,
        reason: object = "Server was shut down",
        *,
        grace: float = 5.0,
        allow_reconnect: bool = False,
    ) -> None:
        """Stop listening, say goodbye to every peer, end the handlers. Idempotent.

        In the host's thread its handlers are run meanwhile. A handler that closes its own
        server waits for itself, as long as `grace`.
        """
        if not self._seat.taken:
            self._seat.leave(self)  # the parent process goes on to serve
        else:
            try:
                self._seat.run(
                    lambda: self._server.close(
                        reason, grace=grace, allow_reconnect=allow_reconnect
                    ),
                    serve=True,
                )
            finally:
                self._seat.leave(self)

    def _end(self, reason: object, *, grace: float) -> None:
        if self._server.ready:
            self.close(reason, grace=grace)
        else:
            self._seat.leave(self)

    async def abandon(self, grace: float) -> None:
        """End, because the program does; for the portal."""
        await self._server.close(grace=grace)
        self._seat.vacate()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(grace=5.0 if exc is None else 0)

    # Letting peers in

    def authorize(self, decide: AuthorizeT) -> AuthorizeT:
        """Decide who comes in; a decorator for one function ``(peer, payload)``.

        It runs in a thread for handlers, before the client is answered; the peer cannot be sent
        anything yet. Raise `Refuse` with a reason to turn it away; what you return is
        `peer.session`.

        Raises:
            ValueError: There is one already, or this is a coroutine function.
        """
        check_plain(decide)

        async def decide_in_thread(peer: AsyncPeer, payload: Any) -> object:
            return await self._seat.portal.in_worker(decide, self._seat.view(peer), payload)

        self._server.authorize(decide_in_thread)
        return decide

    # To many

    def broadcast(self, data: object) -> Receipt:
        """As `interphone.Server.broadcast`."""
        return self._seat.run(lambda: self._server.broadcast(data))

    @overload
    def survey(
        self, data: object, *, returns: type[T], timeout: float | None = DEFAULT_TIMEOUT
    ) -> list[Outcome[T]]: ...
    @overload
    def survey(
        self, data: object, *, returns: Any = Any, timeout: float | None = DEFAULT_TIMEOUT
    ) -> list[Outcome[Any]]: ...
    def survey(
        self, data: object, *, returns: Any = Any, timeout: float | None = DEFAULT_TIMEOUT
    ) -> list[Outcome[Any]]:
        """As `interphone.Server.survey`."""
        return self._seen(
            self._seat.run(lambda: self._server.survey(data, returns=returns, timeout=timeout))
        )

    def ping(self, *, timeout: float | None = DEFAULT_TIMEOUT) -> list[Outcome[float]]:
        """As `interphone.Server.ping`."""
        return self._seen(self._seat.run(lambda: self._server.ping(timeout=timeout)))

    def _seen(self, outcomes: list[AsyncOutcome[T]]) -> list[Outcome[T]]:
        return [Outcome(self._seat.view(one.peer), one.value, one.error) for one in outcomes]

    def pause(self) -> None:
        """As `interphone.Server.pause`."""
        self._seat.call(self._server.pause)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._seat.call(self._server.resume)

    # Publish and subscribe

    def publish(
        self,
        topic: str,
        value: object,
        *,
        retain: bool = False,
        ack: Ack = "queued",
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> Receipt:
        """As `interphone.Server.publish`."""
        return self._seat.run(
            lambda: self._server.publish(topic, value, retain=retain, ack=ack, timeout=timeout)
        )

    def forget(self, topic: str) -> bool:
        """As `interphone.Server.forget`."""
        return self._seat.run(lambda: self._server.forget(topic))

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
        """Hear what is published: ``with server.subscribe("a.*") as items``."""
        inner = self._server.subscribe(*topics, of=of, overflow=overflow, queue=queue, group=group)
        return Subscription(self._seat, inner)

    def on_topic(
        self,
        *topics: str,
        of: Any = Any,
        overflow: OverflowPolicy = "drop_oldest",
        group: str | None = None,
    ) -> Callable[[TopicHandlerT], TopicHandlerT]:
        """Handle what is published, in order: ``@server.on_topic("a.*", of=Item)``."""
        add = self._server.on_topic(*topics, of=of, overflow=overflow, group=group)

        def register(handler: TopicHandlerT) -> TopicHandlerT:
            self._seat.call(add, self._seat.placed(handler))
            return handler

        return register


def _not_started() -> InterphoneError:
    return LocalProtocolError("the server is not started: server.start() first")
