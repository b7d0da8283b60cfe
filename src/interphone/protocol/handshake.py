"""Handshake: what the two CONNECTION frames say (wire.md, 4)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from ..errors import PayloadError
from .messages import Hello, Identity, Room
from .payload import Codec

__all__ = [
    "chosen_dialect",
    "common_capabilities",
    "common_dialect",
    "credit_of",
    "is_identity",
    "read",
    "write_hello",
    "write_welcome",
]

T = TypeVar("T", bound=msgspec.Struct)


def write_hello(
    payload: bytes | None,
    *,
    id: str | None,
    compress: bool,
    messagepack: bool,
    identity: Identity,
) -> bytes:
    """Return the `d` of a client's CONNECTION."""
    hello: dict[str, Any] = {"compress": compress, "messagepack": messagepack}
    if payload is not None:
        hello["extras"] = msgspec.Raw(payload)
    if id is not None:
        hello["id"] = id
    return msgspec.json.encode(hello | {"interphone": identity})


def write_welcome(
    hello: Hello, *, id: str, compress: bool, messagepack: bool, identity: Identity | None
) -> bytes:
    """Return the `d` of the reply: of the options only those that were asked about."""
    welcome: dict[str, Any] = {"id": id}
    if hello.compress is not msgspec.UNSET:
        welcome["compress"] = compress
    if hello.messagepack is not msgspec.UNSET:
        welcome["messagepack"] = messagepack
    if identity is not None:
        welcome["interphone"] = identity
    return msgspec.json.encode(welcome)


def read(codec: Codec, payload: msgspec.Raw, of: type[T]) -> T | None:
    """Decode the `d` of a CONNECTION or END; None if it is null or absent, empty if no object."""
    if not payload or bytes(payload) == b"null":
        return None
    try:
        shape: T = codec.decode(payload, of)
    except PayloadError:
        return _pieced_together(codec, payload, of)
    return shape


def _pieced_together(codec: Codec, payload: msgspec.Raw, of: type[T]) -> T:
    """Decode member by member what msgspec refuses as a whole, or is no object."""
    shape = of()
    try:
        members = codec.members(payload)
    except PayloadError:
        return shape
    for name in of.__struct_fields__:
        if name in members:
            value = members[name]
            with suppress(PayloadError):  # what cannot be read at all is not there
                setattr(shape, name, value if name == "extras" else codec.decode(value))
    return shape


def is_identity(value: object) -> bool:
    """Whether the other end showed that it is one of us; what it shows beyond is ignored."""
    return isinstance(value, dict) and isinstance(value.get("version"), int)


def common_capabilities(value: object, ours: tuple[str, ...]) -> frozenset[str]:
    """What both ends can do; words that nobody here knows are ignored."""
    theirs = value.get("can") if isinstance(value, dict) else None
    both = frozenset(ours).intersection(
        word for word in (theirs if isinstance(theirs, list) else ()) if isinstance(word, str)
    )
    return _sets.setdefault(both, both)


_sets: dict[frozenset[str], frozenset[str]] = {}  # one for all connections that can do the same


def credit_of(value: object) -> Room | None:
    """How much the other end takes on at once, if it says so in a way that makes sense."""
    shown = value.get("credit") if isinstance(value, dict) else None
    try:
        room = msgspec.convert(shown, Room)
    except msgspec.ValidationError:
        return None
    return room if room.requests > 0 and room.bytes > 0 else None


def common_dialect(value: object, ours: tuple[str, ...]) -> str:
    """The first of our dialects that the other end speaks, too; everybody speaks classic."""
    theirs = value.get("dialects") if isinstance(value, dict) else None
    if not isinstance(theirs, list):
        theirs = []
    return next((dialect for dialect in ours if dialect in theirs), "classic")


def chosen_dialect(value: object, ours: tuple[str, ...]) -> str:
    """The dialect that a reply says will be spoken, if it is one of ours."""
    chosen = value.get("dialect") if isinstance(value, dict) else None
    return chosen if isinstance(chosen, str) and chosen in ours else "classic"
