"""Credit: what may be under way, and what happens to who sends more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone.errors import RemoteProtocolError
from interphone.protocol.credit import MAX_WINDOW, UNIT, Credit, Guests

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
