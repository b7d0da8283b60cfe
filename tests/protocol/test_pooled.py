"""Pools, without memory that is really shared: what two ends tell each other, and believe."""

from __future__ import annotations

import gc
import re
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

from interphone import Limits, Loan, LocalProtocolError, MessageTooBig, PayloadError, PoolCounts
from interphone.errors import RemoteProtocolError
from interphone.protocol.events import Reactions
from interphone.protocol.loan import Block
from interphone.protocol.messages import BORROW, LEND, RETURN
from interphone.protocol.payload import Json, MessagePack
from interphone.protocol.pool import BLOCK, Made
from interphone.protocol.pooled import LARGE, glance
from interphone.protocol.session import Session
from interphone.protocol.states import State
from support.sessions import Recorder, SessionPair, frame

KEY = b"secret!!"
BIG = bytes(range(256)) * (LARGE // 256)
OTHER = BIG[::-1]


class FakeMemory:
    """Memory of this process that only looks shared.

    Attributes:
        made: What was made, by any of them that were given the same dict.
        refused: Whether the system refuses everything.
        open_fds: Descriptors that were not shut.
    """

    def __init__(self, made: dict[int, bytearray], *, refuses: bool = False) -> None:
        self.guard = nullcontext()
        self.tell: Callable[[], None] | None = None
        self.made = made
        self.refuses = refuses
        self.open_fds: set[int] = set()

    def make(self, size: int) -> Made | None:
        if self.refuses:
            return None
        fd = len(self.made)
        self.made[fd] = bytearray(size)
        self.open_fds.add(fd)
        return Made(memoryview(self.made[fd]), fd, 9, KEY, lambda: self.open_fds.discard(fd))

    def open(self, fd: int, inode: int, size: int, most: int) -> memoryview | None:
        if self.refuses or inode != 9:
            return None
        return memoryview(self.made[fd]).toreadonly()[: min(size, most)]


class Keeper(Recorder):
    """Keeps the payloads of messages as they are."""

    def __init__(self, session: Session, raws: list[msgspec.Raw]) -> None:
        super().__init__(session)
        self._raws = raws

    @property
    def reactions(self) -> Reactions:
        return super().reactions._replace(message=self._raws.append)


class Ends(SessionPair):
    """Two ends that can share memory, and payloads that came."""

    def __init__(
        self,
        *,
        client: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        refusing: str = "",
        dialects: tuple[str, ...] = ("native", "classic"),
        **both: Any,
    ) -> None:
        sides = [{"pools": True} | (side or {}) for side in (client, server)]
        super().__init__(client=sides[0], server=sides[1], dialects=dialects, **both)
        made: dict[int, bytearray] = {}
        self.client.memory = FakeMemory(made, refuses=refusing == "client")
        self.server.memory = FakeMemory(made, refuses=refusing == "server")
        self.raws: list[msgspec.Raw] = []
        self.seen = {"client": self.seen["client"], "server": Keeper(self.server, self.raws)}

    def send(self, value: object, of: Any = Any) -> Any:
        """Send a message to the server, and return what it is there, as an `of`."""
        return self.server.values.decode(self.pass_on(value), of)

    def pass_on(self, value: object) -> msgspec.Raw:
        self.client.send(self.client.values.pack(value))
        self.deliver()
        return self.raws.pop()

    def warmed(self) -> Ends:
        """Open the connection, and have the client make its pool."""
        self.open()
        return self.warm_up()

    def warm_up(self) -> Ends:
        """Have the client make its pool, which the server maps."""
        assert self.send(BIG) == BIG
        assert self.client.pool_counts == PoolCounts(lent=0, inline=1)
        return self


def test_a_pool_is_told_of_behind_the_handshake_and_ahead_of_what_is_large() -> None:
    ends = Ends()
    ends.client.open()
    ends.carry("client", None, [])
    ends.server.accept("1")
    ends.server.send(ends.server.values.pack(BIG))
    ends.server.resume(ends.seen["server"].reactions)
    told: list[Any] = []
    ends.client.receive(
        ends.server.data_to_send(),
        ends.seen["client"].reactions._replace(message=lambda raw: told.append(len(raw))),
    )

    assert ends.client.state is State.OPEN
    assert told == [len(BIG) + 5]
    assert ends.client.data_to_send()  # BORROW


@pytest.fixture
def ends() -> Ends:
    made = Ends()
    made.open()
    return made.warm_up()


def lent(ends: Ends) -> int:
    return ends.client.pool_counts.lent


def wrapped(blocks: list[Any], value: object, *, key: bytes = KEY) -> bytes:
    inner = msgspec.msgpack.encode((key, blocks, value))
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(1, inner))


def reference(number: int, *, key: bytes = KEY) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(2, key + number.to_bytes(8, "big"))


def hostile(ends: Ends, kind: int, payload: bytes) -> str:
    """Give the server a packet of a client that does as it likes; return why it hung up."""
    body = b"\x93" + msgspec.msgpack.encode(kind) + b"\xc0" + payload
    ends.server.receive(frame(body), ends.seen["server"].reactions)
    assert ends.server.state is State.CLOSED
    assert isinstance(ends.server.error, RemoteProtocolError)
    return str(ends.server.error)


# What goes by the pool


def test_large_bytes_are_read_where_they_are(ends: Ends) -> None:
    before = sum(len(data) for _, data in ends.wire)

    view = ends.send(BIG, memoryview)

    assert view == BIG
    assert view.readonly
    assert sum(len(data) for _, data in ends.wire) - before < 200
    assert ends.client.pool_counts == PoolCounts(lent=1, inline=1)


def test_view_shows_the_pool_and_bytes_are_a_copy(ends: Ends) -> None:
    view, copy = ends.send(BIG, memoryview), ends.send(BIG, bytes)

    memory = ends.client.memory
    assert isinstance(memory, FakeMemory)
    memory.made[0][: 2 * LARGE] = b"x" * (2 * LARGE)  # whoever lends can still write

    assert bytes(view) == b"x" * LARGE
    assert copy == BIG


def test_small_bytes_stay_inline(ends: Ends) -> None:
    assert ends.send(BIG[1:]) == BIG[1:]
    assert ends.send({"a": BIG[1:]}) == {"a": BIG[1:]}

    assert ends.client.pool_counts == PoolCounts(lent=0, inline=1)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("of", [Any, bytes, bytearray, memoryview, bytes | None, memoryview | int])
def test_every_kind_of_bytes_becomes_what_is_asked_for(ends: Ends, kind: Any, of: Any) -> None:
    value = ends.send(kind(BIG), of)

    assert value == BIG
    assert lent(ends) == 1
    if of in (Any, bytes, bytearray):
        assert type(value) is (bytes if of is Any else of)


class Mixed(msgspec.Struct):
    big: bytes
    at: datetime
    extension: msgspec.msgpack.Ext


@pytest.mark.parametrize("at", ["2026-11-23T00:00:00Z", datetime(2026, 11, 23, tzinfo=UTC)])
@pytest.mark.parametrize("code", [1, 2, 5])
def test_what_is_beside_it_is_decoded_as_ever(ends: Ends, at: Any, code: int) -> None:
    value = {"at": at, "extension": msgspec.msgpack.Ext(code, b"xy")}
    loan = ends.client.loan(LARGE)
    loan.view[:] = BIG
    if code == 2:
        with pytest.raises(PayloadError, match="nothing that is lent"):
            ends.send({**value, "big": loan}, Mixed)
        return

    here = ends.send({**value, "big": loan}, Mixed)
    inline = ends.send({**value, "big": BIG}, Mixed)

    assert here == inline
    assert lent(ends) == 1


def test_view_of_other_items_is_lent_as_bytes(ends: Ends) -> None:
    view = memoryview(BIG).cast("I", (2, LARGE // 8))

    assert ends.send(view) == BIG
    assert lent(ends) == 1


def test_parameters_of_a_call_are_lent(ends: Ends) -> None:
    asked = {"method": "a", "params": (1, BIG, "b"), "named": {"c": OTHER, "d": None}}

    value = ends.send(asked)

    assert value == asked | {"params": [1, BIG, "b"]}
    assert lent(ends) == 2


@pytest.mark.parametrize(
    "value", [{"params": 3}, {"params": {"a": BIG}}, {"params": [], "named": 1}]
)
def test_users_value_that_looks_like_a_call_is_left_alone(ends: Ends, value: Any) -> None:
    assert ends.send(value) == value
    assert lent(ends) == 0


class Picture(msgspec.Struct):
    name: str
    pixels: memoryview
    thumb: bytes
    rest: Any = None


def test_loans_go_anywhere_in_a_value(ends: Ends) -> None:
    loans = [ends.client.loan(LARGE) for _ in range(3)]
    for loan in loans:
        loan.view[:] = BIG
    value = {"name": "a", "pixels": loans[0], "thumb": loans[1], "rest": [loans[2], OTHER]}

    picture = ends.send(value, Picture)

    assert (picture.name, picture.pixels, picture.thumb) == ("a", BIG, BIG)
    assert type(picture.thumb) is bytes
    assert [*map(bytes, picture.rest)] == [BIG, OTHER]
    assert lent(ends) == 3


def test_value_of_another_type_is_refused(ends: Ends) -> None:
    with pytest.raises(PayloadError, match="int"):
        ends.send(BIG, int)


class Letter(msgspec.Struct):
    to: int
    body: msgspec.Raw
    seal: memoryview


@pytest.mark.parametrize("of", [msgspec.Raw, list[msgspec.Raw], dict[str, list[msgspec.Raw]]])
def test_raw_is_whole_wherever_it_stands(ends: Ends, of: Any) -> None:
    value: Any = ends.client.loan(LARGE)
    value.view[:] = BIG
    value = {"a": [value]} if of == dict[str, list[msgspec.Raw]] else value
    value = [value] if of == list[msgspec.Raw] else value

    raw = ends.send(value, of)

    while not isinstance(raw, msgspec.Raw):
        raw = raw["a"] if isinstance(raw, dict) else raw[0]
    assert msgspec.msgpack.decode(raw) == BIG
    assert lent(ends) == 1


def test_raw_keeps_extensions_of_others(ends: Ends) -> None:
    loan = ends.client.loan(LARGE)
    loan.view[:] = BIG
    value = {"big": BIG, "extension": msgspec.msgpack.Ext(5, b"xy")}

    raw = ends.send({**value, "big": loan}, msgspec.Raw)

    assert raw == msgspec.Raw(msgspec.msgpack.encode(value))


def test_raw_beside_a_view_is_whole(ends: Ends) -> None:
    body, seal = ends.client.loan(LARGE), ends.client.loan(LARGE)
    body.view[:], seal.view[:] = BIG, OTHER

    letter = ends.send({"to": 7, "body": body, "seal": seal}, Letter)

    assert msgspec.msgpack.decode(letter.body) == BIG
    assert letter.seal == OTHER
    assert ends.send({"to": 7, "body": 1, "seal": b"s"}, Letter).body == msgspec.Raw(b"\x01")


@pytest.mark.parametrize("chunk_size", [1, 7, None])
def test_bytes_may_be_cut_anywhere(chunk_size: int | None) -> None:
    ends = Ends()
    ends.open()
    ends.warm_up()
    ends.client.send(ends.client.values.pack([1, ends.client.loan(1)]))
    ends.client.send(ends.client.values.pack(BIG))

    ends.deliver(chunk_size)

    assert [ends.server.values.decode(raw) for raw in ends.raws] == [[1, b"\0"], BIG]


def test_limit_of_frames_holds_for_what_is_lent() -> None:
    ends = Ends(limits=Limits(max_frame=2 * LARGE))
    ends.open()
    ends.warm_up()

    with pytest.raises(MessageTooBig):
        ends.client.values.pack({"params": [BIG, BIG]})
    with pytest.raises(MessageTooBig):
        ends.client.send(ends.client.values.pack(BIG + BIG))

    assert ends.send({"params": [BIG]}) == {"params": [BIG]}  # and nothing is kept of it


# Loans


def test_loan_is_sent_once_and_then_closed(ends: Ends) -> None:
    loan = ends.client.loan(LARGE)
    view = loan.view
    view[:] = BIG
    assert loan.lent
    assert repr(loan) == f"<Loan of {LARGE} bytes, lent, open>"

    assert ends.send(loan) == BIG

    with pytest.raises(LocalProtocolError, match="sent"):
        loan.view  # noqa: B018  it raises
    with pytest.raises(ValueError, match="released"):
        view[0] = 1
    with pytest.raises(LocalProtocolError, match="sent once"):
        ends.client.values.pack(loan)


def test_loan_without_a_pool_is_memory_of_ones_own() -> None:
    loan = Loan(3)
    loan.view[:] = b"abc"

    assert not loan.lent
    assert len(loan) == 3
    assert Json().encode([loan]) == b'["YWJj"]'
    assert MessagePack(lenient=True).encode([loan]) == b"\x91\xc4\x03abc"


def test_closed_and_lost_loans_give_their_memory_back() -> None:
    ends = Ends(limits=Limits(max_pool=LARGE))
    ends.open()
    ends.warm_up()
    with ends.client.loan(LARGE) as loan:
        assert loan.lent
        assert not ends.client.loan(LARGE).lent
    with pytest.raises(LocalProtocolError, match="closed"):
        ends.client.values.pack(loan)

    lost = ends.client.loan(LARGE)
    assert lost.lent
    del lost
    gc.collect()

    assert ends.client.loan(LARGE).lent


def test_loan_that_could_not_be_sent_is_open_again(ends: Ends) -> None:
    loan = ends.client.loan(LARGE)
    loan.view[:] = BIG
    with pytest.raises(PayloadError):
        ends.client.values.pack([loan, object()])
    ends.client.take_back(ends.client.values.pack(loan))
    loan.view[0] = 9

    assert ends.send(loan) == b"\x09" + BIG[1:]
    assert lent(ends) == 2


def test_loan_that_is_taken_back_behind_its_end_is_free() -> None:
    ends = Ends(limits=Limits(max_pool=LARGE))
    ends.open()
    ends.warm_up()
    with ends.client.loan(LARGE) as loan:
        payload = ends.client.values.pack(loan)
    ends.client.take_back(payload)

    assert repr(loan) == f"<Loan of {LARGE} bytes, lent, closed>"
    assert ends.client.loan(LARGE).lent


def test_loan_of_another_connection_is_copied(ends: Ends) -> None:
    other = Ends()
    other.open()
    other.warm_up()
    loan = other.client.loan(LARGE)
    loan.view[:] = BIG

    assert ends.send([loan]) == [BIG]
    assert lent(ends) == lent(other) == 0
    assert ends.send([loan]) == [BIG]  # what was copied is still open
    loan.close()
    with pytest.raises(LocalProtocolError, match="closed"):
        ends.send([loan])
    assert other.send(BIG, memoryview) == BIG


@pytest.mark.parametrize("codec", [Json(), MessagePack()], ids=["json", "messagepack"])
def test_loan_may_be_encoded_for_many(ends: Ends, codec: Any) -> None:
    loan = ends.client.loan(LARGE)
    loan.view[:] = BIG

    assert codec.encode(loan) == codec.encode(BIG)
    assert codec.encode(loan) == codec.encode(BIG)
    assert ends.send(loan) == BIG


@pytest.mark.parametrize("size", [3, LARGE])
def test_loan_that_is_copied_is_open_whatever_became_of_it(size: int) -> None:
    ends = Ends()
    ends.open()
    loan = ends.client.loan(size)  # there is no pool yet
    with pytest.raises(PayloadError):
        ends.client.values.pack([loan, object()])
    loan.view[:1] = b"x"

    assert ends.send([loan])[0][:1] == b"x"


def test_loan_closed_while_it_is_copied_is_closed_behind_it(ends: Ends) -> None:
    loan = ends.client.loan(LARGE)

    def memory(block: Block) -> bytes:
        loan.close()  # as another thread would
        return b"copied"

    with patch.object(Block, "memory", property(memory)):
        assert loan.content() == b"copied"
    assert repr(loan) == f"<Loan of {LARGE} bytes, lent, closed>"


def test_lent_loan_is_not_sent_elsewhere(ends: Ends) -> None:
    loan = ends.client.loan(LARGE)
    ends.client.values.pack(loan)

    with pytest.raises(LocalProtocolError, match="sent once"):
        Ends().warmed().send(loan)


def test_value_without_a_form_is_refused(ends: Ends) -> None:
    nested: Any = [BIG]
    for _ in range(10_000):
        nested = [nested]

    with pytest.raises(PayloadError, match="too deeply"):
        ends.client.values.pack(nested)
    with pytest.raises(PayloadError, match="empty Raw"):
        ends.client.values.pack(msgspec.Raw())
    with pytest.raises(PayloadError, match="cannot be encoded"):
        ends.client.values.pack({"params": [BIG, 2**70]})
    assert ends.client.values.encode([1]) == b"\x91\x01"


def test_view_with_gaps_is_not_lent(ends: Ends) -> None:
    with pytest.raises(PayloadError):
        ends.client.values.pack(memoryview(BIG + BIG)[::2])


def test_named_parameters_are_lent(ends: Ends) -> None:
    asked = {"method": "m", "params": [1], "named": {"a": BIG, "b": 2}}

    assert ends.send(asked) == asked
    assert lent(ends) == 1


def test_value_is_looked_at_without_what_is_lent(ends: Ends) -> None:
    loan = ends.client.loan(LARGE)
    raw = ends.pass_on([loan, 1])

    assert glance(ends.server.codec, raw) == ["<lent>", 1]
    assert glance(ends.server.codec, msgspec.Raw(b"\x01")) == 1
    with pytest.raises(PayloadError):
        glance(ends.server.codec, raw, list[int])
    with pytest.raises(PayloadError):
        glance(ends.server.codec, msgspec.Raw(msgspec.msgpack.encode(msgspec.msgpack.Ext(9, b""))))
    assert ends.server.values.decode(msgspec.Raw(b"\xd4\x00\x00")) is None  # msgpackr's undefined


# Who still writes


@pytest.mark.parametrize("part", [slice(None), slice(5, 9)], ids=["view", "slice"])
def test_block_is_free_when_nobody_can_write_to_it_any_more(part: slice) -> None:
    ends = Ends(limits=Limits(max_pool=LARGE)).warmed()
    view = ends.client.loan(LARGE).view[part]  # and the loan is gone
    assert not ends.client.loan(LARGE).lent
    assert ends.send(OTHER) == OTHER  # inline
    view[:1] = b"x"
    assert view[0] == ord("x")

    del view

    assert ends.client.loan(LARGE).lent


def test_block_that_came_back_is_not_free_while_somebody_can_write_to_it() -> None:
    ends = Ends(limits=Limits(max_pool=LARGE)).warmed()
    loan = ends.client.loan(LARGE)
    part = loan.view[5:9]
    ends.send(loan)
    gc.collect()
    ends.deliver()
    assert not ends.client.loan(LARGE).lent

    del part

    assert ends.client.loan(LARGE).lent


def test_nothing_but_taking_a_block_waits_for_who_takes_one(ends: Ends) -> None:
    class Held:
        def __enter__(self) -> None:  # by this thread, which a signal handler interrupts
            raise AssertionError("it would wait for ever")

        def __exit__(self, *_: object) -> None: ...

    loan, closed = ends.client.loan(LARGE), ends.client.loan(LARGE)
    ends.client.values._lender._guard = Held()

    closed.close()
    ends.client.take_back(ends.client.values.pack(loan))
    assert ends.send(loan) == bytes(LARGE)
    gc.collect()
    ends.deliver()  # RETURN
    ends.cut()

    assert not ends.client.loan(LARGE).lent


def test_loan_is_asked_for_in_the_middle_of_another() -> None:
    ends = Ends().warmed()
    middle: list[bool] = []

    class Meeting(deque[int]):
        def __bool__(self) -> bool:  # as a signal handler would, or the garbage collector
            middle.append(ends.client.loan(LARGE).lent)
            return False

    lender = ends.client.values._lender
    lender.given_back = Meeting()

    assert ends.client.loan(LARGE).lent
    assert middle == [False]


def test_loan_is_sent_again_after_its_connection(ends: Ends) -> None:
    loan = ends.client.loan(LARGE)
    loan.view[:] = BIG
    ends.client.values.pack(loan)
    ends.cut()
    other = Ends()
    other.open()
    other.warm_up()

    assert other.send(loan) == BIG
    other.cut()
    assert Ends().warmed().send(loan) == BIG


def test_loan_that_was_read_is_not_sent_again(ends: Ends) -> None:
    loan = ends.client.loan(LARGE)
    loan.view[:] = BIG
    ends.send(loan)
    gc.collect()
    ends.deliver()
    ends.client.loan(LARGE).view[:] = OTHER  # of the same block
    ends.cut()

    with pytest.raises(LocalProtocolError, match="sent once"):
        Ends().warmed().send(loan)


# Room


def test_block_comes_back_with_its_last_view() -> None:
    ends = Ends(limits=Limits(max_pool=LARGE))
    ends.open()
    ends.warm_up()
    view = ends.send(BIG, memoryview)
    part = view[5:9]
    del view
    assert ends.send(OTHER) == OTHER  # no room: inline
    assert ends.client.pool_counts == PoolCounts(lent=1, inline=2)

    assert part == BIG[5:9]
    del part
    gc.collect()
    ends.deliver()

    assert ends.send(OTHER, memoryview) == OTHER
    assert ends.client.pool_counts == PoolCounts(lent=2, inline=2)


def test_driver_is_told_when_there_is_something_to_return(ends: Ends) -> None:
    told: list[bool] = []
    memory = ends.server.memory
    assert memory is not None
    memory.tell = lambda: told.append(ends.server.news)

    view, other = ends.send(BIG, memoryview), ends.send(OTHER, memoryview)
    del view
    del other  # it is told once

    assert told == [True]


def test_pool_that_is_not_mapped_yet_goes_with_the_connection() -> None:
    ends = Ends()
    ends.open()
    ends.client.send(ends.client.values.pack(BIG))
    ends.client.data_to_send()
    assert ends.client.memory.open_fds  # type: ignore[union-attr]  # it is the fake

    ends.cut()

    assert not ends.client.memory.open_fds  # type: ignore[union-attr]


def test_payload_that_nobody_decodes_comes_back() -> None:
    ends = Ends(limits=Limits(max_pool=LARGE))
    ends.open()
    ends.warm_up()
    raw = ends.pass_on(BIG)
    assert not ends.client.loan(LARGE).lent
    del raw
    gc.collect()
    ends.deliver()

    assert ends.client.loan(LARGE).lent


def test_payload_taken_back_behind_the_end_is_nothing(ends: Ends) -> None:
    payload = ends.client.values.pack(BIG)
    ends.cut()

    ends.client.take_back(payload)
    assert ends.client.values.value_of(payload) == payload


def test_what_is_not_sent_is_free_again() -> None:
    ends = Ends(limits=Limits(max_pool=LARGE))
    ends.open()
    ends.warm_up()

    payload = ends.client.values.pack(BIG)
    assert len(payload) < LARGE
    ends.client.take_back(payload)
    with pytest.raises(PayloadError):
        ends.client.values.pack({"params": [BIG, object()]})

    assert ends.client.loan(LARGE).lent


def test_request_taken_back_while_it_is_held_is_free_again() -> None:
    ends = Ends(
        client={"limits": Limits(max_pool=LARGE)}, server={"limits": Limits(max_inflight=1)}
    )
    ends.open()
    ends.warm_up()
    ends.client.request(ends.client.values.pack(1), "first")
    nonce = ends.client.request(ends.client.values.pack(BIG), "held")
    assert not ends.client.loan(LARGE).lent

    ends.client.forget(nonce)

    assert ends.client.loan(LARGE).lent


def test_neighbours_that_come_back_are_one_room() -> None:
    ends = Ends(limits=Limits(max_pool=4 * LARGE))
    ends.open()
    ends.warm_up()
    loans = [ends.client.loan(LARGE) for _ in range(4)]
    assert all(loan.lent for loan in loans)
    for index in (1, 3, 0, 2):
        loans[index].close()

    assert ends.client.loan(4 * LARGE).lent


# Without


@pytest.mark.parametrize("who", ["client", "server"])
def test_memory_that_is_refused_is_done_without(who: str) -> None:
    ends = Ends(refusing=who)
    ends.open()

    assert [ends.send(BIG) == BIG for _ in range(3)] == [True] * 3

    assert ends.client.pool_counts == PoolCounts(lent=0, inline=3)
    assert not ends.client.memory.open_fds  # type: ignore[union-attr]  # it is the fake
    words = [data for _, data in ends.wire if b"pool" in data]
    assert len(words) == 2  # the two that show the capability; and nobody asks again


@pytest.mark.parametrize(
    "how",
    [
        {"client": {"pools": False}},
        {"server": {"pools": False}},
        {"dialects": ("classic",)},
        {"limits": Limits(max_pool=0)},
        {"server": {"limits": Limits(max_pool=BLOCK - 1)}},
    ],
    ids=str,
)
def test_other_end_that_cannot_is_told_nothing(how: dict[str, Any]) -> None:
    ends = Ends(**how)
    ends.open()
    loan = ends.client.loan(LARGE)
    loan.view[:] = BIG

    assert ends.send(loan, bytes) == BIG
    assert ends.send(BIG, bytes) == BIG

    assert not loan.lent
    assert ends.client.pool_counts == PoolCounts()
    assert ends.client.data_to_send() == b""


def test_less_is_borrowed_than_there_is() -> None:
    ends = Ends(
        client={"limits": Limits(max_pool=4 * LARGE)}, server={"limits": Limits(max_pool=LARGE)}
    )
    ends.open()
    ends.warm_up()

    assert ends.client.loan(LARGE).lent
    assert not ends.client.loan(2 * LARGE).lent


def test_after_the_end_views_stay_and_loans_are_inline(ends: Ends) -> None:
    view = ends.send(BIG, memoryview)

    ends.cut()

    assert view == BIG
    assert not ends.client.loan(LARGE).lent
    del view
    gc.collect()


# Lies


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [(0, 1, 8)],
        [(0, 0, 0)],
        [(0, 2**40, 8)],
        [(0, 0, 2**40)],
        [(0, 0, 8), (0, BLOCK, 8)],
        [(number, 0, 8) for number in range(2**14 + 1)],
    ],
    ids=lambda blocks: str(blocks)[:40],
)
def test_blocks_that_are_none_end_the_connection(ends: Ends, blocks: list[Any]) -> None:
    hostile(ends, 1, wrapped(blocks, 1))


@pytest.mark.parametrize(
    "payload",
    [
        wrapped([(0, 0, 8)], 1, key=b"guessed!"),
        wrapped([(0, 0, 8)], 1, key=b""),
        wrapped([0, 0, 8], 1),
        wrapped([(-1, 0, 8)], 1),
        wrapped([("a", 0, 8)], 1),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"hi")),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"")),
    ],
    ids=repr,
)
def test_extension_that_is_not_a_lent_payload_is_no_value(ends: Ends, payload: bytes) -> None:
    raw = ends.pass_on(msgspec.Raw(payload))

    with pytest.raises(PayloadError, match="unknown MessagePack extension 1"):
        ends.server.values.decode(raw)
    assert ends.server.values.decode(raw, msgspec.msgpack.Ext).code == 1  # whoever wants one
    assert ends.server.state is State.OPEN
    ends.client.take_back(payload)
    assert ends.send(BIG) == BIG


def test_block_that_is_still_lent_ends_the_connection(ends: Ends) -> None:
    view = ends.send(BIG, memoryview)

    assert "twice" in hostile(ends, 1, wrapped([(0, BLOCK, 8)], 1))
    assert view == BIG


def test_more_than_a_frame_ends_the_connection() -> None:
    ends = Ends(server={"limits": Limits(max_frame=2 * LARGE)})
    ends.open()
    ends.warm_up()

    hostile(ends, 1, wrapped([(0, 0, 3 * LARGE)], 1))


def test_lent_value_that_nests_too_deeply_ends_the_connection(ends: Ends) -> None:
    deep: Any = 1
    for _ in range(70):
        deep = [deep]

    assert "deeper" in hostile(ends, 1, wrapped([(0, 0, 8)], deep))


@pytest.mark.parametrize(
    "wrong",
    [
        reference(1),
        reference(2**63),
        reference(0, key=b"guessed!"),
        reference(0, key=b""),
        msgspec.msgpack.Ext(2, b""),
        msgspec.msgpack.Ext(2, KEY),
        msgspec.msgpack.Ext(2, KEY + bytes(9)),
    ],
    ids=repr,
)
def test_reference_to_nothing_is_no_value(ends: Ends, wrong: msgspec.msgpack.Ext) -> None:
    body = b"\x93\x01\xc0" + wrapped([(0, 0, 8)], [reference(0), wrong])
    ends.server.receive(frame(body), ends.seen["server"].reactions)

    with pytest.raises(PayloadError, match="nothing that is lent"):
        ends.server.values.decode(ends.raws.pop())
    assert ends.server.state is State.OPEN


@pytest.mark.parametrize(
    "of",
    [Any, list[bytes], list[memoryview], list[bytes | msgspec.Raw], list[bytes] | memoryview],
    ids=str,
)
def test_block_named_too_often_is_not_copied_as_often(ends: Ends, of: Any) -> None:
    body = b"\x93\x01\xc0" + wrapped([(0, 0, LARGE)], [reference(0)] * 100)
    ends.server.receive(frame(body), ends.seen["server"].reactions)

    with pytest.raises(PayloadError, match="too often"):
        ends.server.values.decode(ends.raws.pop(), of)


def test_codec_of_the_dialect_knows_no_references(ends: Ends) -> None:
    raw = ends.pass_on(BIG)

    with pytest.raises(PayloadError, match="unknown MessagePack extension"):
        ends.server.codec.decode(raw)  # as for what is passed on to other peers


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (LEND, (3, 9, LARGE)),
        (LEND, (3, 9, -1, KEY)),
        (LEND, (3, 9, LARGE, b"short")),
        (LEND, (0, 9, LARGE, KEY)),
        (BORROW, BLOCK),
        (BORROW, 0),
        (RETURN, [0]),
        (RETURN, "a"),
    ],
    ids=str,
)
def test_word_about_a_pool_that_makes_no_sense_ends_the_connection(
    ends: Ends, kind: int, facts: Any
) -> None:
    hostile(ends, kind, msgspec.msgpack.encode(facts))


def test_second_offer_ends_the_connection_though_the_first_was_refused() -> None:
    ends = Ends(refusing="server").warmed()

    assert "second" in hostile(ends, LEND, msgspec.msgpack.encode((0, 9, LARGE, KEY)))


def test_block_returned_twice_ends_the_connection(ends: Ends) -> None:
    ends.send(BIG)  # which is returned, too
    gc.collect()
    ends.deliver()
    body = b"\x93" + msgspec.msgpack.encode(RETURN) + b"\xc0" + msgspec.msgpack.encode([0])

    ends.client.receive(frame(body), ends.seen["client"].reactions)

    assert ends.client.state is State.CLOSED


@pytest.mark.parametrize("mapped", [1, 2**40])
def test_more_borrowed_than_there_is_ends_the_connection(mapped: int) -> None:
    ends = Ends()
    ends.open()
    ends.client.send(ends.client.values.pack(BIG))
    ends.client.data_to_send()
    body = b"\x93" + msgspec.msgpack.encode(BORROW) + b"\xc0" + msgspec.msgpack.encode(mapped)

    ends.client.receive(frame(body), ends.seen["client"].reactions)

    assert ends.client.state is State.CLOSED
    assert not ends.client.memory.open_fds  # type: ignore[union-attr]  # it is the fake


@pytest.mark.parametrize("kind", [LEND, BORROW, RETURN])
def test_word_about_pools_without_the_capability_is_unknown(kind: int) -> None:
    pair = SessionPair(dialects=("native", "classic")).open()
    body = b"\x93" + msgspec.msgpack.encode(kind) + b"\xc0\x00"

    pair.server.receive(frame(body), pair.seen["server"].reactions)

    assert pair.server.counts.unknown == 1
    assert pair.server.state is State.OPEN


def test_who_watches_sees_packets_without_taking_what_is_lent(ends: Ends) -> None:
    seen: list[Any] = []
    ends.client.watch(lambda way, packet, size: seen.append((way, packet.t, bytes(packet.d)[:3])))
    ends.server.watch(lambda way, packet, size: seen.append((way, packet.t, bytes(packet.d)[:3])))

    assert ends.send(BIG, memoryview) == BIG

    assert ("out", 1, b"\xd8\x02s") in seen
    assert ("in", 1, b"\xd8\x02s") in seen
    ends.server.watch(None)
    assert ends.send(BIG, memoryview) == BIG


def test_bytes_on_the_page_about_the_wire_are_those_of_the_wire() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "wire.md"
    rows = re.findall(
        r"\| `([0-9a-f ]+)` \| (LEND|BORROW|MESSAGE|RETURN)\b", page.read_text("utf-8")
    )
    told = {kind: bytes.fromhex(row) for row, kind in rows if kind != "MESSAGE" or "d8 02" in row}
    ends = Ends()
    ends.open()
    memory = bytearray(16_384)
    memory[4096:4296] = BIG[:200]
    ends.server.memory.open = lambda *_: memoryview(memory).toreadonly()  # type: ignore[method-assign, union-attr]  # it is the fake
    react = ends.seen["server"].reactions

    ends.server.receive(told["LEND"], react)
    assert ends.server.data_to_send() == told["BORROW"]
    ends.server.receive(told["MESSAGE"], react)
    assert ends.server.values.decode(ends.raws.pop()) == BIG[:200]
    gc.collect()
    assert ends.server.data_to_send() == told["RETURN"]
