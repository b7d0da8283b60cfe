"""Plain sockets: connecting to a Unix socket, and talking over it without an event loop."""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from ..address import UnixAddress
from ..errors import ConnectError
from . import Credentials

if TYPE_CHECKING:
    import asyncio

if sys.platform != "win32":
    from .claim import open_directory
    from .credentials import peer_credentials, trusted

assert sys.platform != "win32"

__all__ = ["NO_RESOURCES", "UnixSocket", "connect", "connect_socket"]

CHUNK = 64 * 1024
PIECES = 64  # that are sent at once; the systems allow 1024

NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
TRANSIENT = NO_RESOURCES | {
    errno.ENOENT,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EAGAIN,
    errno.EINTR,
}


def connect(address: UnixAddress, *, allowed_uids: frozenset[int] | None = None) -> UnixSocket:
    """Connect to a path, in one attempt that never waits."""
    return UnixSocket(*connect_socket(address, allowed_uids=allowed_uids))


def connect_socket(
    address: UnixAddress, *, allowed_uids: frozenset[int] | None = None
) -> tuple[socket.socket, Credentials]:
    """Connect a non-blocking socket to a path, and tell who listens there.

    asyncio's `sock_connect` is not used: it takes a full backlog for success.

    Args:
        address: Where somebody listens.
        allowed_uids: Users the server may run as; by default only our own.

    Raises:
        ConnectError: Nobody is there, or nobody we may talk to.
        AddressError: The private directory is not safe.
    """
    if address.private:
        _verify_private(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(address.path)
        return sock, _trusted_server(sock, address, allowed_uids)
    except BaseException as exc:
        sock.close()
        if isinstance(exc, ConnectError) or not isinstance(exc, OSError):
            raise
        raise _connect_error(address, exc) from exc


def _verify_private(address: UnixAddress) -> None:
    try:
        os.close(open_directory(address))
    except FileNotFoundError as exc:
        raise _connect_error(address, exc) from exc


def _trusted_server(
    sock: socket.socket, address: UnixAddress, allowed_uids: frozenset[int] | None
) -> Credentials:
    credentials = peer_credentials(sock)
    if credentials is None:
        raise ConnectError(f"cannot tell who runs the server at {address}")
    if not trusted(credentials, allowed_uids):
        uid = credentials.uid
        raise ConnectError(f"the server at {address} runs as uid {uid}, which is not allowed")
    return credentials


def _connect_error(address: UnixAddress, exc: OSError) -> ConnectError:
    reasons = {
        errno.ENOENT: "nobody listens there",
        errno.ECONNREFUSED: "nobody listens there any more",
        errno.EAGAIN: "the server is there, but too many others wait for it",
    }
    reason = reasons.get(exc.errno or 0) or exc.strerror or str(exc)
    return ConnectError(f"cannot connect to {address}: {reason}", transient=exc.errno in TRANSIENT)


class UnixSocket:
    """A connected Unix socket, as a `PlainSocket`."""

    def __init__(self, sock: socket.socket, credentials: Credentials) -> None:
        self.credentials = credentials
        self._sock = sock
        self._reading = select.poll()
        self._reading.register(sock, select.POLLIN)
        self._recv = sock.recv  # bound once: hot path
        self._send = sock.send

    def send(self, data: bytes | memoryview) -> int:
        """Send what the system takes at once."""
        try:
            return self._send(data)
        except (BlockingIOError, InterruptedError):
            return 0

    def send_pieces(self, pieces: list[bytes | memoryview]) -> int:
        """The same of several pieces."""
        try:
            return self._sock.sendmsg(pieces[:PIECES])
        except (BlockingIOError, InterruptedError):
            return 0

    def receive_into(self, room: memoryview) -> int | None:
        """Write what has come into the room; return how much."""
        try:
            return self._sock.recv_into(room)
        except (BlockingIOError, InterruptedError):
            return None

    def receive(self) -> bytes | None:
        """Return what has come."""
        try:
            return self._recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return None

    def wait(self, timeout: float) -> bool:
        """Wait for bytes, or the end."""
        return bool(self._reading.poll(math.ceil(timeout * 1_000)))

    def wait_to_send(self, timeout: float, *, reading: bool) -> None:
        """Wait until it takes bytes, or, if asked, there are some to receive."""
        fd = self._sock.fileno()
        if fd < 0:
            return  # closed by another thread
        either = select.poll()  # a poll object is for one thread at a time
        either.register(fd, select.POLLIN | select.POLLOUT if reading else select.POLLOUT)
        either.poll(math.ceil(timeout * 1_000))

    def finish(self) -> None:
        """Say that no more bytes follow."""
        with suppress(OSError):  # the other end is gone already
            self._sock.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        """End the connection and every wait for it; the descriptor stays until `close`."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""
        self._sock.close()

    def hand_over(self, protocol: asyncio.BufferedProtocol) -> None:
        """Go on as a transport of the running loop."""
        from asyncio import get_running_loop

        from .sockets import SocketTransport

        transport = SocketTransport(
            get_running_loop(), self._sock, protocol, credentials=self.credentials
        )
        transport.start()
