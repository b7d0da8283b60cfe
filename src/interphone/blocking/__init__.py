"""The same without `await`: for plain programs, threads, notebooks, and hosts with a main loop.

    from interphone.blocking import Client

    with Client("myapp") as client:
        print(client.call("add", 1, 2))

The classes have the names, methods and parameters of those in `interphone`; ``with`` stands
for ``async with``, ``for`` for ``async for``. Everything may be used from any thread, also
where an event loop runs. Everything else (errors, addresses, `Limits`, `PASS` …) is in
`interphone` itself.

Names are imported when they are first used: a client that only asks needs no event loop.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .. import exit as _exit  # noqa: F401  the sooner it is imported, the later it comes

if TYPE_CHECKING:
    from .client import Client
    from .peer import Call, Peer
    from .sequences import Stream, Subscription
    from .server import Outcome, Server

_HOME_OF = {
    "Call": "peer",
    "Client": "client",
    "Outcome": "server",
    "Peer": "peer",
    "Server": "server",
    "Stream": "sequences",
    "Subscription": "sequences",
}

__all__ = ["Call", "Client", "Outcome", "Peer", "Server", "Stream", "Subscription"]


def __getattr__(name: str) -> object:
    if name in _HOME_OF:
        value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
