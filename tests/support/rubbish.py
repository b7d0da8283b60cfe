"""Rubbish: packets that are nearly right, and sessions that are fed with them."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
from hypothesis import strategies as st

from .sessions import LoneSession, frame

__all__ = ["IDENTITY", "STARTS", "deflated", "opened_for_rubbish", "rubbish"]

STARTS = OPENING, JSON, DEFLATE, MESSAGEPACK, NATIVE = range(5)
IDENTITY = {"version": 1, "dialects": ["classic"]}
NATIVE_IDENTITY = {"version": 1, "dialects": ["native"], "dialect": "native"}

packets = st.fixed_dictionaries(
    {"t": st.integers(0, 22)},
    optional={
        "d": st.sampled_from([None, {"sub": "a"}, {"pub": "a", "message": [1]}, {"m": 1}, "x"]),
        "n": st.sampled_from(["1", "2", 1, 7, {"x": [1]}]),
        "k": st.sampled_from([None, "sub", "pub", "call", [], {}]),
        "e": st.sampled_from([{"code": "failed"}, [1]]),
        "o": st.sampled_from([{"deadline": 1.5}, {"credit": 8}, {"to": [1]}, 7]),
    },
)
spoils = st.sampled_from(
    [b"", b"\xff", b"\\ud800", b"1e400", b"9" * 400, b"[", b"{", b'"', b"\xd4\0\0", b"\x81\x80"]
)


def as_array(packet: dict[str, Any]) -> bytes:
    """As the native dialect writes it."""
    return msgspec.msgpack.encode([packet.get(key) for key in "tndkeo"])


@st.composite
def rubbish(draw: Any, start: int) -> bytes:
    """Frames for a session of this start, of packets that may be spoilt."""
    encode = {MESSAGEPACK: msgspec.msgpack.encode, NATIVE: as_array}.get(start, msgspec.json.encode)
    parts = draw(st.lists(spoilt_packets(encode), max_size=6))
    return deflated(*parts) if start == DEFLATE else b"".join(map(frame, parts))


@st.composite
def spoilt_packets(draw: Any, encode: Any) -> bytes:
    """A packet, or what is left of one when some bytes of it are others."""
    body = encode(draw(packets))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(spoils) + body[at + draw(st.integers(0, 2)) :]
    return body


def opened_for_rubbish(role: Any, start: int, *, interphone: bool = False) -> LoneSession:
    """A session that waits for answers, of one of the `STARTS`; an OPENING one is opening still."""
    flags = {"compress": start == DEFLATE, "messagepack": start == MESSAGEPACK}
    if start == NATIVE:
        lone = LoneSession(role, dialects=("native", "classic"))
        interphone = True
    else:
        lone = LoneSession(role, **flags)
    if start != OPENING:
        shown = NATIVE_IDENTITY if start == NATIVE else IDENTITY
        lone.open(**flags, interphone=shown if interphone else None)
        lone.session.request(b"1", "request")
        lone.session.ping("ping")
    elif role == "client":
        lone.session.open()
    lone.session.data_to_send()
    lone.seen.on["hello"] = lambda *_: (lone.session.accept("x"), lone.resume())
    return lone


def deflated(*bodies: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return b"".join(
        frame(deflate.compress(body) + deflate.flush(zlib.Z_SYNC_FLUSH)) for body in bodies
    )
