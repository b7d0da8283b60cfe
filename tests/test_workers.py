"""Workers: a bounded pool of threads that serve to the end of the program."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from weakref import WeakSet

import pytest

from interphone import workers as workers_module
from interphone.workers import Workers
from support.threads import WAIT, Gate

NAME = "interphone test"


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(NAME, limit=2)
    yield workers
    workers.stop()
    for thread in threads():
        thread.join(WAIT)
        assert not thread.is_alive()


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the end of a program."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_there_are_no_more_threads_than_needed_and_allowed(run, workers):
    began = threading.Barrier(3, timeout=WAIT)
    gate = Gate()

    def work() -> str:
        began.wait()
        gate.wait()
        return threading.current_thread().name

    async def main() -> None:
        assert threads() == []
        assert await workers.run(int, "7") == 7
        assert len(threads()) == 1
        asked = [asyncio.create_task(workers.run(work)) for _ in range(2)]
        third = asyncio.create_task(workers.run(int, "8"))
        await asyncio.to_thread(began.wait)
        assert len(threads()) == 2
        assert not third.done()
        gate.open()
        assert await asyncio.gather(*asked, third) == [NAME, NAME, 8]

    run(main())
    assert all(thread.daemon for thread in threads())


class Preempted:
    """Traces threads: stops the first before one of its lines, others until it is let on."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.lines: list[tuple[str, int]] = []
        self.stopped, self.first_may_go, self.others_may_go = Gate(), Gate(), Gate()
        self._stop_at = stop_at
        self._first: int | None = None

    def __call__(self, frame: FrameType, event: str, _: object) -> Preempted | None:
        if frame.f_code.co_filename != workers_module.__file__:
            return None
        self._first = self._first or threading.get_ident()
        if self._first != threading.get_ident():
            self.others_may_go.wait()
            return None
        if event == "line" and frame.f_code.co_name != "done":  # where it holds a lock
            if len(self.lines) == self._stop_at:
                self.stopped.open()
                self.first_may_go.wait()
            self.lines.append((frame.f_code.co_name, frame.f_lineno))
        return self

    @contextmanager
    def tracing(self) -> Iterator[None]:
        before = threading.gettrace()
        threading.settrace(self)
        try:
            yield
        finally:
            threading.settrace(before)  # type: ignore[arg-type]  None is allowed


@pytest.mark.skipif(
    not workers_module.__file__.endswith(".py"), reason="what is compiled has no lines"
)
def test_a_busy_thread_never_counts_as_idle(run):
    """Wherever it is preempted: else the last of those that wait for each other never begins."""

    async def seen() -> int:
        preempted = Preempted()
        with preempted.tracing():
            workers = Workers(NAME)
            await workers.run(int)
            workers.stop()
        for thread in threads():
            await asyncio.to_thread(thread.join, WAIT)
        lines = preempted.lines
        return lines.index(lines[1], 2)  # where it asks for its next job

    async def main() -> None:
        for line in range(await seen() + 1):
            preempted = Preempted(stop_at=line)
            together, begun = threading.Barrier(3, timeout=WAIT), Gate()

            def begin(begun: Gate = begun, together: threading.Barrier = together) -> None:
                begun.open()
                together.wait()

            with preempted.tracing():
                workers = Workers(NAME, limit=4)
                asked = [asyncio.create_task(workers.run(int))]
                await asyncio.to_thread(preempted.stopped.wait)
                asked.append(asyncio.create_task(workers.run(begin)))
                await asyncio.sleep(0)
                preempted.first_may_go.open()
                await asyncio.to_thread(begun.wait)
                preempted.others_may_go.open()
                asked += [asyncio.create_task(workers.run(together.wait)) for _ in range(2)]
                await asyncio.gather(*asked)
                workers.stop()

    run(main())


def test_what_did_not_begin_can_be_cancelled(run, workers):
    gate, ended = Gate(), asyncio.Event()
    ran = []

    async def main() -> None:
        busy = [asyncio.create_task(workers.run(gate.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        late = asyncio.create_task(workers.run(ran.append, 1, ended=ended.set))
        await asyncio.sleep(0)
        late.cancel()
        await ended.wait()
        gate.open()
        await asyncio.gather(*busy)
        await workers.run(ran.append, 2)

    run(main())
    assert ran == [2]


def test_what_is_raised_arrives(run, workers):
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await workers.run(lambda: 1 // 0)
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            await workers.run(next, iter(()))
        assert isinstance(caught.value.__cause__, StopIteration)

    run(main())


def test_stopping_ends_what_did_not_begin(run, workers):
    gate, began = Gate(), threading.Semaphore(0)

    def work() -> None:
        began.release()
        gate.wait()

    async def main() -> None:
        asked = [asyncio.create_task(workers.run(work)) for _ in range(3)]
        for _ in range(2):
            await asyncio.to_thread(began.acquire)
        workers.stop()
        with pytest.raises(asyncio.CancelledError):
            await asked[2]
        gate.open()
        await asyncio.gather(*asked[:2])
        with pytest.raises(RuntimeError, match="have ended"):
            await workers.run(int)

    run(main())


def test_a_pool_that_is_forgotten_ends_its_threads(run):
    workers: Workers | None = Workers(NAME, ready=True)
    (thread,) = threads()
    workers = None
    gc.collect()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert workers is None


def test_when_no_thread_can_be_started_another_one_does_it(run, workers, request):
    gate = Gate()

    async def main() -> None:
        busy = asyncio.create_task(workers.run(gate.wait))
        await asyncio.sleep(0)
        request.getfixturevalue("no_threads")
        waiting = asyncio.create_task(workers.run(int, "7"))
        lent = asyncio.create_task(Workers("another").run(int, "8"))
        await asyncio.sleep(0)
        gate.open()
        assert await asyncio.gather(waiting, lent) == [7, 8]
        await busy

    run(main())


def test_when_there_is_no_thread_at_all_it_says_so(run, no_threads, monkeypatch):
    monkeypatch.setattr("interphone.workers._pools", WeakSet())

    async def main() -> None:
        with pytest.raises(RuntimeError, match="can't create new thread"):
            await Workers(NAME).run(int)

    run(main())
