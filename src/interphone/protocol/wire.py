"""Wire: bytes to frames and frames to bytes.

A frame is a length tag and a body. The tag is base 128, most significant digit first;
the last digit, and only the last, has the high bit set (wire.md). A reader yields one
frame at a time, and its `limit` may change between two frames.

Nothing above this class sees a tag, and nothing in it knows what a body means.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ..errors import MessageTooBig, RemoteProtocolError

__all__ = ["LARGE", "MAX_TAG", "Body", "Bulk", "Outgoing", "Wire", "tag"]

LARGE: Final = 32 * 1024  # bytes of a body that is copied as little as can be
ROOM = 64 * 1024, 1024 * 1024  # bytes of a large body that may be received at once
_ZEROS = bytes(ROOM[1])
MAX_SPARE = 4 * 1024 * 1024
_spares: list[bytearray] = []  # at most one: fresh memory costs more than what is received into it
MAX_TAG: Final = 5  # digits: enough for 2**31 - 1, the largest the Node packages can write
_SHORT_TAGS: Final = 1024  # made once, for the small; it takes half a millisecond


def tag(size: int) -> bytes:
    """Return the length tag of a body of `size` bytes."""
    digits = [(size & 127) | 128]
    while size := size >> 7:
        digits.append(size & 127)
    return bytes(reversed(digits))


Body = bytes | bytearray  # as it came; it is not changed any more


class Bulk:
    """Large bytes to be sent, in pieces that nobody puts together."""

    __slots__ = ("pieces", "size")

    def __init__(self, *pieces: Outgoing) -> None:
        self.pieces: list[bytes] = []
        for piece in pieces:
            if isinstance(piece, Bulk):
                self.pieces += piece.pieces
            elif piece:
                self.pieces.append(piece)
        self.size = sum(map(len, self.pieces))

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces)


Outgoing = bytes | Bulk

_TAGS: Final = [tag(size) for size in range(_SHORT_TAGS)]


class Wire:
    """Frames in and frames out.

    Attributes:
        limit: Largest body accepted and sent, in bytes.
        stopped: Set it and no further frame is taken out until it is cleared.
        queued: Bytes waiting in the outgoing buffer.
        pad: What to send behind a write that would leave one byte alone behind a 64 KiB
            boundary, which a receiver of @isdk/ipc-server would not notice (wire.md D1).
    """

    __slots__ = (
        "_bulky",
        "_filled",
        "_first",
        "_held",
        "_kept",
        "_large",
        "_missing",
        "_need",
        "_out",
        "_room",
        "limit",
        "pad",
        "queued",
        "stopped",
    )

    def __init__(self, *, limit: int) -> None:
        self.limit = limit
        self.stopped = False
        self.queued = 0
        self.pad = b""
        self._out: list[bytes] = []
        self._bulky = False  # whether a large body is in it
        self._first = 0  # how many parts of it stay ahead of everything
        self._kept = False  # whether there is something in the next four
        self._held = bytearray()
        self._need = 0
        self._large = bytearray()  # a large body, as far as there is room for it
        self._filled = self._missing = 0  # bytes of it that came, and that did not
        self._room: memoryview | None = None

    # In

    def receive(self, data: bytes, take: Callable[[Body], None]) -> None:
        """Give each body that `data` completes to `take`; keep the rest.

        Memory follows what was received, never what a tag claims.

        Raises:
            RemoteProtocolError: The tag is too long, or (`MessageTooBig`) the body is.
        """
        if self._kept:
            data = self._continue(data, take)
        at, size = 0, len(data)
        while at < size and not self.stopped:
            digit = data[at]
            start = at + 1
            if digit > 127:
                length = digit & 127
            else:
                length, start = self._long_tag(data, digit, start)
                if not start:
                    break
            if length > self.limit:
                raise MessageTooBig(size=length, limit=self.limit)
            end = start + length
            if end > size:
                if length >= LARGE:
                    self._large = _spares.pop() if _spares else bytearray()
                    del self._large[length:]
                    self._missing = length
                    self._fill(data[start:])
                    self._kept = True
                    return
                self._need = end - at
                break
            at = end
            take(data[start:end])
        if at < size:
            self._held += data[at:] if at else data
            self._kept = True

    def _continue(self, data: bytes, take: Callable[[Body], None]) -> bytes:
        """Put `data` behind what was kept; return what there is to go on with, if enough."""
        if self._missing or self._filled:
            if data:
                data = self._fill(data)
                self._held += data
            if self._missing or self.stopped:
                return b""
            body, self._large = self._large, bytearray()
            self._leave_room()
            self._filled = 0
            take(body)
            _keep_spare(body)
        else:
            self._held += data
        if len(self._held) < self._need:
            return b""
        data = bytes(self._held)
        self._held.clear()
        self._need = 0
        self._kept = False
        return data

    def _fill(self, data: bytes) -> bytes:
        """Put into the large body what belongs there; return what is behind it."""
        part = data[: self._missing]
        self._leave_room()
        start, end = self._filled, self._filled + len(part)
        if end <= len(self._large):
            self._large[start:end] = part
        else:
            self._large[start:] = part
        self._filled = end
        self._missing -= len(part)
        return data[len(part) :]

    def _leave_room(self) -> None:
        if self._room is not None:
            with suppress(BufferError):  # uvloop holds it until it has told of what came
                self._room.release()
            self._room = None

    @property
    def landing(self) -> bool:
        """Whether what comes next is of a large body, which can be received where it belongs."""
        return self._missing > 0

    def room(self) -> memoryview:
        """Return where to write what comes of a large body, if it is `landing`; then say `landed`.

        There is never more room than has come already, or a little. It must not be kept.
        """
        self._leave_room()
        filled, large = self._filled, self._large
        if filled == len(large):
            size = min(self._missing, max(filled, ROOM[0]), ROOM[1])
            large += _ZEROS if size == ROOM[1] else _ZEROS[:size]
        self._room = memoryview(large)[filled : filled + self._missing]
        return self._room

    def landed(self, size: int) -> None:
        """Note that so many bytes were written into the `room`; `receive` goes on with them."""
        self._filled += size
        self._missing -= size

    def _long_tag(self, data: bytes, length: int, at: int) -> tuple[int, int]:
        """Read the digits behind the first; return (length, where the body is), or (0, 0)."""
        last = at - 1 + MAX_TAG
        for position in range(at, min(last, len(data))):
            digit = data[position]
            length = (length << 7) | (digit & 127)
            if digit > 127:
                return length, position + 1
        if len(data) >= last:
            raise RemoteProtocolError(
                f"a length tag has more than {MAX_TAG} digits", code="bad-tag"
            )
        return 0, 0

    def unfinished(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._kept

    # Out

    def put(self, body: Outgoing) -> None:
        """Queue one frame; raise `MessageTooBig` if it is over the limit."""
        size = len(body)
        if size > self.limit:
            raise MessageTooBig(size=size, limit=self.limit)
        self.queued += size + 1
        if size < _SHORT_TAGS and type(body) is bytes:  # hot path: nearly all of them
            self._out += (_TAGS[size], body)
            return
        self._out.append(_TAGS[size] if size < _SHORT_TAGS else tag(size))
        if isinstance(body, Bulk):
            self._out += body.pieces
            self._bulky = True
        else:
            self._out.append(body)
            if size >= LARGE:
                self._bulky = True

    def put_raw(self, data: bytes) -> None:
        """Queue bytes that are no frame: a preamble or an HTTP head."""
        self._out.append(data)
        self.queued += len(data)

    def keep_first(self) -> None:
        """Let nothing be queued ahead of what is queued now."""
        self._first = len(self._out)

    def set_aside(self) -> list[bytes]:
        """Take what is queued out of the way, for something to be queued first: see `put_back`."""
        parts = self._out[self._first :]
        del self._out[self._first :]
        return parts

    def put_back(self, parts: list[bytes]) -> None:
        """Queue again what was set aside."""
        self._out += parts

    def take(self) -> bytes:
        """Return everything queued, in one piece."""
        data = b"".join(self._out)
        self._out.clear()
        self.queued = self._first = 0
        self._bulky = False
        if self.pad and len(data) % 65_536 == 1:
            data += self.pad
        return data

    def take_pieces(self) -> list[bytes]:
        """The same in pieces: a large body is not copied."""
        if not self._bulky or self.pad:
            return [self.take()]
        pieces: list[bytes] = []
        small: list[bytes] = []
        for part in self._out:
            if len(part) < LARGE:
                small.append(part)
                continue
            pieces += [b"".join(small), part]
            small.clear()
        self._out = small
        pieces.append(self.take())
        return pieces


def _keep_spare(body: bytearray) -> None:
    """Keep the memory of a body for the next one, if it is not large and nobody refers to it."""
    if len(body) <= MAX_SPARE and not _spares:
        try:
            body.append(0)
        except BufferError:  # a Raw is still there
            return
        _spares.append(body)
