"""Feed: what a client is subscribed to, over all its connections.

It asks the server on behalf of the client's subscriptions and topic handlers, asks again
after each reconnection, and hands out what comes.

A server of ours that can do "topics" is told of each subscription, by an id, and says which
of them a publication is for. Any other is told names, each once, and what comes is looked up
here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import msgspec

from .backlog import Route
from .errors import ConnectionLost, InterphoneError, Unsupported
from .handlers import Tasks
from .peer import DEFAULT_TIMEOUT, Peer
from .protocol.allowance import Account
from .protocol.deliveries import Taker
from .protocol.shapes import Marks, Terms
from .protocol.topics import is_pattern
from .subscription import Subscription, Subscriptions, TopicHandler

__all__ = ["Feed", "check_result"]

MAX_ON_THE_WAY = 1024 * 1024
"""Bytes that may be under way to a subscription that blocks, and one publication more."""

MAX_ROUTES = 256


class _Entry(msgspec.Struct, eq=False):
    """A subscription of this client, as the server is told of it."""

    subscription: Subscription[Any]
    id: int
    account: Account | None  # of one that blocks
    peer: Peer | None = None  # the server that was told of it last

    def begin(self, peer: Peer) -> Terms:
        """Begin anew with this server; return what it is to be told."""
        self.peer = peer
        credit = None if self.account is None else self.account.begin(*self.subscription.unread)
        return Terms(self.id, self.subscription.group, credit)

    def grant(self, items: int, size: int) -> None:
        """Let the server send more."""
        if self.peer is not None and self.peer.open:
            self.peer.protocol.allow(self.id, items, size)
            self.peer.connection.flush_soon()


class _Farewell(NamedTuple):
    """The end of a subscription to some topics: what one kind of server is told, or the other."""

    id: int
    removed: list[str]
    unwanted: list[str]


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
        self._entries: dict[Subscription[Any], _Entry] = {}
        self._by_id: dict[int, _Entry] = {}
        self._last_id = 0
        self._leaving: dict[int, int] = {}  # how often the server is being told of the end of an id
        self._untold: dict[int, list[str]] = {}  # what it did not take
        self._told_again: set[int] = set()
        self._routes: list[Route] = []  # as long as nobody comes or leaves

    # Subscribing

    @property
    def dropped(self) -> int:
        """Publications that subscriptions and handlers lost because their queues were full."""
        return sum(subscription.dropped for subscription in self._local.all())

    async def attach(self, subscription: Subscription[Any]) -> None:
        """Subscribe at the server."""
        peer = await self._standing(DEFAULT_TIMEOUT)
        _check_server(peer, subscription)
        self._add(subscription)
        try:
            check_result(await self._subscribe(peer, subscription))
        except BaseException:
            farewell = self._remove(subscription, subscription.topics)
            if peer.open:  # the server may have heard of it all the same
                self._tasks.spawn(self._leave(peer, farewell))
            raise

    def handle(self, reader: TopicHandler[Any]) -> None:
        """Subscribe a handler: at once, or with the next connection."""
        peer = self._present()
        if peer is not None:
            _check_server(peer, reader)
        self._add(reader)
        if peer is not None:
            self._tasks.spawn(self._confirm(self._subscribe(peer, reader)))

    def _add(self, subscription: Subscription[Any]) -> None:
        backlog, account = subscription.backlog, None
        if backlog.blocks:
            account = Account(backlog.max_items, MAX_ON_THE_WAY)
            backlog.max_bytes = MAX_ON_THE_WAY
        self._last_id += 1
        entry = _Entry(subscription, self._last_id, account)
        backlog.keep_account(account, entry.grant)
        self._close_routes()
        self._local.add(subscription)
        self._entries[subscription] = self._by_id[entry.id] = entry

    def _subscribe(self, peer: Peer, subscription: Subscription[Any]) -> Awaitable[object]:
        """Ask the server, at once; await what this returns for the answer."""
        verb: Callable[..., Any] = peer.protocol.subscribe
        if _knows(peer):
            entry = self._entries[subscription]
            verb = partial(verb, terms=entry.begin(peer))
        return peer.ask(verb, self._local.of(subscription), timeout=DEFAULT_TIMEOUT)

    async def _confirm(self, answer: Awaitable[object]) -> None:
        try:
            check_result(await answer)
        except ConnectionLost:
            pass  # the next connection begins with it
        except InterphoneError as exc:
            self._report(exc)

    # Leaving

    async def detach(self, subscription: Subscription[Any], topics: Iterable[str]) -> None:
        """Unsubscribe at the server from what nobody here wants any more."""
        farewell = self._remove(subscription, topics)
        peer = self._present()
        if peer is not None:
            await self._leave(peer, farewell)

    def _remove(self, subscription: Subscription[Any], topics: Iterable[str]) -> _Farewell:
        removed = [topic for topic in topics if self._local.has(subscription, topic)]
        self._close_routes()
        unwanted = self._local.remove(subscription, removed)
        entry = self._entries.get(subscription)
        if entry is not None and not self._local.of(subscription):
            self._discard(entry)
        return _Farewell(0 if entry is None else entry.id, removed, unwanted)

    def _discard(self, entry: _Entry) -> None:
        """Nothing comes for it any more, and nothing is given back."""
        entry.subscription.backlog.keep_account(None, entry.grant)
        del self._entries[entry.subscription], self._by_id[entry.id]

    async def _leave(self, peer: Peer, farewell: _Farewell) -> None:
        """Tell the server, at once; return when it has heard it, or after a while."""
        topics = farewell.removed if _knows(peer) else farewell.unwanted
        if topics:
            telling = self._tell(peer, farewell.id, topics)
            if telling is not None:
                await asyncio.wait([telling], timeout=DEFAULT_TIMEOUT)

    def _tell(self, peer: Peer, id: int, topics: list[str]) -> asyncio.Task[Any] | None:
        """Tell the server that a subscription has left these topics; None if that is not possible.

        It is not taken back when nobody here waits any longer: publishers would wait for ever
        for a subscription of which only the server believes that it is there.
        """
        verb: Callable[..., Any] = peer.protocol.unsubscribe
        timeout: float | None = DEFAULT_TIMEOUT
        if _knows(peer):
            verb, timeout = partial(verb, terms=Terms(id)), None
        try:
            answer = peer.ask(verb, topics, timeout=timeout)
        except InterphoneError:  # gone, or too much is asked of it
            self._untold[id] = topics
            return None
        telling = self._tasks.start(answer)

        def told(telling: asyncio.Task[Any]) -> None:
            self._leaving[id] -= 1
            if not self._leaving[id]:
                del self._leaving[id]
            if not telling.cancelled() and telling.exception() is not None:
                self._untold[id] = topics

        self._leaving[id] = self._leaving.get(id, 0) + 1
        telling.add_done_callback(told)
        return telling

    def _tell_again(self, peer: Peer, id: int, topic: str) -> None:
        """The server publishes for a subscription that has ended: once, tell it again."""
        if id > self._last_id or id in self._told_again or id in self._leaving:
            return
        self._told_again.add(id)
        if self._tell(peer, id, self._untold.pop(id, [topic])) is None:
            self._told_again.discard(id)  # it was not told

    async def unsubscribe(self, topics: Iterable[str]) -> None:
        """End every subscription and handler of these topics and patterns."""
        for topic in topics:
            for subscription in self._local.holders(topic):
                await subscription.unsubscribe(topic)

    # Coming back

    async def restore(self, peer: Peer) -> None:
        """Subscribe again to everything that is wanted here, before the client is ready.

        While we wait handlers may be registered, and leave: nothing is awaited after the server
        has been told of the last one.

        What the server does not take is reported; it is asked again by the next connection.

        Raises:
            ConnectionLost: The connection is gone again.
        """
        self._untold.clear()  # it knows of nothing yet
        self._told_again.clear()
        if _knows(peer):
            await self._restore_each(peer)
        else:
            await self._restore_names(peer)

    async def _restore_each(self, peer: Peer) -> None:
        asked: dict[_Entry, tuple[str, ...]] = {}
        while True:
            if more := [one for one in self._entries.values() if one not in asked]:
                for new in more:
                    if new.subscription not in self._entries:
                        continue  # it has left meanwhile
                    asked[new] = self._local.of(new.subscription)
                    try:
                        check_result(await self._subscribe(peer, new.subscription))
                    except ConnectionLost:
                        raise
                    except InterphoneError as exc:
                        self._report(exc)
            elif left := next((one for one in asked if self._gone(one, asked[one])), None):
                gone = self._gone(left, asked[left])
                asked[left] = self._local.of(left.subscription)
                await self._leave(peer, _Farewell(left.id, gone, []))
            else:
                return

    def _gone(self, entry: _Entry, topics: tuple[str, ...]) -> list[str]:
        """Which of these topics the subscription has left."""
        return [topic for topic in topics if not self._local.has(entry.subscription, topic)]

    async def _restore_names(self, peer: Peer) -> None:
        """Subscribe to names, each once.

        @isdk/ipc-server may still hold a dead subscription of this id, which would delay
        every delivery: it is removed first (wire.md).
        """
        known: set[str] = set()
        unsupported: set[Subscription[Any]] = set()
        try:
            while True:
                names = self._names_for(peer, unsupported)
                if wanted := [name for name in names if name not in known]:
                    known.update(wanted)
                    if peer.protocol.isdk:
                        await peer.ask(peer.protocol.unsubscribe, wanted, timeout=DEFAULT_TIMEOUT)
                    subscribe = peer.protocol.subscribe
                    check_result(await peer.ask(subscribe, wanted, timeout=DEFAULT_TIMEOUT))
                elif unwanted := known.difference(self._local.names()):
                    known -= unwanted
                    await self._leave(peer, _Farewell(0, [], sorted(unwanted)))
                else:
                    return
        except ConnectionLost:
            raise
        except InterphoneError as exc:
            self._report(exc)

    def _names_for(self, peer: Peer, unsupported: set[Subscription[Any]]) -> list[str]:
        """Every topic this server can be asked for; what it cannot is reported, once."""
        names: dict[str, None] = {}
        for subscription in self._local.all():
            try:
                _check_server(peer, subscription)
            except Unsupported as exc:
                if subscription not in unsupported:
                    unsupported.add(subscription)
                    self._report(exc)
            else:
                names |= dict.fromkeys(self._local.of(subscription))
        return list(names)

    def interrupt(self) -> None:
        """The connection is away: what is published meanwhile is missed."""
        self._close_routes()
        for subscription in self._local.all():
            subscription.put_gap()

    def end(self, error: InterphoneError | None) -> None:
        """End every iteration: normally, or with an error."""
        self._close_routes()
        self._local.end(error)
        for entry in list(self._entries.values()):
            if not self._local.of(entry.subscription):
                self._discard(entry)

    # What comes

    def deliver(self, peer: Peer, topic: str, raw: msgspec.Raw, marks: Marks) -> Taker | None:
        """Hand out a publication; return what takes the next one like it, if that is known."""
        if not marks.to:
            able = [one for one in self._local.on(topic) if _lacking(peer, one) is None]
            for subscription in able:
                subscription.put(topic, raw, peer.protocol.codec)
            heard = len(able)
        else:
            heard = sum([self._deliver_to(id, peer, topic, raw, marks) for id in marks.to])
        if not heard:
            peer.inbox.unheard += 1
        return self._route(peer, topic, marks) if len(marks.to) == 1 else None

    def _deliver_to(self, id: int, peer: Peer, topic: str, raw: msgspec.Raw, marks: Marks) -> bool:
        entry = self._by_id.get(id)
        if entry is None:  # it has just left
            self._tell_again(peer, id, topic)
            return False
        subscription = entry.subscription
        if not self._local.wants(subscription, topic):
            if entry.account is not None:
                self.took(subscription, len(raw))
            return False
        subscription.backlog.hear(topic, raw, peer.protocol.codec, marks.retained)
        return True

    def _route(self, peer: Peer, topic: str, marks: Marks) -> Taker | None:
        """What takes publications for a subscription, until anybody comes or leaves."""
        entry = self._by_id.get(marks.to[0])
        if entry is None or not self._local.wants(entry.subscription, topic):
            return None
        if len(self._routes) >= MAX_ROUTES:
            self._close_routes()
        route = Route(entry.subscription.backlog, topic, peer.protocol.codec, marks.retained)
        self._routes.append(route)
        return route.take

    def _close_routes(self) -> None:
        for route in self._routes:
            route.open = False
        self._routes.clear()

    def missed(self, peer: Peer, id: int, count: int, topic: str) -> None:
        """A subscription missed publications, because it had no room for them in time."""
        entry = self._by_id.get(id)
        if entry is not None and entry.account is not None:  # for others nobody waits
            entry.subscription.miss(topic, count)

    def took(self, subscription: Subscription[Any], size: int) -> None:
        """One that blocks has read a publication: let the server send more, by and by."""
        entry = self._entries.get(subscription)
        if entry is None or entry.account is None:
            return
        granted = entry.account.take(size)
        if granted is not None:
            entry.grant(*granted)


def _knows(peer: Peer) -> bool:
    """Whether the server tells subscriptions apart, and knows of patterns and groups."""
    return "topics" in peer.protocol.can


def _lacking(peer: Peer, subscription: Subscription[Any]) -> str | None:
    """What a subscription wants that this server does not know of, or None."""
    if _knows(peer):
        return None
    if any(map(is_pattern, subscription.topics)):
        return "topic patterns"
    if subscription.group is not None:
        return "queue groups"
    return 'overflow="block"' if subscription.backlog.blocks else None


def _check_server(peer: Peer, subscription: Subscription[Any]) -> None:
    """Raise `Unsupported` if the subscription is none for this server."""
    lacking = _lacking(peer, subscription)
    if lacking is not None:
        raise Unsupported(f"the server does not know of {lacking}")


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
