"""Shapes: how publications and subscriptions look inside a payload (wire.md, 5 and 6).

The Node packages have no packet types for them: an object with the member `pub` is a
publication, one whose only member is `sub` or `unsub` a subscription. Whether an object
that looks like one is meant to be one is for the Session to say.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from ..errors import PayloadError
from .payload import ABSENT, Codec

__all__ = ["Envelope", "Published", "Wanted", "cancelled", "enveloped", "published", "wanted"]

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
