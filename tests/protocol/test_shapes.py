"""What two ends that can do "topics" say of subscriptions and publications."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from interphone.errors import ConnectionLost, PayloadError, RemoteProtocolError, Unsupported
from interphone.protocol.payload import ABSENT, Codec, Json, MessagePack
from interphone.protocol.shapes import (
    Marks,
    Posting,
    Terms,
    allowed,
    enveloped,
    missed,
    options_of,
    published,
    told,
    wanted,
)
from interphone.protocol.states import State
from support.sessions import LoneSession, SessionPair

OURS = {"version": 1, "dialects": ["classic"], "can": ["topics"]}
OLDER = {"version": 1, "dialects": ["classic"]}

FLAVOURS: dict[str, dict[str, Any]] = {
    "classic": {},
    "messagepack": {"messagepack": True},
    "native": {"dialects": ("native", "classic")},
}
flavours = pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS)


def lone(role: Any, shown: Any = OURS) -> LoneSession:
    return LoneSession(role).open(**({} if shown is None else {"interphone": shown}))


# Options


@flavours
def test_terms_of_a_subscription_arrive(flavour: dict[str, Any]) -> None:
    pair = SessionPair(**flavour).open()
    terms = Terms(7, "workers", (3, 0))

    pair.say("client", "subscribe", ["a.*", ">"], "token", terms=terms)
    pair.say("client", "unsubscribe", [">"], "token", terms=Terms(7))

    sub, unsub = pair.deliver()
    assert (sub[0], *sub[2:]) == (
        "subscribe",
        ["a.*", ">"],
        {"id": 7, "group": "workers", "credit": (3, 0)},
    )
    assert (unsub[0], *unsub[2:]) == ("unsubscribe", [">"], {"id": 7})


@flavours
def test_how_a_publication_is_meant_arrives(flavour: dict[str, Any]) -> None:
    pair = SessionPair(**flavour).open()
    posting = Posting(ack="delivered", retain=True, deadline=1.5)

    pair.say("client", "ask_to_publish", "a", None, "token", posting=posting)
    pair.say("client", "ask_to_forget", "a", "token")

    publish, forget = pair.deliver()
    said = {"ack": "delivered", "retain": True, "deadline": 1.5}
    assert (publish[0], *publish[2:]) == ("publish", "a", None, said)
    assert (forget[0], *forget[2:]) == ("forget", "a")


@flavours
def test_marks_of_a_publication_arrive(flavour: dict[str, Any]) -> None:
    pair = SessionPair(**flavour).open()
    value = pair.server.codec.encode([1])

    pair.server.deliver(pair.server.publication("a", value, None, Marks((1, 300), True)))
    pair.server.deliver(pair.server.publication("a", value))

    assert pair.deliver() == [
        ("publication", "a", [1], {"to": (1, 300), "retained": True}),
        ("publication", "a", [1]),
    ]


@flavours
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_credit_and_misses_arrive(flavour: dict[str, Any], chunk_size: int | None) -> None:
    pair = SessionPair(**flavour).open()

    pair.client.allow(3, 10, 2**40)
    pair.server.miss(300, 2, "a.b")

    assert pair.deliver(chunk_size) == [("allowed", 3, 10, 2**40), ("missed", 300, 2, "a.b")]


def test_packets_look_so() -> None:
    client, server = lone("client"), lone("server")

    client.session.subscribe(["a"], "token", terms=Terms(1))
    client.session.ask_to_forget("a", "token")
    client.session.allow(1, 2, 3)
    server.session.miss(1, 2, "a")

    assert client.sent() == [
        {"t": 2, "d": {"sub": "a"}, "n": "1", "k": "sub", "o": {"id": 1}},
        {"t": 2, "d": "a", "n": "2", "k": "forget"},
        {"t": 20, "d": [2, 3], "n": 1},
    ]
    assert server.sent() == [{"t": 21, "d": [2, "a"], "n": 1}]


@pytest.mark.parametrize(
    "packet",
    [
        {"d": {"sub": "a"}, "k": "sub", "o": {"id": -1}},
        {"d": {"sub": "a"}, "k": "sub", "o": {"group": 1}},
        {"d": {"sub": "a"}, "k": "sub", "o": {"credit": [1]}},
        {"d": {"sub": "a"}, "k": "sub", "o": {"credit": [1, -1]}},
        {"d": {"unsub": "a"}, "k": "unsub", "o": "x"},
        {"d": {"pub": "a"}, "k": "pub", "o": {"ack": "processed"}},
        {"d": {"pub": "a"}, "k": "pub", "o": {"deadline": 0}},
        {"d": 1, "k": "forget"},
        {"k": "forget"},
    ],
    ids=str,
)
def test_options_that_cannot_be_read_are_refused(packet: Any) -> None:
    server = lone("server")

    assert server.feed({"t": 2, "n": "1", **packet}) == []

    (answer,) = server.sent()
    assert (answer["n"], answer["e"]["code"]) == ("1", "invalid")


def test_options_nobody_knows_are_ignored() -> None:
    server = lone("server")

    told = server.feed(
        {"t": 2, "d": {"sub": "a"}, "n": "1", "k": "sub", "o": {"id": 1, "later": [1]}}
    )

    assert told == [("subscribe", "1", ["a"], {"id": 1})]


def test_marks_that_cannot_be_read_are_counted() -> None:
    client = lone("client")

    assert client.feed({"t": 1, "d": {"pub": "a"}, "k": "pub", "o": {"to": [0]}}) == []
    assert client.session.counts.unknown == 1


def test_unreadable_options() -> None:
    def read(codec: Codec, shown: bytes) -> Terms | None:
        return options_of(codec, Terms, msgspec.Raw(shown))

    for nothing in (b"", b"null"):
        assert read(Json(), nothing) == Terms()
    for nothing in (b"", b"\xc0", b"\xd4\x00\x00"):  # the last is msgpackr's undefined
        assert read(MessagePack(), nothing) == Terms()
    for bad in (b'{"id":1180591620717411303424}', b"[]", b"7", b'{"id":"\xff"}'):
        assert read(Json(), bad) is None
    for bad in (b"\x82\x01\x02\xc4\x02id\x03", b"\x90", b"\x81\xa2id\xff"):
        assert read(MessagePack(), bad) is None


# Packets about one subscription


@pytest.mark.parametrize(
    ("role", "packet"),
    [
        ("server", {"t": 20, "n": 1, "d": [1, -1]}),
        ("server", {"t": 20, "n": 1, "d": [1]}),
        ("server", {"t": 20, "n": 1}),
        ("server", {"t": 20, "d": [1, 1]}),
        ("server", {"t": 20, "n": "1", "d": [1, 1]}),
        ("server", {"t": 20, "n": True, "d": [1, 1]}),
        ("server", {"t": 20, "n": 0, "d": [1, 1]}),
        ("client", {"t": 21, "n": 1, "d": [0, "a"]}),
        ("client", {"t": 21, "n": 1, "d": [1, 1]}),
        ("client", {"t": 21, "n": -1, "d": [1, "a"]}),
    ],
    ids=str,
)
def test_packet_that_is_none_ends_the_connection(role: Any, packet: Any) -> None:
    end = lone(role)

    assert end.feed(packet, {"t": 1}) == [("violated", RemoteProtocolError)]
    assert end.session.state is State.CLOSED


@pytest.mark.parametrize("shown", [None, OLDER], ids=["node", "older"])
@pytest.mark.parametrize(
    ("role", "packet"),
    [
        ("server", {"t": 20, "n": 1, "d": [1, 1]}),
        ("server", {"t": 20, "n": "x"}),
        ("client", {"t": 21, "n": 1, "d": [1, "a"]}),
    ],
    ids=str,
)
def test_packet_of_an_end_without_topics_is_unknown(role: Any, packet: Any, shown: Any) -> None:
    end = lone(role, shown)

    assert end.feed(packet) == []
    assert end.session.counts.unknown == 1
    assert end.session.state is State.OPEN


@pytest.mark.parametrize(("role", "kind"), [("client", 20), ("server", 21)])
def test_packet_to_the_wrong_end_is_unknown(role: Any, kind: int) -> None:
    end = lone(role)

    assert end.feed({"t": kind, "n": 1, "d": [1, 1]}) == []
    assert end.session.counts.unknown == 1


@pytest.mark.parametrize("codec", [Json(), MessagePack()], ids=["json", "msgpack"])
def test_pairs_are_read_in_either_codec(codec: Any) -> None:
    assert allowed(codec, msgspec.Raw(codec.encode((0, 5)))) == (0, 5)
    assert missed(codec, msgspec.Raw(codec.encode((1, "a")))) == (1, "a")
    assert allowed(codec, ABSENT) is None
    assert missed(codec, msgspec.Raw(codec.encode(None))) is None


# Who does not know of it


@pytest.mark.parametrize("shown", [None, OLDER], ids=["node", "older"])
@pytest.mark.parametrize(
    ("verb", "args", "how"),
    [
        ("subscribe", (["a", "a.*"], "token"), {}),
        ("subscribe", (["a"], "token"), {"terms": Terms(1)}),
        ("subscribe", (["a"], "token"), {"terms": Terms(group="g")}),
        ("unsubscribe", (["a"], "token"), {"terms": Terms(1)}),
        ("ask_to_publish", ("a", b"1", "token"), {"posting": Posting(retain=True)}),
        ("ask_to_publish", ("a", b"1", "token"), {"posting": Posting(ack="delivered")}),
        ("ask_to_forget", ("a", "token"), {}),
        ("allow", (1, 1, 1), {}),
    ],
    ids=str,
)
def test_end_without_topics_is_told_nothing_of_it(
    shown: Any, verb: str, args: Any, how: Any
) -> None:
    client = lone("client", shown)

    with pytest.raises(Unsupported) as raised:
        getattr(client.session, verb)(*args, **how)

    assert raised.value.delivery == "not_sent"
    assert client.session.queued == client.session.pending == 0


def test_options_of_an_end_without_topics_mean_nothing() -> None:
    server, client = lone("server", OLDER), lone("client", OLDER)

    assert server.feed({"t": 2, "d": {"sub": "a"}, "n": "1", "k": "sub", "o": {"id": -1}}) == [
        ("subscribe", "1", ["a"])
    ]
    assert server.feed({"t": 2, "d": "a", "n": "2", "k": "forget"}) == []
    assert server.sent()[0]["e"]["code"] == "unsupported"
    assert client.feed({"t": 1, "d": {"pub": "a"}, "k": "pub", "o": {"to": [0]}}) == [
        ("publication", "a", ABSENT)
    ]


def test_verbs_need_an_open_connection() -> None:
    client = lone("client")
    client.lose()

    with pytest.raises(ConnectionLost):
        client.session.allow(1, 1, 1)


def test_topic_that_is_no_unicode_is_refused() -> None:
    pair = SessionPair().open()

    with pytest.raises(PayloadError):
        pair.client.ask_to_forget("\ud800", "token")
    assert pair.client.pending == 0


# What is read out of a payload


def raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"pub":"a","message":1}', ("a", b"1")),
        ('{"pub":"a"}', ("a", b"")),
        ('{"pub":""}', None),
        ('{"pub":7}', None),
        ('{"message":1}', None),
        ('["pub"]', None),
        ('"pub"', None),
        ('{"pub":nonsense}', None),
    ],
)
def test_publication_is_read(text: str, found: Any) -> None:
    shape = published(Json(), raw(text))

    assert (shape and (shape.topic, bytes(shape.value))) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"sub":"a"}', ("sub", ["a"])),
        ('{"unsub":["a","b"]}', ("unsub", ["a", "b"])),
        ('{"sub":["a",""]}', None),
        ('{"sub":7}', None),
        ('{"sub":"a","more":1}', None),
        ("7", None),
    ],
)
def test_subscription_is_read(text: str, found: Any) -> None:
    assert wanted(Json(), raw(text)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"jsonrpc":"2.0","method":"m"}', ("m", b"", b"", ABSENT)),
        ('{"jsonrpc":"2.0","method":"m","params":[1],"id":7}', ("m", b"[1]", b"", 7)),
        ('{"jsonrpc":"2.0","method":"m","params":{"a":1}}', ("m", b"", b'{"a":1}', ABSENT)),
        ('{"jsonrpc":"1.0","method":"m"}', None),
        ('{"jsonrpc":"2.0","method":7}', None),
        ('"jsonrpc"', None),
        ("1", None),
    ],
)
def test_envelope_is_read(text: str, found: Any) -> None:
    envelope = enveloped(Json(), raw(text))

    assert (envelope and (envelope[0], *map(bytes, envelope[1:3]), envelope.id)) == found


def test_answer_to_an_envelope_has_its_id() -> None:
    with_id = enveloped(Json(), raw('{"jsonrpc":"2.0","method":"m","id":7}'))
    without = enveloped(Json(), raw('{"jsonrpc":"2.0","method":"m"}'))

    assert with_id is not None
    assert without is not None
    assert with_id.result(1) == {"jsonrpc": "2.0", "result": 1, "id": 7}
    assert without.result(1) == {"jsonrpc": "2.0", "result": 1}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"pub":"a","message":1}', ("a", b"1")),
        ('{"message":null,"pub":"a","more":2}', ("a", b"null")),
        ('{"pub":"a"}', ("a", b"")),
        ('{"pub":""}', None),
        ('{"pub":7}', None),
        ('{"message":7}', None),
        ("7", None),
    ],
)
def test_publication_of_one_of_us_is_read(text: str, found: Any) -> None:
    shape = told(Json(), raw(text))

    assert (shape and (shape.topic, bytes(shape.value))) == found
