"""Topics: names that publications are filed under, and who gets them.

`Topics` is the index from topic to subscribers. It is keyed by the subscriber object
itself (a connection, a subscription), never by an id, so nobody can subscribe or
unsubscribe for somebody else.
"""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["MAX_TOPIC", "Topics", "topic_fault"]

MAX_TOPIC = 255  # bytes of UTF-8

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


class Topics(Generic[S]):
    """Which subscribers want which topic.

    Attributes:
        total: Subscriptions in all.
    """

    def __init__(self) -> None:
        self._subscribers: dict[str, dict[S, None]] = {}
        self._topics: dict[S, dict[str, None]] = {}
        self.total = 0

    def add(self, subscriber: S, topic: str) -> bool:
        """Subscribe; False if that was so already."""
        subscribers = self._subscribers.setdefault(topic, {})
        if subscriber in subscribers:
            return False
        subscribers[subscriber] = None
        self._topics.setdefault(subscriber, {})[topic] = None
        self.total += 1
        return True

    def remove(self, subscriber: S, topic: str) -> bool:
        """Unsubscribe; False if it was not subscribed."""
        subscribers = self._subscribers.get(topic)
        if subscribers is None or subscriber not in subscribers:
            return False
        del subscribers[subscriber]
        if not subscribers:
            del self._subscribers[topic]
        topics = self._topics[subscriber]
        del topics[topic]
        if not topics:
            del self._topics[subscriber]
        self.total -= 1
        return True

    def drop(self, subscriber: S) -> tuple[str, ...]:
        """Remove the subscriber altogether; return the topics it had."""
        topics = self.of(subscriber)
        for topic in topics:
            self.remove(subscriber, topic)
        return topics

    def of(self, subscriber: S) -> tuple[str, ...]:
        """The topics of one subscriber."""
        return tuple(self._topics.get(subscriber, ()))

    def names(self) -> tuple[str, ...]:
        """Every topic somebody wants."""
        return tuple(self._subscribers)

    def matching(self, topic: str) -> tuple[S, ...]:
        """The subscribers a publication on `topic` goes to."""
        return tuple(self._subscribers.get(topic, ()))
