"""Backoff: when a client tries again."""

from __future__ import annotations

import msgspec

__all__ = ["Backoff"]


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """When a client tries again. Times are seconds.

    The first attempt is made at once; before the k-th retry the client waits a random
    time up to ``min(cap, initial * factor ** (k - 1))`` (full jitter, so that a thousand
    clients do not come back in one moment), or, with `jitter` off, just that time.

    Attributes:
        initial: The first wait, at most.
        factor: How much longer each further wait may be.
        step: Instead of a factor: how much is added to each further wait.
        cap: The longest wait.
        jitter: Whether waits are random.
        attempts: Attempts before giving up; None: never.
        reset_after: A connection that lasted that long starts the count anew.
    """

    initial: float = 0.05
    factor: float = 1.6
    step: float = 0.0
    cap: float = 5.0
    jitter: bool = True
    attempts: int | None = None
    reset_after: float = 10.0

    def __post_init__(self) -> None:
        if self.initial <= 0 or self.factor < 1 or self.step < 0 or self.cap <= 0:
            raise ValueError("initial and cap must be positive, factor at least 1, step at least 0")
        if self.attempts is not None and self.attempts < 1:
            raise ValueError("attempts must be at least 1, or None for no limit")

    @classmethod
    def node(cls) -> Backoff:
        """The schedule of the Node packages: attempts at 0, 0.5, 1.5 and 3.0 s, no more."""
        return cls(
            initial=0.5, factor=1.0, step=0.5, cap=10.0, jitter=False, attempts=4, reset_after=0
        )

    def wait(self, retry: int) -> float:
        """Seconds to wait before the `retry`-th retry, which is counted from 1."""
        grown = self.initial * self.factor ** min(retry - 1, 64) + self.step * (retry - 1)
        longest = min(self.cap, grown)
        if not self.jitter:
            return longest
        import random  # 3 ms, for the few who come to wait

        return random.uniform(0, longest)
