"""A reader of the wire that knows only what wire.md says: no line of ours, no msgspec.

It reads one direction of a conversation between two of us, from the first byte, and tells
packets as dicts. What the page calls an error is a `ValueError`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

KEYS = ("t", "n", "d", "k", "e", "o")  # a native packet, in order
ABSENT = object()

NUMBERS = {
    **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
SIZED = {  # lead byte: (form of the size, what it is)
    **{0xC4: (">B", "bin"), 0xC5: (">H", "bin"), 0xC6: (">I", "bin")},
    **{0xC7: (">B", "ext"), 0xC8: (">H", "ext"), 0xC9: (">I", "ext")},
    **{0xD9: (">B", "str"), 0xDA: (">H", "str"), 0xDB: (">I", "str")},
    **{0xDC: (">H", "array"), 0xDD: (">I", "array"), 0xDE: (">H", "map"), 0xDF: (">I", "map")},
}


def packets(data: bytes, *, from_client: bool) -> Iterator[dict[str, Any]]:
    """Every packet of one direction; a client's begins with the preamble."""
    at, native = 0, False
    if from_client:
        if data[:3] != b"IPC":
            raise ValueError("no preamble")
        at = 3
    while at < len(data):
        at, body = frame(data, at)
        yield (native_packet if native else json.loads)(body)
        if not native and b'"t":0' in body:  # what follows is as the reply has agreed
            native = b'"dialect":"native"' in body or from_client


def frame(data: bytes, at: int) -> tuple[int, bytes]:
    """The body that begins at `at`, and where the next frame begins."""
    size = 0
    for digit in data[at : at + 5]:
        at += 1
        size = size * 128 + (digit & 127)
        if digit & 128:
            break
    else:
        raise ValueError("a tag without an end")
    if at + size > len(data):
        raise ValueError("a frame that was cut")
    return at + size, data[at : at + size]


def native_packet(body: bytes) -> dict[str, Any]:
    """An array of the fields; those that say nothing are left out."""
    fields, end = value(body, 0)
    if end != len(body) or not isinstance(fields, list) or not fields:
        raise ValueError("no native packet")
    said = {key: field for key, field in zip(KEYS, fields, strict=False) if field is not ABSENT}
    return {key: field for key, field in said.items() if field is not None or key == "d"}


def value(data: bytes, at: int) -> tuple[Any, int]:
    """The MessagePack value at `at`, and where the next one begins."""
    lead, at = data[at], at + 1
    if lead < 0x80:
        return lead, at
    if lead < 0x90:
        return some("map", lead & 15, data, at)
    if lead < 0xA0:
        return some("array", lead & 15, data, at)
    if lead < 0xC0:
        return some("str", lead & 31, data, at)
    if lead >= 0xE0:
        return lead - 256, at
    if lead in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[lead], at
    if lead in NUMBERS:
        (number,) = struct.unpack_from(NUMBERS[lead], data, at)
        return number, at + struct.calcsize(NUMBERS[lead])
    if lead in SIZED:
        form, what = SIZED[lead]
        (size,) = struct.unpack_from(form, data, at)
        return some(what, size, data, at + struct.calcsize(form))
    if 0xD4 <= lead <= 0xD8:
        return some("ext", 1 << (lead - 0xD4), data, at)
    raise ValueError(f"no MessagePack: {lead:#x}")


def some(what: str, size: int, data: bytes, at: int) -> tuple[Any, int]:
    """A value that has a size."""
    if what in ("array", "map"):
        items: list[Any] = []
        for _ in range(size * (2 if what == "map" else 1)):
            item, at = value(data, at)
            items.append(item)
        return (items if what == "array" else dict(zip(items[::2], items[1::2], strict=True))), at
    code, at = (data[at], at + 1) if what == "ext" else (None, at)
    raw = data[at : at + size]
    if len(raw) != size:
        raise ValueError("a value that was cut")
    if code is not None:
        return (ABSENT if code == 0 else {"ext": code, "data": raw.hex()}), at + size
    return (raw.decode() if what == "str" else {"bytes": raw.hex()}), at + size
