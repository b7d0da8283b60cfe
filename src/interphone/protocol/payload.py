"""User values and their bytes, for every codec of the wire.

Two codecs, `Json` and `MessagePack`, each strict (between interphone ends) or lenient
(towards Node). The fast path is msgspec's. Where msgspec refuses what Node accepts, a
lenient codec tries once more, slowly: lone surrogates, bad UTF-8 (each bad sequence
becomes U+FFFD), numbers like ``1e400``, integers no 64 bits hold. NaN and Infinity are
written as null in JSON and refused on input, in both ways of working.

A payload stays `msgspec.Raw` until somebody who knows its type decodes it.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from ..errors import PayloadError
from .loan import Loan
from .wire import LARGE, Body, Bulk, Outgoing

__all__ = [
    "ABSENT",
    "UNDEFINED",
    "Codec",
    "Json",
    "MessagePack",
    "check_json_depth",
    "check_msgpack_depth",
    "lenient_json",
    "lenient_json_members",
    "lenient_msgpack",
    "lenient_msgpack_members",
    "pack_quickly",
    "plain",
    "result_of",
]

ABSENT: Final = msgspec.Raw()
"""The payload that is not there: JavaScript's undefined. Python sees None."""

UNDEFINED: Final = b"\xd4\x00\x00"  # how msgpackr writes undefined

_ANY: Final[Any] = Any  # hot path: what is Final need not be looked up by what is compiled

Bytes: TypeAlias = bytes | bytearray | memoryview | msgspec.Raw


class Codec(Protocol):
    """One way of writing values."""

    lenient: bool
    max_depth: int

    def encode(self, value: object) -> bytes:
        """Return `value` as bytes; raise `PayloadError` if it has no such form."""
        ...

    def pack(self, value: object) -> Outgoing:
        """The same to be sent; what is large may come in pieces, so that it is not copied."""
        ...

    def decode(self, raw: Bytes, of: Any = Any) -> Any:
        """Return the value in `raw` as an `of`; raise `PayloadError` if it is none."""
        ...

    def items(self, raw: Bytes) -> list[msgspec.Raw]:
        """Return the items of an array as they were written; `PayloadError` if it is none."""
        ...

    def members(self, raw: Bytes) -> dict[str, msgspec.Raw]:
        """Return the values of an object as they were written; `PayloadError` if it is none."""
        ...

    def check(self, body: Body) -> None:
        """Raise `PayloadError` if `body`, a packet, nests deeper than the limit."""
        ...

    def check_value(self, raw: Bytes) -> None:
        """The same for the payload alone."""
        ...


# JSON


class Json:
    """JSON by msgspec; lenient towards Node."""

    def __init__(self, *, lenient: bool = False, max_depth: int = 64) -> None:
        self.lenient = lenient
        self.max_depth = max_depth

    def encode(self, value: object) -> bytes:
        """See `Codec`."""
        return bytes(self.pack(value))

    def pack(self, value: object) -> Outgoing:
        """See `Codec`."""
        try:
            encoded = _encode_json(value)
        except RecursionError:
            raise PayloadError("the value nests too deeply, or contains itself") from None
        except UnicodeEncodeError as surrogate:
            if not self.lenient:
                raise PayloadError(f"a string is no valid Unicode: {surrogate}") from surrogate
            encoded = _lenient_json_bytes(value)
        except Exception as exc:
            raise PayloadError(f"the value cannot be encoded: {exc}") from exc
        if len(encoded) > self.max_depth:  # else it cannot nest deeper
            check_json_depth(encoded, self.max_depth)
            if len(encoded) >= LARGE:
                return Bulk(encoded)
        elif not encoded:
            raise PayloadError("an empty Raw is no value")
        return encoded

    def decode(self, raw: Bytes, of: Any = Any) -> Any:
        """See `Codec`."""
        try:
            return _decode_json(raw) if of is _ANY else _json_decoder(of)(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            if not self.lenient:
                raise PayloadError(str(exc)) from exc
        return _converted(lenient_json(bytes(raw)), of)

    def items(self, raw: Bytes) -> list[msgspec.Raw]:
        """See `Codec`."""
        try:
            return _json_items(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            if not self.lenient:
                raise PayloadError(str(exc)) from exc
        # What only a lenient codec reads cannot be cut: it is read and written again.
        return [msgspec.Raw(self.encode(item)) for item in self.decode(raw, list[Any])]

    def members(self, raw: Bytes) -> dict[str, msgspec.Raw]:
        """See `Codec`."""
        try:
            return _json_members(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            if not self.lenient:
                raise PayloadError(str(exc)) from exc
        return lenient_json_members(bytes(raw))

    def check(self, body: Body) -> None:
        """See `Codec`; the packet around the payload adds one level."""
        if len(body) > self.max_depth:
            check_json_depth(body, self.max_depth + 1)

    def check_value(self, raw: Bytes) -> None:
        """See `Codec`."""
        if len(raw) > self.max_depth:
            check_json_depth(raw, self.max_depth)


def plain(value: object) -> object:
    """Say what a value that msgspec does not know is written as."""
    if type(value) is Loan:
        return value.content()
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


_encode_json: Final = msgspec.json.Encoder(enc_hook=plain).encode
_json_items: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_json_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


_decode_json: Final = msgspec.json.Decoder().decode


@lru_cache(maxsize=1024)
def _json_decoder(of: Any) -> Any:
    return msgspec.json.Decoder(of).decode


def lenient_json(body: Body) -> Any:
    """Decode as ``JSON.parse`` would: surrogates pass, bad UTF-8 becomes U+FFFD."""
    text = body.decode("utf-8", "replace")
    scan = _scanner()
    try:
        value, end = scan(text, _after_blank(text, 0))
        if _after_blank(text, end) != len(text):
            raise ValueError("text is left over")
    except (ValueError, RecursionError) as exc:
        raise PayloadError(f"no JSON: {exc}") from exc
    return value


def lenient_json_members(body: Body) -> dict[str, msgspec.Raw]:
    """Return the values of an object as they were written, bad UTF-8 replaced."""
    if not isinstance(lenient_json(body), dict):
        raise PayloadError("no JSON object")
    text = body.decode("utf-8", "replace")
    members: dict[str, msgspec.Raw] = {}
    scan = _scanner()
    at = _after_blank(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = scan(text, at)
        start = _after_blank(text, _after_blank(text, at) + 1)  # behind the colon
        _, at = scan(text, start)
        members[key] = msgspec.Raw(text[start:at].encode())
        at = _after_blank(text, at)
        if text[at] == ",":
            at = _after_blank(text, at + 1)
    return members


def _after_blank(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    assert match is not None  # the pattern matches nothing, too
    return match.end()


def _integer(digits: str) -> Any:
    """Read an integer; one that Python refuses to read is infinite, as in Node."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_BLANK = re.compile(r"[ \t\n\r]*")


@lru_cache(maxsize=1)
def _scanner() -> Callable[[str, int], tuple[Any, int]]:
    from json import JSONDecoder  # not at the top: it is rarely needed

    return JSONDecoder(parse_int=_integer, parse_constant=_no_constant).raw_decode


def _lenient_json_bytes(value: object) -> bytes:
    import json

    try:
        built = msgspec.to_builtins(value, str_keys=True, enc_hook=plain)
        text = json.dumps(_finite(built), allow_nan=False, separators=(",", ":"))
    except Exception as exc:
        raise PayloadError(f"the value cannot be encoded: {exc}") from exc
    return text.encode()


def _finite(value: Any) -> Any:
    """Replace what JSON lacks by null, as ``JSON.stringify`` does."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _converted(value: Any, of: Any) -> Any:
    if of is Any:
        return value
    try:
        return msgspec.convert(value, of)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise PayloadError(str(exc)) from exc


# MessagePack


class MessagePack:
    """MessagePack by msgspec; towards Node with msgpackr's habits."""

    def __init__(self, *, lenient: bool = False, max_depth: int = 64) -> None:
        self.lenient = lenient
        self.max_depth = max_depth

    def encode(self, value: object) -> bytes:
        """See `Codec`."""
        return bytes(self.pack(value))

    def pack(self, value: object) -> Outgoing:
        """See `Codec`."""
        if isinstance(value, bytes) and LARGE <= len(value) < 2**32:
            return Bulk(b"\xc6" + len(value).to_bytes(4, "big"), value)
        try:
            encoded = _encode_msgpack(_for_node(value) if self.lenient else value)
        except RecursionError:
            raise PayloadError("the value nests too deeply, or contains itself") from None
        except Exception as exc:
            raise PayloadError(f"the value cannot be encoded: {exc}") from exc
        if len(encoded) > self.max_depth:  # else it cannot nest deeper
            check_msgpack_depth(encoded, self.max_depth)
            if len(encoded) >= LARGE:
                return Bulk(encoded)
        elif not encoded:
            raise PayloadError("an empty Raw is no value")
        return encoded

    def decode(self, raw: Bytes, of: Any = Any) -> Any:
        """See `Codec`."""
        try:
            return _decode_msgpack(raw) if of is _ANY else _msgpack_decoder(of)(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            if not self.lenient:
                raise PayloadError(str(exc)) from exc
        return _converted(lenient_msgpack(bytes(raw)), of)

    def items(self, raw: Bytes) -> list[msgspec.Raw]:
        """See `Codec`."""
        try:
            return _msgpack_items(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            if not self.lenient:
                raise PayloadError(str(exc)) from exc
        return [msgspec.Raw(self.encode(item)) for item in self.decode(raw, list[Any])]

    def members(self, raw: Bytes) -> dict[str, msgspec.Raw]:
        """See `Codec`."""
        try:
            return _msgpack_members(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            if not self.lenient:
                raise PayloadError(str(exc)) from exc
        return lenient_msgpack_members(bytes(raw))

    def check(self, body: Body) -> None:
        """See `Codec`; the packet around the payload adds one level."""
        if len(body) > self.max_depth:
            check_msgpack_depth(body, self.max_depth + 1)

    def check_value(self, raw: Bytes) -> None:
        """See `Codec`."""
        if len(raw) > self.max_depth:
            check_msgpack_depth(raw, self.max_depth)


def pack_quickly(codec: Codec, value: object) -> Outgoing:
    """Return `value` as MessagePack as `codec` does, which is only asked if it has to look closer.

    It has to if there may be something large in it, or a loan, or something without a form.
    """
    kind = type(value)
    if kind in _BULKY:
        return codec.pack(value)
    if kind is dict and "params" in value:  # type: ignore[operator]  # it is a dict
        asked: dict[Any, Any] = value  # type: ignore[assignment]  # it is
        params = asked["params"]
        if "named" in asked or type(params) is not tuple:
            return codec.pack(value)
        for each in params:
            if type(each) in _BULKY:
                return codec.pack(value)
    try:
        encoded = _encode_plainly(value)
    except Exception:
        return codec.pack(value)
    if len(encoded) > codec.max_depth:  # else it cannot nest deeper
        check_msgpack_depth(encoded, codec.max_depth)
        if len(encoded) >= LARGE:
            return Bulk(encoded)
    elif not encoded:
        return codec.pack(value)
    return encoded


_BULKY: Final = frozenset((bytes, bytearray, memoryview))
_encode_plainly: Final = msgspec.msgpack.Encoder().encode
_encode_msgpack: Final = msgspec.msgpack.Encoder(enc_hook=plain).encode
_msgpack_items: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_msgpack_members: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


@lru_cache(maxsize=1024)
def _msgpack_decoder(of: Any) -> Any:
    return msgspec.msgpack.Decoder(of, ext_hook=_extension).decode


def _extension(code: int, data: memoryview) -> Any:
    if code == 0:  # msgpackr's undefined
        return None
    raise ValueError(f"unknown MessagePack extension {code}")


_decode_msgpack: Final = msgspec.msgpack.Decoder(ext_hook=_extension).decode


def _for_node(value: object) -> Any:
    """Write integers beyond 32 bits as floats where that is exact: Node makes others BigInt."""
    return _narrowed(msgspec.to_builtins(value, builtin_types=_MSGPACK_TYPES, enc_hook=plain))


_MSGPACK_TYPES = (bytes, bytearray, memoryview, datetime)


def _narrowed(value: Any) -> Any:
    kind = type(value)
    if kind is int:
        wide = not -(2**31) <= value < 2**32
        return float(value) if wide and abs(value) <= 2**1000 and float(value) == value else value
    if kind is str:
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if kind is dict:
        return {_narrowed(key): _narrowed(item) for key, item in value.items()}
    if kind is list:
        return [_narrowed(item) for item in value]
    if kind is tuple:  # also an array as a key, as it was read
        return tuple(_narrowed(item) for item in value)
    return value


def lenient_msgpack(body: Body) -> Any:
    """Decode as msgpackr would: bad UTF-8 becomes U+FFFD."""
    return _LenientReader(bytes(body)).value()


def lenient_msgpack_members(body: Body) -> dict[str, msgspec.Raw]:
    """Return the values of a map as they were written; keys that are no strings are left out."""
    if not isinstance(lenient_msgpack(body), dict):
        raise PayloadError("no MessagePack map")
    members: dict[str, msgspec.Raw] = {}
    at = _skip(body, 0)[1]
    while at < len(body):
        start = _end_of(body, at)
        key = lenient_msgpack(body[at:start])
        at = _end_of(body, start)
        if isinstance(key, str):
            members[key] = msgspec.Raw(body[start:at])
    return members


def _end_of(body: Body, at: int) -> int:
    """Return where the value at `at` ends, in a body that is known to be MessagePack."""
    missing = 1
    while missing:
        items, at = _skip(body, at)
        missing += (items or 0) - 1
    return at


class _LenientReader:
    """Reads MessagePack as msgpackr does; only for what msgspec refuses."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def value(self) -> Any:
        try:
            value = self._read()
        except (IndexError, struct.error, TypeError, ValueError, RecursionError) as exc:
            raise PayloadError(f"no MessagePack: {exc}") from exc  # TypeError: a key that is a map
        if self._at != len(self._data):
            raise PayloadError("no MessagePack: bytes are left over")
        return value

    def _read(self) -> Any:
        lead = self._number(">B")
        if lead < 0x80:
            return lead
        if lead < 0x90:
            return self._map(lead & 15)
        if lead < 0xA0:
            return [self._read() for _ in range(lead & 15)]
        if lead < 0xC0:
            return self._text(lead & 31)
        if lead >= 0xE0:
            return lead - 256
        return self._long(lead)

    def _long(self, lead: int) -> Any:
        if lead in _CONSTANTS:
            return _CONSTANTS[lead]
        if lead in _NUMBERS:
            return self._number(_NUMBERS[lead])
        if lead in _SIZED:
            size, make = _SIZED[lead]
            return make(self, self._number(size))
        if 0xD4 <= lead <= 0xD8:
            return self._extension(1 << (lead - 0xD4))
        raise ValueError(f"unknown lead byte {lead:#x}")

    def _number(self, form: str) -> Any:
        (number,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return number

    def _bytes(self, size: int) -> bytes:
        if self._at + size > len(self._data):
            raise IndexError("the data ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def _text(self, size: int) -> str:
        return self._bytes(size).decode("utf-8", "replace")

    def _array(self, size: int) -> list[Any]:
        return [self._read() for _ in range(size)]

    def _map(self, size: int) -> dict[Any, Any]:
        return {self._read(): self._read() for _ in range(size)}

    def _extension(self, size: int) -> Any:
        code = self._number(">b")
        data = self._bytes(size)
        if code == -1:
            header = _extension_header(size)
            return msgspec.msgpack.decode(header + b"\xff" + data)
        return _extension(code, memoryview(data))


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = dict(
    zip(
        range(0xCA, 0xD4), (">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q"), strict=True
    )
)
_SIZED: dict[int, tuple[str, Any]] = {
    **{0xC4 + n: (form, _LenientReader._bytes) for n, form in enumerate((">B", ">H", ">I"))},
    **{0xC7 + n: (form, _LenientReader._extension) for n, form in enumerate((">B", ">H", ">I"))},
    **{0xD9 + n: (form, _LenientReader._text) for n, form in enumerate((">B", ">H", ">I"))},
    **{0xDC + n: (form, _LenientReader._array) for n, form in enumerate((">H", ">I"))},
    **{0xDE + n: (form, _LenientReader._map) for n, form in enumerate((">H", ">I"))},
}


def _extension_header(size: int) -> bytes:
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}
    return bytes([fixed[size]]) if size in fixed else bytes([0xC7, size])


# Depth

_QUOTE = ord('"')
_OPENERS = b"[{"
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_ONLY_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_ROUND = bytes.maketrans(b"{}", b"[]")


def check_json_depth(body: Bytes, limit: int) -> None:
    """Raise `PayloadError` if `body` nests deeper than `limit`, whatever the stack is like.

    A text has no depth. Most bodies have fewer brackets in all than the limit, and cost one pass
    in C. For the others strings are cut out and innermost pairs removed: each round is one level.
    """
    if body and memoryview(body)[0] == _QUOTE:
        return
    body = bytes(body)
    if len(body) - len(body.translate(None, _OPENERS)) <= limit:
        return
    brackets = _STRING.sub(b"", body).translate(_ROUND, _ONLY_BRACKETS)
    for _ in range(limit):
        fewer = brackets.replace(b"[]", b"")
        if len(fewer) == len(brackets):
            break
        brackets = fewer
    if brackets.count(b"[") > 0 and (b"[]" in brackets or brackets.count(b"[") > limit):
        raise PayloadError(f"the value nests deeper than {limit}")


FEW = 100  # items; to look at more takes longer than to search a large body for what begins one
_MSGPACK_OPENERS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])


def check_msgpack_depth(body: Bytes, limit: int) -> None:
    """The same for MessagePack; a body that is none is left to the decoder to refuse."""
    lead = memoryview(body)[0] if body else 0
    if not (0x80 <= lead < 0xA0 or 0xDC <= lead < 0xE0):
        return  # bytes or a text, however large, or a number
    view = memoryview(body)
    if len(view) >= LARGE and _look_through(view, limit, FEW):
        return  # a few large bytes, for example: they are passed over, not looked at
    body = bytes(view)
    if len(body) - len(body.translate(None, _MSGPACK_OPENERS)) > limit:
        _look_through(body, limit, len(body))


def _look_through(body: bytes | memoryview, limit: int, most: int) -> bool:
    """Look at so many items for how deeply they nest, at most; return whether that was all."""
    at, end, left = 0, len(body), [1]  # how many items each open container still lacks
    for _ in range(most):
        if at >= end or not left:
            break
        items, at = _skip(body, at)
        left[-1] -= 1
        if items is not None:
            left.append(items)
            if len(left) - 1 > limit:
                raise PayloadError(f"the value nests deeper than {limit}")
        while left and not left[-1]:
            left.pop()
    return at >= end or not left


def _skip(body: Body | memoryview, at: int) -> tuple[int | None, int]:
    """Return how many items the container at `at` has (None: it is none), and what is next."""
    lead = body[at]
    if lead < 0x80 or lead >= 0xE0:
        return None, at + 1
    if lead < 0xA0:
        return (lead & 15) << (lead < 0x90), at + 1
    if lead < 0xC0:
        return None, at + 1 + (lead & 31)
    extra, width = _WIDTHS[lead]
    size = int.from_bytes(body[at + 1 : at + 1 + width])
    if lead >= 0xDC:
        return size << (lead >= 0xDE), at + 1 + width
    return None, at + 1 + width + size + extra


_WIDTHS = dict.fromkeys(range(192, 224), (0, 0))
_WIDTHS |= {
    lead: (0, 1 << n) for first in (0xC4, 0xD9) for n, lead in enumerate(range(first, first + 3))
}
_WIDTHS |= {0xC7 + n: (1, 1 << n) for n in range(3)}
_WIDTHS |= {0xCA: (4, 0), 0xCB: (8, 0)}
_WIDTHS |= {0xCC + n: (1 << n, 0) for n in range(4)} | {0xD0 + n: (1 << n, 0) for n in range(4)}
_WIDTHS |= {0xD4 + n: (1 + (1 << n), 0) for n in range(5)}
_WIDTHS |= {0xDC: (0, 2), 0xDD: (0, 4), 0xDE: (0, 2), 0xDF: (0, 4)}


def result_of(codec: Codec, raw: msgspec.Raw, returns: Any) -> Any:
    """Decode an answer as what was asked for; without a value it is None.

    Raises:
        PayloadError: It is not of that type. The request may have been handled.
    """
    try:
        return codec.decode(raw, returns) if raw else _nothing(returns)
    except PayloadError as exc:
        exc.delivery = "maybe_sent"
        raise


def _nothing(returns: Any) -> Any:
    """Decode an answer without a value, which JavaScript calls undefined."""
    try:
        return None if returns is Any else msgspec.convert(None, returns)
    except msgspec.ValidationError as exc:
        raise PayloadError(str(exc)) from exc
