"""Allowance: what a subscription may still be sent, and what its reader gives back.

Publications and bytes are both counted. A publication may go while there is something left
of each, so the bytes may be overdrawn by one publication: else a large one could never go.
The reader grants what it has taken out of its queue, a half of the whole at a time.

    server  Allowance   allow(10, 1000) ──── publications ────►  Account  reader
                        grant(5, 40)    ◄──── ALLOW 5, 40 ─────  take → (5, 40)
"""

from __future__ import annotations

__all__ = ["Account", "Allowance"]


class Allowance:
    """What a sender may send.

    Attributes:
        items: Publications left.
        size: Bytes left; below zero when the last publication was larger.
    """

    def __init__(self, items: int, size: int) -> None:
        self.items = items
        self.size = size

    def __bool__(self) -> bool:
        return self.items > 0 and self.size > 0

    def spend(self, size: int) -> None:
        """Send one publication of so many bytes."""
        self.items -= 1
        self.size -= size

    def grant(self, items: int, size: int) -> None:
        """Be given more."""
        self.items += items
        self.size += size


class Account:
    """What a reader has to give back.

    Args:
        items: Publications its queue holds.
        size: Bytes that may be under way to it, and one publication more.
    """

    def __init__(self, items: int, size: int) -> None:
        self._items, self._size = items, size
        self._taken_items = self._taken_size = 0

    def begin(self, items: int, size: int) -> tuple[int, int]:
        """Return what a new sender may send while so much is still queued here."""
        self._taken_items = 0
        self._taken_size = min(0, self._size - size)  # what is overdrawn is to be read first
        return max(0, self._items - items), max(0, self._size - size)

    def take(self, size: int) -> tuple[int, int] | None:
        """Note that a publication was read; return what to grant, if it is time to."""
        self._taken_items += 1
        self._taken_size += size
        if 2 * self._taken_items < self._items and 2 * self._taken_size < self._size:
            return None
        granted = self._taken_items, max(0, self._taken_size)
        self._taken_items, self._taken_size = 0, min(0, self._taken_size)
        return granted
