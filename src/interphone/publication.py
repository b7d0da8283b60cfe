"""Publication: what a subscription brings."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

__all__ = ["Gap", "Publication"]

T = TypeVar("T")


class Publication(msgspec.Struct, Generic[T], frozen=True, repr_omit_defaults=True):
    """One item on a topic.

    Attributes:
        topic: The topic it was published on.
        value: What was published.
        retained: Whether it is the last value from before the subscription began.
    """

    topic: str
    value: T
    retained: bool = False


class Gap(msgspec.Struct, frozen=True):
    """The connection was away: what was published meanwhile is lost, unless `resumed`."""

    resumed: bool = False
