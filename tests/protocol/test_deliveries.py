from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone.errors import PayloadError, RemoteProtocolError
from interphone.limits import Limits
from interphone.protocol.deliveries import MAX_KNOWN, Deliveries, delivery
from interphone.protocol.events import Reactions
from interphone.protocol.payload import MessagePack
from interphone.protocol.session import Session
from interphone.protocol.shapes import Marks

encode = msgspec.msgpack.encode
NOBODY = Reactions(**dict.fromkeys(Reactions._fields, lambda *_: None))


class Ends:
    """A server's Session, and a client's that has heard of the same ends each time."""

    def __init__(self, *, taking: bool = False) -> None:
        self.heard: list[tuple[str, bytes, Marks]] = []
        self.taken: list[bytes] = []
        self.violated: list[Exception] = []
        self.taking = taking
        self.open = True
        dialects = ("native", "classic")
        self.server = Session("server", dialects=dialects)
        self.client = Session("client", dialects=dialects, limits=Limits(max_depth=8))
        self.react = self._reactions()
        self.client.open()
        self.server.receive(self.client.data_to_send(), self._reactions())
        self.server.accept("1")
        self.say(self.server.data_to_send())

    def _reactions(self) -> Reactions:
        ignored = dict.fromkeys(Reactions._fields, lambda *_: None)
        known = {"publication": self._publication, "violated": self.violated.append}
        return Reactions(**(ignored | known))

    def _publication(self, topic: str, raw: msgspec.Raw, marks: Marks):
        self.heard.append((topic, bytes(raw), marks))
        return self._take if self.taking else None

    def _take(self, raw: msgspec.Raw) -> bool:
        if self.open:
            self.taken.append(bytes(raw))
        return self.open

    def say(self, data: bytes) -> None:
        self.client.receive(data, self.react)

    def publish(self, topic: str, value: object, *to: int, retained: bool = False) -> None:
        body = self.server.publication(topic, encode(value), None, Marks(to, retained))
        self.server.deliver(body)
        self.say(self.server.data_to_send())

    def frame(self, body: bytes) -> None:
        self.server._wire.put(body)
        self.say(self.server.data_to_send())


TOPICS = st.sampled_from(["a", "b.c", "ä", "x" * 15, "x" * 16, "x" * 31, "x" * 32, "x" * 255])
VALUES = st.one_of(
    st.none(), st.integers(0, 2**40), st.text(max_size=40), st.lists(st.integers(0, 9), max_size=3)
)
PUBLISHED = st.tuples(TOPICS, VALUES, st.lists(st.integers(1, 300), max_size=2), st.booleans())


@given(st.lists(PUBLISHED, max_size=12))
def test_known_publications_say_what_they_say_the_long_way(published):
    ends = Ends()

    for topic, value, to, retained in published:
        ends.publish(topic, value, *to, retained=retained)

    assert ends.heard == [
        (topic, encode(value), Marks(tuple(to), retained))
        for topic, value, to, retained in published
    ]


def test_next_one_is_given_to_what_takes_it_until_it_does_not():
    ends = Ends(taking=True)

    for number in range(4):
        ends.open = number < 3
        ends.publish("a", number, 1)

    assert ends.taken == [encode(1), encode(2)]
    assert [raw for _, raw, _ in ends.heard] == [encode(0), encode(3)]


def test_two_topics_and_marks_are_told_apart():
    ends = Ends(taking=True)

    for topic, to in [("a", 1), ("b", 1), ("a", 1), ("b", 1), ("a", 2), ("a", 1)]:
        ends.publish(topic, 0, to)

    assert [(topic, marks.to) for topic, _, marks in ends.heard] == [
        ("a", (1,)),
        ("b", (1,)),
        ("a", (2,)),
        ("a", (1,)),
    ]
    assert len(ends.taken) == 2


@pytest.mark.parametrize("value", [b"", b"\xc0\xc0", b"\x92\x01", b"\xc1", b"\xd9\xff"])
def test_what_is_no_value_ends_the_connection_all_the_same(value):
    ends = Ends(taking=True)
    ends.open = not value  # what takes it refuses what is none, and is never asked about nothing
    ends.publish("a", 0, 1)
    body = ends.server.publication("a", encode(0), None, Marks((1,), False))
    at = body.index(b"\xa7message") + 8

    ends.frame(body[:at] + value + body[at + 1 :])

    assert len(ends.heard) == 1
    assert not ends.taken
    assert [type(error) for error in ends.violated] == [RemoteProtocolError]


@pytest.mark.parametrize(("depth", "taken"), [(7, True), (8, False)])
def test_what_nests_too_deeply_ends_the_connection_all_the_same(depth, taken):
    for known in (False, True):
        ends = Ends()
        if known:
            ends.publish("a", 0, 1)
        value = b"\x91" * depth + b"\x00"
        body = b"\x96\x01\xc0\x82\xa3pub\xa1a\xa7message" + value + b"\xa3pub\xc0\x81\xa2to\x91\x01"

        ends.frame(body)

        assert bool(ends.violated) is not taken


@pytest.mark.parametrize(("depth", "fits"), [(7, True), (8, False)])
def test_value_that_nests_too_deeply_for_a_publication_is_refused(depth, fits):
    codec, marks = MessagePack(max_depth=8), Marks((1,), False)
    value = b"\x91" * depth + b"\x00"

    if fits:
        assert value in delivery(codec, "a", value, marks)
    else:
        with pytest.raises(PayloadError, match="deeper"):
            delivery(codec, "a", value, marks)


def test_who_watches_sees_every_one():
    ends, seen = Ends(taking=True), []
    ends.publish("a", 0, 1)

    ends.client.watch(lambda way, packet, size: seen.append(way))
    ends.publish("a", 1, 1)
    ends.publish("a", 2, 1)
    ends.client.watch(None)
    ends.publish("a", 3, 1)

    assert seen == ["in", "in"]
    assert len(ends.heard) == 4


def test_nothing_is_recognized_behind_a_goodbye():
    ends = Ends()
    ends.publish("a", 0, 1)

    ends.client.say_goodbye(None)
    ends.publish("a", 1, 1)

    assert len(ends.heard) == 1
    assert ends.client.counts.illegal == 1


def test_no_more_than_so_many_are_known():
    deliveries = Deliveries(MessagePack())
    for number in range(3 * MAX_KNOWN):
        deliveries.note(f"topic.{number}", Marks((1,), False), msgspec.Raw(b"\xc0"), None)

    assert len(deliveries._known) <= MAX_KNOWN


def test_short_bodies_are_none():
    deliveries = Deliveries(MessagePack())
    deliveries.note("a", Marks((1,), False), msgspec.Raw(b"\x81\xa2to\x91\x01"), None)
    whole = b"\x96\x01\xc0\x82\xa3pub\xa1b\xa7message"

    for size in range(len(whole) + 1):
        assert not deliveries.take(whole[:size], NOBODY)
