"""The bytes of the Node packages, as recorded (vectors/node.json), against ours."""

from __future__ import annotations

import json
import math
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from interphone.errors import HandshakeError
from interphone.protocol import upgrade
from interphone.protocol.dialects import ClassicJson, ClassicMessagePack, Dialect
from interphone.protocol.messages import Packet
from interphone.protocol.payload import ABSENT, Json, MessagePack
from interphone.protocol.session import PREAMBLE, Session
from interphone.protocol.states import State
from interphone.protocol.wire import Wire, tag
from support.sessions import Event, Recorder, bodies, in_chunks

RECORDED = json.loads((Path(__file__).parent / "vectors" / "node.json").read_text("utf-8"))
TAGS, VECTORS = RECORDED["tags"], RECORDED["vectors"]

JSON = ClassicJson(Json(lenient=True))
MSGPACK = ClassicMessagePack(MessagePack(lenient=True))
DIALECTS: dict[str, Dialect] = {
    "json": JSON,
    "msgpack": MSGPACK,
    "deflate-raw+json": JSON,
    "deflate-raw+msgpack": MSGPACK,
}


# Reading the file


def untagged(value: Any) -> Any:
    """A recorded value with its tags replaced by what Python gets."""
    match value:
        case {"$undefined": True}:
            return None
        case {"$float": str(text)}:
            return float(text)
        case {"$bigint": str(text)}:
            return int(text)
        case {"$bytes": str(text)}:
            return bytes.fromhex(text)
        case {"$date_ms": int(milliseconds)}:
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
        case {"$map": list(pairs)}:
            return {key: untagged(item) for key, item in pairs}
        case list():
            return [untagged(item) for item in value]
        case dict():
            return {key: untagged(item) for key, item in value.items()}
    return value


def told_apart(value: Any) -> Any:
    """A value that is equal to another only if it is the same in JavaScript."""
    match value:
        case bool() | None:
            return repr(value)
        case float() if math.isnan(value):
            return "NaN"
        case int() | float():
            return float(value)  # as JavaScript has them
        case list() | tuple():
            return [told_apart(item) for item in value]
        case dict():
            return [(key, told_apart(item)) for key, item in value.items()]
    return ("text", value)


def recorded_packet(decoded: dict[str, Any]) -> list[Any]:
    absent = "d" not in decoded or decoded["d"] == {"$undefined": True}
    payload = "absent" if absent else told_apart(untagged(decoded["d"]))
    return [decoded["t"], payload, decoded.get("n")]


def read_packet(packet: Packet | None, dialect: Dialect) -> list[Any]:
    assert packet is not None
    payload = told_apart(dialect.codec.decode(packet.d)) if packet.d else "absent"
    return [packet.t, payload, packet.n]


def with_encoding(*encodings: str) -> list[Any]:
    return [
        pytest.param(vector, id=f"{vector['peer']} {vector['direction']} {vector['name']}")
        for vector in VECTORS
        if vector["encoding"] in encodings
    ]


def one_body(vector: dict[str, Any]) -> bytes:
    (body,) = bodies(bytes.fromhex(vector["hex"]))
    return body


def streams() -> dict[str, list[dict[str, Any]]]:
    """Vectors that share one context of deflate, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for vector in VECTORS:
        if "stream" in vector:
            found.setdefault(vector["stream"], []).append(vector)
    return {name: sorted(stream, key=lambda one: one["index"]) for name, stream in found.items()}


# Tags


@pytest.mark.parametrize(("size", "written"), {**TAGS["recorded"], **TAGS["computed"]}.items())
def test_tag_is_written_as_recorded(size: str, written: str) -> None:
    assert tag(int(size)).hex() == written


@pytest.mark.parametrize(("size", "written"), TAGS["recorded"].items())
def test_tag_is_read_as_recorded(size: str, written: str) -> None:
    wire = Wire(limit=2**31 - 1)
    taken: list[bytes] = []

    wire.receive(bytes.fromhex(written), taken.append)

    assert taken == ([b""] if size == "0" else [])
    assert wire.unfinished() == (size != "0")


@pytest.mark.parametrize(("written", "size"), TAGS["accepted_noncanonical"].items())
def test_tag_with_leading_zeros_is_accepted(written: str, size: int) -> None:
    wire = Wire(limit=2**31 - 1)
    taken: list[bytes] = []

    wire.receive(bytes.fromhex(written) + b"x" * size, taken.append)

    assert taken == [b"x" * size]


# Vectors


def test_every_vector_is_of_a_kind_tested_here() -> None:
    kinds = {*DIALECTS, "http", "raw"}

    assert len(VECTORS) == 608
    assert {vector["encoding"] for vector in VECTORS} == kinds


@pytest.mark.parametrize("vector", with_encoding("json", "msgpack"))
def test_frame_is_decoded_as_recorded(vector: dict[str, Any]) -> None:
    dialect = DIALECTS[vector["encoding"]]

    packet = dialect.read(one_body(vector))

    assert read_packet(packet, dialect) == recorded_packet(vector["decoded"])


@pytest.mark.parametrize("stream", streams().values(), ids=streams().keys())
def test_deflated_frames_are_decoded_as_recorded(stream: list[dict[str, Any]]) -> None:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)

    for vector in stream:
        body = inflate.decompress(one_body(vector))
        dialect = DIALECTS[vector["encoding"]]

        assert body.hex() == vector["inflated_hex"]
        assert read_packet(dialect.read(body), dialect) == recorded_packet(vector["decoded"])


# Which frames are not the same bytes when we write what we read in them, and why.
OTHER_BYTES = {
    "message 1e21": "Node writes an exponent with a plus sign: 1e+21",
    "message maxvalue": "the same: 1.7976931348623157e+308",
}


@pytest.mark.parametrize("vector", with_encoding("json"))
def test_json_is_written_as_recorded(vector: dict[str, Any]) -> None:
    body = one_body(vector)
    packet = JSON.read(body)
    assert packet is not None
    payload = JSON.codec.encode(JSON.codec.decode(packet.d)) if packet.d else ABSENT

    written = JSON.packet(packet.t, payload, packet.n)

    if vector["name"] in OTHER_BYTES:
        assert written == body.replace(b"e+", b"e")
        assert written != body
    else:
        assert written == body


@pytest.mark.parametrize("vector", with_encoding("msgpack"))
def test_msgpack_is_written_with_the_same_meaning(vector: dict[str, Any]) -> None:
    packet = MSGPACK.read(one_body(vector))
    assert packet is not None
    payload = MSGPACK.codec.encode(MSGPACK.codec.decode(packet.d)) if packet.d else ABSENT

    written = MSGPACK.read(MSGPACK.packet(packet.t, payload, packet.n))

    assert read_packet(written, MSGPACK) == read_packet(packet, MSGPACK)


@pytest.mark.parametrize("stream", streams().values(), ids=streams().keys())
def test_deflate_is_written_with_the_same_meaning(stream: list[dict[str, Any]]) -> None:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)

    for vector in stream:
        body = bytes.fromhex(vector["inflated_hex"])
        written = deflate.compress(body) + deflate.flush(zlib.Z_SYNC_FLUSH)

        assert inflate.decompress(written) == body
        assert written.endswith(b"\x00\x00\xff\xff")


@pytest.mark.parametrize("vector", with_encoding("http"))
def test_upgrade_is_read_and_written_as_recorded(vector: dict[str, Any]) -> None:
    head = bytes.fromhex(vector["hex"])
    name = "isdk-ipc" if vector["peer"] == "isdk" else "net-ipc"

    split = upgrade.split_head(head)

    assert split is not None
    if vector["direction"] == "c2s":
        assert upgrade.read_request(split[0]) == name
        assert upgrade.request(name) == head
    else:
        upgrade.check_reply(split[0], name)
        assert upgrade.reply(name) == head


@pytest.mark.parametrize("vector", with_encoding("http"))
def test_upgrade_to_the_other_name_is_refused(vector: dict[str, Any]) -> None:
    if vector["direction"] == "c2s":
        return
    split = upgrade.split_head(bytes.fromhex(vector["hex"]))
    assert split is not None
    other = "net-ipc" if vector["peer"] == "isdk" else "isdk-ipc"

    with pytest.raises(HandshakeError):
        upgrade.check_reply(split[0], other)


@pytest.mark.parametrize("vector", with_encoding("raw"))
def test_preamble_is_as_recorded(vector: dict[str, Any]) -> None:
    assert bytes.fromhex(vector["hex"]) == PREAMBLE


# Whole conversations


def sides() -> dict[str, list[dict[str, Any]]]:
    """Everything one end of one connection sent, by a name for it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for session in RECORDED["sessions"]:
        for item in session["frames"]:
            if item["kind"] in ("preamble", "frame"):
                name = f"{session['id']} {item['conn']} {item['dir']}"
                found.setdefault(name, []).append(item)
    return found


def played(frames: list[dict[str, Any]], role: Any, chunk_size: int | None) -> Recorder:
    """What a Session of this role is told when the other end says this."""
    codecs: dict[str, Any] = {"compress": True, "messagepack": True}
    session = Session(role, upgrades=role == "server", **codecs)
    seen = Recorder(session)
    seen.on["hello"] = lambda *_: (session.accept("conn-x"), session.resume(seen.reactions))
    if role == "client":
        http = frames[0]["kind"] == "preamble"
        session.open(upgrade_to="net-ipc" if http else None)
    data = b"".join(bytes.fromhex(item["hex"]) for item in frames)
    for chunk in in_chunks(data, chunk_size):
        session.receive(chunk, seen.reactions)
    return seen


# Packets no event is made of: PING is answered, and answers here are to nobody's requests.
SILENT = {3, 4, 5}
EVENTS = {1: {"message", "publication"}, 2: {"request", "subscribe", "unsubscribe", "publish"}}


@pytest.mark.parametrize(("name", "frames"), sides().items(), ids=sides().keys())
def test_recorded_conversation_is_understood(name: str, frames: list[dict[str, Any]]) -> None:
    role = "server" if name.endswith("c2s") else "client"

    whole, bytewise = played(frames, role, None), played(frames, role, 1)

    assert told_apart(whole.events) == told_apart(bytewise.events)
    assert not {"violated", "unreadable"} & set(whole.names())
    packets = [item["decoded"] for item in frames if item["kind"] == "frame"]
    expected = [packet for packet in packets if packet["t"] not in SILENT]
    assert len(whole.events) == len(expected)
    for event, packet in zip(whole.events, expected, strict=True):
        check_event(event, packet, role)


def check_event(event: Event, packet: dict[str, Any], role: str) -> None:
    opened = "hello" if role == "server" else "opened"
    assert event[0] in {0: {opened}, 6: {"goodbye"}, **EVENTS}[packet["t"]]
    if event[0] in ("message", "request"):
        _, payload, nonce = recorded_packet(packet)
        assert event[1:-1] in ((), (nonce,))
        assert ("absent" if event[-1] is ABSENT else told_apart(event[-1])) == payload


# What real servers did when they were sent bytes by hand

# How we differ, and why. A difference that is not here fails, and so does one that is here
# and is none any more.
#   "text"     what is written that is no frame
#   "replies"  the packets that come back
#   "hangs up" whether our side of the connection is closed then
A5 = "A5: END is the end; nothing that comes behind it is served, so there is no need to wait"
WORDS = "A1/D33: one wording for an orphan, net-ipc's; isdk's begins with a capital"
REFUSAL = "A9: a text of our own refuses a preamble; wire.md, 10, says any short one will do"
NO_RENAMING = "A2/D8: the id in the first reply rules; a second CONNECTION is ignored and counted"
STRINGS_ONLY = "A2/D8: an id that is no string is not taken over"
SUBSCRIPTIONS = "decision 9: a Node client may be either, so isdk's subscriptions work for all"
ALLOWED: dict[tuple[str, str], tuple[set[str], str]] = {
    ("isdk", "wrong preamble"): ({"text"}, REFUSAL),
    ("isdk", "HTTP request that is no upgrade"): ({"text"}, REFUSAL),
    ("isdk", "premature MESSAGE"): ({"replies"}, WORDS),
    ("isdk", "premature PING"): ({"replies"}, WORDS),
    ("isdk", "bad JSON before CONNECTION"): ({"replies"}, WORDS),
    ("isdk", "CONNECTION without d"): ({"replies"}, WORDS),
    ("isdk", "CONNECTION with d null"): ({"replies"}, WORDS),
    ("isdk", "CONNECTION with numeric id"): ({"replies"}, STRINGS_ONLY),
    ("isdk", "second CONNECTION"): ({"replies"}, NO_RENAMING),
    ("isdk", "REQUEST carrying a string"): (
        {"replies"},
        "A3/D10: a string is the user's request, no subscription",
    ),
    ("isdk", "END with reason"): ({"hangs up"}, A5),
    ("net-ipc", "wrong preamble"): ({"text"}, REFUSAL),
    ("net-ipc", "HTTP request that is no upgrade"): ({"text"}, REFUSAL),
    ("net-ipc", "CONNECTION with numeric id"): ({"replies"}, STRINGS_ONLY),
    ("net-ipc", "second CONNECTION"): ({"replies"}, NO_RENAMING),
    ("net-ipc", "REQUEST sub"): ({"replies"}, SUBSCRIPTIONS),
    ("net-ipc", "REQUEST pub"): ({"replies"}, SUBSCRIPTIONS),
    ("net-ipc", "END with reason"): ({"hangs up"}, A5),
}


def serve(sent: bytes) -> tuple[Session, Recorder]:
    """A server as the recorded ones were set up, given these bytes."""
    session = Session("server", upgrades=True)
    seen = Recorder(session)

    def respond(nonce: Any, value: Any) -> None:
        session.respond(nonce, session.codec.encode(value))

    def admit(_: Any, wanted: Any) -> None:
        session.accept(wanted if isinstance(wanted, str) and wanted else "conn-x")
        session.resume(seen.reactions)

    # {got: undefined} has no key in JSON.
    seen.on["request"] = lambda nonce, d: respond(nonce, {} if d is ABSENT else {"got": d})
    for verb in ("subscribe", "unsubscribe", "publish"):
        seen.on[verb] = lambda nonce, *_: respond(nonce, {"result": True})
    seen.on["hello"] = admit
    session.receive(sent, seen.reactions)
    return session, seen


def reaction_ids() -> list[str]:
    return [f"{one['peer']} {one['name']}" for one in RECORDED["reactions"]]


@pytest.mark.parametrize("recorded", RECORDED["reactions"], ids=reaction_ids())
def test_reaction_is_that_of_node_or_differs_as_written(recorded: dict[str, Any]) -> None:
    session, _ = serve(bytes.fromhex(recorded["sent_hex"]))

    data = session.data_to_send()

    text = data if data.startswith(b"HTTP/") else b""
    replies = [] if text else [json.loads(body) for body in bodies(data)]
    differences = {
        name
        for name, same in {
            "text": text.decode() == recorded.get("reply_text", ""),
            "replies": replies == recorded["replies"],
            "hangs up": (session.state is State.CLOSED) == recorded["server_closed"],
        }.items()
        if not same
    }
    allowed, _ = ALLOWED.get((recorded["peer"], recorded["name"]), (set(), ""))
    assert differences == allowed, replies


NODE_EVENTS = {"connect": "hello", "message": "message", "request": "request"}

# The same for what the server is told.
OTHER_EVENTS = {
    ("isdk", "REQUEST carrying a string"): "A3/D10",
    ("isdk", "last byte of a frame alone"): "D1: isdk does not notice it",
}


@pytest.mark.parametrize("recorded", RECORDED["reactions"], ids=reaction_ids())
def test_server_is_told_what_node_was_told(recorded: dict[str, Any]) -> None:
    _, seen = serve(bytes.fromhex(recorded["sent_hex"]))

    told = [
        [event[0], "absent" if event[index] is ABSENT else told_apart(event[index])]
        for event in seen.events
        if event[0] in NODE_EVENTS.values()
        for index in [1 if event[0] == "hello" else -1]
    ]

    expected = [
        [
            NODE_EVENTS[name],
            "absent" if value == {"$undefined": True} else told_apart(untagged(value)),
        ]
        for name, value in recorded["server_events"]
        if name in NODE_EVENTS
    ]
    differs = (recorded["peer"], recorded["name"]) in OTHER_EVENTS
    if SUBSCRIPTIONS in ALLOWED.get((recorded["peer"], recorded["name"]), ()):
        differs = True
    assert (told != expected) == differs, (told, expected)


def test_every_allowed_difference_is_of_a_recorded_reaction() -> None:
    recorded = {(one["peer"], one["name"]) for one in RECORDED["reactions"]}

    assert len(RECORDED["reactions"]) == 98
    assert {*ALLOWED, *OTHER_EVENTS} <= recorded


def test_every_recorded_session_is_played() -> None:
    assert len(RECORDED["sessions"]) == 14
    assert {name.split(" ")[0] for name in sides()} == {one["id"] for one in RECORDED["sessions"]}
