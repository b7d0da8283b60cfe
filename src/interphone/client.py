"""Client: one peer after another.

    IDLE ──connect──► CONNECTING ──► CONNECTED ──reply──► READY
                        ▲    │                              │ lost
                        │    ▼ failed                       ▼
                        └─ RECONNECTING ◄──────────── DISCONNECTED ──► IDLE

A client outlives its connections: it comes back by itself, with the same payload and the
same id, and subscribes again before it is ready. `close` ends that, at any moment.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, overload

import msgspec

from .address import Address, resolve
from .asking import Items, Within, open_named
from .awake import Latency, awake_on, check_latency
from .backoff import Backoff
from .contracts import Contract, as_named
from .deadlines import shrunk
from .declared import Declared
from .errors import (
    ConnectError,
    ConnectionClosed,
    ConnectionLost,
    HandshakeError,
    InterphoneError,
    LocalProtocolError,
    Refused,
    RemoteError,
    RequestTimeout,
)
from .feed import Feed, check_result
from .handlers import Chain, Handlers, Tasks, log_error, log_raised
from .hooks import Hook
from .host import Poll
from .introspection import Introspection, Sources
from .limits import Limits
from .methods import Methods
from .peer import DEFAULT_TIMEOUT, Call, Peer, PeerEvents, reason_of
from .protocol.events import Nonce
from .protocol.loan import Loan
from .protocol.messages import Welcome
from .protocol.payload import Json, result_of
from .protocol.session import Session
from .protocol.shapes import Posting
from .protocol.upgrade import NAMES
from .status import Outage, Status
from .stream import Line, Stream
from .subscription import (
    MAX_QUEUE,
    Ack,
    Gap,
    OverflowPolicy,
    Publication,
    Receipt,
    Subscription,
    TopicHandler,
    check_topic,
)
from .transports import connect, shares_memory

__all__ = ["Client", "Outage", "Status"]

P = ParamSpec("P")
T = TypeVar("T")
TopicHandlerT = TypeVar("TopicHandlerT", bound="Callable[[Publication[Any]], object]")

Upgrade = Literal["isdk-ipc", "net-ipc"]


class Client:
    """Talks to a server, and comes back to it.

        async with Client("myapp") as client:
            answer = await client.request({"q": "what time is it?"})

    Entering is connected, leaving is closed. Handlers should be registered before.

    Args:
        address: As for `Server`.
        limits: What the server may cost this side.
        payload: What `connect` tells the server, unless it is given another.
        connect_timeout: Seconds `connect` may take in all; None waits for the first server
            without limit.
        backoff: When to try again; None: never. `Backoff.node()` is the Node packages' way.
        compress: Ask a Node server for compression.
        messagepack: Ask a Node server for MessagePack.
        upgrade: Begin with an HTTP upgrade to this name.
        tls: For a TCP address.
        allowed_uids: Users whose server is trusted, over a Unix socket; default: only this one.
        heartbeat: As for `Server`.
        dialect: As for `Server`.
        debug: As for `Server`.
        host: As for `Server`.
        latency: As for `Server`.
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | Address,
        *,
        payload: object = None,
        limits: Limits | None = None,
        connect_timeout: float | None = 10.0,
        backoff: Backoff | None = Backoff(),  # noqa: B008  it is frozen
        compress: bool = False,
        messagepack: bool = False,
        upgrade: Upgrade | None = None,
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
        if connect_timeout is not None and connect_timeout <= 0:
            raise ValueError("connect_timeout must be positive, or None for no limit")
        if upgrade is not None and upgrade not in NAMES:
            raise ValueError(f"upgrade must be one of {NAMES}, not {upgrade!r}")
        self.address = resolve(address)
        self.limits = limits or Limits()
        self.id: str | None = None
        self.status = Status.IDLE
        self.outage: Outage | None = None
        self._connect_timeout = connect_timeout
        self._backoff = backoff
        self._options = {
            "limits": self.limits,
            "compress": compress,
            "messagepack": messagepack,
            "dialects": ("native", "classic") if dialect == "native" else ("classic",),
            "heartbeat": heartbeat,
            "pools": shares_memory(self.address),
        }
        self._upgrade = upgrade
        self._latency: Latency = latency
        self._tls = tls
        self._allowed_uids = None if allowed_uids is None else frozenset(allowed_uids)
        self._payload = payload
        self._peer: Peer | None = None  # of the connection that stands
        self._trying: Peer | None = None  # of the attempt under way
        self._answer: asyncio.Future[None] | None = None  # the server's, to that attempt
        self._effort: asyncio.Task[Any] | None = None  # to connect, or to come back
        self._attempts = 0
        self._ready_at = 0.0
        self._closing = False
        self._paused = False
        self._end: InterphoneError | None = None
        self._waiting: set[asyncio.Future[None]] = set()  # verbs that wait for a connection
        self._tasks = Tasks(self._report_handler, host)
        self._feed = Feed(
            standing=self._standing,
            present=lambda: self._peer,
            tasks=self._tasks,
            report=self._report,
        )
        self.on_ready: Hook[[Peer]] = Hook(self._tasks)
        self.on_status: Hook[[Status]] = Hook(self._tasks)
        self.on_message: Hook[[Any]] = Hook(self._tasks)
        self.on_request: Chain[[Any]] = Chain(hosted=host is not None)
        self.method = Methods(Call, hosted=host is not None)
        self.error = Declared(debug=debug)
        self.on_error: Hook[[Exception]] = Hook(self._tasks)
        self.on_close: Hook[[Any]] = Hook(self._tasks, awaited=False)
        self._handlers = Handlers(
            tasks=self._tasks,
            on_message=self.on_message,
            on_request=self.on_request,
            methods=self.method,
            errors=self.error,
            told=False,
        )
        self._introspection = Introspection(
            "client",
            Sources(
                address=lambda: self.address,
                peers=lambda: () if self._peer is None else (self._peer,),
                topics=tuple,
                publications_dropped=lambda: self._feed.dropped,
                evicted=int,
            ),
            self._handlers,
            self.limits,
        )
        self._handlers.builtins = self._introspection.methods
        self._events = PeerEvents(
            made=self._made,
            hello=_never,
            opened=self._opened,
            subscribe=_never,
            unsubscribe=_never,
            publish=_never,
            forget=_never,
            allowed=_never,
            publication=self._feed.deliver,
            missed=self._feed.missed,
            report=self._report_of,
            raised=self._raised,
            lost=self._lost,
        )

    def __repr__(self) -> str:
        return f"<Client {self.address} {self.status.name}>"

    # Life

    async def connect(self, payload: object = msgspec.UNSET) -> Self:
        """Connect. The server gets the payload, and again at each reconnection.

        Cancelling is safe: nothing is left behind.

        Raises:
            Refused: The server said no.
            ConnectError: Nobody there within `connect_timeout`, or a stranger.
            HandshakeError: Somebody there who does not speak this protocol.
            LocalProtocolError: It is connected, or connecting, already.
            PayloadError: `payload` has no form on the wire.
        """
        if self.status is not Status.IDLE or self._effort is not None:
            raise LocalProtocolError(f"the client is {self.status.name}, not IDLE")
        if payload is not msgspec.UNSET:
            _payload_codec.encode(payload)
            self._payload = payload
        self._closing, self._end, self._attempts = False, None, 0
        self._introspection.begin()
        try:
            peer = await self._within(self._connect_timeout, self._tasks.start(self._establish()))
        except BaseException:
            self.outage = None
            standing, self._peer = self._peer, None
            if standing is not None:  # and who asked for it has left
                standing.abort()
            if self._effort is not None:
                self._effort.cancel()
            self._set_status(Status.IDLE)
            self._fail_waiting()
            raise
        # Handlers that the caller registers right after this await hear the first messages, too.
        asyncio.get_running_loop().call_soon(peer.inbox.release, "connecting")
        return self

    async def _within(self, timeout: float | None, effort: asyncio.Task[Peer]) -> Peer:
        """Await the effort, which `close` may cancel; cancel it if the caller is cancelled."""
        self._effort = effort
        try:
            async with asyncio.timeout(timeout):
                return await effort
        except TimeoutError:
            why = self.outage.error if self.outage else "the server did not answer"
            raise ConnectError(
                f"no connection to {self.address} within {timeout:g} s: {why}", transient=True
            ) from None
        except asyncio.CancelledError:
            if self._closing:
                raise ConnectionClosed("the client was closed while it was connecting") from None
            raise
        finally:
            effort.cancel()
            await asyncio.wait([effort])
            if self._effort is effort:  # else the connection is lost again, and it is coming back
                self._effort = None

    def share(self, errors: Declared) -> None:
        """Use what is declared elsewhere; for `interphone.blocking`."""
        self.error = self._handlers.errors = errors

    def ended_by(self, error: InterphoneError | None) -> None:
        """Know why it ended, before it had a loop; for `interphone.blocking`."""
        self._end = error

    def adopt(
        self,
        id: str | None,
        payload: object,
        session: Session | None,
        start: Callable[[asyncio.BufferedProtocol], None] | None,
    ) -> None:
        """Go on with the life of a client that had no loop; for `interphone.blocking`.

        Args:
            id: Its id.
            payload: What it gives to `connect`.
            session: That of its connection; None if it is away.
            start: Makes the transport of that connection.
        """
        self.id, self._payload = id, payload
        self._closing, self._end, self._attempts = False, None, 1
        self._introspection.begin()
        if session is None or start is None:
            self.status = Status.DISCONNECTED
            self._come_back(ConnectionLost("it was lost while nobody looked"))
            return
        peer = Peer(self._events, self._handlers, session)
        peer.id = id or ""
        start(peer.connection)
        self._stand(peer)

    async def close(self, reason: object = None, *, grace: float = 5.0) -> bool:
        """Say goodbye and stop coming back. Iterators end; whoever waits is told. Idempotent.

        Returns:
            Whether there was anything to close.
        """
        was_alive = self.status is not Status.IDLE
        until = perf_counter() + grace
        self._closing = True
        self._stop_trying()
        if self._peer is not None:
            await self._peer.close(reason, grace=grace)
        elif was_alive:
            self._finish(ConnectionClosed(reason))
        await self._tasks.close(max(0.0, until - perf_counter()))
        return was_alive

    def abort(self, reason: object = None) -> None:
        """End the connection now and stop coming back; what is queued is lost."""
        self._closing = True
        self._stop_trying()
        if self._peer is not None:
            self._peer.abort(reason)
        elif self.status is not Status.IDLE:
            self._finish(ConnectionClosed(reason))

    def _stop_trying(self) -> None:
        effort, self._effort = self._effort, None  # it may be cancelled before its first step
        if effort is not None:
            effort.cancel()

    async def wait_closed(self) -> Any:
        """Wait until the client is closed by either side, or has given up; return the reason.

        Cancelling is safe.
        """
        while self.status is not Status.IDLE:
            with suppress(InterphoneError):
                await self._wait_for(lambda: self.status is Status.IDLE)
        return None if self._end is None else reason_of(self._end)

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close(grace=5.0 if exc is None else 0)

    @property
    def peer(self) -> Peer:
        """The server, while there is a connection.

        Raises:
            ConnectionLost: There is none.
        """
        if self._peer is None:
            raise self._absence()
        return self._peer

    # Connecting

    async def _establish(self) -> Peer:
        """Try until a connection stands, or it makes no sense any more."""
        while True:
            self._attempts += 1
            try:
                return await self._attempt()
            except Refused:
                raise
            except ConnectError as exc:
                if not exc.transient and self._peer is None and not self._ready_at:
                    raise
                error = exc
            if self._backoff is None or self._attempts == self._backoff.attempts:
                raise error
            await self._pause_before_retry(error)

    async def _pause_before_retry(self, error: InterphoneError) -> None:
        assert self._backoff is not None  # whoever never tries again does not get here
        wait = self._backoff.wait(self._attempts)
        self.outage = Outage(self._attempts, wait, error)
        self._set_status(Status.RECONNECTING)
        await asyncio.sleep(wait)
        if self._closing:
            raise ConnectionClosed("the client was closed")

    async def _attempt(self) -> Peer:
        """Make one attempt, all the way to a server that has let us in."""
        self._set_status(Status.CONNECTING)
        loop = asyncio.get_running_loop()
        session = Session("client", now=loop.time(), **self._options)  # type: ignore[arg-type]  # the dict of its options
        peer = self._trying = Peer(self._events, self._handlers, session)
        peer.inbox.defer("connecting")
        payload = None if self._payload is None else session.codec.encode(self._payload)
        session.open(payload, id=self.id, upgrade_to=self._upgrade)
        self._answer = loop.create_future()
        try:
            async with asyncio.timeout(self.limits.handshake_timeout):
                await connect(
                    self.address,
                    lambda: peer.connection,
                    allowed_uids=self._allowed_uids,
                    tls=self._tls,
                    server_hostname=None,
                )
                await self._answer
                await self._feed.restore(peer)
        except TimeoutError:
            peer.connection.abort()
            seconds = self.limits.handshake_timeout
            raise ConnectError(
                f"no answer to CONNECTION within {seconds:g} s", transient=True
            ) from None
        except ConnectionLost as exc:
            if peer.protocol.goodbye is not None and not peer.protocol.goodbye.a:
                raise  # it has let us in, and said goodbye for good
            raise ConnectError(f"the server hung up: {exc}", transient=True) from exc
        except BaseException:
            peer.connection.abort()
            raise
        finally:
            self._trying = self._answer = None
        if self._closing:
            peer.connection.abort()
            raise ConnectionClosed("the client was closed")
        self._stand(peer)
        return peer

    def _made(self, peer: Peer) -> None:
        self._set_status(Status.CONNECTED)
        peer.connection.awake = awake_on(asyncio.get_running_loop(), self._latency)
        peer.connection.flush_soon()

    def _opened(self, peer: Peer, welcome: Welcome) -> None:
        peer.id = welcome.id if isinstance(welcome.id, str) else str(welcome.id)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def _stand(self, peer: Peer) -> None:
        self.id, self._peer, self.outage = peer.id, peer, None
        self._ready_at = asyncio.get_running_loop().time()
        if self._paused:
            peer.pause()
        self._set_status(Status.READY)
        self.on_ready.fire(peer)
        self._wake_waiting()

    def _lost(self, peer: Peer, error: InterphoneError) -> None:
        """A connection ended: of an attempt, or the one that stood."""
        self._introspection.left(peer)
        if peer is self._trying and self._answer is not None and not self._answer.done():
            self._answer.set_exception(
                error
                if isinstance(error, ConnectError | ConnectionLost)
                else HandshakeError(str(error))
            )
        if peer is not self._peer:
            return
        self._peer = None
        self._set_status(Status.DISCONNECTED)
        goodbye = peer.protocol.goodbye
        for_good = goodbye is not None and not goodbye.a
        if self._closing or for_good or self._backoff is None:
            self._finish(error)
        else:
            self._come_back(error)

    def _come_back(self, error: InterphoneError) -> None:
        self._feed.interrupt()
        assert self._backoff is not None
        if asyncio.get_running_loop().time() - self._ready_at >= self._backoff.reset_after:
            self._attempts = 0
        self._attempts = max(self._attempts, 1)  # the connection that was lost counts as one
        effort = self._tasks.start(self._return(error))
        if not effort.done():
            self._effort = effort

    async def _return(self, error: InterphoneError) -> None:
        """Come back, or give up and say so."""
        assert self._backoff is not None
        try:
            if self._attempts == self._backoff.attempts:
                raise error
            await self._pause_before_retry(error)
            (await self._establish()).inbox.release("connecting")
        except InterphoneError as exc:
            self._report(exc)
            self._finish(exc if isinstance(exc, ConnectionLost) else ConnectionLost(exc))
        finally:
            if self._effort is asyncio.current_task():
                self._effort = None

    def _finish(self, error: InterphoneError) -> None:
        """The client's life is over, until somebody connects it again."""
        if self.status is Status.IDLE:
            return
        self._end, self.outage, self._ready_at = error, None, 0.0
        goodbye = isinstance(error, ConnectionClosed)
        self._feed.end(None if goodbye else error)
        self._set_status(Status.IDLE)
        self._fail_waiting()
        reason = reason_of(error)
        for coroutine in self.on_close.start(reason):
            self._tasks.see_out(self.on_close.guard(coroutine, (reason,)))

    def _set_status(self, status: Status) -> None:
        if status is not self.status:
            self.status = status
            self.on_status.fire(status)

    # Waiting for a connection

    async def _standing(self, timeout: float | None) -> Peer:
        """The peer, once there is one.

        Raises:
            RequestTimeout: None came back in time; nothing was sent.
            ConnectionLost: There is none, and none will come.
        """
        if self._peer is not None:
            return self._peer
        try:
            async with asyncio.timeout(timeout):
                await self._wait_for(lambda: self._peer is not None)
        except TimeoutError:
            assert timeout is not None
            raise RequestTimeout(timeout, delivery="not_sent") from None
        assert self._peer is not None
        return self._peer

    async def _wait_for(self, reached: Callable[[], bool]) -> None:
        while not reached():
            if self.status is Status.IDLE and self._effort is None:
                raise self._absence()
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)
            try:
                await waiter
            finally:
                self._waiting.discard(waiter)

    def _absence(self) -> InterphoneError:
        if isinstance(self._end, ConnectionClosed):
            return ConnectionClosed(
                self._end.reason, by_peer=self._end.by_peer, delivery="not_sent"
            )
        if self._end is not None:
            return ConnectionLost(reason_of(self._end), delivery="not_sent")
        if self.status is not Status.IDLE:
            return ConnectionLost("it is being restored", delivery="not_sent")
        return LocalProtocolError("the client is not connected: await client.connect() first")

    def _wake_waiting(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _fail_waiting(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(self._absence())

    # Verbs

    async def send(self, data: object, *, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """As `Peer.send`; while there is no connection, wait for one up to `timeout` seconds."""
        peer = self._peer or await self._standing(timeout)
        payload = peer.connection.send(data)  # as `Peer.send`: one coroutine less
        if payload is not None:
            await peer.send_later(payload)

    @overload
    async def request(
        self, data: object, *, returns: type[T], timeout: float | None = DEFAULT_TIMEOUT
    ) -> T: ...
    @overload
    async def request(
        self, data: object, *, returns: Any = Any, timeout: float | None = DEFAULT_TIMEOUT
    ) -> Any: ...
    async def request(
        self, data: object, *, returns: Any = Any, timeout: float | None = DEFAULT_TIMEOUT
    ) -> Any:
        """As `Peer.request`; the time until there is a connection counts, too."""
        peer = self._peer
        if peer is None:
            peer, timeout = await self._standing_within(timeout)
        # Hot path: what `Peer.request` does, without a coroutine within this one.
        asked = peer.asker.request(data, timeout)
        if asked is None:
            return await peer.request(data, returns=returns, timeout=timeout)
        answer, nonce = asked
        try:
            raw = await answer
        except asyncio.CancelledError:
            peer.asker.withdraw(nonce)
            raise
        except RemoteError as exc:
            raise peer.asker.own(exc) from None
        return result_of(peer.protocol.values, raw, returns)

    @overload
    async def call(
        self,
        method: str,
        /,
        *params: object,
        named: Mapping[str, object] | None = ...,
        items: Items | None = ...,
        returns: type[T],
        timeout: float | None = ...,
        on_progress: Callable[[Any], object] | None = ...,
    ) -> T: ...
    @overload
    async def call(
        self,
        method: str,
        /,
        *params: object,
        named: Mapping[str, object] | None = ...,
        items: Items | None = ...,
        returns: Any = ...,
        timeout: float | None = ...,
        on_progress: Callable[[Any], object] | None = ...,
    ) -> Any: ...
    @overload
    async def call(self, method: Contract[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def call(self, method: Any, /, *params: Any, **kwargs: Any) -> Any:
        """As `Peer.call`; the time until there is a connection counts, too."""
        peer = self._peer
        asked = None if peer is None else peer.asker.call(method, params, kwargs)
        if peer is None or asked is None:
            return await self._call(**as_named(method, params, kwargs))
        answer, nonce = asked
        try:
            raw = await answer
        except asyncio.CancelledError:
            peer.asker.withdraw(nonce)
            raise
        except RemoteError as exc:
            raise peer.asker.own(exc) from None
        return result_of(peer.protocol.values, raw, kwargs.get("returns", Any))

    async def _call(
        self,
        method: str,
        params: Sequence[object],
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **options: Any,
    ) -> Any:
        peer = self._peer
        if peer is None:
            peer, timeout = await self._standing_within(timeout)
        return await peer.call_named(method, params, timeout=timeout, **options)

    @overload
    def stream(
        self,
        method: str,
        /,
        *params: object,
        named: Mapping[str, object] | None = ...,
        items: Items | None = ...,
        of: type[T],
        window: int = ...,
        timeout: float | None = ...,
    ) -> Stream[T]: ...
    @overload
    def stream(
        self,
        method: str,
        /,
        *params: object,
        named: Mapping[str, object] | None = ...,
        items: Items | None = ...,
        of: Any = ...,
        window: int = ...,
        timeout: float | None = ...,
    ) -> Stream[Any]: ...
    @overload
    def stream(
        self, method: Contract[P, AsyncIterator[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Stream[T]: ...
    def stream(self, method: Any, /, *params: Any, **kwargs: Any) -> Stream[Any]:
        """As `Peer.stream`. Entering it waits up to 10 s for a connection; it ends with it."""
        return open_named(self._open_stream, method, params, kwargs)

    async def _open_stream(
        self,
        method: str,
        params: Sequence[object],
        named: Mapping[str, object] | None,
        timeout: float | None,
        stream: Stream[Any],
    ) -> tuple[Line, Nonce]:
        peer = self._peer
        if peer is None:
            started = perf_counter()
            peer = await self._standing(DEFAULT_TIMEOUT if timeout is None else timeout)
            if timeout is not None:
                timeout -= perf_counter() - started
        return await peer.open_stream(method, params, named, timeout, stream)

    def within(
        self, timeout: float | None, *, on_progress: Callable[[Any], object] | None = None
    ) -> Within:
        """Calls that wait so many seconds: ``await client.within(2).call(get_user, 7)``."""
        return Within(self._call, self._open_stream, timeout, on_progress)

    async def _standing_within(self, timeout: float | None) -> tuple[Peer, float | None]:
        """The peer, once there is one, and what is left of the timeout."""
        if self._peer is not None:
            return self._peer, timeout
        timeout = shrunk(timeout)
        started = perf_counter()
        peer = await self._standing(timeout)
        return peer, None if timeout is None else timeout - (perf_counter() - started)

    def loan(self, size: int) -> Loan:
        """As `Peer.loan`; while there is no connection, memory of this process."""
        return Loan(size) if self._peer is None else self._peer.loan(size)

    async def ping(self, *, timeout: float | None = DEFAULT_TIMEOUT) -> float:
        """As `Peer.ping`."""
        return await (await self._standing(timeout)).ping(timeout=timeout)

    def pause(self) -> None:
        """Stop reading what the server sends, also after a reconnection, until `resume`."""
        self._paused = True
        if self._peer is not None:
            self._peer.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._paused = False
        if self._peer is not None:
            self._peer.resume()

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
        """Publish by way of the server, to everybody who subscribed to the topic.

        Cancelling is safe: whoever had no room does not get it.

        Args:
            topic: A name, no pattern.
            value: Any value the wire carries.
            retain: Whether the server keeps it as the topic's last value.
            ack: As for `Server.publish`.
            timeout: Seconds to wait. The server waits for subscriptions that block, and for
                "delivered", a little less, so that its answer comes in time.

        Raises:
            TopicError: `topic` is no name for one.
            Unsupported: The server has no publish/subscribe, or cannot do what was asked.
            Overloaded: There are too many last values; nothing was published.
            RequestTimeout: No answer in time.
            ConnectionLost: The connection ended before the answer came.
        """
        check_topic(topic)
        peer, timeout = await self._standing_within(shrunk(timeout))
        started = perf_counter()
        payload = await peer.ready_to_send(value, timeout)
        if timeout is not None:
            timeout -= perf_counter() - started
        # Who does not wait for a time that is over would be told that it may have been sent.
        knows = "topics" in peer.protocol.can and (timeout is None or timeout > 0)
        posting = Posting(ack=ack, retain=retain, deadline=timeout if knows else None)
        verb = partial(peer.protocol.ask_to_publish, posting=posting)
        answer = check_result(await peer.ask(verb, topic, payload, timeout=timeout))
        names = ("matched", "queued", "dropped", "delivered")
        return Receipt(*(answer.get(name) for name in names))

    async def forget(self, topic: str, *, timeout: float | None = DEFAULT_TIMEOUT) -> bool:
        """Have the server keep no last value of the topic; return whether there was one.

        Raises:
            TopicError: `topic` is no name for one.
            Unsupported: The server keeps none.
            Everything `publish` raises about answers.
        """
        check_topic(topic)
        peer, timeout = await self._standing_within(shrunk(timeout))
        answer = await peer.ask(peer.protocol.ask_to_forget, topic, timeout=timeout)
        return bool(check_result(answer)["result"])

    @overload
    def subscribe(
        self,
        *topics: str,
        of: type[T],
        overflow: OverflowPolicy = ...,
        queue: int = ...,
        gaps: Literal[False] = ...,
        group: str | None = ...,
    ) -> Subscription[Publication[T]]: ...
    @overload
    def subscribe(
        self,
        *topics: str,
        of: type[T],
        overflow: OverflowPolicy = ...,
        queue: int = ...,
        gaps: Literal[True],
        group: str | None = ...,
    ) -> Subscription[Publication[T] | Gap]: ...
    @overload
    def subscribe(
        self,
        *topics: str,
        of: Any = Any,
        overflow: OverflowPolicy = ...,
        queue: int = ...,
        gaps: Literal[False] = ...,
        group: str | None = ...,
    ) -> Subscription[Publication[Any]]: ...
    @overload
    def subscribe(
        self,
        *topics: str,
        of: Any = Any,
        overflow: OverflowPolicy = ...,
        queue: int = ...,
        gaps: Literal[True],
        group: str | None = ...,
    ) -> Subscription[Publication[Any] | Gap]: ...
    def subscribe(
        self,
        *topics: str,
        of: Any = Any,
        overflow: OverflowPolicy = "disconnect",
        queue: int = MAX_QUEUE,
        gaps: bool = False,
        group: str | None = None,
    ) -> Subscription[Any]:
        """Subscribe: ``async with client.subscribe("a", "b", of=Item) as items``.

        It yields `Publication`s, and lives on through reconnections.

        Args:
            topics: One or more, or patterns: in ``news.*`` the star stands for one level, in
                ``news.>`` the rest for one or more.
            of: Type of the values.
            overflow: What a full queue does.
            queue: Publications it holds.
            gaps: Whether to yield a `Gap` after the connection was away.
            group: A queue group: each publication goes to one of its members only.

        A pattern, a group and ``overflow="block"`` raise `Unsupported` on entering where the
        server does not know of them, as Node's.
        """
        return Subscription(
            self._feed, topics, of, overflow=overflow, queue=queue, gaps=gaps, group=group
        )

    def on_topic(
        self,
        *topics: str,
        of: Any = Any,
        overflow: OverflowPolicy = "drop_oldest",
        group: str | None = None,
    ) -> Callable[[TopicHandlerT], TopicHandlerT]:
        """Handle publications, one at a time, in order, as long as the client lives.

        @client.on_topic("news", of=Item)
        async def read(publication: Publication[Item]) -> None: ...
        """

        def register(handler: TopicHandlerT) -> TopicHandlerT:
            hub, tasks = self._feed, self._tasks
            hub.handle(
                TopicHandler(
                    hub, topics, of, handler, tasks, tasks.start, overflow=overflow, group=group
                )
            )
            return handler

        return register

    async def unsubscribe(self, *topics: str) -> None:
        """End every subscription and handler of these topics and patterns here."""
        await self._feed.unsubscribe(topics)

    # Failures

    def _report_of(self, peer: Peer, error: Exception) -> None:
        if peer is not self._trying or not isinstance(
            error, ConnectError
        ):  # else `connect` raises it
            self._report(error)

    def _raised(self, peer: Peer, error: Exception) -> None:
        """A handler raised instead of answering."""
        log_raised(error, peer)
        self.on_error.fire(error)

    def _report_handler(self, error: Exception, args: tuple[object, ...]) -> None:
        """A hook's handler raised. Who hears of errors and raises is only logged."""
        if args and isinstance(args[0], Exception):
            log_error(error, self)
        else:
            self._report(error)

    def _report(self, error: Exception) -> None:
        log_error(error, self)
        self.on_error.fire(error)


_payload_codec = Json(lenient=True)


def _never(*_: object) -> None:
    """Only a server hears of this."""
