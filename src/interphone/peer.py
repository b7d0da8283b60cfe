"""Peer: everything user code can say to one other end.

Both ends of a connection have one, of the same class. Futures are made here, kept in the
Session as tokens, and settled here. What the other end says is the business of `inbox.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from functools import partial
from time import monotonic, perf_counter
from types import MethodType
from typing import Any, NamedTuple, ParamSpec, TypeVar, overload

import msgspec

from .asker import Asker, settle
from .asking import Items, Within, open_named
from .calls import Report
from .connection import Connection
from .contracts import Contract, as_named
from .deadlines import shrunk
from .errors import (
    ConnectionClosed,
    ConnectionLost,
    InterphoneError,
    RemoteError,
    RequestTimeout,
    Unsupported,
)
from .handlers import Handlers, handling
from .inbox import Inbox
from .limits import DEFAULT_TIMEOUT
from .protocol.deliveries import Taker
from .protocol.events import Counts, Nonce, Reactions
from .protocol.loan import Loan
from .protocol.messages import Hello, Welcome
from .protocol.payload import result_of
from .protocol.pool import PoolCounts
from .protocol.session import Session
from .protocol.shapes import Marks, Posting, Terms
from .protocol.states import State
from .protocol.wire import Outgoing
from .stream import Line, Stream

__all__ = ["DEFAULT_TIMEOUT", "Call", "Peer", "PeerEvents", "reason_of"]

P = ParamSpec("P")
T = TypeVar("T")


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
    publication: Callable[[Peer, str, msgspec.Raw, Marks], Taker | None]
    missed: Callable[[Peer, int, int, str], None]
    report: Callable[[Peer, Exception], None]
    raised: Callable[[Peer, Exception], None]
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
        asker: What asks it; for Client.
    """

    def __init__(self, events: PeerEvents, handlers: Handlers, session: Session) -> None:
        bound = MethodType  # what `partial` does with one argument, at a third of its size
        self.id = ""
        self.payload: Any = None
        self.session: Any = None
        self._events = events
        self._handlers = handlers
        self.protocol = session
        self._session = session
        told: tuple[object, ...] = (self,) if handlers.told else ()
        self.inbox = Inbox(
            session,
            handlers,
            told,
            bound(events.report, self),
            bound(events.raised, self),
            bound(Call, self),
        )
        self._listeners: dict[object, Callable[[Any], object]] = {}  # to progress, by token
        self._react = Reactions(
            hello=bound(events.hello, self),
            opened=bound(events.opened, self),
            message=self.inbox.hearing.on_message,
            request=self.inbox.prompt.on_request,
            answered=settle,
            failed=self._failed,
            subscribe=bound(self.inbox.in_turn, bound(events.subscribe, self)),
            unsubscribe=bound(self.inbox.in_turn, bound(events.unsubscribe, self)),
            publish=bound(self.inbox.in_turn, bound(events.publish, self)),
            publication=bound(events.publication, self),
            goodbye=lambda _: None,  # the connection hangs up; `lost` tells the rest
            unreadable=bound(events.report, self),
            violated=self._on_violated,
            call=self.inbox.prompt.on_call,
            cancelled=self.inbox.on_cancelled,
            open=self.inbox.on_open,
            item=_put,
            granted=self.inbox.calls.on_granted,
            input=self.inbox.calls.on_input,
            demanded=_more,
            progress=self._on_progress,
            forget=bound(self.inbox.in_turn, bound(events.forget, self)),
            allowed=bound(events.allowed, self),
            missed=bound(events.missed, self),
        )
        self.connection = Connection(
            session,
            self._react,
            made=bound(events.made, self),
            lost=self._on_lost,
            abandoned=self.inbox.abandon,
        )
        self.inbox.attach(self.connection)
        self.asker = Asker(session, self.connection, self._own)
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
    def pool(self) -> PoolCounts:
        """What became of large payloads to it: `.lent` through shared memory, `.inline` not."""
        return self._session.pool_counts

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
        return "paused" in self.connection.stopped | self.inbox.deferring

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
        payload = self.connection.send(data)
        if payload is not None:
            await self.send_later(payload)

    async def send_later(self, payload: Outgoing) -> None:
        """Send what `Connection.send` could not send at once; for a Client, too."""
        try:
            await self.connection.writable()
        except BaseException:
            self._session.take_back(payload)
            raise
        self.connection.put(payload)

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
            RemoteError: The handler raised; what is declared here is raised as itself.
            Unhandled: Nobody there takes this request.
            RequestTimeout: No answer in time.
            Overloaded: Too many requests wait for an answer; it was not sent.
            ConnectionLost: The connection ended before the answer came.
            PayloadError: `data` has no form on the wire, or the answer is no `returns`.
            Unsupported: @isdk/ipc-server would take it for a subscription.
        """
        asked = self.asker.request(data, timeout)
        if asked is None:
            return await self._request_in_turn(data, returns, timeout)
        answer, nonce = asked
        try:
            raw = await answer
        except asyncio.CancelledError:
            self.asker.withdraw(nonce)
            raise
        except RemoteError as exc:
            raise self.asker.own(exc) from None
        return result_of(self._session.values, raw, returns)

    async def _request_in_turn(self, data: object, returns: Any, timeout: float | None) -> Any:
        """The same where one may have to wait for room, or the other end is one that is picky."""
        if self._session.isdk:
            _check_for_isdk(data)
        timeout = shrunk(timeout)
        self.connection.check_caller()
        session = self._session
        payload = session.pack(data)
        answer: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        if self.connection.crowded():
            timeout = await self._wait_for_room(payload, timeout)
        try:
            nonce = session.request(payload, answer, now=self._loop.time(), timeout=timeout)
        except Exception:
            session.take_back(payload)
            raise
        return result_of(session.values, await self._answer_to(nonce, answer), returns)

    def _own(self, error: RemoteError) -> Exception:
        """What a handler at the other end raised, as itself if it is declared here."""
        own: Exception = self._handlers.errors.own(self._session.codec, error)
        return own

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
        """Ask the peer to run a method, and wait for what it returns.

            total = await peer.call("add", 1, 2, returns=int)
            user = await peer.call(get_user, 7, full=True)

        Cancelling is safe: the handler there is cancelled, a late answer dropped and counted.

        Args:
            method: Its name there, or a `Contract` that both sides share.
            params: Positional parameters.
            named: Parameters by name, for a method given by name.
            items: What the method reads piece by piece, if it reads a stream: an iterable,
                async or not. It is iterated on the loop, as fast as the method reads.
            returns: Type of the result; a contract knows it.
            timeout: Seconds to wait; `within` sets it for a contract.
            on_progress: A plain function that is called with what the method reports of its
                progress, before the result is there; `within` sets it for a contract.
            kwargs: Parameters by name, for a contract.

        Raises:
            MethodNotFound: There is no such method.
            InvalidParams: The parameters do not fit it; its handler did not run.
            RemoteError: The handler raised; what is declared here is raised as itself.
            Unsupported: A Node end has no methods, or the method streams.
            Everything `request` raises.
        """
        asked = self.asker.call(method, params, kwargs)
        if asked is None:
            return await self.call_named(**as_named(method, params, kwargs))
        answer, nonce = asked
        try:
            raw = await answer
        except asyncio.CancelledError:
            self.asker.withdraw(nonce)
            raise
        except RemoteError as exc:
            raise self.asker.own(exc) from None
        return result_of(self._session.values, raw, kwargs.get("returns", Any))

    async def call_named(
        self,
        method: str,
        params: Sequence[object],
        *,
        named: Mapping[str, object] | None = None,
        items: Items | None = None,
        returns: Any = Any,
        timeout: float | None = DEFAULT_TIMEOUT,
        on_progress: Callable[[Any], object] | None = None,
    ) -> Any:
        """As `call`, with everything in its place; for a Client and `Within`."""
        if items is not None:
            begin = partial(self.open_stream, method, params, named, timeout)
            progress = on_progress is not None
            stream: Stream[Any] = Stream(begin, items=items, progress=progress)
            return await self._result_of(stream, returns, on_progress)
        timeout = shrunk(timeout)
        session = self._session
        payload = self.asker.call_payload(session.pack, method, params, named)
        answer: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        progress = on_progress is not None and "progress" in session.can
        if self.connection.crowded():
            timeout = await self._wait_for_room(payload, timeout)
        try:
            nonce = session.call(
                payload, answer, now=self._loop.time(), timeout=timeout, progress=progress
            )
        except Exception:
            session.take_back(payload)
            raise
        if on_progress is not None:
            self._listeners[answer] = on_progress
        try:
            raw = await self._answer_to(nonce, answer)
        finally:
            if on_progress is not None:
                del self._listeners[answer]
        return result_of(session.values, raw, returns)

    async def _result_of(
        self, stream: Stream[Any], returns: Any, listener: Callable[[Any], object] | None
    ) -> Any:
        """Send a method what it reads, and return what it returns."""
        if listener is not None:
            self._listeners[stream] = listener
        try:
            async with stream:
                return await stream.result(returns=returns)
        finally:
            self._listeners.pop(stream, None)

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
        """Call a method that answers, or is asked, piece by piece; see `Stream`.

            async with peer.stream("primes.below", 100, of=int) as primes:
                async for prime in primes: ...

        Args:
            method: Its name there, or a `Contract` that both sides share.
            params: Positional parameters.
            named: Parameters by name, for a method given by name.
            items: What the method reads; without it `Stream.send` sends them one by one.
            of: Type of the items that come; a contract knows it.
            window: How many items (or 1 KiB of them each) may come ahead of the reader.
            timeout: Seconds for the whole stream; by default there is no limit.
            kwargs: Parameters by name, for a contract.
        """
        return open_named(self.open_stream, method, params, kwargs)

    async def open_stream(
        self,
        method: str,
        params: Sequence[object],
        named: Mapping[str, object] | None,
        timeout: float | None,
        stream: Stream[Any],
    ) -> tuple[Line, Nonce]:
        """Ask for a stream, at once; for a `Stream`, a Client and `Within`."""
        timeout = shrunk(timeout)
        payload = self.asker.call_payload(self._session.codec.pack, method, params, named)
        if "streams" not in self._session.can:
            raise Unsupported("the other end is of a version without streams")
        if self.connection.crowded():
            timeout = await self._wait_for_room(payload, timeout)
        session, now = self._session, self._loop.time()
        progress = stream.progress and "progress" in session.can
        nonce = session.open_stream(
            payload, stream, window=stream.window, now=now, timeout=timeout, progress=progress
        )
        return Line(session, self.connection), nonce

    def within(
        self, timeout: float | None, *, on_progress: Callable[[Any], object] | None = None
    ) -> Within:
        """Calls that wait so many seconds: ``await peer.within(2).call(get_user, 7)``."""
        return Within(self.call_named, self.open_stream, timeout, on_progress)

    def loan(self, size: int) -> Loan:
        """Memory to build a large payload in, which is then sent without being copied; see `Loan`.

        with peer.loan(size) as loan:
            loan.view[:] = …
            await peer.send(loan)
        """
        self.connection.check_caller()
        return self._session.loan(size)

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
        """Handle no message, request or call of the peer until `resume`.

        A peer that is interphone gets no new credit, and is read on: answers, streams and
        publications come. A Node peer is not read any further.
        """
        self.connection.check_caller()
        if self._session.credit is not None:
            self.inbox.defer("paused")
        else:
            self.connection.stop_reading("paused")

    def resume(self) -> None:
        """Go on after `pause`."""
        self.connection.check_caller()
        self.inbox.release("paused")
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
        me = handling()
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

    async def ready_to_send(self, data: object, timeout: float | None = None) -> Outgoing:
        """Return `data` encoded, once there is room to send it; for a Client, too."""
        self.connection.check_caller()
        payload: Outgoing = self._session.codec.pack(data)
        if self.connection.crowded():
            await self._wait_for_room(payload, timeout)
        return payload

    async def _wait_for_room(self, payload: Outgoing, timeout: float | None) -> float | None:
        """Wait until it can be sent; return what is left of the timeout."""
        started = perf_counter()
        try:
            async with asyncio.timeout(timeout):
                await self.connection.writable()
        except TimeoutError:
            assert timeout is not None
            self._session.take_back(payload)
            raise RequestTimeout(timeout, delivery="not_sent") from None
        except BaseException:
            self._session.take_back(payload)
            raise
        return None if timeout is None else max(0.0, timeout - (perf_counter() - started))

    async def _answer_to(
        self, nonce: Nonce, answer: asyncio.Future[msgspec.Raw], *, of_handler: bool = True
    ) -> msgspec.Raw:
        """Wait for the answer; what a handler raised is raised as itself if it is declared here."""
        connection = self.connection
        connection.flush_soon()
        connection.arm()
        try:
            return await answer
        except asyncio.CancelledError:
            self.asker.withdraw(nonce)
            raise
        except RemoteError as exc:
            if not of_handler:
                raise
            raise self._own(exc) from None

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
        raw = await self._answer_to(nonce, answer, of_handler=False)
        return self._session.codec.decode(raw) if raw else None

    # Tokens are Futures and Streams, and the like, which a connection may bring along.

    def _failed(self, token: Any, error: InterphoneError) -> None:
        if token.done():
            return
        if isinstance(token, Stream) and isinstance(error, RemoteError):
            token.set_exception(self._own(error))
        else:
            token.set_exception(error)

    def _on_progress(self, token: object, raw: msgspec.Raw) -> None:
        listener = self._listeners.get(token)
        if listener is not None:
            try:
                listener(self._session.codec.decode(raw) if raw else None)
            except Exception as exc:  # the listener is user code
                self._events.report(self, exc)

    # The end

    def _on_violated(self, error: InterphoneError) -> None:
        self._events.report(self, error)

    def _on_lost(self, error: InterphoneError) -> None:
        self.inbox.lost()
        self._events.lost(self, error)


class Call:
    """What a method may ask about the call it answers; injected where it is annotated.

        @server.method
        async def who(call: Call) -> str:
            return call.peer.id

    Attributes:
        peer: Who calls.
        deadline: When the caller stops waiting, in the loop's time; None: never.
        until: The same by `time.monotonic`, for other threads.
    """

    def __init__(
        self, peer: Peer, report: Report | None = None, seconds: float | None = None
    ) -> None:
        self.peer = peer
        self.deadline: float | None = None
        self.until: float | None = None
        if seconds is not None:
            self.deadline = asyncio.get_running_loop().time() + seconds
            self.until = monotonic() + seconds
        self._report = report

    async def progress(self, value: object) -> None:
        """Tell the caller how far the work is; any value. Nothing is sent to who did not ask.

        A Node client asks by giving its envelope an `id`; it gets ``$/progress``. Cancelling
        is safe: it was sent whole or not at all.

        Raises:
            PayloadError: `value` has no form on the wire.
        """
        if self._report is not None:
            await self._report(value)


def reason_of(error: InterphoneError) -> Any:
    """What a disconnect or close hook is told: END's reason, else the error."""
    if isinstance(error, ConnectionClosed):
        return error.reason
    return error.reason if isinstance(error, ConnectionLost) else error


def _put(token: object, raw: msgspec.Raw) -> None:
    assert isinstance(token, Stream)  # only streams have items
    token.put(raw)


def _more(token: object) -> None:
    assert isinstance(token, Stream)
    token.more()


def _check_for_isdk(data: object) -> None:
    if isinstance(data, str) or (
        isinstance(data, dict) and any(data.get(key) for key in ("pub", "sub", "unsub"))
    ):
        raise Unsupported(
            "@isdk/ipc-server takes a string, or an object with pub, sub or unsub, for a "
            "subscription: put the value into an object of your own"
        )
