"""Pending: what is remembered of a request of ours until its answer comes."""

from __future__ import annotations

import msgspec

__all__ = ["Pending"]


class Pending(msgspec.Struct, gc=False):
    """A request of ours that waits: what to give back, until when, and for which answer."""

    token: object
    deadline: float | None
    timeout: float | None
    answer: int
