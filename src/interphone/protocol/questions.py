"""Questions: what this end has asked and the other has not answered yet.

They have nonces, which are never used twice, and deadlines. Where the other end says how much
it takes on at once, what is more waits here, in order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from ..errors import Overloaded
from .messages import RESPONSE
from .pending import Pending
from .wire import Outgoing

__all__ = ["RESOLUTION", "Questions"]

RESOLUTION: Final = 0.005  # seconds between two looks for what is overdue
MANY: Final = 256  # questions: to look at all of them takes as long as a few messages
AHEAD: Final = 0.25  # seconds: of so many, those that are due within it are set apart

# Until something is held; an empty one of its own weighs more than a dict. Of a dict what has left
# at the front would have to be passed over, each time, to find the oldest that is left.
_NOTHING: Final[OrderedDict[str | int, Outgoing]] = OrderedDict()


# Hot path: what is Final here need not be looked up by what is compiled.
_Pending: Final = Pending


class Questions:
    """The requests and pings of this end that wait for an answer, and for credit.

    Args:
        max_pending: How many may wait for an answer.
        sooner: Called when `due` has become earlier.

    Attributes:
        pending: Those that wait for an answer, by nonce, oldest first.
        held: Bodies of requests that wait for credit, by nonce, oldest first.
        kind: What our nonces are: numbers between native ends, else their text.
        due: When something is overdue, in the driver's clock; None: never.
    """

    __slots__ = (
        "_bytes",
        "_horizon",
        "_last",
        "_max_bytes",
        "_max_pending",
        "_room",
        "_soon",
        "_sooner",
        "_swept",
        "_under_way",
        "due",
        "held",
        "kind",
        "pending",
    )

    def __init__(self, max_pending: int, sooner: Callable[[], None]) -> None:
        self.pending: dict[str | int, Pending] = {}
        self.held = _NOTHING
        self.kind: type[str] | type[int] = str
        self.due: float | None = None
        self._max_pending = max_pending
        self._sooner = sooner
        self._last = 0
        self._swept = 0.0
        # What is due before the horizon, soonest first, also if it has been answered meanwhile.
        self._soon: list[tuple[float, str | int]] = []
        self._horizon = 0.0
        self._room: int | None = None
        self._max_bytes = 0
        self._bytes = 0
        self._under_way: dict[str | int, int] = {}

    @property
    def under_way(self) -> int:
        """How many requests the other end has to do with: also cancelled ones are answered."""
        return len(self._under_way)

    def restrict(self, room: int, max_bytes: int) -> None:
        """From now on let so many requests be under way and bytes of them, but always one."""
        self._room, self._max_bytes = room, max_bytes

    # Hot path: `_fits` and `_let_in` are written out in `may_go`.

    def ask(self, token: object, now: float, timeout: float | None, answer: int) -> str | int:
        """Note a question that `answer` is the answer to; return its nonce.

        Raises:
            Overloaded: Too many wait for an answer.
        """
        pending = self.pending
        if len(pending) >= self._max_pending:
            raise Overloaded(f"{self._max_pending} requests are waiting for an answer")
        self._last += 1
        nonce = self._last if self.kind is int else str(self._last)
        if timeout is None:
            pending[nonce] = _Pending(token, None, None, answer)
            return nonce
        deadline = now + timeout
        pending[nonce] = _Pending(token, deadline, timeout, answer)
        if deadline < self._horizon:
            heappush(self._soon, (deadline, nonce))
        if self.due is None or deadline < self.due:
            self.due = max(deadline, self._swept + RESOLUTION)
            self._sooner()
        return nonce

    def may_go(self, nonce: str | int, body: Outgoing) -> bool:
        """Whether a request may be sent now; if not it is held."""
        if self._room is None:
            return True
        size, under_way = len(body), self._under_way
        if not self.held and (
            not under_way or (len(under_way) < self._room and self._bytes + size <= self._max_bytes)
        ):
            under_way[nonce] = size
            self._bytes += size
            return True
        if self.held is _NOTHING:
            self.held = OrderedDict()
        self.held[nonce] = body
        return False

    def settle(self, nonce: object, answer: int) -> Pending | None:
        """Take the question that this answer is for; None if nobody waits for it.

        Its credit comes back all the same: see `released`.
        """
        if type(nonce) is not self.kind:  # Node may echo anything
            return None
        if answer == RESPONSE:
            size = self._under_way.get(nonce)
            if size is not None:
                del self._under_way[nonce]
                self._bytes -= size
        entry = self.pending.get(nonce)
        if entry is None or entry.answer != answer:
            return None
        del self.pending[nonce]
        return entry

    def released(self) -> Sequence[Outgoing]:
        """Return what was held and may be sent now."""
        freed: list[Outgoing] = []
        while self.held:
            nonce = next(iter(self.held))
            size = len(self.held[nonce])
            if not self._fits(size):
                break
            freed.append(self.held.pop(nonce))
            self._under_way[nonce] = size
            self._bytes += size
        return freed

    def _fits(self, size: int) -> bool:
        assert self._room is not None  # else nothing is held
        under_way = len(self._under_way)
        return not under_way or (under_way < self._room and self._bytes + size <= self._max_bytes)

    def withdraw(self, nonce: object) -> bool:
        """Take a held request back; False if it is not held."""
        return self.held.pop(nonce, None) is not None  # type: ignore[call-overload]  # any may come

    def overdue(self, now: float) -> list[str | int]:
        """Find what is overdue, and when to look again."""
        self._swept = now
        if now >= self._horizon:
            return self._look_at_all(now)
        late, soon = [], self._soon
        while soon and soon[0][0] <= now:
            nonce = heappop(soon)[1]
            if nonce in self.pending:
                late.append(nonce)
        self.due = max(soon[0][0] if soon else self._horizon, now + RESOLUTION)
        return late

    def _look_at_all(self, now: float) -> list[str | int]:
        """The same. Of many, set those apart that are soon due: they are not all looked at then."""
        late, soonest = [], None
        self._soon, self._horizon = [], now + AHEAD if len(self.pending) > MANY else 0.0
        for nonce, entry in self.pending.items():
            if entry.deadline is None:
                continue
            if entry.deadline <= now:
                late.append(nonce)
                continue
            if soonest is None or entry.deadline < soonest:
                soonest = entry.deadline
            if entry.deadline < self._horizon:
                self._soon.append((entry.deadline, nonce))
        heapify(self._soon)
        self.due = None if soonest is None else max(soonest, now + RESOLUTION)
        return late

    def clear(self) -> dict[str | int, Pending]:
        """Take all that wait for an answer."""
        pending, self.pending, self.due = self.pending, {}, None
        return pending
