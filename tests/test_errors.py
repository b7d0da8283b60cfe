from __future__ import annotations

import copy
import pickle
import re

import pytest

from interphone import errors
from interphone.errors import (
    AddressInUse,
    ConnectionClosed,
    ConnectionLost,
    InterphoneError,
    MessageTooBig,
    Overflow,
    Refused,
    RemoteError,
    RequestTimeout,
)

SAMPLES = {
    "AddressInUse": lambda: AddressInUse("/x", "a live server is there", pid=7),
    "MessageTooBig": lambda: MessageTooBig(size=2, limit=1),
    "Overflow": lambda: Overflow("a", dropped=3),
    "RemoteError": lambda: RemoteError("no", kind="KeyError", data={"a": 1}),
    "RequestTimeout": lambda: RequestTimeout(0.5, delivery="not_sent"),
    "Refused": lambda: Refused({"why": "x"}, code="full"),
    "ConnectionClosed": lambda: ConnectionClosed("bye", by_peer=True),
}


def classes() -> list[type[InterphoneError]]:
    found = [getattr(errors, name) for name in errors.__all__ if name not in ("Delivery", "Refuse")]
    return [each for each in found if isinstance(each, type)]


def test_tree_in_the_docstring_is_the_tree_of_the_classes():
    drawn: dict[str, str | None] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([ │├└─]*)([A-Z]\w+)\((\w+)?\)|([ │├└─]*)([A-Z]\w+)  ", line):
            indent, name = len(match[1] or match[4] or ""), match[2] or match[5]
            path = [each for each in path if each[0] < indent]
            drawn[name] = path[-1][1] if path else None
            path.append((indent, name))

    real = {each.__name__: each.__bases__[0].__name__ for each in classes()}

    assert {name: parent for name, parent in drawn.items() if parent} == {
        name: parent for name, parent in real.items() if name != "InterphoneError"
    }


@pytest.mark.parametrize("name", SAMPLES)
def test_error_survives_pickling_and_copying_with_its_facts(name):
    error = SAMPLES[name]()

    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SAMPLES["AddressInUse"](), "/x: a live server is there (process 7)"),
        (MessageTooBig(size=2, limit=1), "a message of 2 bytes is over the limit of 1"),
        (RequestTimeout(0.5), "no answer within 0.5 s"),
        (SAMPLES["RequestTimeout"](), "no answer within 0.5 s; it was never sent"),
        (RemoteError("no", kind="KeyError"), "KeyError: no"),
        (RemoteError("", kind="KeyError"), "KeyError"),
        (ConnectionLost(), "the connection was lost"),
        (ConnectionLost("cut"), "the connection was lost: cut"),
        (ConnectionClosed(), "the connection was closed by this side"),
        (ConnectionClosed(0, by_peer=True), "the connection was closed by the peer: 0"),
        (Refused("no"), "the server refused the connection: no"),
    ],
    ids=str,
)
def test_error_is_one_sentence(error, text):
    assert str(error) == text


def test_every_error_says_whether_it_may_have_been_sent():
    assert {each.delivery for each in classes()} == {"not_sent", "maybe_sent"}
    assert errors.Overloaded.delivery == "not_sent"
    assert errors.RequestTimeout.delivery == "maybe_sent"
