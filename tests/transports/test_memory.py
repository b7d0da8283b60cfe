from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from interphone.address import MemoryAddress
from interphone.errors import AddressInUse, ConnectError
from interphone.transports import connect, listen, own_credentials
from support.transports import OWN_CHECKS, Check, Pair, Recorder, finish, settle

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@asynccontextmanager
async def open_pair() -> AsyncIterator[Pair]:
    address, near, far = MemoryAddress(), Recorder(), Recorder()
    listener = await listen(address, lambda: far)
    await connect(address, lambda: near)
    await far.until_called("made")
    try:
        yield near, far
    finally:
        listener.close()
        await finish(near, far)


@pytest.mark.parametrize("check", OWN_CHECKS, ids=lambda check: check.__name__)
def test_contract(run: Run, check: Check) -> None:
    run(check(open_pair))


def test_nobody_listens(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ConnectError, match="memory:quiet") as caught:
            await connect(MemoryAddress("quiet"), Recorder)
        assert caught.value.transient

    run(main())


def test_one_listener_at_a_time(run: Run) -> None:
    async def main() -> None:
        address = MemoryAddress()
        first = await listen(address, Recorder)
        with pytest.raises(AddressInUse):
            await listen(address, Recorder)
        first.close()
        second = await listen(address, Recorder)
        first.close()
        assert address.listener is second
        second.close()

    run(main())


def test_credentials_are_our_own(run: Run) -> None:
    async def main() -> None:
        async with open_pair() as (near, _):
            mine = near.transport.get_extra_info("credentials")
            assert mine == own_credentials()
            assert mine.pid == os.getpid()
            assert mine.uid is not None or mine.sid.startswith("S-1-5-")

    run(main())


def test_a_listener_that_closes_first_ends_the_connection(run: Run) -> None:
    async def main() -> None:
        address, near = MemoryAddress(), Recorder()
        listener = await listen(address, Recorder)
        await connect(address, lambda: near)
        listener.close()
        await near.until_called("lost")
        assert isinstance(near.error, ConnectionResetError)

    run(main())


def test_what_is_written_before_the_other_end_starts_arrives(run: Run) -> None:
    async def main() -> None:
        address, near, far = MemoryAddress(), Recorder(), Recorder()
        listener = await listen(address, lambda: far)
        transport = await connect(address, lambda: near)
        transport.write(b"early")  # type: ignore[attr-defined]
        transport.close()
        assert await far.until_received(5) == b"early"
        await far.until_called("lost")
        listener.close()

    run(main())


def test_abort_takes_back_what_was_not_read(run: Run) -> None:
    async def main() -> None:
        async with open_pair() as (near, far):
            near.transport.write(b"never mind")
            near.transport.abort()
            await far.until_called("lost")
            assert far.received == b""
            assert isinstance(far.error, ConnectionResetError)

    run(main())


def test_writing_to_a_closed_end_without_reading_ends_it(run: Run) -> None:
    async def main() -> None:
        async with open_pair() as (near, far):
            near.transport.pause_reading()
            far.transport.close()
            await settle()
            assert near.calls == ["made"]
            near.transport.write(b"?")
            await near.until_called("lost")
            assert isinstance(near.error, BrokenPipeError)

    run(main())


@pytest.mark.parametrize("callback", ["connection_made", "get_buffer", "buffer_updated"])
def test_an_exception_of_the_protocol_ends_the_connection(run: Run, callback: str) -> None:
    async def main() -> None:
        class Broken(Recorder):
            pass

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        setattr(Broken, callback, fail)
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        address, far = MemoryAddress(), Recorder()
        listener = await listen(address, lambda: far)
        broken = Broken()
        await connect(address, lambda: broken)
        await far.until_called("made")
        far.transport.write(b"x")
        await broken.until_called("lost")
        await far.until_called("lost")
        listener.close()
        assert [type(context["exception"]) for context in told] == [ZeroDivisionError]

    run(main())
