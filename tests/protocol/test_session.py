from __future__ import annotations

import json
import random
import tracemalloc
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interphone.errors import (
    ConnectionClosed,
    ConnectionLost,
    HandshakeError,
    InterphoneError,
    LocalProtocolError,
    MessageTooBig,
    Overloaded,
    PayloadError,
    Refused,
    RemoteError,
    RemoteProtocolError,
    RequestTimeout,
    Unhandled,
    Unsupported,
)
from interphone.limits import Limits
from interphone.protocol import upgrade
from interphone.protocol.heartbeat import LAG
from interphone.protocol.messages import Failure
from interphone.protocol.payload import ABSENT
from interphone.protocol.questions import RESOLUTION
from interphone.protocol.session import MAX_UNREADABLE, Session
from interphone.protocol.states import State
from support.rubbish import IDENTITY, STARTS, deflated, opened_for_rubbish, rubbish
from support.sessions import LoneSession, SessionPair, bodies, frame

HELLO = b"IPC" + frame({"t": 0, "d": {}})
FLAVOURS = [
    pytest.param({}, id="json"),
    pytest.param({"messagepack": True}, id="msgpack"),
    pytest.param({"compress": True}, id="deflate"),
    pytest.param({"compress": True, "messagepack": True}, id="deflate msgpack"),
]
TOLD_TO_NODE = {"jsonrpc": "2.0", "error": {"code": -32601, "message": "nobody"}}


@pytest.fixture
def pair() -> SessionPair:
    return SessionPair().open()


@pytest.fixture
def node() -> LoneSession:
    """A server, open to a client that is Node."""
    return LoneSession("server").open()


def server(**options: Any) -> LoneSession:
    return LoneSession("server", **options)


def small(**limits: Any) -> Limits:
    return Limits(**{"max_frame": 1000, "max_handshake_frame": 500, **limits})


def json_of(size: int, kind: int = 1) -> bytes:
    """A packet of exactly so many bytes."""
    empty = b'{"t":%d,"d":""}' % kind
    return empty[:-2] + b"x" * (size - len(empty)) + empty[-2:]


# Opening


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_ends_get_to_know_each_other(flavour: dict[str, Any], chunk_size: int | None) -> None:
    pair = SessionPair(**flavour).open({"who": "me"}, chunk_size=chunk_size, id="before")

    assert pair.seen["server"].events == [("hello", {"who": "me"}, "before")]
    assert pair.seen["client"].events == [("opened", "peer-1")]
    assert pair.client.interphone
    assert pair.server.interphone


def test_payload_of_the_client_may_be_absent_or_null() -> None:
    for payload, shown in ((None, ABSENT), (b"null", None)):
        pair = SessionPair()
        pair.client.open(payload)
        pair.deliver()

        assert pair.seen["server"].events == [("hello", shown, None)]


@pytest.mark.parametrize("size", range(len(HELLO)))
def test_preamble_may_be_cut_anywhere(size: int) -> None:
    lone = server()

    assert lone.feed(HELLO[:size]) == []
    assert lone.session.unfinished() == (size not in (0, 3))
    assert lone.feed(HELLO[size:]) == [("hello", ABSENT, None)]


@pytest.mark.parametrize("data", [b"X", b"IX", b"IPX", b"ipc", b"POST", b"G\x00", b"\x80", b"HTTP"])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_preamble_that_is_none_is_refused(data: bytes, chunk_size: int | None) -> None:
    lone = server(upgrades=True)

    assert lone.feed(data, chunk_size=chunk_size) == [("violated", RemoteProtocolError)]

    assert lone.session.data_to_send() == upgrade.REFUSAL
    assert lone.session.state is State.CLOSED


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b'{"t":1,"d":1}', id="a message"),
        pytest.param(b'{"t":7}', id="an unknown type"),
        pytest.param(b"{", id="no JSON"),
        pytest.param(b"5", id="no packet"),
        pytest.param(b'{"t":0}', id="no d"),
        pytest.param(b'{"t":0,"d":null}', id="d is null"),
    ],
)
def test_anything_but_a_hello_ends_an_opening_connection(first: bytes) -> None:
    lone = server()

    told = lone.feed(b"IPC", frame(first), {"t": 0, "d": {}})

    assert told == [("violated", RemoteProtocolError)]
    assert lone.sent() == [{"t": 6, "d": {"m": "closing orphaned connection", "a": False}}]


@pytest.mark.parametrize("d", ["text", [1], 7, True])
def test_hello_may_show_nothing_of_use(d: Any) -> None:
    assert server().feed(b"IPC", {"t": 0, "d": d}) == [("hello", ABSENT, None)]


def test_hello_with_values_only_node_reads_is_understood() -> None:
    body = b'{"t":0,"d":{"extras":["\\ud800"],"id":"\\udfff","later":1,"compress":1e400}}'

    lone = server(compress=True)

    assert lone.feed(b"IPC", frame(body)) == [("hello", ["\ud800"], "\udfff")]
    lone.session.accept("x")
    assert lone.sent() == [{"t": 0, "d": {"id": "x", "compress": True}}]


def test_hello_nobody_can_read_shows_nothing() -> None:
    lone = server()

    assert lone.feed(b"IPC", frame(b'{"t":0,"d":["\\ud800"]}')) == [("hello", ABSENT, None)]


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("shown", [None, True, [], {}, {"version": "1"}, {"dialects": []}])
def test_key_without_a_version_does_not_make_an_interphone_peer(role: Any, shown: Any) -> None:
    assert not LoneSession(role).open(interphone=shown).session.interphone


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("shown", [{"version": 1}, {"version": 99, "dialects": 7, "later": 1}])
def test_versions_of_the_future_are_interphone_peers(role: Any, shown: Any) -> None:
    assert LoneSession(role).open(interphone=shown).session.interphone


def test_reply_shows_what_the_client_showed() -> None:
    for d, keys in (
        ({}, {"id"}),
        ({"compress": True}, {"id", "compress"}),
        ({"messagepack": False, "compress": 1}, {"id", "compress", "messagepack"}),
        ({"interphone": IDENTITY}, {"id", "interphone"}),
    ):
        lone = server()
        lone.feed(b"IPC", {"t": 0, "d": d})
        lone.session.accept("x")
        (reply,) = lone.sent()

        assert reply["d"].keys() == keys
        assert not reply["d"].get("compress")  # this server does not


def test_nonce_of_a_hello_is_echoed() -> None:
    lone = server()
    lone.feed(b"IPC", {"t": 0, "d": {}, "n": {"any": 1}})
    lone.session.accept("x")

    assert lone.sent() == [{"t": 0, "d": {"id": "x"}, "n": {"any": 1}}]


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("granted", [True, False])
@pytest.mark.parametrize("option", ["compress", "messagepack"])
def test_option_is_used_if_both_ends_want_it(option: str, asked: bool, granted: bool) -> None:
    pair = SessionPair(client={option: asked}, server={option: granted}).open()
    pair.say("client", "send", "x" * 50)
    pair.say("server", "send", "y" * 50)

    assert pair.deliver() == [("message", "x" * 50), ("message", "y" * 50)]
    plain = b'{"t":1,"d":"' in pair.wire[-1][1]
    assert plain == (not (asked and granted))


def test_nothing_is_read_between_hello_and_accept() -> None:
    lone = server()

    assert lone.feed(HELLO, {"t": 1, "d": "early"}) == [("hello", ABSENT, None)]
    assert lone.feed({"t": 1, "d": "next"}) == []
    assert lone.resume() == []  # not before the decision

    lone.session.accept("x")
    assert lone.resume() == [("message", "early"), ("message", "next")]


def test_client_may_be_accepted_within_the_reaction() -> None:
    lone = server()
    lone.seen.on["hello"] = lambda *_: (lone.session.accept("x"), lone.resume())

    lone.feed(HELLO, {"t": 4, "n": "1"}, {"t": 1, "d": "x"})

    assert [packet["t"] for packet in lone.sent()] == [0, 5]
    assert lone.seen.events[-1] == ("message", "x")


def test_opening_packet_over_the_limit_is_refused() -> None:
    session = Session("client", limits=small(max_handshake_frame=200))

    with pytest.raises(MessageTooBig):
        session.open(b'"%b"' % (b"x" * 200))
    assert session.data_to_send() == b""


@pytest.mark.parametrize(("depth", "fits"), [(62, True), (63, True), (64, False)])
def test_payload_of_the_client_may_nest_one_level_less(depth: int, fits: bool) -> None:
    pair = SessionPair()
    payload = b"[" * depth + b"]" * depth

    if not fits:
        with pytest.raises(PayloadError, match="nests deeper"):
            pair.client.open(payload)
        return
    pair.client.open(payload)
    assert [event[0] for event in pair.deliver()] == ["hello"]


@pytest.mark.parametrize(("size", "fits"), [(499, True), (500, True), (501, False)])
def test_frame_before_the_handshake_is_held_to_its_limit(size: int, fits: bool) -> None:
    lone = server(limits=small())

    told = lone.feed(b"IPC", frame(json_of(size, kind=0)))

    assert told == ([("hello", ABSENT, None)] if fits else [("violated", MessageTooBig)])


@pytest.mark.parametrize(("size", "fits"), [(999, True), (1000, True), (1001, False)])
@pytest.mark.parametrize("role", ["client", "server"])
def test_frame_after_the_handshake_is_held_to_its_limit(role: Any, size: int, fits: bool) -> None:
    lone = LoneSession(role, limits=small()).open()

    (event,) = lone.feed(frame(json_of(size)))

    assert event == (("message", "x" * (size - 14)) if fits else ("violated", MessageTooBig))


def test_first_frame_behind_the_handshake_may_be_as_long_as_any() -> None:
    lone = server(limits=small())
    lone.seen.on["hello"] = lambda *_: (lone.session.accept("x"), lone.resume())

    lone.feed(HELLO, frame(json_of(1000)))

    assert [event[0] for event in lone.seen.events] == ["hello", "message"]


def test_memory_does_not_follow_a_claimed_length() -> None:
    lone = server(limits=Limits(max_frame=2**31 - 1)).open()
    tracemalloc.start()
    lone.feed(b"\x07\x7f\x7f\x7f\xff", b"x" * 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert lone.session.unfinished()
    assert peak < 100_000


# Opening by HTTP


@pytest.mark.parametrize("chunk_size", [None, 1, 5])
@pytest.mark.parametrize("name", upgrade.NAMES)
def test_connection_may_begin_with_an_upgrade(name: str, chunk_size: int | None) -> None:
    pair = SessionPair(server={"upgrades": True})

    pair.open("payload", upgrade_to=name, chunk_size=chunk_size)

    assert pair.wire[0][1] == upgrade.request(name)
    assert pair.wire[1][1] == upgrade.reply(name)
    assert pair.seen["server"].events == [("hello", "payload", None)]


@pytest.mark.parametrize("size", range(len(upgrade.request("net-ipc"))))
def test_request_may_be_cut_at_every_byte(size: int) -> None:
    lone = server(upgrades=True)
    data = upgrade.request("net-ipc") + HELLO[3:]

    assert lone.feed(data[:size]) == []
    assert lone.feed(data[size:]) == [("hello", ABSENT, None)]
    assert lone.session.data_to_send() == upgrade.reply("net-ipc")


@pytest.mark.parametrize("size", range(len(upgrade.reply("net-ipc"))))
def test_reply_may_be_cut_at_every_byte(size: int) -> None:
    lone = LoneSession("client")
    lone.session.open(upgrade_to="net-ipc")
    lone.session.data_to_send()
    data = upgrade.reply("net-ipc") + frame({"t": 0, "d": {"id": "x"}})

    assert lone.feed(data[:size]) == []
    assert lone.feed(data[size:]) == [("opened", "x")]
    assert [packet["t"] for packet in lone.sent()] == [0]


def test_upgrade_is_refused_where_it_is_off() -> None:
    lone = server()

    assert lone.feed(b"GE") == []
    assert lone.feed(b"T") == [("violated", RemoteProtocolError)]
    assert lone.session.data_to_send() == upgrade.REFUSAL


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\nConnection: Upgrade\nUpgrade: net-ipc\n\n",
        b"GET / HTTP/1.1\nConnection: Upgrade\r\nUpgrade: net-ipc\r\n\r\n",
        b"GET " + b"x" * 5000,
    ],
)
def test_upgrade_that_is_none_is_refused(data: bytes, chunk_size: int | None) -> None:
    lone = server(upgrades=True)

    assert lone.feed(data, chunk_size=chunk_size) == [("violated", RemoteProtocolError)]
    assert lone.session.data_to_send() == upgrade.REFUSAL


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", HandshakeError),
        (upgrade.reply("isdk-ipc"), HandshakeError),
        (b"HTTP/1.1 404 Not Found\n\n", RemoteProtocolError),
        (b"x" * 4096, RemoteProtocolError),
    ],
)
def test_client_is_told_that_the_upgrade_failed(
    data: bytes, error: type[InterphoneError], chunk_size: int | None
) -> None:
    lone = LoneSession("client")
    lone.session.open(upgrade_to="net-ipc")
    lone.session.data_to_send()

    assert lone.feed(data, chunk_size=chunk_size) == [("violated", error)]
    assert lone.session.data_to_send() == b""
    assert lone.session.state is State.CLOSED


def test_refusal_of_a_node_server_is_no_frame() -> None:
    lone = LoneSession("client")
    lone.session.open()

    assert lone.feed(b"HTTP/1.1 404 Not Found") == [("violated", RemoteProtocolError)]


# Being refused


def test_interphone_client_is_refused_with_a_code() -> None:
    pair = SessionPair()
    pair.client.open()
    pair.deliver()

    pair.server.refuse({"why": "full"}, code="full")
    assert pair.deliver() == [("violated", Refused)]

    (error,) = pair.seen["client"].errors
    assert isinstance(error, Refused)
    assert (error.reason, error.code) == ({"why": "full"}, "full")
    assert pair.server.state is State.CLOSING


def test_node_client_is_refused_behind_a_reply_in_one_write() -> None:
    lone = server()
    lone.feed(HELLO)

    lone.session.refuse("no", id="x")

    assert lone.sent() == [
        {"t": 0, "d": {"id": "x"}},
        {"t": 6, "d": {"m": "no", "a": False}},
    ]


def test_node_client_is_refused_in_what_was_agreed() -> None:
    lone = server(messagepack=True, compress=True)
    lone.feed(b"IPC", {"t": 0, "d": {"messagepack": True, "compress": True}})

    lone.session.refuse("no", id="x")

    reply, end = bodies(lone.session.data_to_send())
    assert json.loads(reply)["d"] == {"id": "x", "compress": True, "messagepack": True}
    inflated = zlib.decompressobj(-15).decompress(end)
    assert msgspec.msgpack.decode(inflated) == {"t": 6, "d": {"m": "no", "a": False}}


def test_nothing_of_a_refused_client_is_dispatched() -> None:
    lone = server()
    lone.feed(HELLO, {"t": 1, "d": "early"})

    lone.session.refuse("no")

    assert lone.resume() == []
    assert lone.feed({"t": 2, "d": 1, "n": "1"}) == []
    assert lone.session.counts.illegal == 2
    assert lone.feed({"t": 6, "d": {"a": False}}) == [("goodbye", None, False)]


def test_reason_too_long_for_the_handshake_is_left_out() -> None:
    lone = server(limits=small(max_handshake_frame=100))
    lone.feed(HELLO)

    lone.session.refuse("x" * 200, id="x")

    assert lone.sent()[1] == {"t": 6, "d": {"a": False}}


@pytest.mark.parametrize("decide", ["accept", "refuse"])
def test_decision_about_a_client_that_has_gone_changes_nothing(decide: str) -> None:
    lone = server()
    lone.feed(HELLO)
    lone.lose()

    getattr(lone.session, decide)("x")

    assert lone.session.state is State.CLOSED
    assert lone.session.queued == 0


@pytest.mark.parametrize(
    ("end", "error", "text"),
    [
        ({"t": 6, "d": {"m": "no"}, "e": {"code": "full"}}, Refused, "no"),
        ({"t": 6, "d": {"m": "no"}, "e": 7}, Refused, "no"),
        ({"t": 6, "d": {"m": "later"}}, HandshakeError, "hung up: later"),
        ({"t": 6}, HandshakeError, "hung up: None"),
        ({"t": 6, "d": None}, HandshakeError, "hung up: None"),
    ],
)
def test_end_instead_of_a_reply_is_a_refusal(end: Any, error: type, text: str) -> None:
    lone = LoneSession("client")
    lone.session.open()

    assert lone.feed(end) == [("violated", error)]
    assert text in str(lone.seen.errors[0])
    assert lone.session.state is State.CLOSED


def test_end_of_an_opening_client_is_a_goodbye() -> None:
    lone = server()

    assert lone.feed(b"IPC", {"t": 6, "d": {"a": False}}) == [("goodbye", None, False)]
    assert lone.session.next_tick is None


# Messages


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("value", [None, 0, "", False, [1, {"a": None}], "x" * 20_000])
def test_message_arrives(role: Any, flavour: dict[str, Any], value: Any) -> None:
    pair = SessionPair(**flavour).open()
    pair.say(role, "send", value)

    assert pair.deliver() == [("message", value)]


def test_message_without_payload_is_told_as_absent(node: LoneSession) -> None:
    assert node.feed({"t": 1}, {"t": 1, "d": None}) == [("message", ABSENT), ("message", None)]


@pytest.mark.parametrize("value", [{"pub": "a", "message": 1}, {"sub": "a"}, {"jsonrpc": "2.0"}])
@pytest.mark.parametrize("role", ["client", "server"])
def test_nothing_is_sniffed_from_a_message_of_ours(role: Any, value: Any) -> None:
    pair = SessionPair().open()
    pair.client.topics.add("a")
    pair.say(role, "send", value)

    assert pair.deliver() == [("message", value)]


def test_message_of_an_unknown_kind_is_counted() -> None:
    lone = LoneSession("client").open_to_interphone()

    assert lone.feed({"t": 1, "d": 1, "k": "later"}, {"t": 1, "d": {"pub": 7}, "k": "pub"}) == []
    assert lone.session.counts.unknown == 2


def test_keys_of_ours_mean_nothing_from_node(node: LoneSession) -> None:
    assert node.feed(
        {"t": 1, "d": {"pub": "a", "message": 1}, "k": "pub"},
        {"t": 2, "d": {"sub": 7}, "n": "1", "k": "sub"},
        {"t": 2, "d": 1, "n": "2", "k": "later", "e": {"code": "closing"}},
    ) == [
        ("message", {"pub": "a", "message": 1}),
        ("request", "1", {"sub": 7}),
        ("request", "2", 1),
    ]


def test_failure_key_of_node_is_no_failure(node: LoneSession) -> None:
    nonce = node.session.request(b"1", "token")

    told = node.feed({"t": 3, "d": "fine", "n": nonce, "e": {"code": "closing"}})

    assert told == [("answered", "token", "fine")]


@pytest.mark.parametrize(
    "packet", [{"t": 7, "d": 1}, {"t": "1"}, {"d": 1}, {"t": -1}, {"t": 1.5}, [], 5, "s", True]
)
def test_what_is_no_packet_of_node_is_ignored_and_counted(node: LoneSession, packet: Any) -> None:
    assert node.feed(frame(json.dumps(packet)), {"t": 1, "d": "next"}) == [("message", "next")]
    assert node.session.counts.unknown == 1


def test_second_hello_is_ignored_and_counted(node: LoneSession) -> None:
    assert node.feed({"t": 0, "d": {"id": "renamed"}}, {"t": 1, "d": 1}) == [("message", 1)]
    assert node.sent() == []
    assert node.session.counts.illegal == 1


def test_second_welcome_is_ignored_and_counted() -> None:
    lone = LoneSession("client").open()

    assert lone.feed({"t": 0, "d": {"id": "renamed"}}) == []
    assert lone.session.counts.illegal == 1


# Unreadable frames


@pytest.mark.parametrize("to_node", [True, False])
def test_unreadable_frame_is_told_and_the_connection_stays(to_node: bool) -> None:
    lone = server().open() if to_node else server().open_to_interphone()

    assert lone.feed(frame(b"{"), b"\x80", {"t": 1, "d": 1}) == [
        ("unreadable", PayloadError),
        ("unreadable", PayloadError),
        ("message", 1),
    ]
    assert lone.session.counts.unreadable == 2


@pytest.mark.parametrize("count", [MAX_UNREADABLE - 1, MAX_UNREADABLE, MAX_UNREADABLE + 1])
def test_so_many_unreadable_frames_in_a_row_end_it(node: LoneSession, count: int) -> None:
    told = node.feed(frame(b"{") * count)

    assert told[: MAX_UNREADABLE - 1] == [("unreadable", PayloadError)] * (MAX_UNREADABLE - 1)
    assert told[MAX_UNREADABLE - 1 :] == [("violated", RemoteProtocolError)] * (
        count >= MAX_UNREADABLE
    )


def test_readable_frame_between_them_begins_the_count_anew(node: LoneSession) -> None:
    told = node.feed((frame(b"{") * (MAX_UNREADABLE - 1) + frame({"t": 7})) * 3)

    assert len(told) == 3 * (MAX_UNREADABLE - 1)
    assert node.session.state is State.OPEN


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(("depth", "fits"), [(63, True), (64, True), (65, False)])
def test_payload_nests_so_deeply_and_no_deeper(
    flavour: dict[str, Any], depth: int, fits: bool
) -> None:
    pair = SessionPair(**flavour).open()
    payload = b"[" * depth + b"]" * depth
    if "messagepack" in flavour:
        payload = b"\x91" * (depth - 1) + b"\x90"
    pair.client.send(payload)

    assert [event[0] for event in pair.deliver()] == ["message" if fits else "unreadable"]


@pytest.mark.parametrize("body", [b'{"t":1,"d":"\xff"}', b'{"t":1.0,"d":"x"}'])
def test_leniency_is_for_node_only(body: bytes) -> None:
    told = server().open_to_interphone().feed(frame(body))

    assert told in ([("unreadable", PayloadError)], [("message", PayloadError)])


# Compression


def compressing(**options: Any) -> LoneSession:
    lone = server(compress=True, **options)
    return lone.open(compress=True)


@pytest.mark.parametrize(("size", "fits"), [(999, True), (1000, True), (1001, False)])
def test_inflated_size_is_held_to_the_limit(size: int, fits: bool) -> None:
    (event,) = compressing(limits=small()).feed(deflated(json_of(size)))

    assert event[0] == ("message" if fits else "violated")


def test_bomb_is_not_inflated() -> None:
    bomb = deflated(b'{"t":1,"d":"' + b"x" * 50_000_000 + b'"}')
    lone = compressing(limits=Limits(max_frame=100_000))
    tracemalloc.start()
    told = lone.feed(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert told == [("violated", MessageTooBig)]
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(zlib.compress(b'{"t":1}')), id="zlib's header"),
        pytest.param(frame(b"\xff\xff\xff"), id="rubbish"),
        pytest.param(frame(b"\x03\x00"), id="a final block"),
    ],
)
def test_frame_that_does_not_inflate_ends_it(data: bytes) -> None:
    lone = compressing()

    assert lone.feed(data) == [("violated", RemoteProtocolError)]
    error = lone.seen.errors[0]
    assert isinstance(error, RemoteProtocolError)
    assert error.code == "bad-deflate"


def test_frames_that_are_not_compressed_say_nothing() -> None:
    lone = compressing()

    told = lone.feed(*[{"t": 1, "d": number} for number in range(MAX_UNREADABLE)])

    assert {event[0] for event in told} <= {"unreadable", "violated"}
    assert lone.session.state is State.CLOSED


def test_two_packets_in_a_deflated_frame_are_no_packet() -> None:
    assert compressing().feed(deflated(b'{"t":1}{"t":1}')) == [("unreadable", PayloadError)]


@pytest.mark.parametrize(("size", "fits"), [(999, True), (1000, True), (1001, False)])
def test_own_message_is_held_to_the_limit_before_it_is_compressed(size: int, fits: bool) -> None:
    pair = SessionPair(compress=True, limits=small()).open()
    payload = b'"%b"' % (b"x" * (size - len(b'{"t":1,"d":""}')))

    if fits:
        pair.client.send(payload)
    else:
        with pytest.raises(MessageTooBig):
            pair.client.send(payload)

    assert len(pair.deliver()) == fits


def test_message_too_big_once_compressed_leaves_no_trace_in_the_stream() -> None:
    noise = random.Random(1).randbytes(980)
    lone = compressing(limits=small())
    inflate = zlib.decompressobj(-15)

    with pytest.raises(MessageTooBig) as caught:
        lone.session.send(b'"%b"' % noise)  # deflate makes it longer than it was
    lone.session.send(b'"%b"' % noise[:300])
    lone.session.send(b'"%b"' % noise[:900])

    assert caught.value.size > 1000 >= len(noise) + len(b'{"t":1,"d":""}')
    first, second = (inflate.decompress(body) for body in bodies(lone.session.data_to_send()))
    assert first == b'{"t":1,"d":"%b"}' % noise[:300]
    assert second == b'{"t":1,"d":"%b"}' % noise[:900]


def test_message_near_the_limit_belongs_to_the_stream() -> None:
    pair = SessionPair(compress=True, limits=small()).open()
    first, near = "".join(chr(97 + n * n * 7 % 26) for n in range(200)), "y" * 980

    for value in (first, near, first, near):
        pair.say("client", "send", value)

    assert pair.deliver() == [("message", value) for value in (first, near, first, near)]


# Requests


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("role", ["client", "server"])
def test_request_is_answered(role: Any, flavour: dict[str, Any]) -> None:
    pair = SessionPair(**flavour).open()
    other: Any = "server" if role == "client" else "client"
    nonce = pair.say(role, "request", {"q": 1}, "token")

    assert pair.deliver() == [("request", nonce, {"q": 1})]
    pair.say(other, "respond", nonce, None)
    assert pair.deliver() == [("answered", "token", None)]
    assert pair.session(role).pending == 0


def test_answers_may_come_in_any_order(pair: SessionPair) -> None:
    first = pair.say("client", "request", 1, "one")
    second = pair.say("client", "request", 2, "two")
    pair.deliver()

    pair.say("server", "respond", second, 20)
    pair.say("server", "respond", first, 10)

    assert pair.deliver() == [("answered", "two", 20), ("answered", "one", 10)]


def test_second_answer_is_dropped_and_counted(pair: SessionPair) -> None:
    nonce = pair.say("client", "request", 1, "token")
    pair.deliver()
    pair.say("server", "respond", nonce, 1)
    pair.say("server", "respond", nonce, 2)

    assert pair.deliver() == [("answered", "token", 1)]
    assert pair.client.counts.late == 1


def test_answer_after_timeout_is_dropped(pair: SessionPair) -> None:
    nonce = pair.say("client", "request", "slow", "token", timeout=5.0)
    pair.deliver()

    assert pair.tick(5.0) == [("failed", "token", RequestTimeout)]

    pair.say("server", "respond", nonce, "too late")
    assert pair.deliver() == [("cancelled", nonce)]
    assert pair.client.counts.late == 1


def test_forgotten_request_is_not_settled(pair: SessionPair) -> None:
    nonce = pair.say("client", "request", 1, "token", timeout=5.0)
    pair.deliver()

    pair.client.forget(nonce)
    pair.client.forget(nonce)

    pair.say("server", "respond", nonce, 1)
    assert pair.deliver() == [("cancelled", nonce)]
    assert pair.tick(10) == []


@pytest.mark.parametrize("nonce", ["toString", "__proto__", 1, None, {"a": 1}, ""])
def test_answer_to_nobody_is_dropped_and_counted(node: LoneSession, nonce: Any) -> None:
    node.session.request(b"1", "token")

    assert node.feed({"t": 3, "d": 1, "n": nonce}, {"t": 5, "d": 1, "n": nonce}) == []
    assert node.session.counts.late == 2
    assert node.session.pending == 1


def test_pong_does_not_answer_a_request_nor_a_response_a_ping(node: LoneSession) -> None:
    request = node.session.request(b"1", "request")
    ping = node.session.ping("ping")

    assert node.feed({"t": 5, "n": request}, {"t": 3, "n": ping}) == []
    assert node.session.counts.late == 2

    assert node.feed({"t": 3, "n": request}, {"t": 5, "n": ping}) == [
        ("answered", "request", ABSENT),
        ("answered", "ping", ABSENT),
    ]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_so_many_requests_may_wait(count: int) -> None:
    pair = SessionPair(client={"limits": small(max_pending=3)}).open()
    for number in range(min(count, 3)):
        pair.say("client", "request", number, number)

    if count > 3:
        with pytest.raises(Overloaded):
            pair.say("client", "ping", "one more")

    assert pair.client.pending == min(count, 3)
    assert len(pair.deliver()) == min(count, 3)


def test_request_too_big_does_not_wait(pair: SessionPair) -> None:
    small_pair = SessionPair(limits=small()).open()

    with pytest.raises(MessageTooBig):
        small_pair.say("client", "request", "x" * 1000, "token")

    assert small_pair.client.pending == 0


@pytest.mark.parametrize("nonce", [0, "", None, 7, {"x": 1}, ["y"], 2**70, "\ud800", 1e300])
def test_nonce_of_node_is_echoed_as_it_came(node: LoneSession, nonce: Any) -> None:
    node.feed({"t": 2, "d": 1, "n": nonce}, {"t": 4, "n": nonce})
    (request,) = [event for event in node.seen.events if event[0] == "request"]
    node.session.respond(request[1], b"2")

    echoed = {"n": nonce} if nonce else {}
    assert node.sent() == [{"t": 5, **echoed}, {"t": 3, "d": 2, **echoed}]


def test_answer_nobody_waits_for_any_more_is_counted(pair: SessionPair) -> None:
    nonce = pair.say("client", "request", 1, "token")
    pair.deliver()
    pair.cut()

    pair.say("server", "respond", nonce, 1)
    pair.server.fail(nonce, Failure("failed"))

    assert pair.server.counts.unsendable == 2
    assert pair.server.queued == 0


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Failure("unhandled", "nobody"), Unhandled),
        (Failure("failed", "why", "KeyError", [1]), RemoteError),
        (Failure("closing", "bye"), ConnectionClosed),
    ],
)
def test_failure_reaches_the_asker(
    pair: SessionPair, failure: Failure, error: type[Exception]
) -> None:
    nonce = pair.say("client", "request", 1, "token")
    pair.deliver()

    pair.server.fail(nonce, failure)

    assert pair.deliver() == [("failed", "token", error)]


def test_failure_nobody_can_read_is_a_failure() -> None:
    lone = LoneSession("client").open_to_interphone()
    nonce = lone.session.request(b"1", "token")

    assert lone.feed({"t": 3, "n": nonce, "e": ["odd"]}) == [("failed", "token", RemoteError)]


def test_refusal_with_a_code_nobody_can_read_is_a_refusal() -> None:
    lone = LoneSession("client")
    lone.session.open()

    told = lone.feed(frame(b'{"t":6,"d":{"m":"no"},"e":{"code":"\\ud800"}}'))

    assert told == [("violated", Refused)]


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Failure("unhandled", "nobody"), {"code": -32601, "message": "nobody"}),
        (Failure("failed", "x", "KeyError"), {"code": -32000, "message": "KeyError: x"}),
        (Failure("failed", "x", "", [1]), {"code": -32000, "message": "x", "data": [1]}),
    ],
)
def test_failure_towards_node_is_that_of_json_rpc(
    node: LoneSession, failure: Failure, error: dict[str, Any]
) -> None:
    node.session.fail("7", failure)

    assert node.sent() == [{"t": 3, "d": {"jsonrpc": "2.0", "error": error}, "n": "7"}]


def test_failure_from_node_is_an_answer_like_any() -> None:
    lone = LoneSession("client").open()
    nonce = lone.session.request(b"1", "token")

    told = lone.feed({"t": 3, "d": TOLD_TO_NODE, "n": nonce})

    assert told == [("answered", "token", TOLD_TO_NODE)]


# Publications and subscriptions


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_client_subscribes_and_is_told(flavour: dict[str, Any]) -> None:
    pair = SessionPair(**flavour).open()
    one = pair.say("client", "subscribe", ["a"], "one")
    two = pair.say("client", "subscribe", ["b", "c"], "two")
    gone = pair.say("client", "unsubscribe", ["b"], "gone")

    assert pair.deliver() == [
        ("subscribe", one, ["a"]),
        ("subscribe", two, ["b", "c"]),
        ("unsubscribe", gone, ["b"]),
    ]
    assert pair.client.topics == {"a", "c"}

    pair.server.deliver(pair.server.publication("a", pair.server.codec.encode(0)))
    assert pair.deliver() == [("publication", "a", 0)]


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("value", [None, False, 0, "", {"pub": "b"}])
def test_client_asks_to_publish(flavour: dict[str, Any], value: Any) -> None:
    pair = SessionPair(**flavour).open()
    nonce = pair.say("client", "ask_to_publish", "a", value, "token")

    assert pair.deliver() == [("publish", nonce, "a", value)]
    pair.say("server", "respond", nonce, {"result": True})
    assert pair.deliver() == [("answered", "token", {"result": True})]


@pytest.mark.parametrize("value", [{"sub": "a"}, {"pub": "a", "message": 1}, {"unsub": ["a"]}])
def test_nothing_is_sniffed_from_a_request_of_ours(pair: SessionPair, value: Any) -> None:
    nonce = pair.say("client", "request", value, "token")

    assert pair.deliver() == [("request", nonce, value)]


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize(
    "packet",
    [
        {"d": {"later": 1}, "k": "later"},
        {"d": {"sub": "a"}, "k": []},
        {"d": {"sub": "a"}, "k": {"sub": 1}},
        {"d": {"sub": "a"}, "k": "unsub"},
        {"d": {"sub": "a"}, "k": "pub"},
        {"d": {"pub": "a", "message": 1}, "k": "message"},
        {"d": {"pub": "a", "sub": "b"}, "k": "sub"},
        {"d": "text", "k": "sub"},
        {"d": 7, "k": 7},
        {"k": "pub"},
    ],
)
def test_request_of_an_unknown_kind_is_not_supported(role: Any, packet: Any) -> None:
    lone = LoneSession(role).open_to_interphone()

    assert lone.feed({"t": 2, "n": "1", **packet}) == []
    (reply,) = lone.sent()
    assert reply["e"]["code"] == "unsupported"


def test_client_serves_no_subscriptions() -> None:
    lone = LoneSession("client").open()

    assert lone.feed({"t": 2, "d": {"sub": "a"}, "n": "1"}) == [("request", "1", {"sub": "a"})]


def test_server_of_ours_is_told_what_it_does_not_support() -> None:
    pair = SessionPair().open()
    pair.say("server", "subscribe", ["a"], "token")

    assert pair.deliver() == [("failed", "token", Unsupported)]


@pytest.mark.parametrize(
    ("d", "event"),
    [
        ({"sub": "a"}, ("subscribe", "1", ["a"])),
        ({"sub": ["a", "b"]}, ("subscribe", "1", ["a", "b"])),
        ({"sub": []}, ("subscribe", "1", [])),
        ({"unsub": "a"}, ("unsubscribe", "1", ["a"])),
        ({"pub": "a", "message": 0}, ("publish", "1", "a", 0)),
        ({"pub": "a"}, ("publish", "1", "a", ABSENT)),
        ({"pub": "a", "message": 1, "more": 2}, ("publish", "1", "a", 1)),
        ({"pub": "a", "sub": "b"}, ("publish", "1", "a", ABSENT)),
    ],
)
def test_node_subscribes_and_publishes_by_requests(
    node: LoneSession, d: Any, event: tuple[Any, ...]
) -> None:
    assert node.feed({"t": 2, "d": d, "n": "1"}) == [event]


@pytest.mark.parametrize(
    "d",
    [
        "sub", {"sub": ""}, {"sub": 7}, {"sub": None}, {"sub": ["a", 7]}, {"sub": ["a", ""]},
        {"sub": {"a": 1}}, {"sub": "a", "more": 1}, {"unsub": True}, {"pub": ""}, {"pub": 7},
        {"pub": ["a"], "message": 1}, {"message": 1}, ["sub"], {"x": {"sub": "a"}}, {"subs": "a"},
    ],
)  # fmt: skip
def test_what_is_no_subscription_is_the_users(node: LoneSession, d: Any) -> None:
    assert node.feed({"t": 2, "d": d, "n": "1"}) == [("request", "1", d)]


def test_topics_and_messages_of_node_are_read_leniently(node: LoneSession) -> None:
    for body, event in (
        (b'{"pub":"a","message":"\\ud800"}', ("publish", "1", "a", "\ud800")),
        (b'{"pub":"\\ud800","message":1}', ("publish", "1", "\ud800", 1)),
        (b'{"sub":"\\ud800"}', ("subscribe", "1", ["\ud800"])),
        (b'{"pub":"a","message":"\xff"}', ("publish", "1", "a", "\ufffd")),
        (b'{"sub":1e400}', ("request", "1", {"sub": float("inf")})),
        (b'["sub", "\\ud800"]', ("request", "1", ["sub", "\ud800"])),
    ):
        assert node.feed(frame(b'{"t":2,"n":"1","d":' + body + b"}")) == [event]


def test_values_nobody_can_read_are_no_topics() -> None:
    lone = server().open_to_interphone()

    for d in (b'{"sub":"\xff"}', b'{"pub":"\xff"}'):
        body = b'{"t":2,"n":"1","d":' + d + b',"k":"%b"}' % d[2:5]
        assert lone.feed(frame(body)) == []
    assert [reply["e"]["code"] for reply in lone.sent()] == ["unsupported"] * 2


def test_node_server_delivers_what_was_asked_for_only() -> None:
    lone = LoneSession("client").open()
    lone.session.subscribe(["a"], "token")

    assert lone.feed(
        {"t": 1, "d": {"pub": "a", "message": 0}},
        {"t": 1, "d": {"pub": "a"}},
        {"t": 1, "d": {"pub": "b", "message": 1}},
        {"t": 1, "d": {"pub": 7, "message": 1}},
        {"t": 1, "d": {"public": 1}},
        {"t": 1, "d": '"pub'},
    ) == [
        ("publication", "a", 0),
        ("publication", "a", ABSENT),
        ("message", {"pub": "b", "message": 1}),
        ("message", {"pub": 7, "message": 1}),
        ("message", {"public": 1}),
        ("message", '"pub'),
    ]


def test_failed_subscription_leaves_no_topic() -> None:
    pair = SessionPair(client={"limits": small(max_pending=1)}).open()
    pair.say("client", "subscribe", ["a"], "token")

    with pytest.raises(Overloaded):
        pair.say("client", "subscribe", ["b"], "token")
    with pytest.raises(Overloaded):
        pair.say("client", "unsubscribe", ["a"], "token")

    assert pair.client.topics == {"a"}


def test_publication_is_delivered_in_the_flavour_of_its_receiver(node: LoneSession) -> None:
    raw, whole = b"[1]", msgspec.Raw(b'{"pub":"a","message":[1],"more":2}')
    ours = server().open_to_interphone()

    assert json.loads(node.session.publication("a", raw)) == {
        "t": 1,
        "d": {"pub": "a", "message": [1]},
    }
    assert json.loads(node.session.publication("a", raw, whole))["d"]["more"] == 2
    assert json.loads(ours.session.publication("a", raw, whole)) == {
        "t": 1,
        "d": {"pub": "a", "message": [1]},
        "k": "pub",
    }
    assert node.session.flavour != ours.session.flavour


def test_message_for_many_is_made_once(pair: SessionPair) -> None:
    body = pair.server.message_body(b'"all"')

    pair.server.deliver(body)

    assert pair.deliver() == [("message", "all")]


# Ping


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("role", ["client", "server"])
def test_ping_is_answered_by_the_session(role: Any, flavour: dict[str, Any]) -> None:
    pair = SessionPair(**flavour).open()
    pair.say(role, "ping", "token")

    assert pair.deliver() == [("answered", "token", ABSENT)]


@pytest.mark.parametrize("d", [{}, {"d": None}, {"d": 0}, {"d": [1, {"x": None}]}])
def test_pong_repeats_what_the_ping_said(node: LoneSession, d: Any) -> None:
    assert node.feed({"t": 4, **d, "n": "p"}) == []
    assert node.sent() == [{"t": 5, **d, "n": "p"}]


def test_undefined_is_repeated_in_msgpack() -> None:
    lone = server(messagepack=True).open(messagepack=True)

    lone.feed(frame(bytes.fromhex("83a17404a164d40000a16ea170")))

    assert lone.session.data_to_send() == frame(bytes.fromhex("83a17405a164d40000a16ea170"))


def test_ping_is_answered_while_draining(pair: SessionPair) -> None:
    pair.say("client", "ping", "token")
    pair.server.drain("bye", pair.seen["server"].reactions)

    assert pair.deliver() == [("answered", "token", ABSENT)]


def test_pong_that_does_not_fit_ends_it() -> None:
    lone = server(limits=small(max_frame=400)).open()
    body = b'{"t":4,"n":"' + b"\xff" * 300 + b'"}'  # three bytes for each in the answer

    assert lone.feed(frame(body)) == [("violated", MessageTooBig)]


# Holding


def test_held_session_stops_within_a_chunk(pair: SessionPair) -> None:
    pair.seen["server"].on["message"] = lambda _: pair.server.hold()
    for number in range(3):
        pair.say("client", "send", number)

    assert pair.deliver() == [("message", 0)]
    pair.server.resume(pair.seen["server"].reactions)
    assert pair.seen["server"].take() == [("message", 1)]
    pair.server.resume(pair.seen["server"].reactions)
    assert pair.seen["server"].take() == [("message", 2)]


def test_hold_and_resume_within_a_reaction_change_nothing(pair: SessionPair) -> None:
    seen = pair.seen["server"]
    seen.on["message"] = lambda _: (pair.server.hold(), pair.server.resume(seen.reactions))
    for number in range(3):
        pair.say("client", "send", number)

    assert pair.deliver() == [("message", number) for number in range(3)]


def test_held_session_keeps_what_comes(pair: SessionPair) -> None:
    pair.server.hold()
    pair.say("client", "send", "one")
    assert pair.byte_by_byte() == []
    pair.say("client", "send", "two")
    assert pair.deliver() == []

    pair.server.resume(pair.seen["server"].reactions)

    assert pair.seen["server"].take() == [("message", "one"), ("message", "two")]


def test_closed_session_does_not_go_on(node: LoneSession) -> None:
    node.session.hold()
    node.feed({"t": 1, "d": 1})
    node.lose()

    assert node.resume() == []


# Being watched


@pytest.mark.parametrize(
    "flavour", [*FLAVOURS, pytest.param({"dialects": ("native", "classic")}, id="native")]
)
def test_watched_session_tells_of_every_packet_both_ways(flavour: dict[str, Any]) -> None:
    pair, seen = SessionPair(**flavour).open(), list[tuple[str, int, object]]()
    pair.server.watch(lambda way, packet, size: seen.append((way, packet.t, packet.n)))
    pair.say("client", "send", "x" * 1000)
    nonce = pair.say("client", "request", 1, "token")
    pair.deliver()
    pair.say("server", "respond", nonce, 2)

    assert pair.deliver() == [("answered", "token", 2)]
    assert seen == [("in", 1, None), ("in", 2, nonce), ("out", 3, nonce)]

    pair.server.watch(None)
    pair.say("client", "send", 3)

    assert pair.deliver() == [("message", 3)]
    assert len(seen) == 3


def test_watch_is_told_the_size_after_inflating() -> None:
    pair, sizes = SessionPair(compress=True).open(), list[int]()
    pair.server.watch(lambda way, packet, size: sizes.append(size))
    pair.say("client", "send", "x" * 1000)
    pair.say("server", "send", "x" * 1000)
    pair.deliver()

    assert sizes == [len(json_of(0)) + 1000] * 2


def test_watch_is_not_told_of_what_is_no_packet_and_changes_nothing(node: LoneSession) -> None:
    seen: list[Any] = []
    node.session.watch(lambda *facts: seen.append(facts))

    assert node.feed([1]) == []
    assert node.feed(frame(b"{")) == [("unreadable", PayloadError)]
    node.session.deliver(b"[1]")
    node.session.deliver(b"{")

    assert bodies(node.session.data_to_send()) == [b"[1]", b"{"]
    assert node.session.counts.unknown == 1
    assert not seen


# Saying goodbye


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("reason", [None, "bye", 0, "", False, {"code": 7}])
def test_goodbye_arrives_with_its_reason(role: Any, reason: Any, flavour: dict[str, Any]) -> None:
    pair = SessionPair(**flavour).open()
    other = pair.session("server" if role == "client" else "client")

    pair.session(role).say_goodbye(reason)

    assert pair.deliver() == [("goodbye", reason, False)]
    assert other.state is State.CLOSED
    assert isinstance(other.error, ConnectionClosed)
    assert (other.error.reason, other.error.by_peer) == (reason, True)


def test_goodbye_may_ask_to_come_back(pair: SessionPair) -> None:
    pair.server.say_goodbye("restart", reconnect=True)

    assert pair.deliver() == [("goodbye", "restart", True)]


@pytest.mark.parametrize("reason", [object(), 2**70j, ["\udc00"]])
def test_reason_without_a_form_is_told_as_text(pair: SessionPair, reason: Any) -> None:
    pair.client.say_goodbye(reason)

    ((name, text, again),) = pair.deliver()
    assert (name, text, again) == ("goodbye", str(reason), False)


def test_reason_too_long_is_left_out() -> None:
    pair = SessionPair(limits=small()).open()

    pair.client.say_goodbye("x" * 2000)

    assert pair.deliver() == [("goodbye", None, False)]


def test_nothing_follows_a_goodbye(pair: SessionPair) -> None:
    pair.client.say_goodbye("bye")
    pair.client.say_goodbye("again")

    assert pair.deliver() == [("goodbye", "bye", False)]
    assert pair.client.state is State.CLOSING


@pytest.mark.parametrize(
    ("d", "event"),
    [
        ({"d": {}}, [("goodbye", None, False)]),
        ({"d": {"a": True}}, [("goodbye", None, True)]),
        ({"d": {"m": None, "a": False}}, [("goodbye", None, False)]),
        ({"d": {"m": 0}}, [("goodbye", 0, False)]),
        ({"d": "odd"}, [("goodbye", None, False)]),
        ({"d": {"a": False}, "e": {"code": "too-big"}}, [("goodbye", None, False)]),
        ({}, []),
        ({"d": None}, []),
    ],
)
def test_end_of_node_may_be_written_so(node: LoneSession, d: Any, event: Any) -> None:
    assert node.feed({"t": 6, **d}, {"t": 1, "d": 1}) == (event or [("message", 1)])


def test_reason_nobody_can_read_is_not_there() -> None:
    lone = server().open_to_interphone()

    told = lone.feed(frame(b'{"t":6,"d":{"m":1e400,"a":true}}'))

    assert told == [("goodbye", None, True)]


@pytest.mark.parametrize("d", [{}, {"d": None}])
def test_end_of_ours_counts_without_a_reason(d: Any) -> None:
    lone = server().open_to_interphone()

    assert lone.feed({"t": 6, **d}) == [("goodbye", None, False)]


def test_packets_behind_an_end_are_refused(node: LoneSession) -> None:
    told = node.feed({"t": 6, "d": {"m": "bye"}}, {"t": 2, "d": 1, "n": "1"}, {"t": 4, "n": "2"})

    assert told == [("goodbye", "bye", False)]
    assert node.feed({"t": 1, "d": 1}) == []
    assert node.sent() == []


def test_closing_session_waits_for_the_other_to_end(pair: SessionPair) -> None:
    pair.client.say_goodbye("mine")
    pair.server.say_goodbye("theirs")

    assert sorted(pair.deliver()) == [("goodbye", "mine", False), ("goodbye", "theirs", False)]
    assert pair.client.state is pair.server.state is State.CLOSED


def test_closing_session_serves_nothing(pair: SessionPair) -> None:
    pair.client.say_goodbye("bye")
    for verb, args in (("send", (1,)), ("request", (1, "token")), ("ping", ("token",))):
        pair.say("server", verb, *args)

    assert pair.deliver() == [("goodbye", "bye", False)]
    assert pair.client.counts.illegal == 3


def test_draining_session_fails_its_own_requests(pair: SessionPair) -> None:
    for token in ("one", "two"):
        pair.say("client", "request", token, token, timeout=5)

    pair.client.drain("bye", pair.seen["client"].reactions)

    assert pair.seen["client"].take() == [
        ("failed", "one", ConnectionClosed),
        ("failed", "two", ConnectionClosed),
    ]
    assert pair.client.pending == 0
    assert pair.client.next_tick is None
    first, second = pair.seen["client"].errors
    assert first is not second
    assert isinstance(first, ConnectionClosed)
    assert (first.by_peer, first.delivery) == (False, "maybe_sent")


@pytest.mark.parametrize("interphone", [True, False])
@pytest.mark.parametrize("d", [1, {"sub": "a"}])
def test_draining_session_refuses_new_requests(interphone: bool, d: Any) -> None:
    lone = server().open_to_interphone() if interphone else server().open()
    lone.session.drain("bye", lone.seen.reactions)

    assert lone.feed({"t": 2, "d": d, "n": "1"}) == []
    (reply,) = lone.sent()
    assert reply["n"] == "1"
    assert ("closing" if interphone else -32002) in (
        reply.get("e", {}).get("code"),
        reply.get("d", {}).get("error", {}).get("code"),
    )


def test_draining_session_answers_what_it_has_taken(pair: SessionPair) -> None:
    nonce = pair.say("client", "request", 1, "token")
    pair.deliver()
    pair.server.drain("bye", pair.seen["server"].reactions)

    pair.say("server", "respond", nonce, "still")
    pair.server.say_goodbye("bye")

    assert pair.deliver() == [("answered", "token", "still"), ("goodbye", "bye", False)]


def test_goodbye_of_the_other_end_is_the_reason_also_while_draining(pair: SessionPair) -> None:
    pair.client.drain("mine", pair.seen["client"].reactions)
    pair.server.say_goodbye("theirs")
    pair.deliver()

    error = pair.client.error
    assert isinstance(error, ConnectionClosed)
    assert (error.reason, error.by_peer) == ("theirs", True)


def test_drain_is_for_open_connections() -> None:
    lone = server()
    lone.session.drain("bye", lone.seen.reactions)

    assert lone.session.state is State.OPENING


VERBS = [
    ("send", (1,)),
    ("request", (1, "token")),
    ("ping", ("token",)),
    ("subscribe", (["a"], "token")),
    ("unsubscribe", (["a"], "token")),
    ("ask_to_publish", ("a", 1, "token")),
    ("deliver", (b'{"t":1}',)),
]


@pytest.mark.parametrize(("verb", "args"), VERBS)
def test_verb_needs_an_open_connection(verb: str, args: Any) -> None:
    pair = SessionPair()

    with pytest.raises(LocalProtocolError, match="not open yet"):
        pair.say("client", verb, *args)

    assert pair.client.pending == 0
    assert not pair.client.topics


@pytest.mark.parametrize(("verb", "args"), VERBS)
@pytest.mark.parametrize("end", ["drained", "left", "was left", "lost", "violated"])
def test_verb_says_why_the_connection_has_ended(verb: str, args: Any, end: str) -> None:
    lone = server().open_to_interphone()
    if end == "drained":
        lone.session.drain("why", lone.seen.reactions)
    elif end == "left":
        lone.session.say_goodbye("why")
    elif end == "was left":
        lone.feed({"t": 6, "d": {"m": "why"}})
    elif end == "lost":
        lone.lose(ConnectionLost("why"))
    else:
        lone.feed(b"\x00" * 5)

    with pytest.raises(ConnectionLost) as caught:
        getattr(lone.session, verb)(*(b"1" if arg == 1 else arg for arg in args))

    goodbye = end in ("drained", "left", "was left")
    assert isinstance(caught.value, ConnectionClosed) == goodbye
    assert caught.value.delivery == "not_sent"
    if isinstance(caught.value, ConnectionClosed):
        assert caught.value.reason == "why"
        assert caught.value.by_peer == (end == "was left")
    assert lone.session.pending == 0


# Losing the transport


@pytest.mark.parametrize("end", ["cut", "was left", "violated"])
def test_whoever_waits_hears_of_the_end_once(node: LoneSession, end: str) -> None:
    node.session.request(b"1", "request", timeout=5)
    node.session.ping("ping")
    if end == "was left":
        node.feed({"t": 6, "d": {"m": "bye"}})
    elif end == "violated":
        node.feed(b"\x00" * 5)

    expected = ConnectionClosed if end == "was left" else ConnectionLost
    assert node.lose() == [("failed", "request", expected), ("failed", "ping", expected)]
    assert node.lose() == []
    assert node.session.next_tick is None
    assert all(error.delivery == "maybe_sent" for error in node.seen.errors[-2:])


def test_loss_keeps_the_first_reason(node: LoneSession) -> None:
    node.lose(ConnectionLost("first"))
    node.lose(ConnectionLost("second"))

    assert str(node.session.error) == "the connection was lost: first"


def test_lost_session_takes_no_bytes(node: LoneSession) -> None:
    node.lose()

    assert node.feed({"t": 1, "d": 1}, b"\x00" * 10) == []
    assert not node.session.unfinished()


@pytest.mark.parametrize(
    ("data", "cut"), [(b"", False), (frame({"t": 1}), False), (b"\x05x", True), (b"\x00", True)]
)
def test_session_knows_whether_it_is_within_a_frame(
    node: LoneSession, data: bytes, cut: bool
) -> None:
    node.feed(data)

    assert node.session.unfinished() == cut


# Violations


def test_violation_is_the_last_event_and_says_goodbye(node: LoneSession) -> None:
    told = node.feed({"t": 1, "d": 1}, b"\x00" * 5, {"t": 1, "d": 2})

    assert told == [("message", 1), ("violated", RemoteProtocolError)]
    (end,) = node.sent()
    assert end["t"] == 6
    assert end["d"] == {"m": "a length tag has more than 5 digits", "a": False}
    assert "e" not in end


@pytest.mark.parametrize(
    ("data", "code"), [(b"\x00" * 5, "bad-tag"), (b"\x07\x7f\x7f\x7f\xff", "too-big")]
)
def test_violation_is_told_to_ours_with_its_code(data: bytes, code: str) -> None:
    lone = server().open_to_interphone()

    lone.feed(data)

    (end,) = lone.sent()
    assert end["e"] == {"code": code}


@pytest.mark.parametrize("limit", [10, 40, 100, 150])
def test_violation_is_told_as_far_as_it_fits(limit: int) -> None:
    lone = server(limits=Limits(max_frame=limit)).open_to_interphone()

    assert lone.feed(b"\x07\x7f\x7f\x7f\xff") == [("violated", MessageTooBig)]
    assert all(len(json.dumps(end, separators=(",", ":"))) <= limit for end in lone.sent())


def test_violation_while_closing_is_not_followed_by_an_end(node: LoneSession) -> None:
    node.session.say_goodbye("bye")
    node.session.data_to_send()

    assert node.feed(b"\x00" * 5) == [("violated", RemoteProtocolError)]
    assert node.sent() == []


# Time


def test_server_waits_for_the_handshake_so_long() -> None:
    lone = server(now=100.0)
    assert lone.session.next_tick == 110.0

    assert lone.tick(109.99) == []
    assert lone.tick(110.0) == [("violated", RemoteProtocolError)]
    assert lone.session.next_tick is None
    assert lone.tick(200.0) == []


def test_handshake_that_took_too_long_is_ended_as_node_does() -> None:
    lone = server()
    lone.feed(b"IPC")
    lone.tick(10.0)

    assert lone.sent() == [{"t": 6, "d": {"a": False}}]


def test_deadline_of_the_handshake_ends_with_the_hello() -> None:
    lone = server()
    lone.feed(HELLO)

    assert lone.session.next_tick is None
    assert lone.tick(100.0) == []


def test_client_has_no_deadline_of_its_own() -> None:
    assert LoneSession("client").session.next_tick is None


@pytest.mark.parametrize(("passed", "expired"), [(4.99, False), (5.0, True), (5.01, True)])
@pytest.mark.parametrize("verb", ["request", "ping"])
def test_request_expires_at_its_deadline(
    pair: SessionPair, verb: str, passed: float, expired: bool
) -> None:
    args = (1, "token") if verb == "request" else ("token",)
    pair.say("client", verb, *args, timeout=5.0)

    told = pair.tick(passed)

    assert told == [("failed", "token", RequestTimeout)] * expired
    assert pair.client.pending == (not expired)


def test_timeout_says_how_long_was_waited(pair: SessionPair) -> None:
    pair.say("client", "request", 1, "token", timeout=5.0)
    pair.tick(7.0)

    assert str(pair.seen["client"].errors[0]) == "no answer within 5 s"


def test_request_without_a_timeout_waits_for_ever(pair: SessionPair) -> None:
    pair.say("client", "request", 1, "token")
    pair.say("client", "request", 1, "other", timeout=1.0)

    assert pair.tick(1e9) == [("failed", "other", RequestTimeout)]
    assert pair.client.next_tick is None


def test_soonest_deadline_is_the_next_tick(pair: SessionPair) -> None:
    now = pair.clock.now
    for seconds in (9.0, 3.0, 6.0, 12.0):
        pair.say("client", "request", 1, seconds, timeout=seconds)

    assert pair.client.next_tick == now + 3.0
    assert pair.tick(3.0) == [("failed", 3.0, RequestTimeout)]
    assert pair.client.next_tick == now + 6.0
    assert pair.tick(6.0) == [("failed", 9.0, RequestTimeout), ("failed", 6.0, RequestTimeout)]


def test_deadlines_close_together_are_swept_together(pair: SessionPair) -> None:
    pair.say("client", "request", 1, "one", timeout=1.0)
    pair.say("client", "request", 1, "two", timeout=1.0 + RESOLUTION / 2)
    pair.tick(1.0)

    assert pair.client.next_tick == pair.clock.now + RESOLUTION


def test_deadline_that_is_almost_here_waits_for_the_next_sweep(pair: SessionPair) -> None:
    pair.say("client", "request", 1, "one", timeout=1.0)
    pair.tick(1.0)
    pair.say("client", "request", 1, "two", timeout=RESOLUTION / 2)

    assert pair.client.next_tick == pair.clock.now + RESOLUTION
    assert pair.tick(RESOLUTION) == [("failed", "two", RequestTimeout)]


def test_request_may_be_asked_anew_when_it_expires(pair: SessionPair) -> None:
    seen = pair.seen["client"]
    pair.say("client", "request", 1, "first", timeout=1.0)
    seen.on["failed"] = lambda token, _: (
        token == "first" and pair.say("client", "request", 1, "second", timeout=1.0)
    )

    assert pair.tick(1.0) == [("failed", "first", RequestTimeout)]
    assert pair.client.next_tick == pair.clock.now + 1.0
    assert pair.tick(1.0) == [("failed", "second", RequestTimeout)]


def test_expired_requests_may_be_forgotten_by_one_of_them(pair: SessionPair) -> None:
    pair.say("client", "request", 1, "one", timeout=1.0)
    other = pair.say("client", "request", 1, "two", timeout=1.0)
    pair.seen["client"].on["failed"] = lambda *_: pair.client.forget(other)

    assert pair.tick(1.0) == [("failed", "one", RequestTimeout)]


def beating(role: Any = "server", **options: Any) -> LoneSession:
    return LoneSession(role, heartbeat=20.0, **options).open_to_interphone()


@pytest.mark.parametrize("role", ["client", "server"])
def test_silent_peer_is_asked_and_then_given_up(role: Any) -> None:
    lone = beating(role)
    assert lone.session.next_tick == 20.0

    assert lone.tick(19.9) == []
    assert lone.sent() == []
    assert lone.tick(20.0) == []
    assert lone.sent() == [{"t": 4, "n": "heartbeat"}]
    assert lone.tick(39.9) == []
    assert lone.tick(40.0) == []  # what has come and was not read yet is read now
    assert lone.session.next_tick == 40.0 + RESOLUTION
    assert lone.tick(40.0 + RESOLUTION) == [("violated", RemoteProtocolError)]

    assert lone.sent()[0]["e"] == {"code": "silent"}
    assert lone.session.next_tick is None


def test_peer_that_speaks_is_not_asked() -> None:
    lone = beating()
    lone.session.heard = 15.0

    assert lone.tick(20.0) == []
    assert lone.sent() == []
    assert lone.session.next_tick == 35.0


def test_peer_that_answers_is_asked_again_later() -> None:
    lone = beating()
    lone.tick(20.0)
    lone.sent()
    lone.session.heard = 21.0
    lone.feed({"t": 5, "n": "heartbeat"})

    assert lone.tick(40.0) == []
    assert lone.session.next_tick == 41.0
    assert lone.tick(41.0) == []
    assert lone.sent() == [{"t": 4, "n": "heartbeat"}]


def test_peer_heard_at_the_last_look_is_not_given_up() -> None:
    lone = beating()
    lone.tick(20.0)
    lone.tick(40.0)
    lone.session.heard = 40.001

    assert lone.tick(40.0 + RESOLUTION) == []
    assert lone.session.next_tick == 60.001


@pytest.mark.parametrize(
    ("late", "forgiven"), [(20.0 * LAG - 0.1, False), (20.0 * LAG + 0.1, True)]
)
def test_own_sleep_is_not_held_against_the_peer(late: float, forgiven: bool) -> None:
    lone = beating()
    lone.tick(20.0)

    lone.tick(40.0 + late)
    told = lone.tick(40.0 + late + RESOLUTION)

    assert told == [("violated", RemoteProtocolError)] * (not forgiven)


def test_peer_is_not_given_up_while_we_do_not_read() -> None:
    lone = beating()
    lone.session.hold()

    for now in (20.0, 40.0, 60.0):
        assert lone.tick(now) == []
    assert lone.sent() == []
    lone.resume()
    assert lone.session.next_tick == 80.0


def test_node_gets_no_heartbeat() -> None:
    lone = server(heartbeat=20.0).open()

    assert lone.session.next_tick is None


@pytest.mark.parametrize("role", ["client", "server"])
def test_idle_peer_is_not_asked_for_a_sign_of_life(role: Any) -> None:
    lone = LoneSession(role, heartbeat=20.0).open(
        interphone={"version": 1, "dialects": ["classic"], "can": ["idle"]}
    )

    assert lone.session.next_tick is None
    assert "idle" in lone.session.can


@pytest.mark.parametrize("idle", [True, False])
def test_only_an_idle_end_says_so(idle: bool) -> None:
    session = Session("client", idle=idle)
    session.open()

    assert (b'"idle"' in session.data_to_send()) is idle


def test_idle_end_that_waits_looks_after_its_server_as_any_other() -> None:
    lone = LoneSession("client", heartbeat=20.0, idle=True).open_to_interphone()

    assert "idle" not in lone.session.can
    assert lone.session.next_tick == 20.0


def test_heartbeat_is_off_where_none_is_set() -> None:
    assert server().open_to_interphone().session.next_tick is None


@pytest.mark.parametrize("end", ["drain", "goodbye", "was left"])
def test_nothing_is_asked_after_a_goodbye(end: str) -> None:
    lone = beating()
    if end == "drain":
        lone.session.drain("bye", lone.seen.reactions)
    elif end == "goodbye":
        lone.session.say_goodbye("bye")
    else:
        lone.feed({"t": 6, "d": {"a": False}})
    lone.session.data_to_send()

    for now in (20.0, 40.0, 60.0):
        assert lone.tick(now) == []
    assert lone.sent() == []
    assert lone.session.next_tick is None


# Towards @isdk/ipc-server


def test_client_knows_isdk_by_its_reply() -> None:
    lone = LoneSession("client")
    lone.session.open()
    lone.feed({"t": 0, "d": {"id": "x"}})

    assert lone.session.isdk
    assert not LoneSession("client").open().session.isdk


@pytest.mark.parametrize("size", [65_536, 65_537, 65_538, 131_073])
def test_lone_byte_behind_a_boundary_is_padded_towards_isdk(size: int) -> None:
    lone = LoneSession("client")
    lone.session.open()
    lone.feed({"t": 0, "d": {"id": "x"}})
    lone.session.data_to_send()
    lone.session.send(b'"%b"' % (b"x" * (size - 14 - 3)))

    data = lone.session.data_to_send()

    padded = size % 65_536 == 1
    assert len(data) == size + 8 * padded
    assert data.endswith(b'{"t":7}') == padded


@pytest.mark.parametrize("d", [{"d": None}, {}, {"d": "odd"}])
def test_client_opens_whatever_the_reply_shows(d: Any) -> None:
    lone = LoneSession("client")
    lone.session.open()

    assert lone.feed({"t": 0, **d}) == [("opened", None)]


# Robustness


@settings(max_examples=150)
@given(st.binary(max_size=80), st.sampled_from(["client", "server"]), st.sampled_from(STARTS))
def test_random_bytes_are_events_or_a_violation(data: bytes, role: Any, start: int) -> None:
    whole, bytewise = (opened_for_rubbish(role, start) for _ in range(2))

    told = whole.feed(data)

    assert repr(bytewise.feed(data, chunk_size=1)) == repr(told)
    assert [str(error) for error in bytewise.seen.errors] == [str(e) for e in whole.seen.errors]
    assert whole.session.data_to_send() == bytewise.session.data_to_send()


@settings(max_examples=300)
@given(
    role=st.sampled_from(["client", "server"]),
    start=st.sampled_from(STARTS),
    interphone=st.booleans(),
    data=st.data(),
)
def test_spoilt_packets_are_events_or_a_violation(
    role: Any, start: int, interphone: bool, data: st.DataObject
) -> None:
    wire = data.draw(rubbish(start))
    whole, bytewise = (opened_for_rubbish(role, start, interphone=interphone) for _ in range(2))

    told = whole.feed(wire)

    assert repr(bytewise.feed(wire, chunk_size=1)) == repr(told)  # a NaN is not itself
    assert whole.session.data_to_send() == bytewise.session.data_to_send()
    whole.lose()
    assert whole.session.pending == 0


def test_session_shows_what_it_is() -> None:
    pair = SessionPair().open()
    pair.say("client", "request", 1, "token")
    isdk = LoneSession("client")
    isdk.session.open()
    isdk.feed({"t": 0, "d": {"id": "x"}})

    assert repr(pair.client) == "<Session client open, peer interphone, pending 1>"
    assert repr(isdk.session) == "<Session client open, peer isdk, pending 0>"
    assert repr(server().session) == "<Session server opening, peer node, pending 0>"
