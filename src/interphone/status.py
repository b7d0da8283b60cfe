"""Status: where a client is in its life, and why there is no connection."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from .errors import InterphoneError

__all__ = ["Outage", "Status"]


class Status(IntEnum):
    """Where a client is in its life; the numbers are those of the Node packages."""

    IDLE = 0
    CONNECTING = 1
    CONNECTED = 2  # the transport stands; the server has not answered yet
    READY = 3
    DISCONNECTED = 4
    RECONNECTING = 5  # waiting to try again


class Outage(msgspec.Struct, frozen=True):
    """Why there is no connection, and what is done about it.

    Attributes:
        attempts: Attempts made since it began.
        wait: Seconds until the next one, from when this was made.
        error: What the last attempt failed with, or how the connection was lost.
    """

    attempts: int
    wait: float
    error: InterphoneError
