"""Local IPC for Python: requests both ways, messages, publish/subscribe, between processes on
one machine, over a Unix socket or a named pipe. Speaks the wire of the Node packages
`@isdk/ipc-server` and `net-ipc`.

Names are imported when they are first used, so that nobody pays for what they do not need.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from . import accelerator as _accelerator
from .version import __version__ as __version__

if os.environ.get(_accelerator.PURE, "0") not in ("", "0"):
    _accelerator.prefer_sources(__path__[0])

if TYPE_CHECKING:
    from .address import (
        Address,
        MemoryAddress,
        PipeAddress,
        TcpAddress,
        UnixAddress,
        isdk_path,
        net_ipc_path,
        tcp_address,
    )
    from .backoff import Backoff
    from .client import Client
    from .contracts import Contract, contract
    from .errors import (
        AddressError,
        AddressInUse,
        ConnectError,
        ConnectionClosed,
        ConnectionLost,
        ForkedError,
        HandshakeError,
        InterphoneError,
        InvalidParams,
        LocalProtocolError,
        MessageTooBig,
        MethodNotFound,
        Overflow,
        Overloaded,
        PayloadError,
        ProtocolError,
        Refuse,
        Refused,
        RemoteError,
        RemoteProtocolError,
        RequestError,
        RequestTimeout,
        StreamClosed,
        TopicError,
        Unhandled,
        Unsupported,
        WrongThread,
    )
    from .handlers import PASS
    from .host import Poll, poll_from_blender, poll_from_qt, poll_from_tk
    from .introspection import (
        Description,
        Info,
        MethodDescription,
        MethodStats,
        ParamDescription,
        Stats,
    )
    from .limits import Limits
    from .peer import Call, Peer
    from .protocol.loan import Loan
    from .protocol.pool import PoolCounts
    from .run import run
    from .server import Outcome, Server
    from .sightings import Sighting
    from .status import Outage, Status
    from .stream import Stream
    from .subscription import Gap, Publication, Receipt, Subscription

_HOMES = {
    "address": (
        "Address",
        "MemoryAddress",
        "PipeAddress",
        "TcpAddress",
        "UnixAddress",
        "isdk_path",
        "net_ipc_path",
        "tcp_address",
    ),
    "backoff": ("Backoff",),
    "client": ("Client",),
    "errors": (
        "AddressError",
        "AddressInUse",
        "ConnectError",
        "ConnectionClosed",
        "ConnectionLost",
        "ForkedError",
        "HandshakeError",
        "InterphoneError",
        "InvalidParams",
        "LocalProtocolError",
        "MessageTooBig",
        "MethodNotFound",
        "Overflow",
        "Overloaded",
        "PayloadError",
        "ProtocolError",
        "Refuse",
        "Refused",
        "RemoteError",
        "RemoteProtocolError",
        "RequestError",
        "RequestTimeout",
        "StreamClosed",
        "TopicError",
        "Unhandled",
        "Unsupported",
        "WrongThread",
    ),
    "handlers": ("PASS",),
    "host": ("Poll", "poll_from_blender", "poll_from_qt", "poll_from_tk"),
    "introspection": (
        "Description",
        "Info",
        "MethodDescription",
        "MethodStats",
        "ParamDescription",
        "Stats",
    ),
    "limits": ("Limits",),
    "contracts": ("Contract", "contract"),
    "peer": ("Call", "Peer"),
    "protocol.loan": ("Loan",),
    "protocol.pool": ("PoolCounts",),
    "run": ("run",),
    "server": ("Outcome", "Server"),
    "sightings": ("Sighting",),
    "status": ("Outage", "Status"),
    "stream": ("Stream",),
    "subscription": ("Gap", "Publication", "Receipt", "Subscription"),
}

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "PASS",
    "Address",
    "AddressError",
    "AddressInUse",
    "Backoff",
    "Call",
    "Client",
    "ConnectError",
    "ConnectionClosed",
    "ConnectionLost",
    "Contract",
    "Description",
    "ForkedError",
    "Gap",
    "HandshakeError",
    "Info",
    "InterphoneError",
    "InvalidParams",
    "Limits",
    "Loan",
    "LocalProtocolError",
    "MemoryAddress",
    "MessageTooBig",
    "MethodDescription",
    "MethodNotFound",
    "MethodStats",
    "Outage",
    "Outcome",
    "Overflow",
    "Overloaded",
    "ParamDescription",
    "PayloadError",
    "Peer",
    "PipeAddress",
    "Poll",
    "PoolCounts",
    "ProtocolError",
    "Publication",
    "Receipt",
    "Refuse",
    "Refused",
    "RemoteError",
    "RemoteProtocolError",
    "RequestError",
    "RequestTimeout",
    "Server",
    "Sighting",
    "Stats",
    "Status",
    "Stream",
    "StreamClosed",
    "Subscription",
    "TcpAddress",
    "TopicError",
    "Unhandled",
    "UnixAddress",
    "Unsupported",
    "WrongThread",
    "contract",
    "isdk_path",
    "net_ipc_path",
    "poll_from_blender",
    "poll_from_qt",
    "poll_from_tk",
    "run",
    "tcp_address",
]


def __getattr__(name: str) -> object:
    if name in _HOME_OF:
        value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
