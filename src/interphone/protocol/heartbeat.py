"""Heartbeat: when a silent peer is asked for a sign of life, and when it is given up."""

from __future__ import annotations

from typing import Literal

__all__ = ["Heartbeat"]

LAG = 0.25  # of an interval: a look that comes that late shows that it was we who slept
ONCE_MORE = 0.005  # seconds until the last look


class Heartbeat:
    """The clock of one connection. Times are seconds of the driver's clock.

    Attributes:
        due: When to `look` next; None while it does not run.
        heard: Time of the last sign of life; the driver sets it.
    """

    def __init__(self, interval: float | None, heard: float) -> None:
        self.heard = heard
        self.due: float | None = None
        self._interval = interval
        self._pinged_at: float | None = None
        self._last_look = False

    def start(self) -> None:
        """Begin to look."""
        if self._interval is not None:
            self.due = self.heard + self._interval

    def stop(self) -> None:
        """Never look again."""
        self.due = self._interval = None

    def look(self, now: float, *, reading: bool) -> Literal["ping", "silent"] | None:
        """Say what is to be done about the peer; nothing while it is not read."""
        assert self._interval is not None  # it runs
        assert self.due is not None
        if now - self.due > self._interval * LAG:
            self.heard = max(self.heard, now)
        if self._pinged_at is not None and self.heard >= self._pinged_at:
            self._pinged_at, self._last_look = None, False
        if not reading:
            self.due = now + self._interval
        elif now - self.heard < self._interval:
            self.due = self.heard + self._interval
        elif self._pinged_at is None:
            self._pinged_at = now
            self.due = now + self._interval
            return "ping"
        elif not self._last_look:  # the loop may have been late: read what is there, then judge
            self._last_look = True
            self.due = now + ONCE_MORE
        else:
            return "silent"
        return None
