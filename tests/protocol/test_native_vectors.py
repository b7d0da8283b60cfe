"""Recorded conversations between two of us: a stranger reads them as wire.md says, and so do we.

The bytes were written once (tools/vectors.py) and are the wire of version 1. They stay.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from interphone.protocol.messages import CONNECTION, END, PONG, RESPONSE
from interphone.protocol.session import Session
from interphone.protocol.states import State
from support.sessions import Event, Recorder
from support.stranger import conversation, frame, native_packet

VECTORS = json.loads((Path(__file__).parent / "vectors" / "native.json").read_text("ascii"))

every_conversation = pytest.mark.parametrize(
    "spoken", VECTORS, ids=lambda spoken: f"{spoken['name']}-{spoken['dialect']}"
)

# What a server is told of each packet of a client, by its type and kind.
TOLD = {
    (1, None): "message",
    (2, None): "request",
    (2, "call"): "call",
    (2, "sub"): "subscribe",
    (2, "unsub"): "unsubscribe",
    (2, "pub"): "publish",
    (2, "forget"): "forget",
    (8, None): "cancelled",
    (9, None): "open",
    (11, None): "granted",
    (12, None): "input",
    (20, None): "allowed",
}


@every_conversation
def test_a_stranger_understands_both_ends(spoken: dict[str, Any]) -> None:
    client, server = conversation(*(bytes.fromhex(spoken[role]) for role in ("client", "server")))

    assert client == spoken["client says"]
    assert server == spoken["server says"]


@every_conversation
@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_we_understand_what_was_recorded(spoken: dict[str, Any], size: int) -> None:
    server, told = replay(spoken, size)

    said = [packet for packet in spoken["client says"] if packet["t"] not in (CONNECTION, 4)]
    late = [packet for packet in said if packet["t"] in (RESPONSE, PONG)]
    expected = [
        "goodbye" if packet["t"] == END else TOLD[packet["t"], packet.get("k")]
        for packet in said
        if packet not in late
    ]
    assert [event[0] for event in told] == expected
    assert server.counts.late == len(late)
    assert server.counts.unknown == server.counts.illegal == server.counts.unreadable == 0


@pytest.mark.parametrize("dialect", ["native", "classic"])
def test_values_are_what_was_meant(dialect: str) -> None:
    (spoken,) = (v for v in VECTORS if (v["name"], v["dialect"]) == ("messages", dialect))

    _, told = replay(spoken, 10**6)

    meant = [packet.get("d") for packet in spoken["client says"] if packet["t"] == 1]
    assert [event[1] for event in told] == meant


def replay(spoken: dict[str, Any], size: int) -> tuple[Session, list[Event]]:
    """Let a new server hear the client; what the client was granted before is granted again."""
    dialects = ("native", "classic") if spoken["dialect"] == "native" else ("classic",)
    server = Session("server", dialects=dialects)
    seen = Recorder(server)
    seen.on["input"] = lambda nonce, value: server.streams.used(nonce, 1)
    # The server of the recording had sent items when it was granted credit for more.
    seen.on["open"] = lambda nonce, *_: [
        server.streams.demand(nonce, 3),
        server.streams.item(nonce, server.codec.encode(2)),
        server.streams.item(nonce, server.codec.encode(4)),
    ]
    data = bytes.fromhex(spoken["client"])
    for at in range(0, len(data), size):
        server.receive(data[at : at + size], seen.reactions)
        if server.state is State.OPENING and seen.names()["hello"]:
            server.accept("peer-1")
            server.resume(seen.reactions)
    return server, [event for event in seen.take() if event[0] != "hello"]


@pytest.mark.parametrize("body", [b"\x90", b"\xc0", b"\x92\x01", b"\x91\x01\x01", b"\x91\xc1"])
def test_the_stranger_refuses_what_is_none(body: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        native_packet(body)


@pytest.mark.parametrize("data", [b"\x00" * 6, b"\x01", b"\x85ab"])
def test_the_stranger_refuses_a_frame_that_is_none(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"tag|cut"):
        frame(data, 0)
