from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone.protocol.allowance import Account, Allowance


@pytest.mark.parametrize(
    ("items", "size", "may"), [(1, 1, True), (0, 1, False), (1, 0, False), (1, -5, False)]
)
def test_something_of_each_must_be_left(items: int, size: int, may: bool) -> None:
    assert bool(Allowance(items, size)) is may


def test_bytes_may_be_overdrawn_by_one_publication() -> None:
    allowance = Allowance(3, 10)

    allowance.spend(1000)

    assert (allowance.items, allowance.size) == (2, -990)
    assert not allowance
    allowance.grant(1, 991)
    assert allowance


def test_a_half_is_given_back_at_a_time() -> None:
    account = Account(4, 100)
    account.begin(0, 0)

    assert [account.take(1), account.take(2)] == [None, (2, 3)]
    assert account.take(50) == (1, 50)


def test_queue_of_one_is_given_back_at_once() -> None:
    account = Account(1, 100)
    account.begin(0, 0)

    assert account.take(0) == (1, 0)


@pytest.mark.parametrize(
    ("queued", "size", "begins"), [(0, 0, (4, 100)), (3, 40, (1, 60)), (5, 140, (0, 0))]
)
def test_what_is_still_queued_is_not_granted_again(
    queued: int, size: int, begins: tuple[int, int]
) -> None:
    assert Account(4, 100).begin(queued, size) == begins


step = st.one_of(st.integers(0, 60).map(lambda size: ("send", size)), st.just(("read", 0)))


@given(st.integers(1, 9), st.integers(1, 99), st.lists(step), st.lists(st.integers(0, 60)))
def test_credit_is_never_exceeded_and_never_lost(
    items: int, size: int, steps: list[tuple[str, int]], old: list[int]
) -> None:
    account = Account(items, size)
    queue = old[:items]
    allowance = Allowance(*account.begin(len(queue), sum(queue)))

    def read() -> None:
        granted = account.take(queue.pop(0))
        if granted is not None:
            allowance.grant(*granted)

    for what, length in steps:
        if what == "send" and allowance:
            allowance.spend(length)
            queue.append(length)
        elif what == "read" and queue:
            read()
        assert len(queue) <= items
        assert allowance.items >= 0
        assert sum(queue[:-1]) <= size or sum(old[:items]) > size
    while queue:
        read()

    assert allowance, "everything has been read, and nothing may be sent"
