"""Peer and Call, for handlers that block."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, ParamSpec, TypeVar, overload

from ..client import Client as AsyncClient
from ..contracts import Contract, as_named
from ..limits import DEFAULT_TIMEOUT
from ..peer import Call as AsyncCall
from ..peer import Peer as AsyncPeer
from ..protocol.events import Counts
from ..protocol.loan import Loan
from ..protocol.pool import PoolCounts
from .portal import Mailbox
from .seat import Seat
from .sequences import Stream
from .within import Items, Within

__all__ = ["Call", "Peer", "feedable", "opened"]

P = ParamSpec("P")
T = TypeVar("T")


class Peer:
    """The other end of one connection, for any thread but the loop's own.

    Attributes:
        id: Its id, unique among the living peers of a server.
        payload: What it gave to `connect` (at a server), decoded.
        session: What `authorize` returned for it; yours.
    """

    def __init__(self, peer: AsyncPeer, seat: Seat) -> None:
        self._peer = peer
        self._seat = seat

    def __repr__(self) -> str:
        return repr(self._peer)

    # What users may know

    @property
    def id(self) -> str:
        """Its id, unique among the living peers of a server."""
        return self._peer.id

    @property
    def payload(self) -> Any:
        """What it gave to `connect` (at a server), decoded."""
        return self._peer.payload

    @property
    def session(self) -> Any:
        """What `authorize` returned for it; yours."""
        return self._peer.session

    @session.setter
    def session(self, value: Any) -> None:
        self._peer.session = value

    @property
    def open(self) -> bool:
        """Whether it can be sent something."""
        return self._peer.open

    @property
    def interphone(self) -> bool:
        """Whether the other end is interphone, not a Node package."""
        return self._peer.interphone

    @property
    def credentials(self) -> Any:
        """Who connected, from the kernel: `.uid`, `.pid`, `.gid`; None over TCP."""
        return self._peer.credentials

    @property
    def counts(self) -> Counts:
        """What of this peer's was dropped, and why."""
        return self._peer.counts

    @property
    def pool(self) -> PoolCounts:
        """What became of large payloads to it: `.lent` through shared memory, `.inline` not."""
        return self._peer.pool

    @property
    def pending(self) -> int:
        """Requests to it that wait for an answer."""
        return self._peer.pending

    @property
    def unheard(self) -> int:
        """Its messages that came when nobody listened to `on_message`."""
        return self._peer.unheard

    @property
    def inflight(self) -> int:
        """Its requests and messages that are being handled or wait for it."""
        return self._peer.inflight

    @property
    def backlog(self) -> int:
        """Bytes sent to it that its system has not taken."""
        return self._peer.backlog

    @property
    def paused(self) -> bool:
        """Whether `pause` holds it."""
        return self._peer.paused

    # Verbs

    def send(self, data: object) -> None:
        """As `interphone.Peer.send`."""
        self._seat.run(lambda: self._peer.send(data))

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
        """As `interphone.Peer.request`."""
        return self._seat.run(lambda: self._peer.request(data, returns=returns, timeout=timeout))

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
        """As `interphone.Peer.call`, but for what is called while it runs.

        `items` is iterated in a thread, and must not be async. `on_progress` is called in the
        thread that waits here; what it raises is raised, and cancels the call.
        """
        return self._call(**as_named(method, params, kwargs))

    def _call(
        self,
        method: str,
        params: Any,
        *,
        items: Items | None = None,
        on_progress: Callable[[Any], object] | None = None,
        **options: Any,
    ) -> Any:
        mailbox = Mailbox(on_progress)
        fed = feedable(self._seat, items)
        hear = None if on_progress is None else mailbox.put

        def ask() -> Coroutine[Any, Any, Any]:
            return self._peer.call_named(method, params, items=fed, on_progress=hear, **options)

        return self._seat.run(ask, mailbox=mailbox)

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
        """As `interphone.Peer.stream`; `items` as for `call`."""
        return self._open(method, params, kwargs, {})

    def _open(
        self, method: Any, params: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> Stream[Any]:
        return opened(self._seat, self._peer, method, params, kwargs, options)

    def within(
        self, timeout: float | None, *, on_progress: Callable[[Any], object] | None = None
    ) -> Within:
        """Calls that wait so many seconds: ``peer.within(2).call(get_user, 7)``."""
        return Within(self._call, self._open, timeout, on_progress)

    def loan(self, size: int) -> Loan:
        """As `interphone.Peer.loan`."""
        return self._seat.call(self._peer.loan, size)

    def ping(self, *, timeout: float | None = DEFAULT_TIMEOUT) -> float:
        """As `interphone.Peer.ping`."""
        return self._seat.run(lambda: self._peer.ping(timeout=timeout))

    def pause(self) -> None:
        """As `interphone.Peer.pause`."""
        self._seat.call(self._peer.pause)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._seat.call(self._peer.resume)

    def close(self, reason: object = None, *, grace: float = 5.0, reconnect: bool = False) -> bool:
        """As `interphone.Peer.close`; a handler that closes its own peer waits for itself."""
        return self._seat.run(
            lambda: self._peer.close(reason, grace=grace, reconnect=reconnect), serve=True
        )

    def abort(self, reason: object = None) -> None:
        """End the connection now; what is queued is lost, and own requests fail."""
        self._seat.call(self._peer.abort, reason)


class Call:
    """What a method may ask about the call it answers; injected where it is annotated.

        @server.method
        def who(call: Call) -> str:
            return call.peer.id

    Attributes:
        peer: Who calls.
        deadline: When the caller stops waiting, by `time.monotonic`; None: never.
    """

    def __init__(self, call: AsyncCall, seat: Seat) -> None:
        self._call = call
        self._seat = seat
        self.peer: Peer = seat.view(call.peer)
        self.deadline = call.until

    def progress(self, value: object) -> None:
        """Tell the caller how far the work is; any value. Nothing is sent to who did not ask.

        Raises:
            PayloadError: `value` has no form on the wire.
        """
        self._seat.run(lambda: self._call.progress(value))


def feedable(seat: Seat, items: Items | None) -> Any:
    """Return items as the loop can iterate them; None stays None."""
    if items is None:
        return None
    if isinstance(items, AsyncIterable):
        raise TypeError(f"a blocking call takes plain iterables of items, not {items!r}")
    return seat.portal.pulled(items)


def opened(
    seat: Seat,
    end: AsyncPeer | AsyncClient,
    method: Any,
    params: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: dict[str, Any],
) -> Stream[Any]:
    """Make the stream of a method, with items that the loop can iterate."""
    if not isinstance(method, Contract):
        items = feedable(seat, kwargs.pop("items", None))
        return Stream(seat, end.stream(method, *params, items=items, **kwargs, **options))
    if method.stream_parameter is not None:
        bound = method.signature.bind(*params, **kwargs)
        if method.stream_parameter in bound.arguments:
            items = bound.arguments[method.stream_parameter]
            bound.arguments[method.stream_parameter] = feedable(seat, items)
        params, kwargs = bound.args, bound.kwargs
    return Stream(seat, end.within(options.get("timeout")).stream(method, *params, **kwargs))
