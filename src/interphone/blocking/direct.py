"""Direct: the life of a client without an event loop, as long as it only asks and sends.

It connects when it is told to, and comes back when it is used after the connection was lost:
nobody looks at it meanwhile. Everything else, handlers above all, needs the portal.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import monotonic, perf_counter
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from ..address import Address
from ..awake import Latency, pace_of
from ..backoff import Backoff
from ..deadlines import shrunk
from ..declared import Declared
from ..errors import (
    ConnectError,
    ConnectionClosed,
    ConnectionLost,
    ForkedError,
    InterphoneError,
    LocalProtocolError,
    Refused,
    RemoteError,
    RequestTimeout,
    Unsupported,
)
from ..exit import at_exit
from ..limits import DEFAULT_TIMEOUT, Limits
from ..protocol.loan import Loan
from ..protocol.payload import Json, result_of
from ..protocol.session import Session
from ..status import Outage, Status
from ..transports import connect_socket
from .link import Link, MovedError

__all__ = ["Direct", "Moving", "Settings"]

R = TypeVar("R")

FORKED = "the connection belongs to the parent process: make a new client after fork"
NESTED = (
    "this thread is in a call of this client, and has been interrupted in it:"
    " use another client in a signal handler"
)
FRESH = 0.01  # seconds after which it is looked whether the server is still there


class Settings(msgspec.Struct, frozen=True):
    """What a client was made with, as far as it is needed without an event loop."""

    address: Address
    limits: Limits
    connect_timeout: float | None
    backoff: Backoff | None
    options: dict[str, Any]
    upgrade: str | None
    allowed_uids: frozenset[int] | None
    latency: Latency


class Direct:
    """A client's life.

    Attributes:
        status: Where it is in it.
        id: What the server calls it.
        outage: Why there is no connection, while it tries to get one.
        payload: What `connect` tells the server.
        moved: Whether it has moved to the portal.
    """

    def __init__(self, settings: Settings, payload: object, errors: Declared) -> None:
        self.status = Status.IDLE
        self.id: str | None = None
        self.outage: Outage | None = None
        self.payload = payload
        self.moved = False
        self._settings = settings
        self._pace = pace_of(settings.latency)
        self._errors = errors
        self._link: Link | None = None
        self._connecting = threading.Lock()
        self._closing = threading.Event()
        self._opening: Link | None = None  # that of the attempt under way
        self._pid = os.getpid()  # of the process that it was connected in
        self._inside: set[int] = set()  # threads that are in a verb
        self._attempts = 0
        self._ready_at = 0.0
        self._end: InterphoneError | None = None

    # Life

    def connect(self, payload: object) -> None:
        """Connect; see `Client.connect`."""
        if self.status is not Status.IDLE:
            raise LocalProtocolError(f"the client is {self.status.name}, not IDLE")
        if payload is not msgspec.UNSET:
            _payload_codec.encode(payload)
            self.payload = payload
        if os.getpid() != self._pid:  # a thread of the parent may hold the lock for ever
            self._connecting, self._closing = threading.Lock(), threading.Event()
            self._inside = set()
        self._closing.clear()
        self._pid = os.getpid()
        _connected[id(self)] = self
        self._end, self._attempts, self._ready_at = None, 0, 0.0
        timeout = self._settings.connect_timeout
        until = None if timeout is None else monotonic() + timeout
        self.status = Status.CONNECTING
        try:
            with self._connecting:
                self._establish(until)
        except _LateError:
            why = self.outage.error if self.outage else "the server did not answer"
            raise ConnectError(
                f"no connection to {self._settings.address} within {timeout:g} s: {why}",
                transient=True,
            ) from None
        finally:
            if self._link is None:
                self.status, self.outage = Status.IDLE, None

    def close(self, reason: object) -> bool:
        """Say goodbye; return whether there was anything to close."""
        return self._finish_by(reason, lambda link: link.close(reason, self._patience))

    def abort(self, reason: object) -> None:
        """End the connection now."""
        self._finish_by(reason, lambda link: link.abort(reason))

    def leave(self, until: float) -> None:
        """Say goodbye, because the program ends."""
        if self.moved or self.status is Status.IDLE or os.getpid() != self._pid:
            return
        patience = min(self._patience, max(0.0, until - monotonic()))
        self._finish_by(None, lambda link: link.close(None, patience))

    @property
    def _patience(self) -> float:
        return self._settings.limits.close_timeout

    def _finish_by(self, reason: object, end: Callable[[Link], None]) -> bool:
        was_alive = self.status is not Status.IDLE
        self._closing.set()
        link, self._link = self._link, None
        if was_alive:
            self._finish(ConnectionClosed(reason))
        opening = self._opening
        if opening is not None and not opening.inherited:
            opening.abort(reason)  # whoever connects need not wait for the server
        if link is None:
            return was_alive
        if link.inherited:
            link.drop()
        elif threading.get_ident() in self._inside:
            link.break_off(reason)
        else:
            end(link)
        return was_alive

    def _finish(self, error: InterphoneError) -> None:
        self.status, self.outage, self._end = Status.IDLE, None, error

    # Connecting; who calls holds `_connecting`

    def _establish(self, until: float | None) -> Link:
        """Try until a connection stands, or it makes no sense any more."""
        backoff = self._settings.backoff
        while True:
            self._attempts += 1
            try:
                return self._attempt(until)
            except Refused:
                raise
            except ConnectError as exc:
                if not exc.transient and not self._ready_at:
                    raise
                error = exc
            if backoff is None or self._attempts == backoff.attempts:
                raise error
            self._pause_before_retry(backoff, error, until)

    def _pause_before_retry(
        self, backoff: Backoff, error: InterphoneError, until: float | None
    ) -> None:
        wait = backoff.wait(self._attempts)
        self.outage = Outage(self._attempts, wait, error)
        self.status = Status.RECONNECTING
        left = wait if until is None else until - monotonic()
        if self._closing.wait(max(0.0, min(wait, left))):
            raise ConnectionClosed("the client was closed", delivery="not_sent")
        if left < wait:
            raise _LateError

    def _attempt(self, until: float | None) -> Link:
        """Make one attempt, all the way to a server that has let us in."""
        settings = self._settings
        self.status = Status.CONNECTING
        patience = monotonic() + settings.limits.handshake_timeout
        until = patience if until is None else min(patience, until)
        session = Session("client", now=monotonic(), idle=True, **settings.options)
        socket = connect_socket(settings.address, allowed_uids=settings.allowed_uids)
        self._opening = link = Link(socket, session, self._pace)
        try:
            if not self._closing.is_set():  # else it may not have been seen
                self.status = Status.CONNECTED
                link.open(self.payload, id=self.id, upgrade_to=settings.upgrade, until=until)
        except BaseException as exc:
            link.abort(None)
            if isinstance(exc, InterphoneError) and self._closing.is_set():
                raise ConnectionClosed("the client was closed", delivery="not_sent") from None
            raise
        finally:
            self._opening = None
        if self._closing.is_set():
            link.abort(None)
            raise ConnectionClosed("the client was closed", delivery="not_sent")
        self.id, self._link, self.outage = link.id, link, None
        self._ready_at = monotonic()
        self.status = Status.READY
        return link

    def _come_back(self, link: Link, until: float | None) -> Link:
        """Connect again, or give up for good, because the connection was lost."""
        backoff = self._settings.backoff
        error = link.session.error or ConnectionLost()
        link.abort(None)
        self._link = None
        self.status = Status.DISCONNECTED
        if backoff is None or self._for_good(link):
            self._finish(error)
            raise self._absence()
        if monotonic() - self._ready_at >= backoff.reset_after:
            self._attempts = 0
        self._attempts = max(self._attempts, 1)  # the connection that was lost counts as one
        return self._try_again(backoff, error, until)

    def _for_good(self, link: Link) -> bool:
        """Whether there is no coming back from the end of this connection."""
        goodbye = link.session.goodbye
        return self._settings.backoff is None or (goodbye is not None and not goodbye.a)

    def _try_again(self, backoff: Backoff, error: InterphoneError, until: float | None) -> Link:
        try:
            if self._attempts == backoff.attempts:
                raise error
            self._pause_before_retry(backoff, error, until)
            return self._establish(until)
        except InterphoneError as exc:
            if self.status is not Status.IDLE:
                self._finish(exc if isinstance(exc, ConnectionLost) else ConnectionLost(exc))
            raise self._absence() from exc

    def _at_hand(self, now: float) -> Link | None:
        """The connection, if there is one that nobody knows to be over.

        Raises:
            ForkedError: It belongs to the parent of this process.
        """
        link = self._link
        if link is None or self.moved:
            return None
        if link.inherited:
            raise ForkedError(FORKED)
        if now - link.used > FRESH:
            link.glance()
        return link if link.usable else None

    def _standing(self, timeout: float | None, started: float) -> tuple[Link, float | None]:
        """The connection, once there is one, and what is left of the timeout.

        Raises:
            RequestTimeout: None came back in time; nothing was sent.
            ConnectionLost: There is none, and none will come.
        """
        self.check_process()
        if timeout is None:
            with self._connecting:
                return self._restored(None), None
        until = started + timeout
        patience = min(max(0.0, until - monotonic()), threading.TIMEOUT_MAX)
        if not self._connecting.acquire(timeout=patience):
            raise RequestTimeout(timeout, delivery="not_sent")
        try:
            link = self._restored(until)
        except _LateError:
            raise RequestTimeout(timeout, delivery="not_sent") from None
        finally:
            self._connecting.release()
        left = until - monotonic()
        if left <= 0:
            raise RequestTimeout(timeout, delivery="not_sent")
        return link, left

    def check_process(self) -> None:
        """Raise `ForkedError` if it belongs to the parent of this process."""
        if self.status is not Status.IDLE and os.getpid() != self._pid:
            raise ForkedError(FORKED)  # a thread of the parent may hold the lock for ever

    def _restored(self, until: float | None) -> Link:
        link = self._link
        if self.moved:
            raise MovedError
        if link is not None:
            return link if link.usable else self._come_back(link, until)
        if self.status is Status.IDLE:
            raise self._absence()
        error = self.outage.error if self.outage else ConnectionLost("it is being restored")
        assert self._settings.backoff is not None  # somebody tried again, and gave up waiting
        return self._try_again(self._settings.backoff, error, until)

    def _absence(self) -> InterphoneError:
        end = self._end
        if isinstance(end, ConnectionClosed):
            return ConnectionClosed(end.reason, by_peer=end.by_peer, delivery="not_sent")
        if end is not None:
            reason = end.reason if isinstance(end, ConnectionLost) else end
            return ConnectionLost(reason, delivery="not_sent")
        return LocalProtocolError("the client is not connected: client.connect() first")

    # Verbs

    def send(self, data: object, timeout: float | None) -> None:
        """See `Client.send`."""
        self._on_link(timeout, lambda link, timeout: link.send(data))

    def request(self, data: object, returns: Any, timeout: float | None) -> Any:
        """See `Client.request`."""

        def ask(link: Link, timeout: float | None) -> Any:
            session = link.session
            raw = link.ask(session.request, session.pack(data), timeout=timeout)
            return result_of(session.values, raw, returns)

        return self._on_link(shrunk(timeout), ask)

    def call(
        self,
        method: str,
        params: Sequence[object],
        *,
        named: Mapping[str, object] | None = None,
        returns: Any = Any,
        timeout: float | None = DEFAULT_TIMEOUT,
        on_progress: Callable[[Any], object] | None = None,
    ) -> Any:
        """See `Client.call`."""
        asked: dict[str, object] = {"method": method, "params": params}
        if named:
            asked["named"] = named

        def ask(link: Link, timeout: float | None) -> Any:
            session = link.session
            if not session.interphone:
                raise Unsupported("a Node end has no methods: ask it by a request")
            codec = session.codec
            hear = None
            if on_progress is not None and "progress" in session.can:
                hear = self._listener(codec, on_progress)
            raw = link.ask(
                session.call,
                session.pack(asked),
                timeout=timeout,
                hear=hear,
                progress=hear is not None,
            )
            return result_of(session.values, raw, returns)

        return self._on_link(shrunk(timeout), ask)

    def loan(self, size: int) -> Loan:
        """See `Client.loan`."""
        self.check_process()
        link = self._link
        return Loan(size) if link is None else link.session.loan(size)

    def ping(self, timeout: float | None) -> float:
        """See `Client.ping`."""

        def ask(link: Link, timeout: float | None) -> float:
            started = perf_counter()
            link.ask(link.session.ping, timeout=timeout)
            return perf_counter() - started

        return self._on_link(timeout, ask)

    def _on_link(self, timeout: float | None, ask: Callable[[Link, float | None], R]) -> R:
        """Do something with the connection; with the next one if it certainly was not done."""
        me = self._check_nesting()
        try:
            self._inside.add(me)
            return self._on_some_link(timeout, ask)
        finally:
            self._inside.discard(me)

    def _check_nesting(self) -> int:
        """Raise if a signal handler would wait for the thread that it has interrupted."""
        me = threading.get_ident()
        if me in self._inside:
            raise LocalProtocolError(NESTED)
        return me

    def _on_some_link(self, timeout: float | None, ask: Callable[[Link, float | None], R]) -> R:
        started = monotonic()
        link, left = self._at_hand(started), timeout
        while True:
            if link is None:
                link, left = self._standing(timeout, started)
            try:
                return ask(link, left)
            except RemoteError as exc:
                raise self._errors.own(link.session.codec, exc) from None
            except ConnectionLost as exc:
                # A server may have left since anybody looked: that shows with the first byte.
                # Another thread may have made the next connection already.
                if exc.delivery != "not_sent" or link.usable:
                    raise
            link = None

    def _listener(
        self, codec: Any, listen: Callable[[Any], object]
    ) -> Callable[[msgspec.Raw], None]:
        def hear(raw: msgspec.Raw) -> None:
            me = threading.get_ident()
            self._inside.discard(me)  # who listens may ask, too
            try:
                listen(codec.decode(raw) if raw else None)
            finally:
                self._inside.add(me)

        return hear

    # Moving

    def move(self) -> Moving:
        """Give everything away to the portal; verbs raise `MovedError` from now on.

        Raises:
            ForkedError: It belongs to the parent of this process.
        """
        self.check_process()
        self._check_nesting()
        with self._connecting:
            link = self._link
            if link is not None and link.inherited:
                raise ForkedError(FORKED)
            if link is not None:
                link.glance()
            socket = None if link is None else link.hand_over()
            if link is not None and socket is None and self._for_good(link):
                self._finish(link.session.error or ConnectionLost())
            self.moved = True
            alive = self.status is not Status.IDLE
            return Moving(alive, self.id, self.payload, link, socket, self._end)

    @property
    def isdk(self) -> bool:
        """Whether the server is @isdk/ipc-server, which must be nudged when all is quiet."""
        return self._link is not None and self._link.session.isdk


class Moving(msgspec.Struct, frozen=True):
    """What a client takes along to the portal."""

    alive: bool
    id: str | None
    payload: object
    link: Link | None
    socket: Any
    end: InterphoneError | None


class _LateError(Exception):
    """The time is over."""


_payload_codec = Json(lenient=True)


_connected: WeakValueDictionary[int, Direct] = WeakValueDictionary()  # at some time, by identity


def _exit(until: float) -> None:
    for direct in [ref() for ref in _connected.valuerefs()]:
        if direct is not None:
            with suppress(InterphoneError):  # the others are to say goodbye all the same
                direct.leave(until)


at_exit("clients", _exit)
