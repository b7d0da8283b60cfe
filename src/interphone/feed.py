"""Feed: what a client is subscribed to, over all its connections.

It asks the server on behalf of the client's subscriptions and topic handlers, asks again
after each reconnection, and hands out what comes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import msgspec

from .errors import ConnectionLost, InterphoneError, Unsupported
from .handlers import Tasks
from .peer import DEFAULT_TIMEOUT, Peer
from .subscription import Subscription, Subscriptions, TopicHandler

__all__ = ["Feed", "check_result"]


class Feed:
    """The hub of a client's subscriptions.

    Args:
        standing: Returns the server, waiting for a connection so many seconds.
        present: Returns the server, or None while there is no connection.
        tasks: Where confirmations are awaited.
        report: Hears of what went wrong while nobody waited.
    """

    def __init__(
        self,
        *,
        standing: Callable[[float | None], Awaitable[Peer]],
        present: Callable[[], Peer | None],
        tasks: Tasks,
        report: Callable[[Exception], None],
    ) -> None:
        self._standing = standing
        self._present = present
        self._tasks = tasks
        self._report = report
        self._local = Subscriptions()

    @property
    def dropped(self) -> int:
        """Publications that subscriptions and handlers lost because their queues were full."""
        return sum(subscription.dropped for subscription in self._local.all())

    async def attach(self, subscription: Subscription[Any]) -> None:
        """Subscribe at the server."""
        peer = await self._standing(DEFAULT_TIMEOUT)
        self._local.add(subscription)
        try:
            subscribe = peer.protocol.subscribe
            check_result(await peer.ask(subscribe, subscription.topics, timeout=DEFAULT_TIMEOUT))
        except BaseException:
            unwanted = self._local.remove(subscription, subscription.topics)
            if unwanted and peer.open:  # the server may have heard of it all the same
                self._tasks.spawn(self._leave(peer, unwanted))
            raise

    def handle(self, reader: TopicHandler[Any]) -> None:
        """Subscribe a handler: at once, or with the next connection."""
        self._local.add(reader)
        peer = self._present()
        if peer is not None:
            answer = peer.ask(peer.protocol.subscribe, reader.topics, timeout=DEFAULT_TIMEOUT)
            self._tasks.spawn(self._confirm(answer))

    async def _confirm(self, answer: Awaitable[object]) -> None:
        try:
            check_result(await answer)
        except ConnectionLost:
            pass  # the next connection begins with it
        except InterphoneError as exc:
            self._report(exc)

    async def detach(self, subscription: Subscription[Any], topics: Iterable[str]) -> None:
        """Unsubscribe at the server from what nobody here wants any more."""
        unwanted = self._local.remove(subscription, topics)
        peer = self._present()
        if unwanted and peer is not None:
            await self._leave(peer, unwanted)

    async def _leave(self, peer: Peer, topics: Iterable[str]) -> None:
        with suppress(InterphoneError):  # gone, or it never knew: there is nothing left to end
            await peer.ask(peer.protocol.unsubscribe, topics, timeout=DEFAULT_TIMEOUT)

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        """End every subscription and handler of these topics."""
        for topic in topics:
            for subscription in self._local.on(topic):
                await subscription.unsubscribe(topic)

    async def restore(self, peer: Peer) -> None:
        """Subscribe again to everything that is wanted here, before the client is ready.

        @isdk/ipc-server may still hold a dead subscription of this id, which would delay
        every delivery: it is removed first (wire.md).

        Raises:
            ConnectionLost: The connection is gone again.
        """
        known: set[str] = set()
        try:
            while wanted := [name for name in self._local.names() if name not in known]:
                known.update(wanted)  # while we wait, handlers may be registered
                if peer.protocol.isdk:
                    await peer.ask(peer.protocol.unsubscribe, wanted, timeout=DEFAULT_TIMEOUT)
                subscribe = peer.protocol.subscribe
                check_result(await peer.ask(subscribe, wanted, timeout=DEFAULT_TIMEOUT))
            if unwanted := known.difference(self._local.names()):
                await self._leave(peer, sorted(unwanted))
        except ConnectionLost:
            raise
        except InterphoneError as exc:
            self._report(exc)

    def deliver(self, peer: Peer, topic: str, raw: msgspec.Raw) -> None:
        """Hand out a publication."""
        if not self._local.deliver(topic, raw, peer.protocol.codec):
            peer.inbox.unheard += 1

    def interrupt(self) -> None:
        """The connection is away: what is published meanwhile is missed."""
        for subscription in self._local.all():
            subscription.put_gap()

    def end(self, error: InterphoneError | None) -> None:
        """End every iteration: normally, or with an error."""
        self._local.end(error)


def check_result(answer: Any) -> dict[str, Any]:
    """Return the answer of a server that knows publish/subscribe, ``{"result": …}``.

    Raises:
        Unsupported: It answered something else.
    """
    if isinstance(answer, dict) and isinstance(answer.get("result"), bool):
        return answer
    raise Unsupported(
        "the server has no publish/subscribe: it answered something else", delivery="maybe_sent"
    )
