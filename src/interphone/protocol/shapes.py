"""Shapes: how publications and subscriptions look inside a payload (wire.md, 5 and 6).

The Node packages have no packet types for them: an object with the member `pub` is a
publication, one whose only member is `sub` or `unsub` a subscription. Whether an object
that looks like one is meant to be one is for the Session to say.

Between two ends of ours that can do "topics" there is more to say about each: `Terms` of a
subscription, a `Posting` of a publication, `Marks` on its way to a subscriber.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec

from ..errors import PayloadError
from .payload import ABSENT, UNDEFINED, Codec

__all__ = [
    "Ack",
    "Envelope",
    "Marks",
    "Posting",
    "Published",
    "Terms",
    "Wanted",
    "allowed",
    "cancelled",
    "enveloped",
    "missed",
    "options_of",
    "published",
    "told",
    "wanted",
]

T = TypeVar("T")

Ack = Literal["queued", "delivered"]
LARGEST = 2**53 - 1  # of the integers every JSON reader keeps exactly
Natural = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Id = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]

RPC_HINT = re.compile(rb"jsonrpc")
CANCEL_HINT = re.compile(rb"\$/cancelRequest")
HINT = re.compile(rb'"?(?:pub|sub|unsub)')  # in either codec; decided by decoding


class Envelope(NamedTuple):
    """A JSON-RPC 2.0 request, as Node programs call methods by a plain request.

    Attributes:
        id: What it is known by, decoded; `ABSENT` if it has none.
    """

    method: str
    params: msgspec.Raw
    named: msgspec.Raw
    id: object

    def result(self, value: object) -> dict[str, object]:
        """Return the envelope of the answer."""
        answer = {"jsonrpc": "2.0", "result": value}
        return answer if self.id is ABSENT else answer | {"id": self.id}


class Published(NamedTuple):
    """``{"pub": topic, "message": value}``; the value may be absent."""

    topic: str
    value: msgspec.Raw


class Wanted(NamedTuple):
    """``{"sub": topics}`` or ``{"unsub": topics}``."""

    kind: str
    topics: list[str]


class Terms(msgspec.Struct, omit_defaults=True, frozen=True):
    """How a subscription is meant: options of sub and unsub.

    Attributes:
        id: Which of the client's subscriptions it is; 0 where the client does not say.
        group: The queue group it belongs to.
        credit: Publications and bytes it may be sent before it grants more; None: any.
    """

    id: Natural = 0
    group: str | None = None
    credit: tuple[Natural, Natural] | None = None


class Posting(msgspec.Struct, omit_defaults=True, frozen=True):
    """How a publication is meant: options of pub.

    Attributes:
        ack: When it is answered: once it is queued for everybody, or once it has left.
        retain: Whether the server keeps it for subscriptions to come.
        deadline: Seconds its publisher waits; None: it does not say.
    """

    ack: Ack = "queued"
    retain: bool = False
    deadline: Annotated[float, msgspec.Meta(gt=0)] | None = None


class Marks(msgspec.Struct, omit_defaults=True, frozen=True):
    """What is said of a publication to its subscriber.

    Attributes:
        to: Ids of the subscriptions it is for; none: all that match.
        retained: Whether it was published before they began.
    """

    to: tuple[Id, ...] = ()
    retained: bool = False


def options_of(codec: Codec, of: type[T], options: msgspec.Raw) -> T | None:
    """Read the `o` of a packet as an `of`; None if it cannot be read as one."""
    if not options:
        return of()
    try:
        said: T = codec.decode(options, of)
    except PayloadError:
        return of() if bytes(options) in _NOTHING else None
    return said


_NOTHING = (b"null", b"\xc0", UNDEFINED)


def allowed(codec: Codec, payload: msgspec.Raw) -> tuple[int, int] | None:
    """Read an ALLOW: publications and bytes; None if it is none."""
    pair: tuple[int, int] | None = _pair(codec, payload, tuple[Natural, Natural])
    return pair


def missed(codec: Codec, payload: msgspec.Raw) -> tuple[int, str] | None:
    """Read a MISSED: how many publications, and the topic of the first; None if it is none."""
    pair: tuple[int, str] | None = _pair(codec, payload, tuple[Id, str])
    return pair


def _pair(codec: Codec, payload: msgspec.Raw, of: Any) -> Any:
    try:
        return codec.decode(payload, of)
    except PayloadError:
        return None


class _Said(msgspec.Struct, gc=False):
    pub: str
    message: msgspec.Raw = ABSENT


def told(codec: Codec, payload: msgspec.Raw) -> Published | None:
    """Read a publication of one of us, which is nothing else; None if it cannot be read."""
    try:
        said: _Said = codec.decode(payload, _Said)
    except PayloadError:
        return None
    return Published(said.pub, said.message) if said.pub else None


def published(codec: Codec, payload: msgspec.Raw) -> Published | None:
    """Read a publication; None if it does not look like one."""
    members = _members(codec, payload)
    topic = _decoded(codec, members["pub"]) if "pub" in members else None
    if not isinstance(topic, str) or not topic:
        return None
    return Published(topic, members.get("message", ABSENT))


def wanted(codec: Codec, payload: msgspec.Raw) -> Wanted | None:
    """Read a subscription, or the end of one; None if it does not look like it."""
    members = _members(codec, payload)
    for kind in ("sub", "unsub"):
        if list(members) == [kind]:
            topics = _texts(codec, members[kind])
            return None if topics is None else Wanted(kind, topics)
    return None


def enveloped(codec: Codec, payload: msgspec.Raw) -> Envelope | None:
    """Read a JSON-RPC 2.0 request; None if it does not look like one."""
    if RPC_HINT.search(payload) is None:
        return None
    try:
        members = codec.members(payload)
    except PayloadError:
        return None
    version = _decoded(codec, members.get("jsonrpc", ABSENT))
    method = _decoded(codec, members.get("method", ABSENT))
    if version != "2.0" or not isinstance(method, str):
        return None
    params = members.get("params", ABSENT)
    named = isinstance(_decoded(codec, params), dict)
    id = _decoded(codec, members["id"]) if "id" in members else ABSENT
    return Envelope(method, ABSENT if named else params, params if named else ABSENT, id)


def cancelled(codec: Codec, payload: msgspec.Raw) -> object:
    """Read the id in a ``$/cancelRequest`` of the Language Server Protocol; None if it is none."""
    if CANCEL_HINT.search(payload) is None:
        return None
    try:
        members = codec.members(payload)
        if _decoded(codec, members.get("method", ABSENT)) != "$/cancelRequest":
            return None
        return _decoded(codec, codec.members(members.get("params", ABSENT)).get("id", ABSENT))
    except PayloadError:
        return None


def _members(codec: Codec, payload: msgspec.Raw) -> dict[str, msgspec.Raw]:
    if HINT.search(payload) is None:
        return {}
    try:
        return codec.members(payload)
    except PayloadError:
        return {}


def _decoded(codec: Codec, value: msgspec.Raw) -> object:
    try:
        return codec.decode(value)
    except PayloadError:
        return None


def _texts(codec: Codec, value: msgspec.Raw) -> list[str] | None:
    """One text or several, none of them empty."""
    texts = _decoded(codec, value)
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        return None
    return texts
