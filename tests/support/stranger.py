"""A reader of the wire that knows only what wire.md says: no line of ours, no msgspec.

It reads a conversation between two of us, from the first byte, and tells packets as dicts. What
the page calls an error is a `ValueError`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

KEYS = ("t", "n", "d", "k", "e", "o")  # a native packet, in order
ABSENT = object()

FLOATS = {0xCA: ">f", 0xCB: ">d"}
UNSIGNED = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
SIGNED = {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
NUMBERS = FLOATS | UNSIGNED | SIGNED
SIZES = {1: ">B", 2: ">H", 4: ">I"}
SIZED = {  # lead byte: (bytes of the size, what it is)
    lead + step: (1 << step, what)
    for lead, what in ((0xC4, "bin"), (0xC7, "ext"), (0xD9, "str"))
    for step in range(3)
} | {0xDC: (2, "array"), 0xDD: (4, "array"), 0xDE: (2, "map"), 0xDF: (4, "map")}


def conversation(client: bytes, server: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The packets of both ends: the server's reply tells how both go on."""
    if client[:3] != b"IPC":
        raise ValueError("no preamble")
    shown = json.loads(frame(server, 0)[1])["d"].get("interphone", {})
    native = shown.get("dialect") == "native"
    return [*packets(client[3:], native)], [*packets(server, native)]


def packets(data: bytes, native: bool) -> Iterator[dict[str, Any]]:
    """Every packet of one direction. The first one is plain JSON in any case."""
    at, body = frame(data, 0)
    yield json.loads(body)
    while at < len(data):
        at, body = frame(data, at)
        yield native_packet(body) if native else json.loads(body)


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
        width, what = SIZED[lead]
        (size,) = struct.unpack_from(SIZES[width], data, at)
        return some(what, size, data, at + width)
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
