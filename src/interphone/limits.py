"""Limits: how much one end of a connection takes from the other before it acts.

Every number here is enforced, has a test at the limit and on both sides of it, and names
who pays when it is reached: always the connection that broke it, never its neighbours.
`docs/topics/semantics.md` prints the table.
"""

from __future__ import annotations

import msgspec

__all__ = ["DEFAULT_TIMEOUT", "MAX_QUEUE", "Limits"]

DEFAULT_TIMEOUT = 10.0
"""Seconds a request waits unless told otherwise; ``timeout=None`` waits without limit."""

MAX_QUEUE = 16_384
"""Publications that the queue of a subscription holds unless told otherwise."""

LARGEST_FRAME = 2**31 - 1  # the Node packages cannot write a tag beyond it


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may cost. Sizes are bytes, times seconds.

    Attributes:
        max_frame: Largest body of a frame, either way (after inflating, too).
        max_handshake_frame: The same until the handshake is over.
        max_depth: How deep arrays and objects may nest in a payload.
        max_pending: Own requests that may wait for an answer; one more is `Overloaded`.
        max_inflight: The peer's requests and messages being handled; then reading stops. An
            interphone peer is told, and keeps the requests that are more; it is read on.
        max_held: Bytes of them; then reading stops.
        max_pool: Bytes of shared memory for large payloads, each way, between two interphone
            ends of one user on Linux or Windows; 0: none. What finds no room goes inline.
        max_streams: Streams a peer may have opened; one more is `Overloaded`.
        max_subscriptions: Topics a peer may subscribe to.
        high_water: Bytes waiting to be sent at which `send` begins to wait.
        low_water: Bytes at which it goes on.
        stalled_after: Seconds a peer may take nothing while more than `soft_queue` waits.
        soft_queue: See `stalled_after`.
        hard_queue: Bytes waiting to be sent (plus the message being added) that cut a peer off.
        handshake_timeout: Seconds a server waits for CONNECTION.
        close_timeout: Seconds a goodbye waits for the other side to hang up.
    """

    max_frame: int = 16 * 1024 * 1024
    max_handshake_frame: int = 16 * 1024
    max_depth: int = 64
    max_pending: int = 65_536
    max_inflight: int = 1_024
    max_held: int = 8 * 1024 * 1024
    max_pool: int = 64 * 1024 * 1024
    max_streams: int = 256
    max_subscriptions: int = 1_024
    high_water: int = 64 * 1024
    low_water: int = 16 * 1024
    stalled_after: float = 10.0
    soft_queue: int = 1024 * 1024
    hard_queue: int = 8 * 1024 * 1024
    handshake_timeout: float = 10.0
    close_timeout: float = 1.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value < 0 or (value == 0 and name != "max_pool"):
                raise ValueError(f"{name} must be positive, not {value!r}")
        if self.max_frame > LARGEST_FRAME:
            raise ValueError(f"max_frame must be at most {LARGEST_FRAME} (wire.md, framing)")
