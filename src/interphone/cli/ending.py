"""Ending: exit codes, and errors as one sentence that says what to do."""

from __future__ import annotations

from typing import Any

from ..errors import (
    AddressError,
    AddressInUse,
    ConnectError,
    ConnectionLost,
    InterphoneError,
    InvalidParams,
    MessageTooBig,
    MethodNotFound,
    PayloadError,
    Refused,
    RemoteError,
    RequestTimeout,
    TopicError,
    Unhandled,
    Unsupported,
)
from .output import Output, escape

__all__ = [
    "ANSWERED",
    "CODES",
    "FAILED",
    "INTERRUPTED",
    "NO_DIRECTORY",
    "TIMED_OUT",
    "UNREACHABLE",
    "UNREAD",
    "USAGE",
    "Misuse",
    "explain",
]

ANSWERED, FAILED, USAGE, UNREACHABLE, TIMED_OUT = 0, 1, 2, 3, 4
INTERRUPTED, UNREAD = 130, 141  # 128 + SIGINT, 128 + SIGPIPE, as a shell would say

CODES = {
    ANSWERED: "answered, or done; also what runs until Ctrl-C: sub, ping, bench, tap, serve",
    FAILED: "the other end answered with an error; doctor: something is wrong",
    USAGE: "wrong usage, or the other end cannot do that",
    UNREACHABLE: "no connection: nobody is there, refused, or lost",
    TIMED_OUT: "no answer in time",
    INTERRUPTED: "interrupted with Ctrl-C before there was an answer",
    UNREAD: "nobody read the output any more",
}


NO_DIRECTORY = (
    "Windows has no directory of its pipes:"
    " 'interphone doctor NAME' looks at the server of that name"
)


class Misuse(Exception):
    """What was typed makes no sense, as a sentence."""


_CODE_OF: tuple[tuple[type[Exception], int], ...] = (
    (Misuse, USAGE),
    (Unsupported, USAGE),
    (AddressError, USAGE),
    (AddressInUse, USAGE),
    (TopicError, USAGE),
    (MessageTooBig, USAGE),
    (RequestTimeout, TIMED_OUT),
    (ConnectError, UNREACHABLE),
    (ConnectionLost, UNREACHABLE),
    (InterphoneError, FAILED),
)


def explain(error: Exception, out: Output, where: str | None = None) -> int:
    """Tell about an error; return the exit code."""
    code = code_of(error)
    sentence = escape(str(error))
    if hint := _hint(error, where):
        sentence = f"{sentence}; {hint}"
    facts: dict[str, Any] = {"error": type(error).__name__, "message": str(error), "exit": code}
    details: list[str] = []
    if isinstance(error, RemoteError):
        facts |= {"kind": error.kind, "message": error.message, "data": error.data}
        facts["notes"] = error.notes
        details = [f"  {escape(note)}" for note in error.notes]
        if error.traceback is not None:
            details.append(escape(error.traceback, keep="\n"))
    out.complain(sentence, facts, details)
    return code


def code_of(error: Exception) -> int:
    """The exit code for an error."""
    if isinstance(error, PayloadError) and error.delivery == "not_sent":
        return USAGE
    return next(code for kind, code in _CODE_OF if isinstance(error, kind))


def _hint(error: Exception, where: str | None) -> str:
    if where is None:
        return ""
    name = escape(where)
    if isinstance(error, Refused):
        return "--payload gives a token, if it wants one"
    if isinstance(error, ConnectError):
        return f"'interphone doctor {name}' says more"
    if isinstance(error, MethodNotFound):
        return f"'interphone describe {name}' lists them"
    if isinstance(error, InvalidParams):
        return f"'interphone describe {name} {escape(error.method)}' shows them"
    if isinstance(error, Unhandled):
        return "it takes no such request"
    if isinstance(error, RequestTimeout):
        return "--timeout waits longer"
    return ""
