"""Deflate: compression of a connection, one raw stream (RFC 1951) each way.

Every body is what a sync flush after one packet yields; there is no final block.
"""

from __future__ import annotations

import zlib

from ..errors import MessageTooBig, RemoteProtocolError
from .wire import Body

__all__ = ["Deflate"]

GROWTH = 64  # a body that does not compress grows by less than this, and than its 64th part


class Deflate:
    """Both streams of one connection, from the moment compression was agreed."""

    def __init__(self) -> None:
        self._out = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        self._in = zlib.decompressobj(-zlib.MAX_WBITS)

    def compress(self, body: bytes, limit: int) -> bytes:
        """Return the body compressed; what is refused leaves no trace in the stream.

        Raises:
            MessageTooBig: It is over the limit, before or after.
        """
        if len(body) > limit:
            raise MessageTooBig(size=len(body), limit=limit)
        near = len(body) + GROWTH + len(body) // GROWTH > limit
        out = self._out.copy() if near else self._out
        data = out.compress(body) + out.flush(zlib.Z_SYNC_FLUSH)
        if len(data) > limit:
            raise MessageTooBig(size=len(data), limit=limit)
        self._out = out
        return data

    def inflate(self, body: Body, limit: int) -> bytes:
        """Return the body inflated; no more than the limit is ever held.

        Raises:
            RemoteProtocolError: It is no deflate data, or (`MessageTooBig`) too much of it.
        """
        try:
            data = self._in.decompress(body, limit + 1)
        except zlib.error as exc:
            raise RemoteProtocolError(
                f"a frame that does not inflate: {exc}", code="bad-deflate"
            ) from exc
        if len(data) > limit:
            raise MessageTooBig(size=len(data), limit=limit)
        if self._in.eof:
            raise RemoteProtocolError("a deflate stream that ended", code="bad-deflate")
        return data
