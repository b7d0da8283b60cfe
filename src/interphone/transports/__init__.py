"""From an `Address` to connected bytes: `listen` and `connect`, chosen by the kind of address.

What every transport here keeps, whatever is below it (`tests/support/transports.py`):

- bytes arrive once and in order, through an `asyncio.BufferedProtocol`;
- `connection_lost` is called exactly once, after everything else;
- `close` delivers what was written, `abort` need not;
- after `pause_reading` nothing arrives until `resume_reading`;
- the protocol is told to pause when more than the high mark waits to be written.

What they ask of a protocol and its owner, because the event loop's own transports do:

- `get_buffer` returns a `memoryview`: asyncio's TLS loses what it reads into a `bytearray`;
- what is given to `write` over TCP is not changed afterwards: uvloop keeps no copy;
- after `connection_lost` the transport is not used any more.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from ..address import Address, MemoryAddress, PipeAddress, TcpAddress, UnixAddress
from ..errors import Unsupported
from ..protocol.pool import Memory

if TYPE_CHECKING:  # blocking clients connect without them
    import asyncio
    import ssl

__all__ = [
    "Credentials",
    "Factory",
    "Listener",
    "PlainSocket",
    "WriteGate",
    "connect",
    "connect_socket",
    "hung_up",
    "listen",
    "own_credentials",
    "plain_sockets",
    "same_owner",
    "shared_memory",
    "shares_memory",
]

HIGH_MARK = 64 * 1024

Factory = Callable[[], "asyncio.BufferedProtocol"]


class Credentials(msgspec.Struct, frozen=True):
    """Who is at the other end, as the operating system tells it.

    It is the process that connected or listened, which need not be the one that writes.

    Attributes:
        uid: The user; None on Windows.
        pid: The process, if it can be told; never authorize by it.
        gid: The group, if it can be told.
        sid: The user of Windows, as ``S-1-5-21-…``, if it can be told.
    """

    uid: int | None
    pid: int | None = None
    gid: int | None = None
    sid: str | None = None


class Listener(Protocol):
    """A place where connections are accepted."""

    @property
    def address(self) -> Address:
        """Where it really listens, with the port that was chosen for port 0."""

    @property
    def refused(self) -> int:
        """How many were turned away because of their user."""

    def close(self) -> None:
        """Stop accepting and remove our files; accepted connections stay. Idempotent."""


class PlainSocket(Protocol):
    """A connection for threads that wait for it themselves.

    One thread may receive while others send, one at a time. Signals interrupt every wait, as
    they do Python's own: `KeyboardInterrupt` comes through.
    """

    @property
    def credentials(self) -> Credentials:
        """Who is at the other end."""

    def send(self, data: bytes | memoryview) -> int:
        """Send what the system takes at once; return how many bytes that were.

        Raises:
            OSError: The other end is gone.
        """

    def send_pieces(self, pieces: list[bytes | memoryview]) -> int:
        """The same of several pieces, without putting them together."""

    def receive_into(self, room: memoryview) -> int | None:
        """Write what has come into the room; return how much, as `receive` does."""

    def receive(self) -> bytes | None:
        """Return what has come, None if nothing has, or b"" at the end; never wait.

        Raises:
            OSError: The connection broke.
        """

    def wait(self, timeout: float) -> bool:
        """Wait for bytes, or the end; return whether there is something to receive."""

    def wait_to_send(self, timeout: float, *, reading: bool) -> None:
        """Wait until it takes bytes, or, if asked, there are some to receive."""

    def finish(self) -> None:
        """Say that no more bytes follow."""

    def stop(self) -> None:
        """End the connection and every wait for it; the descriptor stays until `close`."""

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""

    def hand_over(self, protocol: asyncio.BufferedProtocol) -> None:
        """Go on as a transport of the running loop; this object is not used any more."""


async def listen(
    address: Address,
    factory: Factory,
    *,
    allowed_uids: frozenset[int] | None = None,
    tls: ssl.SSLContext | None = None,
    backlog: int | None = None,
) -> Listener:
    """Accept connections at an address, each with a protocol of its own.

    Args:
        address: Where to listen.
        factory: Makes the protocol of a connection; only called for users who are allowed.
        allowed_uids: Users who may connect, for Unix sockets; by default only our own.
        tls: Encrypts, for TCP.
        backlog: How many may wait to be accepted.

    Raises:
        AddressError: The address cannot be used, or is not safe.
        AddressInUse: A live server, or a file that is none, is there.
        ValueError: `tls` with an address that is not TCP.
    """
    _check_tls(address, tls)
    if isinstance(address, MemoryAddress):
        from . import memory

        return memory.listen(address, factory)
    if isinstance(address, TcpAddress):
        from . import tcp

        return await tcp.listen(address, factory, tls=tls, backlog=backlog)
    if sys.platform == "win32":
        if isinstance(address, UnixAddress):
            raise Unsupported("Unix sockets are not supported on Windows")
        from . import pipe

        return await pipe.listen(address, factory, allowed_uids=allowed_uids, backlog=backlog)
    if isinstance(address, PipeAddress):
        raise Unsupported("named pipes are a thing of Windows")
    from . import unix

    return unix.listen(address, factory, allowed_uids=allowed_uids, backlog=backlog)


async def connect(
    address: Address,
    factory: Factory,
    *,
    allowed_uids: frozenset[int] | None = None,
    tls: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
) -> asyncio.BaseTransport:
    """Connect to an address, in one attempt.

    Args:
        address: Where somebody listens.
        factory: Makes the protocol, once there is a connection.
        allowed_uids: Users the server may run as, for Unix sockets; by default only our own.
        tls: Encrypts, for TCP.
        server_hostname: Name the server's certificate must have; by default the host.

    Returns:
        The transport; the protocol's `connection_made` has been called with it.

    Raises:
        ConnectError: Nobody is there, or nobody we may talk to.
        AddressError: The address is not safe to use.
        ValueError: `tls` with an address that is not TCP.
    """
    _check_tls(address, tls)
    if isinstance(address, MemoryAddress):
        from . import memory

        return memory.connect(address, factory)
    if isinstance(address, TcpAddress):
        from . import tcp

        return await tcp.connect(address, factory, tls=tls, server_hostname=server_hostname)
    if sys.platform == "win32":
        if isinstance(address, UnixAddress):
            raise Unsupported("Unix sockets are not supported on Windows")
        from . import pipe

        return await pipe.connect(address, factory, allowed_uids=allowed_uids)
    if isinstance(address, PipeAddress):
        raise Unsupported("named pipes are a thing of Windows")
    from . import unix

    return unix.connect(address, factory, allowed_uids=allowed_uids)


def plain_sockets(address: Address) -> bool:
    """Tell whether `connect_socket` can be used for this address on this system."""
    return sys.platform != "win32" and isinstance(address, UnixAddress)


def connect_socket(address: Address, *, allowed_uids: frozenset[int] | None = None) -> PlainSocket:
    """Connect without an event loop, in one attempt; who listens is looked at as by `connect`.

    Raises:
        Unsupported: There is no such thing for this address: see `plain_sockets`.
        Everything `connect` raises.
    """
    if sys.platform == "win32" or not isinstance(address, UnixAddress):
        raise Unsupported(f"no plain socket leads to {address}")
    from . import plain

    return plain.connect(address, allowed_uids=allowed_uids)


def hung_up(transport: asyncio.BaseTransport) -> bool:
    """Tell whether the other end is gone altogether, without reading from it."""
    if sys.platform == "win32":
        from . import windows

        pipe = transport.get_extra_info("pipe")
        return pipe is not None and windows.broken(pipe.handle)
    sock = transport.get_extra_info("socket")
    if sock is None:
        return False
    look = select.poll()
    look.register(sock.fileno(), 0)  # a hang-up is told unasked; see poll(2)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in look.poll(0))


class WriteGate:
    """Tells a protocol to pause writing and to go on, by how much is not yet written.

    Attributes:
        high: More than this many bytes pause the protocol.
        low: Down to this many bytes it goes on.
        paused: Whether it is paused.
    """

    __slots__ = ("high", "low", "paused")

    def __init__(self) -> None:
        self.paused = False
        self.set_limits()

    def set_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the two marks, with the defaults asyncio has."""
        if high is None:
            high = HIGH_MARK if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be >= low ({low}) must be >= 0")
        self.high = high
        self.low = low

    def check(self, size: int, protocol: asyncio.BaseProtocol) -> None:
        """Tell `protocol` what has changed now that `size` bytes are not yet written."""
        if self.paused:
            if size <= self.low:
                self.paused = False
                protocol.resume_writing()
        elif size > self.high:
            self.paused = True
            protocol.pause_writing()


def own_credentials() -> Credentials:
    """Tell who we are."""
    if sys.platform == "win32":
        from . import windows

        return Credentials(None, os.getpid(), sid=windows.own_sid())
    return Credentials(os.geteuid(), os.getpid(), os.getegid())


def same_owner(transport: asyncio.BaseTransport) -> bool:
    """Tell whether the other end certainly runs as the user that this process runs as."""
    if transport.get_extra_info("same_process"):
        return True
    own, other = own_credentials(), transport.get_extra_info("credentials")
    return isinstance(other, Credentials) and (other.uid, other.sid) == (own.uid, own.sid)


def shares_memory(address: Address) -> bool:
    """Tell whether ends that meet at this address may be able to share memory."""
    if sys.platform == "win32":
        return isinstance(address, PipeAddress)
    return sys.platform == "linux" and isinstance(address, UnixAddress)


def shared_memory(other: object) -> Memory | None:
    """What can be shared with a process; None unless it is of this user, and here."""
    own = own_credentials()
    if not isinstance(other, Credentials) or (other.uid, other.sid) != (own.uid, own.sid):
        return None
    if sys.platform == "win32":
        from . import sections

        return sections.SharedMemory()
    if sys.platform == "linux" and other.pid is not None:
        from . import memfds

        return memfds.SharedMemory(other.pid)
    return None


def _check_tls(address: Address, tls: ssl.SSLContext | None) -> None:
    if tls is not None and not isinstance(address, TcpAddress):
        raise ValueError(f"TLS is for TCP, not for {address}")
