from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone.protocol.topics import (
    MAX_TOPIC,
    Topics,
    is_pattern,
    matcher,
    matches,
    pattern_fault,
    topic_fault,
)

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


# Patterns


@pytest.mark.parametrize(
    ("pattern", "topic", "match"),
    [
        ("news", "news", True),
        ("news", "news.sport", False),
        ("news.*", "news.sport", True),
        ("news.*", "news", False),
        ("news.*", "news.sport.chess", False),
        ("news.*", "news.", True),
        ("*.sport", "news.sport", True),
        ("*.*", "news.sport", True),
        ("*", "news", True),
        ("*", "news.sport", False),
        ("news.>", "news.sport", True),
        ("news.>", "news.sport.chess", True),
        ("news.>", "news", False),
        ("news.>", "newsreel.sport", False),
        (">", "news", True),
        (">", "news.sport.chess", True),
        ("*.>", "news", False),
        ("*.>", "news.sport.chess", True),
        ("new*", "news", False),
        ("new*", "new*", True),
        ("a>", "a.b", False),
        ("a>", "a>", True),
        ("*", "*", True),
    ],
)
def test_pattern_matches(pattern: str, topic: str, match: bool) -> None:
    topics: Topics[str] = Topics()
    topics.add("peer", pattern)

    assert matches(pattern, topic) is match
    assert topics.matching(topic) == (("peer",) if match else ())


@pytest.mark.parametrize("name", ["*", ">", "a.*", "*.a", "a.>", "a.*.b.>"])
def test_wildcard_alone_in_a_level_makes_a_pattern(name: str) -> None:
    assert is_pattern(name)
    assert pattern_fault(name) is None


@pytest.mark.parametrize("name", ["a", "a*", "*a", "a>", ">a", "**", ">>", "a.b*.c", ""])
def test_wildcard_within_a_level_is_a_character(name: str) -> None:
    assert not is_pattern(name)


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        (">.a", "before its end"),
        ("a.>.b", "before its end"),
        (">.>", "before its end"),
        ("", "empty"),
        ("$sys.>", "reserved"),
    ],
)
def test_pattern_has_a_fault(pattern: str, fault: str) -> None:
    assert fault in (pattern_fault(pattern) or "")


def test_stars_can_be_meant_as_they_stand() -> None:
    topics: Topics[str] = Topics()
    topics.add("node", "a.*", exact=True)
    topics.add("ours", "a.*")

    assert topics.matching("a.b") == ("ours",)
    assert topics.matching("a.*") == ("node", "ours")
    assert topics.holders("a.*") == ("node", "ours")

    topics.remove("node", "a.*")

    assert topics.matching("a.*") == ("ours",)


def test_subscriber_with_several_matching_patterns_is_found_once() -> None:
    topics: Topics[str] = Topics()
    for pattern in ("a.b", "a.*", "*.b", "a.>", ">", "*.*"):
        topics.add("peer", pattern)

    assert topics.matching("a.b") == ("peer",)
    assert topics.subscribers() == ("peer",)


def test_removed_patterns_leave_nothing_behind() -> None:
    topics: Topics[str] = Topics()
    for pattern in ("a.*.c", "a.*.>", "a.*", ">", "a.b.*.d"):
        topics.add("peer", pattern)
        topics.add("other", pattern)

    topics.drop("peer")
    assert topics.matching("a.b.c") == ("other",)
    topics.drop("other")

    assert topics.matching("a.b.c") == ()
    assert not topics._patterns
    assert topics.names() == topics.subscribers() == ()
    assert topics.total == 0


def test_long_names_are_matched_without_recursion() -> None:
    topics: Topics[str] = Topics()
    deep = ".".join("a" * 128)
    topics.add("peer", ".".join("*" * 127) + ".>")

    assert topics.matching(deep) == ("peer",)


def naive(pattern: str, topic: str) -> bool:
    """What NATS says, word for word."""
    wanted, levels = pattern.split("."), topic.split(".")
    for index, want in enumerate(wanted):
        if want == ">":
            return index < len(levels)
        if index >= len(levels) or (want != "*" and want != levels[index]):
            return False
    return len(wanted) == len(levels)


level = st.sampled_from(["a", "b", "", "*", "a*"])
names = st.lists(level, min_size=1, max_size=4).map(".".join).filter(bool)
patterns = st.one_of(
    names,
    st.just(">"),
    names.map(lambda name: f"{name}.>"),
)
change = st.tuples(st.booleans(), st.integers(0, 3), patterns)


@given(st.lists(change, max_size=30), st.lists(names, min_size=1, max_size=5))
def test_index_finds_whom_a_naive_matcher_finds(
    changes: list[tuple[bool, int, str]], published: list[str]
) -> None:
    topics: Topics[int] = Topics()
    model: set[tuple[int, str]] = set()
    for adds, subscriber, pattern in changes:
        entry = (subscriber, pattern)
        if adds:
            assert topics.add(subscriber, pattern) is (entry not in model)
            model.add(entry)
        else:
            assert topics.remove(subscriber, pattern) is (entry in model)
            model.discard(entry)

    for topic in published:
        found = topics.matching(topic)
        assert len(found) == len(set(found))
        assert set(found) == {who for who, pattern in model if naive(pattern, topic)}
        assert all(matches(pattern, topic) is naive(pattern, topic) for _, pattern in model)
        wanted = matcher(pattern for _, pattern in model)
        assert [wanted(topic), wanted(topic)] == [bool(found)] * 2
    assert topics.total == len(model)
    assert set(topics.names()) == {pattern for _, pattern in model}
    for subscriber in range(4):
        topics.drop(subscriber)
    assert not topics._patterns
    assert not topics._exact
