from __future__ import annotations

import tracemalloc
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone.errors import MessageTooBig, RemoteProtocolError
from interphone.protocol import wire as wire_module
from interphone.protocol.payload import Codec, Json, MessagePack
from interphone.protocol.wire import LARGE, MAX_TAG, Bulk, Wire, tag


def new_wire(limit: int = 1000) -> Wire:
    return Wire(limit=limit)


def taken_from(wire: Wire, *chunks: bytes) -> list[bytes]:
    bodies: list[bytes] = []
    for chunk in chunks:
        wire.receive(chunk, bodies.append)
    return bodies


def framed(*bodies: bytes) -> bytes:
    return b"".join(tag(len(body)) + body for body in bodies)


# Tags


@pytest.mark.parametrize(
    ("size", "written"),
    [(0, "80"), (1, "81"), (127, "ff"), (128, "0180"), (300, "02ac"), (16_383, "7fff")],
)
def test_tag_is_base_128_with_a_mark_on_the_last_digit(size: int, written: str) -> None:
    assert tag(size).hex() == written


@given(st.integers(0, 2**35 - 1))
def test_tag_says_the_size(size: int) -> None:
    digits = tag(size)

    value = 0
    for digit in digits:
        value = value * 128 + (digit & 127)
    assert value == size
    assert [digit > 127 for digit in digits] == [False] * (len(digits) - 1) + [True]


# In


def test_frames_of_one_chunk_come_in_order() -> None:
    assert taken_from(new_wire(), framed(b"one", b"", b"three")) == [b"one", b"", b"three"]


@pytest.mark.parametrize("size", [1, 127, 128, 300])
def test_frame_is_found_in_single_bytes(size: int) -> None:
    data = framed(b"x" * size, b"y")

    bodies = taken_from(new_wire(), *(data[at : at + 1] for at in range(len(data))))

    assert bodies == [b"x" * size, b"y"]


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(0, 2000), max_size=8))
def test_bytes_cut_anywhere_are_the_same_frames(bodies: list[bytes], cuts: list[int]) -> None:
    data = framed(*bodies)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})

    chunks = [data[start:end] for start, end in pairwise(places)]

    assert taken_from(new_wire(), *chunks) == bodies


def test_empty_chunk_changes_nothing() -> None:
    wire = new_wire()

    assert taken_from(wire, b"\x83a", b"", b"bc") == [b"abc"]


@pytest.mark.parametrize("size", [999, 1000])
def test_body_up_to_the_limit_is_taken(size: int) -> None:
    assert taken_from(new_wire(limit=1000), framed(b"x" * size)) == [b"x" * size]


@pytest.mark.parametrize(("limit", "size"), [(1000, 1001), (100, 101), (1, 2)])
def test_body_over_the_limit_is_refused_by_its_tag_alone(limit: int, size: int) -> None:
    with pytest.raises(MessageTooBig) as caught:
        taken_from(new_wire(limit), tag(size))

    assert (caught.value.size, caught.value.limit) == (size, limit)


def test_frames_before_one_over_the_limit_are_taken() -> None:
    bodies: list[bytes] = []

    with pytest.raises(MessageTooBig):
        new_wire().receive(framed(b"good") + tag(1001), bodies.append)

    assert bodies == [b"good"]


def test_limit_may_change_between_two_frames() -> None:
    wire = new_wire(limit=3)
    bodies: list[bytes] = []

    def take(body: bytes) -> None:
        bodies.append(body)
        wire.limit = 10

    wire.receive(framed(b"abc", b"0123456789"), take)

    assert bodies == [b"abc", b"0123456789"]


@pytest.mark.parametrize("zeros", range(MAX_TAG))
def test_tag_may_have_so_many_digits(zeros: int) -> None:
    data = b"\x00" * zeros + framed(b"x")

    assert taken_from(new_wire(), data) == [b"x"]
    assert taken_from(new_wire(), *(bytes([byte]) for byte in data)) == [b"x"]


@pytest.mark.parametrize("digit", [b"\x00", b"\x01", b"\x7f"])
def test_tag_with_more_digits_is_refused_at_the_last_one(digit: bytes) -> None:
    wire = new_wire()
    assert taken_from(wire, digit * (MAX_TAG - 1)) == []

    with pytest.raises(RemoteProtocolError) as caught:
        taken_from(wire, digit)

    assert caught.value.code == "bad-tag"


def test_six_digits_are_refused_though_the_sixth_is_the_last() -> None:
    with pytest.raises(RemoteProtocolError, match="more than 5 digits"):
        taken_from(new_wire(), b"\x00" * MAX_TAG + b"\x81x")


def test_memory_follows_what_came_and_not_what_was_claimed() -> None:
    wire_module._spares.clear()
    wire = new_wire(limit=2**31 - 1)
    tracemalloc.start()
    try:
        taken_from(wire, tag(2**31 - 1), b"x" * 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 50_000
    assert len(wire._held) + len(wire._large) == 1000


def test_unfinished_tells_of_a_frame_that_has_begun() -> None:
    wire = new_wire()
    assert not wire.unfinished()

    taken_from(wire, b"\x00")
    assert wire.unfinished()

    taken_from(wire, b"\x81x")
    assert not wire.unfinished()


def test_stopped_reader_keeps_the_rest_of_its_chunk() -> None:
    wire = new_wire()
    bodies: list[bytes] = []

    def take(body: bytes) -> None:
        bodies.append(body)
        wire.stopped = True

    wire.receive(framed(b"one", b"two"), take)
    wire.receive(framed(b"three"), take)
    assert bodies == [b"one"]

    wire.stopped = False
    wire.receive(b"", bodies.append)
    assert bodies == [b"one", b"two", b"three"]


def test_reader_stopped_behind_a_long_frame_goes_on_with_a_short_one() -> None:
    wire = new_wire()
    bodies: list[bytes] = []

    def take(body: bytes) -> None:
        bodies.append(body)
        wire.stopped = len(bodies) == 1

    long = framed(b"x" * 500)
    wire.receive(long[:100], take)
    wire.receive(long[100:] + framed(b"short"), take)
    wire.stopped = False
    wire.receive(b"", take)

    assert bodies == [b"x" * 500, b"short"]


def test_reader_may_be_stopped_at_every_frame() -> None:
    wire = new_wire()
    bodies: list[bytes] = []

    def take(body: bytes) -> None:
        bodies.append(body)
        wire.stopped = True

    wire.receive(framed(b"1", b"2", b"3"), take)
    for _ in range(2):
        wire.stopped = False
        wire.receive(b"", take)

    assert bodies == [b"1", b"2", b"3"]


# Out


def test_everything_queued_is_taken_in_one_piece() -> None:
    wire = new_wire()
    wire.put_raw(b"IPC")
    wire.put(b"one")
    wire.put(b"")

    assert wire.queued > 0
    assert wire.take() == b"IPC\x83one\x80"
    assert wire.queued == 0
    assert wire.take() == b""


@pytest.mark.parametrize("size", [16_383, 16_384, 16_385, 2_097_152])
def test_long_body_gets_its_tag(size: int) -> None:
    wire = new_wire(limit=2**31)
    wire.put(b"x" * size)

    assert wire.take() == tag(size) + b"x" * size


@pytest.mark.parametrize(("size", "fits"), [(999, True), (1000, True), (1001, False)])
def test_own_body_is_held_to_the_limit(size: int, fits: bool) -> None:
    wire = new_wire(limit=1000)

    if fits:
        wire.put(b"x" * size)
    else:
        with pytest.raises(MessageTooBig):
            wire.put(b"x" * size)

    assert bool(wire.take()) == fits


@pytest.mark.parametrize("size", [1, 65_537, 131_073])
def test_lone_byte_behind_a_boundary_is_padded(size: int) -> None:
    wire = new_wire()
    wire.pad = b"pad"
    wire.put_raw(b"x" * size)

    assert wire.take() == b"x" * size + b"pad"


@pytest.mark.parametrize("size", [2, 65_535, 65_536, 65_538])
def test_nothing_else_is_padded(size: int) -> None:
    wire = new_wire()
    wire.pad = b"pad"
    wire.put_raw(b"x" * size)

    assert wire.take() == b"x" * size


def test_nothing_is_padded_where_no_pad_is_set() -> None:
    wire = new_wire()
    wire.put_raw(b"x" * 65_537)

    assert len(wire.take()) == 65_537


@given(
    sizes=st.lists(st.integers(0, 3 * LARGE), min_size=1, max_size=5),
    chunk=st.integers(1, 3 * LARGE),
    stops=st.booleans(),
    lands=st.booleans(),
)
def test_large_bodies_come_whole_however_they_are_cut(
    sizes: list[int], chunk: int, stops: bool, lands: bool
) -> None:
    wire, taken = new_wire(limit=3 * LARGE), []
    sent = [bytes([n]) * size for n, size in enumerate(sizes)]
    data = b"".join(tag(len(body)) + body for body in sent)

    def take(body: bytes | bytearray) -> None:
        taken.append(bytes(body))  # its memory may be used again
        wire.stopped = stops

    at = 0
    while at < len(data):
        if wire.landing and lands:
            room = wire.room()
            size = min(chunk, len(room), len(data) - at)
            room[:size] = data[at : at + size]
            wire.landed(size)
            wire.receive(b"", take)
        else:
            size = chunk
            wire.receive(data[at : at + size], take)
        at += size
    while wire.stopped:
        assert wire.unfinished() == (len(taken) < len(sent))
        wire.stopped = False
        wire.receive(b"", take)
    assert taken == sent
    assert not wire.unfinished()


def test_a_large_body_may_begin_where_a_chunk_ends() -> None:
    wire, taken = new_wire(limit=LARGE), []

    def take(body: bytes | bytearray) -> None:
        taken.append(bytes(body))

    wire.receive(tag(LARGE), take)
    assert wire.unfinished()
    wire.receive(b"x" * LARGE + tag(1) + b"y", take)

    assert taken == [b"x" * LARGE, b"y"]


def test_the_memory_of_a_large_body_is_used_again_unless_somebody_refers_to_it() -> None:
    wire_module._spares.clear()
    wire, kept = new_wire(limit=3 * LARGE), []

    def bodies(letter: bytes, size: int, keep: bool) -> int:
        where = []

        def take(body: bytes | bytearray) -> None:
            assert body == letter * size
            where.append(id(body))
            if keep:
                kept.append(msgspec.Raw(body))

        wire.receive(tag(size), take)
        wire.receive(letter * size, take)
        return where[0]

    first = bodies(b"a", 3 * LARGE, keep=False)
    assert bodies(b"b", LARGE, keep=True) == first
    assert bodies(b"c", 2 * LARGE, keep=False) != first
    assert bytes(kept[0]) == b"b" * LARGE


def test_room_for_a_large_body_grows_as_it_comes() -> None:
    wire_module._spares.clear()
    wire = new_wire(limit=2**30)
    taken_from(wire, tag(2**30), b"x")

    for _ in range(100):
        room = wire.room()
        assert len(wire._large) <= 2 * wire._filled + 64 * 1024
        wire.landed(len(room))

    assert 2**20 < len(wire._large) < 100 * 2**20


def test_large_bodies_are_sent_in_pieces_and_not_copied() -> None:
    wire = new_wire(limit=2**30)
    large = b"x" * LARGE

    for body in (b"a", b"b", large, b"c", Bulk(b"d", large, b"", Bulk(b"e", large))):
        wire.put(body)
    pieces = wire.take_pieces()

    assert b"".join(pieces) == (
        b"\x81a\x81b"
        + tag(LARGE)
        + large
        + b"\x81c"
        + tag(2 * LARGE + 2)
        + b"d"
        + large
        + b"e"
        + large
    )
    assert sum(piece is large for piece in pieces) == 3
    assert wire.queued == 0
    assert wire.take_pieces() == [b""]


@pytest.mark.parametrize("codec", [Json(), MessagePack()], ids=["json", "messagepack"])
@pytest.mark.parametrize(
    "value", ["x" * LARGE, ["x" * LARGE], b"x" * LARGE], ids=["text", "list", "bytes"]
)
def test_a_large_value_is_the_same_in_pieces(codec: Codec, value: object) -> None:
    packed = codec.pack(value)

    assert isinstance(packed, Bulk)
    assert bytes(packed) == codec.encode(value)
    assert len(packed) == len(codec.encode(value))
    assert codec.decode(codec.encode(value), type(value)) == value
