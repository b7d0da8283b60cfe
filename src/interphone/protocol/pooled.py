"""PooledCodec: values for one connection, whose large bytes go by the pools of its ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import msgspec

from ..errors import LocalProtocolError, MessageTooBig, PayloadError, RemoteProtocolError
from .loan import Block, Loan
from .messages import LEND, RETURN
from .payload import Bytes, Codec, MessagePack, check_msgpack_depth, plain
from .pool import (
    BLOCK,
    PAYLOAD,
    REFERENCE,
    Borrower,
    Key,
    Lender,
    Lent,
    Made,
    Memory,
    Natural,
    PoolCounts,
    lent_by,
)
from .wire import LARGE as IN_PIECES
from .wire import Bulk, Outgoing

__all__ = ["LARGE", "PooledCodec", "asked_for", "glance"]

LARGE = 128 * 1024
"""Bytes from which on a payload is lent: below that copying it costs less than giving it back
(benchmarks/bench_pool.py)."""

TOLD_AT_ONCE = 32  # blocks in one RETURN

_BULKY = frozenset((bytes, bytearray, memoryview))
_SEQUENCES = frozenset((list, tuple))


class PooledCodec:
    """A `Codec` for values that go over one connection: large bytes in them go by its pools.

    What is encoded for several connections, or to be kept, takes the codec of the dialect.

    Attributes:
        counts: What became of large payloads.
        news: Whether there is something to tell the other end.
        decode: See `Codec`. Bytes are seen in place where a view is asked for, else copied.
    """

    __slots__ = (
        "_borrower",
        "_lender",
        "_made",
        "_max_frame",
        "_max_pool",
        "_memory",
        "_offered",
        "_stage",
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
        # Of our pool: nothing large was sent yet, it is to be made, the other end is told of it,
        # there is one, there will be none.
        self._stage: Literal["early", "wanted", "told", "lending", "never"] = "early"
        self._offered = False  # whether the other end has said that it has one

    # Values

    def encode(self, value: object) -> bytes:
        """See `Codec`; it lends nothing."""
        return self._strict.encode(value)

    def pack(self, value: Any) -> Outgoing:
        """See `Codec`. What it returns must be sent, or given to `take_back`.

        It looks closely; `payload.pack_quickly` is for what is small, and asks it otherwise.
        """
        lending = _Lending(self._lender)
        try:
            lent = self._with_blocks(value)
            if lent is value and type(value) in _BULKY:
                return self._strict.pack(value)
            encoded = lending.encode(lent)
            if not encoded:
                raise PayloadError("an empty Raw is no value")
            check_msgpack_depth(encoded, self.max_depth)
            if lending.blocks:
                return self._wrapped(encoded, lending)
            return Bulk(encoded) if len(encoded) >= IN_PIECES else encoded
        except BaseException:
            lending.undo()
            raise

    def _with_blocks(self, value: Any) -> Any:
        """Put large bytes into the pool: the value itself, or the parameters of a call."""
        if type(value) is not dict or "params" not in value:
            return self._with_block(value)
        value = dict(value)
        if type(value["params"]) in _SEQUENCES:
            value["params"] = [self._with_block(each) for each in value["params"]]
        if type(named := value.get("named")) is dict:
            value["named"] = {name: self._with_block(each) for name, each in named.items()}
        return value

    def _with_block(self, value: Any) -> Any:
        if type(value) not in _BULKY or _size(value) < LARGE:
            return value
        source = memoryview(value)
        if not source.c_contiguous or source.nbytes > self._max_frame:
            return value  # the wire refuses it
        block = self._room(source.nbytes)
        if block is None:
            return value
        block.memory[:] = source.cast("B")
        return block

    def _room(self, size: int) -> Block | None:
        """Take a block; if there is none, count that, and see to it that there will be a pool."""
        lender = self._lender
        block = None if lender is None else lender.take(size)
        if block is None:
            self.counts.inline += 1
            if self._stage == "early":
                self._stage, self.news = "wanted", True
        return block

    def _wrapped(self, encoded: bytes, lending: _Lending) -> bytes:
        size = len(encoded) + sum(size for _, _, size in lending.blocks)
        if size > self._max_frame:
            raise MessageTooBig(size=size, limit=self._max_frame)
        self.counts.lent += len(lending.blocks)
        inner = _encode(Lent(lending.key, lending.blocks, msgspec.Raw(encoded)))
        return _encode(msgspec.msgpack.Ext(PAYLOAD, inner))

    def loan(self, size: int) -> Loan:
        """Return memory to build a payload in."""
        if size < LARGE or size > self._max_frame:
            return Loan(size)
        return Loan(size, self._room(size))

    def take_back(self, payload: Outgoing) -> None:
        """Note that a payload is not sent: what it lends is free, and loans are open again."""
        lender = self._lender
        if isinstance(payload, Bulk) or lender is None:
            return  # what is lent is small
        lent = lent_by(lender.key, payload)
        if lent is not None:
            lender.take_back([number for number, _, _ in lent.blocks])

    def value_of(self, raw: msgspec.Raw) -> msgspec.Raw:
        """Return the value of a payload that this end may be lending, to look at."""
        lender = self._lender
        lent = None if lender is None else lent_by(lender.key, raw)
        return raw if lent is None else lent.value

    def _decode_pooled(self, raw: Bytes, of: Any = Any) -> Any:
        borrower = self._borrower
        assert borrower is not None  # it decodes so since there is one
        asked = _NOTHING if of is Any else asked_for(of)
        # A reference in a `Raw` would outlive what it refers to: so those are looked for.
        if not asked.raws or borrower.key not in bytes(raw):
            try:
                return self._strict.decode(raw, of)  # nearly everything has no reference in it
            except PayloadError:
                if not borrower.holding:
                    raise
        try:
            look = borrower.view if asked.views else borrower.copy
            value = _decoder(look, extensions=asked.extensions or asked.raws).decode(raw)
            if asked.raws:
                return self._strict.decode(_encode(value), of)
            return value if of is Any else msgspec.convert(value, of, builtin_types=_BULKY)
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise PayloadError(str(exc)) from exc

    # What the two ends tell each other

    def take_news(self) -> list[tuple[int, object]]:
        """Return what there is to tell: kinds of packets, and what they say."""
        self.news = False
        told: list[tuple[int, object]] = []
        if self._stage == "wanted":
            self._made = made = self._memory.make(self._max_pool)
            if made is None:
                self._stage = "never"  # each attempt would cost as much
            else:
                self._stage = "told"
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
        fd, inode, size, key = self._facts(raw, tuple[Natural, Natural, Natural, Key])
        if self._offered:
            raise RemoteProtocolError("a second pool")
        self._offered = True
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
        mapped = self._facts(raw, Natural)
        made, self._made = self._made, None
        if made is not None:
            made.shut()
        if made is None or mapped > len(made.view) or mapped % BLOCK:
            raise RemoteProtocolError(f"a pool that is not there is borrowed: {mapped} bytes")
        self._stage = "lending" if mapped else "never"
        if mapped:
            self._lender = Lender(made.view[:mapped], made.key, self._memory.guard)

    def on_return(self, raw: msgspec.Raw) -> None:
        """The other end looks at these blocks no more.

        Raises:
            RemoteProtocolError: They were not lent.
        """
        blocks = self._facts(raw, list[Natural])
        if self._lender is None:
            raise RemoteProtocolError("something is returned, and nothing was lent")
        self._lender.returned(blocks)

    def receive(self, raw: msgspec.Raw) -> msgspec.Raw:
        """Take what a payload lends, if it does; return its value.

        Raises:
            RemoteProtocolError: It lends what there is not.
        """
        borrower = self._borrower
        lent = None if borrower is None else lent_by(borrower.key, raw)
        if lent is None or borrower is None:
            return raw
        return borrower.receive(lent, max_size=self._max_frame, max_depth=self.max_depth)

    def close(self) -> None:
        """The connection is over. Views, and memory that is being built in, stay as they are."""
        self._stage = "never"
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
        return _decoder(lambda _: "<lent>", extensions=False).decode(raw)
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
        if type(value) is Block:
            return self._lend(value, value)
        if type(value) is not Loan:
            return plain(value)
        block = value.lend(self._lender)
        return value.content() if block is None else self._lend(value, block)

    def _lend(self, what: Loan | Block, block: Block) -> msgspec.msgpack.Ext:
        assert self._lender is not None  # the block is of its pool
        number = self._lender.lend(what)
        self.blocks.append((number, block.start, block.size))
        return msgspec.msgpack.Ext(REFERENCE, self.key + number.to_bytes(8))

    def undo(self) -> None:
        """It cannot be sent."""
        if self._lender is not None:
            self._lender.take_back([number for number, _, _ in self.blocks])


def _size(value: Any) -> int:
    """Bytes in what is bytes of some kind; a view may have items of more, and several axes."""
    return value.nbytes if type(value) is memoryview else len(value)


_encode = msgspec.msgpack.Encoder().encode


def _decoder(look: Callable[[bytes], Any], *, extensions: bool) -> msgspec.msgpack.Decoder[Any]:
    def extension(code: int, data: memoryview) -> Any:
        if code == REFERENCE:
            return look(bytes(data))
        if extensions:
            return msgspec.msgpack.Ext(code, bytes(data))
        return None if code == 0 else _unknown(code)

    return msgspec.msgpack.Decoder(ext_hook=extension)


def _unknown(code: int) -> None:
    raise ValueError(f"unknown MessagePack extension {code}")


class Asked(NamedTuple):
    """What is anywhere in a type; then whatever is untyped in it is one, too."""

    views: bool = False
    raws: bool = False
    extensions: bool = False


_NOTHING = Asked()


@lru_cache(maxsize=1024)
def asked_for(of: Any) -> Asked:
    """Tell which of the types that matter here are anywhere in a type."""
    # Not at the top: it takes 5 ms, and most connections never come here.
    from msgspec.inspect import ExtType, Field, MemoryViewType, RawType, Type, type_info

    found: set[type] = set()
    todo: list[Any] = [type_info(of)]
    seen: set[int] = set()
    while todo:
        item = todo.pop()
        found.add(type(item))
        if isinstance(item, tuple):
            todo += item
        elif isinstance(item, Type | Field) and id(item) not in seen:
            seen.add(id(item))
            todo += msgspec.structs.astuple(item)
    return Asked(MemoryViewType in found, RawType in found, ExtType in found)
