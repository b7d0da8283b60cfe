"""Sightings: packets as people read them.

What a packet is about is read here, and its payload made a text: cut, and without the values
of members and parameters whose names speak of a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

from .errors import PayloadError
from .protocol.events import Way
from .protocol.messages import (
    ALLOW,
    CANCEL,
    DEMAND,
    END,
    GRANT,
    INPUT,
    ITEM,
    MESSAGE,
    MISSED,
    OPEN,
    PING,
    PONG,
    PROGRESS,
    REQUEST,
    RESPONSE,
    Asked,
    Packet,
    read_failure,
)
from .protocol.payload import Codec
from .protocol.pooled import glance
from .protocol.shapes import enveloped, published, wanted

__all__ = ["MAX_SHOWN", "Sighting", "SightingKind", "Subject", "subject_of", "text_of"]

MAX_SHOWN = 64 * 1024
"""Bytes of the largest payload that is decoded in order to be shown."""

SECRET = re.compile(
    r"passw|passphrase|passcode|pwd|secret|token(?!s|i[sz])|credential|authori[sz]ation|cookie"
    r"|(?:api|private|access|signing|encryption)[-_]?key",
    re.IGNORECASE,
)
REDACTED = "•••"

SightingKind = Literal[
    "tap",
    "connect",
    "disconnect",
    "message",
    "request",
    "call",
    "stream",
    "answer",
    "failure",
    "progress",
    "item",
    "input",
    "cancel",
    "sub",
    "unsub",
    "pub",
    "forget",
    "publication",
    "missed",
    "end",
    "ping",
    "pong",
    "grant",
    "demand",
    "allow",
    "other",
]
"""What is seen: that somebody begins to look on, who comes and goes, and every kind of packet."""

_KINDS: dict[int, SightingKind] = {
    MESSAGE: "message",
    REQUEST: "request",
    RESPONSE: "answer",
    PING: "ping",
    PONG: "pong",
    END: "end",
    CANCEL: "cancel",
    OPEN: "stream",
    ITEM: "item",
    GRANT: "grant",
    INPUT: "input",
    DEMAND: "demand",
    PROGRESS: "progress",
    ALLOW: "allow",
    MISSED: "missed",
}
_MARKED: dict[object, SightingKind] = {
    "call": "call",
    "sub": "sub",
    "unsub": "unsub",
    "pub": "pub",
    "forget": "forget",
}

NamesOf = Callable[[str], list[str]]
"""Tells the names of a method's positional parameters; none of a method nobody knows."""


class Sighting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that went between a server and one of its peers: an item of `$tap`.

    Attributes:
        time: When, in seconds since 1970.
        kind: What it is.
        peer: Id of the peer.
        pid: Process of the peer, where the system tells.
        way: "in", from the peer to the server, or "out".
        name: The method, topic or topics it is about; an answer's is that of its request.
        nonce: A request and what belongs to it have the same one, each way.
        size: Bytes of the packet.
        took: Of an answer: seconds since its request went by.
        code: Of a failure: the word for it.
        value: The payload as text, as far as it is shown.
        missed: How many before this one there was no room for.
    """

    time: float
    kind: SightingKind
    peer: str
    pid: int | None = None
    way: Way = "in"
    name: str | None = None
    nonce: str | None = None
    size: int = 0
    took: float | None = None
    code: str | None = None
    value: str | None = None
    missed: int = 0


class Subject(NamedTuple):
    """What a packet is about, and its payload, not decoded.

    Attributes:
        asked: The call, if it is one.
    """

    kind: SightingKind
    name: str | None
    raw: msgspec.Raw
    asked: Asked | None = None


def subject_of(codec: Codec, packet: Packet, *, interphone: bool) -> Subject:
    """Read what a packet is about; between two of us nothing is guessed from a payload."""
    kind = _KINDS.get(packet.t, "other")
    if packet.t == RESPONSE and packet.e is not None:
        return Subject("failure", None, packet.d)
    if packet.t == REQUEST:
        kind = _MARKED.get(packet.k, "request") if interphone else _looks_like(codec, packet)
    elif packet.t == MESSAGE and (packet.k == "pub" if interphone else _publishes(codec, packet)):
        kind = "publication"
    return _subject(codec, kind, packet.d)


def _looks_like(codec: Codec, packet: Packet) -> SightingKind:
    """What a request of a Node end is, which says so by its shape only."""
    if enveloped(codec, packet.d) is not None:
        return "call"
    if _publishes(codec, packet):
        return "pub"
    wish = wanted(codec, packet.d)
    return "request" if wish is None else _MARKED[wish.kind]


def _publishes(codec: Codec, packet: Packet) -> bool:
    return published(codec, packet.d) is not None


def _subject(codec: Codec, kind: SightingKind, raw: msgspec.Raw) -> Subject:
    nothing = msgspec.Raw()
    if kind in ("call", "stream"):
        envelope = enveloped(codec, raw)
        try:
            asked = codec.decode(raw, Asked) if envelope is None else Asked(*envelope[:3])
        except PayloadError:
            return Subject(kind, None, raw)
        return Subject(kind, asked.method, raw, asked)
    if kind in ("pub", "publication") and (shape := published(codec, raw)) is not None:
        return Subject(kind, shape.topic, shape.value)
    if kind in ("sub", "unsub") and (wish := wanted(codec, raw)) is not None:
        return Subject(kind, ", ".join(wish.topics), nothing)
    if kind == "forget":
        return Subject(kind, _shown(codec, raw, redact=False).strip('"'), nothing)
    return Subject(kind, None, raw)


def text_of(codec: Codec, packet: Packet, subject: Subject, *, redact: bool, names: NamesOf) -> str:
    """The payload of a packet as text, not cut yet."""
    if packet.e is not None:
        failure = read_failure(packet.e)
        return f"{failure.kind}: {failure.message}" if failure.kind else failure.message
    if len(subject.raw) > MAX_SHOWN:
        return f"<{len(subject.raw)} bytes>"
    if subject.asked is not None:
        return _params(codec, subject.asked, redact=redact, names=names)
    return _shown(codec, subject.raw, redact=redact)


def _params(codec: Codec, asked: Asked, *, redact: bool, names: NamesOf) -> str:
    try:
        params = glance(codec, asked.params) if asked.params else []
        named = glance(codec, asked.named) if asked.named else {}
    except PayloadError:
        return "<unreadable>"
    if not isinstance(params, list) or not isinstance(named, dict):
        return "<unreadable>"
    known = names(asked.method) if redact else []
    texts = [
        _json(REDACTED if index < len(known) and SECRET.search(known[index]) else each, redact)
        for index, each in enumerate(params)
    ]
    pairs = _plain(named, redact=redact)
    return ", ".join([*texts, *(f"{name}={_json(each, redact)}" for name, each in pairs.items())])


def _shown(codec: Codec, raw: msgspec.Raw, *, redact: bool) -> str:
    if not raw:
        return ""
    try:
        return _json(glance(codec, raw), redact)
    except PayloadError:
        return "<unreadable>"


def _json(value: object, redact: bool) -> str:
    try:
        return msgspec.json.encode(_plain(value, redact=redact), enc_hook=str).decode()
    except (msgspec.MsgspecError, OverflowError):  # a number that only Node can write
        return str(value)


def _plain(value: Any, *, redact: bool) -> Any:
    """The value as JSON can say it, without bytes and secrets."""
    if isinstance(value, dict):
        return {
            _text(str(key)): REDACTED
            if redact and isinstance(key, str) and SECRET.search(key)
            else _plain(each, redact=redact)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(each, redact=redact) for each in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    """A string that is valid Unicode: Node's need not be."""
    return text.encode("utf-8", "replace").decode()
