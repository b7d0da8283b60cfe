"""Awake: keeps a loop, or a thread that waits, from falling asleep between quick messages.

To wake a core that idles takes longer than everything else a message needs: in a virtual
machine some 25 µs each way, nearly half of a round trip between two C programs (measured:
docs/topics/performance.md). After a message one therefore stays awake for a moment, looks
whether something has come, and offers the core to others each time.

One does so only while it pays, which `Pace` finds out:

- the last messages came within `QUICK` of each other: one each millisecond gains nothing;
- something comes while one stays awake: a few times in vain, and there is a rest, twice as
  long each time;
- nobody else wants the core: if somebody works on it when it is offered, there is a rest, too;
- the other end is on another core: if it is this very one that it answers on, each time that it is
  offered, then this one does not idle, and to wait is as quick, without all the turning.

Where a core cannot be offered (there is no ``sched_yield``), nobody stays awake.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import asyncio  # a blocking client does without

__all__ = ["Awake", "Latency", "Pace", "awake_on", "check_latency", "pace_of"]

Latency = Literal["balanced", "low", "idle"]
"""What a quick answer is worth: CPU as long as it pays, much CPU, or none at all."""

SPAN = 80e-6  # seconds that one stays awake after a message
LONG_SPAN = 400e-6  # the same for latency="low"
QUICK = 300e-6  # seconds between two messages that come in quick succession
ENOUGH = 8  # of them in a row, and it begins
USED = 4e-6  # seconds an offered core is gone, and somebody did something on it
BESIDE = 4  # times in a row that something came then: the other end is there
TAKEN = 200e-6  # seconds an offered core is gone, and somebody computes on it
IN_VAIN = 3  # times that nothing came before there is a rest
REST = 0.01, 1.0  # seconds of a rest: at first, and at most
PROVEN = 100  # times that it paid since the last rest, and the next one is short again


def check_latency(latency: str) -> None:
    """Raise `ValueError` unless this is a `Latency`."""
    if latency not in ("balanced", "low", "idle"):
        raise ValueError(f"latency is 'balanced', 'low' or 'idle', not {latency!r}")


class Pace:
    """How quickly messages come, and whether it pays to stay awake for the next one.

    Args:
        offer: Lets others have the core for a moment.
        eager: Whether CPU does not matter: it always pays.

    Attributes:
        span: Seconds to stay awake after a message.
        pays: Whether it pays, as of the last message.
        beside: Whether the other end seems to be on this very core.
    """

    def __init__(
        self,
        offer: Callable[[], object],
        *,
        eager: bool = False,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.span = LONG_SPAN if eager else SPAN
        self.pays = False
        self._offer = offer
        self._eager = eager
        self._clock = clock
        self._came = 0.0
        self._quick = 0  # messages in quick succession
        self._in_vain = 0
        self._used: bool | None = None  # the core, when it was offered since something came
        self.beside = False
        self._beside = 0  # times that something came from there
        self._paid = 0  # since the last rest
        self._rest = REST[0]
        self._rested = 0.0  # when the rest is over

    def came(self) -> float:
        """Note that something came; return until when to stay awake, if it pays."""
        now = self._clock()
        gap = now - self._came
        self._came = now
        if gap > QUICK:
            self._quick = 0
        elif self._quick < ENOUGH:
            self._quick += 1
        if self._used is not None:
            self._beside = self._beside + 1 if self._used else 0
            self.beside = self._beside >= BESIDE
            self._used = None
            if self.beside and self.pays and not self._eager:
                self._have_a_rest(now)
        self.pays = self._eager or (self._quick >= ENOUGH and now >= self._rested)
        return now + self.span

    def paid(self) -> None:
        """Something came while one was awake."""
        self._in_vain = 0
        self._paid += 1
        if self._paid == PROVEN:
            self._rest = REST[0]

    def goes_on(self, until: float) -> bool:
        """Offer the core; return whether to stay awake."""
        if not self.pays:
            return False
        now = self._clock()
        if now >= until:
            self._in_vain += 1
            if self._in_vain >= IN_VAIN:
                self._have_a_rest(now)
            return False
        self._offer()
        after = self._clock()
        self._used = after - now > USED
        if after - now > TAKEN and not self._eager:
            self._have_a_rest(after)
            return False
        return True

    def _have_a_rest(self, now: float) -> None:
        self.pays = False
        self._in_vain = self._paid = 0
        self._rested = now + self._rest
        self._rest = min(2 * self._rest, REST[1])

    def stay(self, look: Callable[[], bool]) -> bool:
        """Stay awake in this thread while it pays; return whether `look` has found something."""
        until = self._clock() + self.span
        while self.pays:
            if look():
                self.paid()
                return True
            if not self.goes_on(until):
                break
        return False


class Awake:
    """Keeps one loop awake, by turning it on; it does not hold the loop itself.

    Attributes:
        turning: Whether it does so at the moment.
        beside: Whether the other end seems to be on the core of this loop.
    """

    def __init__(self, pace: Pace) -> None:
        self.turning = self.beside = False
        self._pace = pace
        self._until = 0.0

    def came(self, loop: asyncio.AbstractEventLoop) -> None:
        """Something came: from now on its loop may have to stay awake for a while."""
        self._until = self._pace.came()
        self.beside = self._pace.beside
        if self.turning:
            self._pace.paid()
        elif self._pace.pays:
            self.turning = True
            loop.call_soon(self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once round the loop, which has looked for what came."""
        self.turning = False  # also if a signal interrupts this
        if self._pace.goes_on(self._until):
            self.turning = True
            loop.call_soon(self._turn, loop)


def pace_of(latency: Latency) -> Pace | None:
    """A pace for who waits; None if nobody shall, or can, stay awake."""
    offer: Callable[[], object] | None = getattr(os, "sched_yield", None)
    return None if latency == "idle" or offer is None else Pace(offer, eager=latency == "low")


_kept: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Awake]] = WeakKeyDictionary()


def awake_on(loop: asyncio.AbstractEventLoop, latency: Latency) -> Awake | None:
    """What keeps this loop awake, for all connections that want the same; None if nothing."""
    pace = pace_of(latency)
    if pace is None:
        return None
    return _kept.setdefault(loop, {}).setdefault(latency, Awake(pace))
