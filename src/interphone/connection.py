"""Connection: moves bytes between one transport and one Session, and time into it.

The only asyncio protocol. It is a `BufferedProtocol` with one receive buffer for all
connections of a loop: stock asyncio pays three memory-map calls for each
`Protocol.data_received`, and a buffer per connection would cost 64 KiB each.

Writes are corked. The first message of a turn leaves at once; what comes while frames
are being dispatched, or before the loop has turned, leaves together at the end of the
turn or at `FLUSH_AT` bytes. One write per message would halve the throughput
(benchmarks/bench_request.py), a cork that always waits would make two cores take turns.
If both ends are on one core they take turns anyway: then each write is a switch for less.
"""

from __future__ import annotations

import asyncio
import os
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from .awake import Awake
from .errors import (
    ConnectionLost,
    ForkedError,
    InterphoneError,
    RemoteProtocolError,
    WrongThread,
)
from .protocol.events import Reactions
from .protocol.messages import IDLE
from .protocol.session import Session
from .protocol.states import State
from .protocol.wire import LARGE, Outgoing
from .transports import hung_up, same_owner, shared_memory

__all__ = ["Connection"]

FLUSH_AT: Final = 2048
FLUSH_AT_ONCE: Final = 16 * 1024  # the same towards an end that is on this very core, or seems so
BUFFER: Final = 64 * 1024
LARGE_READ: Final = 4096  # bytes read at once after which a look at what they begin is worth it
NUDGE = 0.05  # seconds of quiet after which @isdk/ipc-server is sent a byte more (wire.md, 9)
NEWS = 0.001  # seconds after which the other end is told what of its pool is free, at the latest
LOOK = 0.0005, 0.02  # seconds between two looks at what has left: at first, and at most
WATCH = 0.5  # seconds between two looks at a peer that is not read because it keeps us busy

_buffers: WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = WeakKeyDictionary()


def _buffer_of(loop: asyncio.AbstractEventLoop) -> memoryview:
    """The loop's receive buffer: filled and emptied within one callback, so it can be shared."""
    if loop not in _buffers:
        _buffers[loop] = memoryview(bytearray(BUFFER))
    return _buffers[loop]


_NONE: Final[deque[Any]] = deque()  # until there is one; an empty one weighs 624 bytes
_NO_REASON: Final[frozenset[str]] = frozenset()
_CLOSED: Final = State.CLOSED  # hot path: looking a member up costs 100 ns on Python 3.11


class Connection(asyncio.BufferedProtocol):
    """One transport's life.

    Attributes:
        armed: When the session is told the time; there is nothing to do until then.
        blocked: Whether a sender must wait for `writable`.
        credentials: Who is at the other end, as the kernel tells; None where it does not.
        same_owner: Whether that certainly is the user of this process.
        closed: A future, done when the transport is gone.
    """

    __slots__ = (
        "__weakref__",
        "_abandoned",
        "_buffer",
        "_bulks",
        "_bulky",
        "_corked",
        "_departures",
        "_dispatching",
        "_end_timer",
        "_flush_at",
        "_kept",
        "_landing",
        "_look_timer",
        "_loop",
        "_lost",
        "_made",
        "_news_timed",
        "_news_timer",
        "_nudge_timer",
        "_nudged_at",
        "_patience",
        "_pid",
        "_react",
        "_resuming",
        "_sent",
        "_session",
        "_stall_timer",
        "_stopped",
        "_timer",
        "_transport",
        "_waiters",
        "_watch_timer",
        "_written",
        "armed",
        "awake",
        "blocked",
        "closed",
        "credentials",
        "same_owner",
    )

    def __init__(
        self,
        session: Session,
        react: Reactions,
        *,
        made: Callable[[], None],
        lost: Callable[[InterphoneError], None],
        abandoned: Callable[[], None],
    ) -> None:
        self._session = session
        self._react = react
        self._made = made
        self._lost = lost
        self._abandoned = abandoned
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._buffer = _buffer_of(self._loop)
        self._transport: asyncio.Transport | None = None
        self._dispatching = False
        self._landing = False  # whether we are in the middle of a large frame
        self._corked = False
        self._sent = False  # a message left in this turn
        self._stopped = _NO_REASON  # why we do not read
        self._kept = 0  # bytes of streams that nobody has taken
        self._resuming = False
        self._timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._nudge_timer: asyncio.TimerHandle | None = None
        self._news_timer: asyncio.TimerHandle | None = None
        self._news_timed = False
        self._nudged_at = 0  # bytes written when it was last looked at
        self._written = 0
        self._flush_at = FLUSH_AT
        self._bulky = min(LARGE, session.limits.hard_queue)  # bytes of a write that is large
        self._bulks: deque[tuple[int, int]] = _NONE  # those under way: sizes, and ends
        self._patience = 0.0
        self._waiters: deque[asyncio.Future[None]] = _NONE
        self._departures: deque[tuple[int, asyncio.Future[bool]]] = _NONE
        self._look_timer: asyncio.TimerHandle | None = None
        self.armed = inf
        self.blocked = False
        self.awake: Awake | None = None
        self.credentials: Any = None
        self.same_owner = False
        self.closed: asyncio.Future[None] = self._loop.create_future()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport stands."""
        limits = self._session.limits
        self._transport = cast(asyncio.Transport, transport)
        self.credentials = transport.get_extra_info("credentials")
        self.same_owner = same_owner(transport)
        self._transport.set_write_buffer_limits(limits.high_water, limits.low_water)
        self._share()
        self._made()
        self.arm()

    def _share(self) -> None:
        """Share memory with the other end, if this end may."""
        session = self._session
        if session.pools:
            if session.memory is None:
                session.memory = shared_memory(self.credentials)
            if session.memory is not None:
                session.memory.tell = self._news_soon

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the transport the buffer of the loop, or what a large frame is put together in."""
        return self._session.room() if self._landing else self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        session = self._session
        session.heard = self._loop.time()
        self._dispatching, self._sent = True, False
        if self._landing:
            session.landed(nbytes, self._react)
            self._landing = session.landing
        else:
            session.receive(bytes(self._buffer[:nbytes]), self._react)
            if nbytes > LARGE_READ:
                self._landing = session.landing
        self._dispatched()
        if self.awake is not None:
            self.awake.came(self._loop)
            self._flush_at = FLUSH_AT_ONCE if self.awake.beside else FLUSH_AT

    def eof_received(self) -> bool:
        """The other end writes no more: have the transport flush, and close."""
        return False

    def pause_writing(self) -> None:
        """The peer is slow: whoever wants to send it more has to wait."""
        self.blocked = True
        if self._stall_timer is None:
            self._watch_stall(self.taken)

    def resume_writing(self) -> None:
        """The peer has taken enough."""
        self.blocked = False
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone; whoever waits for anything is told."""
        session = self._session
        error = session.error or ConnectionLost(_why(exc, cut=session.unfinished()))
        for timer in (
            self._timer,
            self._end_timer,
            self._stall_timer,
            self._watch_timer,
            self._nudge_timer,
            self._news_timer,
            self._look_timer,
        ):
            if timer is not None:
                timer.cancel()
        self._settle_departures(left=exc is None)
        self._timer = self._end_timer = self._stall_timer = self._watch_timer = None
        self.armed = inf
        session.lose(error, self._react)
        if session.memory is not None:
            session.memory.tell = None
        self.blocked = False
        self._transport = None  # asyncio's own must not be touched any more
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)  # its verb finds the session closed
        if not self.closed.done():
            self.closed.set_result(None)
        self._lost(error)

    # Reading

    def _dispatched(self) -> None:
        session = self._session
        self._dispatching = False
        if session.queued and not self._corked:
            self._write()
        due = session.next_tick
        if due is not None and due < self.armed:
            self.arm()
        if session.state is _CLOSED:
            self._finish()

    def stop_reading(self, why: str) -> None:
        """Read no further, not even what has been received already, until every reason is gone."""
        if not self._stopped:
            self._session.hold()
            if self._transport is not None and not self._transport.is_closing():
                self._transport.pause_reading()
        self._stopped |= {why}
        if why == "busy" and self._watch_timer is None:
            self._watch_timer = self._loop.call_later(WATCH, self._watch)

    def _watch(self) -> None:
        """Whoever does not read does not see the end of the stream either: look for it."""
        self._watch_timer = None
        if "busy" in self._stopped and self._transport is not None:
            if hung_up(self._transport):
                self._abandoned()
                return
            self._watch_timer = self._loop.call_later(WATCH, self._watch)

    def go_on_reading(self, why: str) -> None:
        """Take one reason back."""
        if why not in self._stopped:
            return
        self._stopped = self._stopped - {why} or _NO_REASON
        if not self._stopped and not self._resuming:
            self._resuming = True
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._resuming = False
        if self._stopped or self._transport is None or self._transport.is_closing():
            return
        self._session.heard = self._loop.time()
        self._dispatching, self._sent = True, False
        try:
            self._session.resume(self._react)
        except Exception as exc:  # as asyncio does about `buffer_updated`: end it, and say so
            self.abort(ConnectionLost(exc))
            raise
        self._dispatched()
        if not self._stopped and not self._transport.is_closing():
            self._transport.resume_reading()

    def keep(self, size: int) -> None:
        """Note bytes of streams that came and that nobody has taken; or, negative, that they were.

        Each stream has a window of its own. Only when large items of many streams lie about is
        the connection not read any further.
        """
        limits = self._session.limits
        self._kept += size
        if self._kept > limits.max_held + 2 * limits.max_frame:  # two items always fit a window
            self.stop_reading("streams")
        else:
            self.go_on_reading("streams")

    @property
    def stopped(self) -> frozenset[str]:
        """Why nothing is read at the moment; empty if it is."""
        return self._stopped

    # Writing

    def send(self, data: object) -> Outgoing | None:
        """Send a message at once; return it encoded if it must wait until there is room.

        Raises:
            What `Peer.send` raises.
        """
        if _get_running_loop() is not self._loop:
            self.check_caller()
        session = self._session
        payload: Outgoing = session.pack(data)
        if self.blocked or self._waiters:
            return payload
        self.put(payload)
        return None

    def put(self, payload: Outgoing) -> None:
        """Send a message that is encoded, now."""
        try:
            self._session.send(payload)
        except Exception:  # an interrupt may come behind it, and then it is on its way
            self._session.take_back(payload)
            raise
        self.flush_soon()

    def flush_soon(self) -> None:
        """Write what the session has queued: now, or with what else comes in this turn."""
        if self._dispatching or self._corked:
            if self._session.queued > self._flush_at:
                self._write()
        elif self._sent:
            self._corked = True
            self._loop.call_soon(self._uncork)
        else:
            self._sent = True
            self._write()

    def _news_soon(self) -> None:
        """Have the other end told what is not looked at any more. In any thread, at any moment."""
        if (
            self._news_timed or os.getpid() != self._pid
        ):  # a child has views, and a copy of the loop
            return
        self._news_timed = True
        here = _get_running_loop() is self._loop
        with suppress(RuntimeError):  # the loop is closed
            # Not `call_later`: the garbage collector may have come in the middle of one.
            (self._loop.call_soon if here else self._loop.call_soon_threadsafe)(self._news_later)

    def _news_later(self) -> None:
        """Wait a moment: nearly always something goes by then that takes the news along."""
        self._news_timer = self._loop.call_later(NEWS, self._tell_news)

    def _tell_news(self) -> None:
        self._news_timer, self._news_timed = None, False
        if self._session.news:
            self.flush_soon()

    def _uncork(self) -> None:
        self._corked = self._sent = False
        self._write()

    def _write(self) -> None:
        transport, session = self._transport, self._session
        if session.queued < LARGE:
            pieces, data = None, session.data_to_send()
            size = len(data)
        else:
            pieces, data = session.pieces_to_send(), b""
            size = sum(map(len, pieces))
        if not size or transport is None or transport.is_closing():
            return
        if self.blocked and transport.get_write_buffer_size() > self._allowed():
            self.abort(
                RemoteProtocolError("the peer does not take what it is sent", code="slow-consumer")
            )
            return
        self._written += size
        if size >= self._bulky:
            self._note_bulk(size)
        if pieces is None:
            transport.write(data)
        elif transport.get_extra_info("gathers"):
            transport.writelines(pieces)
        else:  # asyncio's own puts them together, and forgets to pause (3.12.1)
            for piece in pieces:
                transport.write(piece)
        if session.nudge and self._nudge_timer is None:
            self._nudge_timer = self._loop.call_later(NUDGE, self._nudge)

    def _nudge(self) -> None:
        """End a burst with a packet that frees a frame whose last byte arrived alone."""
        self._nudge_timer = None
        transport = self._transport
        if transport is None or transport.is_closing() or self._end_timer is not None:
            return  # behind END there is nothing to free, and nothing can be written
        if self._written == self._nudged_at:
            self._written += len(self._session.nudge)
            transport.write(self._session.nudge)
        else:
            self._nudged_at = self._written
            self._nudge_timer = self._loop.call_later(NUDGE, self._nudge)

    def _allowed(self) -> int:
        """Bytes that may wait before a write: the limit, and the largest write that is not out."""
        self._forget_bulks()
        largest = max((size for size, _ in self._bulks), default=0)
        return self._session.limits.hard_queue + largest

    def _note_bulk(self, size: int) -> None:
        if self._bulks is _NONE:
            self._bulks = deque()
        self._forget_bulks()
        self._bulks.append((size, self._written))

    def _forget_bulks(self) -> None:
        while self._bulks and self._bulks[0][1] <= self.taken:
            self._bulks.popleft()

    async def writable(self) -> None:
        """Wait until the peer can be sent more, or is gone; first come, first served.

        Cancelling is safe: the next in line goes on.
        """
        waiter = self._loop.create_future()
        if self._waiters is _NONE:
            self._waiters = deque()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)
            if not self.blocked and self._waiters:
                self._loop.call_soon(self._wake)  # behind the write that follows in this step

    def crowded(self) -> bool:
        """Whether a sender must wait: the peer is slow, or others wait already."""
        return self.blocked or bool(self._waiters)

    def _wake(self) -> None:
        if not self.blocked and self._waiters and not self._waiters[0].done():
            self._waiters[0].set_result(None)

    @property
    def backlog(self) -> int:
        """Bytes that were sent here and that the peer's system has not taken."""
        buffered = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return buffered + self._session.queued

    @property
    def taken(self) -> int:
        """Bytes that the peer's system has taken so far."""
        return self._written - (
            0 if self._transport is None else self._transport.get_write_buffer_size()
        )

    def departure(self) -> asyncio.Future[bool]:
        """Write what is queued; return a future, done when the peer's system has taken it all.

        Its result is False if the connection ended before. Cancelling it is safe.
        """
        self._write()
        departure: asyncio.Future[bool] = self._loop.create_future()
        if self._transport is None or self._transport.is_closing():
            departure.set_result(False)
        elif self.taken >= self._written:
            departure.set_result(True)
        else:
            if self._departures is _NONE:
                self._departures = deque()
            self._departures.append((self._written, departure))
            self._look_later(LOOK[0])
        return departure

    # A transport tells when its buffer is nearly empty, never when a byte has left: look.

    def _look_later(self, delay: float) -> None:
        if self._look_timer is None:
            self._look_timer = self._loop.call_later(delay, self._look, delay)

    def _look(self, delay: float) -> None:
        self._look_timer = None
        if self._transport is None or self._transport.is_closing():
            return  # its buffer may have been thrown away: `connection_lost` knows
        while self._departures and self._departures[0][0] <= self.taken:
            _settle(self._departures.popleft()[1], left=True)
        if self._departures:
            self._look_later(min(2 * delay, LOOK[1]))

    def _settle_departures(self, *, left: bool) -> None:
        while self._departures:
            _settle(self._departures.popleft()[1], left=left)

    def _watch_stall(self, taken: int) -> None:
        limits = self._session.limits
        self._stall_timer = self._loop.call_later(limits.stalled_after, self._check_stall, taken)

    def _check_stall(self, taken: int) -> None:
        """Cut a peer off that took nothing while much was waiting for it."""
        self._stall_timer = None
        if not self.blocked:
            return
        if self.taken == taken and self.backlog > self._session.limits.soft_queue:
            self.abort(
                RemoteProtocolError(
                    "the peer takes nothing of what it is sent", code="slow-consumer"
                )
            )
        else:
            self._watch_stall(self.taken)

    # Ending

    def _finish(self) -> None:
        """The session is over: flush, say so with an end of stream, and hang up."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self._write()
            transport.close()
            self._abort_later()

    def hang_up(self) -> None:
        """After END: end our side of the stream, and give the other a moment to do the same."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._write()
        if IDLE in self._session.can:  # it reads that when it is used, and need not answer
            transport.close()
        elif transport.can_write_eof():
            transport.write_eof()
        elif not self._session.interphone:  # Node does the same only when the stream ends
            transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        """Hang up after a moment; as long as the peer goes on taking what it was sent, wait."""
        if self._end_timer is None:
            self._patience = self._loop.time() + self._session.limits.stalled_after
            self._wait_for_end()

    def _wait_for_end(self) -> None:
        timeout = self._session.limits.close_timeout
        self._end_timer = self._loop.call_later(timeout, self._give_up, self.taken)

    def _give_up(self, taken: int) -> None:
        transport = self._transport
        if transport is None:
            return
        if not transport.get_write_buffer_size():
            transport.close()
        elif self.taken > taken and self._loop.time() < self._patience:
            self._wait_for_end()
        else:
            self._abort_now()

    def _abort_now(self) -> None:
        self._settle_departures(left=False)
        if self._transport is not None:
            self._transport.abort()

    def abort(self, error: InterphoneError | None = None) -> None:
        """End it now: what was queued is lost, and whoever waits for an answer hears of it."""
        self._session.lose(error or ConnectionLost("aborted"), self._react)
        self._session.data_to_send()
        self._abort_now()

    # Time

    def arm(self) -> None:
        """Make sure that `tick` is called when the session wants it."""
        due = self._session.next_tick
        if due is None or self.closed.done():
            return
        if self._timer is not None:
            if self.armed <= due:  # uvloop's handles do not always tell
                return
            self._timer.cancel()
        self.armed = due
        self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer, self.armed = None, inf
        try:
            self._session.tick(self._loop.time(), self._react)
        except Exception as exc:
            self.abort(ConnectionLost(exc))
            raise
        self._dispatched()

    def check_caller(self) -> None:
        """Raise unless this is the loop, the thread and the process the connection lives in.

        Raises:
            ForkedError: A forked child must make its own connection.
            WrongThread: It is another thread or loop; use `interphone.blocking` there.
        """
        if _get_running_loop() is self._loop:
            return
        if os.getpid() != self._pid:
            raise ForkedError(
                "the connection belongs to the parent process: make a new one after fork"
            )
        raise WrongThread("the connection belongs to another event loop")


def _settle(departure: asyncio.Future[bool], *, left: bool) -> None:
    if not departure.done():
        departure.set_result(left)


def _why(exc: Exception | None, *, cut: bool) -> str:
    if exc is not None:
        return str(exc) or type(exc).__name__
    return "the stream ended within a frame" if cut else "the other side hung up"
