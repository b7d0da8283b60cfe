from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from interphone.errors import PayloadError
from interphone.protocol.payload import (
    UNDEFINED,
    Codec,
    Json,
    MessagePack,
    check_json_depth,
    check_msgpack_depth,
    lenient_json,
    lenient_json_members,
    lenient_msgpack,
    lenient_msgpack_members,
)

STRICT, LENIENT = Json(), Json(lenient=True)
STRICT_PACK, LENIENT_PACK = MessagePack(), MessagePack(lenient=True)
CODECS = [
    pytest.param(STRICT, id="json"),
    pytest.param(LENIENT, id="json lenient"),
    pytest.param(STRICT_PACK, id="msgpack"),
    pytest.param(LENIENT_PACK, id="msgpack lenient"),
]

texts = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**32 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Whether two values are one to a user: also NaN, signs of zero and types of numbers."""
    return repr(left) == repr(right)


def read_by(decode: Callable[[bytes], Any], raw: bytes) -> list[Any] | None:
    """What is read, in a list; None if it is refused."""
    try:
        return [decode(raw)]
    except PayloadError:
        return None


class Point(msgspec.Struct):
    x: int
    y: int = 0


# Both codecs


@pytest.mark.parametrize("codec", CODECS)
@given(value=values)
def test_value_comes_back(codec: Codec, value: Any) -> None:
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize("codec", CODECS)
def test_value_is_decoded_as_the_type_asked_for(codec: Codec) -> None:
    assert codec.decode(codec.encode({"x": 1, "y": 2}), Point) == Point(1, 2)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [{"x": "1"}, {}, None, [1]])
def test_value_of_another_type_is_refused(codec: Codec, value: Any) -> None:
    with pytest.raises(PayloadError):
        codec.decode(codec.encode(value), Point)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "raw", [b"", b"\xc1", b"{", b"[1,", b"\x92\x01", b"nul", b"1 2", b"\x01\x02"]
)
def test_what_is_nothing_is_refused(codec: Codec, raw: bytes) -> None:
    with pytest.raises(PayloadError):
        codec.decode(raw, list[int])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [object(), lambda: None, {1: object()}, 1j])
def test_value_without_a_form_is_refused(codec: Codec, value: Any) -> None:
    with pytest.raises(PayloadError, match="cannot be encoded"):
        codec.encode(value)


@pytest.mark.parametrize("codec", CODECS)
def test_value_that_contains_itself_is_refused(codec: Codec) -> None:
    value: list[Any] = []
    value.append(value)

    with pytest.raises(PayloadError, match="too deeply, or contains itself"):
        codec.encode(value)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("depth", [63, 64])
def test_value_may_nest_so_deeply(codec: Codec, depth: int) -> None:
    value = nested(depth)

    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize("codec", CODECS)
def test_value_that_nests_deeper_is_refused(codec: Codec) -> None:
    with pytest.raises(PayloadError, match="deeper than 64"):
        codec.encode(nested(65))


@pytest.mark.parametrize("items", [0, 1, 99, 100, 101, 5000])
@pytest.mark.parametrize("large", [b"", b"\x91" * 100_000], ids=["small", "large"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_depth_is_found_beside_anything(items: int, large: bytes, first: bool) -> None:
    def around(deep: Any) -> bytes:
        rest = [7] * items
        return msgspec.msgpack.encode([large, deep, rest] if first else [rest, large, deep])

    check_msgpack_depth(around(nested(63)), 64)
    with pytest.raises(PayloadError, match="deeper than 64"):
        check_msgpack_depth(around(nested(64)), 64)


@pytest.mark.parametrize("codec", CODECS)
def test_body_may_nest_one_level_deeper_than_a_payload(codec: Codec) -> None:
    pack = isinstance(codec, MessagePack)
    body, deeper = (packed(depth) if pack else written(depth) for depth in (65, 66))

    codec.check(body)

    with pytest.raises(PayloadError, match="deeper than 65"):
        codec.check(deeper)


@pytest.mark.parametrize("codec", CODECS)
def test_members_are_as_they_were_written(codec: Codec) -> None:
    one, other = codec.encode([1, "x"]), codec.encode(None)
    raw = codec.encode({"a": [1, "x"], "b": None})

    members = codec.members(raw)

    assert {key: bytes(value) for key, value in members.items()} == {"a": one, "b": other}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [None, [1], "text", 7])
def test_what_is_no_object_has_no_members(codec: Codec, value: Any) -> None:
    with pytest.raises(PayloadError):
        codec.members(codec.encode(value))


# JSON


@pytest.mark.parametrize("codec", CODECS[:2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_lacks_is_written_as_null(codec: Codec, value: float) -> None:
    assert codec.encode({"x": [value]}) == b'{"x":[null]}'


@pytest.mark.parametrize("codec", CODECS[:2])
@pytest.mark.parametrize("raw", [b"NaN", b"Infinity", b"-Infinity", b"[NaN]", b'{"a":NaN}', b"nan"])
def test_what_json_lacks_is_refused(codec: Codec, raw: bytes) -> None:
    with pytest.raises(PayloadError):
        codec.decode(raw)


@pytest.mark.parametrize("codec", CODECS[:2])
@pytest.mark.parametrize(
    "raw", [b"\xef\xbb\xbf1", b"'a'", b'"\n"', b"1x", b"[1,]", b"01", b"+1", b".5"]
)
def test_what_is_no_json_is_refused(codec: Codec, raw: bytes) -> None:
    with pytest.raises(PayloadError):
        codec.decode(raw)


@pytest.mark.parametrize("codec", CODECS[:2])
@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b' {"a" : 1 } ', {"a": 1}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b"9007199254740993", 2**53 + 1),
        (b"18446744073709551617", 2**64 + 1),
        (b'"\\u00e9\\ud83d\\ude00"', "é\N{GRINNING FACE}"),
        (b"1e0", 1.0),
        (b"-0.0", -0.0),
    ],
)
def test_json_is_read_as_python_would(codec: Codec, raw: bytes, value: Any) -> None:
    assert same(codec.decode(raw), value)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'"\\ud800"', "\ud800"),
        (b'"\\udc00\\ud800"', "\udc00\ud800"),
        (b'"\xff"', "\ufffd"),
        (b'"a\xc3"', "a\ufffd"),
        (b'"\xed\xa0\x80"', "\ufffd\ufffd\ufffd"),
        (b"1e400", math.inf),
        (b"-1e400", -math.inf),
        (b"1" * 5000, math.inf),
        (b"-" + b"1" * 5000, -math.inf),
    ],
)
def test_lenient_json_reads_what_node_reads(raw: bytes, value: Any) -> None:
    with pytest.raises(PayloadError):
        STRICT.decode(raw)

    assert same(LENIENT.decode(raw), value)
    assert LENIENT.decode(b'{"a":[' + raw + b"]}") == {"a": [value]}


def test_lenient_json_decodes_as_the_type_asked_for() -> None:
    assert LENIENT.decode(b'{"x":1,"z":"\\ud800"}', Point) == Point(1)
    with pytest.raises(PayloadError):
        LENIENT.decode(b'{"x":"\\ud800"}', Point)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=8,
    ),
    st.booleans(),
)
def test_lenient_and_strict_json_read_the_same(value: Any, ascii_only: bool) -> None:
    try:
        raw = json.dumps(value, ensure_ascii=ascii_only).encode()
        strict = STRICT.decode(raw)
    except (UnicodeEncodeError, PayloadError):
        assume(False)

    assert same(lenient_json(raw), strict)


@given(st.binary(max_size=30) | st.text('[]{}",:\\u0123eE+-. ntfalsr\ud800é', max_size=30))
def test_lenient_json_reads_no_more_than_bad_text_and_big_numbers(data: bytes | str) -> None:
    raw = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")

    strict, lenient = read_by(STRICT.decode, raw), read_by(lenient_json, raw)

    assert strict is None or same(strict, lenient)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("\ud800", b'"\\ud800"'),
        ({"\udfff": [1.5, math.nan]}, b'{"\\udfff":[1.5,null]}'),
        (("\ud800", {"a": math.inf}), b'["\\ud800",{"a":null}]'),
        ([Point(1), "\ud800"], b'[{"x":1,"y":0},"\\ud800"]'),
        ({"a": 2**70, "b": "\ud800"}, b'{"a":1180591620717411303424,"b":"\\ud800"}'),
    ],
)
def test_lone_surrogates_are_written_as_escapes_towards_node(value: Any, written: bytes) -> None:
    with pytest.raises(PayloadError, match="no valid Unicode"):
        STRICT.encode(value)

    assert LENIENT.encode(value) == written


def test_lone_surrogate_beside_what_has_no_form_is_refused() -> None:
    with pytest.raises(PayloadError, match="cannot be encoded"):
        LENIENT.encode({"a": "\ud800", "b": object()})


@given(values)
def test_json_is_written_the_same_both_ways(value: Any) -> None:
    assert STRICT.encode(value) == LENIENT.encode(value)


@given(values.map(lambda value: {"s": "\ud800", "v": value}))
def test_what_is_written_leniently_comes_back(value: Any) -> None:
    assert LENIENT.decode(LENIENT.encode(value)) == value


@pytest.mark.parametrize(
    "raw", [b' { "a" : "\\ud800" , "b":[ 1, 2 ]} ', b'{"a":"\\ud800","b":[ 1, 2 ]}']
)
def test_lenient_members_are_as_they_were_written(raw: bytes) -> None:
    members = LENIENT.members(raw)

    assert {key: bytes(value) for key, value in members.items()} == {
        "a": b'"\\ud800"',
        "b": b"[ 1, 2 ]",
    }


def test_last_of_two_members_wins() -> None:
    members = lenient_json_members(b'{"a":1,"a":{"a":3}}')

    assert {key: bytes(value) for key, value in members.items()} == {"a": b'{"a":3}'}


@pytest.mark.parametrize("raw", [b"[]", b"null", b'"a"', b"{", b"{}x"])
def test_lenient_members_are_of_an_object(raw: bytes) -> None:
    with pytest.raises(PayloadError):
        LENIENT.members(raw)
    with pytest.raises(PayloadError):
        STRICT.members(raw)


@given(st.dictionaries(texts, values, max_size=4))
def test_lenient_members_are_those_of_the_fast_way(value: dict[str, Any]) -> None:
    raw = json.dumps(value, indent=1).encode()

    fast = {key: bytes(item) for key, item in STRICT.members(raw).items()}

    lenient = {key: bytes(item) for key, item in lenient_json_members(raw).items()}
    assert lenient == fast


def test_bad_utf8_in_members_is_replaced() -> None:
    members = LENIENT.members(b'{"a":"\\ud800","b":"\xff"}')

    assert bytes(members["b"]) == '"\ufffd"'.encode()


def test_text_too_deep_for_the_stack_is_refused() -> None:
    with pytest.raises(PayloadError):
        LENIENT.decode(b"[" * 100_000)


# MessagePack


class Colour(IntEnum):
    RED = 2**40


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (2**32 - 1, "ceffffffff"),
        (2**32, "cb41f0000000000000"),
        (-(2**31), "d280000000"),
        (-(2**31) - 1, "cbc1e0000000200000"),
        (2**53 + 1, "cf0020000000000001"),
        (2**63, "cb43e0000000000000"),
        (2**64 - 1, "cfffffffffffffffff"),
        (2**70, "cb4450000000000000"),
        (Colour.RED, "cb4270000000000000"),
        (b"\x00", "c40100"),
        (bytearray(b"\x00"), "c40100"),
        (memoryview(b"\x00"), "c40100"),
        ("\ud800", "a9efbfbdefbfbdefbfbd"),
        (datetime(1970, 1, 1, tzinfo=UTC), "d6ff00000000"),
        ((1, [2]), "92019102"),
        ({"a": 2**32}, "81a161cb41f0000000000000"),
        ({(1,): 2**40}, "819101cb4270000000000000"),
        ({(2**40,): 1}, "8191cb427000000000000001"),
        (True, "c3"),
        (Decimal("1.5"), "a3312e35"),
    ],
)
def test_node_gets_what_it_reads_as_meant(value: Any, written: str) -> None:
    assert LENIENT_PACK.encode(value).hex() == written


@pytest.mark.parametrize("value", [2**64 + 1, 2**2000, -(2**63) - 1])
def test_integer_no_form_holds_is_refused(value: int) -> None:
    with pytest.raises(PayloadError):
        LENIENT_PACK.encode(value)


def test_between_ourselves_integers_stay_integers() -> None:
    assert STRICT_PACK.encode(2**40).hex() == "cf0000010000000000"


@pytest.mark.parametrize("codec", CODECS[2:])
@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("c0", None),
        ("d40000", None),
        ("c70000", None),
        ("93d400000101", [None, 1, 1]),
        ("d6ff00000000", datetime(1970, 1, 1, tzinfo=UTC)),
        ("d7ff0000000000000000", datetime(1970, 1, 1, tzinfo=UTC)),
        ("c70cff000000000000000000000000", datetime(1970, 1, 1, tzinfo=UTC)),
        ("de0001a16101", {"a": 1}),
        ("df00000001a16101", {"a": 1}),
        ("cf0000000000000001", 1),
        ("d3ffffffffffffffff", -1),
        ("ca3fc00000", 1.5),
        ("cb7ff0000000000000", math.inf),
        ("cb7ff8000000000000", math.nan),
        ("c403000102", b"\x00\x01\x02"),
        ("81c001", {None: 1}),
    ],
)
def test_msgpack_is_read_as_msgpackr_would(codec: Codec, raw: str, value: Any) -> None:
    assert same(codec.decode(bytes.fromhex(raw)), value)
    assert same(lenient_msgpack(bytes.fromhex(raw)), value)


@pytest.mark.parametrize("codec", CODECS[2:])
@pytest.mark.parametrize(
    "raw",
    [
        pytest.param("d40500", id="an unknown extension"),
        pytest.param("c70305ffffff", id="a longer one"),
        pytest.param("0101", id="bytes left over"),
        pytest.param("92", id="too short"),
        pytest.param("a2", id="a text too short"),
        pytest.param("c4", id="no length"),
        pytest.param("cb00", id="half a number"),
        pytest.param("c1", id="a byte never used"),
        pytest.param("818001", id="a key that is a map"),
        pytest.param("c703ffffffff", id="a date of no known size"),
        pytest.param("d7ffffffffffffffffff", id="a date out of range"),
        pytest.param("dd7fffffff", id="an array that is not there"),
        pytest.param("df7fffffff", id="a map that is not there"),
        pytest.param("db7fffffff", id="a text that is not there"),
        pytest.param("c67fffffff", id="bytes that are not there"),
        pytest.param("c97fffffff00", id="an extension that is not there"),
    ],
)
def test_what_is_no_msgpack_is_refused(codec: Codec, raw: str) -> None:
    with pytest.raises(PayloadError):
        codec.decode(bytes.fromhex(raw))
    with pytest.raises(PayloadError):
        lenient_msgpack(bytes.fromhex(raw))


@pytest.mark.parametrize("raw", ["dd7fffffff", "df7fffffff", "db7fffffff", "c67fffffff"])
@pytest.mark.parametrize("read", [LENIENT_PACK.decode, lenient_msgpack, check_msgpack_depth])
def test_memory_does_not_follow_a_claimed_length(read: Any, raw: str) -> None:
    arguments = (64,) if read is check_msgpack_depth else ()
    tracemalloc.start()
    try:
        read(bytes.fromhex(raw), *arguments)
    except PayloadError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak < 50_000


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("a1ff", "\ufffd"),
        ("a3eda080", "\ufffd\ufffd\ufffd"),
        ("81a1ff01", {"\ufffd": 1}),
        ("92a1ffd40000", ["\ufffd", None]),
        ("92a1ffd6ff00000000", ["\ufffd", datetime(1970, 1, 1, tzinfo=UTC)]),
    ],
)
def test_lenient_msgpack_replaces_bad_text(raw: str, value: Any) -> None:
    with pytest.raises(PayloadError):
        STRICT_PACK.decode(bytes.fromhex(raw))

    assert LENIENT_PACK.decode(bytes.fromhex(raw)) == value


def test_lenient_msgpack_decodes_as_the_type_asked_for() -> None:
    raw = bytes.fromhex("82a17801a17aa1ff")

    assert LENIENT_PACK.decode(raw, Point) == Point(1)
    with pytest.raises(PayloadError):
        LENIENT_PACK.decode(raw, list[int])


packables = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | texts
    | st.binary(max_size=300)
    | st.datetimes(timezones=st.just(UTC)),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(texts, inner, max_size=20),
    max_leaves=20,
)


@given(packables)
def test_lenient_and_strict_msgpack_read_the_same(value: Any) -> None:
    raw = STRICT_PACK.encode(value)

    assert same(lenient_msgpack(raw), STRICT_PACK.decode(raw))


@given(st.binary(max_size=40))
def test_lenient_msgpack_reads_no_more_than_bad_text(raw: bytes) -> None:
    strict, lenient = read_by(STRICT_PACK.decode, raw), read_by(lenient_msgpack, raw)

    # A key that is an array is a tuple to msgspec, and refused by the other.
    assert strict is None or lenient is None or same(strict, lenient)


@pytest.mark.parametrize("raw", ["82a16101a1ffa162", "83a16101a1ffa162070d"])
def test_lenient_msgpack_members_are_as_they_were_written(raw: str) -> None:
    members = LENIENT_PACK.members(bytes.fromhex(raw))

    assert {key: bytes(value).hex() for key, value in members.items()} == {
        "a": "01",
        "\ufffd": "a162",
    }


@given(st.dictionaries(texts, packables, max_size=4))
def test_lenient_msgpack_members_are_those_of_the_fast_way(value: dict[str, Any]) -> None:
    raw = STRICT_PACK.encode(value)

    fast = {key: bytes(item) for key, item in STRICT_PACK.members(raw).items()}

    assert {key: bytes(item) for key, item in lenient_msgpack_members(raw).items()} == fast


@pytest.mark.parametrize("raw", ["90", "c0", "81a161", "81a1ff", "a1ff"])
def test_lenient_msgpack_members_are_of_a_map(raw: str) -> None:
    with pytest.raises(PayloadError):
        LENIENT_PACK.members(bytes.fromhex(raw))


def test_undefined_is_written_as_msgpackr_writes_it() -> None:
    assert LENIENT_PACK.decode(UNDEFINED) is None


# Depth


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


def written(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def packed(depth: int) -> bytes:
    return b"\x91" * (depth - 1) + b"\x90"


def refused(check: Any, body: bytes, limit: int) -> bool:
    try:
        check(body, limit)
    except PayloadError:
        return True
    return False


@pytest.mark.parametrize(
    ("body", "depth"),
    [
        (b"[]" * 100, 1),
        (b"[" + b"[]," * 99 + b"[]]", 2),
        (b'"' + b"[" * 100 + b'"', 0),
        (b'"\\"' + b"[" * 100 + b'"', 0),
        (b'["\\\\",' + b'"[[[[[",' * 30 + b"[]]", 2),
        (b'{"[":{"{":[]}}' + b'"[{"' * 50, 3),
    ],
)
def test_depth_of_json_counts_brackets_outside_of_texts(body: bytes, depth: int) -> None:
    assert not refused(check_json_depth, body, depth)
    assert not depth or refused(check_json_depth, body, depth - 1)


@pytest.mark.parametrize(
    "body", [b"[" * 100, b"{" * 100, b'["' + b"[" * 100, b"]" * 100 + b"[" * 70]
)
def test_depth_of_broken_json_never_passes_unseen(body: bytes) -> None:
    outside_of_texts = b'"' not in body

    assert refused(check_json_depth, body, 64) == outside_of_texts


@given(values, st.integers(0, 6))
def test_depth_of_json_is_the_depth_of_the_value(value: Any, limit: int) -> None:
    assert refused(check_json_depth, json.dumps(value).encode(), limit) == (depth_of(value) > limit)


@given(packables, st.integers(0, 6))
def test_depth_of_msgpack_is_the_depth_of_the_value(value: Any, limit: int) -> None:
    raw = STRICT_PACK.encode(value)

    assert refused(check_msgpack_depth, raw, limit) == (depth_of(value) > limit)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@pytest.mark.parametrize(
    "item",
    [
        "00", "ff", "a141", "c0", "c2", "c40141", "c5000141", "c60000000141", "c7010541",
        "c800010541", "c9000000010541", "ca00000000", "cb0000000000000000", "cc80", "cd8080",
        "ce80808080", "cf8080808080808080", "d080", "d18080", "d280808080", "d38080808080808080",
        "d40541", "d5054141", "d60541414141", "d7054141414141414141", "d805" + "41" * 16, "d90141",
        "da000141", "db0000000141", "90", "80", "dc0000", "dd00000000", "de0000", "df00000000",
    ],
)  # fmt: skip
def test_depth_of_msgpack_sees_past_every_kind_of_item(item: str) -> None:
    container = item in {"90", "80", "dc0000", "dd00000000", "de0000", "df00000000"}
    many = bytes.fromhex("dc0050" + item * 79)

    assert not refused(check_msgpack_depth, many + b"\x91\x90", 3)
    assert refused(check_msgpack_depth, many + b"\x91\x90", 2)
    assert refused(check_msgpack_depth, many + b"\x01", 0)
    assert refused(check_msgpack_depth, bytes.fromhex("dc0050" + item * 80), 1) == container


@given(st.binary(max_size=60))
def test_depth_of_rubbish_is_refused_or_left_to_the_decoder(body: bytes) -> None:
    for check in (check_json_depth, check_msgpack_depth):
        refused(check, body * 10, 2)


def test_depth_is_told_whatever_the_stack_is_like() -> None:
    assert refused(check_json_depth, written(200_000), 64)
    assert refused(check_msgpack_depth, packed(200_000), 64)
