"""Deliveries: publications that begin and end as one that came before.

What a server publishes on one topic for the same subscriptions of a client differs in the value
only: everything around it is the same bytes. Those are taken apart once; a body that begins and
ends with them, and has one value in between, says the same of another value. Every other body is
left to the long way, which also says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, Protocol, TypeAlias

import msgspec

from ..errors import PayloadError
from .payload import Codec, MessagePack, check_msgpack_depth
from .shapes import Marks

__all__ = ["Deliveries", "Taker", "delivery", "one_value"]

Taker: TypeAlias = Callable[[bytes], bool]
"""Takes the value of another publication like one that came, nobody has looked at it; False: it is
none, or must come the long way."""

MAX_KNOWN = 64  # of them, with topics of 255 bytes, 20 KiB

_BEGIN: Final = b"\x96\x01\xc0\x82\xa3pub"  # a packet of six fields: MESSAGE, no nonce, {"pub": …
_MESSAGE: Final = b"\xa7message"  # …, "message": the value}
_END: Final = b"\xa3pub\xc0"  # its kind, no failure, and its marks
_TOPIC: Final = len(_BEGIN)  # where the topic stands

_read_one: Final = msgspec.msgpack.Decoder(msgspec.Raw).decode


def delivery(codec: Codec, topic: str, value: bytes, marks: Marks) -> bytes:
    """Return the packet that delivers a publication, whose value is not absent.

    Raises:
        PayloadError: With the object around it the value nests too deeply.
    """
    if len(value) >= codec.max_depth:  # else it cannot nest as deep as that
        check_msgpack_depth(value, codec.max_depth - 1)
    begin, end = _around(topic, marks)
    return begin + value + end


@lru_cache(maxsize=1024)
def _around(topic: str, marks: Marks) -> tuple[bytes, bytes]:
    return _BEGIN + _strict.encode(topic) + _MESSAGE, _END + _strict.encode(marks)


_strict: Final = MessagePack()


def one_value(value: bytes) -> msgspec.Raw | None:
    """Return the value; None if it is none, or not only one."""
    try:
        return _read_one(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


class Publications(Protocol):
    """Who reacts to publications."""

    @property
    def publication(self) -> Callable[[str, msgspec.Raw, Marks], Taker | None]:
        """Hears of one, and may say what takes the next one like it."""
        ...


class _Known:
    """What one beginning and end say, and what is done about it."""

    __slots__ = ("after", "before", "begin", "end", "marks", "take", "topic")

    def __init__(
        self, topic: str, marks: Marks, begin: bytes, end: bytes, take: Taker | None
    ) -> None:
        self.topic = topic
        self.marks = marks
        self.begin = begin
        self.end = end
        self.before = len(begin)  # the value stands between these
        self.after = -len(end)
        self.take = take


class Deliveries:
    """What is known of the publications of one native connection."""

    __slots__ = ("_codec", "_known", "_last", "_max_depth")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._max_depth = codec.max_depth
        self._known: dict[bytes, _Known] = {}
        self._last: _Known | None = None

    def note(self, topic: str, marks: Marks, shown: msgspec.Raw, take: Taker | None) -> None:
        """Note a publication that came the long way; its marks as they were `shown`."""
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        begin = _BEGIN + self._codec.encode(topic) + _MESSAGE
        self._known[begin] = self._last = _Known(topic, marks, begin, _END + bytes(shown), take)

    def take(self, body: bytes, reactions: Publications) -> bool:
        """React to a publication if one like it has come before; False if none has."""
        known = self._last
        if known is None:
            return False
        if not body.startswith(known.begin) or not body.endswith(known.end):
            known = self._find(body)
            if known is None:
                return False
        value = body[known.before : known.after]
        if not value:  # also where the end overlaps the beginning
            return False
        if len(value) >= self._max_depth:  # else it cannot nest as deep as that
            try:
                check_msgpack_depth(value, self._max_depth - 1)
            except PayloadError:
                return False
        take = known.take
        if take is not None and take(value):
            return True
        raw = one_value(value)
        if raw is None:
            return False
        known.take = reactions.publication(known.topic, raw, known.marks)
        return True

    def _find(self, body: bytes) -> _Known | None:
        """Look for a publication like this one besides the last."""
        if len(body) <= _TOPIC + 1 or not body.startswith(_BEGIN):
            return None
        lead = body[_TOPIC]  # of the topic: a text of up to 31 bytes, or of up to 255
        at = _TOPIC + 2 + body[_TOPIC + 1] if lead == 0xD9 else _TOPIC + 1 + (lead & 31)
        known = self._known.get(body[: at + len(_MESSAGE)])
        if known is None or not body.endswith(known.end):
            return None
        self._last = known
        return known
