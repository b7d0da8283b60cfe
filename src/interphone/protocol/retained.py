"""Retained: the last value of each topic that was published to be kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from ..errors import Overloaded
from .payload import Codec
from .topics import is_pattern, matcher

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
        self._kept.pop(topic, None)  # the newest stands last
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
        return True

    def get(self, topic: str, before: int) -> Kept | None:
        """The value of a topic, if it was among the first `before` that were kept."""
        kept = self._kept.get(topic)
        return kept if kept is not None and kept.number < before else None

    def matching(self, topics: Iterable[str]) -> list[Kept]:
        """The values for who subscribes to these topics and patterns, each once, oldest first."""
        names = set(topics)
        if len(names) == 1 and not any(map(is_pattern, names)):
            # The usual case, without looking at all of them.
            return [self._kept[name] for name in names if name in self._kept]
        wanted = matcher(names)
        return [kept for topic, kept in self._kept.items() if wanted(topic)]


def _size(topic: str, raw: msgspec.Raw) -> int:
    return len(topic.encode("utf-8", "surrogatepass")) + len(raw)
