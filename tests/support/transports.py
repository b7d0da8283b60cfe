"""The contract every transport keeps, after trio's `check_two_way_stream`.

A test module gives `check` a function that opens a connected pair, and gets every rule below
tested on it:

    @pytest.mark.parametrize("check", CHECKS)
    def test_contract(run, check):
        run(check(open_pair))
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

BIG = 4 * 1024 * 1024


class Recorder(asyncio.BufferedProtocol):
    """A protocol that keeps what it is told, and lets a test wait for it.

    Attributes:
        received: All bytes so far.
        calls: Names of the callbacks in order, without those that only carry bytes.
        error: What `connection_lost` was given.
    """

    def __init__(self, *, stay_open: bool = False, size: int = 64 * 1024) -> None:
        self.transport: Any = None
        self.received = bytearray()
        self.calls: list[str] = []
        self.error: Exception | None = None
        self.lost_count = 0
        self.stay_open = stay_open
        self.on_bytes: Callable[[], object] = lambda: None
        # asyncio's TLS loses what it reads into a slice of a bytearray.
        self._buffer = memoryview(bytearray(size))
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._note("made")

    def get_buffer(self, sizehint: int) -> memoryview:  # type: ignore[override]  # typeshed's
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        assert self.calls[0] == "made"
        assert not self.lost_count
        self.received += self._buffer[:nbytes]
        self._changed.set()
        self.on_bytes()

    def eof_received(self) -> bool:
        self._note("eof")
        return self.stay_open

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self.lost_count += 1
        self._note("lost")

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_called(self, name: str) -> None:
        await self.until(lambda: name in self.calls)

    async def until_received(self, size: int) -> bytes:
        await self.until(lambda: len(self.received) >= size)
        return bytes(self.received)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self._changed.set()


Pair = tuple[Recorder, Recorder]
OpenPair = Callable[[], AbstractAsyncContextManager[Pair]]
Check = Callable[[OpenPair], Awaitable[None]]


async def settle() -> None:
    """Let everything happen that is already due."""
    for _ in range(20):
        await asyncio.sleep(0)


async def finish(*ends: Recorder) -> None:
    """End connections, and wait until everybody knows."""
    for end in ends:
        # asyncio's own transports cannot be aborted once they have ended.
        if not end.lost_count:
            end.transport.abort()
    for end in ends:
        await end.until_called("lost")


async def fill(writer: Recorder) -> int:
    """Write until the protocol is told to pause; give the number of bytes."""
    written = 0
    while "pause" not in writer.calls:
        assert written < 64 * BIG
        writer.transport.write(bytes(64 * 1024))
        written += 64 * 1024
        await asyncio.sleep(0)
    return written


# The rules


async def bytes_arrive_in_order(open_pair: OpenPair) -> None:
    chance = random.Random(1)
    pieces = [chance.randbytes(chance.choice([1, 2, 100, 5000, 70_000])) for _ in range(200)]
    async with open_pair() as pair:
        for one, other in (pair, reversed(pair)):
            for piece in pieces:
                one.transport.write(piece)

            assert await other.until_received(len(b"".join(pieces))) == b"".join(pieces)


async def both_directions_at_once(open_pair: OpenPair) -> None:
    one, two = os.urandom(BIG), os.urandom(BIG)
    async with open_pair() as (near, far):
        near.transport.write(one)
        far.transport.write(two)

        assert await far.until_received(BIG) == one
        assert await near.until_received(BIG) == two


async def any_buffer_can_be_written(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        near.transport.write(b"")
        near.transport.write(bytearray(b"ab"))
        near.transport.write(memoryview(b"xcdx")[1:3])
        near.transport.writelines([b"e", bytearray(b"f"), memoryview(b"g")])

        assert await far.until_received(7) == b"abcdefg"


async def pieces_arrive_as_one(open_pair: OpenPair) -> None:
    """Large and small ones, however little of them the peer takes at once."""
    async with open_pair() as (near, far):
        pieces = [bytes([n]) * (BIG if n % 2 else n) for n in range(5)]
        changed = bytearray(b"z" * BIG)
        near.transport.writelines([*pieces, changed])
        changed[:] = bytes(BIG)
        near.transport.writelines([b"", memoryview(b"xendx")[1:4]])
        sent = b"".join(pieces) + b"z" * BIG + b"end"
        await far.until(lambda: len(far.received) >= len(sent))
        assert far.received == sent
        assert near.transport.get_write_buffer_size() == 0


async def a_buffer_can_be_used_again_after_write(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        far.transport.pause_reading()
        written = await fill(near)
        small, large = bytearray(b"s" * 10), bytearray(b"l" * 100_000)
        near.transport.write(small)
        near.transport.write(large)
        small[:], large[:] = b"x" * 5, b"x" * 5
        far.transport.resume_reading()

        data = await far.until_received(written + 100_010)

        assert data[written:] == b"s" * 10 + b"l" * 100_000


async def writing_pauses_and_goes_on(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        far.transport.pause_reading()
        near.transport.set_write_buffer_limits(high=100_000, low=50_000)

        written = await fill(near)

        assert near.transport.get_write_buffer_size() > 100_000
        far.transport.resume_reading()
        await near.until_called("resume")
        await far.until_received(written)
        assert near.calls == ["made", "pause", "resume"]
        await near.until(lambda: near.transport.get_write_buffer_size() == 0)


async def the_limits_can_be_asked(open_pair: OpenPair) -> None:
    async with open_pair() as (near, _):
        near.transport.set_write_buffer_limits(high=1000, low=10)
        assert near.transport.get_write_buffer_limits() == (10, 1000)

        near.transport.set_write_buffer_limits(high=1000)
        assert near.transport.get_write_buffer_limits() == (250, 1000)


async def after_pause_reading_nothing_arrives(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        assert far.transport.is_reading()
        far.transport.pause_reading()
        assert not far.transport.is_reading()
        near.transport.write(b"later")
        await settle()
        assert far.received == b""

        far.transport.resume_reading()

        assert await far.until_received(5) == b"later"


async def reading_can_pause_while_bytes_arrive(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        far.on_bytes = lambda: far.transport.pause_reading()
        near.transport.write(bytes(BIG))
        await far.until_received(1)
        before = len(far.received)
        await settle()
        assert len(far.received) == before < BIG

        far.on_bytes = lambda: None
        far.transport.resume_reading()

        await far.until_received(BIG)


async def close_delivers_what_was_written(open_pair: OpenPair) -> None:
    data = os.urandom(BIG)
    async with open_pair() as (near, far):
        near.transport.write(data)
        near.transport.close()
        assert near.transport.is_closing()
        near.transport.close()

        assert await far.until_received(BIG) == data
        await near.until_called("lost")
        await far.until_called("lost")
        assert near.error is None
        assert (near.calls[-1], far.calls) == ("lost", ["made", "eof", "lost"])


async def close_within_buffer_updated_ends_it(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        far.on_bytes = lambda: far.transport.close()
        near.transport.write(b"end")

        await far.until_called("lost")
        await near.until_called("lost")

        assert far.received == b"end"


async def abort_within_buffer_updated_ends_it(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        far.on_bytes = lambda: far.transport.abort()
        near.transport.write(b"end")

        await far.until_called("lost")
        await near.until_called("lost")

        assert far.calls == ["made", "lost"]


async def abort_is_seen_by_the_other_end(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        far.transport.pause_reading()
        await fill(near)

        near.transport.abort()
        near.transport.abort()
        await near.until_called("lost")
        far.transport.resume_reading()
        await far.until_called("lost")

        assert near.calls == ["made", "pause", "lost"]
        assert near.transport.get_write_buffer_size() == 0


async def the_end_is_told_once(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        near.transport.close()
        near.transport.abort()
        far.transport.abort()
        far.transport.close()
        await near.until_called("lost")
        await far.until_called("lost")
        await settle()

        assert near.lost_count == far.lost_count == 1
        assert near.calls[-1] == far.calls[-1] == "lost"


async def nothing_happens_after_the_end(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        near.transport.close()
        await near.until_called("lost")
        await far.until_called("lost")

        before = [*near.calls]
        near.transport.close()
        near.transport.abort()
        await settle()

        assert near.calls == before


async def what_is_written_after_close_is_dropped(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        near.transport.close()
        near.transport.write(b"too late")
        await near.until_called("lost")
        near.transport.write(b"too late")
        await far.until_called("lost")

        assert far.received == b""


async def the_writing_side_can_end_alone(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        if not near.transport.can_write_eof():
            return
        far.stay_open = True
        near.transport.write(bytes(BIG))
        near.transport.write_eof()
        near.transport.write_eof()
        await far.until_called("eof")
        assert len(far.received) == BIG

        far.transport.write(b"answer")

        assert await near.until_received(6) == b"answer"
        try:
            near.transport.write(b"more")
        except RuntimeError:
            pass
        else:
            raise AssertionError("write after write_eof must raise")
        far.transport.close()
        await near.until_called("lost")
        assert near.calls == ["made", "eof", "lost"] or near.calls[1:] == [
            "pause",
            "resume",
            "eof",
            "lost",
        ]


async def the_end_of_the_other_closes_by_default(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        if not near.transport.can_write_eof():
            return
        near.transport.write_eof()

        await far.until_called("lost")
        await near.until_called("lost")

        assert far.calls == ["made", "eof", "lost"]
        assert far.error is None


async def many_small_writes_wait_together(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        far.transport.pause_reading()
        written = await fill(near)
        pieces = [b"%07d" % n for n in range(30_000)]
        for piece in pieces:
            near.transport.write(piece)
        far.transport.resume_reading()

        data = await far.until_received(written + 7 * 30_000)

        assert data[written:] == b"".join(pieces)


async def an_answer_from_within_is_sent(open_pair: OpenPair) -> None:
    async with open_pair() as (near, far):
        near.on_bytes = lambda: near.transport.write(b".")
        far.on_bytes = lambda: len(far.received) < 500 and far.transport.write(b".")
        near.transport.write(b".")

        assert await far.until_received(500) == b"." * 500


CHECKS: list[Check] = [
    bytes_arrive_in_order,
    both_directions_at_once,
    any_buffer_can_be_written,
    writing_pauses_and_goes_on,
    the_limits_can_be_asked,
    after_pause_reading_nothing_arrives,
    reading_can_pause_while_bytes_arrive,
    close_delivers_what_was_written,
    close_within_buffer_updated_ends_it,
    abort_within_buffer_updated_ends_it,
    abort_is_seen_by_the_other_end,
    the_end_is_told_once,
    nothing_happens_after_the_end,
    the_writing_side_can_end_alone,
    the_end_of_the_other_closes_by_default,
    many_small_writes_wait_together,
    an_answer_from_within_is_sent,
]

# What our own transports promise beyond asyncio's and uvloop's.
OWN_CHECKS: list[Check] = [
    *CHECKS,
    pieces_arrive_as_one,
    a_buffer_can_be_used_again_after_write,
    what_is_written_after_close_is_dropped,
]
