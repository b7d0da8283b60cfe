from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone.errors import PayloadError
from interphone.protocol.dialects import ClassicJson, ClassicMessagePack, Dialect, Native
from interphone.protocol.messages import END, MESSAGE, PONG, REQUEST, RESPONSE, Failure
from interphone.protocol.payload import ABSENT, UNDEFINED, Json, MessagePack
from interphone.protocol.wire import LARGE, Bulk

STRICT, LENIENT = ClassicJson(Json()), ClassicJson(Json(lenient=True))
STRICT_PACK = ClassicMessagePack(MessagePack())
LENIENT_PACK = ClassicMessagePack(MessagePack(lenient=True))
NATIVE = Native(MessagePack())
DIALECTS = [
    pytest.param(STRICT, id="json"),
    pytest.param(LENIENT, id="json lenient"),
    pytest.param(STRICT_PACK, id="msgpack"),
    pytest.param(LENIENT_PACK, id="msgpack lenient"),
]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 99)
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("tdnx"), inner),
    max_leaves=6,
)


def shown(dialect: Dialect, body: bytes) -> list[Any]:
    """What a body says: type, payload, nonce, kind, failure."""
    packet = dialect.read(body)
    assert packet is not None
    payload = dialect.codec.decode(packet.d) if packet.d else "absent"
    return [packet.t, payload, packet.n, packet.k, packet.e]


def packed(**keys: Any) -> bytes:
    return msgspec.msgpack.encode(keys)


# What is written is read


@pytest.mark.parametrize("dialect", DIALECTS)
@given(kind=st.integers(0, 7), value=values, nonce=st.text('az0"\\é', max_size=3))
def test_packet_comes_back(dialect: Dialect, kind: int, value: Any, nonce: str) -> None:
    body = dialect.packet(kind, dialect.codec.encode(value), nonce)

    assert shown(dialect, body) == [kind, value, nonce or None, None, None]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_packet_may_have_everything(dialect: Dialect) -> None:
    failure = Failure("failed", "why")

    body = dialect.packet(REQUEST, ABSENT, "1", mark="sub", failure=failure)

    assert shown(dialect, body) == [2, "absent", "1", "sub", {"code": "failed", "message": "why"}]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_null_is_told_from_absent(dialect: Dialect) -> None:
    null = dialect.packet(MESSAGE, dialect.codec.encode(None))

    assert shown(dialect, null)[1] is None
    assert shown(dialect, dialect.packet(MESSAGE, ABSENT))[1] == "absent"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("nonce", [None, 0, "", False])
def test_falsy_nonce_is_left_out(dialect: Dialect, nonce: Any) -> None:
    assert dialect.packet(PONG, ABSENT, nonce) == dialect.packet(PONG, ABSENT)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("nonce", [7, 1.5, "a", 'q"', "é", {"x": [1]}, ["y"], True])
def test_nonce_of_any_kind_is_echoed(dialect: Dialect, nonce: Any) -> None:
    body = dialect.response(dialect.codec.encode("v"), nonce)

    assert shown(dialect, body) == [RESPONSE, "v", nonce, None, None]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_short_ways_write_the_same_as_the_long_one(dialect: Dialect) -> None:
    value = dialect.codec.encode({"a": 1})

    assert dialect.message(value) == dialect.packet(MESSAGE, value)
    assert dialect.request(value, "12") == dialect.packet(REQUEST, value, "12")
    assert dialect.response(value, "12") == dialect.packet(RESPONSE, value, "12")


@pytest.mark.parametrize("dialect", [*DIALECTS, pytest.param(NATIVE, id="native")])
@pytest.mark.parametrize("options", [b"", "some"])
def test_what_is_large_is_written_the_same_in_pieces(dialect: Dialect, options: Any) -> None:
    told = dialect.codec.encode({"deadline": 1.5}) if options else b""
    if dialect is LENIENT_PACK:
        told = b""  # Node is told no options
    large = dialect.codec.pack(b"x" * LARGE)
    assert isinstance(large, Bulk)
    plain, nonce = bytes(large), 12 if dialect is NATIVE else "12"

    pairs = [
        (dialect.message(large), dialect.message(plain)),
        (dialect.request(large, nonce, told), dialect.request(plain, nonce, told)),
        (dialect.call(large, nonce, told), dialect.call(plain, nonce, told)),
        (dialect.response(large, nonce), dialect.response(plain, nonce)),
        (dialect.response(large, 'q"'), dialect.response(plain, 'q"')),
        (dialect.response(large, None), dialect.response(plain, None)),
        (dialect.packet(RESPONSE, large, nonce), dialect.packet(RESPONSE, plain, nonce)),
    ]

    for written, expected in pairs:
        assert len(written) == len(expected)
        assert bytes(written) == expected


@pytest.mark.parametrize("dialect", DIALECTS)
def test_publication_is_an_object_around_the_payload(dialect: Dialect) -> None:
    value = dialect.codec.encode([1])

    assert dialect.codec.decode(dialect.publication("t", value)) == {"pub": "t", "message": [1]}
    assert dialect.codec.decode(dialect.publication("t", ABSENT)) == {"pub": "t"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_publication_counts_as_a_level_of_depth(dialect: Dialect) -> None:
    deepest, deeper = (dialect.codec.encode(nested(depth)) for depth in (63, 64))

    body = dialect.packet(MESSAGE, dialect.publication("t", deepest))

    assert shown(dialect, body)[1] == {"pub": "t", "message": nested(63)}
    with pytest.raises(PayloadError, match="deeper than 64"):
        dialect.publication("t", deeper)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# What comes from elsewhere


@pytest.mark.parametrize("dialect", DIALECTS)
def test_unknown_keys_are_ignored(dialect: Dialect) -> None:
    written = {"x": 1, "t": 1, "d": 2, "later": {"t": 9}}
    body = (
        packed(**written)
        if dialect in (STRICT_PACK, LENIENT_PACK)
        else json.dumps(written).encode()
    )

    assert shown(dialect, body) == [1, 2, None, None, None]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("depth", [63, 64])
def test_payload_may_nest_so_deeply(dialect: Dialect, depth: int) -> None:
    body = dialect.message(dialect.codec.encode(nested(depth)))

    assert shown(dialect, body)[1] == nested(depth)


@pytest.mark.parametrize("body", [b'{"t":1,"d":' + b"[" * 65 + b"]" * 65 + b"}"])
def test_payload_of_json_that_nests_deeper_is_refused(body: bytes) -> None:
    for dialect in (STRICT, LENIENT):
        with pytest.raises(PayloadError, match="deeper than 64"):
            dialect.read(body)


def test_payload_of_msgpack_that_nests_deeper_is_refused() -> None:
    body = packed(t=1, d=nested(65))

    for dialect in (STRICT_PACK, LENIENT_PACK):
        with pytest.raises(PayloadError, match="deeper than 64"):
            dialect.read(body)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nul", b'{"t":1}x', b'\xef\xbb\xbf{"t":1}', b'{"t":NaN}', b"{'t':1}", b"null"],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    for dialect in (STRICT, LENIENT):
        with pytest.raises(PayloadError):
            dialect.read(body)


@pytest.mark.parametrize(
    "body",
    [
        b"5", b"[]", b'"s"', b"true", b"{}", b'{"d":1}', b'{"t":"1"}', b'{"t":1.5}', b'{"t":true}',
        b'{"t":null}', b'{"t":[1]}', b'{"t":1e400}', b'{"t":-1e400}', b'{"t":1,"t":"1"}',
    ],
)  # fmt: skip
def test_json_that_is_no_packet_is_none_to_node_and_refused_between_ourselves(body: bytes) -> None:
    assert LENIENT.read(body) is None
    with pytest.raises(PayloadError, match="no packet"):
        STRICT.read(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"t":1.0,"d":"x"}', [1, "x", None, None, None]),
        (b'{"t":1e0,"d":"x","n":"n"}', [1, "x", "n", None, None]),
        (b'{"t":10e-1}', [1, "absent", None, None, None]),
        (b'{"t":-0.0,"d":null}', [0, None, None, None, None]),
        (b' { "t" : 1.0 , "d" : [ 1 , 2 ] } ', [1, [1, 2], None, None, None]),
        (b'{"t":1,"d":1,"d":{"d":2},"n":"\\ud800"}', [1, {"d": 2}, "\ud800", None, None]),
        (b'{"t":1,"d":"\\ud800","k":"k","e":1}', [1, "\ud800", None, "k", 1]),
        (b'{"t":1,"d":"\xff"}', [1, "\ufffd", None, None, None]),
        (b'{"t":1,"n":"\xff","d":"\xff"}', [1, "\ufffd", "\ufffd", None, None]),
        (b'{"t":1,"d":1e400,"n":1e400}', [1, float("inf"), float("inf"), None, None]),
        (b'{"t":1,"\\ud800":{"d":3},"d":4}', [1, 4, None, None, None]),
        (
            b'{"t":1,"d":{"a":"\\"}","b":[1,2]},"x":"\\ud800"}',
            [1, {"a": '"}', "b": [1, 2]}, *[None] * 3],
        ),
    ],
)
def test_json_of_node_is_read_leniently(body: bytes, expected: list[Any]) -> None:
    assert shown(LENIENT, body) == expected


def test_absurd_types_are_unknown_ones() -> None:
    for digits in (30, 400, 4000):
        packet = LENIENT.read(b'{"t":%b,"d":"\\ud800"}' % (b"1" * digits))

        assert packet is not None
        assert packet.t > 10**9
    assert LENIENT.read(b'{"t":%b}' % (b"1" * 5000)) is None


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x81", b"\x81\xa1t", b"\x81\xa1t\x01\x01"])
def test_what_is_no_msgpack_is_refused(body: bytes) -> None:
    for dialect in (STRICT_PACK, LENIENT_PACK):
        with pytest.raises(PayloadError):
            dialect.read(body)


@pytest.mark.parametrize("body", [b"\x05", b"\x90", b"\xc0", b"\x80", packed(d=1), packed(t="1")])
def test_msgpack_that_is_no_packet_is_none_to_node(body: bytes) -> None:
    assert LENIENT_PACK.read(body) is None
    with pytest.raises(PayloadError, match="no packet"):
        STRICT_PACK.read(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("82a17401a164d40000", [1, "absent", None, None, None]),
        ("82a17401a164c0", [1, None, None, None, None]),
        ("de0002a17401a164c0", [1, None, None, None, None]),
        ("82a174cb3ff0000000000000a16407", [1, 7, None, None, None]),
        ("82a174ca3f800000a16407", [1, 7, None, None, None]),
        ("83a17401a16407a16ea1ff", [1, 7, "\ufffd", None, None]),
        ("83a17401a164d40000a16ea1ff", [1, "absent", "\ufffd", None, None]),
        ("83a17401a1ff01a164a1ff", [1, "\ufffd", None, None, None]),
        ("82a17401a1ff01", [1, "absent", None, None, None]),
        ("83a17401a164a1ffa16ed40000", [1, "\ufffd", None, None, None]),
        ("83a17401a16407c001", [1, 7, None, None, None]),
    ],
)
def test_msgpack_of_node_is_read_leniently(body: str, expected: list[Any]) -> None:
    assert shown(LENIENT_PACK, bytes.fromhex(body)) == expected


def test_undefined_is_present_in_msgpack() -> None:
    assert UNDEFINED in LENIENT_PACK.packet(MESSAGE, ABSENT)


def test_failure_rides_in_an_end() -> None:
    body = STRICT.packet(END, b'{"a":false}', failure=Failure("full"))

    assert body == b'{"t":6,"d":{"a":false},"e":{"code":"full"}}'


@given(st.binary(max_size=40))
def test_rubbish_is_read_or_refused(body: bytes) -> None:
    for dialect in (STRICT, LENIENT, STRICT_PACK, LENIENT_PACK):
        for start in (b"", b'{"t":1,', b"\x83\xa1t\x01"):
            read_or_refuse(dialect, start + body)


@given(st.integers(0, 60), st.binary(min_size=1, max_size=3))
def test_spoiled_packet_is_read_or_refused(at: int, spoilt: bytes) -> None:
    whole = {"t": 2, "d": {"a": ["x", None]}, "n": "nonce", "k": None}

    for dialect, body in ((LENIENT, json.dumps(whole).encode()), (LENIENT_PACK, packed(**whole))):
        read_or_refuse(dialect, body[:at] + spoilt + body[at + len(spoilt) :])


def read_or_refuse(dialect: Dialect, body: bytes) -> None:
    """Read it; what is a packet can be answered."""
    try:
        packet = dialect.read(body)
    except PayloadError:
        return
    if packet is not None:
        dialect.packet(PONG, packet.d, packet.n)


def test_key_of_a_nonce_may_be_an_array() -> None:
    packet = LENIENT_PACK.read(bytes.fromhex("82a17404a16e81910101"))

    assert packet is not None
    assert shown(LENIENT_PACK, LENIENT_PACK.packet(PONG, packet.d, packet.n))[2] == {(1,): 1}


def test_map_as_a_key_is_refused() -> None:
    with pytest.raises(PayloadError):
        LENIENT_PACK.read(bytes.fromhex("82a17401818001"))
