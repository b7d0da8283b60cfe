"""Seat: where one blocking Server or Client runs, and how its handlers are called."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, ParamSpec, TypeVar, overload
from weakref import WeakValueDictionary

from ..errors import InterphoneError
from ..handlers import Chain as AsyncChain
from ..handlers import Place
from ..hooks import Hook as AsyncHook
from ..host import Poll
from ..peer import Peer as AsyncPeer
from .portal import Mailbox, Portal, User, enter, leave

__all__ = ["Chain", "Hook", "Seat", "at_once", "check_plain"]

P = ParamSpec("P")
R = TypeVar("R")


class Seat:
    """The portal of one Server or Client, while it needs it, and its views of peers.

    Attributes:
        host: Whose thread its handlers run in, if there is one.
    """

    def __init__(
        self,
        host: Poll | None,
        view: Callable[[AsyncPeer, Seat], Any],
        absence: Callable[[], InterphoneError],
    ) -> None:
        self.host = host
        self._absence = absence
        self._portal: Portal | None = None
        self._view = view
        self._views: WeakValueDictionary[int, Any] = WeakValueDictionary()
        self._lock = threading.Lock()

    # Being there

    @property
    def taken(self) -> bool:
        """Whether it has a portal: what a forked child inherited is none."""
        if self._portal is not None and self._portal.inherited:
            return False
        return self._portal is not None

    @property
    def vacant(self) -> bool:
        """Whether its owner is not started, or closed."""
        return self._portal is None

    @property
    def portal(self) -> Portal:
        """The portal.

        Raises:
            InterphoneError: It has none, because its owner is not started, or closed.
        """
        if self._portal is None:
            raise self._absence()
        return self._portal

    def take(self, user: User) -> None:
        """Have a portal."""
        if self._portal is None or self._portal.inherited:
            self._portal = enter(user, self.host)

    def leave(self, user: User) -> None:
        """Need it no more."""
        portal, self._portal = self._portal, None
        if portal is not None and not portal.inherited:
            leave(user)

    def vacate(self) -> None:
        """Need it no more, because it ends."""
        self._portal = None

    def run(
        self,
        start: Callable[[], Coroutine[Any, Any, R]],
        *,
        mailbox: Mailbox | None = None,
        late: Callable[[R], object] | None = None,
        serve: bool = False,
    ) -> R:
        """Run a coroutine function on the loop; with `serve` the host is polled meanwhile."""
        host = self.host if serve else None
        return self.portal.run(start, mailbox=mailbox, late=late, host=host)

    def call(self, function: Callable[..., R], *args: Any) -> R:
        """Run a plain function on the loop, if there is one; else here."""
        return function(*args) if self._portal is None else self._portal.call(function, *args)

    # Handlers

    def view(self, peer: AsyncPeer) -> Any:
        """Return the blocking peer that stands for a peer; always the same one."""
        with self._lock:
            view = self._views.get(id(peer))
            if view is None:  # it keeps the peer alive, so that the id stays its own
                view = self._views[id(peer)] = self._view(peer, self)
            return view

    def views(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return arguments of a handler with blocking peers in them."""
        return tuple(self.view(arg) if isinstance(arg, AsyncPeer) else arg for arg in args)

    def placed(
        self, handler: Callable[..., object], *, lane: object = None
    ) -> Callable[..., object]:
        """Return what calls a handler in its place: a thread for handlers, or the host's.

        With a `lane` its calls come one after another: those about one peer, or all of them.
        """
        check_plain(handler)
        if self.host is not None:

            def on_host(*args: Any) -> object:
                return handler(*self.views(args))

            return on_host

        async def in_thread(*args: Any) -> None:
            views = self.views(args)
            if lane is None:
                await self.portal.in_worker(handler, *views)
                return
            mine = args[0] if args and isinstance(args[0], AsyncPeer) else lane
            await self.portal.in_turn(mine, handler, *views)

        return in_thread


def at_once(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine that has nothing to wait for, without a loop."""
    try:
        coroutine.send(None)
    except StopIteration as exc:
        result: R = exc.value
        return result
    coroutine.close()
    raise RuntimeError("it waits, and there is no loop to wait in")


def check_plain(handler: object) -> None:
    """Raise `ValueError` if it is a coroutine function, which a blocking end cannot run."""
    while hasattr(handler, "func"):  # functools.partial
        handler = handler.func
    call = getattr(handler, "__call__", None)  # noqa: B004  the method itself is looked at
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call):
        raise ValueError(f"{handler!r} is a coroutine function: a blocking end cannot run it")


class Hook(Generic[P]):
    """A moment. Call it with a handler, or use it as a decorator, to be told of it.

    Handlers run in a bounded pool of threads, or in the host's. Those about one peer run one
    after another. A handler that raises disturbs no other.
    """

    def __init__(self, seat: Seat, moment: AsyncHook[...], *, in_turn: bool = True) -> None:
        self._seat = seat
        self._moment = moment
        self._in_turn = in_turn
        self._handlers: list[tuple[Callable[P, object], Callable[..., object]]] = []

    def __call__(self, handler: Callable[P, R]) -> Callable[P, R]:
        """Register a handler and return it."""
        placed = self._seat.placed(handler, lane=self._moment if self._in_turn else None)
        self._handlers.append((handler, placed))
        self._moment(placed)
        return handler

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self._handlers)

    def remove(self, handler: Callable[P, object]) -> None:
        """Take a handler off; raise `ValueError` if it is not registered."""
        for index, (known, placed) in enumerate(self._handlers):
            if known == handler:
                del self._handlers[index]
                self._moment.remove(placed)
                return
        raise ValueError(f"{handler!r} is not registered")


class Chain(Generic[P]):
    """Handlers that are asked in turn; the first result that is not `PASS` is the answer.

    They run in a worker thread, or in the host's where there is one, unless they say
    ``on="inline"``: then they run on the loop's thread, and must neither block nor ask a peer.
    """

    def __init__(self, seat: Seat, chain: AsyncChain[...]) -> None:
        self._seat = seat
        self._chain = chain
        self._handlers: list[tuple[Callable[P, object], Callable[..., object]]] = []

    @overload
    def __call__(self, handler: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def __call__(
        self, /, *, on: Place | None = None
    ) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
    def __call__(self, handler: Any = None, /, *, on: Place | None = None) -> Any:
        """Register a handler and return it."""
        if handler is None:
            return lambda function: self._add(function, on)
        return self._add(handler, on)

    def _add(self, handler: Callable[P, R], on: Place | None) -> Callable[P, R]:
        check_plain(handler)

        function: Callable[..., object] = handler

        @functools.wraps(handler, updated=())
        def asked(*args: Any) -> object:
            return function(*self._seat.views(args))

        self._chain(on=on)(asked)
        self._handlers.append((handler, asked))
        return handler

    def __bool__(self) -> bool:
        """Whether anybody answers."""
        return bool(self._handlers)

    def remove(self, handler: Callable[P, object]) -> None:
        """Take a handler off; raise `ValueError` if it is not registered."""
        for index, (known, asked) in enumerate(self._handlers):
            if known == handler:
                del self._handlers[index]
                self._chain.remove(asked)
                return
        raise ValueError(f"{handler!r} is not registered")
