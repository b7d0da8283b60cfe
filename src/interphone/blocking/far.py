"""Far: a client on the portal, which can do everything."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from ..client import Client as AsyncClient
from ..declared import Declared
from ..errors import InterphoneError
from ..host import Poll
from ..protocol.loan import Loan
from ..status import Outage, Status
from .direct import Moving, Settings
from .link import Link
from .peer import Call, Peer, feedable, opened
from .portal import Mailbox
from .seat import Chain, Hook, Seat
from .sequences import Stream

__all__ = ["Far"]


class Far:
    """An async client, its place on the portal, and its handlers' places.

    Attributes:
        client: The async client.
        seat: Its place.
        method: Its methods.
    """

    def __init__(
        self,
        settings: Settings,
        tls: ssl.SSLContext | None,
        host: Poll | None,
        payload: object,
        errors: Declared,
        options: dict[str, Any],
    ) -> None:
        client = self.client = AsyncClient(
            settings.address,
            payload=payload,
            limits=settings.limits,
            connect_timeout=settings.connect_timeout,
            backoff=settings.backoff,
            tls=tls,
            allowed_uids=settings.allowed_uids,
            host=host,
            **options,
        )
        client.share(errors)
        seat = self.seat = Seat(host, Peer, self._absence)
        self.on_ready: Hook[[Peer]] = Hook(seat, client.on_ready)
        self.on_status: Hook[[Status]] = Hook(seat, client.on_status)
        self.on_message: Hook[[Any]] = Hook(seat, client.on_message, in_turn=False)
        self.on_request: Chain[[Any]] = Chain(seat, client.on_request)
        self.method = client.method.inject(Call, lambda call: Call(call, seat))
        self.on_error: Hook[[Exception]] = Hook(seat, client.on_error)
        self.on_close: Hook[[Any]] = Hook(seat, client.on_close)

    @property
    def status(self) -> Status:
        """As `Client.status`."""
        return self.client.status

    @property
    def id(self) -> str | None:
        """As `Client.id`."""
        return self.client.id

    @property
    def outage(self) -> Outage | None:
        """As `Client.outage`."""
        return self.client.outage

    @property
    def peer(self) -> Peer:
        """As `Client.peer`."""
        peer: Peer = self.seat.view(self.client.peer)
        return peer

    def loan(self, size: int) -> Loan:
        """As `Client.loan`."""
        return self.seat.call(self.client.loan, size)

    def _absence(self) -> InterphoneError:
        try:
            self.client.peer.connection.check_caller()
        except InterphoneError as exc:
            return exc
        raise AssertionError("it has a connection, and no loop")

    # Life

    def adopt(self, moving: Moving) -> None:
        """Go on with the life of a client that only asked."""
        self.client.id = moving.id
        if moving.alive:
            self.seat.take(self)
            self.seat.call(self._adopt, moving)
        else:
            self.seat.leave(self)
            self.client.ended_by(moving.end)

    def _adopt(self, moving: Moving) -> None:
        socket, link = moving.socket, moving.link
        if socket is None or link is None:
            self.client.adopt(moving.id, moving.payload, None, None)
            return
        self.client.adopt(moving.id, moving.payload, link.session, socket.hand_over)
        link.forget = self._forgetter(link)

    def _forgetter(self, link: Link) -> Callable[[object], None]:
        loop, connection = asyncio.get_running_loop(), self.client.peer.connection

        def forget(nonce: object) -> None:
            link.session.forget(nonce)
            connection.flush_soon()

        def forget_there(nonce: object) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(forget, nonce)

        return forget_there

    def connect(self, payload: object) -> None:
        """As `Client.connect`."""
        self.seat.take(self)
        try:
            self.seat.run(lambda: self.client.connect(payload))
        except BaseException:
            if self.client.status is Status.IDLE:
                self.seat.leave(self)
            raise

    def close(self, reason: object, grace: float) -> bool:
        """As `Client.close`."""
        if not self.seat.taken:
            self.seat.leave(self)  # in a forked child; the connection is the parent's
            return False
        try:
            return self.seat.run(lambda: self.client.close(reason, grace=grace), serve=True)
        finally:
            self.seat.leave(self)

    def abort(self, reason: object) -> None:
        """As `Client.abort`."""
        if self.seat.taken:
            try:
                self.seat.call(self.client.abort, reason)
            finally:
                self.seat.leave(self)

    async def abandon(self, grace: float) -> None:
        """End, because the program does; for the portal."""
        await self.client.close(grace=grace)
        self.seat.vacate()

    # Verbs

    def send(self, data: object, timeout: float | None) -> None:
        """As `Client.send`."""
        self.seat.run(lambda: self.client.send(data, timeout=timeout))

    def request(self, data: object, returns: Any, timeout: float | None) -> Any:
        """As `Client.request`."""
        return self.seat.run(lambda: self.client.request(data, returns=returns, timeout=timeout))

    def call(
        self,
        method: str,
        params: Any,
        *,
        items: Any = None,
        on_progress: Callable[[Any], object] | None = None,
        **options: Any,
    ) -> Any:
        """As `Client.call`."""
        mailbox = Mailbox(on_progress)
        fed = feedable(self.seat, items)
        hear = None if on_progress is None else mailbox.put

        def ask() -> Coroutine[Any, Any, Any]:
            return self.client.call(method, *params, items=fed, on_progress=hear, **options)

        return self.seat.run(ask, mailbox=mailbox)

    def open(
        self, method: Any, params: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> Stream[Any]:
        """As `Client.stream`."""
        return opened(self.seat, self.client, method, params, kwargs, options)

    def ping(self, timeout: float | None) -> float:
        """As `Client.ping`."""
        return self.seat.run(lambda: self.client.ping(timeout=timeout))
