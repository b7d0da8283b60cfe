"""Asker: puts a request or a call to the other end, at once, without a coroutine.

A verb that asks is one coroutine around it: it awaits the future that it gets here. What has to
wait before anything can be said, or is said in an unusual way, takes the long way, in `peer.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from .connection import Connection
from .deadlines import deadline, shrunk
from .errors import RemoteError, Unsupported
from .limits import DEFAULT_TIMEOUT
from .protocol.events import Nonce
from .protocol.session import Session

__all__ = ["Asked", "Asker", "settle"]

Asked = tuple[Any, Nonce]
"""The future of an answer, and the nonce of what it answers."""

PLAIN: Final = frozenset(
    ("named", "returns", "timeout")
)  # what may be said of a call with one answer


class Asker:
    """Asks the other end of one connection.

    Attributes:
        own: Makes what a handler at the other end raised what is declared here, if it is. To be
            raised ``from None`` by who awaited the answer: what is compiled does not know that.
    """

    __slots__ = ("_connection", "_create_future", "_session", "_time", "own")

    def __init__(
        self, session: Session, connection: Connection, own: Callable[[RemoteError], Exception]
    ) -> None:
        loop = asyncio.get_running_loop()
        self._session = session
        self._connection = connection
        self.own = own
        self._create_future = loop.create_future  # bound once: hot path
        self._time = loop.time

    def request(self, data: object, timeout: float | None) -> Asked | None:
        """Ask something; None, and nothing has been done, if that takes the long way.

        Raises:
            Everything `Peer.request` raises about what cannot be asked.
        """
        session, connection = self._session, self._connection
        if session.isdk or connection.crowded():
            return None
        if deadline.get() is not None:
            timeout = shrunk(timeout)
        connection.check_caller()
        payload = session.pack(data)
        answer = self._create_future()
        try:
            nonce = session.request(payload, answer, now=self._time(), timeout=timeout)
        except Exception:  # an interrupt may come behind it, and then it is on its way
            session.take_back(payload)
            raise
        connection.flush_soon()
        due = session.next_tick
        if due is not None and due < connection.armed:
            connection.arm()
        return answer, nonce

    def call(self, method: object, params: object, said: dict[str, Any]) -> Asked | None:
        """The same for a method by its name, which may be called as `said`."""
        session, connection = self._session, self._connection
        if type(method) is not str or not PLAIN.issuperset(said) or connection.crowded():
            return None
        timeout = said.get("timeout", DEFAULT_TIMEOUT)
        if deadline.get() is not None:
            timeout = shrunk(timeout)
        payload = self.call_payload(session.pack, method, params, said.get("named"))
        answer = self._create_future()
        try:
            nonce = session.call(payload, answer, now=self._time(), timeout=timeout)
        except Exception:  # an interrupt may come behind it, and then it is on its way
            session.take_back(payload)
            raise
        connection.flush_soon()
        due = session.next_tick
        if due is not None and due < connection.armed:
            connection.arm()
        return answer, nonce

    def call_payload(
        self, pack: Callable[[Any], Any], method: str, params: object, named: object
    ) -> Any:
        """Return what asks for a method."""
        if not self._session.interphone:
            raise Unsupported("a Node end has no methods: ask it by a request")
        self._connection.check_caller()
        asked: dict[str, object] = {"method": method, "params": params}
        if named:
            asked["named"] = named
        return pack(asked)

    def withdraw(self, nonce: Nonce) -> None:
        """Have the other end told that nobody waits for the answer any more."""
        self._session.forget(nonce)
        self._connection.flush_soon()


def settle(token: Any, raw: Any) -> None:
    """Give an answer to whom it is for: a Future, a Stream, or the like."""
    if not token.done():
        token.set_result(raw)
