"""A message may not become more expensive unseen: calls and system calls, counted, not timed.

`tests/cost.json` has what each kind of message cost when it was last recorded, for each version of
Python. Whoever means a change records it: `make cost`.
"""

from __future__ import annotations

import shutil
import sys

import pytest

from support import cost
from support.lacking import lacking

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="recorded on Linux")

TOLERANCE = 1.10
SLACK = 0.05  # for what is far from one: memory that the allocator maps now and then

every_work = pytest.mark.parametrize("name", cost.WORK)


@pytest.fixture
def recorded(name: str) -> dict[str, float]:
    known = cost.recorded()
    if cost.VERSION not in known:
        pytest.skip(f"nothing recorded for Python {cost.VERSION}")
    return known[cost.VERSION][name]


@every_work
def test_a_message_takes_no_more_calls_than_recorded(name: str, recorded: dict[str, float]) -> None:
    counted = cost.count(name)

    assert not complaints(name, counted, recorded)


@every_work
def test_a_message_takes_no_more_system_calls_than_recorded(
    name: str, recorded: dict[str, float]
) -> None:
    if not shutil.which("strace"):
        lacking("no strace here: `make setup` gets it")
    if not cost.strace_works():
        pytest.skip("strace may not trace here, as in some containers: only `io` is counted")

    counted = {"system_calls": cost.count_system_calls(name)}

    assert not complaints(name, counted, recorded)


def test_more_than_a_tenth_more_is_a_complaint() -> None:
    recorded = {"calls": 200.0, "io": 0.1}

    assert not complaints("send", {"calls": 219.0, "io": 0.14}, recorded)
    assert complaints("send", {"calls": 221.0, "io": 0.1}, recorded)
    assert complaints("send", {"calls": 200.0, "io": 0.2}, recorded)
    assert not complaints("send", {"calls": 100.0, "io": 0.0}, recorded)


def test_a_call_more_in_every_message_is_counted() -> None:
    once = cost.count("request")["calls"]

    more = cost.count("request", extra=5)["calls"]

    assert more == pytest.approx(once + 5, abs=0.1)


def complaints(name: str, counted: dict[str, float], recorded: dict[str, float]) -> list[str]:
    """What costs over a tenth more than recorded, each with what to do about it."""
    return [
        f"{cost.WORK[name][0]} takes {now} {what}, and took {recorded[what]} when recorded "
        f"(Python {cost.VERSION}). If that is meant, run `make cost`, and commit tests/cost.json "
        "with the reason"
        for what, now in counted.items()
        if now > recorded[what] * TOLERANCE + SLACK
    ]
