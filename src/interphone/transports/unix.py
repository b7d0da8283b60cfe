"""Unix sockets: listening at a path and connecting to one.

Who is at the other end is asked of the kernel before anything else is done, on both sides;
how a server comes to hold its path is told in `claim.py`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys

from ..address import UnixAddress
from ..errors import AddressError, AddressInUse
from . import Factory

if sys.platform != "win32":
    from .claim import OWNER_ONLY, Claim
    from .credentials import peer_credentials, trusted
    from .plain import NO_RESOURCES, connect_socket
    from .sockets import SocketTransport

assert sys.platform != "win32"

__all__ = ["UnixListener", "connect", "connect_socket", "listen"]

BACKLOG = 4096
ACCEPTS = 64
"""How many connections are accepted before others get their turn."""

ANYBODY = 0o666
RETRY_DELAY = 0.1
"""Seconds without accepting when the system has no resources at all."""

LOG_INTERVAL = 1.0

log = logging.getLogger("interphone.transports")


# Connecting


def connect(
    address: UnixAddress, factory: Factory, *, allowed_uids: frozenset[int] | None = None
) -> SocketTransport:
    """Connect to a path, in one attempt that never waits; see `interphone.transports.connect`."""
    loop = asyncio.get_running_loop()
    sock, credentials = connect_socket(address, allowed_uids=allowed_uids)
    try:
        transport = SocketTransport(
            loop, sock, factory(), credentials=credentials, peername=address.path
        )
    except BaseException:
        sock.close()
        raise
    transport.start()
    return transport


# Listening


def listen(
    address: UnixAddress,
    factory: Factory,
    *,
    allowed_uids: frozenset[int] | None = None,
    backlog: int | None = None,
) -> UnixListener:
    """Take a path and accept connections there; see `interphone.transports.listen`."""
    loop = asyncio.get_running_loop()
    own = os.geteuid()
    # Root enters anywhere. Other users need permission to connect, and are told apart then.
    mode = OWNER_ONLY if (allowed_uids or frozenset()) <= {0, own} else ANYBODY
    try:
        claim = Claim(address)
        try:
            sock = claim.publish(mode=mode, backlog=backlog or BACKLOG)
        except BaseException:
            claim.release()
            raise
    except AddressInUse:
        raise
    except OSError as exc:
        raise AddressError(f"cannot listen at {address}: {exc.strerror or exc}") from exc
    return UnixListener(loop, sock, claim, factory, allowed_uids)


class UnixListener:
    """Accepts connections at a path until it is closed.

    Attributes:
        address: Where it listens.
        refused: How many were turned away because of their user.
        shed: How many were turned away because there was no file descriptor for them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        claim: Claim,
        factory: Factory,
        allowed_uids: frozenset[int] | None,
    ) -> None:
        self.address = claim.address
        self.refused = 0
        self.shed = 0
        self._loop = loop
        self._sock = sock
        self._claim = claim
        self._factory = factory
        self._allowed_uids = allowed_uids
        self._closed = False
        self._reserve = _open_reserve()
        self._retry: asyncio.TimerHandle | None = None
        self._log_after = 0.0
        loop.add_reader(sock.fileno(), self._on_readable)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "listening"
        return f"<UnixListener {self.address} {state}>"

    def close(self) -> None:
        """Stop accepting and remove our files; accepted connections stay. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        # A forked child shares the selector of its parent, and must not touch it.
        if self._claim.held and not self._loop.is_closed():
            self._loop.remove_reader(self._sock.fileno())
        self._claim.withdraw()
        self._sock.close()
        self._claim.release()
        _close_reserve(self._reserve)
        self._reserve = None

    def _on_readable(self) -> None:
        for _ in range(ACCEPTS):
            if self._closed or not self._accept():
                return

    def _accept(self) -> bool:
        try:
            sock = self._sock.accept()[0]
        except BlockingIOError:
            return False
        except OSError as exc:
            return self._on_accept_error(exc)
        self._admit(sock)
        return True

    def _admit(self, sock: socket.socket) -> None:
        credentials = peer_credentials(sock)
        if credentials is None or not trusted(credentials, self._allowed_uids):
            self.refused += 1
            sock.close()
            return
        try:
            sock.setblocking(False)
            transport = SocketTransport(
                self._loop, sock, self._factory(), credentials=credentials, peername=""
            )
        except BaseException:
            sock.close()
            raise
        transport.start()
        transport.read_now()

    # Running out of resources

    def _on_accept_error(self, exc: OSError) -> bool:
        if exc.errno in (errno.EINTR, errno.ECONNABORTED):
            return True
        if exc.errno not in NO_RESOURCES:
            raise exc
        self._complain(exc)
        if self._reserve is not None and self._shed():
            return True
        # The socket stays readable: listening on would burn the CPU.
        self._loop.remove_reader(self._sock.fileno())
        self._retry = self._loop.call_later(RETRY_DELAY, self._listen_again)
        return False

    def _shed(self) -> bool:
        """Take a connection with the reserved descriptor and close it: its end learns at once."""
        _close_reserve(self._reserve)
        try:
            self._sock.accept()[0].close()
        except BlockingIOError:
            return True
        except OSError:
            return False
        else:
            self.shed += 1
            return True
        finally:
            self._reserve = _open_reserve()

    def _listen_again(self) -> None:
        self._retry = None
        if self._reserve is None:
            self._reserve = _open_reserve()
        self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _complain(self, exc: OSError) -> None:
        now = self._loop.time()
        if now >= self._log_after:
            self._log_after = now + LOG_INTERVAL
            log.warning(
                "cannot accept at %s: %s; %d turned away so far",
                self.address,
                exc.strerror,
                self.shed,
            )


def _open_reserve() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _close_reserve(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
