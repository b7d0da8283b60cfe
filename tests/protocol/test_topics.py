from __future__ import annotations

import pytest

from interphone.protocol.topics import MAX_TOPIC, Topics, topic_fault

# Names


@pytest.mark.parametrize(
    "topic", ["a", "news", "a.b.c", "*", "été", "\N{GRINNING FACE}", "x" * 255]
)
def test_name_may_be_used(topic: str) -> None:
    assert topic_fault(topic) is None


@pytest.mark.parametrize("topic", ["constructor", "__proto__", "toString", "/re/", "ready", "a b"])
def test_names_that_mean_something_to_node_may_be_used(topic: str) -> None:
    assert topic_fault(topic) is None


@pytest.mark.parametrize(
    ("topic", "fault"),
    [
        ("", "empty"),
        ("a\nb", "control"),
        ("\x00", "control"),
        ("\x7f", "control"),
        ("$info", "reserved"),
        ("x" * 256, "over 255"),
        ("é" * 128, "over 255"),
    ],
)
def test_name_has_a_fault(topic: str, fault: str) -> None:
    assert fault in (topic_fault(topic) or "")


@pytest.mark.parametrize(("size", "good"), [(254, True), (255, True), (256, False)])
def test_length_is_bounded(size: int, good: bool) -> None:
    assert (topic_fault("x" * size) is None) == good
    assert MAX_TOPIC == 255


def test_characters_that_cannot_be_printed_but_are_no_controls_pass() -> None:
    assert topic_fault("\u200b") is None


def test_lone_surrogate_passes() -> None:
    assert topic_fault("\ud800") is None


# The table


def test_subscriber_is_found_by_its_topic() -> None:
    topics: Topics[object] = Topics()
    one, other = object(), object()
    topics.add(one, "a")
    topics.add(other, "b")

    assert topics.matching("a") == (one,)
    assert topics.matching("c") == ()


def test_subscribers_keep_their_order() -> None:
    topics: Topics[str] = Topics()
    for name in ("z", "y", "x"):
        topics.add(name, "a")

    assert topics.matching("a") == ("z", "y", "x")


def test_second_subscription_changes_nothing() -> None:
    topics: Topics[str] = Topics()

    assert topics.add("peer", "a") is True
    assert topics.add("peer", "a") is False
    assert topics.total == 1


def test_removed_subscription_is_gone() -> None:
    topics: Topics[str] = Topics()
    topics.add("peer", "a")
    topics.add("peer", "b")
    topics.add("other", "a")

    assert topics.remove("peer", "a") is True

    assert topics.matching("a") == ("other",)
    assert topics.of("peer") == ("b",)
    assert topics.total == 2


@pytest.mark.parametrize("topic", ["a", "never"])
def test_nobody_is_removed_for_somebody_else(topic: str) -> None:
    topics: Topics[str] = Topics()
    topics.add("peer", "a")

    assert topics.remove("other", topic) is False
    assert topics.total == 1


def test_dropped_subscriber_leaves_nothing_behind() -> None:
    topics: Topics[str] = Topics()
    topics.add("peer", "a")
    topics.add("peer", "b")
    topics.add("other", "b")

    assert topics.drop("peer") == ("a", "b")

    assert topics.of("peer") == ()
    assert topics.names() == ("b",)
    assert topics.total == 1


def test_unknown_subscriber_is_dropped_without_a_word() -> None:
    topics: Topics[str] = Topics()

    assert topics.drop("peer") == ()


def test_topic_without_subscribers_is_no_topic() -> None:
    topics: Topics[str] = Topics()
    topics.add("peer", "a")

    topics.remove("peer", "a")

    assert topics.names() == ()
