"""Link: one connection without an event loop, driven by the threads that wait for answers.

Whoever asks writes by itself, and then waits. The first that waits reads for all the others,
who sleep until it has their answer, or until it has its own and leaves the reading to one of
them. Nobody reads while nobody waits.

    lock      guards the session, what is not sent yet, and who reads; nobody waits within it
    reader    the ticket of the thread that reads; None: nobody does
    senders   those of the threads that wait until the system takes more

The descriptor is given back when neither a reader nor a sender is left: it might be another
one's by the time they look at it again.

An interrupt (Ctrl-C) may come between any two steps. While a thread waits that is harmless.
While it holds the lock something may be half done: then the connection is broken off, and
everybody who waits is told.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

import msgspec

from ..awake import Pace
from ..errors import (
    ConnectError,
    ConnectionClosed,
    ConnectionLost,
    HandshakeError,
    InterphoneError,
    MethodNotFound,
    PayloadError,
    RequestTimeout,
)
from ..protocol.events import Nonce, Options, Reactions
from ..protocol.messages import Asked, Failure, Welcome
from ..protocol.session import Session
from ..protocol.states import State
from ..protocol.wire import LARGE, Outgoing
from ..transports import PlainSocket, shared_memory

__all__ = ["Link", "MovedError", "Ticket"]

_OPEN, _CLOSED = State.OPEN, State.CLOSED  # hot path: a member costs 100 ns on Python 3.11

SLICE = 1.0  # seconds of one wait; what was missed is seen then
BRIEFLY = 0.1  # seconds after which it is likely that who holds the lock cannot go on


class MovedError(Exception):
    """An event loop drives the connection now: ask there."""


class Ticket:
    """A request, and the thread that waits for its answer.

    Args:
        hear: Is called in that thread with what is reported meanwhile.
    """

    __slots__ = ("error", "hear", "left", "news", "raw", "settled", "wake")

    def __init__(self, hear: Callable[[msgspec.Raw], None] | None = None) -> None:
        self.settled = False
        self.left = False  # nobody waits any more
        self.raw = msgspec.Raw()
        self.error: InterphoneError | None = None
        self.hear = hear
        self.news: deque[msgspec.Raw] = deque()
        self.wake: SimpleQueue[None] | None = None

    # As a Future: whoever reads may be an event loop, after a while

    def done(self) -> bool:
        """Whether it is settled."""
        return self.settled

    def set_result(self, raw: msgspec.Raw) -> None:
        """The answer came."""
        self.raw = raw
        self._settle()

    def set_exception(self, error: InterphoneError) -> None:
        """There is none, and why."""
        self.error = error
        self._settle()

    def report(self, raw: msgspec.Raw) -> None:
        """Something is reported before the answer."""
        if self.hear is not None:
            self.news.append(raw)
            self.rouse()

    def _settle(self) -> None:
        self.settled = True
        self.rouse()

    def rouse(self) -> None:
        """Wake its thread up, if that sleeps."""
        wake = self.wake
        if wake is not None:
            wake.put(None)

    # What its thread does

    def sleep(self, timeout: float) -> None:
        """Wait until it is roused."""
        wake = self.wake
        assert wake is not None
        if not self.settled:  # else nobody may have seen `wake`
            with suppress(Empty):
                wake.get(timeout=timeout)

    def listen(self) -> None:
        """Hear what was reported."""
        while self.news:
            raw = self.news.popleft()
            assert self.hear is not None
            self.hear(raw)

    def result(self) -> msgspec.Raw:
        """Return the answer, or raise why there is none."""
        if self.error is not None:
            raise self.error
        return self.raw


class Link:
    """One connection.

    Attributes:
        session: Its protocol state.
        id: What the server calls this client.
        forget: Takes back a request; another one when the link was handed over.
        used: When it was last used.
    """

    def __init__(self, socket: PlainSocket, session: Session, pace: Pace | None = None) -> None:
        self.session = session
        self.id = ""
        self.used = monotonic()
        if session.pools:
            session.memory = shared_memory(socket.credentials)
        self.forget: Callable[[Nonce], None] = self._forget
        self._socket = socket
        self._pace = pace
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._out: list[bytes | memoryview] = []  # what the system did not take
        self._cut = False  # the connection was lost before it took that
        self._reader: Ticket | None = None
        self._senders: set[Ticket] = set()
        self._waiting: dict[Ticket, None] = {}
        self._wanted = False  # somebody takes the connection away from its reader
        self._handed_over = False
        self._left: SimpleQueue[None] = SimpleQueue()  # a reader or sender has left
        self._unwanted: ConnectionClosed | None = None  # as a signal handler says
        self._opened: Welcome | None = None
        self._react = Reactions(
            hello=_ignored,
            opened=self._on_opened,
            message=_ignored,
            request=self._on_request,
            answered=_settle,
            failed=_fail,
            subscribe=_ignored,
            unsubscribe=_ignored,
            publish=_ignored,
            publication=_ignored,
            goodbye=_ignored,
            unreadable=_ignored,
            violated=_ignored,
            call=self._on_call,
            cancelled=_ignored,
            open=self._on_call,
            item=_ignored,
            granted=_ignored,
            input=_ignored,
            demanded=_ignored,
            progress=_report,
            forget=_ignored,
            allowed=_ignored,
            missed=_ignored,
        )

    @property
    def usable(self) -> bool:
        """Whether it can be asked; as far as anybody has looked."""
        return self.session.state is _OPEN

    @property
    def inherited(self) -> bool:
        """Whether it belongs to the parent of this process."""
        return os.getpid() != self._pid

    @property
    def handed_over(self) -> bool:
        """Whether an event loop drives it now."""
        return self._handed_over

    # Opening

    def open(
        self, payload: object, *, id: str | None, upgrade_to: str | None, until: float
    ) -> None:
        """Have the server let us in.

        Raises:
            Refused: It says no.
            ConnectError: It does not answer in time, or hangs up.
            HandshakeError: It speaks something else.
        """
        session = self.session
        encoded = None if payload is None else session.codec.encode(payload)
        ticket = Ticket()
        try:
            with self._lock:
                self._reader = ticket
                session.open(encoded, id=id, upgrade_to=upgrade_to)
                self._write()
            self._wait_to_be_opened(until)
        finally:
            self._pass_on(ticket)
        if self._opened is None:
            raise _not_opened(session.error)

    def _wait_to_be_opened(self, until: float) -> None:
        while self._opened is None and self.session.state is not State.CLOSED:
            left = until - monotonic()
            if left <= 0:
                raise ConnectError("the server did not answer in time", transient=True)
            if self._out:
                self._socket.wait_to_send(min(left, SLICE), reading=True)
            elif not self._socket.wait(min(left, SLICE)):
                continue
            with self._lock:
                self._receive()

    def _on_opened(self, welcome: Welcome) -> None:
        self.id = welcome.id if isinstance(welcome.id, str) else str(welcome.id)
        self._opened = welcome

    # Asking

    def send(self, data: object) -> None:
        """Send a message; wait until the system has taken it.

        Raises:
            ConnectionLost: The connection is gone; see `.delivery`.
        """
        payload = self.session.pack(data)
        try:
            self._flush(None)
        except BaseException:
            self.session.take_back(payload)
            raise
        with self._lock:
            try:
                self._guarded(self._put_message, payload)
            except Exception:  # an interrupt may come behind it, and then it is on its way
                self.session.take_back(payload)
                raise
        self._flush(None)
        if self._unwanted is not None:
            with self._lock:
                self._heed()
        if self._cut:
            raise ConnectionLost(self.session.error, delivery="maybe_sent")

    def _put_message(self, payload: Outgoing) -> None:
        self._check_mine()
        self.session.send(payload)
        if not self._write():
            raise ConnectionLost(self.session.error, delivery="not_sent")

    def ask(
        self,
        verb: Callable[..., Nonce],
        *payload: Outgoing,
        timeout: float | None,
        hear: Callable[[msgspec.Raw], None] | None = None,
        **options: Any,
    ) -> msgspec.Raw:
        """Ask by a verb of the session, and wait for the answer.

        Raises:
            RequestTimeout: None came in time.
            ConnectionLost: The connection is gone; see `.delivery`.
        """
        ticket, nonce = Ticket(hear), None
        try:
            if self._out:
                started = monotonic()
                self._flush(timeout)
                timeout = None if timeout is None else timeout - (monotonic() - started)
            with self._lock:
                nonce = self._guarded(self._put_request, verb, payload, ticket, timeout, options)
                reading = self._take_place(ticket)
            self._wait(ticket, reading)
            while not ticket.settled:
                with self._lock:
                    reading = self._take_place(ticket)
                self._wait(ticket, reading)
        except BaseException:
            ticket.left = True
            if nonce is not None:
                self.forget(nonce)
            elif payload:
                self.session.take_back(payload[0])
            raise
        return ticket.result()

    def _put_request(
        self,
        verb: Callable[..., Nonce],
        payload: tuple[Outgoing, ...],
        ticket: Ticket,
        timeout: float | None,
        options: dict[str, Any],
    ) -> Nonce:
        self._check_mine()
        nonce = verb(*payload, ticket, now=monotonic(), timeout=timeout, **options)
        if not self._write() and ticket.error is not None:
            ticket.error.delivery = "not_sent"  # the other end was gone before
        return nonce

    def _check_mine(self) -> None:
        if self._handed_over:
            raise MovedError

    def _forget(self, nonce: Nonce) -> None:
        with self._lock:
            if not self._handed_over:
                self.session.forget(nonce)
                self._write()

    def _guarded(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that changes the session; break the connection off if it does not end."""
        try:
            return function(*args)
        except Exception:
            raise
        except BaseException:
            self._lose(ConnectionLost("a thread was interrupted while it used the connection"))
            raise

    # Waiting

    def _take_place(self, ticket: Ticket) -> bool:
        """Become the one who reads, or one of those who sleep; return whether it reads."""
        if self._unwanted is not None:
            self._heed()
        if not (self._wanted or self._handed_over) and self._may_read():
            self._reader, ticket.left = ticket, False
            return True
        ticket.wake = ticket.wake or SimpleQueue()
        self._waiting[ticket] = None
        return False

    def _wait(self, ticket: Ticket, reading: bool) -> None:
        """Read until the ticket is settled, or sleep a while as long as another thread reads."""
        try:
            if reading:
                self._read(ticket)
            else:
                self._sleep(ticket)
        finally:
            self._pass_on(ticket)
        if ticket.news:
            ticket.listen()

    def _may_read(self) -> bool:
        """Whether nobody reads, or who did was interrupted before it could say so."""
        return self._reader is None or self._reader.left

    def _sleep(self, ticket: Ticket) -> None:
        due = None if self._handed_over else self.session.next_tick
        ticket.sleep(SLICE if due is None else min(SLICE, max(due - monotonic(), 0.0)))
        with self._lock:
            if not (ticket.settled or self._handed_over):
                self._guarded(self._tick)

    def _pass_on(self, ticket: Ticket) -> None:
        """Leave; if this one read, have another do it."""
        ticket.left = True  # even if an interrupt comes before the rest is done
        with self._lock:
            self._waiting.pop(ticket, None)
            if self._wanted and (self._reader is ticket or ticket in self._senders):
                self._left.put(None)
            self._senders.discard(ticket)
            if self._reader is ticket:
                self._reader = None
            if self._waiting and self._reader is None and not self._wanted:
                for next_one in self._waiting:
                    next_one.rouse()
                    break
            if self.session.state is _CLOSED:
                self._close_if_over()

    def _read(self, ticket: Ticket) -> None:
        """Read, for everybody, until the ticket is settled or has news."""
        session, socket = self.session, self._socket
        while not (ticket.settled or ticket.news or self._wanted):
            due = session.next_tick
            timeout = SLICE if due is None else min(SLICE, max(due - monotonic(), 0.0))
            if self._out:
                socket.wait_to_send(timeout, reading=True)
            elif not (self._awake() or socket.wait(timeout)):
                with self._lock:
                    self._guarded(self._tick)
                continue
            with self._lock:
                self._guarded(self._receive)

    def _awake(self) -> bool:
        """Look for what comes without falling asleep, while it pays; whether there is any."""
        pace = self._pace
        return pace is not None and pace.pays and pace.stay(partial(self._socket.wait, 0))

    def _receive(self) -> None:
        """Take what has come, and react to it."""
        session = self.session
        data, size = b"", None
        try:
            if session.landing:
                size = self._socket.receive_into(session.room())
            elif (came := self._socket.receive()) is not None:
                data, size = came, len(came)
        except OSError as exc:
            self._lose(ConnectionLost(str(exc) or type(exc).__name__))
            return
        if size:
            if self._pace is not None:
                self._pace.came()
            self.used = session.heard = monotonic()
            if data:
                session.receive(data, self._react)
            else:
                session.landed(size, self._react)
        elif size is not None:
            cut = self.session.unfinished()
            why = "the stream ended within a frame" if cut else "the other side hung up"
            self._lose(self.session.error or ConnectionLost(why))
            return
        if self.session.queued or self._out:
            self._write()
        if self.session.state is _CLOSED:
            self._lose(self.session.error or ConnectionLost())

    def _tick(self) -> None:
        due = self.session.next_tick
        if due is not None and due <= (now := monotonic()):
            self.session.tick(now, self._react)
            self._write()
            if self.session.state is State.CLOSED:
                self._lose(self.session.error or ConnectionLost())

    def glance(self) -> None:
        """Take what has come while nobody waited: it may be that the server is gone."""
        with self._lock:
            while self._reader is None and self.usable and not self._handed_over:
                before = self.used
                self._guarded(self._receive)
                if self.used == before:
                    return

    # Writing

    def _write(self) -> bool:
        """Send what is queued, as far as the system takes it; whether the other end is there."""
        session, out = self.session, self._out
        if session.queued >= LARGE:
            out += session.pieces_to_send()
        elif data := session.data_to_send():
            out.append(data)
        if not out:
            return True
        try:
            sent = self._socket.send(out[0]) if len(out) == 1 else self._socket.send_pieces(out)
        except OSError as exc:
            self._on_broken(exc)
            return False
        while out and sent >= len(out[0]):
            sent -= len(out.pop(0))
        if sent:
            out[0] = memoryview(out[0])[sent:]
        return True

    def _on_broken(self, error: OSError) -> None:
        """The other end takes nothing any more. What it said before tells why."""
        self._cut, self._out = self._cut or bool(self._out), []
        with suppress(OSError):
            while data := self._socket.receive():
                self.session.receive(data, self._react)
        self._lose(self.session.error or ConnectionLost(str(error)))

    def _flush(self, timeout: float | None) -> None:
        """Wait until everything is sent; read meanwhile, or both ends might wait for ever.

        Raises:
            RequestTimeout: The other end did not take it in time.
        """
        if not self._out:
            return
        until = None if timeout is None else monotonic() + timeout
        ticket = Ticket()
        while self._out:
            left = SLICE if until is None else until - monotonic()
            if left <= 0:
                assert timeout is not None
                raise RequestTimeout(timeout, delivery="not_sent")
            try:
                with self._lock:
                    if self._handed_over or not self._out:
                        return
                    self._senders.add(ticket)
                    if mine := self._may_read():
                        self._reader, ticket.left = ticket, False
                self._socket.wait_to_send(min(left, SLICE), reading=mine)
                with self._lock:
                    self._guarded(self._receive if mine else self._write)
            finally:
                self._pass_on(ticket)

    # The end

    def _lose(self, error: InterphoneError) -> None:
        self.session.lose(error, self._react)
        self._cut, self._out = self._cut or bool(self._out), []
        self._socket.stop()
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self.session.state is State.CLOSED and not self._in_use and not self._handed_over:
            self._socket.close()

    @property
    def _in_use(self) -> bool:
        return self._reader is not None or bool(self._senders)

    def close(self, reason: object, timeout: float) -> None:
        """Say goodbye, and give the server so long to hang up."""
        until = monotonic() + timeout
        with self._lock:
            self._wanted = True
            if not self._handed_over:
                self.session.drain(reason, self._react)
                self.session.say_goodbye(reason)
                self._write()
        with suppress(RequestTimeout):
            self._flush(timeout)
        self._socket.finish()
        farewell = Ticket()
        while self.session.state is not State.CLOSED and (left := until - monotonic()) > 0:
            with self._lock:
                if self._may_read():
                    self._reader, farewell.left = farewell, False
            if self._reader is not farewell:
                with suppress(Empty):
                    self._left.get(timeout=min(left, SLICE))
                continue
            try:
                if self._socket.wait(min(left, SLICE)):
                    with self._lock:
                        self._guarded(self._receive)
            finally:
                self._pass_on(farewell)
        self.abort(reason)

    def abort(self, reason: object) -> None:
        """End it now."""
        with self._lock:
            if not self._handed_over:
                self._lose(self.session.error or ConnectionClosed(reason))

    def break_off(self, reason: object) -> None:
        """End it for a signal handler, which may have interrupted the thread with the lock."""
        self._unwanted = ConnectionClosed(reason)
        if self._lock.acquire(timeout=BRIEFLY):
            try:
                self._heed()
            finally:
                self._lock.release()
        else:
            self._wanted = True  # who reads leaves, and who comes to wait heeds it

    def _heed(self) -> None:
        """End it if a signal handler wants that."""
        error, self._unwanted = self._unwanted, None
        if error is not None and not self._handed_over:
            self.session.say_goodbye(error.reason)
            self._write()
            self._lose(self.session.error or error)

    def drop(self) -> None:
        """Give the descriptor back, which belongs to the parent process."""
        self._socket.close()

    def hand_over(self) -> PlainSocket | None:
        """Give the connection away to an event loop; None if it has ended.

        The threads that wait go on to do so: their tickets are settled by the loop.
        """
        self._flush(None)
        self._wanted = True
        try:
            while True:
                self._have_the_reader_leave()
                self._flush(None)  # what others have sent meanwhile
                with self._lock:
                    if not self.usable:
                        return None
                    if self._may_read() and not (self._out or self._senders):
                        self._handed_over = True
                        return self._socket
                if not self._out:
                    with suppress(Empty):  # a sender is about to leave
                        self._left.get(timeout=BRIEFLY)
        except BaseException:
            self._wanted = False
            for ticket in tuple(self._waiting):
                ticket.rouse()
            raise

    def _have_the_reader_leave(self) -> None:
        with self._lock:
            if self._reader is None or not self.usable:
                return
            self.session.ping(Ticket())  # the answer wakes it up
            self._write()
        while not self._may_read():
            with suppress(Empty):
                self._left.get(timeout=SLICE)

    # What the server asks of a client that has neither handlers nor methods

    def _on_request(self, nonce: Nonce, raw: msgspec.Raw, options: Options) -> None:
        self.session.fail(nonce, Failure("unhandled", "nobody handles requests here"))

    def _on_call(self, nonce: Nonce, raw: msgspec.Raw, options: Options) -> None:
        try:
            method: str = self.session.codec.decode(raw, Asked).method
        except PayloadError as exc:
            self.session.fail(nonce, Failure("invalid", f"no call: {exc}"))
            return
        error = MethodNotFound(method)
        facts = {"method": method, "nearest": None}
        self.session.fail(nonce, Failure("method-not-found", str(error), data=facts))


def _not_opened(error: InterphoneError | None) -> InterphoneError:
    if isinstance(error, ConnectError):
        return error
    if isinstance(error, ConnectionLost):
        return ConnectError(f"the server hung up: {error}", transient=True)
    return HandshakeError(str(error))


def _settle(token: Any, raw: msgspec.Raw) -> None:
    token.set_result(raw)


def _fail(token: Any, error: InterphoneError) -> None:
    token.set_exception(error)


def _report(token: Any, raw: msgspec.Raw) -> None:
    token.report(raw)


def _ignored(*_: object) -> None:
    """Nobody here listens."""
