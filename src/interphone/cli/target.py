"""Target: the server that a command is about, and how to talk with it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from ..address import Address, isdk_path, net_ipc_path, resolve, tcp_address
from ..backoff import Backoff
from ..client import Client
from ..errors import Unsupported
from ..protocol.session import Session
from .ending import Misuse
from .output import Output, escape
from .waiting import Waiting

__all__ = ["Target", "address_of", "kind_of", "require_interphone"]

_tcp = re.compile(r"tcp://(\[[^\]]+\]|[^:/]+):(\d+)/?")


class Target(NamedTuple):
    """A server, and how to reach it.

    Attributes:
        name: The address as it was typed.
        address: What that means.
        timeout: Seconds to wait for the connection, and for each answer.
        wait: Seconds to wait for a server that is not there yet; None: not at all.
        classic: Whether to speak the packets of Node to an interphone server, too.
        payload: What the server is told when the connection is made.
    """

    name: str
    address: Address
    timeout: float = 10.0
    wait: float | None = None
    classic: bool = False
    payload: Any = None

    @asynccontextmanager
    async def reached(self, out: Output) -> AsyncIterator[Client]:
        """A connected client: it tries once, or as long as `wait` and again when it is lost."""
        client = Client(
            self.address,
            payload=self.payload,
            connect_timeout=self.timeout if self.wait is None else self.wait,
            backoff=None if self.wait is None else Backoff(initial=0.05, cap=1.0),
            dialect="classic" if self.classic else "native",
        )
        async with Waiting(out, f"waiting for {escape(self.name)}"):
            await client.connect()
        try:
            yield client
        except BaseException:
            await client.close(grace=0)
            raise
        await client.close()


def address_of(name: str, *, isdk: bool = False, net_ipc: bool = False) -> Address:
    """What somebody means by an address.

    Raises:
        AddressError: It cannot be one.
    """
    if isdk and net_ipc:
        raise Misuse("--isdk and --net-ipc exclude each other: take one")
    if isdk:
        return resolve(isdk_path(name))
    if net_ipc:
        try:
            return resolve(net_ipc_path(name))
        except FileNotFoundError:
            raise Misuse("the current directory is gone") from None
    if found := _tcp.fullmatch(name):
        return tcp_address(found[1].strip("[]"), int(found[2]))
    if name.startswith("tcp://"):
        raise Misuse(f"{escape(name)} has no port: give tcp://host:port")
    return resolve(name)


def kind_of(session: Session) -> str:
    """Which implementation is at the other end of an open connection."""
    if session.interphone:
        return "interphone"
    return "@isdk/ipc-server" if session.isdk else "net-ipc"


def require_interphone(client: Client, command: str) -> None:
    """Raise `Unsupported` if the server is one of Node, which cannot do that."""
    if not client.peer.interphone:
        kind = kind_of(client.peer.protocol)
        raise Unsupported(
            f"{command} needs an interphone server, and this is one of {kind}:"
            " see 'interphone help peers'"
        )
