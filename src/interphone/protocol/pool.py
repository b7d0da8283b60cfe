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
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Protocol

import msgspec

from ..errors import LocalProtocolError, MessageTooBig, PayloadError, RemoteProtocolError
from .loan import Loan
from .messages import LEND, RETURN
from .payload import Bytes, Codec, MessagePack, check_msgpack_depth, plain
from .wire import LARGE as NOT_COPIED
from .wire import Bulk, Outgoing

__all__ = ["BLOCK", "KEY_SIZE", "LARGE", "Made", "Memory", "PoolCounts", "PooledCodec", "glance"]

LARGE = 128 * 1024
"""Bytes from which on a payload is lent: below that copying it costs less than giving it back
(benchmarks/bench_pool.py)."""

BLOCK = 4096
"""Blocks begin at multiples of it, so that there are not too many of them to keep account of."""

KEY_SIZE = 8
"""Bytes of what only the two ends of a pool know."""

COPIES = 4  # of a block that a payload may ask for: who names one often would make much of little
TOLD_AT_ONCE = 32  # blocks in one RETURN

PAYLOAD, REFERENCE = 1, 2  # extensions of MessagePack; 0 is msgpackr's undefined

_BULKY = frozenset((bytes, bytearray, memoryview))
_SEQUENCES = frozenset((list, tuple))
_TYPES = (bytes, bytearray, memoryview, datetime)


class Made(msgspec.Struct, frozen=True):
    """Memory to lend from.

    Attributes:
        view: It.
        fd: Its descriptor, for the other end to open.
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
        guard: Held while the account of blocks is changed: several threads may send.
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
        """Give back what was taken at `start`; nothing, if nothing was."""
        size = self.taken.pop(start, 0)
        if not size:
            return
        insort(self._free, (start, size))
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
        guard: Held while the account of blocks is changed.
        closed: Whether the connection is over; what is written there nobody reads.
        given_back: Blocks that were never sent, for whoever next takes one to see.
    """

    def __init__(self, memory: memoryview, key: bytes, guard: AbstractContextManager[Any]) -> None:
        self.memory = memory
        self.key = key
        self.guard = guard
        self.closed = False
        self.given_back: deque[int] = deque()
        self._blocks = _Blocks(len(memory))
        self._lent: dict[int, Loan] = {}  # by the numbers they were lent under
        self._next = 0

    def loan(self, size: int) -> Loan | None:
        """Take a block; None if there is no room."""
        with self.guard:
            while self.given_back:
                self._blocks.give(self.given_back.popleft())
            start = self._blocks.take(size)
        return None if start is None else Loan(size, self, start)

    def lend(self, loan: Loan) -> int:
        """Note that a block is being sent; return its number."""
        with self.guard:
            number = self._next
            self._next += 1
            self._lent[number] = loan
        return number

    def take_back(self, numbers: list[int]) -> None:
        """These are not sent after all."""
        with self.guard:
            for number in numbers:
                loan = self._lent.pop(number, None)
                if loan is not None:
                    loan.take_back()

    def returned(self, numbers: list[int]) -> None:
        """The other end looks at these no more."""
        with self.guard:
            for number in numbers:
                loan = self._lent.pop(number, None)
                if loan is None:
                    raise RemoteProtocolError(f"a block is returned that was not lent: {number}")
                loan.spend()
                self._blocks.give(loan.block)

    def close(self) -> None:
        """The connection is over: what was not returned stays as it is."""
        with self.guard:
            self.closed = True
            self._lent.clear()


class _Dropped(weakref.ref[Any]):
    """Tells when something is gone, and what that was."""

    __slots__ = ("number",)

    number: int  # of the block


class _Held(msgspec.Struct):
    """A block of the other end's that somebody here may look at."""

    base: Callable[[], memoryview | None]
    copies: int = COPIES  # that are left


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

    def receive(self, lent: _Lent, *, max_size: int, max_depth: int) -> msgspec.Raw:
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
        if self._held.pop(dropped.number, None) is not None:
            self.returned.append(dropped.number)
            self._tell()

    def view(self, name: bytes) -> memoryview:
        """Return a block to look at, where it is."""
        return memoryview(msgspec.Raw(self._base(name)[0]))

    def copy(self, name: bytes) -> bytes:
        """Return a copy of a block."""
        base, held = self._base(name)
        held.copies -= 1
        if held.copies < 0:
            raise ValueError("a reference stands there too often")
        return bytes(base)

    def _base(self, name: bytes) -> tuple[memoryview, _Held]:
        held = None
        if name.startswith(self.key):
            held = self._held.get(int.from_bytes(name[KEY_SIZE:]))
        base = None if held is None else held.base()
        if base is None or held is None:
            raise ValueError("a reference to nothing that is lent")
        return base, held

    def close(self) -> None:
        """Nothing comes any more: from now on only views keep the mapping."""
        self._memory = memoryview(b"")

    @property
    def holding(self) -> bool:
        """Whether anything is lent at the moment."""
        return bool(self._held)


_Natural = Annotated[int, msgspec.Meta(ge=0)]
_Key = Annotated[bytes, msgspec.Meta(min_length=KEY_SIZE, max_length=KEY_SIZE)]


class _Lent(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    key: _Key
    blocks: list[tuple[_Natural, _Natural, _Natural]]  # number, where it begins, bytes
    value: msgspec.Raw


_decode_extension = msgspec.msgpack.Decoder(msgspec.msgpack.Ext).decode
_decode_lent = msgspec.msgpack.Decoder(_Lent).decode
_EXTENSIONS = frozenset((*range(0xC7, 0xCA), *range(0xD4, 0xD9)))


def _opened(raw: msgspec.Raw | bytes, key: bytes) -> _Lent | None:
    """Read a payload if it is one that is lent from the pool of this key."""
    if not raw or memoryview(raw)[0] not in _EXTENSIONS:
        return None
    try:
        extension = _decode_extension(raw)
        lent = _decode_lent(extension.data) if extension.code == PAYLOAD else None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return None if lent is None or lent.key != key else lent


class PooledCodec:
    """A `Codec` for values that go over one connection: large bytes in them go by its pools.

    What is encoded for several connections, or to be kept, takes the codec of the dialect.

    Attributes:
        counts: What became of large payloads.
        news: Whether there is something to tell the other end.
        decode: See `Codec`. Bytes are seen in place where a view is asked for, else copied.
    """

    __slots__ = (
        "_asked",
        "_borrower",
        "_closed",
        "_lender",
        "_made",
        "_max_frame",
        "_max_pool",
        "_memory",
        "_strict",
        "check",
        "check_value",
        "counts",
        "decode",
        "items",
        "lenient",
        "max_depth",
        "members",
        "news",
    )

    def __init__(
        self, strict: MessagePack, memory: Memory, *, max_pool: int, max_frame: int
    ) -> None:
        self.lenient = False
        self.max_depth = strict.max_depth
        self.items, self.members = strict.items, strict.members
        self.check, self.check_value = strict.check, strict.check_value
        self.decode: Callable[..., Any] = strict.decode
        self.counts = PoolCounts()
        self.news = False
        self._strict = strict
        self._memory = memory
        self._max_pool = max_pool // BLOCK * BLOCK
        self._max_frame = max_frame
        self._lender: Lender | None = None
        self._borrower: Borrower | None = None
        self._made: Made | None = None  # the other end has not said yet what it maps of it
        self._asked = False  # for a pool to lend from: that is done once
        self._closed = False

    # Values

    def encode(self, value: object) -> bytes:
        """See `Codec`; it lends nothing."""
        return self._strict.encode(value)

    def pack(self, value: Any) -> Outgoing:
        """See `Codec`. What it returns must be sent, or given to `take_back`."""
        # Hot path: what `MessagePack.pack` does. What is looked at besides are bytes as such, and
        # as parameters of a call.
        kind = type(value)
        if kind in _BULKY:
            return self._encode_large(value) if _size(value) >= LARGE else self._strict.pack(value)
        if kind is dict and "params" in value:
            params = value["params"]
            if type(params) in _SEQUENCES:
                for each in params:
                    if type(each) in _BULKY and _size(each) >= LARGE:
                        return self._encode_large(value)
            if "named" in value and _has_large(value["named"]):
                return self._encode_large(value)
        try:
            encoded = _encode(value)
        except RecursionError:
            raise PayloadError("the value nests too deeply, or contains itself") from None
        except TypeError:
            return self._encode_large(value)  # there may be a loan in it
        except Exception as exc:
            raise PayloadError(f"the value cannot be encoded: {exc}") from exc
        if len(encoded) > self.max_depth:  # else it cannot nest deeper
            check_msgpack_depth(encoded, self.max_depth)
            if len(encoded) >= NOT_COPIED:
                return Bulk(encoded)
        elif not encoded:
            raise PayloadError("an empty Raw is no value")
        return encoded

    def _encode_large(self, value: Any) -> Outgoing:
        """Encode a value with large bytes in it, or a loan, or something that cannot be."""
        lending = _Lending(self._lender)
        try:
            lent = self._with_loans(value)
            if lent is value and type(value) in _BULKY:
                return self._strict.pack(value)
            encoded = lending.encode(lent)
            check_msgpack_depth(encoded, self.max_depth)
            if lending.blocks:
                return self._wrapped(encoded, lending)
            return Bulk(encoded) if len(encoded) >= NOT_COPIED else encoded
        except BaseException:
            lending.undo()
            raise

    def _with_loans(self, value: Any) -> Any:
        """Put large bytes into the pool: the value itself, or the parameters of a call."""
        if type(value) is not dict or "params" not in value:
            return self._with_loan(value)
        value = dict(value)
        if type(value["params"]) in _SEQUENCES:
            value["params"] = [self._with_loan(each) for each in value["params"]]
        if type(named := value.get("named")) is dict:
            value["named"] = {name: self._with_loan(each) for name, each in named.items()}
        return value

    def _with_loan(self, value: Any) -> Any:
        if type(value) not in _BULKY or _size(value) < LARGE:
            return value
        source = memoryview(value)
        if not source.c_contiguous or source.nbytes > self._max_frame:
            return value  # the wire refuses it
        loan = self._room(source.nbytes)
        if loan is None:
            return value
        loan.view[:] = source.cast("B")
        return loan

    def _room(self, size: int) -> Loan | None:
        """Take a block; if there is none, count that, and see to it that there will be a pool."""
        loan = None if self._lender is None else self._lender.loan(size)
        if loan is None:
            self.counts.inline += 1
            if not self._asked and not self._closed:
                self._asked = self.news = True
        return loan

    def _wrapped(self, encoded: bytes, lending: _Lending) -> bytes:
        size = len(encoded) + sum(size for _, _, size in lending.blocks)
        if size > self._max_frame:
            raise MessageTooBig(size=size, limit=self._max_frame)
        self.counts.lent += len(lending.blocks)
        inner = _encode(_Lent(lending.key, lending.blocks, msgspec.Raw(encoded)))
        return _encode(msgspec.msgpack.Ext(PAYLOAD, inner))

    def loan(self, size: int) -> Loan:
        """Return memory to build a payload in."""
        if size < LARGE or size > self._max_frame:
            return Loan(size)
        return self._room(size) or Loan(size)

    def take_back(self, payload: Outgoing) -> None:
        """Note that a payload is not sent: what it lends is free, and loans are open again."""
        if isinstance(payload, Bulk) or self._lender is None:
            return  # what is lent is small
        lent = _opened(payload, self._lender.key)
        if lent is not None:
            self._lender.take_back([number for number, _, _ in lent.blocks])

    def value_of(self, raw: msgspec.Raw) -> msgspec.Raw:
        """Return the value of a payload that this end may be lending, to look at."""
        lent = None if self._lender is None else _opened(raw, self._lender.key)
        return raw if lent is None else lent.value

    def _decode_pooled(self, raw: Bytes, of: Any = Any) -> Any:
        borrower = self._borrower
        assert borrower is not None  # it decodes so since there is one
        views, raws = (False, False) if of is Any else _asked_for(of)
        # A reference in a `Raw` would outlive what it refers to: so those are looked for.
        if not raws or borrower.key not in bytes(raw):
            try:
                return self._strict.decode(raw, of)  # nearly everything has no reference in it
            except PayloadError:
                if not borrower.holding:
                    raise
        try:
            value = _decoder(borrower.view if views else borrower.copy).decode(raw)
            if raws:
                return self._strict.decode(_encode(value), of)
            return value if of is Any else msgspec.convert(value, of, builtin_types=_TYPES)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise PayloadError(str(exc)) from exc

    # What the two ends tell each other

    def take_news(self) -> list[tuple[int, object]]:
        """Return what there is to tell: kinds of packets, and what they say."""
        self.news = False
        told: list[tuple[int, object]] = []
        if self._asked and self._made is None and self._lender is None and not self._closed:
            self._made = made = self._memory.make(self._max_pool)
            if made is None:
                self._closed = True  # and never again: each attempt would cost as much
            else:
                told.append((LEND, (made.fd, made.inode, len(made.view), made.key)))
        returned = None if self._borrower is None else self._borrower.returned
        while returned:
            many = min(len(returned), TOLD_AT_ONCE)
            told.append((RETURN, [returned.popleft() for _ in range(many)]))
        return told

    def on_lend(self, raw: msgspec.Raw) -> int:
        """The other end has a pool; return how much of it is mapped.

        Raises:
            RemoteProtocolError: It makes no sense.
        """
        fd, inode, size, key = self._facts(raw, tuple[_Natural, _Natural, _Natural, _Key])
        if self._borrower is not None:
            raise RemoteProtocolError("a second pool")
        view = self._memory.open(fd, inode, size, self._max_pool)
        if view is None:
            return 0
        self._borrower = Borrower(view, key, self._tell)
        self.decode = self._decode_pooled
        return len(view)

    def on_borrow(self, raw: msgspec.Raw) -> None:
        """The other end has mapped so much of our pool.

        Raises:
            RemoteProtocolError: There is none, or not so much.
        """
        mapped = self._facts(raw, _Natural)
        made, self._made = self._made, None
        if made is not None:
            made.shut()
        if made is None or mapped > len(made.view) or mapped % BLOCK:
            raise RemoteProtocolError(f"a pool that is not there is borrowed: {mapped} bytes")
        if mapped:
            self._lender = Lender(made.view[:mapped], made.key, self._memory.guard)
        else:
            self._closed = True

    def on_return(self, raw: msgspec.Raw) -> None:
        """The other end looks at these blocks no more.

        Raises:
            RemoteProtocolError: They were not lent.
        """
        blocks = self._facts(raw, list[_Natural])
        if self._lender is None:
            raise RemoteProtocolError("something is returned, and nothing was lent")
        self._lender.returned(blocks)

    def receive(self, raw: msgspec.Raw) -> msgspec.Raw:
        """Take what a payload lends, if it does; return its value.

        Raises:
            RemoteProtocolError: It lends what there is not.
        """
        lent = None if self._borrower is None else _opened(raw, self._borrower.key)
        if lent is None or self._borrower is None:
            return raw
        return self._borrower.receive(lent, max_size=self._max_frame, max_depth=self.max_depth)

    def close(self) -> None:
        """The connection is over. Views, and memory that is being built in, stay as they are."""
        self._closed = True
        if self._lender is not None:
            self._lender.close()
        if self._made is not None:
            self._made.shut()
        if self._borrower is not None:
            self._borrower.close()
        self._lender = self._made = None

    def _facts(self, raw: msgspec.Raw, of: Any) -> Any:
        try:
            return self._strict.decode(raw, of)
        except PayloadError as exc:
            raise RemoteProtocolError(f"no word about a pool: {exc}") from exc

    def _tell(self) -> None:
        if not self.news:
            self.news = True
            tell = self._memory.tell
            if tell is not None:
                tell()


def glance(codec: Codec, raw: Bytes, of: Any = Any) -> Any:
    """Decode for who only looks on: what is lent is named, and left to whom it is lent.

    Raises:
        PayloadError: As `Codec.decode`.
    """
    try:
        return codec.decode(raw, of)
    except PayloadError:
        if of is not Any or not isinstance(codec, MessagePack):
            raise
    try:
        return _decoder(lambda _: "<lent>").decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise PayloadError(str(exc)) from exc


class _Lending:
    """One value that is encoded, and what of it is lent."""

    def __init__(self, lender: Lender | None) -> None:
        self.key = b"" if lender is None else lender.key
        self.blocks: list[tuple[int, int, int]] = []  # number, where it begins, bytes
        self._lender = lender

    def encode(self, value: object) -> bytes:
        """Encode it, with references in place of the loans."""
        try:
            return msgspec.msgpack.Encoder(enc_hook=self._reference).encode(value)
        except RecursionError:
            raise PayloadError("the value nests too deeply, or contains itself") from None
        except LocalProtocolError:
            raise
        except Exception as exc:
            raise PayloadError(f"the value cannot be encoded: {exc}") from exc

    def _reference(self, value: object) -> object:
        if type(value) is not Loan:
            return plain(value)
        data = value.take(self._lender)
        if data is not None:
            return data
        assert self._lender is not None  # the block is of its pool
        number = self._lender.lend(value)
        self.blocks.append((number, value.block, len(value)))
        return msgspec.msgpack.Ext(REFERENCE, self.key + number.to_bytes(8))

    def undo(self) -> None:
        """It cannot be sent."""
        if self._lender is not None:
            self._lender.take_back([number for number, _, _ in self.blocks])


def _size(value: Any) -> int:
    """Bytes in what is bytes of some kind; a view may have items of more, and several axes."""
    return value.nbytes if type(value) is memoryview else len(value)


def _has_large(named: Any) -> bool:
    return type(named) is dict and any(
        type(each) in _BULKY and _size(each) >= LARGE for each in named.values()
    )


_encode = msgspec.msgpack.Encoder().encode


def _decoder(look: Callable[[bytes], Any]) -> msgspec.msgpack.Decoder[Any]:
    def extension(code: int, data: memoryview) -> Any:
        if code == REFERENCE:
            return look(bytes(data))
        return None if code == 0 else _unknown(code)

    return msgspec.msgpack.Decoder(ext_hook=extension)


def _unknown(code: int) -> None:
    raise ValueError(f"unknown MessagePack extension {code}")


@lru_cache(maxsize=1024)
def _asked_for(of: Any) -> tuple[bool, bool]:
    """Whether views are anywhere in a type, and whether `Raw` is.

    If one is, whatever is untyped in it is one, too.
    """
    # Not at the top: it takes 5 ms, and most connections never come here.
    from msgspec.inspect import Field, MemoryViewType, RawType, Type, type_info

    views = raws = False
    todo: list[Any] = [type_info(of)]
    seen: set[int] = set()
    while todo:
        item = todo.pop()
        views = views or isinstance(item, MemoryViewType)
        raws = raws or isinstance(item, RawType)
        if isinstance(item, tuple):
            todo += item
        elif isinstance(item, Type | Field) and id(item) not in seen:
            seen.add(id(item))
            todo += msgspec.structs.astuple(item)
    return views, raws
