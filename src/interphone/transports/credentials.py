"""Who is at the other end of a Unix socket, as the kernel tells it."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable

from . import Credentials

assert sys.platform != "win32"

__all__ = ["bsd_credentials", "linux_credentials", "peer_credentials", "trusted"]

OVERFLOW_UID = 65534
"""What the kernel says of a user it cannot name in our user namespace."""

GetSocketOption = Callable[[int, int, int], bytes]


def peer_credentials(sock: socket.socket) -> Credentials | None:
    """Ask the kernel who is at the other end; None if it does not tell exactly."""
    read = linux_credentials if sys.platform == "linux" else bsd_credentials
    try:
        return read(sock.getsockopt)
    except (OSError, struct.error):
        return None


def linux_credentials(getsockopt: GetSocketOption) -> Credentials | None:
    """Read `SO_PEERCRED`, a `struct ucred` of pid, uid and gid; see socket(7)."""
    ucred = struct.Struct("iII")
    raw = getsockopt(socket.SOL_SOCKET, getattr(socket, "SO_PEERCRED", 17), ucred.size)
    pid, uid, gid = ucred.unpack(raw)
    # A process outside our pid namespace has the number 0.
    return Credentials(uid, pid if pid > 0 else None, gid)


def bsd_credentials(getsockopt: GetSocketOption) -> Credentials | None:
    """Read `LOCAL_PEERCRED`, a `struct xucred`, and `LOCAL_PEERPID`; see unix(4) of macOS.

    The struct is a version, which must be 0, the uid, the number of groups, and 16 of them.
    """
    sol_local, local_peercred, local_peerpid = 0, 1, 2
    xucred = struct.Struct("IIh2x16I")
    version, uid, count, gid, *_ = xucred.unpack(getsockopt(sol_local, local_peercred, xucred.size))
    if version != 0 or not 1 <= count <= 16:
        return None
    try:
        (pid,) = struct.unpack("i", getsockopt(sol_local, local_peerpid, 4))
    except OSError:
        pid = 0
    return Credentials(uid, pid if pid > 0 else None, gid)


def trusted(credentials: Credentials, allowed_uids: frozenset[int] | None) -> bool:
    """Tell whether this user may be talked to; by default only our own."""
    own = os.geteuid()
    if credentials.uid == OVERFLOW_UID and own != OVERFLOW_UID:
        return False
    return credentials.uid == own if allowed_uids is None else credentials.uid in allowed_uids
