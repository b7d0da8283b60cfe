"""Streams between two Sessions: every order in which things can happen, and who breaks rules."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from interphone.errors import (
    ConnectionLost,
    LocalProtocolError,
    MessageTooBig,
    Overloaded,
    RemoteError,
    RemoteProtocolError,
    RequestTimeout,
)
from interphone.limits import Limits
from interphone.protocol.dialects import Native
from interphone.protocol.messages import (
    CANCEL,
    DEMAND,
    GRANT,
    INPUT,
    ITEM,
    OPEN,
    PROGRESS,
    REQUEST,
    RESPONSE,
    Failure,
)
from interphone.protocol.payload import ABSENT, MessagePack
from interphone.protocol.wire import tag
from support.sessions import LoneSession, SessionPair

BOTH = ("native", "classic")
either = pytest.mark.parametrize("dialects", [BOTH, ("classic",)], ids=["native", "classic"])


def pair(**options: Any) -> SessionPair:
    return SessionPair(**{"dialects": BOTH, **options}).open()


def begin(ends: SessionPair, *, window: int = 4) -> Any:
    """Open a stream of the client; return its nonce."""
    nonce = ends.say("client", "open_stream", "asked", "token", window=window)
    assert ends.deliver() == [("open", nonce, "asked", None, False)]
    return nonce


def item(ends: SessionPair, nonce: Any, value: Any) -> bool:
    return ends.server.streams.item(nonce, ends.server.codec.encode(value))


def question(ends: SessionPair, nonce: Any, value: Any) -> bool:
    return ends.client.streams.question(nonce, ends.client.codec.encode(value))


def hostile(ends: SessionPair, kind: int, nonce: Any, value: Any = ABSENT, **how: Any) -> Any:
    """Let the server's session be told something by a client that knows no rules."""
    native = Native(MessagePack())
    payload = value if value is ABSENT else native.codec.encode(value)
    body = native.packet(kind, payload, nonce, **how)
    seen = ends.seen["server"]
    ends.server.receive(tag(len(body)) + body, seen.reactions)
    return seen.take()


@either
def test_items_are_told_in_order_and_the_answer_ends_them(dialects):
    ends = pair(dialects=dialects)
    nonce = begin(ends)

    for value in (1, None, "x"):
        assert item(ends, nonce, value)
    ends.say("server", "respond", nonce, "end")

    assert ends.byte_by_byte() == [
        ("item", "token", 1),
        ("item", "token", None),
        ("item", "token", "x"),
        ("answered", "token", "end"),
    ]
    assert not ends.client.streams.asked
    assert not ends.server.streams.served
    assert ends.client.pending == 0


@either
def test_nothing_is_sent_without_credit_and_credit_is_told(dialects):
    ends = pair(dialects=dialects)
    nonce = begin(ends, window=2)

    sent = [item(ends, nonce, number) for number in range(3)]
    ends.deliver()
    ends.client.streams.taken(nonce, 1)

    assert sent == [True, True, False]
    assert ends.deliver() == [("granted", nonce)]
    assert item(ends, nonce, 3)
    assert not item(ends, nonce, 4)


@either
def test_questions_wait_for_the_demand(dialects):
    ends = pair(dialects=dialects)
    nonce = begin(ends)

    assert not question(ends, nonce, 1)
    ends.server.streams.demand(nonce, 2)
    assert ends.deliver() == [("demanded", "token")]
    assert [question(ends, nonce, n) for n in range(3)] == [True, True, False]
    assert ends.deliver() == [("input", nonce, 0), ("input", nonce, 1)]
    ends.server.streams.used(nonce, 1)
    assert ends.deliver() == [("demanded", "token")]
    ends.client.streams.finish(nonce)
    ends.client.streams.finish(nonce)
    assert ends.deliver() == [("input", nonce, ABSENT)]
    ends.server.streams.used(nonce, 1)  # nobody is asked for more
    assert ends.deliver() == []


@either
def test_both_ends_may_have_streams_of_the_same_nonce(dialects):
    ends = pair(dialects=dialects)
    ours = begin(ends)
    theirs = ends.say("server", "open_stream", "back", "other", window=1)
    ends.deliver()
    assert ours == theirs

    assert item(ends, ours, "down")
    assert ends.client.streams.item(theirs, ends.client.codec.encode("up"))

    assert sorted(ends.deliver()) == [("item", "other", "up"), ("item", "token", "down")]


def test_every_order_of_an_end_and_what_crosses_it_is_harmless():
    def item_(ends: SessionPair, nonce: Any) -> None:
        item(ends, nonce, 1)

    def answer(ends: SessionPair, nonce: Any) -> None:
        ends.say("server", "respond", nonce, "done")

    def demand(ends: SessionPair, nonce: Any) -> None:
        ends.server.streams.demand(nonce, 4)

    def forget(ends: SessionPair, nonce: Any) -> None:
        ends.client.forget(nonce)

    def take(ends: SessionPair, nonce: Any) -> None:
        ends.client.streams.taken(nonce, 1)

    def finish(ends: SessionPair, nonce: Any) -> None:
        ends.client.streams.finish(nonce)

    def carry(ends: SessionPair, nonce: Any) -> None:
        ends.deliver()

    steps = [item_, answer, demand, forget, take, finish, carry]
    for order in itertools.permutations(steps):
        ends = pair()
        nonce = begin(ends, window=2)
        item(ends, nonce, 0)
        ends.deliver()
        for step in order:
            step(ends, nonce)
        ends.deliver()
        for event in ends.seen["server"].events:
            if event[0] == "cancelled" and ends.server.streams.served:
                ends.server.fail(nonce, Failure("cancelled"))
        ends.deliver()
        names = [*ends.seen["client"].names(), *ends.seen["server"].names()]
        assert "violated" not in names, [step.__name__ for step in order]
        assert ends.client.pending == 0
        assert not ends.client.streams.asked
        assert not ends.server.streams.served
        settled = ends.seen["client"].names()
        forgotten = ends.seen["server"].names()["cancelled"]
        assert settled["answered"] + settled["failed"] + forgotten >= 1
        assert settled["answered"] + settled["failed"] <= 1


def test_item_that_is_too_big_costs_nothing():
    ends = pair(limits=Limits(max_frame=1000))
    nonce = begin(ends, window=1)

    with pytest.raises(MessageTooBig):
        item(ends, nonce, "x" * 2000)

    assert item(ends, nonce, "x")


def test_stream_that_is_too_big_to_open_was_never_asked():
    ends = pair(limits=Limits(max_frame=1000))

    with pytest.raises(MessageTooBig):
        ends.say("client", "open_stream", "x" * 2000, "token", window=1)

    assert ends.client.pending == 0
    assert not ends.client.streams.asked


@pytest.mark.parametrize("end", ["timeout", "lose", "drain", "failure", "forget"])
def test_stream_is_settled_once_however_it_ends(end):
    ends = pair()
    nonce = ends.say("client", "open_stream", "asked", "token", window=2, timeout=5.0)
    ends.deliver()
    item(ends, nonce, 1)
    ends.deliver()

    if end == "timeout":
        told = ends.tick(5.0)
        assert told == [("failed", "token", RequestTimeout)]
        assert ends.deliver() == [("cancelled", nonce)]
    elif end == "lose":
        assert ("failed", "token", ConnectionLost) in ends.cut()
    elif end == "drain":
        ends.client.drain("bye", ends.seen["client"].reactions)
        assert ends.seen["client"].take()[0][:2] == ("failed", "token")
    elif end == "failure":
        ends.server.fail(nonce, Failure("failed", "no", "KeyError"))
        assert ends.deliver() == [("failed", "token", RemoteError)]
    else:
        ends.client.forget(nonce)
        assert ends.deliver() == [("cancelled", nonce)]

    assert not ends.client.streams.asked
    assert not ends.client.streams.question(nonce, b"\x01")
    ends.client.streams.taken(nonce, 1)
    ends.client.streams.finish(nonce)
    assert ends.client.data_to_send() == b""


def test_pieces_for_nobody_are_counted():
    ends = pair()
    nonce = begin(ends)
    ends.server.streams.demand(nonce, 2)
    ends.deliver()
    item(ends, nonce, 1)
    ends.client.forget(nonce)
    ends.deliver()
    assert ends.client.counts.late == 1

    nonce = ends.say("client", "open_stream", "asked", "token", window=2)
    ends.deliver()
    ends.server.streams.demand(nonce, 2)
    ends.deliver()
    question(ends, nonce, 1)
    ends.say("server", "respond", nonce, 1)
    ends.deliver()
    assert ends.server.counts.late == 1


def test_answer_to_what_was_cancelled_is_not_counted_as_late():
    ends = pair()
    nonce = begin(ends)
    ends.client.forget(nonce)
    ends.deliver()
    ends.server.fail(nonce, Failure("cancelled"))
    ends.deliver()

    assert ends.client.counts.late == 0


def test_more_streams_than_the_limit_are_overloaded():
    ends = pair(limits=Limits(max_streams=2))
    for number in range(3):
        ends.say("client", "open_stream", number, number, window=1)

    assert [event[:2] for event in ends.deliver()] == [("open", 1), ("open", 2), ("failed", 2)]
    (error,) = ends.seen["client"].errors
    assert isinstance(error, Overloaded)


def test_streams_are_limited_by_their_bytes_too():
    ends = pair(limits=Limits(max_held=1000))
    for number in range(2):
        ends.say("client", "open_stream", "x" * 2000, number, window=1)

    assert [event[0] for event in ends.deliver()] == ["open", "failed"]
    ends.say("server", "respond", 1, None)
    ends.deliver()
    ends.say("client", "open_stream", "x" * 2000, 3, window=1)
    assert [event[0] for event in ends.deliver()] == ["open"]


def test_stream_at_a_closing_end_is_turned_away():
    ends = pair()
    ends.server.drain("bye", ends.seen["server"].reactions)
    ends.say("client", "open_stream", "asked", "token", window=1)

    (event,) = ends.deliver()

    assert event[:2] == ("failed", "token")
    assert ends.seen["client"].errors[0].delivery == "not_sent"


def test_progress_reaches_the_call_it_is_about_as_long_as_it_waits():
    ends = pair()
    nonce = ends.say("client", "call", {"method": "a"}, "token", progress=True)
    assert ends.deliver() == [("call", nonce, {"method": "a"}, None, True)]

    ends.server.report_progress(nonce, ends.server.codec.encode(0.5))
    assert ends.deliver() == [("progress", "token", 0.5)]
    ends.say("server", "respond", nonce, "done")
    ends.server.report_progress(nonce, ends.server.codec.encode(0.6))
    assert ends.deliver() == [("answered", "token", "done")]
    assert ends.client.counts.late == 1


# Who knows no rules


@pytest.mark.parametrize(
    ("kind", "nonce", "value", "options"),
    [
        (ITEM, [], 1, None),
        (ITEM, None, 1, None),
        (GRANT, "1", 1, None),
        (OPEN, {}, 1, {"credit": 1}),
        (OPEN, 5, 1, None),
        (OPEN, 5, 1, {"credit": 0}),
        (OPEN, 5, 1, {"credit": "many"}),
        (OPEN, 5, 1, {"credit": 2**40}),
        (OPEN, 1, 1, {"credit": 1}),
        (INPUT, 1, 1, None),
        (GRANT, 1, 1, None),
        (GRANT, 1, "x", None),
        (GRANT, 1, ABSENT, None),
        (GRANT, 1, -1, None),
        (REQUEST, [], 1, None),
        (REQUEST, None, 1, None),
        (PROGRESS, [], 1, None),
        (DEMAND, [], 1, None),
    ],
    ids=str,
)
def test_packet_against_the_rules_ends_the_connection(kind, nonce, value, options):
    ends = pair()
    begin(ends)

    (event,) = hostile(ends, kind, nonce, value, options=options)

    assert event == ("violated", RemoteProtocolError)


@pytest.mark.parametrize("kind", [ITEM, GRANT, INPUT, DEMAND, PROGRESS, CANCEL, RESPONSE])
def test_packet_for_nothing_is_ignored(kind):
    ends = pair()

    told = hostile(ends, kind, 77, 1)

    assert [event[0] for event in told] in ([], ["cancelled"])


def test_item_beyond_the_credit_ends_the_connection():
    ends = pair()
    ends.say("server", "open_stream", "asked", "token", window=2)
    ends.deliver()
    assert hostile(ends, ITEM, 1, 1) == [("item", "token", 1)]
    assert hostile(ends, ITEM, 1, 1) == [("item", "token", 1)]

    told = hostile(ends, ITEM, 1, 1)

    assert told[-1] == ("violated", RemoteProtocolError)


def test_input_behind_its_end_ends_the_connection():
    ends = pair()
    nonce = begin(ends)
    ends.server.streams.demand(nonce, 4)
    assert hostile(ends, INPUT, nonce) == [("input", nonce, ABSENT)]

    assert hostile(ends, INPUT, nonce, 1) == [("violated", RemoteProtocolError)]


@pytest.mark.parametrize("limits", [Limits(max_inflight=2), Limits(max_held=50)])
def test_request_beyond_the_credit_ends_the_connection(limits):
    ends = pair(limits=limits)
    names = []
    for nonce in range(1, 20):
        names += [event[0] for event in hostile(ends, REQUEST, nonce, "x" * 20)]

    assert names == ["request", "request", "violated"]


def test_request_of_a_nonce_under_way_ends_the_connection():
    ends = pair()
    hostile(ends, REQUEST, 1, 1)

    assert hostile(ends, REQUEST, 1, 1) == [("violated", RemoteProtocolError)]


def test_node_knows_no_streams():
    node = LoneSession("server").open()

    for kind in (OPEN, ITEM, GRANT, INPUT, DEMAND, PROGRESS):
        assert node.feed({"t": kind, "n": "1", "d": 1, "o": {"credit": 1}}) == []

    assert node.session.counts.unknown == 6
    assert node.sent() == []


@pytest.mark.parametrize(
    "credit",
    [None, 5, [], {}, {"requests": 0, "bytes": 1}, {"requests": 1}, {"requests": "1", "bytes": 2}],
    ids=str,
)
def test_end_that_tells_no_credit_is_sent_everything(credit):
    identity = {"version": 1, "dialects": ["classic"], "credit": credit}
    lone = LoneSession("client").open(interphone=identity)

    assert lone.session.credit is None
    for number in range(2000):
        lone.session.request(b"1", number)
    assert len(lone.sent()) == 2000


def test_nothing_can_be_streamed_before_it_is_open():
    with pytest.raises(LocalProtocolError):
        SessionPair().client.open_stream(b"1", "token", window=1)


def test_vectors_of_wire_md():
    native = Native(MessagePack())
    packets = {
        native.packet(OPEN, native.codec.encode({"method": "m"}), 7, options={"credit": 2}),
        native.packet(ITEM, native.codec.encode("a"), 7),
        native.packet(INPUT, ABSENT, 7),
    }

    assert {msgspec.msgpack.decode(packet, type=list)[0] for packet in packets} == {9, 10, 12}


@pytest.mark.parametrize("how", ["cancelled", "overdue"])
def test_what_waits_behind_a_held_request_that_is_withdrawn_goes_on(how):
    ends = pair(limits=Limits(max_inflight=5, max_held=200))
    for text, timeout in (("x" * 60, None), ("y" * 180, 1.0), ("z", None)):
        last = ends.say("client", "request", text, text[0], timeout=timeout)
        if text[0] == "y":
            large = last
    assert [event[2] for event in ends.deliver()] == ["x" * 60]

    if how == "cancelled":
        ends.client.forget(large)
    else:
        assert ends.tick(2.0) == [("failed", "y", RequestTimeout)]
    assert [event[2] for event in ends.deliver()] == ["z"]
