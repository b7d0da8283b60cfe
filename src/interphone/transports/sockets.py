"""SocketTransport: our own asyncio transport over a connected, non-blocking socket."""

from __future__ import annotations

import asyncio
import socket
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from . import Credentials, WriteGate

assert sys.platform != "win32"

__all__ = ["SocketTransport"]

JOINED = 16 * 1024
"""Writes smaller than this are joined while they wait."""

MAX_JOINED = 64 * 1024
CHUNKS = 64
"""How many waiting chunks are sent at once; the systems allow 1024."""

DRAINING_READS = 64

# States of a transport.
OPEN, BROKEN, CLOSING, LOST = range(4)

Buffer = bytes | bytearray | memoryview

_NONE: deque[Any] = deque()  # until there is one; an empty one weighs 624 bytes


class SocketTransport(asyncio.Transport):
    """Moves bytes between a connected non-blocking socket and a buffered protocol.

    It does what asyncio's own transport does, on any loop that has `add_reader`, and:

    - what a peer wrote before it went away is still read when a write finds it gone;
    - an exception in a protocol's callback ends the connection;
    - what is written after `close` is dropped.
    """

    __slots__ = (
        "__weakref__",
        "_at_end",
        "_buffer_updated",
        "_chunks",
        "_eof_written",
        "_fd",
        "_gate",
        "_get_buffer",
        "_loop",
        "_paused",
        "_protocol",
        "_recv_into",
        "_send",
        "_size",
        "_sock",
        "_state",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: asyncio.BufferedProtocol,
        *,
        credentials: Credentials | None = None,
        peername: str = "",
    ) -> None:
        extra = {"socket": sock, "credentials": credentials, "peername": peername}
        super().__init__({**extra, "gathers": True})  # `writelines` copies nothing
        self._sock: socket.socket | None = None
        self.set_protocol(protocol)
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._recv_into: Callable[[Any], int] = sock.recv_into  # bound once: hot path
        self._send: Callable[[Any], int] = sock.send
        self._state = OPEN
        self._paused = False
        self._at_end = False
        self._eof_written = False
        self._chunks: deque[Buffer] = _NONE
        self._size = 0
        self._gate = WriteGate()

    def __repr__(self) -> str:
        state = ("open", "broken", "closing", "closed")[self._state]
        return f"<SocketTransport fd={self._fd} {state} {self._size} to write>"

    def __del__(self) -> None:
        if self._sock is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self._sock.close()

    def start(self) -> None:
        """Tell the protocol that it is connected, and begin to read."""
        try:
            self._protocol.connection_made(self)
        except Exception as exc:
            self._fail(exc, "connection_made")
            return
        if self.is_reading():
            self._loop.add_reader(self._fd, self._on_readable)

    def read_now(self) -> None:
        """Take what has come already, without waiting for the loop to tell.

        Of a thousand clients that connect at once, each is through its handshake before the
        next is accepted.
        """
        if self.is_reading():
            self._on_readable()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Give the protocol that is told what happens."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another buffered protocol be told what happens from now on."""
        if not isinstance(protocol, asyncio.BufferedProtocol):
            raise TypeError(f"{protocol!r} is not a BufferedProtocol")
        self._protocol = protocol
        self._get_buffer: Callable[[int], Any] = protocol.get_buffer
        self._buffer_updated: Callable[[int], None] = protocol.buffer_updated

    # Ending

    def is_closing(self) -> bool:
        """Tell whether the connection has ended or is about to."""
        return self._state != OPEN

    def close(self) -> None:
        """Stop reading, write what is left, and end the connection."""
        if self._state == BROKEN:
            self._lose(None)
        elif self._state == OPEN:
            self._state = CLOSING
            self._stop_reading()
            if not self._chunks:
                self._lose(None)

    def abort(self) -> None:
        """End the connection at once; what is not yet written is lost."""
        self._lose(None)

    # Reading

    def is_reading(self) -> bool:
        """Tell whether what arrives is passed on."""
        return self._state == OPEN and not self._paused and not self._at_end

    def pause_reading(self) -> None:
        """Pass on nothing until `resume_reading`. Idempotent."""
        if self.is_reading():
            self._stop_reading()
        self._paused = True

    def resume_reading(self) -> None:
        """Pass on what arrives again. Idempotent."""
        if self._paused:
            self._paused = False
            if self.is_reading():
                self._loop.add_reader(self._fd, self._on_readable)

    def _on_readable(self) -> None:
        # Hot path: one system call and two calls of the protocol, nothing else.
        try:
            buffer = self._get_buffer(-1)
        except Exception as exc:
            self._fail(exc, "get_buffer")
            return
        try:
            size = self._recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._lose(exc)
            return
        if not size:
            self._on_end(buffer)
            return
        try:
            self._buffer_updated(size)
        except Exception as exc:
            self._fail(exc, "buffer_updated")

    def _on_end(self, buffer: Buffer) -> None:
        if not len(buffer):
            self._fail(RuntimeError("the buffer for reading is empty"), "get_buffer")
            return
        self._at_end = True
        self._stop_reading()
        try:
            stay_open = self._protocol.eof_received()
        except Exception as exc:
            self._fail(exc, "eof_received")
            return
        if not stay_open:
            self.close()

    def _stop_reading(self) -> None:
        self._loop.remove_reader(self._fd)

    # Writing

    def get_write_buffer_size(self) -> int:
        """Tell how many bytes are not yet written."""
        return self._size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Tell the low and the high mark of what is not yet written."""
        return self._gate.low, self._gate.high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set at how many bytes not yet written the protocol pauses, and goes on."""
        self._gate.set_limits(high, low)
        self._check_gate()

    def can_write_eof(self) -> bool:
        """Tell that `write_eof` works."""
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write at once what the system takes, and the rest when it takes more.

        The buffer may be used again as soon as this returns.
        """
        if self._eof_written:
            raise RuntimeError("cannot write after write_eof()")
        if self._state:
            return
        if data.__class__ is memoryview:
            data = data.cast("B")
        sent = 0
        if not self._chunks:
            try:
                sent = self._send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as exc:
                self._break(exc)
                return
            if sent == len(data):
                return
            self._loop.add_writer(self._fd, self._on_writable)
        self._keep(data, sent)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write several buffers as one, without putting them together."""
        if self._eof_written:
            raise RuntimeError("cannot write after write_eof()")
        if self._state:
            return
        pieces = [p.cast("B") if p.__class__ is memoryview else p for p in list_of_data]
        sent = 0
        if not self._chunks:
            assert self._sock is not None
            try:
                sent = self._sock.sendmsg(pieces[:CHUNKS])
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as exc:
                self._break(exc)
                return
            if sent == sum(map(len, pieces)):
                return
            self._loop.add_writer(self._fd, self._on_writable)
        for piece in pieces:
            self._keep(piece, min(sent, len(piece)))
            sent -= min(sent, len(piece))

    def write_eof(self) -> None:
        """End the writing side once everything is written; reading goes on."""
        if self._eof_written or self._state != OPEN:
            return
        self._eof_written = True
        if not self._chunks:
            self._shut_down()

    def _keep(self, data: Buffer, sent: int) -> None:
        if not (size := len(data) - sent):
            return
        if self._chunks is _NONE:
            self._chunks = deque()
        chunks = self._chunks
        if size > JOINED:
            rest = memoryview(data)[sent:]
            chunks.append(rest if data.__class__ is bytes else bytes(rest))
        else:
            last = chunks[-1] if chunks else None
            if not isinstance(last, bytearray) or len(last) > MAX_JOINED:
                chunks.append(last := bytearray())
            last += memoryview(data)[sent:] if sent else data
        self._size += size
        self._check_gate()

    def _on_writable(self) -> None:
        chunks = self._chunks
        try:
            if len(chunks) == 1:
                sent = self._send(chunks[0])
            else:
                assert self._sock is not None
                sent = self._sock.sendmsg(list(islice(chunks, CHUNKS)))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._break(exc)
            return
        self._forget(sent)
        self._check_gate()
        # The protocol may have written again, or ended it all.
        if not chunks and self._state != LOST:
            self._on_written()

    def _forget(self, sent: int) -> None:
        chunks = self._chunks
        self._size -= sent
        while sent:
            first = chunks[0]
            if sent >= len(first):
                sent -= len(chunks.popleft())
                continue
            if isinstance(first, bytearray):
                del first[:sent]
            else:
                chunks[0] = memoryview(first)[sent:]
            return

    def _on_written(self) -> None:
        self._loop.remove_writer(self._fd)
        if self._state == CLOSING:
            self._lose(None)
        elif self._eof_written:
            self._shut_down()

    def _shut_down(self) -> None:
        assert self._sock is not None
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self._break(exc)

    def _check_gate(self) -> None:
        if self._state == LOST:
            return
        try:
            self._gate.check(self._size, self._protocol)
        except Exception as exc:
            self._fail(exc, "pause_writing or resume_writing")

    # The end

    def _break(self, exc: OSError) -> None:
        """Nothing can be written any more: read what had arrived, then it is over."""
        if self._state != OPEN or self._at_end:
            self._lose(exc)
            return
        self._state = BROKEN
        self._loop.remove_writer(self._fd)
        self._stop_reading()
        self._chunks.clear()
        self._size = 0
        self._loop.call_soon(self._drain, exc)

    def _drain(self, exc: OSError) -> None:
        for _ in range(DRAINING_READS):
            if self._state != BROKEN or self._paused or not self._read_rest():
                break
        self._lose(exc)

    def _read_rest(self) -> bool:
        try:
            size = self._recv_into(buffer := self._get_buffer(-1))
            if size:
                self._buffer_updated(size)
            elif len(buffer):
                self._protocol.eof_received()
        except OSError:
            return False
        except Exception as exc:
            self._fail(exc, "buffer_updated")
            return False
        return size > 0

    def _fail(self, exc: Exception, callback: str) -> None:
        self._loop.call_exception_handler(
            {
                "message": f"{callback}() of a protocol raised; the connection is aborted",
                "exception": exc,
                "transport": self,
                "protocol": self._protocol,
            }
        )
        self._lose(exc)

    def _lose(self, exc: Exception | None) -> None:
        if self._state == LOST:
            return
        self._state = LOST
        if self._chunks:
            self._chunks.clear()
            self._size = 0
        self._loop.remove_writer(self._fd)
        self._stop_reading()
        self._loop.call_soon(self._finish, exc)

    def _finish(self, exc: Exception | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            assert self._sock is not None
            self._sock.close()
            self._sock = None
            # What is bound to the socket and the protocol would keep them alive.
            del self._recv_into, self._send, self._get_buffer, self._buffer_updated
