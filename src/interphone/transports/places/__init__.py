"""Places: what is at the path of a Unix socket, for people who want to know, and mending it.

Looking changes nothing, and a server that is there is sent nothing: it is connected to, the
kernel says who it is, and the connection ends. Mending touches only what is certainly ours
and certainly left over.
"""

from __future__ import annotations

import sys
from typing import Literal

import msgspec

from ...address import UnixAddress
from ...errors import Unsupported
from .. import Credentials

__all__ = [
    "Directory",
    "Place",
    "clear",
    "look_at",
    "look_at_directory",
    "restrict",
    "sockets_in",
    "strangers_in",
]


class Directory(msgspec.Struct, frozen=True):
    """What is where a directory should be.

    Attributes:
        path: Where.
        state: "missing", "directory", or "other": it is something else, or a link.
        ours: Whether it belongs to this user.
        mode: Its permissions.
    """

    path: str
    state: Literal["missing", "directory", "other"]
    ours: bool = False
    mode: int = 0


class Place(msgspec.Struct, frozen=True):
    """What is at a path.

    Attributes:
        path: Where.
        state: "missing", "socket" or "other".
        what: What it is, in words: "a socket", "a directory".
        ours: Whether it belongs to this user.
        mode: Its permissions.
        since: When it was made, in seconds since 1970.
        listener: "none": there is no socket; "dead": it is left over; "alive"; "unknown": it
            cannot be told.
        credentials: Who listens, if somebody does.
        lock: "missing"; "held" by a living process; "free": left over; "strange": no lock of
            a server of this user.
        lock_pid: The process that wrote its number into the lock.
    """

    path: str
    state: Literal["missing", "socket", "other"]
    ours: bool = False
    mode: int = 0
    since: float = 0.0
    listener: Literal["none", "dead", "alive", "unknown"] = "none"
    credentials: Credentials | None = None
    lock: Literal["missing", "held", "free", "strange"] = "missing"
    lock_pid: int | None = None
    what: str = "nothing"


def look_at_directory(path: str, *, linked: bool = False) -> Directory:
    """Tell what is there; a link to a directory is one if it may be `linked`."""
    if sys.platform == "win32":
        raise _unsupported()
    from . import unix

    return unix.look_at_directory(path, linked=linked)


def look_at(path: str) -> Place:
    """Tell what is there, and who listens."""
    if sys.platform == "win32":
        raise _unsupported()
    from . import unix

    return unix.look_at(path)


def sockets_in(directory: str) -> list[str]:
    """Return the paths of the sockets of this user in a directory, sorted."""
    if sys.platform == "win32":
        raise _unsupported()
    from . import unix

    return unix.sockets_in(directory)


def strangers_in(directory: str) -> list[Place]:
    """Return what else is in a directory of sockets: no socket of this user, and no lock's file."""
    if sys.platform == "win32":
        raise _unsupported()
    from . import unix

    return unix.strangers_in(directory)


def clear(address: UnixAddress) -> bool:
    """Remove a socket and a lock that a server has left over; return whether there was a socket.

    It is done as a server does that starts there: whoever lives keeps what is theirs.

    Raises:
        AddressInUse: Somebody is there, or it is not ours to touch.
        AddressError: The directory cannot be used.
    """
    if sys.platform == "win32":
        raise _unsupported()
    from . import unix

    return unix.clear(address)


def restrict(directory: str) -> None:
    """Let nobody but this user into a directory of theirs; raises `OSError`."""
    if sys.platform == "win32":
        raise _unsupported()
    from . import unix

    unix.restrict(directory)


def _unsupported() -> Unsupported:
    return Unsupported("named pipes are not supported by this version")
