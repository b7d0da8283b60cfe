"""Asking: how a call or a stream is put, by a name or by a contract.

Peers and clients offer the same two ways to name a method. What was said is brought into one
form here, and kept together with a timeout by `Within`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, ParamSpec, TypeVar, overload

from .contracts import Contract, as_named, name_of
from .protocol.events import Nonce
from .stream import WINDOW, Line, Stream

__all__ = ["Items", "OpenStream", "Within", "open_named"]

P = ParamSpec("P")
T = TypeVar("T")

Items = AsyncIterable[object] | Iterable[object]
"""What is sent to a method piece by piece."""

OpenStream = Callable[..., Awaitable[tuple[Line, Nonce]]]
"""Begins a stream: method, params, named, timeout, stream."""


class Within:
    """Calls with one timeout, made by `Peer.within` and `Client.within`."""

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        open_stream: OpenStream,
        timeout: float | None,
        on_progress: Callable[[Any], object] | None,
    ) -> None:
        self._call = call
        self._open_stream = open_stream
        self._options: dict[str, Any] = {"timeout": timeout}
        self._listener = {"on_progress": on_progress}

    @overload
    async def call(
        self,
        method: str,
        /,
        *params: object,
        named: Mapping[str, object] | None = ...,
        items: Items | None = ...,
        returns: type[T],
    ) -> T: ...
    @overload
    async def call(
        self,
        method: str,
        /,
        *params: object,
        named: Mapping[str, object] | None = ...,
        items: Items | None = ...,
        returns: Any = ...,
    ) -> Any: ...
    @overload
    async def call(self, method: Contract[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def call(self, method: Any, /, *params: Any, **kwargs: Any) -> Any:
        """As `Peer.call`, with this timeout."""
        asked = as_named(method, params, kwargs)
        return await self._call(**asked, **self._options, **self._listener)

    @overload
    def stream(
        self,
        method: str,
        /,
        *params: object,
        named: Mapping[str, object] | None = ...,
        items: Items | None = ...,
        of: type[T],
        window: int = ...,
    ) -> Stream[T]: ...
    @overload
    def stream(
        self,
        method: str,
        /,
        *params: object,
        named: Mapping[str, object] | None = ...,
        items: Items | None = ...,
        of: Any = ...,
        window: int = ...,
    ) -> Stream[Any]: ...
    @overload
    def stream(
        self, method: Contract[P, AsyncIterator[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Stream[T]: ...
    def stream(self, method: Any, /, *params: Any, **kwargs: Any) -> Stream[Any]:
        """As `Peer.stream`, with this timeout for the whole stream."""
        return open_named(self._open_stream, method, params, kwargs, self._options)


def open_named(
    ask: OpenStream,
    method: object,
    params: tuple[object, ...],
    kwargs: dict[str, Any],
    options: Mapping[str, Any] | None = None,
) -> Stream[Any]:
    """Make the stream of a method by its name or contract."""
    if isinstance(method, Contract):
        if not method.stream:
            raise TypeError(f"{method!r} has one answer: call it")
        given = method.split(*params, **kwargs)
        kwargs = {"named": given.named, "items": given.items, "of": method.returns}
        return _open_named(ask, method.name, given.params, **kwargs, **(options or {}))
    return _open_named(ask, name_of(method), params, **kwargs, **(options or {}))


def _open_named(
    ask: OpenStream,
    method: str,
    params: tuple[object, ...],
    *,
    named: Mapping[str, object] | None = None,
    items: Items | None = None,
    of: Any = Any,
    window: int = WINDOW,
    timeout: float | None = None,
) -> Stream[Any]:
    begin = partial(ask, method, params, named, timeout)
    return Stream(begin, of=of, items=items, window=window)
