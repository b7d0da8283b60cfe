"""Client: one peer after another, for programs without an event loop.

It begins *direct*: whoever asks drives the connection in its own thread (`direct.py`), and
no event loop is even imported. What needs somebody to listen all the time, handlers and
subscriptions above all, moves it to the portal (`far.py`), once and for good, with its
connection, its id and what is under way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, overload

import msgspec

from ..address import Address, resolve
from ..awake import Latency, check_latency
from ..backoff import Backoff
from ..contracts import Contract, as_named
from ..declared import Declared
from ..errors import LocalProtocolError
from ..limits import DEFAULT_TIMEOUT, MAX_QUEUE, Limits
from ..protocol.loan import Loan
from ..protocol.shapes import Ack
from ..protocol.upgrade import NAMES
from ..status import Outage, Status
from ..transports import plain_sockets, shares_memory
from .direct import NESTED, Direct, Settings
from .link import MovedError
from .within import Items, Within

if TYPE_CHECKING:
    import ssl

    from ..host import Poll
    from ..methods import Methods
    from ..subscription import Gap, OverflowPolicy, Publication, Receipt
    from .far import Far
    from .peer import Call, Peer
    from .seat import Chain, Hook
    from .sequences import Stream, Subscription

__all__ = ["Client"]

P = ParamSpec("P")
T = TypeVar("T")
TopicHandlerT = TypeVar("TopicHandlerT", bound="Callable[[Publication[Any]], object]")

Upgrade = Literal["isdk-ipc", "net-ipc"]


class Client:
    """Talks to a server, and comes back to it; from any number of threads at once.

        with Client("myapp") as client:
            total = client.call("add", 1, 2, returns=int)

    Entering is connected, leaving is closed. The arguments are those of `interphone.Client`.
    As long as it only asks and sends, nothing is read while nobody waits: what the server
    sends or asks meanwhile waits, too. The first handler, method, subscription or stream
    moves it to a background thread, where it listens all the time.
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
        self.error = Declared(debug=debug)
        self._payload = payload
        self._tls = tls
        self._host = host
        shared = {"compress": compress, "messagepack": messagepack, "heartbeat": heartbeat}
        self._options = shared | {
            "upgrade": upgrade,
            "dialect": dialect,
            "debug": debug,
            "latency": latency,
        }
        dialects = ("native", "classic") if dialect == "native" else ("classic",)
        self._settings = Settings(
            address=self.address,
            limits=self.limits,
            connect_timeout=connect_timeout,
            backoff=backoff,
            options=shared
            | {
                "limits": self.limits,
                "dialects": dialects,
                "pools": shares_memory(self.address),
            },
            upgrade=upgrade,
            allowed_uids=None if allowed_uids is None else frozenset(allowed_uids),
            latency=latency,
        )
        self._moving: dict[int, threading.Lock] = {}  # by process: a child has no other thread
        self._mover: tuple[int, int] | None = None  # the process and thread that has it moved
        self._driver: Direct | Far = Direct(self._settings, payload, self.error)
        if tls is not None or not plain_sockets(self.address):
            self._far()

    def __repr__(self) -> str:
        return f"<Client {self.address} {self.status.name}>"

    # Where it is driven

    def _far(self) -> Far:
        """Be on the portal, from now on."""
        self._check_nesting()
        with self._move_lock:
            try:
                self._mover = (os.getpid(), threading.get_ident())
                return self._moved()
            finally:
                self._mover = None

    @property
    def _move_lock(self) -> threading.Lock:
        return self._moving.setdefault(os.getpid(), threading.Lock())

    def _check_nesting(self) -> None:
        """Raise if a signal handler would wait for the thread that it has interrupted."""
        if self._mover == (os.getpid(), threading.get_ident()):
            raise LocalProtocolError(NESTED)

    def _moved(self) -> Far:
        direct = self._driver
        if not isinstance(direct, Direct):
            return direct
        direct.check_process()  # first: a thread of the parent may have been about to import
        from .far import Far

        far = Far(self._settings, self._tls, self._host, direct.payload, self.error, self._options)
        if direct.status is not Status.IDLE:
            far.seat.take(far)  # before anything is moved: there may be no thread for it
        try:
            moving = direct.move()
        except BaseException:
            far.seat.leave(far)
            raise
        try:
            far.adopt(moving)
        finally:
            self._driver = far
        return far

    # Life

    @property
    def id(self) -> str | None:
        """What the server calls it; None before the first connection."""
        return self._driver.id

    @property
    def status(self) -> Status:
        """Where it is in its life, as far as it knows: it may not have looked for a while."""
        return self._driver.status

    @property
    def outage(self) -> Outage | None:
        """Why there is no connection, while it tries to get one."""
        return self._driver.outage

    def connect(self, payload: object = msgspec.UNSET) -> Self:
        """Connect. The server gets the payload, and again at each reconnection.

        Raises:
            Everything `interphone.Client.connect` raises.
        """
        try:
            self._driver.connect(payload)
            if isinstance(self._driver, Direct) and self._driver.isdk:
                self._far()
        except Exception:
            raise
        except BaseException:
            self.abort()  # it may be connected although the waiting was interrupted
            raise
        return self

    def close(self, reason: object = None, *, grace: float = 5.0) -> bool:
        """Say goodbye and stop coming back. Iterators end; whoever waits is told. Idempotent.

        In the host's thread its handlers are run meanwhile. A handler that closes its own
        client waits for itself, as long as `grace`.

        Returns:
            Whether there was anything to close.
        """
        self._check_nesting()
        driver = self._driver
        if not isinstance(driver, Direct):
            return driver.close(reason, grace)
        was_alive = driver.close(reason)
        far = self._moved_meanwhile()
        return was_alive if far is None else far.close(reason, grace) or was_alive

    def abort(self, reason: object = None) -> None:
        """End the connection now and stop coming back; what is queued is lost."""
        self._check_nesting()
        driver = self._driver
        driver.abort(reason)
        if isinstance(driver, Direct) and (far := self._moved_meanwhile()) is not None:
            far.abort(reason)

    def _moved_meanwhile(self) -> Far | None:
        """Where it is driven, if another thread has had it moved, or is about to."""
        with self._move_lock:
            return None if isinstance(self._driver, Direct) else self._driver

    def wait_closed(self) -> Any:
        """Wait until the client is closed by either side, or has given up; return the reason."""
        far = self._far()
        if far.seat.vacant:
            from .seat import at_once

            return at_once(far.client.wait_closed())
        return far.seat.run(far.client.wait_closed) if far.seat.taken else None

    def __enter__(self) -> Self:
        return self.connect()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(grace=5.0 if exc is None else 0)

    @property
    def peer(self) -> Peer:
        """The server, while there is a connection.

        Raises:
            ConnectionLost: There is none.
        """
        return self._far().peer

    # Handlers

    @property
    def on_ready(self) -> Hook[[Peer]]:
        """As `interphone.Client.on_ready`."""
        return self._far().on_ready

    @property
    def on_status(self) -> Hook[[Status]]:
        """As `interphone.Client.on_status`."""
        return self._far().on_status

    @property
    def on_message(self) -> Hook[[Any]]:
        """As `interphone.Client.on_message`."""
        return self._far().on_message

    @property
    def on_request(self) -> Chain[[Any]]:
        """As `interphone.Client.on_request`."""
        return self._far().on_request

    @property
    def method(self) -> Methods[Call]:
        """As `interphone.Client.method`."""
        return self._far().method

    @property
    def on_error(self) -> Hook[[Exception]]:
        """As `interphone.Client.on_error`."""
        return self._far().on_error

    @property
    def on_close(self) -> Hook[[Any]]:
        """As `interphone.Client.on_close`."""
        return self._far().on_close

    # Verbs

    def send(self, data: object, *, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """As `Peer.send`; while there is no connection, wait for one up to `timeout` seconds."""
        try:
            self._driver.send(data, timeout)
        except MovedError:
            self._far().send(data, timeout)

    @overload
    def request(
        self, data: object, *, returns: type[T], timeout: float | None = DEFAULT_TIMEOUT
    ) -> T: ...
    @overload
    def request(
        self, data: object, *, returns: Any = Any, timeout: float | None = DEFAULT_TIMEOUT
    ) -> Any: ...
    def request(
        self, data: object, *, returns: Any = Any, timeout: float | None = DEFAULT_TIMEOUT
    ) -> Any:
        """As `Peer.request`; the time until there is a connection counts, too."""
        try:
            return self._driver.request(data, returns, timeout)
        except MovedError:
            return self._far().request(data, returns, timeout)

    @overload
    def call(
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
    def call(
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
    def call(self, method: Contract[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    def call(self, method: Any, /, *params: Any, **kwargs: Any) -> Any:
        """As `Peer.call`; the time until there is a connection counts, too."""
        return self._call(**as_named(method, params, kwargs))

    def _call(self, method: str, params: Any, *, items: Items | None = None, **options: Any) -> Any:
        if items is not None:
            return self._far().call(method, params, items=items, **options)
        try:
            return self._driver.call(method, params, **options)
        except MovedError:
            return self._far().call(method, params, **options)

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
        return self._far().open(method, params, kwargs, {})

    def within(
        self, timeout: float | None, *, on_progress: Callable[[Any], object] | None = None
    ) -> Within:
        """Calls that wait so many seconds: ``client.within(2).call(get_user, 7)``."""
        return Within(self._call, self._open, timeout, on_progress)

    def _open(self, *asked: Any) -> Stream[Any]:
        return self._far().open(*asked)

    def loan(self, size: int) -> Loan:
        """As `interphone.Client.loan`."""
        try:
            return self._driver.loan(size)
        except MovedError:
            return self._far().loan(size)

    def ping(self, *, timeout: float | None = DEFAULT_TIMEOUT) -> float:
        """As `Peer.ping`."""
        try:
            return self._driver.ping(timeout)
        except MovedError:
            return self._far().ping(timeout)

    def pause(self) -> None:
        """Stop reading what the server sends, also after a reconnection, until `resume`."""
        far = self._far()
        far.seat.call(far.client.pause)

    def resume(self) -> None:
        """Go on after `pause`."""
        far = self._far()
        far.seat.call(far.client.resume)

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
        """As `interphone.Client.publish`."""
        far = self._far()
        return far.seat.run(
            lambda: far.client.publish(topic, value, retain=retain, ack=ack, timeout=timeout)
        )

    def forget(self, topic: str, *, timeout: float | None = DEFAULT_TIMEOUT) -> bool:
        """As `interphone.Client.forget`."""
        far = self._far()
        return far.seat.run(lambda: far.client.forget(topic, timeout=timeout))

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
        """Subscribe: ``with client.subscribe("a", "b", of=Item) as items``.

        The arguments are those of `interphone.Client.subscribe`.
        """
        from .sequences import Subscription

        far = self._far()
        subscribe: Any = far.client.subscribe  # its overloads know either kind of `gaps`, not both
        inner = subscribe(*topics, of=of, overflow=overflow, queue=queue, gaps=gaps, group=group)
        return Subscription(far.seat, inner)

    def on_topic(
        self,
        *topics: str,
        of: Any = Any,
        overflow: OverflowPolicy = "drop_oldest",
        group: str | None = None,
    ) -> Callable[[TopicHandlerT], TopicHandlerT]:
        """Handle publications, one at a time, in order, as long as the client lives."""
        far = self._far()
        add = far.client.on_topic(*topics, of=of, overflow=overflow, group=group)

        def register(handler: TopicHandlerT) -> TopicHandlerT:
            far.seat.call(add, far.seat.placed(handler))
            return handler

        return register

    def unsubscribe(self, *topics: str) -> None:
        """End every subscription and handler of these topics and patterns here."""
        far = self._far()
        far.seat.run(lambda: far.client.unsubscribe(*topics))
