from __future__ import annotations

import sys

import msgspec
import pytest

from interphone.errors import Overloaded
from interphone.protocol.payload import Json
from interphone.protocol.retained import Retained

CODEC = Json()


def keep(retained: Retained, topic: str, raw: bytes = b"1") -> None:
    retained.keep(topic, msgspec.Raw(raw), CODEC)


def found(retained: Retained, *topics: str) -> list[tuple[str, bytes]]:
    return [(kept.topic, bytes(kept.raw)) for kept in retained.matching(topics)]


def test_last_value_of_a_topic_is_kept() -> None:
    retained = Retained(10, 100)

    keep(retained, "a", b"1")
    keep(retained, "a", b"22")

    assert found(retained, "a") == [("a", b"22")]
    assert found(retained, "b") == []
    assert (len(retained), retained.size) == (1, 3)


def test_each_value_is_found_once_oldest_first() -> None:
    retained = Retained(10, 100)
    for topic in ("n.a", "n.b", "m", "n.a"):
        keep(retained, topic)

    assert [topic for topic, _ in found(retained, "n.*", "n.>", "n.a")] == ["n.b", "n.a"]
    assert [topic for topic, _ in found(retained, "n.a", "m")] == ["m", "n.a"]
    assert [topic for topic, _ in found(retained, ">")] == ["n.b", "m", "n.a"]


def test_looking_for_values_costs_no_more_with_more_patterns() -> None:
    retained = Retained(100, 10_000)
    for number in range(100):
        keep(retained, f"a.b.c.{number}")

    def calls(patterns: int) -> int:
        made = 0

        def count(frame: object, event: str, arg: object) -> None:
            nonlocal made
            made += event == "call"

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            assert retained.matching(f"a.b.*.x{number}" for number in range(patterns)) == []
        finally:
            sys.setprofile(before)
        return made

    # A pattern is looked at once at most for each of its levels, by one call or two.
    assert calls(200) - calls(100) < 100 * 10


def test_value_is_told_from_its_successors() -> None:
    retained = Retained(10, 100)
    keep(retained, "a")
    keep(retained, "b")
    before = retained.count
    keep(retained, "b")

    assert [retained.get(topic, before) is None for topic in "abc"] == [False, True, True]
    kept = retained.get("b", retained.count)
    assert kept is not None
    assert kept.topic == "b"


def test_forgotten_value_is_gone() -> None:
    retained = Retained(10, 100)
    keep(retained, "a")

    assert retained.forget("a") is True
    assert retained.forget("a") is False
    assert found(retained, "a") == []
    assert (len(retained), retained.size) == (0, 0)


@pytest.mark.parametrize(("count", "fits"), [(2, True), (3, True), (4, False)])
def test_so_many_topics_have_a_last_value(count: int, fits: bool) -> None:
    retained = Retained(3, 100)

    for number in range(count - 1):
        keep(retained, str(number))
    if fits:
        keep(retained, "last")
    else:
        with pytest.raises(Overloaded, match="over 3 topics"):
            keep(retained, "last")
        keep(retained, "0", b"2")  # one that is there may be replaced

    assert len(retained) == min(count, 3)


@pytest.mark.parametrize(("size", "fits"), [(8, True), (9, True), (10, False)])
def test_last_values_are_bounded_by_bytes(size: int, fits: bool) -> None:
    retained = Retained(10, 10)
    keep(retained, "a", b"123")

    if fits:
        keep(retained, "a", b"x" * size)
        assert retained.size == size + 1
    else:
        with pytest.raises(Overloaded, match="over 10 bytes"):
            keep(retained, "a", b"x" * size)
        assert found(retained, "a") == [("a", b"123")]
        assert retained.size == 4
