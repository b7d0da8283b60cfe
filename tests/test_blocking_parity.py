"""The async and the blocking API have the same names and parameters."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import interphone
from interphone import blocking

CLASSES = ["Call", "Client", "Outcome", "Peer", "Server", "Stream", "Subscription"]

RENAMED = {"aclose": "close"}  # a plain object is closed by `close`

# What servers, clients and streams of the async API show to each other, and not to users.
INTERNAL = {
    "Client": {"adopt", "ended_by", "share"},
    "Peer": {"ask", "call_named", "close_besides", "open_stream", "ready_to_send", "send_later"},
    "Stream": {"done", "more", "put", "set_exception", "set_result"},
    "Subscription": {"end", "full", "miss", "notify", "put", "put_gap", "room", "took", "unread"},
}
OWN = {"Client": {"abandon"}, "Server": {"abandon"}}

CONSTRUCTED = {"Client", "Server"}  # by users


def pair(name: str) -> tuple[Any, Any]:
    return getattr(interphone, name), getattr(blocking, name)


def members(of: type, internal: set[str]) -> set[str]:
    names = {name for name in vars(of) if not name.startswith("_")} - internal
    return {RENAMED.get(name, name) for name in names}


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """Names, kinds and defaults; of overloads those of the implementation."""
    return [
        (each.name, each.kind, repr(each.default))
        for each in inspect.signature(function).parameters.values()
    ]


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_name_is_there(name):
    ours, theirs = pair(name)

    missing = members(ours, INTERNAL.get(name, set())) - members(theirs, set())

    assert not missing


@pytest.mark.parametrize("name", CLASSES)
def test_every_method_has_the_same_parameters(name):
    ours, theirs = pair(name)
    for member in sorted(members(ours, INTERNAL.get(name, set()))):
        original = next(key for key in vars(ours) if RENAMED.get(key, key) == member)
        mine = vars(ours)[original]
        if inspect.isfunction(mine):
            assert parameters(mine) == parameters(vars(theirs)[member]), member


@pytest.mark.parametrize("name", sorted(CONSTRUCTED))
def test_they_are_made_with_the_same_parameters(name):
    ours, theirs = pair(name)

    assert parameters(ours.__init__) == parameters(theirs.__init__)


@pytest.mark.parametrize("name", sorted(CONSTRUCTED))
def test_they_have_the_same_attributes(name, address):
    ours, theirs = (end(address) for end in pair(name))

    missing = [key for key in vars(ours) if not key.startswith("_") and not hasattr(theirs, key)]

    assert not missing


def test_calls_with_a_timeout_have_the_same_parameters():
    from interphone.asking import Within
    from interphone.blocking.within import Within as BlockingWithin

    for method in ("call", "stream"):
        assert parameters(getattr(Within, method)) == parameters(getattr(BlockingWithin, method))


def test_nothing_of_the_blocking_api_waits_for_a_loop():
    for name in CLASSES:
        for key, member in vars(getattr(blocking, name)).items():
            if key not in OWN.get(name, set()):
                assert not inspect.iscoroutinefunction(member), f"{name}.{key}"
