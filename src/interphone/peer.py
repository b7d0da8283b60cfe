"""Peer: everything user code can say to one other end.

Both ends of a connection have one, of the same class. Futures are made here, kept in the
Session as tokens, and settled here. What the other end says is the business of `inbox.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, ParamSpec, TypeVar, overload

import msgspec

from .connection import Connection
from .deadlines import current_deadline, shrunk
from .errors import (
    ConnectionClosed,
    ConnectionLost,
    InterphoneError,
    PayloadError,
    RequestTimeout,
    Unsupported,
)
from .handlers import Handlers
from .inbox import Inbox
from .methods import Contract
from .protocol.events import Counts, Nonce, Reactions
from .protocol.messages import Hello, Welcome
from .protocol.session import Session
from .protocol.shapes import Marks, Posting, Terms
from .protocol.states import State

__all__ = ["DEFAULT_TIMEOUT", "Call", "Peer", "PeerEvents", "Within", "reason_of"]

logger = logging.getLogger("interphone")

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_TIMEOUT = 10.0
"""Seconds a request waits unless told otherwise; ``timeout=None`` waits without limit."""


class PeerEvents(NamedTuple):
    """What a Server or Client does about its peers, beyond what each peer does itself."""

    made: Callable[[Peer], None]
    hello: Callable[[Peer, Hello], None]
    opened: Callable[[Peer, Welcome], None]
    subscribe: Callable[[Peer, Nonce, list[str], Terms], None]
    unsubscribe: Callable[[Peer, Nonce, list[str], Terms], None]
    publish: Callable[[Peer, Nonce, str, msgspec.Raw, msgspec.Raw, Posting], None]
    forget: Callable[[Peer, Nonce, str], None]
    allowed: Callable[[Peer, int, int, int], None]
    publication: Callable[[Peer, str, msgspec.Raw, Marks], None]
    missed: Callable[[Peer, int, int, str], None]
    report: Callable[[Peer, Exception], None]
    lost: Callable[[Peer, InterphoneError], None]


class Peer:
    """The other end of one connection.

    Attributes:
        id: Its id, unique among the living peers of a server.
        payload: What it gave to `connect` (at a server), decoded.
        session: What `authorize` returned for it; yours.
        connection: Its transport's life; for Server and Client.
        protocol: Its protocol state; for Server and Client.
        inbox: What it says, and what runs for it; for Server and Client.
    """

    def __init__(self, events: PeerEvents, handlers: Handlers, session: Session) -> None:
        self.id = ""
        self.payload: Any = None
        self.session: Any = None
        self._events = events
        self._handlers = handlers
        self.protocol = session
        self._session = session
        told: tuple[object, ...] = (self,) if handlers.told else ()
        self.inbox = Inbox(
            session, handlers, told, partial(events.report, self), partial(Call, self)
        )
        self._react = Reactions(
            hello=partial(events.hello, self),
            opened=partial(events.opened, self),
            message=self.inbox.on_message,
            request=self.inbox.on_request,
            answered=self._answered,
            failed=self._failed,
            subscribe=partial(events.subscribe, self),
            unsubscribe=partial(events.unsubscribe, self),
            publish=partial(events.publish, self),
            publication=partial(events.publication, self),
            goodbye=lambda _: None,  # the connection hangs up; `lost` tells the rest
            unreadable=partial(events.report, self),
            violated=self._on_violated,
            call=self.inbox.on_call,
            cancelled=self.inbox.on_cancelled,
            forget=partial(events.forget, self),
            allowed=partial(events.allowed, self),
            missed=partial(events.missed, self),
        )
        self.connection = Connection(
            session,
            self._react,
            made=partial(events.made, self),
            lost=self._on_lost,
            abandoned=self.inbox.abandon,
        )
        self.inbox.attach(self.connection)
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        return (
            f"<Peer {self.id or '?'} {self._session.state.value}, pending {self._session.pending}>"
        )

    # What users may know

    @property
    def open(self) -> bool:
        """Whether it can be sent something."""
        return self._session.state is State.OPEN

    @property
    def interphone(self) -> bool:
        """Whether the other end is interphone, not a Node package."""
        return self._session.interphone

    @property
    def credentials(self) -> Any:
        """Who connected, from the kernel: `.uid`, `.pid`, `.gid`; None over TCP."""
        return self.connection.credentials

    @property
    def counts(self) -> Counts:
        """What of this peer's was dropped, and why."""
        return self._session.counts

    @property
    def pending(self) -> int:
        """Requests to it that wait for an answer."""
        return self._session.pending

    @property
    def unheard(self) -> int:
        """Its messages that came when nobody listened to `on_message`."""
        return self.inbox.unheard

    @property
    def inflight(self) -> int:
        """Its requests and messages that are being handled or wait for it."""
        return self.inbox.inflight

    @property
    def backlog(self) -> int:
        """Bytes sent to it that its system has not taken."""
        return self.connection.backlog

    @property
    def paused(self) -> bool:
        """Whether `pause` holds it."""
        return "paused" in self.connection.stopped

    # Verbs

    async def send(self, data: object) -> None:
        """Send a one-way message. Order is kept.

        Waiting for it is backpressure: it returns when the peer has room. Cancelling is
        safe: the message was sent whole or not at all.

        Raises:
            PayloadError: `data` has no form on the wire.
            MessageTooBig: It is over the limit.
            ConnectionLost: The connection is gone; see `.delivery`.
        """
        payload = await self.ready_to_send(data)
        self._session.send(payload)
        self.connection.flush_soon()

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
        """Ask the peer something and wait for the answer.

        Cancelling is safe: a late answer is dropped and counted.

        Args:
            data: Any value the wire carries.
            returns: Type of the answer; by default whatever the wire carries.
            timeout: Seconds to wait; None waits without limit.

        Raises:
            RemoteError: The handler raised.
            Unhandled: Nobody there takes this request.
            RequestTimeout: No answer in time.
            Overloaded: Too many requests wait for an answer; it was not sent.
            ConnectionLost: The connection ended before the answer came.
            PayloadError: `data` has no form on the wire, or the answer is no `returns`.
            Unsupported: @isdk/ipc-server would take it for a subscription.
        """
        if self._session.isdk:
            _check_for_isdk(data)
        timeout = shrunk(timeout)
        payload = await self.ready_to_send(data, timeout)
        answer: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        nonce = self._session.request(payload, answer, now=self._loop.time(), timeout=timeout)
        return self._result(await self._answer_to(nonce, answer), returns)

    def _result(self, raw: msgspec.Raw, returns: Any) -> Any:
        try:
            return self._session.codec.decode(raw, returns) if raw else _nothing(returns)
        except PayloadError as exc:
            exc.delivery = "maybe_sent"
            raise

    @overload
    async def call(
        self,
        method: str,
        *params: object,
        named: Mapping[str, object] | None = None,
        returns: type[T],
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> T: ...
    @overload
    async def call(
        self,
        method: str,
        *params: object,
        named: Mapping[str, object] | None = None,
        returns: Any = Any,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> Any: ...
    @overload
    async def call(self, method: Contract[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def call(self, method: Any, *params: Any, **kwargs: Any) -> Any:
        """Ask the peer to run a method, and wait for what it returns.

            total = await peer.call("add", 1, 2, returns=int)
            user = await peer.call(get_user, 7, full=True)

        Cancelling is safe: the handler there is cancelled, a late answer dropped and counted.

        Args:
            method: Its name there, or a `Contract` that both sides share.
            params: Positional parameters.
            named: Parameters by name, for a method given by name.
            returns: Type of the result; a contract knows it.
            timeout: Seconds to wait; `within` sets it for a contract.
            kwargs: Parameters by name, for a contract.

        Raises:
            MethodNotFound: There is no such method.
            InvalidParams: The parameters do not fit it; its handler did not run.
            RemoteError: The handler raised.
            Unsupported: A Node end has no methods.
            Everything `request` raises.
        """
        if isinstance(method, Contract):
            positional, named = method.split(*params, **kwargs)
            return await self.call_named(method.name, positional, named, returns=method.returns)
        return await self.call_named(method, params, **kwargs)

    async def call_named(
        self,
        method: str,
        params: Sequence[object],
        named: Mapping[str, object] | None = None,
        *,
        returns: Any = Any,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> Any:
        """As `call`, with everything in its place; for a Client and `Within`."""
        if not self._session.interphone:
            raise Unsupported("a Node end has no methods: ask it by a request")
        asked = {"method": method, "params": params}
        timeout = shrunk(timeout)
        payload = await self.ready_to_send(asked | {"named": named} if named else asked, timeout)
        answer: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        nonce = self._session.call(payload, answer, now=self._loop.time(), timeout=timeout)
        return self._result(await self._answer_to(nonce, answer), returns)

    def within(self, timeout: float | None) -> Within:
        """Calls that wait so many seconds: ``await peer.within(2).call(get_user, 7)``."""
        return Within(self.call_named, timeout)

    async def ping(self, *, timeout: float | None = DEFAULT_TIMEOUT) -> float:
        """Return the seconds a message takes there and back; its handlers may be busy.

        Raises:
            RequestTimeout: No answer in time.
            ConnectionLost: The connection ended before the answer came.
        """
        self.connection.check_caller()
        answer: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        nonce = self._session.ping(answer, now=self._loop.time(), timeout=timeout)
        start = perf_counter()  # not the loop's time: uvloop's stands still within a turn
        await self._answer_to(nonce, answer)
        return perf_counter() - start

    def pause(self) -> None:
        """Stop reading what the peer sends; nothing is handled until `resume`."""
        self.connection.check_caller()
        self.connection.stop_reading("paused")

    def resume(self) -> None:
        """Go on after `pause`."""
        self.connection.check_caller()
        self.connection.go_on_reading("paused")

    async def close(
        self, reason: object = None, *, grace: float = 5.0, reconnect: bool = False
    ) -> bool:
        """Say goodbye: own requests fail, running handlers finish, then the connection ends.

        Args:
            reason: Any value; the other end is told.
            grace: Seconds that running handlers have to finish and answer.
            reconnect: Whether a client at the other end may come back.

        Returns:
            Whether it was open.

        Cancelling is safe: the connection is then ended at once.
        """
        self.connection.check_caller()
        me = asyncio.current_task()
        return await self.close_besides(me, reason, grace=grace, reconnect=reconnect)

    async def close_besides(
        self, task: asyncio.Task[Any] | None, reason: object, *, grace: float, reconnect: bool
    ) -> bool:
        """Close; do not wait for `task`, in case it is one of our handlers. For a Server."""
        session, connection = self._session, self.connection
        was_open = session.state is State.OPEN
        if session.state is State.OPENING:
            connection.abort(ConnectionClosed(reason))
        try:
            if was_open:
                session.drain(reason, self._react)
                await self.inbox.finish(grace, besides=task)
                session.say_goodbye(reason, reconnect=reconnect)
                connection.hang_up()
            await asyncio.shield(connection.closed)
        except BaseException:
            connection.abort(ConnectionClosed(reason))
            raise
        return was_open

    def abort(self, reason: object = None) -> None:
        """End the connection now; what is queued is lost, and own requests fail."""
        self.connection.check_caller()
        self.connection.abort(ConnectionClosed(reason))

    # How a verb waits

    async def ready_to_send(self, data: object, timeout: float | None = None) -> bytes:
        """Return `data` encoded, once there is room to send it; for a Client, too."""
        self.connection.check_caller()
        payload: bytes = self._session.codec.encode(data)
        if self.connection.crowded():
            try:
                async with asyncio.timeout(timeout):
                    await self.connection.writable()
            except TimeoutError:
                assert timeout is not None
                raise RequestTimeout(timeout, delivery="not_sent") from None
        return payload

    async def _answer_to(self, nonce: Nonce, answer: asyncio.Future[msgspec.Raw]) -> msgspec.Raw:
        self.connection.flush_soon()
        self.connection.arm()
        try:
            return await answer
        except asyncio.CancelledError:
            self._session.forget(nonce)
            self.connection.flush_soon()
            raise

    def ask(
        self, verb: Callable[..., Nonce], *args: Any, timeout: float | None
    ) -> Coroutine[Any, Any, Any]:
        """Ask by another verb of `protocol`, at once; await what this returns for the answer."""
        self.connection.check_caller()
        answer: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        nonce = verb(*args, answer, now=self._loop.time(), timeout=timeout)
        self.connection.flush_soon()
        return self._decoded(nonce, answer)

    async def _decoded(self, nonce: Nonce, answer: asyncio.Future[msgspec.Raw]) -> Any:
        raw = await self._answer_to(nonce, answer)
        return self._session.codec.decode(raw) if raw else None

    def _answered(self, token: object, raw: msgspec.Raw) -> None:
        assert isinstance(token, asyncio.Future)
        if not token.done():
            token.set_result(raw)

    def _failed(self, token: object, error: InterphoneError) -> None:
        assert isinstance(token, asyncio.Future)
        if not token.done():
            token.set_exception(error)

    # The end

    def _on_violated(self, error: InterphoneError) -> None:
        self._events.report(self, error)

    def _on_lost(self, error: InterphoneError) -> None:
        self.inbox.abandon()
        self._events.lost(self, error)


class Call:
    """What a method may ask about the call it answers; injected where it is annotated.

        @server.method
        async def who(call: Call) -> str:
            return call.peer.id

    Attributes:
        peer: Who calls.
        deadline: When the caller stops waiting, in the loop's time; None: never.
    """

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.deadline = current_deadline()


class Within:
    """Calls with one timeout, made by `Peer.within` and `Client.within`."""

    def __init__(self, call: Callable[..., Awaitable[Any]], timeout: float | None) -> None:
        self._call = call
        self._timeout = timeout

    @overload
    async def call(
        self,
        method: str,
        *params: object,
        named: Mapping[str, object] | None = None,
        returns: type[T],
    ) -> T: ...
    @overload
    async def call(
        self,
        method: str,
        *params: object,
        named: Mapping[str, object] | None = None,
        returns: Any = Any,
    ) -> Any: ...
    @overload
    async def call(self, method: Contract[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def call(self, method: Any, *params: Any, **kwargs: Any) -> Any:
        """As `Peer.call`, with this timeout."""
        if not isinstance(method, Contract):
            return await self._call(method, params, timeout=self._timeout, **kwargs)
        positional, named = method.split(*params, **kwargs)
        return await self._call(
            method.name, positional, named, returns=method.returns, timeout=self._timeout
        )


def reason_of(error: InterphoneError) -> Any:
    """What a disconnect or close hook is told: END's reason, else the error."""
    if isinstance(error, ConnectionClosed):
        return error.reason
    return error.reason if isinstance(error, ConnectionLost) else error


def _nothing(returns: Any) -> Any:
    """Decode an answer without a value, which JavaScript calls undefined."""
    try:
        return None if returns is Any else msgspec.convert(None, returns)
    except msgspec.ValidationError as exc:
        raise PayloadError(str(exc)) from exc


def _check_for_isdk(data: object) -> None:
    if isinstance(data, str) or (
        isinstance(data, dict) and any(data.get(key) for key in ("pub", "sub", "unsub"))
    ):
        raise Unsupported(
            "@isdk/ipc-server takes a string, or an object with pub, sub or unsub, for a "
            "subscription: put the value into an object of your own"
        )
