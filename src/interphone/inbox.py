"""Inbox: what a peer says, and the handlers that run for it.

Requests are handled concurrently. Messages are handled one at a time, in order, from a
queue that requests, pings and answers never wait for. When too much of a peer's is under
way, it is not read any further.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from inspect import iscoroutine
from typing import Any

import msgspec

from .connection import Connection
from .deadlines import set_deadline
from .errors import InvalidParams, MessageTooBig, MethodNotFound, PayloadError, RemoteError
from .handlers import PASS, Handler, Handlers
from .protocol.events import Nonce
from .protocol.messages import Asked, Failure, failure_of
from .protocol.payload import ABSENT, Codec
from .protocol.session import Session
from .protocol.shapes import Envelope, enveloped

__all__ = ["Inbox"]


class Inbox:
    """The work that one peer gives this side.

    Attributes:
        inflight: Its requests and messages that are being handled or wait for it.
        unheard: Messages that came when nobody listened.
    """

    def __init__(
        self,
        session: Session,
        handlers: Handlers,
        told: tuple[object, ...],
        report: Callable[[Exception], None],
        make_call: Callable[[], object],
    ) -> None:
        self.inflight = 0
        self.unheard = 0
        self._session = session
        self._handlers = handlers
        self._told = told
        self._report = report
        self._make_call = make_call
        self._connection: Connection | None = None
        self._held = 0  # bytes under way
        self._answers: dict[asyncio.Task[None], Nonce] = {}
        self._messages: deque[msgspec.Raw] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None  # done at so many under way:
        self._idle_at = 0
        self._closer: asyncio.Task[Any] | None = None
        self._deferred: list[tuple[msgspec.Raw, Callable[[], None]]] | None = None

    @property
    def _codec(self) -> Codec:
        codec: Codec = self._session.codec
        return codec

    def attach(self, connection: Connection) -> None:
        """Work for this connection; it is made after the inbox."""
        self._connection = connection

    # Waiting for handlers to be registered

    def defer(self) -> None:
        """Keep what comes until `release`."""
        self._deferred = []

    def release(self) -> None:
        """Handle what was kept, in order."""
        deferred, self._deferred = self._deferred or (), None
        for raw, handle in deferred:
            self._let_go(raw)
            handle()

    def _defer(self, raw: msgspec.Raw, handle: Callable[[], None]) -> None:
        assert self._deferred is not None  # asked by whoever calls
        self._deferred.append((raw, handle))
        self._take_on(raw)

    # Messages

    def on_message(self, raw: msgspec.Raw) -> None:
        """Handle a message now, or after those that came before it."""
        if self._deferred is not None:
            self._defer(raw, partial(self.on_message, raw))
        elif not self._handlers.on_message:
            self.unheard += 1
        elif self._reader is not None:
            self._messages.append(raw)
            self._take_on(raw)
        elif waiting := self._start(raw):
            self._take_on(raw)
            self._read_later(waiting, raw)

    def _start(self, raw: msgspec.Raw) -> list[Any]:
        """Call the plain handlers of a message; return what is left to be awaited."""
        try:
            data = self._codec.decode(raw) if raw else None
        except PayloadError as exc:
            self._session.counts.unreadable += 1
            self._report(exc)
            return []
        return self._handlers.on_message.start(*self._told, data)

    def _read_later(self, waiting: list[Any], raw: msgspec.Raw) -> None:
        self._reader = reader = self._handlers.tasks.start(self._read(waiting, raw))

        def ended(_: object) -> None:
            if self._reader is reader:  # else the next one reads already
                self._reader = None
            for coroutine in waiting:
                coroutine.close()  # it may have been cancelled before its first step

        if reader.done():
            ended(reader)
        else:
            reader.add_done_callback(ended)

    async def _read(self, waiting: list[Any], raw: msgspec.Raw) -> None:
        """Await the handlers of one message, then handle all that queued up meanwhile."""
        self._reader = asyncio.current_task()  # an eager task runs before it is returned
        while True:
            for coroutine in waiting:
                await self._handlers.on_message.guard(coroutine, self._told)
            self._let_go(raw)
            if not self._messages:
                self._reader = None
                return
            raw = self._messages.popleft()
            waiting = self._start(raw)

    def when_read(self, then: Callable[[], None]) -> None:
        """Call `then` when every message that came has been handled."""
        if self._reader is None:
            then()
        else:
            self._reader.add_done_callback(lambda _: then())

    # Requests

    def on_request(self, nonce: Nonce, raw: msgspec.Raw, deadline: float | None) -> None:
        """Have a request answered."""
        chain = self._handlers.on_request.handlers
        if self._deferred is not None:
            self._defer(raw, partial(self.on_request, nonce, raw, deadline))
        elif (
            self._handlers.methods
            and not self._session.interphone
            and (envelope := enveloped(self._codec, raw))
        ):
            work = self._run_method(envelope.method, envelope.params, envelope.named)
            self._answer_later(nonce, raw, work, deadline, envelope=envelope)
        elif not (chain and chain[0].inline and self._answer_inline(nonce, raw, chain[0])):
            self._answer_later(nonce, raw, self._ask_handlers(raw), deadline)

    def on_call(self, nonce: Nonce, raw: msgspec.Raw, deadline: float | None) -> None:
        """Have a method answer."""
        if self._deferred is not None:
            self._defer(raw, partial(self.on_call, nonce, raw, deadline))
        else:
            self._answer_later(nonce, raw, self._ask_method(raw), deadline)

    def answer(self, nonce: Nonce, raw: msgspec.Raw, work: Coroutine[Any, Any, object]) -> None:
        """Answer a request with what `work` returns, which is cancelled when nobody waits."""
        self._answer_later(nonce, raw, work, None)

    def on_cancelled(self, nonce: Nonce) -> None:
        """Nobody waits for this answer any more; an answer that is gone already is fine."""
        for task, running in self._answers.items():
            if running == nonce:
                task.cancel()
                return

    def _answer_inline(self, nonce: Nonce, raw: msgspec.Raw, handler: Handler) -> bool:
        """Ask the first handler without a task; False if its payload cannot be decoded."""
        try:
            data = self._codec.decode(raw) if raw else None
        except PayloadError:
            return False  # the long way says why
        try:
            result = handler.function(*self._told, data)
        except Exception as exc:
            self.fail(nonce, failure_of(exc), exc)
            return True
        if result is PASS or iscoroutine(result):
            self._answer_later(nonce, raw, self._ask_handlers(raw, result), None, loose=result)
        else:
            self.respond(nonce, result)
        return True

    def _answer_later(
        self,
        nonce: Nonce,
        raw: msgspec.Raw,
        work: Coroutine[Any, Any, object],
        deadline: float | None,
        *,
        envelope: Envelope | None = None,
        loose: object = None,
    ) -> None:
        """Answer in a task with what `work` returns; `loose` is a coroutine it will await."""
        self._take_on(raw)
        answer = self._handlers.tasks.start(self._answer(nonce, work, deadline, envelope))

        def ended(task: asyncio.Task[None]) -> None:
            self._answers.pop(task, None)
            self._let_go(raw)
            for coroutine in (work, loose):
                if iscoroutine(coroutine):
                    coroutine.close()  # it may have been cancelled before its first step

        if answer.done():
            ended(answer)
        else:
            self._answers[answer] = nonce
            answer.add_done_callback(ended)

    async def _answer(
        self,
        nonce: Nonce,
        work: Coroutine[Any, Any, object],
        deadline: float | None,
        envelope: Envelope | None,
    ) -> None:
        """Answer: with a result or with why there is none."""
        task = asyncio.current_task()
        assert task is not None  # it runs in one
        self._answers[task] = nonce  # an eager one runs before it is returned
        if deadline is not None:
            set_deadline(deadline)
        try:
            result = await work
            if self._connection is not None and self._connection.crowded():
                await self._connection.writable()
        except _NotTaken as exc:
            self.fail(nonce, exc.failure, exc.error, envelope=envelope)
        except SystemExit as exc:  # the handler's wish is not the server's
            self.fail(nonce, Failure("failed", str(exc), "SystemExit"), envelope=envelope)
        except asyncio.CancelledError:
            if task.cancelling():
                raise
            failure = Failure("failed", "the handler was cancelled", "CancelledError")
            self.fail(nonce, failure, envelope=envelope)
        except Exception as exc:
            self.fail(nonce, failure_of(exc), exc, envelope=envelope)
        else:
            self.respond(nonce, envelope.result(result) if envelope else result)

    async def _ask_handlers(self, raw: msgspec.Raw, first: object = None) -> object:
        """Ask the chain; `first` is what its first handler returned, if it was asked."""
        chain, tasks = self._handlers.on_request, self._handlers.tasks
        try:
            result = await first if iscoroutine(first) else first
            if result is not PASS and first is not None:
                return result
        finally:
            if iscoroutine(first):
                first.close()
        try:
            data = self._codec.decode(raw) if raw else None
        except PayloadError as exc:
            raise _NotTaken(Failure("invalid", str(exc)), exc) from exc
        result = await chain.answer(tasks, (*self._told, data), asked=first is not None)
        if result is PASS:
            raise _NotTaken(Failure("unhandled", _unhandled(bool(chain))))
        return result

    # Methods

    async def _ask_method(self, raw: msgspec.Raw) -> object:
        """Run the method that a call is for."""
        try:
            asked = self._codec.decode(raw, Asked)
        except PayloadError as exc:
            raise _NotTaken(Failure("invalid", f"no call: {exc}"), exc) from exc
        return await self._run_method(asked.method, asked.params, asked.named)

    async def _run_method(self, name: str, params: msgspec.Raw, named: msgspec.Raw) -> object:
        try:
            method = self._handlers.methods.get(name)
            args, kwargs = method.bind(self._codec, params, named, self._make_call())
        except MethodNotFound as exc:
            facts: dict[str, object] = {"method": exc.method, "nearest": exc.nearest}
            raise _NotTaken(Failure("method-not-found", str(exc), data=facts)) from None
        except InvalidParams as exc:
            facts = {"method": exc.method, "why": exc.why, "parameter": exc.parameter}
            raise _NotTaken(Failure("invalid-params", str(exc), data=facts)) from None
        all_running = self._handlers.running
        running = all_running.get(name, 0)
        if method.limit is not None and running >= method.limit:
            raise _NotTaken(Failure("overloaded", f"{name} runs {running} times already"))
        all_running[name] = running + 1
        try:
            return await method.handler.run(self._handlers.tasks, args, kwargs)
        finally:
            all_running[name] -= 1

    def respond(self, nonce: Nonce, result: object) -> None:
        """Answer a request."""
        try:
            self._session.respond(nonce, self._codec.encode(result))
        except (PayloadError, MessageTooBig) as exc:
            self.fail(nonce, failure_of(exc), exc)
        else:
            self._flush()

    def fail(
        self,
        nonce: Nonce,
        failure: Failure,
        error: Exception | None = None,
        *,
        envelope: Envelope | None = None,
    ) -> None:
        """Tell the asker why there is no answer; tell this side, too, unless it was meant so."""
        if error is not None and not isinstance(error, RemoteError):
            self._report(error)
        try:
            self._session.fail(nonce, failure, id=envelope.id if envelope else ABSENT)
        except (PayloadError, MessageTooBig):  # its message or data cannot go over
            self._session.fail(
                nonce, Failure(failure.code, "an error that cannot be sent", failure.kind)
            )
        self._flush()

    def _flush(self) -> None:
        if self._connection is not None:
            self._connection.flush_soon()

    # How much is under way

    def _take_on(self, raw: msgspec.Raw) -> None:
        self.inflight += 1
        self._held += len(bytes(raw))
        limits = self._session.limits
        if self.inflight >= limits.max_inflight or self._held >= limits.max_held:
            assert self._connection is not None  # it brought the work
            self._connection.stop_reading("busy")

    def _let_go(self, raw: msgspec.Raw) -> None:
        self.inflight -= 1
        self._held -= len(bytes(raw))
        limits = self._session.limits
        if self.inflight < limits.max_inflight and self._held < limits.max_held:
            assert self._connection is not None
            self._connection.go_on_reading("busy")
        if self._idle is not None and self.inflight <= self._idle_at and not self._idle.done():
            self._idle.set_result(None)

    async def finish(self, grace: float, *, besides: asyncio.Task[Any] | None) -> None:
        """Wait until nothing is under way; then cancel the answers that are left.

        A handler that closes its own peer would wait for itself: it is left alone.
        """
        self._closer = besides
        self._idle_at = int(besides in self._answers or (self._reader is besides is not None))
        if self.inflight > self._idle_at and grace > 0:
            assert self._connection is not None
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait(
                [self._idle, self._connection.closed],
                timeout=grace,
                return_when=asyncio.FIRST_COMPLETED,
            )
        self.abandon()

    def abandon(self) -> None:
        """Nobody waits for the answers any more. Whoever ended the connection goes on."""
        for task in self._answers:
            if task is not self._closer:
                task.cancel()


class _NotTaken(Exception):
    """A request that no handler ran for, and what its asker is told."""

    def __init__(self, failure: Failure, error: Exception | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.error = error


def _unhandled(any_handler: bool) -> str:
    return "no handler took the request" if any_handler else "nobody handles requests here"
