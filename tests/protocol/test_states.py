from __future__ import annotations

from typing import Any

import pytest

from interphone.protocol.messages import (
    CONNECTION,
    END,
    MESSAGE,
    PING,
    PONG,
    REQUEST,
    RESPONSE,
)
from interphone.protocol.states import LEGAL, State
from support.sessions import LoneSession

KINDS = [CONNECTION, MESSAGE, REQUEST, RESPONSE, PING, PONG, END]
IDENTITY = {"version": 1, "dialects": ["classic"]}


def in_state(state: State, role: Any, *, interphone: bool) -> LoneSession:
    lone = LoneSession(role)
    if state is State.OPENING:
        if role == "server":
            lone.feed(b"IPC")
        else:
            lone.session.open()
        return lone
    if interphone:
        lone.open_to_interphone()
    else:
        lone.open()
    if state is State.DRAINING:
        lone.session.drain("bye", lone.seen.reactions)
    elif state is State.CLOSING:
        lone.session.say_goodbye("bye")
    elif state is State.CLOSED:
        lone.lose()
    assert lone.session.state is state
    return lone


def packet(kind: int, *, interphone: bool) -> dict[str, Any]:
    d: Any = {"m": "why", "a": False} if kind == END else {"id": "x"}
    if kind == CONNECTION and interphone:
        d["interphone"] = IDENTITY
    return {"t": kind, "d": d, "n": "1"}


@pytest.mark.parametrize("interphone", [True, False], ids=["interphone", "node"])
@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("kind", KINDS)
def test_packet_is_taken_where_it_is_legal_only(
    kind: int, state: State, role: Any, interphone: bool
) -> None:
    lone = in_state(state, role, interphone=interphone)

    told = lone.feed(packet(kind, interphone=interphone))

    counts = lone.session.counts
    if kind in LEGAL[state]:
        assert counts.illegal == 0
        assert told or lone.session.queued or counts.late
    else:
        assert counts.illegal == (state is not State.CLOSED)  # then nothing is read at all
        assert [event[0] for event in told] == ["violated"] * (state is State.OPENING)
    assert lone.session.state is state_after(kind, state, role)


def state_after(kind: int, state: State, role: str) -> State:
    if kind == END and END in LEGAL[state]:
        return State.CLOSED
    if state is not State.OPENING:
        return state
    if kind != CONNECTION:
        return State.CLOSED
    return State.OPEN if role == "client" else State.OPENING  # until it is accepted


def test_every_state_has_its_rules() -> None:
    assert LEGAL.keys() == set(State)


def test_nothing_is_legal_at_the_end() -> None:
    assert not LEGAL[State.CLOSED]
    assert LEGAL[State.CLOSING] == {END}


def test_handshake_is_legal_at_the_beginning_only() -> None:
    assert [state for state in State if CONNECTION in LEGAL[state]] == [State.OPENING]
