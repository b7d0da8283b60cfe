"""A clock that stands still until a test moves it."""

from __future__ import annotations

__all__ = ["FakeClock"]


class FakeClock:
    """Time for whatever takes `now`.

    Attributes:
        now: Seconds, from a start that is not zero, as in real clocks.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Let time pass; return what it is then."""
        self.now += seconds
        return self.now
