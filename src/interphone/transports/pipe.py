r"""Named pipes of Windows: listening at a name and connecting to one.

    server                                    client
    CreateNamedPipe, 16 instances             CreateFile, identification only
    ConnectNamedPipe on each   ◄───────────   as soon as an instance is free
    who is it? make a further instance        who owns the pipe? then the first byte

A name belongs to whoever makes its first instance, and is free again when the last end of the
last instance is closed. asyncio's own pipe server is not used: it lets others in, and from
other hosts, and has too few instances for many clients at once.

Pipes have no half-close: a transport that has closed reads nothing more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from ..address import PipeAddress
from ..errors import AddressError, AddressInUse, ConnectError, Unsupported
from . import Credentials, Factory, WriteGate

if sys.platform == "win32":
    import _winapi
    from asyncio.windows_utils import PipeHandle

    from . import windows

assert sys.platform == "win32"

__all__ = ["PipeListener", "PipeTransport", "connect", "listen"]

INSTANCES = 16
"""How many clients can connect at once without waiting for each other."""

BUFFER = 64 * 1024
"""What Windows keeps of each direction; a larger write waits for the reader."""

CHUNK = 64 * 1024
"""What is written at once; with less one sees earlier that the peer goes on reading."""

SMALLEST_READ, LARGEST_READ = 4 * 1024, 64 * 1024

LEAVING = 1.0
"""Seconds that an old server and its clients have to let go of the name."""

BUSY = 2.0
"""Seconds to wait for a free instance since somebody got one."""

DENIED = 0.25
FIRST_DELAY, LONGEST_DELAY = 0.001, 0.02
RETRY_DELAY = 0.1
"""Seconds without a further instance when the system has no resources at all."""

FILE_NOT_FOUND, ACCESS_DENIED, INVALID_NAME, PIPE_BUSY = 2, 5, 123, 231

REJECT_REMOTE_CLIENTS = 0x8  # the type and the read mode are bytes: 0
CLIENT_FLAGS = (
    _winapi.FILE_FLAG_OVERLAPPED
    | 0x0010_0000  # SECURITY_SQOS_PRESENT
    | 0x0001_0000  # SECURITY_IDENTIFICATION: the server may ask who we are, not be us
)

# States of a transport.
OPEN, BROKEN, CLOSING, LOST = range(4)

log = logging.getLogger("interphone.transports")


class Proactor:
    """What asyncio can do with a pipe; it has no public names for it.

    Args:
        loop: Must be asyncio's ProactorEventLoop.

    Raises:
        Unsupported: It is another loop, or a Python that does it in another way.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        proactor: Any = getattr(loop, "_proactor", None)
        try:
            self.accept: Callable[[PipeHandle], asyncio.Future[Any]] = proactor.accept_pipe
            self.read_into: Callable[[PipeHandle, bytearray], asyncio.Future[int]]
            self.read_into = proactor.recv_into
            self.write: Callable[[PipeHandle, bytes], asyncio.Future[int]] = proactor.send
        except AttributeError:
            raise Unsupported(
                "named pipes need asyncio's ProactorEventLoop, as Python 3.11 to 3.13 have it;"
                f" this is {type(loop).__name__} on {sys.version.split()[0]}"
            ) from None


# Connecting


async def connect(
    address: PipeAddress, factory: Factory, *, allowed_uids: frozenset[int] | None = None
) -> PipeTransport:
    """Connect to a pipe as soon as an instance is free; see `interphone.transports.connect`."""
    _check_uids(allowed_uids)
    loop = asyncio.get_running_loop()
    proactor = Proactor(loop)
    pipe = PipeHandle(await _open(loop, address))
    try:
        credentials = _trusted_server(pipe, address)
        transport = PipeTransport(
            loop, proactor, pipe, factory(), credentials=credentials, peername=address.name
        )
    except BaseException:
        pipe.close()
        raise
    transport.start()
    return transport


class Queue:
    """Those of one event loop who want to open the same pipe, one after another.

    If all of a thousand asked again and again, they would keep a server in the same loop from
    making instances for them.

    Attributes:
        turn: Held by who is trying.
        moved: When somebody last succeeded.
    """

    __slots__ = ("__weakref__", "moved", "turn")

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.moved = 0.0


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[str, Queue]]
_queues = WeakKeyDictionary()


async def _open(loop: asyncio.AbstractEventLoop, address: PipeAddress) -> int:
    queues = _queues.setdefault(loop, WeakValueDictionary())
    queue = queues.setdefault(address.name, Queue())
    started, delay = loop.time(), FIRST_DELAY
    async with queue.turn:
        while True:
            try:
                handle = _create_file(address)
            except OSError as exc:
                patience = {PIPE_BUSY: BUSY, ACCESS_DENIED: DENIED}.get(exc.winerror, 0)
                if loop.time() - max(started, queue.moved) >= patience:
                    raise _connect_error(address, exc) from exc
            else:
                queue.moved = loop.time()
                return handle
            # Not all processes at the same moment.
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = min(2 * delay, LONGEST_DELAY)


def _create_file(address: PipeAddress) -> int:
    return _winapi.CreateFile(
        address.name,
        _winapi.GENERIC_READ | _winapi.GENERIC_WRITE,
        0,
        _winapi.NULL,
        _winapi.OPEN_EXISTING,
        CLIENT_FLAGS,
        _winapi.NULL,
    )


def _connect_error(address: PipeAddress, exc: OSError) -> ConnectError:
    reasons = {
        FILE_NOT_FOUND: "nobody listens there",
        PIPE_BUSY: "the server is there, but too many others wait for it",
        ACCESS_DENIED: "its server belongs to another user",
    }
    reason = reasons.get(exc.winerror) or exc.strerror or str(exc)
    transient = exc.winerror in (FILE_NOT_FOUND, PIPE_BUSY)
    return ConnectError(f"cannot connect to {address}: {reason}", transient=transient)


def _trusted_server(pipe: PipeHandle, address: PipeAddress) -> Credentials:
    pid = windows.server_pid(pipe.handle)
    try:
        sid = windows.owner_of(pipe.handle)
    except OSError as exc:
        raise ConnectError(f"cannot tell who runs the server at {address}: {exc}") from exc
    if sid is None and pid is not None:
        sid = windows.process_sid(pid)
    if sid not in windows.own_sids():
        raise ConnectError(f"the server at {address} runs as {sid}, which is not allowed")
    return Credentials(None, pid, sid=sid)


def _check_uids(allowed_uids: frozenset[int] | None) -> None:
    if allowed_uids is not None:
        raise ValueError("allowed_uids is for Unix sockets: a pipe is for its own user only")


# Listening


async def listen(
    address: PipeAddress,
    factory: Factory,
    *,
    allowed_uids: frozenset[int] | None = None,
    backlog: int | None = None,
) -> PipeListener:
    """Take a name and accept connections there; see `interphone.transports.listen`."""
    _check_uids(allowed_uids)
    loop = asyncio.get_running_loop()
    proactor = Proactor(loop)
    security = windows.SecurityAttributes(windows.only_for(windows.own_sid()))
    first = await _take(loop, address, security)
    return PipeListener(loop, proactor, address, factory, security, first, backlog or INSTANCES)


async def _take(
    loop: asyncio.AbstractEventLoop, address: PipeAddress, security: windows.SecurityAttributes
) -> PipeHandle:
    """Make the first instance; while an old server is leaving, wait a moment."""
    started = loop.time()
    while True:
        # Wine would let a second server in: look first.
        if (found := windows.instances(address.name)) == "none":
            try:
                return _create(address, security, first=True)
            except OSError as exc:
                if exc.winerror not in (ACCESS_DENIED, PIPE_BUSY):
                    why = exc.strerror or str(exc)
                    raise AddressError(f"cannot listen at {address}: {why}") from exc
        if found == "free":
            raise AddressInUse(str(address), "a live server listens there")
        if loop.time() - started >= LEAVING:
            raise AddressInUse(str(address), "somebody holds it: a server, or a client of one")
        await asyncio.sleep(LONGEST_DELAY)


def _create(
    address: PipeAddress, security: windows.SecurityAttributes, *, first: bool = False
) -> PipeHandle:
    mode = _winapi.PIPE_ACCESS_DUPLEX | _winapi.FILE_FLAG_OVERLAPPED
    return PipeHandle(
        _winapi.CreateNamedPipe(
            address.name,
            mode | _winapi.FILE_FLAG_FIRST_PIPE_INSTANCE if first else mode,
            REJECT_REMOTE_CLIENTS,
            _winapi.PIPE_UNLIMITED_INSTANCES,
            BUFFER,
            BUFFER,
            0,
            security.address,
        )
    )


class PipeListener:
    """Accepts connections at a name until it is closed.

    There is always an instance that waits for a client: the name never gets free.

    Attributes:
        address: Where it listens.
        refused: How many were turned away because of their user.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        proactor: Proactor,
        address: PipeAddress,
        factory: Factory,
        security: windows.SecurityAttributes,
        first: PipeHandle,
        instances: int,
    ) -> None:
        self.address = address
        self.refused = 0
        self._loop = loop
        self._proactor = proactor
        self._factory = factory
        self._security = security
        self._waiting: dict[PipeHandle, asyncio.Future[Any]] = {}
        self._missing = instances - 1
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False
        self._wait_at(first)
        self._replace()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "listening"
        return f"<PipeListener {self.address} {state}>"

    def close(self) -> None:
        """Stop accepting; accepted connections stay. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        waiting, self._waiting = self._waiting, {}
        for pipe, accepted in waiting.items():
            accepted.cancel()
            pipe.close()

    def _replace(self) -> None:
        """Make the instances that are missing."""
        self._retry = None
        while self._missing:
            try:
                pipe = _create(self.address, self._security)
            except OSError as exc:
                log.warning("cannot accept more at %s: %s", self.address, exc.strerror)
                self._retry = self._loop.call_later(RETRY_DELAY, self._replace)
                return
            self._missing -= 1
            self._wait_at(pipe)

    def _wait_at(self, pipe: PipeHandle) -> None:
        try:
            accepted = self._proactor.accept(pipe)
        except OSError:  # a client came and went
            accepted = self._loop.create_future()
            accepted.set_exception(ConnectionResetError())
        self._waiting[pipe] = accepted
        accepted.add_done_callback(lambda _: self._on_accepted(pipe))

    def _on_accepted(self, pipe: PipeHandle) -> None:
        accepted = self._waiting.pop(pipe, None)
        if accepted is None:  # closed since
            return
        self._missing += 1
        if self._retry is None:
            self._replace()  # before anything else: some instance must wait
        if accepted.exception() is None:
            self._admit(pipe)
        else:
            pipe.close()

    def _admit(self, pipe: PipeHandle) -> None:
        try:
            credentials = _client_of(pipe)
            if credentials.sid not in (None, windows.own_sid()):
                self.refused += 1
                pipe.close()
                return
            transport = PipeTransport(
                self._loop, self._proactor, pipe, self._factory(), credentials=credentials
            )
        except BaseException:
            pipe.close()
            raise
        transport.start()


def _client_of(pipe: PipeHandle) -> Credentials:
    """Who connected. The list of the pipe lets only our user in; this is to know, and to be sure.

    The user is that of the process; it cannot be told of one that is gone or has more rights.
    """
    pid = windows.client_pid(pipe.handle)
    if pid is None:
        return Credentials(None)
    own = pid == os.getpid()
    return Credentials(None, pid, sid=windows.own_sid() if own else windows.process_sid(pid))


# Moving bytes


class PipeTransport(asyncio.Transport):
    """Moves bytes between a connected pipe and a buffered protocol.

    As `SocketTransport`, and unlike asyncio's own:

    - what a peer wrote before it went away is still read when a write finds it gone;
    - a large write is seen to make progress;
    - what is written after `close` is dropped.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        proactor: Proactor,
        pipe: PipeHandle,
        protocol: asyncio.BufferedProtocol,
        *,
        credentials: Credentials | None = None,
        peername: str = "",
    ) -> None:
        super().__init__({"pipe": pipe, "credentials": credentials, "peername": peername})
        self._loop = loop
        self._proactor = proactor
        self._pipe = pipe
        self.set_protocol(protocol)
        self._state = OPEN
        self._why: OSError | None = None  # nothing can be written
        self._paused = False
        self._reading: asyncio.Future[int] | None = None
        self._buffer = bytearray(SMALLEST_READ)
        self._unread: bytes | None = None  # was read, not passed on; empty at the end
        self._writing: asyncio.Future[int] | None = None
        self._under_way = 0  # bytes of it
        self._waiting = bytearray()
        self._gate = WriteGate()

    def __repr__(self) -> str:
        state = ("open", "broken", "closing", "closed")[self._state]
        return f"<PipeTransport {state} {self.get_write_buffer_size()} to write>"

    def start(self) -> None:
        """Tell the protocol that it is connected, and begin to read."""
        if self._call("connection_made", self._protocol.connection_made, self):
            self._read()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Give the protocol that is told what happens."""
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
        """Stop reading, write what is left, and end the connection."""
        if self._state == BROKEN:
            self._lose(self._why)
        elif self._state == OPEN:
            self._state = CLOSING
            if self._reading is not None:
                self._reading.cancel()
            if self._writing is None:
                self._lose(None)

    def abort(self) -> None:
        """End the connection at once; what is not yet written is lost."""
        self._lose(None)

    # Reading

    def is_reading(self) -> bool:
        """Tell whether what arrives is passed on."""
        return self._state == OPEN and not self._paused

    def pause_reading(self) -> None:
        """Pass on nothing until `resume_reading`. Idempotent."""
        self._paused = True

    def resume_reading(self) -> None:
        """Pass on what arrives again. Idempotent."""
        if self._paused:
            self._paused = False
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        """Pass on what was read, and read on."""
        while self._reading is None and self._state in (OPEN, BROKEN) and not self._paused:
            unread, self._unread = self._unread, None
            if unread is None:
                self._begin_to_read()
            elif unread:
                self._call("get_buffer and buffer_updated", self._fill, unread)
            else:
                self._on_end()
        if self._state == BROKEN and self._paused:
            self._lose(self._why)

    def _begin_to_read(self) -> None:
        try:
            self._reading = self._proactor.read_into(self._pipe, self._buffer)
        except OSError as exc:
            self._lose(self._why or exc)
        else:
            self._reading.add_done_callback(self._on_read)

    def _on_read(self, reading: asyncio.Future[int]) -> None:
        self._reading = None
        if reading.cancelled():
            return
        try:
            size = reading.result()
        except BrokenPipeError:
            size = 0
        except OSError as exc:
            self._lose(self._why or exc)
            return
        self._unread = bytes(memoryview(self._buffer)[:size])
        if size == len(self._buffer) < LARGEST_READ:
            self._buffer = bytearray(2 * size)
        self._read()

    def _fill(self, data: bytes) -> None:
        buffer = memoryview(self._protocol.get_buffer(-1)).cast("B")
        size = min(len(buffer), len(data))
        if not size:
            raise RuntimeError("the buffer for reading is empty")
        buffer[:size] = data[:size]
        buffer.release()
        if size < len(data):
            self._unread = data[size:]
        self._protocol.buffer_updated(size)

    def _on_end(self) -> None:
        # Nothing can be written either: whether the protocol wants to stay does not count.
        if self._call("eof_received", self._protocol.eof_received):
            self._lose(self._why)

    # Writing

    def get_write_buffer_size(self) -> int:
        """Tell how many bytes are not yet written."""
        return self._under_way + len(self._waiting)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Tell the low and the high mark of what is not yet written."""
        return self._gate.low, self._gate.high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set at how many bytes not yet written the protocol pauses, and goes on."""
        self._gate.set_limits(high, low)
        self._check_gate()

    def can_write_eof(self) -> bool:
        """Tell that pipes have no half-close."""
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write, one chunk at a time.

        The buffer may be used again as soon as this returns.
        """
        if self._state != OPEN:
            return
        if self._writing is None and data.__class__ is bytes and len(data) <= CHUNK:
            self._send(data)
        else:
            self._waiting += data
            self._send_waiting()
        self._check_gate()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write several buffers as one."""
        self.write(b"".join(list_of_data))

    def _send_waiting(self) -> None:
        while self._waiting and self._writing is None:
            chunk = bytes(self._waiting[:CHUNK])
            del self._waiting[:CHUNK]
            self._send(chunk)

    def _send(self, data: bytes) -> None:
        if not data:
            return  # it would look like an end to a reader of messages
        try:
            writing = self._proactor.write(self._pipe, data)
            if writing.done():  # Windows has taken it at once
                writing.result()
                return
        except OSError as exc:
            self._break(exc)
        else:
            self._writing, self._under_way = writing, len(data)
            writing.add_done_callback(self._on_written)

    def _on_written(self, writing: asyncio.Future[int]) -> None:
        self._writing, self._under_way = None, 0
        if writing.cancelled():
            return
        try:
            writing.result()
        except OSError as exc:
            self._break(exc)
            return
        self._send_waiting()
        self._check_gate()
        if self._state == CLOSING and self._writing is None:
            self._lose(None)

    def _check_gate(self) -> None:
        if self._state != LOST:
            size = self.get_write_buffer_size()
            self._call("pause_writing", self._gate.check, size, self._protocol)

    # The end

    def _break(self, exc: OSError) -> None:
        """Nothing can be written any more: read what had arrived, then it is over."""
        if self._state != OPEN:
            self._lose(exc)
            return
        self._state, self._why = BROKEN, exc
        self._waiting.clear()
        self._loop.call_soon(self._read)

    def _call(self, name: str, callback: Callable[..., object], *args: object) -> bool:
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
        self._waiting.clear()
        self._under_way = 0
        for pending in (self._reading, self._writing):
            if pending is not None:
                pending.cancel()
        self._loop.call_soon(self._finish, exc)

    def _finish(self, exc: Exception | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._pipe.close()
