"""Loan: memory to build a large payload in, which is then sent without being copied.

What becomes of a loan is noticed by any thread, in the middle of anything: a signal handler may
close it, the garbage collector may drop the last view of its memory. So nothing here takes a
lock. Whoever takes the one item out of a list has it, and a block is free when the last object
is gone that has to do with it.
"""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self

from ..errors import LocalProtocolError

__all__ = ["Block", "Loan", "Owner"]


class Owner(Protocol):
    """The pool that a block is of.

    Attributes:
        memory: All of it.
        closed: Whether its connection is over: no block of it is given to anybody any more.
        given_back: Where the beginning of a block is put that is free.
        windows: What is kept as long as somebody can write to a block, by its beginning.
    """

    memory: memoryview
    closed: bool
    given_back: deque[int]
    windows: dict[int, object]


class Block:
    """A part of a pool. Its life is that of its use: when it is gone, the part is free."""

    __slots__ = ("owner", "size", "start")

    def __init__(self, owner: Owner, start: int, size: int) -> None:
        self.owner = owner
        self.start = start
        self.size = size

    def __del__(self) -> None:
        self.owner.given_back.append(self.start)

    @property
    def memory(self) -> memoryview:
        """The part itself."""
        return self.owner.memory[self.start : self.start + self.size]

    def window(self) -> Any:
        """Return a buffer over it; it is kept until the last view of that is gone."""
        # A slice of a memoryview does not keep the memoryview, only what that is a view of.
        from ctypes import c_ubyte

        windows, start = self.owner.windows, self.start
        window = (c_ubyte * self.size).from_buffer(self.owner.memory, start)
        windows[start] = self, weakref.ref(window, lambda _: windows.pop(start, None))
        return window


class Loan:
    """Memory to build a large payload in, which is then sent without being copied.

        with client.loan(size) as loan:
            loan.view[:] = …
            await client.call("store", loan)

    Send it once, as a payload or anywhere in one; the other end gets bytes. What is lent is
    not ours any more, and its view is closed; what could not be sent is open again. Where there
    is no pool, no room in it, or it is another connection's, the memory is copied, as bytes are,
    and stays open. At the end of the ``with`` the view is closed in any case.

    Attributes:
        lent: Whether the other end of its connection will read it where it is.
    """

    __slots__ = ("_block", "_dismissed", "_memory", "_open", "_sent", "_size", "_view", "lent")

    def __init__(self, size: int, block: Block | None = None) -> None:
        self._size = size
        self._block = block
        self.lent = block is not None
        self._memory: Any = bytearray(size) if block is None else block.window()
        self._view: memoryview | None = memoryview(self._memory).cast("B")
        self._open = [True]  # whoever takes it out may lend, copy or close it
        self._sent = self._dismissed = False

    def __repr__(self) -> str:
        state = "open" if self._open else "sent" if self._sent else "closed"
        return f"<Loan of {self._size} bytes, {'lent' if self.lent else 'inline'}, {state}>"

    def __len__(self) -> int:
        return self._size

    @property
    def view(self) -> memoryview:
        """The memory, to be written.

        Raises:
            LocalProtocolError: It was lent, or closed: it may be used for something else.
        """
        view = self._view
        if view is None:
            raise LocalProtocolError(f"its memory is not ours any more: {self!r}")
        return view

    def close(self) -> None:
        """Give the memory back, unless it was sent. Idempotent."""
        self._dismissed = True
        if self._taken():
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # For who sends it

    def lend(self, owner: Owner | None) -> Block | None:
        """Give it away, to be read where it is; None if it is not of this pool.

        Raises:
            LocalProtocolError: It was sent already, or closed.
        """
        block = self._block
        if block is None or block.owner is not owner:
            return None
        if not self._taken():
            raise self._refusal()
        self._sent = True
        self._hide()
        return block

    def content(self) -> memoryview | bytes:
        """Return its bytes, to be copied. What was cut off with its connection has them, too.

        Raises:
            LocalProtocolError: It was sent already, or closed.
        """
        block, memory = self._block, self._memory
        if block is None:
            if memory is None:
                raise self._refusal()
            return memoryview(memory)
        if self._taken():  # nobody can close it meanwhile
            try:
                return bytes(block.memory)
            finally:
                self._open_again()
        if self._sent and block.owner.closed:
            return bytes(block.memory)
        raise self._refusal()

    def take_back(self) -> None:
        """It is not sent after all."""
        self._sent = False
        self._view = memoryview(self._memory).cast("B")
        self._open_again()

    def spend(self) -> None:
        """The other end does not look at it any more."""
        self._memory = self._block = None

    def _taken(self) -> bool:
        try:
            return self._open.pop()
        except IndexError:
            return False

    def _open_again(self) -> None:
        self._open.append(True)
        if self._dismissed and self._taken():
            self._let_go()

    def _let_go(self) -> None:
        self._hide()
        self._memory = self._block = None

    def _hide(self) -> None:
        view, self._view = self._view, None
        assert view is not None
        # Unless there is an array over it: who writes there now changes what others read.
        with suppress(BufferError):
            view.release()

    def _refusal(self) -> LocalProtocolError:
        return LocalProtocolError(f"a loan is sent once, and not when it is closed: {self!r}")
