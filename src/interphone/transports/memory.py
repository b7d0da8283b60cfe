"""Two ends in one process: a transport without a system below, for tests and examples.

What one end writes lies in the inbox of the other until its protocol takes it, one buffer
in each turn of the loop, as if it came from a socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from ..address import MemoryAddress
from ..errors import AddressInUse, ConnectError
from . import Factory, WriteGate, own_credentials

__all__ = ["MemoryListener", "MemoryTransport", "connect", "listen"]

# States of a transport.
OPEN, LOST = range(2)


def listen(address: MemoryAddress, factory: Factory) -> MemoryListener:
    """Accept connections at a meeting point; see `interphone.transports.listen`."""
    if address.listener is not None:
        raise AddressInUse(str(address), "somebody listens there")
    listener = MemoryListener(asyncio.get_running_loop(), address, factory)
    address.listener = listener
    return listener


def connect(address: MemoryAddress, factory: Factory) -> MemoryTransport:
    """Connect to a meeting point; see `interphone.transports.connect`."""
    listener = address.listener
    if not isinstance(listener, MemoryListener):
        raise ConnectError(f"cannot connect to {address}: nobody listens there", transient=True)
    loop = asyncio.get_running_loop()
    if listener.loop is not loop:
        raise ConnectError(f"cannot connect to {address}: it belongs to another event loop")
    near, far = MemoryTransport(loop), MemoryTransport(loop)
    protocol = factory()
    near.join(far)
    loop.call_soon(listener.admit, far)
    near.start(protocol)
    return near


class MemoryListener:
    """Accepts connections at a meeting point until it is closed.

    Attributes:
        address: Where it listens.
        loop: The only event loop that can connect.
        refused: Always 0: there is only one user in a process.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, address: MemoryAddress, factory: Factory
    ) -> None:
        self.address = address
        self.loop = loop
        self.refused = 0
        self._factory = factory

    def close(self) -> None:
        """Stop accepting; accepted connections stay. Idempotent."""
        if self.address.listener is self:
            self.address.listener = None

    def admit(self, transport: MemoryTransport) -> None:
        """Give an end its protocol."""
        if self.address.listener is not self:
            transport.abort()
            return
        try:
            protocol = self._factory()
        except BaseException:
            transport.abort()
            raise
        transport.start(protocol)


class MemoryTransport(asyncio.Transport):
    """One end of a connection within a process.

    `abort` takes back what the other end has not read, and its `connection_lost` gets a
    `ConnectionResetError`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__({"credentials": own_credentials(), "peername": "", "same_process": True})
        self._loop = loop
        self._state = OPEN
        self._protocol: asyncio.BufferedProtocol | None = None
        self._other: MemoryTransport | None = None
        self._inbox = bytearray()
        self._scheduled = False
        self._paused = False
        self._end_sent = False
        self._end_due = False
        self._at_end = False
        self._reset = False
        self._gate = WriteGate()

    def __repr__(self) -> str:
        state = "closed" if self._state == LOST else "open"
        return f"<MemoryTransport {state} {len(self._inbox)} to read>"

    def join(self, other: MemoryTransport) -> None:
        """Make this end and another the two ends of one connection."""
        self._other = other
        other._other = self

    def start(self, protocol: asyncio.BufferedProtocol) -> None:
        """Tell a protocol that it is connected, and begin to read."""
        self._protocol = protocol
        if self._call("connection_made", protocol.connection_made, self):
            self._schedule()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Give the protocol that is told what happens."""
        assert self._protocol is not None
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another buffered protocol be told what happens from now on."""
        if not isinstance(protocol, asyncio.BufferedProtocol):
            raise TypeError(f"{protocol!r} is not a BufferedProtocol")
        self._protocol = protocol

    # Ending

    def is_closing(self) -> bool:
        """Tell whether the connection has ended or is about to."""
        return self._state != OPEN

    def close(self) -> None:
        """End the connection; the other end can still read what was written."""
        self._lose(None)

    def abort(self) -> None:
        """End the connection at once; what the other end has not read is lost."""
        other = self._other
        if self._state == OPEN and other is not None and other._state == OPEN:
            other._inbox.clear()
            other._reset = True
        self._lose(None)

    # Reading

    def is_reading(self) -> bool:
        """Tell whether what arrives is passed on."""
        return self._state == OPEN and not self._paused and not self._at_end

    def pause_reading(self) -> None:
        """Pass on nothing until `resume_reading`. Idempotent."""
        self._paused = True

    def resume_reading(self) -> None:
        """Pass on what arrives again. Idempotent."""
        self._paused = False
        self._schedule()

    def _schedule(self) -> None:
        due = self._inbox or self._end_due
        if due and not self._scheduled and self._protocol is not None and self.is_reading():
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        if not self.is_reading():
            return
        if self._inbox:
            self._deliver_some()
        else:
            self._deliver_end()
        self._schedule()

    def _deliver_some(self) -> None:
        assert self._protocol is not None
        assert self._other is not None
        if not self._call("get_buffer and buffer_updated", self._fill, self._protocol):
            return
        self._other._check_gate()

    def _fill(self, protocol: asyncio.BufferedProtocol) -> None:
        buffer = memoryview(protocol.get_buffer(-1)).cast("B")
        size = min(len(buffer), len(self._inbox))
        if not size:
            raise RuntimeError("the buffer for reading is empty")
        buffer[:size] = self._inbox[:size]
        buffer.release()
        del self._inbox[:size]
        protocol.buffer_updated(size)

    def _deliver_end(self) -> None:
        assert self._protocol is not None
        self._at_end = True
        if self._reset:
            self._lose(ConnectionResetError("the other end aborted the connection"))
            return
        try:
            stay_open = self._protocol.eof_received()
        except Exception as exc:
            self._fail(exc, "eof_received")
            return
        if not stay_open:
            self.close()

    # Writing

    def get_write_buffer_size(self) -> int:
        """Tell how many bytes the other end has not yet read."""
        if self._other is None or self._other._state == LOST:
            return 0
        return len(self._other._inbox)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Tell the low and the high mark of what is not yet read."""
        return self._gate.low, self._gate.high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set at how many bytes not yet read the protocol pauses, and goes on."""
        self._gate.set_limits(high, low)
        self._check_gate()

    def can_write_eof(self) -> bool:
        """Tell that `write_eof` works."""
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Put a copy of the bytes into the inbox of the other end."""
        if self._end_sent:
            raise RuntimeError("cannot write after write_eof()")
        if self._state == LOST:
            return
        other = self._other
        assert other is not None
        if other._state == LOST:
            # Whoever reads learns it by reading to the end.
            if not self.is_reading():
                self._lose(BrokenPipeError("the other end has closed the connection"))
            return
        other._inbox += data
        other._schedule()
        self._check_gate()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write several buffers as one."""
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        """End the writing side; reading goes on."""
        if self._state == OPEN and not self._end_sent:
            self._end_sent = True
            self._end_other()

    def _end_other(self) -> None:
        assert self._other is not None
        self._other._end_due = True
        self._other._schedule()

    def _check_gate(self) -> None:
        if self._state == OPEN and self._protocol is not None:
            size = self.get_write_buffer_size()
            self._call("pause_writing", self._gate.check, size, self._protocol)

    # The end

    def _call(self, name: str, callback: Callable[..., None], *args: Any) -> bool:
        try:
            callback(*args)
        except Exception as exc:
            self._fail(exc, name)
            return False
        return True

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
        self._inbox.clear()
        self._end_other()
        self._loop.call_soon(self._finish, exc)

    def _finish(self, exc: Exception | None) -> None:
        assert self._other is not None
        # Nobody will read what the other end has written: let it go on, to the end.
        self._other._check_gate()
        if self._protocol is not None:
            self._protocol.connection_lost(exc)
