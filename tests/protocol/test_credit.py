"""Credit: what may be under way, and what happens to who sends more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone.errors import RemoteProtocolError
from interphone.protocol.credit import MAX_WINDOW, UNIT, Credit, Guests, Turnstile

sizes = st.integers(0, 40 * UNIT)


@pytest.mark.parametrize(
    ("window", "size", "cost"),
    [
        (256, 0, 1),
        (256, UNIT - 1, 1),
        (256, UNIT, 2),
        (256, 10 * UNIT, 11),
        (256, 1000 * UNIT, 128),
        (1, 1000 * UNIT, 1),
        (2, 1000 * UNIT, 1),
        (3, 1000 * UNIT, 2),
    ],
)
def test_item_costs_a_unit_and_one_more_for_every_kibibyte(window, size, cost):
    assert Credit(window).cost(size) == cost


@given(st.integers(1, 40), st.lists(st.tuples(sizes, st.booleans()), max_size=60))
def test_both_books_agree_and_nothing_is_stuck(window, steps):
    sender, receiver = Credit(window), Credit(window)
    away: list[int] = []

    for size, take in steps:
        if take and away:
            taken = away.pop(0)
            if units := receiver.take(taken):
                sender.grant(units)
        elif sender.covers(size):
            sender.spend(size)
            receiver.spend(size)
            away.append(size)
        assert 0 <= sender.left <= window
        assert sender.left == receiver.left
        assert sum(map(receiver.cost, away)) <= window

    for size in away:
        if units := receiver.take(size):
            sender.grant(units)
    assert sender.covers(10**9), "whatever comes next must be possible now"


def test_item_without_credit_breaks_the_protocol():
    credit = Credit(2)
    credit.spend(0)
    credit.spend(0)
    with pytest.raises(RemoteProtocolError, match="without credit"):
        credit.spend(0)
    with pytest.raises(RemoteProtocolError, match="without credit"):
        Credit().spend(0)


@pytest.mark.parametrize("units", [0, -1, True, 1.0, None, "1", MAX_WINDOW + 1, 2**70])
def test_credit_that_is_none_is_refused(units):
    with pytest.raises(RemoteProtocolError, match="no credit"):
        Credit().grant(units)


def test_more_credit_than_was_used_is_refused():
    credit = Credit(4)
    credit.spend(0)
    credit.grant(1)
    with pytest.raises(RemoteProtocolError, match="more than were used"):
        credit.grant(1)


# Requests


def test_turnstile_lets_everything_through_that_nobody_restricts():
    turnstile = Turnstile()

    assert all(turnstile.enter(nonce, b"x" * 1000) for nonce in range(1000))
    assert [*turnstile.leave(5)] == []
    assert len(turnstile) == 0


def test_turnstile_holds_what_there_is_no_room_for_in_order():
    turnstile = Turnstile()
    turnstile.restrict(2, 100)

    entered = [turnstile.enter(nonce, bytes([nonce])) for nonce in range(5)]

    assert entered == [True, True, False, False, False]
    assert turnstile.withdraw(3)
    assert not turnstile.withdraw(3)
    assert not turnstile.withdraw(0)
    assert [*turnstile.leave("nobody")] == []
    assert [*turnstile.leave(1)] == [b"\x02"]
    assert [*turnstile.leave(0)] == [b"\x04"]
    assert (len(turnstile), turnstile.held) == (2, {})


def test_turnstile_counts_bytes_and_always_lets_one_through():
    turnstile = Turnstile()
    turnstile.restrict(10, 100)

    assert turnstile.enter(1, bytes(1000))
    assert not turnstile.enter(2, b"")
    assert not turnstile.enter(3, bytes(60))
    assert not turnstile.enter(4, bytes(60))
    assert [len(body) for body in turnstile.leave(1)] == [0, 60]
    assert [len(body) for body in turnstile.leave(2)] == []
    assert [len(body) for body in turnstile.leave(3)] == [60]


@given(
    st.integers(1, 5), st.integers(1, 200), st.lists(st.integers(0, 150), max_size=40), st.data()
)
def test_what_the_turnstile_lets_through_is_welcome(room, max_bytes, bodies, data):
    turnstile, guests = Turnstile(), Guests(room, max_bytes)
    turnstile.restrict(room, max_bytes)
    inside: list[int] = []
    came: list[int] = []

    def come(body: bytes) -> None:
        nonce = int.from_bytes(body[:2])
        guests.come(nonce, len(body))
        inside.append(nonce)
        came.append(nonce)

    for nonce, size in enumerate(bodies):
        body = nonce.to_bytes(2) + bytes(size)
        if turnstile.enter(nonce, body):
            come(body)
        while inside and data.draw(st.booleans()):
            done = inside.pop(data.draw(st.integers(0, len(inside) - 1)))
            guests.leave(done)
            for freed in turnstile.leave(done):
                come(freed)
        assert len(guests) == len(turnstile) == len(inside) <= room
    while inside:
        guests.leave(inside[0])
        for freed in turnstile.leave(inside.pop(0)):
            come(freed)

    assert came == [*range(len(bodies))]


def test_request_without_credit_breaks_the_protocol():
    guests = Guests(2, 100)
    guests.come(1, 1000)
    with pytest.raises(RemoteProtocolError, match="without credit"):
        guests.come(2, 1)
    guests.leave(1)
    guests.leave("nobody")
    guests.come(1, 50)
    guests.come(2, 50)
    with pytest.raises(RemoteProtocolError, match="without credit"):
        guests.come(3, 0)
    with pytest.raises(RemoteProtocolError, match="same nonce"):
        guests.come(2, 0)
