"""Topics: names that publications are filed under, and who gets them.

A topic consists of levels, separated by dots. A subscription may name a pattern: in it a
level ``*`` stands for exactly one level, and ``>``, at the end, for one or more. A star
within a longer level is a star.

`Topics` is the index from topic to subscribers. It is keyed by the subscriber object
itself, never by an id, so nobody can subscribe or unsubscribe for somebody else. Exact
names are in a dictionary; patterns are in a tree of their levels, so that a publication
meets only those patterns that begin as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

__all__ = [
    "MAX_TOPIC",
    "Step",
    "Topics",
    "first_step",
    "is_pattern",
    "matcher",
    "matches",
    "pattern_fault",
    "topic_fault",
]

MAX_TOPIC = 255  # bytes of UTF-8
ONE, REST = "*", ">"

S = TypeVar("S")


def topic_fault(topic: str) -> str | None:
    """Say what is wrong with a topic's name, or None if it may be used."""
    if not topic:
        return "a topic cannot be empty"
    if not topic.isprintable() and any(ord(char) < 32 or ord(char) == 127 for char in topic):
        return f"the topic {topic[:75]!r} has a control character"
    if len(topic.encode("utf-8", "surrogatepass")) > MAX_TOPIC:
        return f"the topic {topic[:32]!r}… is over {MAX_TOPIC} bytes"
    if topic.startswith("$"):
        return f"the topic {topic!r} is reserved: names that begin with $ are the library's"
    return None


def pattern_fault(pattern: str) -> str | None:
    """Say what is wrong with a topic or pattern to subscribe to, or None if it may be used."""
    if REST in pattern.split(".")[:-1]:
        return f"the pattern {pattern[:75]!r} has a level {REST!r} before its end"
    return topic_fault(pattern)


def is_pattern(topic: str) -> bool:
    """Whether a level of the name is a wildcard."""
    levels = topic.split(".")
    return ONE in levels or REST in levels


def matches(pattern: str, topic: str) -> bool:
    """Whether a publication on `topic` is for who subscribed to `pattern`."""
    wanted, levels = pattern.split("."), topic.split(".")
    if wanted[-1] == REST:
        wanted.pop()
        if len(levels) <= len(wanted):
            return False
    elif len(levels) != len(wanted):
        return False
    return all(want in (ONE, level) for want, level in zip(wanted, levels, strict=False))


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return whether a topic is for who subscribed to these; for many topics and patterns.

    Each level of a topic costs the same, however many patterns there are: what is left of them
    after some levels is found out once, and patterns that go on alike are one.
    """
    begin = first_step(patterns)

    def wanted(topic: str) -> bool:
        step = begin
        for level in topic.split("."):
            if step.rest or not step.left:
                return step.rest
            step = step.after(level)
        return step.ends

    return wanted


def first_step(patterns: Iterable[str]) -> Step:
    """What these patterns want of topics, before the first level of one is known."""
    known: dict[tuple[str, _Chain | None], _Chain] = {}
    chains: dict[_Chain | None, None] = {}
    for pattern in patterns:
        chain: _Chain | None = None
        for level in reversed(pattern.split(".")):
            key = level, chain
            chain = known.get(key) or known.setdefault(key, _Chain(level, chain))
        chains[chain] = None
    return Step(chains)


class _Chain:
    """Levels of a pattern from one on; those that say the same are one object."""

    __slots__ = ("level", "tail")

    def __init__(self, level: str, tail: _Chain | None) -> None:
        self.level = level
        self.tail = tail


class Step:
    """What of some patterns is left for topics that begin in one way.

    Attributes:
        left: It; None is a pattern that ends here.
        ends: Whether one of them ends here.
        rest: Whether one takes whatever follows.
        open: What goes on with any level.
        said: What goes on with this very level.
    """

    __slots__ = ("_next", "ends", "left", "open", "rest", "said")

    def __init__(self, left: dict[_Chain | None, None]) -> None:
        self.left = left
        self.ends = None in left
        self.rest = False
        self.said: dict[str, dict[_Chain | None, None]] = {}
        self.open: dict[_Chain | None, None] = {}
        self._next: dict[str | None, Step] = {}  # None: a level that nobody says
        for chain in left:
            if chain is None:
                continue
            if chain.level == ONE:
                self.open[chain.tail] = None
            elif chain.level == REST:
                self.rest = True
            else:
                self.said.setdefault(chain.level, {})[chain.tail] = None

    def after(self, level: str) -> Step:
        """What is left when the topic goes on with this level."""
        key = level if level in self.said else None
        step = self._next.get(key)
        if step is None:
            said = {} if key is None else self.said[key]
            step = self._next[key] = Step(self.open | said)
        return step


class _Node(Generic[S]):
    """A level of the patterns.

    Attributes:
        below: The next level, by what it says; `ONE` is what a star says.
        here: Who subscribed to the pattern that ends here.
        rest: Who subscribed to it with a `REST` behind.
    """

    __slots__ = ("below", "here", "rest")

    def __init__(self) -> None:
        self.below: dict[str, _Node[S]] = {}
        self.here: dict[S, None] = {}
        self.rest: dict[S, None] = {}

    def __bool__(self) -> bool:
        return bool(self.below or self.here or self.rest)


class Topics(Generic[S]):
    """Which subscribers want which topic.

    Attributes:
        total: Subscriptions in all.
        changes: How often anybody subscribed or unsubscribed.
    """

    def __init__(self) -> None:
        self._holders: dict[str, dict[S, None]] = {}  # by the very name they gave
        self._exact: dict[str, dict[S, None]] = {}
        self._patterns: _Node[S] = _Node()
        self._topics: dict[S, dict[str, None]] = {}
        self.total = self.changes = 0

    def add(self, subscriber: S, topic: str, *, exact: bool = False) -> bool:
        """Subscribe; False if that was so already. `exact` takes stars for plain stars."""
        holders = self._holders.setdefault(topic, {})
        if subscriber in holders:
            return False
        holders[subscriber] = None
        self._topics.setdefault(subscriber, {})[topic] = None
        self.total += 1
        self.changes += 1
        if exact or not is_pattern(topic):
            self._exact.setdefault(topic, {})[subscriber] = None
        else:
            self._add_pattern(subscriber, topic.split("."))
        return True

    def _add_pattern(self, subscriber: S, levels: list[str]) -> None:
        node = self._patterns
        rest = levels[-1] == REST
        for level in levels[:-1] if rest else levels:
            node = node.below.setdefault(level, _Node())
        (node.rest if rest else node.here)[subscriber] = None

    def remove(self, subscriber: S, topic: str) -> bool:
        """Unsubscribe; False if it was not subscribed."""
        holders = self._holders.get(topic)
        if holders is None or subscriber not in holders:
            return False
        _discard(self._holders, topic, subscriber)
        _discard(self._topics, subscriber, topic)
        self.total -= 1
        self.changes += 1
        if subscriber in self._exact.get(topic, ()):
            _discard(self._exact, topic, subscriber)
        else:
            self._remove_pattern(subscriber, topic.split("."))
        return True

    def _remove_pattern(self, subscriber: S, levels: list[str]) -> None:
        rest = levels[-1] == REST
        path = [self._patterns]
        for level in levels[:-1] if rest else levels:
            path.append(path[-1].below[level])
        del (path[-1].rest if rest else path[-1].here)[subscriber]
        while len(path) > 1 and not path[-1]:  # what leads nowhere any more
            path.pop()
            del path[-1].below[levels[len(path) - 1]]

    def drop(self, subscriber: S) -> tuple[str, ...]:
        """Remove the subscriber altogether; return the topics it had."""
        topics = self.of(subscriber)
        for topic in topics:
            self.remove(subscriber, topic)
        return topics

    def of(self, subscriber: S) -> tuple[str, ...]:
        """The topics and patterns of one subscriber."""
        return tuple(self._topics.get(subscriber, ()))

    def has(self, subscriber: S, topic: str) -> bool:
        """Whether this very topic or pattern is one of the subscriber's."""
        return topic in self._topics.get(subscriber, ())

    def count(self, subscriber: S) -> int:
        """How many topics and patterns a subscriber has."""
        return len(self._topics.get(subscriber, ()))

    def subscribers(self) -> tuple[S, ...]:
        """Everybody who wants anything."""
        return tuple(self._topics)

    def names(self) -> tuple[str, ...]:
        """Every topic and pattern somebody wants."""
        return tuple(self._holders)

    def holders(self, topic: str) -> tuple[S, ...]:
        """The subscribers that gave this very topic or pattern."""
        return tuple(self._holders.get(topic, ()))

    def matching(self, topic: str) -> tuple[S, ...]:
        """The subscribers a publication on `topic` goes to, each once."""
        exact = self._exact.get(topic, {})
        if not self._patterns:
            return tuple(exact)
        found = dict(exact)
        nodes, levels = [self._patterns], topic.split(".")
        for level in levels:
            below: list[_Node[S]] = []
            for node in nodes:
                found |= node.rest
                if level in node.below:
                    below.append(node.below[level])
                if ONE in node.below and level != ONE:
                    below.append(node.below[ONE])
            nodes = below
            if not nodes:
                break
        for node in nodes:
            found |= node.here
        return tuple(found)


K = TypeVar("K")
V = TypeVar("V")


def _discard(table: dict[K, dict[V, None]], key: K, value: V) -> None:
    """Remove an entry, and what is empty without it."""
    values = table[key]
    del values[value]
    if not values:
        del table[key]
