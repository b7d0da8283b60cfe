"""Peer: everything user code can say to one other end, and what runs for what it says.

Both ends of a connection have one, of the same class. Futures are made here, kept in the
Session as tokens, and settled here. Handlers for requests run concurrently; messages are
handled one at a time, in order, from a bounded queue that requests, pings and answers
never wait for. When too much of a peer's work is under way, it is not read any further.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from inspect import iscoroutine
from time import perf_counter
from typing import Any, NamedTuple, TypeVar, overload

import msgspec

from .connection import Connection
from .errors import (
    ConnectionClosed,
    ConnectionLost,
    InterphoneError,
    MessageTooBig,
    PayloadError,
    RemoteError,
    RequestTimeout,
    Unsupported,
)
from .handlers import PASS, Handler, Handlers
from .protocol.messages import Failure, Goodbye, Hello, Welcome, failure_of
from .protocol.session import Counts, Nonce, Reactions, Session
from .protocol.states import State

__all__ = ["DEFAULT_TIMEOUT", "Peer", "PeerEvents", "reason_of"]

logger = logging.getLogger("interphone")

T = TypeVar("T")

DEFAULT_TIMEOUT = 10.0
"""Seconds a request waits unless told otherwise; ``timeout=None`` waits without limit."""


class PeerEvents(NamedTuple):
    """What a Server or Client does about its peers, beyond what each peer does itself."""

    made: Callable[[Peer], None]
    hello: Callable[[Peer, Hello], None]
    opened: Callable[[Peer, Welcome], None]
    subscribe: Callable[[Peer, Nonce, list[str]], None]
    unsubscribe: Callable[[Peer, Nonce, list[str]], None]
    publish: Callable[[Peer, Nonce, str, msgspec.Raw, msgspec.Raw], None]
    publication: Callable[[Peer, str, msgspec.Raw], None]
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
        unheard: Messages that came when nobody listened to `on_message`.
    """

    def __init__(self, events: PeerEvents, handlers: Handlers, session: Session) -> None:
        self.id = ""
        self.payload: Any = None
        self.session: Any = None
        self._events = events
        self._handlers = handlers
        self.protocol = session
        self._session = session
        self._told: tuple[object, ...] = (self,) if handlers.told else ()
        self._react = Reactions(
            hello=partial(events.hello, self),
            opened=partial(events.opened, self),
            message=self._on_message,
            request=self._on_request,
            answered=self._answered,
            failed=self._failed,
            subscribe=partial(events.subscribe, self),
            unsubscribe=partial(events.unsubscribe, self),
            publish=partial(events.publish, self),
            publication=partial(events.publication, self),
            goodbye=self._on_goodbye,
            unreadable=partial(events.report, self),
            violated=self._on_violated,
        )
        self.connection = Connection(
            session,
            self._react,
            made=partial(events.made, self),
            lost=self._on_lost,
            abandoned=self._abandon_answers,
        )
        self._loop = asyncio.get_running_loop()
        self._answers: set[asyncio.Task[None]] = set()  # request handlers under way
        self._inflight = 0  # them, and the messages that wait or are being handled
        self._held = 0  # bytes of these
        self._messages: deque[msgspec.Raw] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None  # done at so many under way:
        self._idle_at = 0
        self._closer: asyncio.Task[Any] | None = None
        self._deferred: list[tuple[Callable[..., None], tuple[Any, ...]]] | None = None
        self.unheard = 0

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
    def inflight(self) -> int:
        """Its requests and messages that are being handled or wait for it."""
        return self._inflight

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
        payload = await self._ready(data)
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
        payload = await self._ready(data, timeout)
        session, codec = self._session, self._session.codec
        answer: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        nonce = session.request(payload, answer, now=self._loop.time(), timeout=timeout)
        raw = await self._answer_to(nonce, answer)
        try:
            return codec.decode(raw, returns) if raw else _nothing(returns)
        except PayloadError as exc:
            exc.delivery = "maybe_sent"
            raise

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
        self._closer = task
        was_open = session.state is State.OPEN
        if session.state is State.OPENING:
            connection.abort(ConnectionClosed(reason))
        try:
            if was_open:
                session.drain(reason, self._react)
                await self._finish_handlers(grace, besides=task)
                session.say_goodbye(reason, reconnect=reconnect)
                connection.hang_up()
            await asyncio.shield(connection.closed)
        except asyncio.CancelledError:
            connection.abort(ConnectionClosed(reason))
            raise
        return was_open

    def abort(self, reason: object = None) -> None:
        """End the connection now; what is queued is lost, and own requests fail."""
        self.connection.check_caller()
        self.connection.abort(ConnectionClosed(reason))

    # How a verb waits

    async def _ready(self, data: object, timeout: float | None = None) -> bytes:
        """Encode, and wait until there is room to send."""
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

    async def _answer_to(self, nonce: str, answer: asyncio.Future[msgspec.Raw]) -> msgspec.Raw:
        self.connection.flush_soon()
        self.connection.arm()
        try:
            return await answer
        except asyncio.CancelledError:
            self._session.forget(nonce)
            raise

    def ask(
        self, verb: Callable[..., str], *args: Any, timeout: float | None
    ) -> Coroutine[Any, Any, Any]:
        """Ask by another verb of `protocol`, at once; await what this returns for the answer."""
        self.connection.check_caller()
        answer: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        nonce = verb(*args, answer, now=self._loop.time(), timeout=timeout)
        self.connection.flush_soon()
        return self._decoded(nonce, answer)

    async def _decoded(self, nonce: str, answer: asyncio.Future[msgspec.Raw]) -> Any:
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

    # What the peer says

    def defer(self) -> None:
        """Keep its messages and requests until `release`: handlers may still be registered."""
        self._deferred = []

    def release(self) -> None:
        """Handle what was kept, in order."""
        deferred, self._deferred = self._deferred or (), None
        for handle, args in deferred:
            self._let_go(args[-1])
            handle(*args)

    def _on_message(self, raw: msgspec.Raw) -> None:
        handlers = self._handlers.on_message
        if self._deferred is not None:
            self._deferred.append((self._on_message, (raw,)))
            self._take_on(raw)
        elif not handlers:
            self.unheard += 1
        elif self._reader is not None:
            self._messages.append(raw)
            self._take_on(raw)
        else:
            self._handle(raw)

    def _handle(self, raw: msgspec.Raw) -> None:
        """Handle a message now; if a handler has to wait, others queue up behind it."""
        try:
            data = self._session.codec.decode(raw) if raw else None
        except PayloadError as exc:
            self._session.counts.unreadable += 1
            self._events.report(self, exc)
            return
        waiting = self._handlers.on_message.start(*self._told, data)
        if waiting:
            self._take_on(raw)
            self._reader = self._handlers.tasks.start(self._read_on(waiting, raw))
            if self._reader.done():
                self._reader = None

    async def _read_on(self, waiting: list[Any], raw: msgspec.Raw) -> None:
        """Await the handlers of one message, then of all that queued up meanwhile."""
        hook = self._handlers.on_message
        while True:
            for coroutine in waiting:
                await hook.guard(coroutine, self._told)
            self._let_go(raw)
            waiting = []
            while not waiting and self._messages:
                raw = self._messages.popleft()
                try:
                    data = self._session.codec.decode(raw) if raw else None
                except PayloadError as exc:
                    self._events.report(self, exc)
                else:
                    waiting = hook.start(*self._told, data)
                if not waiting:
                    self._let_go(raw)
            if not waiting:
                self._reader = None
                return

    def _on_request(self, nonce: Nonce, raw: msgspec.Raw) -> None:
        chain = self._handlers.on_request.handlers
        if self._deferred is not None:
            self._deferred.append((self._on_request, (nonce, raw)))
            self._take_on(raw)
        elif self._session.state is State.DRAINING:
            self._session.fail(nonce, Failure("closing", "the peer is closing"))
        elif not (chain and chain[0].inline and self._answer_inline(nonce, raw, chain[0])):
            self._answer_later(nonce, raw)

    def _answer_inline(self, nonce: Nonce, raw: msgspec.Raw, handler: Handler) -> bool:
        """Ask the first handler without a task; False if its result has to be waited for."""
        try:
            data = self._session.codec.decode(raw) if raw else None
        except PayloadError:
            return False  # the long way says why
        try:
            result = handler.function(*self._told, data)
        except Exception as exc:
            self._fail(nonce, failure_of(exc), exc)
            return True
        if result is PASS or iscoroutine(result):
            self._answer_later(nonce, raw, result)
        else:
            self._respond(nonce, result)
        return True

    def _answer_later(self, nonce: Nonce, raw: msgspec.Raw, first: object = None) -> None:
        """Answer in a task; `first` is what the first handler returned, if it was asked."""
        self._take_on(raw)
        task = self._handlers.tasks.start(self._answer(nonce, raw, first))
        if not task.done():
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    async def _answer(self, nonce: Nonce, raw: msgspec.Raw, first: object) -> None:
        """Ask the handlers, and answer: with a result or with why there is none."""
        chain = self._handlers.on_request
        try:
            result = await self._ask_handlers(raw, first)
            if self.connection.crowded():
                await self.connection.writable()
        except _Unreadable as exc:
            self._fail(nonce, Failure("invalid", str(exc)), exc.error)
        except SystemExit as exc:  # the handler's wish is not the server's
            self._fail(nonce, Failure("failed", str(exc), "SystemExit"))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._fail(nonce, Failure("failed", "the handler was cancelled", "CancelledError"))
        except Exception as exc:
            self._fail(nonce, failure_of(exc), exc)
        else:
            if result is PASS:
                self._fail(nonce, Failure("unhandled", _unhandled(bool(chain))))
            else:
                self._respond(nonce, result)
        finally:
            self._let_go(raw)

    async def _ask_handlers(self, raw: msgspec.Raw, first: object) -> object:
        chain, tasks = self._handlers.on_request, self._handlers.tasks
        if iscoroutine(first):
            first = await first
            if first is not PASS:
                return first
        try:
            data = self._session.codec.decode(raw) if raw else None
        except PayloadError as exc:
            raise _Unreadable(exc) from exc
        return await chain.answer(tasks, (*self._told, data), asked=first is PASS)

    def _respond(self, nonce: Nonce, result: object) -> None:
        try:
            self._session.respond(nonce, self._session.codec.encode(result))
        except (PayloadError, MessageTooBig) as exc:
            self._fail(nonce, failure_of(exc), exc)
        else:
            self.connection.flush_soon()

    def _fail(self, nonce: Nonce, failure: Failure, error: Exception | None = None) -> None:
        """Tell the asker; tell this side, too, unless the error was meant for the asker."""
        if error is not None and not isinstance(error, RemoteError):
            self._events.report(self, error)
        try:
            self._session.fail(nonce, failure)
        except (PayloadError, MessageTooBig):  # its message or data cannot go over
            self._session.fail(
                nonce, Failure(failure.code, "an error that cannot be sent", failure.kind)
            )
        self.connection.flush_soon()

    def reply(self, nonce: Nonce, value: object) -> None:
        """Answer a request that the owner took."""
        self._respond(nonce, value)

    def refuse_request(self, nonce: Nonce, failure: Failure) -> None:
        """Fail a request that the owner took."""
        self._fail(nonce, failure)

    # How much is under way

    def _take_on(self, raw: msgspec.Raw) -> None:
        self._inflight += 1
        self._held += len(bytes(raw))
        limits = self._session.limits
        if self._inflight >= limits.max_inflight or self._held >= limits.max_held:
            self.connection.stop_reading("busy")

    def _let_go(self, raw: msgspec.Raw) -> None:
        self._inflight -= 1
        self._held -= len(bytes(raw))
        limits = self._session.limits
        if self._inflight < limits.max_inflight and self._held < limits.max_held:
            self.connection.go_on_reading("busy")
        if self._idle is not None and self._inflight <= self._idle_at and not self._idle.done():
            self._idle.set_result(None)

    async def _finish_handlers(self, grace: float, *, besides: asyncio.Task[Any] | None) -> None:
        """Wait until nothing of the peer's is under way; then cancel the answers that are left.

        A handler that closes its own peer would wait for itself: it is left alone.
        """
        self._idle_at = int(besides in self._answers or (self._reader is besides is not None))
        if self._inflight > self._idle_at and grace > 0:
            self._idle = self._loop.create_future()
            await asyncio.wait(
                [self._idle, self.connection.closed],
                timeout=grace,
                return_when=asyncio.FIRST_COMPLETED,
            )
        for task in self._answers - {besides}:
            task.cancel()

    # The end

    def _on_goodbye(self, goodbye: Goodbye) -> None:
        pass  # the session is closed now, and the connection hangs up; `lost` tells the rest

    def _on_violated(self, error: InterphoneError) -> None:
        self._events.report(self, error)

    def _on_lost(self, error: InterphoneError) -> None:
        self._abandon_answers()
        self._events.lost(self, error)

    def _abandon_answers(self) -> None:
        """Nobody waits for them any more. Whoever ended the connection goes on."""
        for task in self._answers - {self._closer}:
            task.cancel()

    def when_heard(self, then: Callable[[], None]) -> None:
        """Call `then` when every message that came has been handled; for a Server."""
        if self._reader is None:
            then()
        else:
            self._reader.add_done_callback(lambda _: then())


class _Unreadable(Exception):
    """A request's payload cannot be decoded: the asker's fault, not a handler's."""

    def __init__(self, error: PayloadError) -> None:
        super().__init__(str(error))
        self.error = error


def reason_of(error: InterphoneError) -> Any:
    """What a disconnect or close hook is told: END's reason, else the error."""
    if isinstance(error, ConnectionClosed):
        return error.reason
    return error.reason if isinstance(error, ConnectionLost) else error


def _unhandled(any_handler: bool) -> str:
    return "no handler took the request" if any_handler else "nobody handles requests here"


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
