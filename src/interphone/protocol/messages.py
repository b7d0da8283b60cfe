"""The vocabulary: packet types, and one Struct for each thing a packet may say.

The classic packets are those of the Node packages, ``{"t", "d", "n"}``. Between two
interphone ends, and only there, a packet has two more keys, which Node ignores:

    k   the kind of a REQUEST or MESSAGE: "call", "sub", "unsub", "pub", "forget"; absent for the
        user's own
    e   a `Failure`: in a RESPONSE that is none, or the code of an END
    o   options of a REQUEST, marks of a publication; unknown ones are ignored

Some packet types, too, are only spoken between two of us: CANCEL, the packets of streams
(`streams.py`) and PROGRESS.

Native packets are the same fields as a MessagePack array, in the order of `NativePacket`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..errors import (
    ConnectionClosed,
    ConnectionLost,
    InterphoneError,
    InvalidParams,
    MethodNotFound,
    Overloaded,
    PayloadError,
    RemoteError,
    Unhandled,
    Unsupported,
)
from ..notes import add_notes, notes_of, text_of
from .payload import ABSENT

__all__ = [
    "ALLOW",
    "BORROW",
    "CANCEL",
    "CAPABILITIES",
    "CONNECTION",
    "DEMAND",
    "END",
    "GRANT",
    "IDLE",
    "INPUT",
    "ITEM",
    "LEND",
    "MESSAGE",
    "MISSED",
    "NODE_CODES",
    "OPEN",
    "PING",
    "PONG",
    "POOL",
    "PROGRESS",
    "REQUEST",
    "RESPONSE",
    "RETURN",
    "VERSION",
    "Asked",
    "Failure",
    "Goodbye",
    "Hello",
    "Identity",
    "NativePacket",
    "Packet",
    "Room",
    "Welcome",
    "copy_of",
    "error_of",
    "failure_of",
    "node_sentence",
    "read_failure",
]

# Final: what is compiled has them as numbers, and need not look them up.
CONNECTION: Final = 0
MESSAGE: Final = 1
REQUEST: Final = 2
RESPONSE: Final = 3
PING: Final = 4
PONG: Final = 5
END: Final = 6
# Between two of us; 7 is the padding towards @isdk/ipc-server.
CANCEL: Final = 8
OPEN: Final = 9
ITEM: Final = 10
GRANT: Final = 11
INPUT: Final = 12
DEMAND: Final = 13
PROGRESS: Final = 14
# Of the capability "topics".
ALLOW: Final = 20
MISSED: Final = 21
# Of the capability "pool".
LEND: Final = 22
BORROW: Final = 23
RETURN: Final = 24

VERSION = 1
"""Version of what two interphone ends say to each other beyond the Node wire."""

CAPABILITIES: tuple[str, ...] = ("errors", "streams", "progress", "topics")
"""What this end can do beyond `VERSION`; nothing of it is used unless both ends show the word."""

IDLE = "idle"
"""Shown by an end that reads only while it waits for something: its silence means nothing."""


POOL = "pool"
"""Shown by an end that can share memory with the other; used only in the native dialect."""


class Packet(msgspec.Struct, gc=False):
    """One classic frame. `d` and `o` are as they came; `n` is the nonce, any value."""

    t: int
    d: msgspec.Raw = ABSENT
    n: Any = None
    k: Any = None
    e: Any = None
    o: msgspec.Raw = ABSENT


class NativePacket(msgspec.Struct, array_like=True, gc=False):
    """One native frame: what a `Packet` says, as an array; elements at the end may be absent."""

    t: int
    n: Any = None
    d: msgspec.Raw = ABSENT
    k: Any = None
    e: Any = None
    o: msgspec.Raw = ABSENT


class Room(msgspec.Struct, frozen=True):
    """How many requests an end takes on at once, and how many bytes of them."""

    requests: int
    bytes: int


class Identity(msgspec.Struct, omit_defaults=True):
    """The value of `interphone` in a CONNECTION: shows that this end is one of us."""

    version: int
    dialects: tuple[str, ...]
    can: tuple[str, ...] = ()  # of `CAPABILITIES`; unknown words are ignored
    credit: Room | None = None  # what it takes on at once; None: it does not say
    dialect: str | msgspec.UnsetType = msgspec.UNSET  # in the reply: what will be spoken


class Asked(msgspec.Struct):
    """The payload of a call: a method, and its parameters as an array and by name."""

    method: str
    params: msgspec.Raw = ABSENT
    named: msgspec.Raw = ABSENT


class Hello(msgspec.Struct):
    """The `d` of a client's CONNECTION.

    Attributes:
        extras: The payload given to `connect`.
        id: The id the client had before, if any; any value from Node.
        compress: Whether it asks for compression; UNSET if it did not say.
        messagepack: The same for MessagePack.
        interphone: The client's `Identity`, as it came, if it is one of us.
    """

    extras: msgspec.Raw = ABSENT
    id: Any = None
    compress: Any = msgspec.UNSET
    messagepack: Any = msgspec.UNSET
    interphone: Any = None


class Welcome(msgspec.Struct):
    """The `d` of the server's reply; absent keys are UNSET."""

    id: Any = None
    compress: Any = msgspec.UNSET
    messagepack: Any = msgspec.UNSET
    interphone: Any = None


class Goodbye(msgspec.Struct):
    """The `d` of END: the reason, and whether the client may reconnect."""

    m: Any = None
    a: Any = False


class Failure(msgspec.Struct, omit_defaults=True):
    """Why a request has no result.

    Attributes:
        code: One of the words in `NODE_CODES`, or of END: "refused", "full", "timeout",
            "protocol-error", "too-big", "slow-consumer".
        message: A sentence for people.
        kind: Class name of the exception for code "failed"; its name for code "declared".
        data: Whatever the handler added, or the fields of a declared exception.
        notes: What was noted on the exception; needs the capability "errors", as all below.
        traceback: Where it was raised, from an end in debug mode.
    """

    code: str
    message: str = ""
    kind: str = ""
    data: Any = None
    notes: tuple[str, ...] = ()
    traceback: str | None = None

    def plain(self) -> Failure:
        """The same for an end without the capability "errors"."""
        return Failure(self._plain_code, self.message, self.kind, self.data)

    def lesser(self) -> tuple[Failure, ...]:
        """The same with less and less in it, for when it cannot go over as it is."""
        code, unsaid = self._plain_code, "an error that cannot be sent"
        return (
            Failure(code, self.message, self.kind),
            Failure(code, unsaid, self.kind),
            Failure(code, unsaid),
        )

    @property
    def _plain_code(self) -> str:
        return "failed" if self.code == "declared" else self.code


NODE_CODES = {
    "unhandled": -32601,  # JSON-RPC 2.0: method not found
    "method-not-found": -32601,
    "invalid": -32602,  # JSON-RPC 2.0: invalid params
    "invalid-params": -32602,
    "failed": -32000,  # and below: the range JSON-RPC leaves to servers
    "declared": -32000,
    "overloaded": -32001,
    "cancelled": -32800,  # LSP: request cancelled
    "closing": -32002,
    "unsupported": -32003,
}
"""The closed list of failure codes, and what they are called towards Node."""

_CODES: dict[str, type[InterphoneError]] = {
    "unhandled": Unhandled,
    "overloaded": Overloaded,
    "invalid": PayloadError,
    "unsupported": Unsupported,
}


def failure_of(error: BaseException) -> Failure:
    """What the asker is told of an exception in a handler: never a traceback."""
    notes = notes_of(error)
    if isinstance(error, RemoteError):
        code = "declared" if error.declared else "failed"
        return Failure(code, error.message, error.kind, error.data, notes)
    return Failure("failed", text_of(error), type(error).__name__, notes=notes)


def error_of(failure: Failure) -> InterphoneError:
    """The exception an asker gets for a failure at the other end."""
    facts = failure.data if isinstance(failure.data, dict) else {}
    if failure.code == "method-not-found":
        return MethodNotFound(str(facts.get("method")), nearest=facts.get("nearest"))
    if failure.code == "invalid-params":
        return InvalidParams(
            str(facts.get("method")), str(facts.get("why")), parameter=facts.get("parameter")
        )
    if failure.code == "closing":
        return ConnectionClosed(failure.message or None, by_peer=True, delivery="not_sent")
    if failure.code in _CODES:
        error = _CODES[failure.code](failure.message)
        if failure.code != "overloaded":
            error.delivery = "maybe_sent"  # it was there, and read
        return error
    remote = RemoteError(failure.message, kind=failure.kind or "RemoteError", data=failure.data)
    if failure.code == "declared":
        remote.declared = True
    add_notes(remote, failure.notes, failure.traceback)
    return remote


def read_failure(value: object) -> Failure:
    """Read the `e` of a packet, whatever it is."""
    try:
        return msgspec.convert(value, Failure)
    except (msgspec.MsgspecError, ValueError):  # ValueError: a lone surrogate
        return Failure("failed", "a failure that cannot be read")


def node_sentence(failure: Failure) -> str:
    """What a Node asker is told, who gets a code and one sentence."""
    return f"{failure.kind}: {failure.message}" if failure.kind else failure.message


def copy_of(error: InterphoneError) -> InterphoneError:
    """Why a pending request fails: one exception per waiter, or they would share tracebacks."""
    if isinstance(error, ConnectionClosed):
        return ConnectionClosed(error.reason, by_peer=error.by_peer, delivery="maybe_sent")
    if isinstance(error, ConnectionLost):
        return ConnectionLost(error.reason, delivery="maybe_sent")
    return ConnectionLost(error, delivery="maybe_sent")
