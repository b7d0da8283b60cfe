from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone.errors import Overloaded
from interphone.protocol.credit import Guests
from interphone.protocol.messages import PONG, RESPONSE
from interphone.protocol.questions import RESOLUTION, Questions


def new_questions(max_pending: int = 10) -> Questions:
    return Questions(max_pending, lambda: None)


def numbered() -> Questions:
    """Between native ends, whose nonces are numbers."""
    questions = new_questions()
    questions.kind = int
    return questions


def after(questions: Questions, nonce: object) -> list[bytes]:
    """What may be sent after an answer, whoever it was for."""
    questions.settle(nonce, RESPONSE)
    return [*questions.released()]


# Answers


def test_answer_finds_its_request_once() -> None:
    questions = new_questions()
    nonce = questions.ask("token", 0.0, 5.0, RESPONSE)

    settled = questions.settle(nonce, RESPONSE)

    assert settled is not None
    assert settled.token == "token"
    assert questions.settle(nonce, RESPONSE) is None


def test_nonces_are_never_used_twice() -> None:
    questions = new_questions()
    nonces = set()

    for _ in range(100):
        nonce = questions.ask(None, 0.0, None, RESPONSE)
        nonces.add(nonce)
        questions.settle(nonce, RESPONSE)

    assert len(nonces) == 100


@pytest.mark.parametrize("nonce", ["2", "", "toString", None, 1, 1.0, True, ["1"], {"1": 1}])
def test_answer_to_nobody_settles_nothing(nonce: object) -> None:
    questions = new_questions()
    assert questions.ask("token", 0.0, None, RESPONSE) == "1"

    assert questions.settle(nonce, RESPONSE) is None
    assert len(questions.pending) == 1


def test_answer_of_another_kind_settles_nothing() -> None:
    questions = new_questions()
    nonce = questions.ask("token", 0.0, None, PONG)

    assert questions.settle(nonce, RESPONSE) is None
    assert questions.settle(nonce, PONG) is not None


def test_requests_over_the_limit_are_refused() -> None:
    questions = new_questions(2)
    first = questions.ask(1, 0.0, None, RESPONSE)
    questions.ask(2, 0.0, None, RESPONSE)

    with pytest.raises(Overloaded, match="2 requests") as caught:
        questions.ask(3, 0.0, None, RESPONSE)
    assert caught.value.delivery == "not_sent"

    questions.settle(first, RESPONSE)
    questions.ask(3, 0.0, None, RESPONSE)


# Deadlines


def test_the_soonest_deadline_is_due_and_said_when_it_becomes_sooner() -> None:
    said: list[float | None] = []
    questions = Questions(10, lambda: said.append(questions.due))

    for timeout in (None, 5.0, 7.0, 3.0, 3.0):
        questions.ask("token", 100.0, timeout, RESPONSE)

    assert said == [105.0, 103.0]


def test_what_is_overdue_is_found_and_the_next_look_is_later() -> None:
    questions = new_questions()
    nonces = [questions.ask("token", 0.0, timeout, RESPONSE) for timeout in (1, 1.001, None, 9)]

    assert questions.overdue(1.0) == nonces[:1]
    del questions.pending[nonces[0]]
    assert questions.due == 1.0 + RESOLUTION
    assert questions.overdue(2.0) == nonces[1:2]
    del questions.pending[nonces[1]]
    assert questions.due == 9.0
    assert questions.overdue(9.5) == nonces[3:]
    assert questions.due is None


def test_cleared_questions_wait_for_nothing() -> None:
    questions = new_questions()
    nonce = questions.ask("token", 0.0, 1.0, RESPONSE)

    assert [*questions.clear()] == [nonce]
    assert (questions.pending, questions.due) == ({}, None)


# Credit


def test_everything_may_go_that_nobody_restricts() -> None:
    questions = numbered()

    assert all(questions.may_go(nonce, b"x" * 1000) for nonce in range(1000))
    assert after(questions, 5) == []
    assert questions.under_way == 0


def test_what_there_is_no_room_for_is_held_in_order() -> None:
    questions = numbered()
    questions.restrict(2, 100)

    entered = [questions.may_go(nonce, bytes([nonce])) for nonce in range(5)]

    assert entered == [True, True, False, False, False]
    assert questions.withdraw(3)
    assert not questions.withdraw(3)
    assert not questions.withdraw(0)
    assert after(questions, "nobody") == []
    assert after(questions, 1) == [b"\x02"]
    assert after(questions, 0) == [b"\x04"]
    assert (questions.under_way, questions.held) == (2, {})


def test_bytes_are_counted_and_one_may_always_go() -> None:
    questions = numbered()
    questions.restrict(10, 100)

    assert questions.may_go(1, bytes(1000))
    assert not questions.may_go(2, b"")
    assert not questions.may_go(3, bytes(60))
    assert not questions.may_go(4, bytes(60))
    assert [len(body) for body in after(questions, 1)] == [0, 60]
    assert [len(body) for body in after(questions, 2)] == []
    assert [len(body) for body in after(questions, 3)] == [60]


@given(
    st.integers(1, 5), st.integers(1, 200), st.lists(st.integers(0, 150), max_size=40), st.data()
)
def test_what_may_go_is_welcome(
    room: int, max_bytes: int, bodies: list[int], data: st.DataObject
) -> None:
    questions, guests = numbered(), Guests(room, max_bytes)
    questions.restrict(room, max_bytes)
    inside: list[int] = []
    came: list[int] = []

    def come(body: bytes) -> None:
        nonce = int.from_bytes(body[:2])
        guests.come(nonce, len(body))
        inside.append(nonce)
        came.append(nonce)

    for nonce, size in enumerate(bodies):
        body = nonce.to_bytes(2) + bytes(size)
        if questions.may_go(nonce, body):
            come(body)
        while inside and data.draw(st.booleans()):
            done = inside.pop(data.draw(st.integers(0, len(inside) - 1)))
            guests.leave(done)
            for freed in after(questions, done):
                come(freed)
        assert len(guests) == questions.under_way == len(inside) <= room
    while inside:
        guests.leave(inside[0])
        for freed in after(questions, inside.pop(0)):
            come(freed)

    assert came == [*range(len(bodies))]
