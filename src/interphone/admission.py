"""Admission: who of those that connect is let in.

A connection takes one of a few slots until its CONNECTION has come; then it is decided
about, without a limit of its own but the one on connections. Until that is done nothing
more of it is read, and nothing can be sent to it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .errors import InterphoneError, Refuse, RemoteProtocolError
from .handlers import Tasks
from .hooks import being_cancelled
from .peer import Peer
from .protocol.messages import Hello
from .protocol.states import State

__all__ = ["Admission"]

LOG_INTERVAL = 1.0  # seconds between two reports of evictions


class Admission:
    """The door of one server.

    Attributes:
        authorize: Decides about a peer and its payload; None lets everybody in.
        evicted: How many unfinished handshakes were cut off to make room.
    """

    def __init__(
        self,
        *,
        peers: Mapping[str, Peer],
        admit: Callable[[Peer], None],
        report: Callable[[Exception, Peer | None], None],
        tasks: Tasks,
        generate_id: Callable[[], str] | None,
        max_connections: int,
        max_incomplete: int,
    ) -> None:
        if max_connections < 1 or max_incomplete < 1:
            raise ValueError("max_connections and max_incomplete must be at least 1")
        self.authorize: Callable[[Peer, Any], object] | None = None
        self._peers = peers
        self._admit = admit
        self._report = report
        self._tasks = tasks
        self._generate_id = generate_id or _new_id
        self._max_connections = max_connections
        self._max_incomplete = max_incomplete
        self._incomplete: dict[Peer, None] = {}  # no CONNECTION yet, oldest first
        self._complain_after = 0.0
        self.evicted = 0
        self._deciding: dict[Peer, asyncio.Task[None]] = {}  # `authorize` runs
        self._wanted: set[str] = set()  # their ids

    @property
    def waiting(self) -> tuple[Peer, ...]:
        """Who is not in yet."""
        return (*self._incomplete, *self._deciding)

    def came(self, peer: Peer) -> None:
        """A connection was accepted: it takes a slot until its CONNECTION comes."""
        self._incomplete[peer] = None
        if len(self._incomplete) > self._max_incomplete:
            oldest = next(iter(self._incomplete))
            del self._incomplete[oldest]  # its end is told only when the loop has turned
            self.evicted += 1
            error = RemoteProtocolError(
                f"too many unfinished handshakes: {self.evicted} were cut off so far", code="full"
            )
            self._complain(error, oldest)
            oldest.connection.abort(error)

    def _complain(self, error: RemoteProtocolError, peer: Peer) -> None:
        """Report, but not every one of a flood."""
        now = asyncio.get_running_loop().time()
        if now >= self._complain_after:
            self._complain_after = now + LOG_INTERVAL
            self._report(error, peer)

    def left(self, peer: Peer) -> None:
        """A connection ended."""
        self._incomplete.pop(peer, None)
        deciding = self._decided(peer)
        if deciding is not None:
            deciding.cancel()

    def asked(self, peer: Peer, hello: Hello) -> None:
        """A client asks to come in."""
        self._incomplete.pop(peer, None)
        peer.connection.stop_reading("connecting")
        try:
            codec = peer.protocol.codec
            peer.payload = codec.decode(hello.extras) if hello.extras else None
        except InterphoneError as exc:
            self._refuse(peer, str(exc), "invalid")
            return
        peer.id = self._choose_id(hello.id)
        if len(self._peers) + len(self._deciding) >= self._max_connections:
            self._refuse(peer, "the server has too many connections", "full")
        elif self.authorize is None:
            self._let_in(peer)
        else:
            deciding = self._tasks.start(self._decide(peer, self.authorize))
            if not deciding.done():
                self._deciding[peer] = deciding
                self._wanted.add(peer.id)

    async def _decide(self, peer: Peer, authorize: Callable[[Peer, Any], object]) -> None:
        try:
            result = authorize(peer, peer.payload)
            peer.session = await result if isinstance(result, Awaitable) else result
        except Refuse as exc:
            self._refuse(peer, exc.reason, "refused")
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            self._refuse(peer, "the server failed to decide", "refused")
        except Exception as exc:
            self._report(exc, peer)
            self._refuse(peer, "the server failed to decide", "refused")
        else:
            self._let_in(peer)
        finally:
            self._decided(peer)

    def _decided(self, peer: Peer) -> asyncio.Task[None] | None:
        """It is not decided about any more."""
        deciding = self._deciding.pop(peer, None)
        if deciding is not None:
            self._wanted.discard(peer.id)
        return deciding

    def _choose_id(self, wanted: object) -> str:
        """The id a client had before, if nobody living has it; else a new one."""
        if isinstance(wanted, str) and 0 < len(wanted) <= 255 and not self._taken(wanted):
            return wanted
        try:
            made = self._generate_id()
            if isinstance(made, str) and made and not self._taken(made):
                return made
            raise ValueError(f"generate_id gave {made!r}, which is no new id")
        except Exception as exc:
            self._report(exc, None)
            return _new_id()

    def _taken(self, id: str) -> bool:
        return id in self._peers or id in self._wanted

    def _let_in(self, peer: Peer) -> None:
        if _gone(peer):
            return  # it left while we decided
        peer.protocol.accept(peer.id)
        peer.connection.flush_soon()
        self._admit(peer)
        peer.connection.go_on_reading("connecting")

    def _refuse(self, peer: Peer, reason: object, code: str) -> None:
        if _gone(peer):
            return
        peer.protocol.refuse(reason, code=code, id=peer.id)
        peer.connection.go_on_reading("connecting")
        peer.connection.hang_up()


def _gone(peer: Peer) -> bool:
    return peer.protocol.state is not State.OPENING or peer.connection.closed.done()


def _new_id() -> str:
    return os.urandom(8).hex()
