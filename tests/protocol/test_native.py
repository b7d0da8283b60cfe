"""The native dialect: negotiation, and what only two of us say to each other."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone.errors import RemoteError, RemoteProtocolError, RequestTimeout
from interphone.protocol.dialects import Native
from interphone.protocol.messages import CANCEL, CAPABILITIES, RESPONSE, Failure, read_failure
from interphone.protocol.payload import ABSENT, MessagePack
from interphone.protocol.session import Session
from interphone.protocol.wire import tag
from support.sessions import LoneSession, Recorder

BOTH = ("native", "classic")


class Ends:
    """Two sessions and what each was told."""

    def __init__(
        self, client: tuple[str, ...] = BOTH, server: tuple[str, ...] = BOTH, **options: Any
    ):
        self.client = Session("client", dialects=client, **options)
        self.server = Session("server", dialects=server, **options)
        self.told = {"client": Recorder(self.client), "server": Recorder(self.server)}
        self.client.open()
        self.hello = self.client.data_to_send()
        self.server.receive(self.hello, self.told["server"].reactions)
        self.server.accept("a")
        self.server.resume(self.told["server"].reactions)
        self.reply = self.server.data_to_send()
        self.client.receive(self.reply, self.told["client"].reactions)
        for recorder in self.told.values():
            recorder.take()

    def deliver(self, *, by: int = 1 << 20) -> None:
        """Carry what is queued over, both ways, so many bytes at a time."""
        ways = ((self.client, self.server, "server"), (self.server, self.client, "client"))
        for sender, receiver, name in ways:
            data = sender.data_to_send()
            for at in range(0, len(data), by):
                receiver.receive(data[at : at + by], self.told[name].reactions)


@pytest.mark.parametrize(
    ("client", "server", "native"),
    [
        (BOTH, BOTH, True),
        (BOTH, ("classic",), False),
        (("classic",), BOTH, False),
        (("later", "native", "classic"), BOTH, True),
        (BOTH, ("later", "native"), True),
        (("later",), ("other",), False),
    ],
)
def test_the_best_dialect_both_speak_is_spoken(client, server, native):
    ends = Ends(client, server)

    assert ends.client.native is ends.server.native is native


def test_reply_names_what_will_be_spoken():
    reply = json.loads(Ends().reply[2:])

    assert reply["d"]["interphone"] == {
        "version": 1,
        "dialects": ["native", "classic"],
        "can": list(CAPABILITIES),
        "credit": {"requests": 1024, "bytes": 8_388_608},
        "dialect": "native",
    }


@pytest.mark.parametrize(
    ("shown", "common"),
    [
        (None, set()),
        ([], set()),
        ("streams", set()),
        ({"streams": True}, set()),
        ([1, None, ["streams"]], set()),
        (["later"], set()),
        (["later", *CAPABILITIES, 7], set(CAPABILITIES)),
    ],
    ids=str,
)
def test_only_what_both_ends_show_is_used(shown, common):
    identity = {"version": 1, "dialects": ["native"], "dialect": "native"}
    identity |= {} if shown is None else {"can": shown}
    client = LoneSession("client", dialects=BOTH)
    client.session.open()
    client.feed({"t": 0, "d": {"id": "x", "interphone": identity}})
    server = LoneSession("server", dialects=BOTH)
    server.feed(b"IPC", {"t": 0, "d": {"interphone": identity}})

    assert client.session.can == server.session.can == common


@pytest.mark.parametrize(
    "shown",
    [
        {"version": 2, "dialects": ["native"], "dialect": "native", "later": {"a": 1}},
        {"version": 1, "dialects": "native", "dialect": ["native"]},
        {"version": 1, "dialect": "later"},
        {"version": 1},
    ],
    ids=str,
)
def test_what_a_newer_or_odd_server_shows_is_ignored_or_understood(shown):
    client = Session("client", dialects=BOTH)
    told = Recorder(client)
    client.open()
    body = json.dumps({"t": 0, "d": {"id": "x", "interphone": shown}}).encode()

    client.receive(tag(len(body)) + body, told.reactions)

    assert client.interphone
    assert client.native is (shown.get("dialect") == "native")


def test_compression_and_messagepack_are_not_granted_in_native():
    ends = Ends(compress=True, messagepack=True)

    reply = json.loads(ends.reply[2:])

    assert (reply["d"]["compress"], reply["d"]["messagepack"]) == (False, False)
    ends.client.send(ends.client.codec.encode(b"\x00" * 100))
    ends.deliver()
    assert ends.told["server"].take() == [("message", b"\x00" * 100)]


@pytest.mark.parametrize("by", [1, 3, 1 << 20])
def test_values_that_json_lacks_arrive_as_they_are(by):
    ends = Ends()
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    for value in (b"\x00\xff", moment, None, {"a": [b""]}):
        ends.client.send(ends.client.codec.encode(value))
    ends.deliver(by=by)

    assert [event[1] for event in ends.told["server"].take()] == [
        b"\x00\xff",
        moment,
        None,
        {"a": [b""]},
    ]


def test_a_call_and_its_deadline_arrive():
    ends = Ends()
    asked = {"method": "add", "params": [1, 2]}

    ends.client.call(ends.client.codec.encode(asked), "token", timeout=2.5)
    ends.deliver()

    assert ends.told["server"].take() == [("call", 1, asked, 2.5, False)]
    ends.server.respond(1, ends.server.codec.encode(3))
    ends.deliver()
    assert ends.told["client"].take() == [("answered", "token", 3)]


@pytest.mark.parametrize("dialect", [BOTH, ("classic",)])
def test_forgotten_and_overdue_requests_are_cancelled_at_the_other_end(dialect):
    ends = Ends(dialect, dialect)
    codec = ends.client.codec
    forgotten = ends.client.request(codec.encode(1), "a", timeout=5)
    overdue = ends.client.request(codec.encode(2), "b", timeout=5)
    ping = ends.client.ping("c", timeout=5)
    ends.deliver()
    ends.told["server"].take()
    ends.told["client"].take()

    ends.client.forget(forgotten)
    ends.client.tick(5.0, ends.told["client"].reactions)
    ends.deliver()

    assert ends.told["client"].take() == [("failed", "b", RequestTimeout)]
    assert ends.told["server"].take() == [("cancelled", forgotten), ("cancelled", overdue)]
    assert ping is not None


def test_cancel_that_crosses_its_answer_is_harmless():
    ends = Ends()
    nonce = ends.client.request(ends.client.codec.encode(1), "a")
    ends.deliver()
    ends.server.respond(nonce, ends.server.codec.encode("done"))
    ends.client.forget(nonce)

    ends.deliver()

    assert ends.client.counts.late == 1
    assert ends.client.pending == ends.server.pending == 0


def test_cancel_of_nothing_and_of_node_is_ignored():
    ends = Ends()
    ends.client._put(ends.client._dialect.packet(CANCEL, ABSENT, 99))
    ends.deliver()
    assert ends.told["server"].take()[-1] == ("cancelled", 99)

    node = Session("server")
    told = Recorder(node)
    hello = b'{"t":0,"d":{}}'
    node.receive(b"IPC" + tag(len(hello)) + hello, told.reactions)
    node.accept("x")
    node.resume(told.reactions)
    body = b'{"t":8,"n":"1"}'
    node.receive(tag(len(body)) + body, told.reactions)
    assert "cancelled" not in told.names()
    assert node.counts.unknown == 1


def test_publications_reach_a_subscriber_in_native():
    ends = Ends()
    ends.client.subscribe(["a"], "token")
    ends.deliver()
    assert ends.told["server"].take() == [("subscribe", 1, ["a"])]

    ends.server.deliver(ends.server.publication("a", ends.server.codec.encode(b"\x01")))
    ends.deliver()

    assert ends.told["client"].take() == [("publication", "a", b"\x01")]


def test_failure_with_facts_arrives():
    ends = Ends()
    nonce = ends.client.request(ends.client.codec.encode(1), "a")
    ends.deliver()

    ends.server.fail(nonce, Failure("failed", "no", "KeyError", {"left": b"\x00"}))
    ends.deliver()

    (error,) = ends.told["client"].errors
    assert (error.kind, error.message, error.data) == ("KeyError", "no", {"left": b"\x00"})


@pytest.mark.parametrize(
    "body", [b"", b"\xc0", b"\x80", b"\x91\xa1x", b"\x93\x01\xc0", b"\x90", b"\x92\x01\xc0\xc0"]
)
def test_unreadable_native_frame_ends_the_connection(body):
    ends = Ends()

    ends.server.receive(tag(len(body)) + body, ends.told["server"].reactions)

    (event,) = ends.told["server"].take()
    assert event[0] == "violated"
    assert isinstance(ends.server.error, RemoteProtocolError)


@given(
    st.integers(1, 6),
    st.integers(0, 2**64 - 1),
    st.recursive(st.none() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(), st.lists),
    st.sampled_from([None, "sub", "call"]),
    st.none() | st.dictionaries(st.text(max_size=3), st.integers(0, 9), min_size=1),
)
def test_what_native_writes_it_reads(kind, nonce, value, mark, options):
    native = Native(MessagePack())

    body = native.packet(kind, native.codec.encode(value), nonce, mark=mark, options=options)
    packet = native.read(body)

    assert packet is not None
    assert (packet.t, packet.n, packet.k) == (kind, nonce, mark)
    assert native.codec.decode(packet.d) == value
    assert (native.codec.decode(packet.o) if packet.o else None) == options


def test_elements_at_the_end_may_be_absent_and_more_are_ignored():
    native = Native(MessagePack())

    short = native.read(msgspec.msgpack.encode([RESPONSE, 7]))
    long = native.read(msgspec.msgpack.encode([RESPONSE, 7, 1, None, None, None, "later", 9]))

    assert short is not None
    assert not short.d
    assert long is not None
    assert native.codec.decode(long.d) == 1


# Failures


DECLARED = Failure("declared", kind="Lent", data={"days": 3}, notes=("a",))
DECLARED_BYTES = bytes.fromhex(
    "b6 96 03 07 d4 00 00 c0 84 a4 63 6f 64 65 a8 64 65 63 6c 61 72 65 64 a4 6b 69 6e 64 a4"
    "4c 65 6e 74 a4 64 61 74 61 81 a4 64 61 79 73 03 a5 6e 6f 74 65 73 91 a1 61 c0"
)


def test_declared_failure_is_the_bytes_of_wire_md():
    page = (Path(__file__).parents[2] / "docs/reference/wire.md").read_text("utf-8")
    body = Native(MessagePack()).packet(RESPONSE, ABSENT, 7, failure=DECLARED)

    assert tag(len(body)) + body == DECLARED_BYTES
    assert DECLARED_BYTES.hex(" ") in page
    packet = Native(MessagePack()).read(body)
    assert packet is not None
    assert read_failure(packet.e) == DECLARED


@pytest.mark.parametrize("dialects", [BOTH, ("classic",)])
def test_failure_has_its_new_members_only_where_the_other_end_knows_them(dialects):
    told = Failure("declared", "m", "Lent", {"days": 3}, ("a",), "Traceback …")
    for knows in (True, False):
        ends = Ends(dialects, dialects)
        if not knows:
            ends.server.can = frozenset()
        ends.client.request(ends.client.codec.encode(1), "token")
        ends.deliver()
        ((_, nonce, _),) = ends.told["server"].take()
        ends.server.fail(nonce, told)
        ends.deliver()

        (error,) = ends.told["client"].errors
        assert isinstance(error, RemoteError)
        assert (error.kind, error.message, error.data) == ("Lent", "m", {"days": 3})
        assert error.declared is knows
        assert error.notes == (("a",) if knows else ())
        assert error.traceback == ("Traceback …" if knows else None)
