"""Dialects: what a message looks like in bytes, and back.

`ClassicJson` and `ClassicMessagePack` write the packets of the Node packages. An
envelope is put around a payload that is bytes already, so a publication is encoded
once however many subscribers it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, Final

import msgspec

from ..errors import PayloadError
from .messages import MESSAGE, REQUEST, RESPONSE, Failure, NativePacket, Packet
from .payload import (
    ABSENT,
    UNDEFINED,
    Codec,
    Json,
    MessagePack,
    check_json_depth,
    check_msgpack_depth,
    lenient_json,
    lenient_json_members,
    lenient_msgpack,
    lenient_msgpack_members,
)
from .wire import LARGE, Body, Bulk, Outgoing

__all__ = [
    "ClassicJson",
    "ClassicMessagePack",
    "Dialect",
    "Native",
    "dialect_of",
    "msgpack_publication",
]


class Dialect(ABC):
    """One way of writing messages. It remembers nothing: connections share it.

    Attributes:
        codec: How the payloads are written.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._encode = codec.encode
        self._max_depth = codec.max_depth

    @abstractmethod
    def read(self, body: Body) -> Packet | None:
        """Return what a body says; None if it is well-formed and no packet.

        Raises:
            PayloadError: It is not even well-formed, or nests too deeply.
        """

    @abstractmethod
    def packet(
        self,
        kind: int,
        payload: Outgoing | msgspec.Raw,
        nonce: object = None,
        *,
        mark: str | None = None,
        failure: Failure | None = None,
        options: dict[str, Any] | msgspec.Raw | None = None,
    ) -> Outgoing:
        """Return any packet; an `ABSENT` payload is left out."""

    @abstractmethod
    def message(self, payload: Outgoing) -> Outgoing:
        """Return a MESSAGE."""

    @abstractmethod
    def request(self, payload: Outgoing, nonce: str | int, options: bytes = b"") -> Outgoing:
        """Return a REQUEST with a nonce of ours; its options are encoded already."""

    @abstractmethod
    def call(self, payload: Outgoing, nonce: str | int, options: bytes = b"") -> Outgoing:
        """The same of the kind "call"."""

    @abstractmethod
    def response(self, payload: Outgoing, nonce: object) -> Outgoing:
        """Return a RESPONSE with the nonce as it came."""

    @abstractmethod
    def publication(self, topic: str, payload: Outgoing | msgspec.Raw) -> bytes:
        """Return the payload ``{"pub": topic, "message": payload}``.

        Raises:
            PayloadError: With the object around it the payload nests too deeply.
        """


def _check(codec: Codec, body: Body, payload: msgspec.Raw) -> None:
    """Raise `PayloadError` if a packet nests too deeply, or its payload does.

    Nearly always only the payload is long enough, and often it is one text, or bytes.
    """
    if len(body) - len(payload) > codec.max_depth:
        codec.check(body)
    else:
        codec.check_value(payload)


class ClassicJson(Dialect):
    """Packets as compact JSON, the default of the Node packages."""

    def read(self, body: Body) -> Packet | None:
        """See `Dialect`."""
        try:
            packet: Packet = _json_packet(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            if not self.codec.lenient:
                raise PayloadError(f"no packet: {exc}") from exc
        else:
            size, depth = len(packet.d), self._max_depth
            if size > depth or len(body) - size > depth:  # else it cannot nest deeper
                _check(self.codec, body, packet.d)
            return packet
        self.codec.check(body)
        return _lenient_packet(body)

    def packet(
        self,
        kind: int,
        payload: Outgoing | msgspec.Raw,
        nonce: object = None,
        *,
        mark: str | None = None,
        failure: Failure | None = None,
        options: dict[str, Any] | msgspec.Raw | None = None,
    ) -> Outgoing:
        """See `Dialect`."""
        parts = [b'{"t":%d' % kind]
        if payload:
            parts += [b',"d":', bytes(payload)]
        if nonce:
            parts += [b',"n":', self._encode(nonce)]
        if mark:
            parts.append(b',"k":"%b"' % mark.encode())
        if failure is not None:
            parts += [b',"e":', self._encode(failure)]
        if options:
            parts += [b',"o":', self._encode(options)]
        parts.append(b"}")
        return b"".join(parts)

    # Hot path: one formatting each, for the packets that come by the thousand.

    def message(self, payload: Outgoing) -> Outgoing:
        """See `Dialect`."""
        if isinstance(payload, Bulk):
            return Bulk(b'{"t":1,"d":', payload, b"}")
        return b'{"t":1,"d":%b}' % payload

    def request(self, payload: Outgoing, nonce: str | int, options: bytes = b"") -> Outgoing:
        """See `Dialect`."""
        if isinstance(payload, Bulk):
            return self._large_request(payload, nonce, b',"o":' + options if options else b"")
        if options:
            return b'{"t":2,"d":%b,"n":"%b","o":%b}' % (payload, str(nonce).encode(), options)
        return b'{"t":2,"d":%b,"n":"%b"}' % (payload, str(nonce).encode())

    def call(self, payload: Outgoing, nonce: str | int, options: bytes = b"") -> Outgoing:
        """See `Dialect`."""
        said = b',"o":' + options if options else b""
        if isinstance(payload, Bulk):
            return self._large_request(payload, nonce, b',"k":"call"' + said)
        return b'{"t":2,"d":%b,"n":"%b","k":"call"%b}' % (payload, str(nonce).encode(), said)

    def _large_request(self, payload: Bulk, nonce: str | int, said: bytes) -> Bulk:
        return Bulk(b'{"t":2,"d":', payload, b',"n":"%b"%b}' % (str(nonce).encode(), said))

    def response(self, payload: Outgoing, nonce: object) -> Outgoing:
        """See `Dialect`."""
        if isinstance(payload, Bulk):
            said = b',"n":' + self._encode(nonce) if nonce else b""
            return Bulk(b'{"t":3,"d":', payload, said, b"}")
        if type(nonce) is str and nonce.isalnum() and nonce.isascii():
            return b'{"t":3,"d":%b,"n":"%b"}' % (payload, nonce.encode())
        return self.packet(RESPONSE, payload, nonce)

    def publication(self, topic: str, payload: Outgoing | msgspec.Raw) -> bytes:
        """See `Dialect`."""
        if not payload:
            return b'{"pub":%b}' % self._encode(topic)
        value = b'{"pub":%b,"message":%b}' % (self._encode(topic), bytes(payload))
        check_json_depth(value, self.codec.max_depth)
        return value


_json_packet: Final = msgspec.json.Decoder(Packet).decode


def _lenient_packet(body: Body) -> Packet | None:
    """Read what msgspec refuses and Node does not, keeping `d` as it was written."""
    value = lenient_json(body)
    if value is None:
        raise PayloadError("no packet: null")
    if not isinstance(value, dict) or not _is_type(value.get("t")):
        return None
    payload = lenient_json_members(body).get("d", ABSENT)
    return Packet(int(value["t"]), payload, value.get("n"), value.get("k"), value.get("e"))


def _is_type(value: Any) -> bool:
    return type(value) in _NUMBERS and bool(value == value // 1)


_NUMBERS = frozenset((int, float))


class ClassicMessagePack(Dialect):
    """The same packets as MessagePack maps (net-ipc's option)."""

    def read(self, body: Body) -> Packet | None:
        """See `Dialect`."""
        packet: Any
        try:
            packet = _msgpack_packet(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            if not self.codec.lenient:
                raise PayloadError(f"no packet: {exc}") from exc
            self.codec.check(body)
            packet = self._read_lenient(body)
        else:
            _check(self.codec, body, packet.d)
        if packet is not None and bytes(packet.d) == UNDEFINED:
            packet.d = ABSENT
        read: Packet | None = packet
        return read

    def _read_lenient(self, body: Body) -> Packet | None:
        value = lenient_msgpack(body)
        if not isinstance(value, dict) or not _is_type(value.get("t")):
            return None
        payload = lenient_msgpack_members(body).get("d", ABSENT)
        return Packet(int(value["t"]), payload, value.get("n"), value.get("k"), value.get("e"))

    def packet(
        self,
        kind: int,
        payload: Outgoing | msgspec.Raw,
        nonce: object = None,
        *,
        mark: str | None = None,
        failure: Failure | None = None,
        options: dict[str, Any] | msgspec.Raw | None = None,
    ) -> Outgoing:
        """See `Dialect`."""
        parts = [b"\xa1t%c" % kind, b"\xa1d", bytes(payload) or UNDEFINED]
        if nonce:
            parts += [b"\xa1n", self._encode(nonce)]
        if mark:
            parts += [b"\xa1k", self._encode(mark)]
        if failure is not None:
            parts += [b"\xa1e", self._encode(failure)]
        if options:
            parts += [b"\xa1o", self._encode(options)]
        keys = 2 + bool(nonce) + bool(mark) + (failure is not None) + bool(options)
        return b"%c%b" % (0x80 | keys, b"".join(parts))

    def message(self, payload: Outgoing) -> Outgoing:
        """See `Dialect`."""
        return self.packet(MESSAGE, payload)

    def request(self, payload: Outgoing, nonce: str | int, options: bytes = b"") -> Outgoing:
        """See `Dialect`."""
        return self.packet(REQUEST, payload, nonce, options=msgspec.Raw(options))

    def call(self, payload: Outgoing, nonce: str | int, options: bytes = b"") -> Outgoing:
        """See `Dialect`."""
        return self.packet(REQUEST, payload, nonce, mark="call", options=msgspec.Raw(options))

    def response(self, payload: Outgoing, nonce: object) -> Outgoing:
        """See `Dialect`."""
        return self.packet(RESPONSE, payload, nonce)

    def publication(self, topic: str, payload: Outgoing | msgspec.Raw) -> bytes:
        """See `Dialect`."""
        return msgpack_publication(self.codec, topic, payload)


def msgpack_publication(codec: Codec, topic: str, payload: Outgoing | msgspec.Raw) -> bytes:
    """Return the payload of a publication as MessagePack; see `Dialect.publication`."""
    if not payload:
        return b"\x81\xa3pub" + codec.encode(topic)
    value = b"\x82\xa3pub%b\xa7message%b" % (codec.encode(topic), bytes(payload))
    check_msgpack_depth(value, codec.max_depth)
    return value


def _extension(code: int, data: memoryview) -> Any:
    return None  # only in `n`, `k` and `e`; what stands in `d` is decoded by its codec


_msgpack_packet: Final = msgspec.msgpack.Decoder(Packet, ext_hook=_extension).decode


class Native(Dialect):
    """What two interphone ends say to each other: the same packets as MessagePack arrays.

    MessagePack carries bytes as they are, and for small packets msgspec reads an array of it in
    half the time of a JSON object (docs/topics/design.md has the numbers).
    """

    def read(self, body: Body) -> Packet | None:
        """See `Dialect`."""
        try:
            packet = _native_packet(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise PayloadError(f"no packet: {exc}") from exc
        size, depth = len(packet.d), self._max_depth
        if size > depth or len(body) - size > depth:  # else it cannot nest deeper
            _check(self.codec, body, packet.d)
        if size == 3 and bytes(packet.d) == UNDEFINED:
            packet.d = ABSENT
        return packet  # type: ignore[return-value]  # the fields of a Packet, in another order

    def read_message(self, body: bytes) -> msgspec.Raw | None:
        """Return the payload of a small MESSAGE that is nothing else; None: it is for `read`."""
        size = len(body) - len(_MESSAGE)
        if size >= LARGE or not body.startswith(_MESSAGE):
            return None
        payload = body[len(_MESSAGE) :]
        try:
            raw = _read_one(payload)
            if size > self._max_depth:  # else it cannot nest deeper
                check_msgpack_depth(payload, self._max_depth)
        except (msgspec.MsgspecError, PayloadError, ValueError, RecursionError):
            return None  # `read` says why
        return None if payload == UNDEFINED else raw

    def packet(
        self,
        kind: int,
        payload: Outgoing | msgspec.Raw,
        nonce: object = None,
        *,
        mark: str | None = None,
        failure: Failure | None = None,
        options: dict[str, Any] | msgspec.Raw | None = None,
    ) -> Outgoing:
        """See `Dialect`."""
        if failure is None and not mark and not options:
            head = b"\x93%c%b" % (kind, _encode_native(nonce))
            if isinstance(payload, Bulk):
                return Bulk(head, payload)
            return head + (bytes(payload) or UNDEFINED)
        fields: list[object] = [kind, nonce, msgspec.Raw(bytes(payload) or UNDEFINED), mark]
        # What a handler put into a failure may have no form on the wire.
        fields += [None if failure is None else msgspec.Raw(self._encode(failure)), options]
        return _encode_native(fields)

    # Hot path: one formatting each.

    def message(self, payload: Outgoing) -> Outgoing:
        """See `Dialect`."""
        if isinstance(payload, Bulk):
            return Bulk(_MESSAGE, payload)
        return _MESSAGE + payload

    def request(self, payload: Outgoing, nonce: str | int, options: bytes = b"") -> Outgoing:
        """See `Dialect`."""
        if isinstance(payload, Bulk):
            head, said = (b"\x96\x02", b"\xc0\xc0" + options) if options else (b"\x93\x02", b"")
            return Bulk(head + _encode_native(nonce), payload, said)
        if options:
            return b"".join((b"\x96\x02", _encode_native(nonce), payload, b"\xc0\xc0", options))
        return b"".join((b"\x93\x02", _encode_native(nonce), payload))

    def call(self, payload: Outgoing, nonce: str | int, options: bytes = b"") -> Outgoing:
        """See `Dialect`."""
        said = options or b"\xc0"
        if isinstance(payload, Bulk):
            return Bulk(b"\x96\x02" + _encode_native(nonce), payload, b"\xa4call\xc0" + said)
        return b"".join((b"\x96\x02", _encode_native(nonce), payload, b"\xa4call\xc0", said))

    def response(self, payload: Outgoing, nonce: object) -> Outgoing:
        """See `Dialect`."""
        if isinstance(payload, Bulk):
            return Bulk(b"\x93\x03" + _encode_native(nonce), payload)
        return b"".join((b"\x93\x03", _encode_native(nonce), payload))

    def publication(self, topic: str, payload: Outgoing | msgspec.Raw) -> bytes:
        """See `Dialect`."""
        return msgpack_publication(self.codec, topic, payload)


_MESSAGE: Final = b"\x93\x01\xc0"  # what stands before the payload of one
_read_one: Final = msgspec.msgpack.Decoder(msgspec.Raw).decode
_native_packet: Final = msgspec.msgpack.Decoder(NativePacket, ext_hook=_extension).decode
_encode_native: Final = msgspec.msgpack.Encoder().encode


@lru_cache(maxsize=64)
def dialect_of(native: bool, messagepack: bool, lenient: bool, max_depth: int) -> Dialect:
    """Return the dialect that was agreed, the same for all connections."""
    if native:
        return Native(MessagePack(max_depth=max_depth))
    if messagepack:
        return ClassicMessagePack(MessagePack(lenient=lenient, max_depth=max_depth))
    return ClassicJson(Json(lenient=lenient, max_depth=max_depth))
