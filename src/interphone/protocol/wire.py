"""Wire: bytes to frames and frames to bytes.

A frame is a length tag and a body. The tag is base 128, most significant digit first;
the last digit, and only the last, has the high bit set (wire.md). A reader yields one
frame at a time, and its `limit` may change between two frames.

Nothing above this class sees a tag, and nothing in it knows what a body means.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import MessageTooBig, RemoteProtocolError

__all__ = ["LARGE", "MAX_TAG", "Wire", "tag"]

LARGE = 32 * 1024  # bytes of a body that is put together without its tag, and copied once less
MAX_TAG = 5  # digits: enough for 2**31 - 1, the largest the Node packages can write
_SHORT_TAGS = 1024  # made once, for the small; it takes half a millisecond


def tag(size: int) -> bytes:
    """Return the length tag of a body of `size` bytes."""
    digits = [(size & 127) | 128]
    while size := size >> 7:
        digits.append(size & 127)
    return bytes(reversed(digits))


_TAGS = [tag(size) for size in range(_SHORT_TAGS)]


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
        "_held",
        "_kept",
        "_large",
        "_missing",
        "_need",
        "_out",
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
        self._kept = False  # whether there is something in the next four
        self._held = bytearray()
        self._need = 0
        self._large = bytearray()  # what came of a large body
        self._missing = 0  # bytes of it

    # In

    def receive(self, data: bytes, take: Callable[[bytes], None]) -> None:
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
                    self._large += data[start:]
                    self._missing = end - size
                    self._kept = True
                    return
                self._need = end - at
                break
            at = end
            take(data[start:end])
        if at < size:
            self._held += data[at:] if at else data
            self._kept = True

    def _continue(self, data: bytes, take: Callable[[bytes], None]) -> bytes:
        """Put `data` behind what was kept; return what there is to go on with, if enough."""
        if self._missing or self._large:
            self._large += data[: self._missing]
            self._held += data[self._missing :]
            self._missing = max(0, self._missing - len(data))
            if self._missing or self.stopped:
                return b""
            body = bytes(self._large)
            self._large = bytearray()
            take(body)
        else:
            self._held += data
        if len(self._held) < self._need:
            return b""
        data = bytes(self._held)
        self._held.clear()
        self._need = 0
        self._kept = False
        return data

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

    def put(self, body: bytes) -> None:
        """Queue one frame; raise `MessageTooBig` if it is over the limit."""
        size = len(body)
        if size > self.limit:
            raise MessageTooBig(size=size, limit=self.limit)
        self._out.append(_TAGS[size] if size < _SHORT_TAGS else tag(size))
        self._out.append(body)
        self.queued += size + 1

    def put_raw(self, data: bytes) -> None:
        """Queue bytes that are no frame: a preamble or an HTTP head."""
        self._out.append(data)
        self.queued += len(data)

    def take(self) -> bytes:
        """Return everything queued, in one piece."""
        data = b"".join(self._out)
        self._out.clear()
        self.queued = 0
        if self.pad and len(data) % 65_536 == 1:
            data += self.pad
        return data
