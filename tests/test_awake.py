"""Staying awake: when it begins, when it ends, and that nobody does it for nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

from interphone import Client, Server, blocking
from interphone.awake import (
    BESIDE,
    ENOUGH,
    IN_VAIN,
    LONG_SPAN,
    PROVEN,
    QUICK,
    REST,
    SPAN,
    TAKEN,
    USED,
    Awake,
    Pace,
    awake_on,
    pace_of,
)
from support.ends import until

CAN_OFFER = pytest.mark.skipif(not hasattr(os, "sched_yield"), reason="no core can be offered here")
STEP = QUICK / 2  # seconds between two messages in quick succession


class Machine:
    """A clock that goes on when told to, and a core that can be offered."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.offers = 0
        self.gone = 1e-6  # seconds until an offered core comes back

    def clock(self) -> float:
        return self.now

    def offer(self) -> None:
        self.offers += 1
        self.now += self.gone

    def pace(self, *, eager: bool = False) -> Pace:
        return Pace(self.offer, eager=eager, clock=self.clock)


class Loop:
    """Only what is called soon."""

    def __init__(self) -> None:
        self.soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        self.soon.append((callback, args))

    def turn(self) -> bool:
        """Once round; whether there was anything to do."""
        soon, self.soon = self.soon, []
        for callback, args in soon:
            callback(*args)
        return bool(soon)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def quickly(machine: Machine, pace: Pace, times: int) -> None:
    for _ in range(times):
        machine.now += STEP
        pace.came()


def awakened(machine: Machine) -> Pace:
    pace = machine.pace()
    quickly(machine, pace, ENOUGH + 1)
    assert pace.pays
    return pace


# Pace


def test_it_pays_once_enough_came_quickly(machine: Machine) -> None:
    pace = machine.pace()

    quickly(machine, pace, ENOUGH)
    assert not pace.pays  # the first has no gap before it that is short
    quickly(machine, pace, 1)
    assert pace.pays


def test_one_message_a_millisecond_gains_nothing(machine: Machine) -> None:
    pace = machine.pace()

    for _ in range(1000):
        machine.now += 0.001
        pace.came()
        assert not pace.pays


def test_one_pause_and_it_begins_anew(machine: Machine) -> None:
    pace = awakened(machine)

    machine.now += 2 * QUICK
    pace.came()
    assert not pace.pays


def test_one_stays_awake_for_the_span(machine: Machine) -> None:
    pace = awakened(machine)
    end = pace.came()
    assert end == machine.now + SPAN

    turns = 0
    while pace.goes_on(end):
        turns += 1
    assert turns == machine.offers
    assert machine.now == pytest.approx(end, abs=2 * machine.gone)


def fail(machine: Machine, pace: Pace) -> None:
    """Stay awake for nothing."""
    end = pace.came()
    machine.now = end
    assert not pace.goes_on(end)


def test_in_vain_a_few_times_and_there_is_a_rest(machine: Machine) -> None:
    pace = awakened(machine)

    for _ in range(IN_VAIN):
        assert pace.pays
        fail(machine, pace)
    assert not pace.pays
    quickly(machine, pace, ENOUGH + 1)
    assert not pace.pays
    machine.now += REST[0]
    quickly(machine, pace, ENOUGH + 1)
    assert pace.pays


def answered(machine: Machine, pace: Pace, *, gone: float) -> None:
    """Offer the core, which comes back after so long, and then an answer."""
    machine.gone = gone
    pace.goes_on(machine.now + SPAN)
    machine.now += STEP
    pace.came()
    pace.paid()


def test_answers_from_this_very_core_bring_a_rest(machine: Machine) -> None:
    pace = awakened(machine)

    for _ in range(BESIDE - 1):
        answered(machine, pace, gone=2 * USED)
    assert pace.pays
    assert not pace.beside
    answered(machine, pace, gone=2 * USED)

    assert pace.beside
    assert not pace.pays
    assert not pace.goes_on(machine.now + SPAN)


def test_one_answer_from_another_core_and_it_counts_anew(machine: Machine) -> None:
    pace = awakened(machine)

    for _ in range(3):
        for _ in range(BESIDE - 1):
            answered(machine, pace, gone=2 * USED)
        answered(machine, pace, gone=USED / 2)

    assert pace.pays
    assert not pace.beside


def test_one_answer_from_another_core_and_the_other_end_is_there(machine: Machine) -> None:
    pace = awakened(machine)
    for _ in range(BESIDE):
        answered(machine, pace, gone=2 * USED)
    while not pace.pays:
        quickly(machine, pace, 1)

    assert pace.beside
    answered(machine, pace, gone=USED / 2)

    assert pace.pays
    assert not pace.beside


def test_what_is_computed_elsewhere_meanwhile_tells_where_the_other_end_is(
    machine: Machine,
) -> None:
    pace = awakened(machine)

    for _ in range(BESIDE):
        while not pace.pays:
            quickly(machine, pace, 1)
        machine.gone = 2 * TAKEN
        assert not pace.goes_on(machine.now + SPAN)
        quickly(machine, pace, 1)

    assert pace.beside


def test_eager_pace_does_not_mind_where_answers_come_from(machine: Machine) -> None:
    pace = machine.pace(eager=True)
    pace.came()

    for _ in range(2 * BESIDE):
        answered(machine, pace, gone=2 * USED)

    assert pace.pays


def test_rests_become_longer_until_it_has_paid_often(machine: Machine) -> None:
    pace = awakened(machine)

    def rest() -> float:
        """How long the next rest is."""
        machine.gone = 2 * TAKEN
        assert not pace.goes_on(pace.came())
        machine.gone, start = 1e-6, machine.now
        while not pace.pays:
            quickly(machine, pace, 1)
        return machine.now - start

    rests = [rest() for _ in range(10)]
    assert rests == sorted(rests)
    assert rests[:3] == pytest.approx([REST[0], 2 * REST[0], 4 * REST[0]], abs=(ENOUGH + 2) * STEP)
    assert rests[-1] == pytest.approx(REST[1], abs=(ENOUGH + 2) * STEP)
    for _ in range(PROVEN):
        pace.paid()
    assert rest() == pytest.approx(REST[0], abs=(ENOUGH + 2) * STEP)


def test_who_wants_the_core_gets_it(machine: Machine) -> None:
    pace = awakened(machine)
    end = pace.came()
    machine.gone = 2 * TAKEN

    assert not pace.goes_on(end)
    assert not pace.pays


def test_low_latency_costs_what_it_costs(machine: Machine) -> None:
    pace = machine.pace(eager=True)
    machine.gone = 2 * TAKEN

    for _ in range(3 * IN_VAIN):
        machine.now += 1.0
        end = pace.came()
        assert end == machine.now + LONG_SPAN
        assert pace.pays
        while pace.goes_on(end):
            pass


# In a thread


def test_thread_that_stays_awake_finds_what_comes(machine: Machine) -> None:
    pace = awakened(machine)
    looks = iter([False, False, True])

    assert pace.stay(lambda: next(looks))
    assert machine.offers == 2


def test_thread_falls_asleep_after_the_span(machine: Machine) -> None:
    pace = awakened(machine)
    start = machine.now

    assert not pace.stay(lambda: False)
    assert SPAN <= machine.now - start < SPAN + 2 * machine.gone


def test_thread_does_not_even_look_where_it_does_not_pay(machine: Machine) -> None:
    assert not machine.pace().stay(lambda: pytest.fail("looked"))


# On a loop


def test_loop_turns_until_nothing_has_come_for_the_span(machine: Machine) -> None:
    awake, loop = Awake(awakened(machine)), Loop()

    awake.came(loop)  # type: ignore[arg-type]  # all that it uses of one
    begun = machine.now
    loop.turn()
    awake.came(loop)  # type: ignore[arg-type]
    assert len(loop.soon) == 1  # it turns once, whoever tells it
    while loop.turn():
        assert machine.now < begun + 3 * SPAN
    assert not awake.turning
    assert machine.now - begun > SPAN


def test_loop_does_not_turn_for_a_single_message(machine: Machine) -> None:
    awake, loop = Awake(machine.pace()), Loop()

    awake.came(loop)  # type: ignore[arg-type]
    assert not loop.soon


def test_an_interrupted_turn_is_the_last_until_something_comes(machine: Machine) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    pace = Pace(interrupt, eager=True, clock=machine.clock)
    awake, loop = Awake(pace), Loop()
    awake.came(loop)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        loop.turn()
    assert not awake.turning
    awake.came(loop)  # type: ignore[arg-type]
    assert awake.turning
    assert loop.soon


# For real


@CAN_OFFER
def test_idle_is_never_awake_and_others_share_what_they_want() -> None:
    loop = asyncio.new_event_loop()
    try:
        assert awake_on(loop, "idle") is None
        assert awake_on(loop, "low") is awake_on(loop, "low") is not awake_on(loop, "balanced")
        assert pace_of("idle") is None
    finally:
        loop.close()


def test_where_no_core_can_be_offered_nobody_stays_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_yield", raising=False)

    assert pace_of("low") is None


@pytest.mark.parametrize("of", [Server, Client, blocking.Server, blocking.Client])
def test_unknown_latency_is_refused(of: Any) -> None:
    with pytest.raises(ValueError, match="latency is 'balanced', 'low' or 'idle', not 'fast'"):
        of("name", latency="fast")


@CAN_OFFER
@pytest.mark.parametrize("latency", ["low", "balanced", "idle"])
def test_messages_keep_both_ends_awake_as_long_as_they_come(run, address, latency, monkeypatch):
    offers = []
    monkeypatch.setattr(os, "sched_yield", lambda: offers.append(1))

    async def main() -> None:
        server = Server(address, latency=latency)
        server.on_request(on="inline")(lambda peer, data: data)
        async with server, Client(server.address, latency=latency) as client:
            assert [await client.request(number) for number in range(50)] == [*range(50)]
            awake = awake_on(asyncio.get_running_loop(), latency)
            assert (awake is None) == (latency == "idle")
            await until(lambda: awake is None or not awake.turning)  # it ends by itself

    run(main())
    if latency != "balanced":  # which depends on how quick this machine is
        assert bool(offers) == (latency == "low")


@CAN_OFFER
@pytest.mark.parametrize("latency", ["low", "balanced", "idle"])
def test_blocking_client_is_answered_awake_or_not(address, latency):
    with blocking.Server(address, latency=latency) as server:
        server.on_request(lambda peer, data: data)
        with blocking.Client(server.address, latency=latency) as client:
            assert [client.request(number) for number in range(50)] == [*range(50)]
