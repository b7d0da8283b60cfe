"""Retained: the last value of each topic that was published to be kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

import msgspec

from ..errors import Overloaded
from .payload import Codec
from .topics import Step, first_step, is_pattern

__all__ = ["Kept", "Retained"]


class Kept(NamedTuple):
    """A value as its publisher wrote it.

    Attributes:
        number: How many had been kept before it.
    """

    topic: str
    raw: msgspec.Raw
    codec: Codec
    number: int


class _Level:
    """A level of the topics; `topic` is the one that ends here, if there is one."""

    __slots__ = ("below", "topic")

    def __init__(self) -> None:
        self.below: dict[str, _Level] = {}
        self.topic: str | None = None


class Retained:
    """Last values by topic, at most so many and so many bytes.

    Attributes:
        size: Bytes of all values and their topics.
        count: How many have been kept so far.
    """

    def __init__(self, max_topics: int, max_size: int) -> None:
        self._max_topics = max_topics
        self._max_size = max_size
        self._kept: dict[str, Kept] = {}
        self._levels = _Level()  # their topics, so that a pattern meets only what begins as it does
        self.size = self.count = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, topic: str, raw: msgspec.Raw, codec: Codec) -> None:
        """Keep the value in place of the last one.

        Raises:
            Overloaded: It is one too many, or too large; the last one stays.
        """
        last = self._kept.get(topic)
        size = self.size + _size(topic, raw) - (0 if last is None else _size(last.topic, last.raw))
        if last is None and len(self._kept) >= self._max_topics:
            raise Overloaded(f"over {self._max_topics} topics have a last value")
        if size > self._max_size:
            raise Overloaded(f"the last values of all topics are over {self._max_size} bytes")
        if last is None:
            self._find(topic, make=True)[-1].topic = topic
        copy = raw.copy()  # not the frame it came in
        self._kept[topic] = Kept(topic, copy, codec, self.count)
        self.count += 1
        self.size = size

    def forget(self, topic: str) -> bool:
        """Keep no value of the topic; False if there was none."""
        last = self._kept.pop(topic, None)
        if last is None:
            return False
        self.size -= _size(last.topic, last.raw)
        path, levels = self._find(topic), topic.split(".")
        path[-1].topic = None
        while len(path) > 1 and path[-1].topic is None and not path[-1].below:
            path.pop()  # what leads nowhere any more
            del path[-1].below[levels[len(path) - 1]]
        return True

    def _find(self, topic: str, *, make: bool = False) -> list[_Level]:
        """The levels that lead to a topic, from the root."""
        path = [self._levels]
        for level in topic.split("."):
            below = path[-1].below
            if make and level not in below:
                below[level] = _Level()
            path.append(below[level])
        return path

    def get(self, topic: str, before: int) -> Kept | None:
        """The value of a topic, if it was among the first `before` that were kept."""
        kept = self._kept.get(topic)
        return kept if kept is not None and kept.number < before else None

    def matching(self, topics: Iterable[str]) -> list[Kept]:
        """The values for who subscribes to these topics and patterns, each once, oldest first."""
        names, patterns = set[str](), []
        for topic in topics:
            if is_pattern(topic):
                patterns.append(topic)
            elif topic in self._kept:
                names.add(topic)
        if patterns:
            names.update(self._matched(first_step(patterns)))
        return sorted([self._kept[name] for name in names], key=_NUMBER)

    def _matched(self, begin: Step) -> Iterator[str]:
        """The topics that patterns want; of the levels only those are looked at that lead there."""
        places = [(self._levels, begin)]
        while places:
            level, step = places.pop()
            if step.ends and level.topic is not None:
                yield level.topic
            if step.rest:
                yield from _all_below(level)
            elif step.open or len(step.said) > len(level.below):
                places += [(below, step.after(name)) for name, below in level.below.items()]
            else:
                said = [name for name in step.said if name in level.below]
                places += [(level.below[name], step.after(name)) for name in said]


_NUMBER = attrgetter("number")


def _all_below(level: _Level) -> Iterator[str]:
    levels = [*level.below.values()]
    for below in levels:  # they become more meanwhile
        levels += below.below.values()
        if below.topic is not None:
            yield below.topic


def _size(topic: str, raw: msgspec.Raw) -> int:
    return len(topic.encode("utf-8", "surrogatepass")) + len(raw)
