"""Credit: permission to send, given before it is used.

A stream's items cost credit, so that at most as much lies at the receiver as it has room
for, and a slow stream holds up nothing but itself. Requests cost credit, so that the other
end need not stop reading when it has enough to do.

Both ends of a stream keep the same book about one direction of it. What an item costs is
known to both: one unit, and one more for every KiB of its payload, but never more than
half of the window. An item of any size can therefore be sent once everything before it has
been taken.
"""

from __future__ import annotations

from ..errors import RemoteProtocolError

__all__ = ["MAX_WINDOW", "UNIT", "Credit", "Guests"]

UNIT = 1024  # bytes of payload that one more unit of credit is asked for
MAX_WINDOW = 1 << 20


class Credit:
    """One direction of one stream, as one of its ends sees it.

    Attributes:
        window: Units that may be under way; 0 until the receiver has said.
        left: Units that may still be sent, or come.
    """

    __slots__ = ("_owed", "left", "window")

    def __init__(self, window: int = 0) -> None:
        self.window = self.left = window
        self._owed = 0  # taken by the receiving end, and not given back yet

    def cost(self, size: int) -> int:
        """Units for an item with a payload of `size` bytes."""
        return min(1 + size // UNIT, (self.window + 1) // 2)

    def covers(self, size: int) -> bool:
        """Whether an item may be sent now."""
        return self.window > 0 and self.cost(size) <= self.left

    def spend(self, size: int) -> None:
        """Note that an item was sent, or came.

        Raises:
            RemoteProtocolError: It came without credit.
        """
        if not self.covers(size):
            raise RemoteProtocolError("an item of a stream came without credit")
        self.left -= self.cost(size)

    def take(self, size: int) -> int:
        """Note that an item that came was taken; return the units to grant for that now.

        They are granted when they are half of the window: one packet for many items.
        """
        self._owed += self.cost(size)
        if self._owed * 2 < self.window:
            return 0
        units, self._owed = self._owed, 0
        self.left += units
        return units

    def grant(self, units: object) -> None:
        """Note what the receiver has granted; the first grant sets the window.

        Raises:
            RemoteProtocolError: It is no number, or more than the window.
        """
        if type(units) is not int or not 0 < units <= MAX_WINDOW:
            raise RemoteProtocolError(f"no credit: {units!r:.75}")
        if not self.window:
            self.window = units
        if self.left + units > self.window:
            raise RemoteProtocolError(f"{units} units of credit are more than were used")
        self.left += units


class Guests:
    """Requests of the other end that were not answered yet, which may be so many.

    Args:
        room: How many.
        max_bytes: How many bytes of them; one is always let in.
    """

    __slots__ = ("_bytes", "_max_bytes", "_room", "_sizes")

    def __init__(self, room: int, max_bytes: int) -> None:
        self._room = room
        self._max_bytes = max_bytes
        self._bytes = 0
        self._sizes: dict[object, int] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._sizes)

    def __contains__(self, nonce: object) -> bool:
        return nonce in self._sizes

    def come(self, nonce: object, size: int) -> None:
        """Note a request.

        Raises:
            RemoteProtocolError: There is no room for it, as the other end knows, or its nonce
                is taken.
        """
        sizes = self._sizes
        if nonce in sizes:
            raise RemoteProtocolError("two requests have the same nonce")
        if sizes and (len(sizes) >= self._room or self._bytes + size > self._max_bytes):
            raise RemoteProtocolError("a request came without credit")
        sizes[nonce] = size
        self._bytes += size

    def leave(self, nonce: object) -> None:
        """Note that it was answered."""
        self._bytes -= self._sizes.pop(nonce, 0)
