"""Loan: memory to build a large payload in, which is then sent without being copied."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Literal, Protocol, Self

from ..errors import LocalProtocolError

__all__ = ["Loan", "Owner"]


class Owner(Protocol):
    """The pool that a block is of.

    Attributes:
        memory: All of it.
        closed: Whether its connection is over; what is written there nobody reads.
        given_back: Where a block is put that will not be sent: in any thread, at any moment.
    """

    memory: memoryview
    closed: bool
    given_back: deque[int]


class Loan:
    """Memory to build a large payload in, which is then sent without being copied.

        with client.loan(size) as loan:
            loan.view[:] = …
            await client.call("store", loan)

    Send it once, as a payload or anywhere in one; the other end gets bytes. Afterwards, and
    at the end of the ``with``, the view is closed. Where there is no pool, or no room in it,
    it is memory of this process, and copied as bytes are.

    Attributes:
        lent: Whether the other end will read it where it is.
    """

    __slots__ = ("_block", "_memory", "_owner", "_state", "_view", "lent")

    def __init__(self, size: int, owner: Owner | None = None, block: int = 0) -> None:
        self._state: Literal["open", "sent", "closed"] = "open"
        self._owner = owner
        self._block = block
        self.lent = owner is not None
        self._memory = (
            memoryview(bytearray(size)) if owner is None else owner.memory[block : block + size]
        )
        self._view = self._memory[:]

    def __repr__(self) -> str:
        way = "lent" if self.lent else "inline"
        return f"<Loan of {len(self._memory)} bytes, {way}, {self._state}>"

    def __len__(self) -> int:
        return len(self._memory)

    @property
    def view(self) -> memoryview:
        """The memory, to be written.

        Raises:
            LocalProtocolError: It was sent, or closed: it may be used for something else.
        """
        if self._state != "open":
            raise LocalProtocolError(f"the loan is {self._state}: its memory is not ours any more")
        return self._view

    def close(self) -> None:
        """Give the memory back, unless it was sent. Idempotent."""
        if self._state == "open":
            self._end("closed")
            self._give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._state == "open":
            self._give_back()

    def take(self, owner: Owner | None) -> int | memoryview:
        """Give it away, to be sent: its block, if it is of this pool, else its bytes.

        Raises:
            LocalProtocolError: That was done already.
        """
        # A client that was cut off sends it once more, over its next connection.
        again = self._state == "sent" and (self._owner is None or self._owner.closed)
        if self._state != "open" and not again:
            raise LocalProtocolError(f"the loan is {self._state}: it is sent once")
        if self._state == "open":
            self._end("sent")
            if self._owner is not None and self._owner is owner:
                return self._block
            self._give_back()  # it is copied before anybody can take the block
        return self._memory

    def _end(self, state: Literal["sent", "closed"]) -> None:
        self._state = state
        # Unless there is an array over it: who writes there now changes what others read.
        with suppress(BufferError):
            self._view.release()

    def _give_back(self) -> None:
        if self._owner is not None:
            self._owner.given_back.append(self._block)
