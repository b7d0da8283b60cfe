"""What may be said when.

The same table serves both ends: what one side may send in a state is what the other may
receive. Nothing outside this module decides legality, and `docs/reference/wire.md`
prints the table.

    OPENING ──── CONNECTION, reply ────► OPEN ──── drain ────► DRAINING ──── END ────► CLOSING
       │                                  │                                               │
       └──────── END, violation, deadline, end of stream ────────► CLOSED ◄───────────────┘

What arrives and is not legal ends an OPENING connection; later it is dropped and
counted, because Node ends are sloppy there (a second CONNECTION, packets after END).
"""

from __future__ import annotations

from enum import Enum

from .messages import (
    ALLOW,
    BORROW,
    CANCEL,
    CONNECTION,
    DEMAND,
    END,
    GRANT,
    INPUT,
    ITEM,
    LEND,
    MESSAGE,
    MISSED,
    OPEN,
    PING,
    PONG,
    PROGRESS,
    REQUEST,
    RESPONSE,
    RETURN,
)

__all__ = ["LEGAL", "State"]


class State(Enum):
    """Where a connection is in its life."""

    OPENING = "opening"  # nothing but the handshake
    OPEN = "open"
    DRAINING = "draining"  # this side takes no new requests; answers are still under way
    CLOSING = "closing"  # this side said goodbye and waits for the other to hang up
    CLOSED = "closed"


_STREAMS = {OPEN, ITEM, GRANT, INPUT, DEMAND}
_POOLS = {LEND, BORROW, RETURN}
_SPOKEN = frozenset(
    {MESSAGE, REQUEST, RESPONSE, PING, PONG, CANCEL, PROGRESS, ALLOW, MISSED, *_STREAMS, *_POOLS}
)

LEGAL: dict[State, frozenset[int]] = {
    State.OPENING: frozenset({CONNECTION, END}),
    State.OPEN: _SPOKEN | {END},
    State.DRAINING: _SPOKEN | {END},
    State.CLOSING: frozenset({END}),
    State.CLOSED: frozenset(),
}
