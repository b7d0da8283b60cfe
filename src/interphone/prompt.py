"""Prompt: requests and calls that are answered where they stand.

That is what functions registered with ``on="inline"`` do: no task, no coroutine. Everything else
is left to the long way, in `inbox.py`, and so is saying what is wrong with what came.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CoroutineType
from typing import Any, Final

import msgspec

from .connection import Connection
from .errors import MessageTooBig, PayloadError
from .handlers import PASS, Handlers
from .methods import Methods
from .protocol.events import Nonce, Options
from .protocol.messages import Asked, Failure, failure_of
from .protocol.session import Session

__all__ = ["Prompt"]

# Hot path: what is Final here need not be looked up by what is compiled.
_PASS: Final = PASS
_COROUTINE: Final = CoroutineType
_ASKED: Final = Asked


class Prompt:
    """Answers what one peer asks, if that can be done at once.

    Args:
        told: What every handler of requests is told besides the value: its peer, or nothing.
        envelope: Takes what may be a call of a Node program; tells whether it was one.
        request: The long way of a request.
        call: The same of a call.
        ask: Answers with what the handlers will say, the first of which has returned this.
        later: Answers with what a coroutine will return, within so many seconds.
        explain: Answers for what a handler raised.
        fail: Answers with a failure.

    Attributes:
        deferring: Whether nothing is handled at the moment.
    """

    __slots__ = (
        "_ask",
        "_call",
        "_chain",
        "_connection",
        "_envelope",
        "_explain",
        "_fail",
        "_handlers",
        "_later",
        "_methods",
        "_request",
        "_running",
        "_session",
        "_tells",
        "_told",
        "deferring",
    )

    def __init__(
        self,
        session: Session,
        handlers: Handlers,
        told: tuple[object, ...],
        *,
        envelope: Callable[[Nonce, msgspec.Raw], bool],
        request: Callable[[Nonce, msgspec.Raw, Options], None],
        call: Callable[[Nonce, msgspec.Raw, Options], None],
        ask: Callable[[Nonce, msgspec.Raw, Options, object], None],
        later: Callable[[Nonce, msgspec.Raw, Any, float | None], None],
        explain: Callable[[Nonce, BaseException], None],
        fail: Callable[[Nonce, Failure, Exception], None],
    ) -> None:
        self._session = session
        self._connection: Connection | None = None
        self._handlers: Any = handlers
        self._chain: Any = handlers.on_request
        self._methods: Methods[Any] = handlers.methods
        self._running = handlers.running
        self._tells = bool(told)
        self._told = told[0] if told else None
        self._envelope = envelope
        self._request = request
        self._call = call
        self._ask = ask
        self._later = later
        self._explain = explain
        self._fail = fail
        self.deferring = False

    def attach(self, connection: Connection) -> None:
        """Work for this connection; it is made afterwards."""
        self._connection = connection

    def on_request(self, nonce: Nonce, raw: msgspec.Raw, options: Options) -> None:
        """Have a request answered."""
        handlers = self._chain.handlers
        if self.deferring or not handlers or not handlers[0].inline:
            self._request(nonce, raw, options)
            return
        if not self._session.interphone and self._envelope(nonce, raw):
            return
        function = handlers[0].function
        try:
            data = self._session.values.decode(raw) if raw else None
        except PayloadError:
            self._ask(nonce, raw, options, None)  # that says why
            return
        try:
            result = function(self._told, data) if self._tells else function(data)
        except BaseException as exc:
            self._explain(nonce, exc)
            return
        if result is _PASS or isinstance(result, _COROUTINE):
            self._ask(nonce, raw, options, result)
        else:
            self.respond(nonce, result)

    def on_call(self, nonce: Nonce, raw: msgspec.Raw, options: Options) -> None:
        """Have a method answer."""
        if self.deferring or not self._run(nonce, raw, options):
            self._call(nonce, raw, options)

    def _run(self, nonce: Nonce, raw: msgspec.Raw, options: Options) -> bool:
        """Run a method that never waits; False, and nothing has been done, if it is none."""
        session = self._session
        try:
            asked: Any = session.codec.decode(raw, _ASKED)
            name: str = asked.method
            if name in self._handlers.builtins:
                return False
            method = self._methods.get(name)
            if not method.prompt:
                return False
            args, kwargs = method.bind(session.values, asked.params, asked.named)
        except Exception:  # types are user code; the long way says what is wrong
            return False
        running = self._running
        count = running.get(name, 0)
        if method.limit is not None and count >= method.limit:
            return False
        running[name] = count + 1
        method.calls += 1
        try:
            result = method.handler.function(*args, **kwargs)
        except BaseException as exc:
            running[name] -= 1
            if isinstance(exc, Exception):
                method.failures += 1
            self._explain(nonce, exc)
            return True
        running[name] -= 1
        if isinstance(result, _COROUTINE):
            self._later(nonce, raw, result, options.deadline)
        else:
            self.respond(nonce, result)
        return True

    def respond(self, nonce: Nonce, result: object) -> None:
        """Answer a request with a result."""
        session = self._session
        try:
            session.respond(nonce, session.pack(result))
        except (PayloadError, MessageTooBig) as exc:
            self._fail(nonce, failure_of(exc), exc)
        else:
            if self._connection is not None:
                self._connection.flush_soon()
