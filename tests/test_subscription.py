from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone import LocalProtocolError, Overflow, PayloadError, Publication, Server, TopicError
from interphone.protocol.payload import ABSENT, Json, MessagePack
from interphone.subscription import Gap, Subscription, Subscriptions, TopicHandler
from support.ends import meeting, raised_by, until

CODEC, NATIVE = Json(), MessagePack()


class Hub:
    """Attaches to nothing."""

    def __init__(self) -> None:
        self.log: list[object] = []

    async def attach(self, subscription: Subscription[Any]) -> None:
        self.log.append("attach")

    async def detach(self, subscription: Subscription[Any], topics: Any) -> None:
        self.log.append(("detach", *topics))


def put(subscription: Subscription[Any], *values: object, topic: str = "a") -> None:
    for value in values:
        subscription.put(topic, msgspec.Raw(CODEC.encode(value)), CODEC)


async def read(subscription: Subscription[Any]) -> list[object]:
    return [item.value async for item in subscription]


def test_what_is_queued_is_read_after_the_end(run):
    async def main() -> None:
        async with Subscription(Hub(), ("a",)) as items:
            put(items, 1, None, 0)
            items.put("a", ABSENT, CODEC)
            items.end()
            put(items, "too late")
            assert await read(items) == [1, None, 0, None]

    run(main())


@pytest.mark.parametrize(
    ("policy", "kept", "dropped"),
    [("drop_oldest", [3, 4, 5], 2), ("drop_newest", [1, 2, 3], 2), ("latest", [5], 4)],
)
def test_full_queue_does_what_its_policy_says_and_counts(run, policy, kept, dropped):
    async def main() -> None:
        async with Subscription(Hub(), ("a",), overflow=policy, queue=3) as items:
            put(items, 1, 2, 3, 4, 5)
            items.end()
            assert await read(items) == kept
            assert items.dropped == dropped

    run(main())


def test_latest_keeps_one_of_each_topic(run):
    async def main() -> None:
        async with Subscription(Hub(), ("a", "b"), overflow="latest") as items:
            for topic, value in (("a", 1), ("b", 2), ("a", 3)):
                put(items, value, topic=topic)
            items.end()
            assert await read(items) == [2, 3]

    run(main())


@given(
    st.lists(st.one_of(st.sampled_from("abcdef"), st.sampled_from(["take", "gap"])), max_size=80),
    st.integers(1, 5),
)
def test_latest_does_what_a_plain_list_would(steps: list[str], room: int) -> None:
    async def main() -> None:
        items = Subscription(Hub(), ("*",), overflow="latest", queue=room, gaps=True)
        model: list[tuple[str, int] | None] = []  # None: a gap
        lost = 0

        async def take() -> None:
            item = await anext(items)
            got = None if isinstance(item, Gap) else (item.topic, item.value)
            assert got == model.pop(0)

        for number, step in enumerate(steps):
            if step == "gap":
                items.put_gap()
                model.append(None)
            elif step == "take":
                if model:
                    await take()
            else:
                put(items, number, topic=step)
                before = [entry for entry in model if entry is not None]
                again = [entry for entry in before if entry[0] == step]
                gone = again or before[: len(before) == room]
                model = [*(entry for entry in model if entry not in gone), (step, number)]
                lost += len(gone)
            publications = len(model) - model.count(None)
            assert items.unread == (publications, sum(len(str(e[1])) for e in model if e))
            assert items.dropped == lost
            assert len(items.backlog._queue) <= 2 * len(model) + 1
            assert len(items.backlog._latest) == publications
        while model:
            await take()
        items.end()
        assert [item async for item in items] == []

    asyncio.run(main())


def test_latest_does_not_look_at_all_that_is_queued(run):
    async def main() -> None:
        compared = 0

        class Topic(str):
            __slots__ = ()

            def __eq__(self, other: object) -> bool:
                nonlocal compared
                compared += 1
                return str.__eq__(self, other)

            __hash__ = str.__hash__

        async with Subscription(Hub(), ("*",), overflow="latest") as items:
            for number in range(100):
                put(items, 0, topic=Topic(number))
            compared = 0
            for number in range(50, 60):
                put(items, 1, topic=Topic(number))
            assert compared <= 10 * 4
            items.end()
            assert await read(items) == [0] * 90 + [1] * 10

    run(main())


def test_full_queue_ends_with_overflow_by_default_after_what_is_queued(run):
    async def main() -> None:
        async with Subscription(Hub(), ("a",), queue=3) as items:
            put(items, *range(9))
            assert [(await anext(items)).value for _ in range(3)] == [0, 1, 2]
            error = await raised_by(anext(items))
            assert isinstance(error, Overflow)
            assert (error.topic, error.dropped, items.dropped) == ("a", 6, 6)
            assert items.ended
            with pytest.raises(StopAsyncIteration):
                await anext(items)

    run(main())


@pytest.mark.parametrize(("values", "fits"), [(2, True), (3, True), (4, False)])
def test_queue_holds_as_many_as_it_says(run, values, fits):
    async def main() -> None:
        async with Subscription(Hub(), ("a",), queue=3) as items:
            put(items, *range(values))
            assert items.ended is not fits

    run(main())


def test_queue_is_bounded_by_bytes_too(run):
    async def main() -> None:
        async with Subscription(Hub(), ("a",), overflow="drop_oldest") as items:
            put(items, "x" * 5_000_000, "y" * 5_000_000)
            items.end()
            assert [str(value)[0] for value in await read(items)] == ["y"]
            assert items.dropped == 1

    run(main())


@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
def test_large_publication_drives_out_as_many_as_it_needs(policy):
    items = Subscription(Hub(), ("*",), overflow=policy)
    for number in range(10):
        put(items, number, topic=str(number))

    for number in range(3):
        put(items, "x" * 5_000_000, topic=f"large {number}")

    assert items.unread == (1, 5_000_002)
    assert items.dropped == 12


def test_value_of_another_type_is_an_error_and_the_next_one_comes(run):
    async def main() -> None:
        async with Subscription(Hub(), ("a",), of=int) as items:
            put(items, "x", 7)
            with pytest.raises(PayloadError):
                await anext(items)
            assert await anext(items) == Publication("a", 7)

    run(main())


def test_cancelled_iteration_loses_nothing(run):
    async def main() -> None:
        async with Subscription(Hub(), ("a",)) as items:
            waiting = asyncio.ensure_future(anext(items))
            await asyncio.sleep(0)
            put(items, 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert (await anext(items)).value == 1

    run(main())


def test_two_tasks_cannot_read_one_subscription(run):
    async def main() -> None:
        async with Subscription(Hub(), ("a",)) as items:
            first = asyncio.ensure_future(raised_by(anext(items)))
            await asyncio.sleep(0)
            assert isinstance(await raised_by(anext(items)), LocalProtocolError)
            items.end()
            assert isinstance(await first, StopAsyncIteration)

    run(main())


def test_subscription_has_to_be_entered(run):
    async def main() -> None:
        with pytest.raises(LocalProtocolError, match="async with"):
            await anext(Subscription(Hub(), ("a",)))

    run(main())


def test_leaving_detaches_once(run):
    async def main() -> None:
        hub = Hub()
        async with Subscription(hub, ("a", "b", "a")) as items:
            assert items.topics == ("a", "b")
            await items.unsubscribe("b", "nothing")
        await items.close()
        assert hub.log == ["attach", ("detach", "b"), ("detach", "a")]

    run(main())


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"topics": ()}, TopicError),
        ({"topics": ("",)}, TopicError),
        ({"topics": ("a",), "overflow": "forget"}, ValueError),
        ({"topics": ("a",), "queue": 0}, ValueError),
    ],
)
def test_subscription_that_makes_no_sense_is_refused(wrong, error):
    with pytest.raises(error):
        Subscription(Hub(), **wrong)


def test_names_nobody_wants_any_more_are_told():
    local, hub = Subscriptions(), Hub()
    first, second = Subscription(hub, ("a", "b")), Subscription(hub, ("a",))

    assert local.add(first) == ["a", "b"]
    assert local.add(second) == []
    assert local.remove(first, ("a", "b", "c")) == ["b"]
    assert local.names() == ("a",)


class Runner:
    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.tasks: list[asyncio.Task[Any]] = []

    def spawn(self, coroutine: Any, args: object = ()) -> None:
        self.tasks.append(asyncio.ensure_future(coroutine))

    def start(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(coroutine)
        self.tasks.append(task)
        return task

    def report(self, error: Exception, args: object) -> None:
        self.errors.append(error)

    def placed(self, handler: Any, *, awaited: bool = True) -> Any:
        return handler


def test_handler_reads_in_order_and_reports_what_it_raises(run):
    async def main() -> None:
        runner, got = Runner(), []

        async def handle(publication: Publication[int]) -> None:
            await asyncio.sleep(0)
            if publication.value == 2:
                raise KeyError
            got.append(publication.value)

        reader = TopicHandler(Hub(), ("a",), int, handle, runner, runner.start)
        put(reader, 1, 2, "no int", 3)
        await until(lambda: len(got) == 2)
        put(reader, 4)
        await until(lambda: len(got) == 3)
        assert got == [1, 3, 4]
        assert [type(error) for error in runner.errors] == [KeyError, PayloadError]

    run(main())


def test_handler_that_is_too_slow_says_so_once_and_goes_on(run):
    async def main() -> None:
        runner, got, gate = Runner(), [], asyncio.Event()

        async def handle(publication: Publication[int]) -> None:
            await gate.wait()
            got.append(publication.value)

        reader = TopicHandler(Hub(), ("a",), int, handle, runner, runner.start, queue=2)
        put(reader, 0)
        await asyncio.sleep(0)
        put(reader, 1, 2, 3, 4)
        gate.set()
        await until(lambda: len(got) == 3)
        assert got == [0, 3, 4]
        assert [str(error) for error in runner.errors] == [
            "the subscription was too slow: 1 dropped, the first on 'a'"
        ]
        assert reader.dropped == 2

    run(main())


def test_handler_registered_after_connect_hears_what_is_published_next(run, address):
    async def main() -> None:
        server, got = Server(address), []
        async with meeting(server) as client:
            client.on_topic("a")(lambda publication: got.append(publication.value))
            await client.publish("a", 1)
            await server.publish("a", 2)
            await until(lambda: len(got) == 2)
            assert got == [1, 2]

    run(main())


def hear(reader: TopicHandler[Any], *values: object) -> None:
    for value in values:
        assert reader.backlog.hear("a", NATIVE.encode(value), NATIVE, False)


def test_plain_handler_hears_at_once_and_reports_what_it_raises(run):
    async def main() -> None:
        runner, got = Runner(), []

        def handle(publication: Publication[int]) -> None:
            if publication.value == 2:
                raise KeyError
            if publication.value == 3:
                raise asyncio.CancelledError
            got.append(publication.value)

        reader = TopicHandler(Hub(), ("a",), int, handle, runner, runner.start)
        hear(reader, 1, 2, "no int", 3, 4)

        assert got == [1, 4]
        assert [type(error) for error in runner.errors] == [KeyError, PayloadError, RuntimeError]
        assert not runner.tasks

    run(main())


def test_plain_handler_waits_for_what_it_returned_before(run):
    async def main() -> None:
        runner, got, gate = Runner(), [], asyncio.Event()

        async def later(value: int) -> None:
            await gate.wait()
            got.append(value)

        def handle(publication: Publication[int]) -> Any:
            if publication.value % 2:
                return later(publication.value)
            return got.append(publication.value)

        reader = TopicHandler(Hub(), ("a",), int, handle, runner, runner.start)
        hear(reader, 0, 1, 2, 3, 4)
        assert got == [0]
        gate.set()
        await until(lambda: len(got) == 5)
        assert got == [0, 1, 2, 3, 4]
        await until(lambda: all(task.done() for task in runner.tasks))
        await asyncio.sleep(0)
        hear(reader, 6)
        assert got[-1] == 6
        assert not runner.errors

    run(main())


def test_plain_handler_is_not_called_within_itself(run):
    async def main() -> None:
        runner, log = Runner(), []

        def handle(publication: Publication[int]) -> None:
            log.append(("begin", publication.value))
            if publication.value < 2:
                hear(reader, publication.value + 1)
            log.append(("end", publication.value))

        reader = TopicHandler(Hub(), ("a",), int, handle, runner, runner.start)
        hear(reader, 0)
        await until(lambda: len(log) == 6)
        assert log == [(step, value) for value in range(3) for step in ("begin", "end")]

    run(main())


@pytest.mark.parametrize("plain", [True, False])
def test_bytes_that_are_no_value_are_not_heard(run, plain):
    async def main() -> None:
        runner, got = Runner(), []

        def handle(publication: Publication[Any]) -> None:
            got.append(publication.value)

        async def handle_later(publication: Publication[Any]) -> None:
            got.append(publication.value)

        handler = handle if plain else handle_later
        reader = TopicHandler(Hub(), ("a",), Any, handler, runner, runner.start)
        for wrong in (b"\xc0\xc0", b"\x91", b"\xc1"):
            assert not reader.backlog.hear("a", wrong, NATIVE, False)
        assert reader.backlog.hear("a", b"\x07", NATIVE, False)
        await until(lambda: got == [7])
        assert not runner.errors

    run(main())


def test_what_waits_is_handled_after_a_handler_that_was_cancelled(run):
    async def main() -> None:
        runner, got, gate = Runner(), [], asyncio.Event()

        async def later(value: int) -> None:
            await gate.wait()
            got.append(value)

        reader = TopicHandler(
            Hub(), ("a",), int, lambda item: later(item.value), runner, runner.start
        )
        hear(reader, 1, 2)
        runner.tasks[0].cancel()  # before its first step, where tasks do not begin at once
        await asyncio.wait(runner.tasks)
        await asyncio.sleep(0)
        assert (got, reader.unread[0]) == ([], 1)
        gate.set()
        hear(reader, 3)
        await until(lambda: got == [2, 3])

    run(main())


def test_error_that_ends_it_within_a_handler_is_reported(run):
    async def main() -> None:
        runner, error = Runner(), Overflow("a", dropped=1)

        reader = TopicHandler(
            Hub(), ("a",), int, lambda item: reader.end(error), runner, runner.start
        )
        hear(reader, 1)
        await until(lambda: runner.errors == [error])

    run(main())
