"""Streams: requests whose answer, or whose question, comes piece by piece.

A stream is begun by OPEN and ended by the RESPONSE to it. Between them

    ITEM    from the answerer   a piece of the answer; costs the credit that OPEN and GRANT gave
    GRANT   from the asker      credit for more of them
    INPUT   from the asker      a piece of what is asked about; without a payload: the last one
    DEMAND  from the answerer   credit for more of them; there is none before the first

All of them bear the nonce of the OPEN. Who says what is fixed by the type, so both ends may
use the same nonces for streams of their own.

What comes for a stream that has ended at this end is dropped: pieces are counted, credit
need not be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..errors import PayloadError, RemoteProtocolError
from .credit import Credit
from .events import Counts, Nonce, Reactions
from .messages import DEMAND, GRANT, INPUT, ITEM, Packet
from .payload import ABSENT, Codec
from .wire import Outgoing

__all__ = ["Streams"]


class _Asked:
    """A stream of ours."""

    __slots__ = ("finished", "items", "questions", "token")

    def __init__(self, token: object, window: int) -> None:
        self.token = token
        self.items = Credit(window)
        self.questions = Credit()
        self.finished = False  # we have said that no INPUT follows


class _Served:
    """A stream of the other end."""

    __slots__ = ("finished", "items", "questions", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.items = Credit()
        self.questions = Credit()
        self.finished = False  # it has said that no INPUT follows


class Streams:
    """The streams of one connection, both ways.

    Args:
        write: Queues a packet: type, payload, nonce.
        codec: Returns how payloads are written.
        counts: Where pieces that nobody waits for are counted.

    Attributes:
        asked: Our streams, by nonce.
        served: Streams of the other end, by nonce.
        bytes: Size of the packets that opened those.
    """

    def __init__(
        self,
        write: Callable[[int, Outgoing, Nonce], None],
        codec: Callable[[], Codec],
        counts: Counts,
    ) -> None:
        self._write = write
        self._codec = codec
        self._counts = counts
        self.asked: dict[Nonce, _Asked] = {}
        self.served: dict[Nonce, _Served] = {}
        self.bytes = 0

    # What the asker does

    def ask(self, nonce: Nonce, token: object, window: int) -> None:
        """Note that we have opened a stream."""
        self.asked[nonce] = _Asked(token, window)

    def taken(self, nonce: Nonce, size: int) -> None:
        """An item of so many bytes was taken by the program: there is room for more."""
        stream = self.asked.get(nonce)
        if stream is not None:
            self._give(GRANT, nonce, stream.items.take(size))

    def question(self, nonce: Nonce, payload: Outgoing) -> bool:
        """Send a piece to the answerer; False if there is no credit, and nothing was done."""
        stream = self.asked.get(nonce)
        return stream is not None and self._pass(INPUT, nonce, payload, stream.questions)

    def finish(self, nonce: Nonce) -> None:
        """Say that no piece of ours follows."""
        stream = self.asked.get(nonce)
        if stream is not None and not stream.finished:
            stream.finished = True
            self._write(INPUT, ABSENT, nonce)

    # What the answerer does

    def serve(self, nonce: Nonce, window: object, size: int) -> None:
        """Note that the other end has opened a stream, by a packet of so many bytes.

        Raises:
            RemoteProtocolError: It has that nonce already, or no window is one.
        """
        if nonce in self.served:
            raise RemoteProtocolError("a stream was opened twice")
        stream = _Served(size)
        stream.items.grant(window)
        self.served[nonce] = stream
        self.bytes += size

    def answered(self, nonce: Nonce) -> bool:
        """Note that a stream of the other end has ended; False if it was none."""
        known = self.served and type(nonce) in (int, str)  # a request may bear anything
        stream = self.served.pop(nonce, None) if known else None
        if stream is None:
            return False
        self.bytes -= stream.size
        return True

    def finished(self, nonce: Nonce) -> bool:
        """Whether the other end has said that it sends no more; it may have before we asked."""
        stream = self.served.get(nonce)
        return stream is not None and stream.finished

    def item(self, nonce: Nonce, payload: Outgoing) -> bool:
        """Send a piece of the answer; False if there is no credit, and nothing was done."""
        stream = self.served.get(nonce)
        return stream is not None and self._pass(ITEM, nonce, payload, stream.items)

    def demand(self, nonce: Nonce, window: int) -> None:
        """Ask for pieces, for the first time: so much may be under way."""
        stream = self.served.get(nonce)
        if stream is not None:
            stream.questions.grant(window)
            self._give(DEMAND, nonce, window)

    def used(self, nonce: Nonce, size: int) -> None:
        """A piece of so many bytes was taken by the handler: there is room for more."""
        stream = self.served.get(nonce)
        if stream is not None and not stream.finished:
            self._give(DEMAND, nonce, stream.questions.take(size))

    # What comes

    def on_item(self, packet: Packet, react: Reactions) -> None:
        """A piece of an answer of ours."""
        stream = self.asked.get(packet.n)
        if stream is None:
            self._counts.late += 1
            return
        stream.items.spend(len(packet.d))
        react.item(stream.token, packet.d)

    def on_grant(self, packet: Packet, react: Reactions) -> None:
        """The asker has room for more."""
        stream = self.served.get(packet.n)
        if stream is not None:
            stream.items.grant(self._units(packet.d))
            react.granted(packet.n)

    def on_input(self, packet: Packet, react: Reactions) -> None:
        """A piece of what we are asked about."""
        stream = self.served.get(packet.n)
        if stream is None:
            self._counts.late += bool(packet.d)
            return
        if stream.finished:
            raise RemoteProtocolError("something follows the end of a stream")
        if packet.d:
            stream.questions.spend(len(packet.d))
        else:
            stream.finished = True
        react.input(packet.n, packet.d)

    def on_demand(self, packet: Packet, react: Reactions) -> None:
        """The answerer has room for more."""
        stream = self.asked.get(packet.n)
        if stream is not None:
            stream.questions.grant(self._units(packet.d))
            react.demanded(stream.token)

    def _pass(self, kind: int, nonce: Nonce, payload: Outgoing, credit: Credit) -> bool:
        if not credit.covers(len(payload)):
            return False
        self._write(kind, payload, nonce)  # it may be too big: then nothing is spent
        credit.spend(len(payload))
        return True

    def _give(self, kind: int, nonce: Nonce, units: int) -> None:
        if units:
            self._write(kind, self._codec().encode(units), nonce)

    def _units(self, raw: msgspec.Raw) -> Any:
        try:
            return self._codec().decode(raw) if raw else None
        except PayloadError as exc:
            raise RemoteProtocolError(f"no credit: {exc}") from exc
