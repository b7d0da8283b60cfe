"""Calls: methods run for one peer, with one answer or piece by piece.

What a call needs beyond the function and its parameters is put together here: the injected
`Call`, the ends of streams, the count of how often each method runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple

import msgspec

from .connection import Connection
from .errors import InvalidParams, MethodNotFound, PayloadError, StreamClosed
from .handlers import Handlers
from .methods import Method
from .protocol.events import Nonce, Options
from .protocol.messages import Asked, Failure
from .protocol.payload import ABSENT, Codec
from .protocol.session import Session
from .protocol.shapes import Envelope
from .stream import WINDOW, BlockingSource, Sink, Source

__all__ = ["Calls", "NotTaken", "Prepared", "Report"]

Report = Callable[[object], Awaitable[None]]
"""Tells the caller how far the work is."""


class NotTaken(Exception):
    """A request that no handler ran for, and what its asker is told."""

    def __init__(self, failure: Failure, error: Exception | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.error = error


class Prepared(NamedTuple):
    """A method, and what it will be called with."""

    method: Method
    args: list[Any]
    kwargs: dict[str, Any]

    @property
    def inline(self) -> bool:
        """Whether it may run at once, where it stands."""
        return self.method.handler.inline and not self.method.stream


class Calls:
    """The methods that run for one peer."""

    def __init__(
        self,
        session: Session,
        handlers: Handlers,
        make_call: Callable[[Report | None, float | None], object],
    ) -> None:
        self._session = session
        self._handlers = handlers
        self._make_call = make_call
        self._connection: Connection | None = None
        self._sinks: dict[Nonce, Sink] = {}
        self._sources: dict[Nonce, Source[Any]] = {}

    @property
    def _codec(self) -> Codec:
        codec: Codec = self._session.codec
        return codec

    def attach(self, connection: Connection) -> None:
        """Work for this connection; it is made afterwards."""
        self._connection = connection

    # With one answer

    def prepare(self, nonce: Nonce, raw: msgspec.Raw, options: Options) -> Prepared:
        """Find the method that a call is for, and what to call it with.

        Raises:
            NotTaken: There is none, or it does not fit.
        """
        report = partial(self._report, nonce) if options.progress else None
        return self._prepare(self._read(raw), report, options.deadline)

    def prepare_envelope(self, envelope: Envelope) -> Prepared:
        """The same for a Node client; a method that streams answers with a list if it may."""
        asked = Asked(envelope.method, envelope.params, envelope.named)
        report = partial(self._report_to_node, envelope.id) if envelope.id is not ABSENT else None
        return self._prepare(asked, report, None)

    def _prepare(self, asked: Asked, report: Report | None, seconds: float | None) -> Prepared:
        method = self._find(asked.method)
        if method.stream or method.reads is not None:
            _require_one_answer(method)
        call = self._make_call(report, seconds) if method.injected else None
        return Prepared(method, *self._bind(method, asked, call))

    def run_inline(self, prepared: Prepared) -> object:
        """Run a method that never waits; it may return a coroutine all the same."""
        method, args, kwargs = prepared
        self._count_in(method)
        try:
            return method.handler.function(*args, **kwargs)
        except Exception:
            method.failures += 1
            raise
        finally:
            self._count_out(method)

    async def run(self, prepared: Prepared) -> object:
        """Run a method, and return its one answer."""
        method, args, kwargs = prepared
        tasks = self._handlers.tasks
        self._count_in(method)
        if method.handler.place == "thread" and not method.stream:
            call = partial(method.handler.function, *args, **kwargs)
            return await self._counted(method, tasks.in_thread(call, ended=self._out(method)))
        try:
            return await self._counted(method, self._run(method, args, kwargs))
        finally:
            self._count_out(method)

    async def _run(self, method: Method, args: list[Any], kwargs: dict[str, Any]) -> object:
        tasks = self._handlers.tasks
        if not method.stream:
            return await method.handler.run(tasks, args, kwargs)
        async with aclosing(method.handler.iterate(tasks, args, kwargs)) as items:
            return [item async for item in items]

    async def _counted(self, method: Method, work: Awaitable[object]) -> object:
        try:
            return await work
        except Exception:
            method.failures += 1
            raise

    def _out(self, method: Method) -> Callable[[], None]:
        return partial(self._count_out, method)

    def _count_out(self, method: Method) -> None:
        self._handlers.running[method.name] -= 1

    def _read(self, raw: msgspec.Raw) -> Asked:
        try:
            asked: Asked = self._codec.decode(raw, Asked)
        except PayloadError as exc:
            raise NotTaken(Failure("invalid", f"no call: {exc}"), exc) from exc
        return asked

    def _find(self, name: str) -> Method:
        if self._session.interphone and name in self._handlers.builtins:
            return self._builtin(name)
        try:
            method: Method = self._handlers.methods.get(name)
            return method
        except MethodNotFound as exc:
            facts = {"method": exc.method, "nearest": exc.nearest}
            raise NotTaken(Failure("method-not-found", str(exc), data=facts)) from None

    def _builtin(self, name: str) -> Method:
        """Return a method of the library's own, if the caller may know of it."""
        assert self._connection is not None  # it brought the call
        if not self._connection.same_owner:
            why = f"{name} is only for ends that the system says are of the same user"
            raise NotTaken(Failure("unsupported", why))
        method: Method = self._handlers.builtin(name)
        return method

    def _bind(
        self, method: Method, asked: Asked, call: object, items: object = None
    ) -> tuple[list[Any], dict[str, Any]]:
        try:
            return method.bind(self._session.values, asked.params, asked.named, call, items)
        except InvalidParams as exc:
            facts = {"method": exc.method, "why": exc.why, "parameter": exc.parameter}
            raise NotTaken(Failure("invalid-params", str(exc), data=facts)) from None

    def _count_in(self, method: Method) -> None:
        all_running = self._handlers.running
        running = all_running.get(method.name, 0)
        if method.limit is not None and running >= method.limit:
            message = f"{method.name} runs {running} times already"
            raise NotTaken(Failure("overloaded", message))
        all_running[method.name] = running + 1
        method.calls += 1

    # Piece by piece

    async def stream(self, nonce: Nonce, raw: msgspec.Raw, options: Options) -> object:
        """Run a method that streams its answer, or what it is asked about, or both."""
        assert self._connection is not None  # it brought the call
        streams, flush = self._session.streams, self._connection.flush_soon

        def used(size: int) -> None:
            streams.used(nonce, size)
            flush()

        asked = self._read(raw)
        method = self._find(asked.method)
        if not method.stream and method.reads is None:
            raise NotTaken(Failure("unsupported", f"{method.name} does not stream: call it"))
        report = partial(self._report, nonce) if options.progress else None
        source: Source[Any] = Source(self._codec, method.reads, used, self._connection)
        in_thread = method.handler.place == "thread"
        items = BlockingSource(source) if in_thread else source
        args, kwargs = self._bind(method, asked, self._make_call(report, options.deadline), items)
        sink = Sink(self._connection, self._codec, lambda item: streams.item(nonce, item))
        self._count_in(method)
        self._sinks[nonce], self._sources[nonce] = sink, source
        if streams.finished(nonce):  # that may have come right behind the call
            source.finish()
        elif method.reads is not None:
            streams.demand(nonce, WINDOW)
            flush()
        try:
            return await self._pass_on(method, args, kwargs, sink)
        except Exception:
            method.failures += 1
            raise
        finally:
            self._count_out(method)
            del self._sinks[nonce], self._sources[nonce]
            source.discard(StreamClosed("the call that this belongs to is over"))

    async def _pass_on(
        self, method: Method, args: list[Any], kwargs: dict[str, Any], sink: Sink
    ) -> object:
        """Run the method; send what it yields, or return what it returns."""
        tasks = self._handlers.tasks
        if not method.stream:
            if method.handler.place == "thread":  # it may read for long: not in a worker
                return await tasks.alone(partial(method.handler.function, *args, **kwargs))
            return await method.handler.run(tasks, args, kwargs)
        async with aclosing(method.handler.iterate(tasks, args, kwargs)) as items:
            async for item in items:
                await sink.send(item)
        return None

    def on_granted(self, nonce: Nonce) -> None:
        """The caller has room for more items."""
        if nonce in self._sinks:
            self._sinks[nonce].more()

    def on_input(self, nonce: Nonce, raw: msgspec.Raw) -> None:
        """An item came from the caller, or (without a payload) the end of them."""
        source = self._sources.get(nonce)
        if source is None:
            return
        if raw:
            source.put(raw)
        else:
            source.finish()

    # How far the work is

    async def _report(self, nonce: Nonce, value: object) -> None:
        payload = self._codec.encode(value)
        assert self._connection is not None
        if self._connection.crowded():
            await self._connection.writable()
        self._session.report_progress(nonce, payload)
        self._connection.flush_soon()

    async def _report_to_node(self, id: object, value: object) -> None:
        """The words of the Language Server Protocol, as a message."""
        assert self._connection is not None
        params = {"token": id, "value": value}
        body = {"jsonrpc": "2.0", "method": "$/progress", "params": params}
        payload = self._codec.encode(body)
        if self._connection.crowded():
            await self._connection.writable()
        self._session.remark(payload)
        self._connection.flush_soon()


def _require_one_answer(method: Method) -> None:
    """Refuse a call of a method that streams, unless it may answer with a list."""
    if method.reads is not None:
        why = f"{method.name} reads a stream: open it as one"
        raise NotTaken(Failure("unsupported", why))
    if method.stream and not method.collect:
        why = f"{method.name} streams its answer: open it as a stream"
        raise NotTaken(Failure("unsupported", why))
