"""Loan: memory to build a large payload in, which is then sent without being copied."""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from ..errors import LocalProtocolError

__all__ = ["Loan", "Owner"]


class Owner(Protocol):
    """The pool that a block is of.

    Attributes:
        memory: All of it.
        guard: Held while it changes what becomes of a block.
        closed: Whether its connection is over: no block of it is given to anybody any more.
        given_back: Where a block is put that will not be sent: in any thread, at any moment.
    """

    memory: memoryview
    guard: AbstractContextManager[Any]
    closed: bool
    given_back: deque[int]


class Loan:
    """Memory to build a large payload in, which is then sent without being copied.

        with client.loan(size) as loan:
            loan.view[:] = …
            await client.call("store", loan)

    Send it once, as a payload or anywhere in one; the other end gets bytes. Afterwards, and
    at the end of the ``with``, the view is closed. What could not be sent is open again. Where
    there is no pool, or no room in it, it is memory of this process, and copied as bytes are.

    Attributes:
        lent: Whether the other end will read it where it is.
        block: Where it begins in its pool.
    """

    # "sent" may become "open" again, or "spent": the other end does not look at it any more.
    __slots__ = ("_dismissed", "_memory", "_owner", "_state", "_view", "block", "lent")

    def __init__(self, size: int, owner: Owner | None = None, block: int = 0) -> None:
        self._state: Literal["open", "sent", "spent", "closed"] = "open"
        self._dismissed = False  # closed while it was sent: not to be opened again
        self._owner = owner
        self.block = block
        self.lent = owner is not None
        self._memory = (
            memoryview(bytearray(size)) if owner is None else owner.memory[block : block + size]
        )
        self._view = self._memory[:]

    def __repr__(self) -> str:
        way = "lent" if self.lent else "inline"
        return f"<Loan of {len(self._memory)} bytes, {way}, {self._shown}>"

    def __len__(self) -> int:
        return len(self._memory)

    @property
    def _shown(self) -> str:
        return "sent" if self._state == "spent" else self._state

    @property
    def view(self) -> memoryview:
        """The memory, to be written.

        Raises:
            LocalProtocolError: It was sent, or closed: it may be used for something else.
        """
        if self._state != "open":
            raise LocalProtocolError(f"the loan is {self._shown}: its memory is not ours any more")
        return self._view

    def close(self) -> None:
        """Give the memory back, unless it was sent. Idempotent."""
        self._dismissed = True
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

    def take(self, pool: Owner | None) -> memoryview | bytes | None:
        """Give it away, to be sent: None if it is read where it is, in this pool, else its bytes.

        A client that was cut off may send it once more, over its next connection.

        Raises:
            LocalProtocolError: It was sent already, or closed.
        """
        owner = self._owner
        if owner is None:
            if self._state != "closed":
                self._end("sent")
                return self._memory
        else:
            with owner.guard:
                if self._state == "open":
                    self._end("sent")
                    if owner is pool:
                        return None
                    if not owner.closed:
                        data = bytes(self._memory)  # before anybody else can take the block
                        self.spend()
                        self._give_back()
                        return data
                if self._state == "sent" and owner.closed:
                    return self._memory
        raise LocalProtocolError(f"the loan is {self._shown}: it is sent once")

    def take_back(self) -> None:
        """It is not sent after all; the guard is held."""
        self._state = "open"
        self._view = self._memory[:]
        if self._dismissed:
            self.close()

    def spend(self) -> None:
        """Its block is somebody else's from now on; the guard is held."""
        self._state = "spent"

    def _end(self, state: Literal["sent", "closed"]) -> None:
        self._state = state
        # Unless there is an array over it: who writes there now changes what others read.
        with suppress(BufferError):
            self._view.release()

    def _give_back(self) -> None:
        if self._owner is not None:
            self._owner.given_back.append(self.block)
