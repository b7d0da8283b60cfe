"""Events: what a Session tells its driver, and what it drops and counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

from ..errors import InterphoneError
from .messages import Goodbye, Hello, Welcome
from .shapes import Marks, Posting, Terms

__all__ = ["Counts", "Nonce", "Reactions", "Role"]

Role = Literal["client", "server"]
Nonce = Any  # whatever the asker chose; echoed as it came


class Reactions(NamedTuple):
    """What a driver does about each kind of event."""

    hello: Callable[[Hello], None]
    opened: Callable[[Welcome], None]
    message: Callable[[msgspec.Raw], None]
    request: Callable[[Nonce, msgspec.Raw, float | None], None]
    answered: Callable[[object, msgspec.Raw], None]
    failed: Callable[[object, InterphoneError], None]
    subscribe: Callable[[Nonce, list[str], Terms], None]
    unsubscribe: Callable[[Nonce, list[str], Terms], None]
    publish: Callable[[Nonce, str, msgspec.Raw, msgspec.Raw, Posting], None]
    publication: Callable[[str, msgspec.Raw, Marks], None]
    goodbye: Callable[[Goodbye], None]
    unreadable: Callable[[InterphoneError], None]
    violated: Callable[[InterphoneError], None]
    call: Callable[[Nonce, msgspec.Raw, float | None], None]
    cancelled: Callable[[Nonce], None]
    forget: Callable[[Nonce, str], None]
    allowed: Callable[[int, int, int], None]
    missed: Callable[[int, int, str], None]


class Counts(msgspec.Struct):
    """What was dropped, and why. Nothing is dropped without being counted here.

    Attributes:
        late: Answers nobody waits for any more.
        illegal: Packets not legal in the state they came in.
        unknown: Well-formed frames that are no packet, or of an unknown type.
        unreadable: Frames that are not well-formed.
        unsendable: Answers whose asker is gone.
    """

    late: int = 0
    illegal: int = 0
    unknown: int = 0
    unreadable: int = 0
    unsendable: int = 0
