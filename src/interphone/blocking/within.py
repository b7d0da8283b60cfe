"""Within: calls with one timeout."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from ..contracts import Contract, as_named

if TYPE_CHECKING:
    from .sequences import Stream

__all__ = ["Items", "Within"]

P = ParamSpec("P")
T = TypeVar("T")

Items = Iterable[object]
"""What is sent to a method piece by piece."""

Asker = Callable[..., Any]
"""Asks, and waits: method, params, named, items, returns, timeout, on_progress."""

StreamMaker = Callable[..., "Stream[Any]"]
"""Makes a stream: method, params, kwargs, options."""


class Within:
    """Calls with one timeout, made by `Peer.within` and `Client.within`."""

    def __init__(
        self,
        ask: Asker,
        open_stream: StreamMaker,
        timeout: float | None,
        on_progress: Callable[[Any], object] | None,
    ) -> None:
        self._ask = ask
        self._open_stream = open_stream
        self._timeout = timeout
        self._on_progress = on_progress

    @overload
    def call(
        self,
        method: str,
        /,
        *params: object,
        named: Mapping[str, object] | None = ...,
        items: Items | None = ...,
        returns: type[T],
    ) -> T: ...
    @overload
    def call(
        self,
        method: str,
        /,
        *params: object,
        named: Mapping[str, object] | None = ...,
        items: Items | None = ...,
        returns: Any = ...,
    ) -> Any: ...
    @overload
    def call(self, method: Contract[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    def call(self, method: Any, /, *params: Any, **kwargs: Any) -> Any:
        """As `Peer.call`, with this timeout."""
        asked = as_named(method, params, kwargs)
        return self._ask(**asked, timeout=self._timeout, on_progress=self._on_progress)

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
        return self._open_stream(method, params, kwargs, {"timeout": self._timeout})
