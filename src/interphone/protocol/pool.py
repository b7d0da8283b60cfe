"""Pool: memory that one end of a connection lends the other, for large payloads.

Where both ends show the word `POOL`, each may have a pool, made when it first has something
large to send, and mapped once by the other end, which can only read it:

    the lender                                  the borrower
    LEND    there is memory                 →   maps it
            BORROW   so much of it          ←
    a packet with a lent payload            →   looks at the blocks where they are
            RETURN   nobody looks any more  ←   when the last view of a block is gone

A lent payload is an extension around a value (wire.md, 5). It names the blocks it lends, so
that they come back even if nobody ever decodes it; in the value a reference stands for the
bytes of a block. Everything else of the value is in the packet: what can be changed after it
was looked at, because the lender still can write it, is never more than the bytes themselves.

Blocks are lent under a number, each used once, and the pool has a key that nobody can guess.
Both are in whatever names a block. So what is stale, or of another connection, or written by
whom a value was only passed on for, never reads anything: it is an extension that nobody knows.

Which block is free is known to the lender alone, and is written down in its own memory. All
that is not to be had (a pool, room in it) is done without: the payload goes inline, and is counted.

Views may be dropped by any thread, and by the garbage collector in the middle of anything. So
what notices that only puts the block on a list, which goes with whatever is sent next.
"""

from __future__ import annotations

import weakref
from bisect import insort
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from typing import Annotated, Any, Protocol

import msgspec

from ..errors import MessageTooBig, PayloadError, RemoteProtocolError
from .loan import Block, Loan
from .payload import check_msgpack_depth

__all__ = [
    "BLOCK",
    "KEY_SIZE",
    "PAYLOAD",
    "REFERENCE",
    "Borrower",
    "Key",
    "Lender",
    "Lent",
    "Made",
    "Memory",
    "Natural",
    "PoolCounts",
    "lent_by",
]

BLOCK = 4096
"""Blocks begin at multiples of it, so that there are not too many of them to keep account of."""

KEY_SIZE = 8
"""Bytes of what only the two ends of a pool know."""

PAYLOAD, REFERENCE = 1, 2  # extensions of MessagePack; 0 is msgpackr's undefined

TIMES = 4  # that a block may be asked for: who names one often would make much of little


Natural = Annotated[int, msgspec.Meta(ge=0)]
Key = Annotated[bytes, msgspec.Meta(min_length=KEY_SIZE, max_length=KEY_SIZE)]


class Made(msgspec.Struct, frozen=True):
    """Memory to lend from.

    Attributes:
        view: It.
        fd: Its descriptor, for the other end to open; 0 on Windows.
        inode: What tells that it has opened this one.
        key: `KEY_SIZE` random bytes.
        shut: Closes the descriptor; the view stays.
    """

    view: memoryview
    fd: int
    inode: int
    key: bytes
    shut: Callable[[], None]


class Memory(Protocol):
    """What a driver knows of memory that both ends of its connection can use.

    Attributes:
        guard: Held while a block is taken: several threads may send. Whoever holds it may take
            it again: a signal handler, or the garbage collector, may come in the middle.
        tell: Is called, in any thread, when there is something to return; by its driver.
    """

    guard: AbstractContextManager[Any]
    tell: Callable[[], None] | None

    def make(self, size: int) -> Made | None:
        """Make memory to lend from; None if it cannot be had."""

    def open(self, fd: int, inode: int, size: int, most: int) -> memoryview | None:
        """Map what the other end made, to read, `most` bytes of it; None if that cannot be."""


class PoolCounts(msgspec.Struct):
    """What became of large payloads that this end sent where both ends can share memory.

    Attributes:
        lent: They went through the pool.
        inline: They did not: there was no pool yet, or none to be had, or no room in it.
    """

    lent: int = 0
    inline: int = 0


class _Blocks:
    """Which parts of a pool are free: the first that fits is taken, which is warm."""

    def __init__(self, size: int) -> None:
        self._free = [(0, size)]  # where, and how many bytes; sorted, never side by side
        self.taken: dict[int, int] = {}

    def take(self, size: int) -> int | None:
        """Take so many bytes; None if there are not as many in one piece."""
        size = -(-size // BLOCK) * BLOCK
        for index, (start, room) in enumerate(self._free):
            if room >= size:
                if room == size:
                    del self._free[index]
                else:
                    self._free[index] = start + size, room - size
                self.taken[start] = size
                return start
        return None

    def give(self, start: int) -> None:
        """Give back what was taken at `start`."""
        insort(self._free, (start, self.taken.pop(start)))
        joined: list[tuple[int, int]] = []
        for at, room in self._free:
            if joined and sum(joined[-1]) == at:
                joined[-1] = joined[-1][0], joined[-1][1] + room
            else:
                joined.append((at, room))
        self._free = joined


class Lender:
    """The pool of this end.

    Attributes:
        memory: It.
        key: What only the two ends know.
        closed: Whether the connection is over; what is written there nobody reads.
        given_back: The beginnings of blocks that are free, for whoever next takes one to see.
        windows: What is kept as long as somebody can write to a block, by its beginning.
    """

    def __init__(self, memory: memoryview, key: bytes, guard: AbstractContextManager[Any]) -> None:
        self.memory = memory
        self.key = key
        self.closed = False
        self.given_back: deque[int] = deque()
        self.windows: dict[int, object] = {}
        self._guard = guard
        self._busy = False
        self._blocks = _Blocks(len(memory))
        self._lent: dict[int, Loan | Block] = {}  # by the numbers they were lent under
        self._numbers = count()

    def take(self, size: int) -> Block | None:
        """Take a block; None if there is no room, or this very thread is about to take one."""
        with self._guard:
            if self._busy:
                return None
            self._busy = True
            try:
                while self.given_back:
                    self._blocks.give(self.given_back.popleft())
                start = self._blocks.take(size)
            finally:
                self._busy = False
        return None if start is None else Block(self, start, size)

    def lend(self, what: Loan | Block) -> int:
        """Keep a block while it is lent; return the number that it is lent under."""
        number = next(self._numbers)
        self._lent[number] = what
        return number

    def take_back(self, numbers: list[int]) -> None:
        """These are not sent after all."""
        for number in numbers:
            what = self._lent.pop(number, None)
            if isinstance(what, Loan):
                what.take_back()

    def returned(self, numbers: list[int]) -> None:
        """The other end looks at these no more."""
        for number in numbers:
            what = self._lent.pop(number, None)
            if what is None:
                raise RemoteProtocolError(f"a block is returned that was not lent: {number}")
            if isinstance(what, Loan):
                what.spend()

    def close(self) -> None:
        """The connection is over: loans that were not returned still have their bytes."""
        self.closed = True
        self._lent = {}


class _Dropped(weakref.ref[Any]):
    """Tells when something is gone, and under which number it was known."""

    __slots__ = ("number",)

    number: int


class _Held(msgspec.Struct):
    """A block of the other end's that somebody here may look at."""

    base: Callable[[], memoryview | None]
    times: int = TIMES  # that it may still be asked for


class Borrower:
    """The pool of the other end, as far as it is mapped here.

    A `Raw` around a slice of the mapping is what views are made of: it is read-only, keeps the
    mapping alive, and the slice dies with the last view of any kind.

    Attributes:
        key: What only the two ends know.
        returned: Numbers of blocks that nobody looks at any more.
    """

    def __init__(self, memory: memoryview, key: bytes, tell: Callable[[], None]) -> None:
        self._memory = memory
        self._most = len(memory) // BLOCK  # blocks that there can be
        self._tell = tell
        self._held: dict[int, _Held] = {}  # by their numbers
        self._payloads: dict[int, tuple[_Dropped, list[memoryview]]] = {}  # by their first blocks
        self.key = key
        self.returned: deque[int] = deque()

    def receive(self, lent: Lent, *, max_size: int, max_depth: int) -> msgspec.Raw:
        """Take what a payload lends; return its value, whose life keeps the blocks.

        Raises:
            RemoteProtocolError: It lends what there is not.
        """
        blocks, value = lent.blocks, lent.value
        if not blocks:
            raise RemoteProtocolError("a lent payload that lends nothing")
        size = sum(size for _, _, size in blocks) + len(value)
        if size > max_size:
            raise MessageTooBig(size=size, limit=max_size)
        try:
            check_msgpack_depth(value, max_depth)
        except (PayloadError, IndexError) as exc:
            raise RemoteProtocolError(f"a lent payload that cannot be read: {exc}") from exc
        kept = [self._hold(*block) for block in blocks]
        base = memoryview(value)
        dropped = _Dropped(base, self._on_payload_dropped)
        dropped.number = blocks[0][0]
        self._payloads[dropped.number] = dropped, kept
        return msgspec.Raw(base)

    def _on_payload_dropped(self, dropped: _Dropped) -> None:
        """A value is not needed any more; its blocks are where views of them are."""
        self._payloads.pop(dropped.number, None)

    def _hold(self, number: int, start: int, size: int) -> memoryview:
        if start % BLOCK or size <= 0 or start + size > len(self._memory):
            raise RemoteProtocolError(f"no block of the pool: {size} bytes at {start}")
        if number in self._held:
            raise RemoteProtocolError(f"a block is lent twice: {number}")
        if len(self._held) >= self._most:
            raise RemoteProtocolError("more blocks are lent than the pool has")
        base = self._memory[start : start + size]
        dropped = _Dropped(base, self._on_dropped)
        dropped.number = number
        self._held[number] = _Held(dropped)
        return base

    def _on_dropped(self, dropped: _Dropped) -> None:
        """Nobody looks at a block any more. In any thread, at any moment: note it, no more."""
        del self._held[dropped.number]
        self.returned.append(dropped.number)
        self._tell()

    def view(self, reference: bytes) -> memoryview:
        """Return a block to look at, where it is."""
        return memoryview(msgspec.Raw(self._found(reference)))

    def copy(self, reference: bytes) -> bytes:
        """Return a copy of a block."""
        return bytes(self._found(reference))

    def _found(self, reference: bytes) -> memoryview:
        held = None
        if len(reference) == KEY_SIZE + 8 and reference.startswith(self.key):
            held = self._held.get(int.from_bytes(reference[KEY_SIZE:]))
        base = None if held is None else held.base()
        if base is None or held is None:
            raise ValueError("a reference to nothing that is lent")
        held.times -= 1
        if held.times < 0:  # a view may yet be copied, by whatever it is put into
            raise ValueError("a reference stands there too often")
        return base

    def close(self) -> None:
        """Nothing comes any more: from now on only views keep the mapping."""
        self._memory = memoryview(b"")

    @property
    def holding(self) -> bool:
        """Whether anything is lent at the moment."""
        return bool(self._held)


class Lent(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What is in a payload that lends something.

    Attributes:
        key: That of the pool.
        blocks: For each the number it is lent under, where it begins, and how many bytes.
        value: The payload, with references in place of the blocks.
    """

    key: Key
    blocks: list[tuple[Natural, Natural, Natural]]
    value: msgspec.Raw


_decode_extension = msgspec.msgpack.Decoder(msgspec.msgpack.Ext).decode
_decode_lent = msgspec.msgpack.Decoder(Lent).decode
_EXTENSIONS = frozenset((*range(0xC7, 0xCA), *range(0xD4, 0xD9)))


def lent_by(key: bytes, raw: msgspec.Raw | bytes) -> Lent | None:
    """Read a payload, if it lends something of the pool of this key."""
    if not raw or memoryview(raw)[0] not in _EXTENSIONS:
        return None
    try:
        extension = _decode_extension(raw)
        lent = _decode_lent(extension.data) if extension.code == PAYLOAD else None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return None if lent is None or lent.key != key else lent
