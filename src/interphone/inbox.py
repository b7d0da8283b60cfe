"""Inbox: what a peer says, and the handlers that run for it.

Requests are handled concurrently. Messages are handled one at a time, in order, from a
queue that requests, pings and answers never wait for. When too much of a peer's is under
way, it is not read any further. An interphone peer, which has been told how many requests
are taken on at once, keeps the others to itself: it is read on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from time import monotonic
from types import CoroutineType
from typing import Any, NamedTuple

import msgspec

from .calls import Calls, NotTaken, Prepared, Report
from .connection import Connection
from .deadlines import set_deadline
from .errors import ConnectionLost, MessageTooBig, PayloadError
from .handlers import PASS, Handlers, set_handling
from .hearing import NO_REASON, Hearing
from .host import HostBusy
from .prompt import Prompt
from .protocol.events import Nonce, Options
from .protocol.messages import Failure
from .protocol.payload import ABSENT, Codec
from .protocol.session import Session
from .protocol.shapes import Envelope, cancelled, enveloped

__all__ = ["Inbox"]

_NONE: deque[Any] = deque()  # until there is one; an empty one weighs 624 bytes

CANCELLED = Failure("cancelled", "the request was cancelled")


class _Deferred(NamedTuple):
    nonce: Nonce  # of a request; None for a message
    raw: msgspec.Raw
    handle: Callable[[], None]
    credited: bool  # one of us has been told how many of it fit


class Inbox:
    """The work that one peer gives this side.

    Attributes:
        calls: Its calls of methods.
        hearing: Its messages, as far as they are handled at once.
        prompt: What of its requests is answered at once.
        inflight: Its requests and messages that are being handled or wait for it.
        unheard: Messages that came when nobody listened.
    """

    def __init__(
        self,
        session: Session,
        handlers: Handlers,
        told: tuple[object, ...],
        report: Callable[[Exception], None],
        raised: Callable[[Exception], None],
        make_call: Callable[[Report | None, float | None], object],
    ) -> None:
        self.calls = Calls(session, handlers, make_call)
        self.inflight = 0
        self.unheard = 0
        self._session = session
        self._handlers = handlers
        self._told = told
        self._report = report
        self._raised = raised
        self._connection: Connection | None = None
        self.prompt = Prompt(
            session,
            handlers,
            told,
            envelope=self._on_envelope,
            request=self.on_request,
            call=self.on_call,
            ask=self._ask_later,
            later=self._answer_later,
            explain=self._explain,
            fail=self.fail,
        )
        self._uncredited = 0  # under way without having been counted before it was sent
        self._held = 0  # bytes under way
        self._answers: dict[asyncio.Task[None], tuple[Nonce, Envelope | None]] = {}
        self._numbered: dict[int, asyncio.Task[None]] = {}  # of native requests, by nonce
        self._messages: deque[msgspec.Raw] = _NONE
        self.hearing = Hearing(
            session, handlers.on_message, told, self._hear_later, self._await_handlers
        )
        self._idle: asyncio.Future[None] | None = None  # done at so many under way:
        self._idle_at = 0
        self._closer: asyncio.Task[Any] | None = None
        self._finishing = False  # it is being closed
        self._deferred: deque[_Deferred] = _NONE

    @property
    def _codec(self) -> Codec:
        codec: Codec = self._session.codec
        return codec

    def attach(self, connection: Connection) -> None:
        """Work for this connection; it is made after the inbox."""
        self._connection = connection
        self.calls.attach(connection)
        self.prompt.attach(connection)

    # Waiting: for handlers to be registered, or for the end of a pause

    @property
    def deferring(self) -> frozenset[str]:
        """Why nothing is handled at the moment; empty if it is."""
        return self.hearing.deferring

    def defer(self, why: str) -> None:
        """Keep what comes until every reason is taken back by `release`."""
        self.hearing.deferring |= {why}
        self.prompt.deferring = True

    def release(self, why: str) -> None:
        """Take one reason back; after the last one handle what was kept, in order."""
        self.hearing.deferring = self.hearing.deferring - {why} or NO_REASON
        self.prompt.deferring = bool(self.hearing.deferring)
        while self._deferred and not self.hearing.deferring:  # a handler may pause again
            deferred = self._deferred.popleft()
            self._let_go(deferred.raw, credited=deferred.credited)
            deferred.handle()

    def lost(self) -> None:
        """The connection is gone. What waits for the end of a pause will not be handled."""
        if "paused" in self.hearing.deferring:
            self._turn_away()
        self.abandon()

    def _defer(
        self, nonce: Nonce, raw: msgspec.Raw, handle: Callable[[], None], *, credited: bool
    ) -> None:
        if self._deferred is _NONE:
            self._deferred = deque()
        self._deferred.append(_Deferred(nonce, raw, handle, credited))
        self._take_on(raw, credited=credited)

    def _defer_asked(
        self, handle: Callable[..., None], nonce: Nonce, raw: msgspec.Raw, options: Options
    ) -> None:
        """Handle a request after a pause, which takes of the time that its asker waits."""
        now = asyncio.get_running_loop().time
        came = now()

        def handle_later() -> None:
            left = options
            if options.deadline is not None:
                left = msgspec.structs.replace(options, deadline=options.deadline - (now() - came))
            handle(nonce, raw, left)

        self._defer(nonce, raw, handle_later, credited=True)

    def in_turn(self, handle: Callable[..., None], nonce: Nonce, *facts: Any) -> None:
        """Have a request of the library's handled, now or after a pause."""
        if self.hearing.deferring:
            self._defer(nonce, ABSENT, partial(handle, nonce, *facts), credited=False)
        else:
            handle(nonce, *facts)

    # Messages

    def _hear_later(self, raw: msgspec.Raw) -> None:
        """Take a message that `hearing` does not handle at once."""
        if self.hearing.deferring and self._finishing:
            self.unheard += 1
        elif self.hearing.deferring:
            again = partial(self.hearing.on_message, raw)
            self._defer(None, raw, again, credited=False)
        elif self._takes_envelopes and (id := cancelled(self._codec, raw)) is not None:
            self._cancel_of_node(id)
        elif not self._handlers.on_message:
            self.unheard += 1
        elif self.hearing.reader is not None:
            if self._messages is _NONE:
                self._messages = deque()
            self._messages.append(raw)
            self._take_on(raw)
        elif waiting := self._start(raw):
            self._await_handlers(waiting, raw)

    def _await_handlers(self, waiting: list[Any], raw: msgspec.Raw) -> None:
        self._take_on(raw)
        self._read_later(waiting, raw)

    def _start(self, raw: msgspec.Raw) -> list[Any]:
        """Call the plain handlers of a message; return what is left to be awaited."""
        try:
            data = self._session.values.decode(raw) if raw else None
        except PayloadError as exc:
            self._session.counts.unreadable += 1
            self._report(exc)
            return []
        return self._handlers.on_message.start(*self._told, data)

    def _read_later(self, waiting: list[Any], raw: msgspec.Raw) -> None:
        self.hearing.reader = reader = self._handlers.tasks.start(self._read(waiting, raw))

        def ended(_: object) -> None:
            if self.hearing.reader is reader:  # else the next one reads already
                self.hearing.reader = None
            for coroutine in waiting:
                coroutine.close()  # it may have been cancelled before its first step

        if reader.done():
            ended(reader)
        else:
            reader.add_done_callback(ended)

    async def _read(self, waiting: list[Any], raw: msgspec.Raw) -> None:
        """Await the handlers of one message, then handle all that queued up meanwhile."""
        self.hearing.reader = asyncio.current_task()  # an eager task runs before it is returned
        set_handling(self.hearing.reader)
        while True:
            for coroutine in waiting:
                await self._handlers.on_message.guard(coroutine, self._told)
            self._let_go(raw)
            if not self._messages:
                self.hearing.reader = None
                return
            raw = self._messages.popleft()
            waiting = self._start(raw)

    def when_read(self, then: Callable[[], None]) -> None:
        """Call `then` when every message that came has been handled."""
        if self.hearing.reader is None:
            then()
        else:
            self.hearing.reader.add_done_callback(lambda _: then())

    # Requests

    def on_request(self, nonce: Nonce, raw: msgspec.Raw, options: Options) -> None:
        """Have a request answered that could not be at once; see `prompt`."""
        if self.hearing.deferring:
            self._defer_asked(self.prompt.on_request, nonce, raw, options)
        elif not self._on_envelope(nonce, raw):
            self._ask_later(nonce, raw, options)

    def _on_envelope(self, nonce: Nonce, raw: msgspec.Raw) -> bool:
        """Have a method answer that a Node program calls; False if it does not."""
        envelope = enveloped(self._codec, raw) if self._takes_envelopes else None
        if envelope is None:
            return False
        self._run_method(nonce, raw, None, envelope, self.calls.prepare_envelope, envelope)
        return True

    def on_call(self, nonce: Nonce, raw: msgspec.Raw, options: Options) -> None:
        """Have a method answer that could not at once; see `prompt`."""
        if self.hearing.deferring:
            self._defer_asked(self.prompt.on_call, nonce, raw, options)
        else:
            prepare = self.calls.prepare
            self._run_method(nonce, raw, options.deadline, None, prepare, nonce, raw, options)

    def on_open(self, nonce: Nonce, raw: msgspec.Raw, options: Options) -> None:
        """Have a method answer piece by piece."""
        if self.hearing.deferring:
            self._defer_asked(self.on_open, nonce, raw, options)
        else:
            work = self.calls.stream(nonce, raw, options)
            self._answer_later(nonce, raw, work, options.deadline)

    def _run_method(
        self,
        nonce: Nonce,
        raw: msgspec.Raw,
        deadline: float | None,
        envelope: Envelope | None,
        prepare: Callable[..., Prepared],
        *asked: Any,
    ) -> None:
        """Have a method answer: at once if it is inline, else in a task."""
        try:
            prepared = prepare(*asked)
            result = self.calls.run_inline(prepared) if prepared.inline else None
        except NotTaken as exc:
            self.fail(nonce, exc.failure, exc.error, envelope=envelope)
            return
        except BaseException as exc:
            self._explain(nonce, exc, envelope)
            return
        # Outside the try: an eager task answers for itself, and a KeyboardInterrupt leaves it.
        if not prepared.inline:
            self._answer_later(nonce, raw, self.calls.run(prepared), deadline, envelope=envelope)
        elif isinstance(result, CoroutineType):
            self._answer_later(nonce, raw, result, deadline, envelope=envelope)
        else:
            self.respond(nonce, envelope.result(result) if envelope else result)

    def answer(
        self,
        nonce: Nonce,
        raw: msgspec.Raw,
        work: Coroutine[Any, Any, object],
        over: Callable[[], None],
    ) -> None:
        """Answer a request with what `work` returns, which is cancelled when nobody waits.

        `over` is called at its end, however that comes, also if `work` never began.
        """
        self._answer_later(nonce, raw, work, None, over=over)

    def on_cancelled(self, nonce: Nonce) -> None:
        """Nobody waits for this answer any more; an answer that is gone already is fine."""
        if self._session.native:
            if task := self._numbered.get(nonce):
                task.cancel()
                return
        else:
            for task, (running, _) in self._answers.items():
                if running == nonce:
                    task.cancel()
                    return
        for deferred in self._deferred:
            if deferred.nonce == nonce is not None:
                self._deferred.remove(deferred)
                self._let_go(deferred.raw, credited=deferred.credited)
                self._session.fail(nonce, CANCELLED)
                self._flush()
                return

    @property
    def _takes_envelopes(self) -> bool:
        """Whether requests and messages may be calls of a Node program, and about them."""
        return not self._session.interphone and bool(self._handlers.methods)

    def _cancel_of_node(self, id: object) -> None:
        """A Node client takes back a call, by the id of its envelope."""
        for task, (_, envelope) in self._answers.items():
            if envelope is not None and envelope.id == id:
                task.cancel()
                return

    def _ask_later(
        self, nonce: Nonce, raw: msgspec.Raw, options: Options, first: object = None
    ) -> None:
        """Ask the handlers in a task; `first` is what the first one returned, if it was asked."""
        deadline = options.deadline if first is None else None
        work = self._ask_handlers(raw, first)
        self._answer_later(nonce, raw, work, deadline, loose=first)

    def _answer_later(
        self,
        nonce: Nonce,
        raw: msgspec.Raw,
        work: Coroutine[Any, Any, object],
        deadline: float | None,
        *,
        envelope: Envelope | None = None,
        loose: object = None,
        over: Callable[[], None] | None = None,
    ) -> None:
        """Answer in a task with what `work` returns; `loose` is a coroutine it will await."""
        self._take_on(raw, credited=True)
        until = None if deadline is None else monotonic() + deadline
        tasks = self._handlers.tasks

        def ended(task: asyncio.Task[None]) -> None:
            tasks.ended(task)
            task.cancelled() or task.exception()  # a KeyboardInterrupt ends the program anyway
            self._answers.pop(task, None)
            if self._session.native and self._numbered.get(nonce) is task:
                del self._numbered[nonce]
            self._let_go(raw, credited=True)
            if task.cancelled() and self._session.answering:  # every request is answered
                self._session.fail(nonce, CANCELLED, id=envelope.id if envelope else ABSENT)
                self._flush()
            for coroutine in (work, loose):
                if isinstance(coroutine, CoroutineType):
                    coroutine.close()  # it may have been cancelled before its first step
            if over is not None:
                over()

        answer = tasks.begin(self._answer(nonce, work, until, envelope), ended)
        if not answer.done():
            self._answers[answer] = nonce, envelope
            if self._session.native:
                self._numbered[nonce] = answer

    async def _answer(
        self,
        nonce: Nonce,
        work: Coroutine[Any, Any, object],
        until: float | None,
        envelope: Envelope | None,
    ) -> None:
        """Answer: with a result or with why there is none."""
        task = asyncio.current_task()
        assert task is not None  # it runs in one
        set_handling(task)
        self._answers[task] = nonce, envelope  # an eager one runs before it is returned
        if self._session.native:
            self._numbered[nonce] = task
        deadline = set_deadline(until)  # also where there is none: a context may have another
        try:
            result = await work
        except NotTaken as exc:
            self.fail(nonce, exc.failure, exc.error, envelope=envelope)
        except HostBusy as exc:
            self.fail(nonce, Failure("overloaded", str(exc)), envelope=envelope)
        except GeneratorExit:  # the loop is thrown away
            raise
        except BaseException as exc:
            if isinstance(exc, asyncio.CancelledError) and task.cancelling():
                raise
            self._explain(nonce, exc, envelope)
        else:
            if self._connection is not None and self._connection.crowded():
                with suppress(ConnectionLost):  # then the answer is dropped, and counted
                    await self._connection.writable()
            self.respond(nonce, envelope.result(result) if envelope else result)
        finally:
            deadline.end()

    async def _ask_handlers(self, raw: msgspec.Raw, first: object = None) -> object:
        """Ask the chain; `first` is what its first handler returned, if it was asked."""
        chain, tasks = self._handlers.on_request, self._handlers.tasks
        try:
            result = await first if isinstance(first, CoroutineType) else first
            if result is not PASS and first is not None:
                return result
        finally:
            if isinstance(first, CoroutineType):
                first.close()
        try:
            data = self._session.values.decode(raw) if raw else None
        except PayloadError as exc:
            raise NotTaken(Failure("invalid", str(exc)), exc) from exc
        result = await chain.answer(tasks, (*self._told, data), asked=first is not None)
        if result is PASS:
            raise NotTaken(Failure("unhandled", _unhandled(bool(chain))))
        return result

    def respond(self, nonce: Nonce, result: object) -> None:
        """Answer a request."""
        self.prompt.respond(nonce, result)

    def _explain(
        self, nonce: Nonce, error: BaseException, envelope: Envelope | None = None
    ) -> None:
        """Answer for a handler that raised; this side hears of it unless it was an answer.

        `SystemExit` is the handler's wish, not the server's. `KeyboardInterrupt` is the user's.
        """
        failure, fault = self._handlers.errors.told(self._codec, error)
        if fault is not None:
            self._raised(fault)
        self.fail(nonce, failure, envelope=envelope)
        if isinstance(error, KeyboardInterrupt):
            raise error

    def fail(
        self,
        nonce: Nonce,
        failure: Failure,
        error: Exception | None = None,
        *,
        envelope: Envelope | None = None,
    ) -> None:
        """Tell the asker why there is no answer; tell this side of the error, if there is one."""
        if error is not None:
            self._report(error)
        self._put_failure(nonce, failure, envelope.id if envelope else ABSENT)
        self._flush()

    def _put_failure(self, nonce: Nonce, failure: Failure, id: object) -> None:
        *lesser, least = failure.lesser()
        for each in (failure, *lesser):
            try:
                self._session.fail(nonce, each, id=id)
            except (PayloadError, MessageTooBig) as exc:
                if each is failure and failure.data is not None:  # which its author wants to know
                    self._report(exc)
            else:
                return
        self._session.fail(nonce, least)

    def _flush(self) -> None:
        if self._connection is not None:
            self._connection.flush_soon()

    # How much is under way

    def _take_on(self, raw: msgspec.Raw, *, credited: bool = False) -> None:
        """Count work; `credited` is a request, of which one of us has been told how many fit."""
        self.inflight += 1
        if credited and self._session.credit is not None:
            return
        self._uncredited += 1
        self._held += len(raw)
        limits = self._session.limits
        if self._uncredited >= limits.max_inflight or self._held >= limits.max_held:
            assert self._connection is not None  # it brought the work
            self._connection.stop_reading("busy")

    def _let_go(self, raw: msgspec.Raw, *, credited: bool = False) -> None:
        self.inflight -= 1
        if not credited or self._session.credit is None:
            self._uncredited -= 1
            self._held -= len(raw)
            limits = self._session.limits
            if self._uncredited < limits.max_inflight and self._held < limits.max_held:
                assert self._connection is not None
                self._connection.go_on_reading("busy")
        if self._idle is not None and self.inflight <= self._idle_at and not self._idle.done():
            self._idle.set_result(None)

    async def finish(self, grace: float, *, besides: asyncio.Task[Any] | None) -> None:
        """Wait until nothing is under way; then cancel the answers that are left.

        A handler that closes its own peer would wait for itself: it is left alone.
        """
        self._finishing = True
        self._turn_away()
        self._closer = besides
        self._idle_at = int(
            besides in self._answers or (self.hearing.reader is besides is not None)
        )
        if self.inflight > self._idle_at and grace > 0:
            assert self._connection is not None
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait(
                [self._idle, self._connection.closed],
                timeout=grace,
                return_when=asyncio.FIRST_COMPLETED,
            )
        self.abandon()

    def _turn_away(self) -> None:
        """What waits for the end of a pause will not be handled any more."""
        deferred, self._deferred = self._deferred, _NONE
        for each in deferred:
            self._let_go(each.raw, credited=each.credited)
            if each.nonce is None:
                self.unheard += 1
            else:
                self._session.fail(each.nonce, Failure("closing", "the peer is closing"))

    def abandon(self) -> None:
        """Nobody waits for the answers any more. Whoever ended the connection goes on."""
        for task in self._answers:
            if task is not self._closer:
                task.cancel()


def _unhandled(any_handler: bool) -> str:
    return "no handler took the request" if any_handler else "nobody handles requests here"
