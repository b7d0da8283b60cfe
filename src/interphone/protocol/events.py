"""Events: what a Session tells its driver, and what it drops and counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

from ..errors import InterphoneError, PayloadError
from .deliveries import Taker
from .messages import Goodbye, Hello, Packet, Welcome
from .payload import Codec
from .shapes import Marks, Posting, Terms

__all__ = [
    "NO_OPTIONS",
    "Counts",
    "Nonce",
    "Options",
    "Reactions",
    "Role",
    "Watch",
    "Way",
    "read_options",
]

LONGEST = 1e9  # seconds of a deadline that is worth noting

Role = Literal["client", "server"]
Nonce = Any  # whatever the asker chose; echoed as it came
Way = Literal["in", "out"]
Watch = Callable[[Way, Packet, int], None]
"""Hears of a packet: which way it goes, what it says, and the size of its body."""


class Options(msgspec.Struct, frozen=True, gc=False):
    """What the asker of a request says about it.

    Attributes:
        deadline: Seconds it will wait; None if it did not say.
        progress: Whether it wants to hear how far the work is.
        window: Credit for the items of a stream, as it was shown: nobody has looked at it.
    """

    deadline: float | None = None
    progress: bool = False
    window: object = None


NO_OPTIONS = Options()


class _Shown(msgspec.Struct):
    deadline: Any = None
    progress: Any = None
    credit: Any = None


def read_options(codec: Codec, shown: msgspec.Raw) -> Options:
    """Read the `o` of a packet; what makes no sense there is ignored."""
    if not shown:
        return NO_OPTIONS
    try:
        said: _Shown = codec.decode(shown, _Shown)
    except PayloadError:
        return NO_OPTIONS
    seconds: Any = said.deadline
    known = type(seconds) in (int, float) and 0 < seconds < LONGEST
    return Options(float(seconds) if known else None, said.progress is True, said.credit)


class Reactions(NamedTuple):
    """What a driver does about each kind of event."""

    hello: Callable[[Hello], None]
    opened: Callable[[Welcome], None]
    message: Callable[[msgspec.Raw], None]
    request: Callable[[Nonce, msgspec.Raw, Options], None]
    answered: Callable[[object, msgspec.Raw], None]
    failed: Callable[[object, InterphoneError], None]
    subscribe: Callable[[Nonce, list[str], Terms], None]
    unsubscribe: Callable[[Nonce, list[str], Terms], None]
    publish: Callable[[Nonce, str, msgspec.Raw, msgspec.Raw, Posting], None]
    publication: Callable[[str, msgspec.Raw, Marks], Taker | None]
    goodbye: Callable[[Goodbye], None]
    unreadable: Callable[[InterphoneError], None]
    violated: Callable[[InterphoneError], None]
    call: Callable[[Nonce, msgspec.Raw, Options], None]
    cancelled: Callable[[Nonce], None]
    open: Callable[[Nonce, msgspec.Raw, Options], None]
    item: Callable[[object, msgspec.Raw], None]
    granted: Callable[[Nonce], None]
    input: Callable[[Nonce, msgspec.Raw], None]
    demanded: Callable[[object], None]
    progress: Callable[[object, msgspec.Raw], None]
    forget: Callable[[Nonce, str], None]
    allowed: Callable[[int, int, int], None]
    missed: Callable[[int, int, str], None]


class Counts(msgspec.Struct):
    """What was dropped, and why. Nothing is dropped without being counted here.

    Attributes:
        late: Answers, and pieces of streams, that nobody waits for any more.
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
