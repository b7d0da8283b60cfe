"""What is merely there does not make dearer what is done beside it: counted, not timed.

Calls of Python and C functions are counted with few of something there, and with many; each step
of a generator is one. `benchmarks/bench_growth.py` measures the same, and more of it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone import Client, Limits, MemoryAddress, Peer, Server
from interphone.protocol.messages import RESPONSE
from interphone.protocol.payload import Json
from interphone.protocol.questions import MANY, Questions
from interphone.protocol.retained import Retained
from interphone.protocol.topics import matcher
from interphone.subscription import Subscriptions

FEW, MANY_MORE = 20, 400
NUMBERS = Limits(max_inflight=10_000)

one_loop = pytest.mark.parametrize("run", ["asyncio"], indirect=True)


class Counting:
    """Counts calls while it is entered."""

    def __init__(self) -> None:
        self.calls = 0

    def __enter__(self) -> Counting:
        self._before = sys.getprofile()
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _seen(self, frame: object, event: str, arg: object) -> None:
        self.calls += event in ("call", "c_call")


# Deadlines and credit


def looks(count: int) -> int:
    """How many questions are looked at while a hundred of so many become overdue, one by one."""
    questions = Questions(count + 100, lambda: None)
    for _ in range(count):
        questions.ask("token", 0.0, 1000.0, RESPONSE)
    for number in range(100):
        questions.ask("token", 0.0, 1.0 + number / 1000, RESPONSE)
    seen = 0

    class Watched(dict[Any, Any]):
        def items(self) -> Any:
            nonlocal seen
            seen += len(self)
            return super().items()

    questions.pending = Watched(questions.pending)
    while questions.due is not None and questions.due < 2.0:
        for nonce in questions.overdue(questions.due):
            del questions.pending[nonce]
    assert len(questions.pending) == count
    return seen


def test_overdue_questions_are_found_without_looking_at_all_the_others() -> None:
    assert looks(10 * MANY) <= 3 * 11 * MANY


@given(
    st.lists(st.floats(0.001, 2.0), max_size=60),
    st.lists(st.floats(0.001, 0.4), max_size=60),
    st.sets(st.integers(1, 60)),
)
def test_deadlines_of_many_are_kept_as_those_of_few(
    first: list[float], later: list[float], answered: set[int]
) -> None:
    found = []
    for others in (0, MANY + 1):
        questions = Questions(10_000, lambda: None)
        questions.kind = int
        deadlines: dict[Any, float] = {}
        overdue: dict[Any, float] = {}

        def ask(now: float, timeout: float, into: Any = deadlines, q: Any = questions) -> None:
            into[q.ask("token", now, timeout, RESPONSE)] = now + timeout

        for timeout in first:
            ask(0.0, timeout)
        for _ in range(others):
            questions.ask("token", 0.0, None, RESPONSE)
        now = 0.0
        for timeout in [*later, None, None, None, None]:
            now += 0.01 if timeout else 1.0
            while questions.due is not None and questions.due <= now:
                at = questions.due
                for nonce in questions.overdue(at):
                    del questions.pending[nonce]
                    overdue[nonce] = at
            if timeout:
                ask(now, timeout)
            if len(deadlines) in answered:
                questions.settle(max(deadlines), RESPONSE)
        for nonce, at in overdue.items():
            assert deadlines[nonce] <= at <= deadlines[nonce] + 0.0051
        assert len(questions.pending) == others
        found.append(len(overdue))


def test_what_is_held_leaves_from_the_front_at_no_cost() -> None:
    questions = Questions(10, lambda: None)
    questions.restrict(1, 100)

    assert questions.may_go("1", b"")
    assert not questions.may_go("2", b"")

    assert isinstance(questions.held, OrderedDict)  # a dict passes over what has left, each time


# Topics


def test_a_publication_costs_the_same_whatever_else_its_subscription_wants() -> None:
    def cost(count: int) -> int:
        local = Subscriptions()
        topics = tuple(f"a.{number}.*" for number in range(count))
        subscription: Any = _Wanting(topics)
        local.add(subscription)
        assert local.wants(subscription, "a.7.x")  # what is worked out once
        with Counting() as counting:
            assert local.wants(subscription, "a.7.x")
            assert not local.wants(subscription, "b")
        return counting.calls

    assert cost(MANY_MORE) == cost(FEW)


class _Wanting:
    """All that is asked of a subscription."""

    def __init__(self, topics: tuple[str, ...]) -> None:
        self.topics = topics


def test_what_a_subscription_wants_follows_its_changes() -> None:
    local = Subscriptions()
    subscription: Any = _Wanting(("a.*", "b.*"))
    local.add(subscription)
    assert local.wants(subscription, "a.x")

    local.remove(subscription, ["a.*"])

    assert not local.wants(subscription, "a.x")
    assert local.wants(subscription, "b.x")


def test_last_values_are_found_without_looking_at_all_of_them() -> None:
    def cost(count: int) -> int:
        retained = Retained(count, 10**6)
        for number in range(count):
            retained.keep(f"a.{number}.x", msgspec.Raw(b"1"), Json())
        with Counting() as counting:
            assert [kept.topic for kept in retained.matching(["a.7.*"])] == ["a.7.x"]
        return counting.calls

    assert cost(MANY_MORE) == cost(FEW)


levels = st.sampled_from(["a", "b", "*", "c"])
names = st.lists(levels, min_size=1, max_size=4).map(".".join)
patterns = st.builds(
    ".".join,
    st.builds(lambda some, end: [*some, *end], st.lists(levels, max_size=3), st.just([">"])),
)


@given(st.lists(names, max_size=12), st.lists(names, max_size=6), st.lists(names | patterns))
def test_last_values_are_those_that_match(
    kept: list[str], forgotten: list[str], wanted: list[str]
) -> None:
    retained = Retained(100, 10**6)
    for topic in kept:
        retained.keep(topic, msgspec.Raw(b"1"), Json())
    for topic in forgotten:
        retained.forget(topic)

    matches = matcher(wanted)
    left = [topic for topic in dict.fromkeys(reversed(kept)) if topic not in forgotten][::-1]
    assert [each.topic for each in retained.matching(wanted)] == [*filter(matches, left)]


# Server and client


async def subscribed(there: int) -> int:
    """What a subscription costs, with its end, beside so many of the same client."""
    place = MemoryAddress()
    async with Server(place), Client(place) as client, AsyncExitStack() as stack:
        for number in range(there):
            await stack.enter_async_context(client.subscribe(f"own.{number}"))
        with Counting() as counting:
            async with client.subscribe("more"):
                pass
    return counting.calls


@one_loop
def test_a_subscription_costs_the_same_beside_many_of_its_client(run: Callable[..., Any]) -> None:
    few = run(subscribed(FEW))

    assert run(subscribed(MANY_MORE)) <= few + 20


async def taken_back(count: int) -> int:
    """How many requests being answered are looked at while so many are cancelled."""
    place = MemoryAddress()
    server = Server(place, limits=NUMBERS)

    @server.method
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    async with server, Client(place) as client:
        asked = [asyncio.ensure_future(client.call("wait", timeout=None)) for _ in range(count)]
        await asyncio.sleep(0)
        await client.ping()
        (peer,) = server.peers.values()
        answers = peer.inbox._answers
        assert len(answers) == count
        looked = 0

        class Watched(dict[Any, Any]):
            def items(self) -> Any:
                nonlocal looked
                looked += len(self)
                return super().items()

        peer.inbox._answers = Watched(answers)
        for one in asked:
            one.cancel()
        await asyncio.wait(asked)
        await client.ping()
        assert not peer.inbox._answers
        return looked


@one_loop
def test_a_cancelled_request_is_found_without_looking_at_all(run: Callable[..., Any]) -> None:
    assert run(taken_back(FEW)) == 0


@one_loop
def test_a_server_closes_without_comparing_its_peers(run: Callable[..., Any]) -> None:
    compared = 0

    def equal(self: Peer, other: object) -> bool:
        nonlocal compared
        compared += 1
        return self is other

    async def close() -> None:
        place = MemoryAddress()
        async with Server(place) as server, AsyncExitStack() as stack:
            for _ in range(FEW):
                await stack.enter_async_context(Client(place, backoff=None))
            await server.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Peer, "__eq__", equal, raising=False)
        patch.setattr(Peer, "__hash__", object.__hash__, raising=False)
        run(close())
    assert compared < FEW


@one_loop
def test_an_id_is_not_compared_with_those_of_all_that_are_decided_about(
    run: Callable[..., Any],
) -> None:
    async def main() -> int:
        place, came, decided = MemoryAddress(), asyncio.Barrier(FEW + 1), asyncio.Event()
        server = Server(place)

        @server.authorize
        async def decide(peer: Peer, payload: Any) -> None:
            await came.wait()
            await decided.wait()

        async with server, AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            for _ in range(FEW):
                client = Client(place)
                stack.push_async_callback(client.close)
                group.create_task(client.connect())
            await came.wait()
            assert len(server._admission._deciding) == FEW
            with Counting() as counting:
                assert not server._admission._taken("nobody")
            decided.set()
        assert not server._admission._wanted
        return counting.calls

    assert run(main()) < FEW
