"""TCP, with or without TLS: the event loop's own transports, for those who must leave the host.

Nothing tells who is at the other end, and nothing is encrypted without TLS: only loopback
addresses are allowed then.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
from asyncio.trsock import TransportSocket

from ..address import TcpAddress
from ..errors import AddressError, AddressInUse, ConnectError, HandshakeError
from . import Factory

__all__ = ["TcpListener", "connect", "listen"]

BACKLOG = 4096


async def listen(
    address: TcpAddress,
    factory: Factory,
    *,
    tls: ssl.SSLContext | None = None,
    backlog: int | None = None,
) -> TcpListener:
    """Accept connections at a port; see `interphone.transports.listen`."""
    _check_host(address, tls)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(
            factory,
            address.host,
            address.port,
            ssl=tls,
            backlog=backlog or BACKLOG,
            start_serving=True,
        )
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise AddressInUse(str(address), "somebody listens there") from exc
        raise AddressError(f"cannot listen at {address}: {exc.strerror or exc}") from exc
    for sock in server.sockets:
        _never_wait(sock)  # those that are accepted inherit it
    port: int = server.sockets[0].getsockname()[1]
    return TcpListener(TcpAddress(address.host, port), server)


async def connect(
    address: TcpAddress,
    factory: Factory,
    *,
    tls: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
) -> asyncio.BaseTransport:
    """Connect to a port, in one attempt; see `interphone.transports.connect`."""
    _check_host(address, tls)
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_connection(
            factory,
            address.host,
            address.port,
            ssl=tls,
            server_hostname=server_hostname if tls else None,
        )
    except OSError as exc:
        raise _connect_error(address, exc, tls) from exc
    _never_wait(transport.get_extra_info("socket"))
    return transport


class TcpListener:
    """Accepts connections at a port until it is closed.

    Attributes:
        address: Where it listens, with the port the system has chosen.
        refused: Always 0: TCP does not tell users apart.
    """

    def __init__(self, address: TcpAddress, server: asyncio.AbstractServer) -> None:
        self.address = address
        self.refused = 0
        self._server = server

    def close(self) -> None:
        """Stop accepting; accepted connections stay. Idempotent."""
        self._server.close()


def _never_wait(sock: socket.socket | TransportSocket) -> None:
    """Send small writes at once; asyncio sees to it itself, but not on Windows."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _connect_error(address: TcpAddress, exc: OSError, tls: ssl.SSLContext | None) -> ConnectError:
    why = f"cannot connect to {address}: {exc.strerror or exc}"
    if isinstance(exc, ssl.SSLError):
        return HandshakeError(why)
    if tls is not None and isinstance(exc, ConnectionResetError | ConnectionAbortedError):
        return HandshakeError(f"{why} (during the TLS handshake)", transient=True)
    return ConnectError(why, transient=not isinstance(exc, socket.gaierror | PermissionError))


def _check_host(address: TcpAddress, tls: ssl.SSLContext | None) -> None:
    if tls is None and not _loopback(address.host):
        raise AddressError(
            f"{address} can be reached from other hosts, and nothing is encrypted or"
            " authenticated there: use 127.0.0.1, or give a TLS context"
        )


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
