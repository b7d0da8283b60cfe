"""The protocol without I/O, for whoever brings their own: see `session.Session`."""

from __future__ import annotations

from .events import Counts, Reactions
from .session import Session
from .states import LEGAL, State

__all__ = ["LEGAL", "Counts", "Reactions", "Session", "State"]
