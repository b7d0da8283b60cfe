"""Every exception interphone raises.

    InterphoneError(Exception)
    ├── AddressError(ValueError)              a name that cannot be an address
    ├── AddressInUse(OSError)                 a live server, or a file that is none, is there
    ├── ConnectError(ConnectionError)         nobody there, not ours, no permission, gave up
    │   └── HandshakeError                    somebody there who does not speak our protocol
    │       └── Refused                       … or who speaks it and said no; .reason
    ├── ConnectionLost(ConnectionError)       the connection ended while something depended on it
    │   └── ConnectionClosed                  … because one side said goodbye; .by_peer
    ├── ProtocolError                         (never raised itself)
    │   ├── LocalProtocolError(RuntimeError)  this side did what the state forbids
    │   │   ├── WrongThread                   an asyncio object was used outside its loop
    │   │   └── ForkedError                   a connection was used in a forked child
    │   └── RemoteProtocolError               the other side did
    │       └── MessageTooBig(ValueError)     .size, .limit; raised for our own messages too
    ├── RequestError                          a request has no result (never raised itself)
    │   ├── RequestTimeout(TimeoutError)      no answer in time; .timeout
    │   ├── Unhandled(LookupError)            nobody at the other end took the request
    │   ├── MethodNotFound(LookupError)       no such method there; .method, .nearest
    │   ├── InvalidParams(TypeError)          they do not fit the method; .method, .parameter
    │   ├── Overloaded                        too many requests are under way
    │   └── RemoteError                       the handler raised; .kind, .message, .data, .notes
    ├── TopicError(ValueError)                a name that cannot be a topic
    ├── PayloadError(ValueError)              a value with no form on the wire, or of a wrong type
    ├── Unsupported                           the other end cannot do that
    ├── StreamClosed                          nobody reads the stream any more
    └── Overflow                              a subscriber was too slow; .topic, .dropped

Every failure to send has `delivery`: ``"not_sent"`` when no byte of it can have
reached the other end, ``"maybe_sent"`` when it may have.
"""

from __future__ import annotations

from typing import Any, Literal

from .notes import RemoteTraceback, notes_of

__all__ = [
    "AddressError",
    "AddressInUse",
    "ConnectError",
    "ConnectionClosed",
    "ConnectionLost",
    "Delivery",
    "ForkedError",
    "HandshakeError",
    "InterphoneError",
    "InvalidParams",
    "LocalProtocolError",
    "MessageTooBig",
    "MethodNotFound",
    "Overflow",
    "Overloaded",
    "PayloadError",
    "ProtocolError",
    "Refuse",
    "Refused",
    "RemoteError",
    "RemoteProtocolError",
    "RequestError",
    "RequestTimeout",
    "StreamClosed",
    "TopicError",
    "Unhandled",
    "Unsupported",
    "WrongThread",
]

Delivery = Literal["not_sent", "maybe_sent"]


class InterphoneError(Exception):
    """Base of everything raised here; subclasses keep the facts as attributes.

    Attributes:
        delivery: Whether a message this failure is about may have been sent.
    """

    delivery: Delivery = "not_sent"

    def __init__(self, *args: object, delivery: Delivery | None = None) -> None:
        super().__init__(*args)
        if delivery is not None:
            self.delivery = delivery


class AddressError(InterphoneError, ValueError):
    """The name cannot be turned into an address, or its place is not safe to use."""


class TopicError(InterphoneError, ValueError):
    """The name cannot be a topic."""


class AddressInUse(InterphoneError, OSError):
    """Somebody is at the address, or a file that is not ours to touch.

    Attributes:
        address: The address, as text.
        pid: Process id of the owner, if it is known.
    """

    def __init__(self, address: str, why: str, *, pid: int | None = None) -> None:
        super().__init__(address, why)
        self.address = address
        self.why = why
        self.pid = pid

    def __str__(self) -> str:
        owner = f" (process {self.pid})" if self.pid else ""
        return f"{self.address}: {self.why}{owner}"


class ConnectError(InterphoneError, ConnectionError):
    """No connection could be made.

    Attributes:
        transient: Whether trying again may help (nobody listens yet, a full backlog).
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class HandshakeError(ConnectError):
    """Somebody answered, but not in our protocol, or hung up before it was agreed."""


class Refused(HandshakeError):
    """The server said no, for a reason it gave.

    Attributes:
        reason: What the server's `authorize` gave to `Refuse`; any value.
        code: ``"refused"``, ``"full"`` (too many connections) or another word of the server's.
    """

    def __init__(self, reason: Any = None, *, code: str = "refused") -> None:
        super().__init__(f"the server refused the connection: {reason}")
        self.reason = reason
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return _refused, (self.reason, self.code)


def _refused(reason: Any, code: str) -> Refused:
    return Refused(reason, code=code)


class Refuse(Exception):
    """Raise it in `authorize` to turn a peer away; the peer gets `Refused` with this reason."""

    def __init__(self, reason: Any = None) -> None:
        super().__init__(reason)
        self.reason = reason


class ConnectionLost(InterphoneError, ConnectionError):
    """The connection ended while something depended on it.

    Attributes:
        reason: Why, as far as it is known.
    """

    def __init__(self, reason: Any = None, *, delivery: Delivery | None = None) -> None:
        super().__init__(reason, delivery=delivery)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the connection was lost: {self.reason}" if self.reason else "the connection was lost"
        )


class ConnectionClosed(ConnectionLost):
    """The connection ended because one side said goodbye.

    Attributes:
        by_peer: Whether the other side did.
    """

    def __init__(
        self, reason: Any = None, *, by_peer: bool = False, delivery: Delivery | None = None
    ) -> None:
        super().__init__(reason, delivery=delivery)
        self.by_peer = by_peer

    def __str__(self) -> str:
        who = "the peer" if self.by_peer else "this side"
        why = "" if self.reason is None else f": {self.reason}"
        return f"the connection was closed by {who}{why}"


class ProtocolError(InterphoneError):
    """A rule of the protocol was broken; raised only as one of its subclasses."""


class LocalProtocolError(ProtocolError, RuntimeError):
    """This side asked for something its state forbids."""


class WrongThread(LocalProtocolError):
    """An asyncio object was used from another thread or another loop."""


class ForkedError(LocalProtocolError):
    """A connection was used in a child process that inherited it by fork."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol; the connection is over.

    Attributes:
        code: A word for the rule, as in `docs/reference/wire.md`.
    """

    def __init__(
        self, message: str, *, code: str = "protocol-error", delivery: Delivery | None = None
    ) -> None:
        super().__init__(message, delivery=delivery)
        self.code = code


class MessageTooBig(RemoteProtocolError, ValueError):
    """A message is larger than the limit; nothing of it was kept, or sent.

    Attributes:
        size: Size of the frame's body in bytes, as far as it is known.
        limit: The limit it broke, in bytes.
    """

    def __init__(self, *, size: int, limit: int) -> None:
        super().__init__(f"a message of {size} bytes is over the limit of {limit}", code="too-big")
        self.size = size
        self.limit = limit

    def __reduce__(self) -> tuple[Any, ...]:
        return _too_big, (self.size, self.limit)


def _too_big(size: int, limit: int) -> MessageTooBig:
    return MessageTooBig(size=size, limit=limit)


class RequestError(InterphoneError):
    """A request has no result; raised only as one of its subclasses."""

    delivery: Delivery = "maybe_sent"


class RequestTimeout(RequestError, TimeoutError):
    """No answer came in time. The handler may still have run.

    Attributes:
        timeout: Seconds that were waited.
    """

    def __init__(self, timeout: float, *, delivery: Delivery | None = None) -> None:
        super().__init__(timeout, delivery=delivery)
        self.timeout = timeout

    def __str__(self) -> str:
        sent = "" if self.delivery == "maybe_sent" else "; it was never sent"
        return f"no answer within {self.timeout:g} s{sent}"


class Unhandled(RequestError, LookupError):
    """Nobody at the other end handles this request."""


class MethodNotFound(RequestError, LookupError):
    """The other end has no such method.

    Attributes:
        method: The name that was asked for.
        nearest: The name there that looks most like it, or None.
    """

    def __init__(self, method: str, *, nearest: str | None = None) -> None:
        super().__init__(method, nearest)
        self.method = method
        self.nearest = nearest

    def __str__(self) -> str:
        hint = f": did you mean {self.nearest!r}?" if self.nearest else ""
        return f"there is no method {self.method!r}{hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _method_not_found, (self.method, self.nearest)


def _method_not_found(method: str, nearest: str | None) -> MethodNotFound:
    return MethodNotFound(method, nearest=nearest)


class InvalidParams(RequestError, TypeError):
    """The parameters do not fit the method; its handler did not run.

    Attributes:
        method: Name of the method.
        parameter: Name of the parameter, or None if it is their number or names.
        why: What is wrong with it.
    """

    def __init__(self, method: str, why: str, *, parameter: str | None = None) -> None:
        super().__init__(method, why, parameter)
        self.method = method
        self.why = why
        self.parameter = parameter

    def __str__(self) -> str:
        where = f" {self.parameter!r}" if self.parameter else ""
        return f"{self.method}() was given parameters that do not fit:{where} {self.why}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _invalid_params, (self.method, self.why, self.parameter)


def _invalid_params(method: str, why: str, parameter: str | None) -> InvalidParams:
    return InvalidParams(method, why, parameter=parameter)


class Overloaded(RequestError):
    """Too many requests are under way; this one was not taken."""

    delivery: Delivery = "not_sent"


class RemoteError(RequestError):
    """The handler at the other end raised.

    Raise it in a handler yourself to choose what the asker sees; any other exception that is
    not declared is logged where it happened, and its class name, message and notes go over.

    Attributes:
        kind: Name of the exception's class at the other end, or the one it is declared by.
        message: Its text.
        data: Anything the handler wanted to add; the fields of a declared exception.
        declared: Whether the other end has declared the exception: it is an answer, no fault.
    """

    declared: bool = False

    def __init__(self, message: str, *, kind: str = "RemoteError", data: Any = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.data = data

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message else self.kind

    @property
    def notes(self) -> tuple[str, ...]:
        """What was added to it with `add_note`, at the other end or since."""
        return notes_of(self)

    @property
    def traceback(self) -> str | None:
        """The traceback of the other end, if that was made with ``debug=True``."""
        notes = vars(self).get("__notes__", ())
        return next((note.text for note in notes if isinstance(note, RemoteTraceback)), None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remote_error, (self.message, self.kind, self.data), vars(self).copy()


def _remote_error(message: str, kind: str, data: Any) -> RemoteError:
    return RemoteError(message, kind=kind, data=data)


class PayloadError(InterphoneError, ValueError):
    """A value cannot be encoded, or what came is not of the type that was asked for."""


class Unsupported(InterphoneError):
    """The other end cannot do what was asked of it."""


class StreamClosed(InterphoneError):
    """Nothing can be sent on the stream any more, or it was closed by this side."""


class Overflow(InterphoneError):
    """A subscriber was too slow, and its queue was full.

    Attributes:
        topic: Topic of the first publication that was dropped.
        dropped: How many were dropped.
    """

    def __init__(self, topic: str, *, dropped: int) -> None:
        super().__init__(topic, dropped)
        self.topic = topic
        self.dropped = dropped

    def __str__(self) -> str:
        return f"the subscription was too slow: {self.dropped} dropped, the first on {self.topic!r}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _overflow, (self.topic, self.dropped)


def _overflow(topic: str, dropped: int) -> Overflow:
    return Overflow(topic, dropped=dropped)
