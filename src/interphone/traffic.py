"""Traffic: how publications go down the lanes of their subscribers.

A publication is encoded once for each flavour of connection, and queued for every
subscriber before anything waits. Then the publisher waits for slow subscribers, 10 ms at
most, so that it does not run ahead of those who merely need a moment; one that took
nothing in that time is not waited for again until it has caught up. Only a subscription
that says so itself (``overflow="block"``) is waited for longer, as long as the publisher
likes. Nobody waits for anybody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import get_clock_info
from typing import Final, NamedTuple

from .connection import Connection
from .errors import InterphoneError
from .lanes import Arrears, Item, Lane, OwnLane, Parked, PeerLane, Tally
from .peer import Peer
from .protocol.states import State
from .protocol.topics import Topics, matcher
from .protocol.wire import Outgoing

__all__ = ["Traffic"]

LONGEST = 1e9  # seconds of a timeout that a clock can hold
MAX_KNOWN = 65_536  # lanes of topics that are remembered
# Seconds a publisher waits for slow subscribers, at most. Where the clock ticks every 16 ms, as on
# Windows before Python 3.13, a shorter wait would be none.
STALL = max(0.010, 2 * get_clock_info("monotonic").resolution)
_OPEN: Final = State.OPEN  # hot path: a member costs 100 ns on Python 3.11


class _Plan(NamedTuple):
    """Whom a publication is to be given, once everybody has been chosen."""

    copies: dict[Peer, list[PeerLane]]
    own: list[OwnLane]


class Traffic:
    """Gives publications to the lanes of an Exchange.

    Attributes:
        dropped: Publications and broadcasts that a subscriber was too slow for, or gone.
    """

    def __init__(self, topics: Topics[Lane]) -> None:
        self.dropped = 0
        self._topics = topics
        self._turn = 0
        # Who took nothing, until it has taken so much.
        self._stalled: dict[Connection, int] = {}
        self._simple: dict[str, list[PeerLane] | None] = {}  # see `_lanes_of`
        self._changes = 0  # of the topics, as of when that was found out
        self._known = 0  # lanes in it

    # Giving

    def spread(self, item: Item, tally: Tally) -> None:
        """Give a publication to every subscription, and to one of each group."""
        lanes = self._lanes_of(item.topic)
        if lanes is None:
            self._spread_by_plan(item, tally)
            return
        tally.matched += len(lanes)
        for lane in lanes:
            if lane.parked or (lane.allowance is not None and not lane.allowance):
                self._park(item, [lane], tally)
            elif self._give(lane, item):
                tally.took(lane.connection)
            else:
                self.drop(tally)

    def _lanes_of(self, topic: str) -> list[PeerLane] | None:
        """The lanes of a topic if each is the only one of its peer, and in no group; else None.

        Hot path: it is found out once, until anybody subscribes or unsubscribes.
        """
        if self._changes != self._topics.changes or self._known > MAX_KNOWN:
            self._simple.clear()
            self._changes, self._known = self._topics.changes, 0
        elif topic in self._simple:
            return self._simple[topic]
        matching = self._topics.matching(topic)
        lanes = [lane for lane in matching if isinstance(lane, PeerLane) and lane.group is None]
        alone = len(matching) == len(lanes) == len({lane.connection for lane in lanes})
        self._known += 1 + len(lanes)
        self._simple[topic] = lanes if alone else None
        return self._simple[topic]

    def _spread_by_plan(self, item: Item, tally: Tally) -> None:
        plan, groups = _Plan({}, []), dict[str, list[Lane]]()
        copies = plan.copies
        for lane in self._topics.matching(item.topic):
            if lane.group is None:
                tally.matched += 1
                # Hot path: a subscription that nobody waits for.
                if type(lane) is PeerLane and lane.allowance is None and not lane.parked:
                    if lane.peer in copies:
                        copies[lane.peer].append(lane)
                    else:
                        copies[lane.peer] = [lane]
                else:
                    self._choose(item, [lane], tally, plan)
            else:
                groups.setdefault(lane.group, []).append(lane)
        for members in groups.values():
            tally.matched += 1
            self._choose(item, self._in_turn(members, item), tally, plan)
        self._carry_out(item, plan, tally)

    def _in_turn(self, members: list[Lane], item: Item) -> list[Lane]:
        """The members of a group that are there, those first that are ready and waited longest."""
        there = [lane for lane in members if lane.open]
        return sorted(there, key=lambda lane: (lane.reluctance(item), lane.used))

    def _choose(self, item: Item, lanes: list[Lane], tally: Tally, plan: _Plan) -> None:
        """Plan to give it to the first of these lanes, or park it in all where it must wait."""
        if not lanes:
            self.drop(tally)
            return
        first = lanes[0]
        if first.parked or first.must_wait(item):
            self._park(item, [one for one in lanes if one.parked or one.must_wait(item)], tally)
            return
        self._turn += 1
        first.used = self._turn
        if isinstance(first, PeerLane):
            plan.copies.setdefault(first.peer, []).append(first)
        else:
            plan.own.append(first)

    def _park(self, item: Item, lanes: list[Lane], tally: Tally) -> None:
        for lane in list(lanes):
            if isinstance(lane, PeerLane):
                try:  # what is sent later is what the value is now
                    item.value(lane.peer.protocol)
                except InterphoneError:
                    lanes.remove(lane)
        if lanes:
            Parked(item, lanes, tally)
        else:
            self.drop(tally)

    def _carry_out(self, item: Item, plan: _Plan, tally: Tally) -> None:
        """Send each peer one copy; then tell our own, whose handlers may publish in their turn."""
        refused: set[Lane] = set()
        while plan.copies:
            peer, lanes = plan.copies.popitem()
            if self._send(peer, lanes, item):
                tally.took(peer.connection, len(lanes))
                continue
            refused.update(lanes)
            for lane in lanes:
                self._choose(item, self._instead(lane, item, refused), tally, plan)
        for own in plan.own:
            if own.put(item):
                tally.took(None)
            else:  # full: of a group it is the one that loses this publication, and no other
                self.drop(tally)

    def _instead(self, lane: Lane, item: Item, refused: set[Lane]) -> list[Lane]:
        """Who else may get what a member of a group could not be given."""
        if lane.group is None:
            return []
        members = [one for one in self._topics.matching(item.topic) if one.group == lane.group]
        return self._in_turn([one for one in members if one not in refused], item)

    def _give_now(self, lane: Lane, item: Item) -> bool:
        if isinstance(lane, OwnLane):
            return lane.put(item)
        return self._give(lane, item)

    def _give(self, lane: PeerLane, item: Item) -> bool:
        """Queue a copy for one subscription of a peer; False if it does not take it."""
        session = lane.session
        try:
            session.deliver(item.body_for(lane))
        except InterphoneError:  # it is going, or has no form of the value, or none so big
            return False
        lane.connection.flush_soon()
        if session.state is not _OPEN:
            return False
        if lane.allowance is not None:
            lane.allowance.spend(item.size_for(lane))
        return True

    def _send(self, peer: Peer, lanes: list[PeerLane], item: Item) -> bool:
        """Queue one copy for these subscriptions of a peer; False if it does not take it."""
        protocol = peer.protocol
        try:
            body = item.body(protocol, tuple([lane.id for lane in lanes if lane.id]))
        except InterphoneError:  # there is no form of the value it takes
            return False
        if not self.deliver(peer, body):
            return False
        for lane in lanes:
            if lane.allowance is not None:
                lane.allowance.spend(len(item.value(protocol)))
        return True

    def deliver(self, peer: Peer, body: Outgoing) -> bool:
        """Queue a body for a peer; False if it does not take it."""
        protocol = peer.protocol
        try:
            protocol.deliver(body)
        except InterphoneError:  # it is going, or the body is too big for it
            return False
        peer.connection.flush_soon()
        return protocol.state is _OPEN

    def drop(self, tally: Tally) -> None:
        """Count a subscription that does not get a publication."""
        self.dropped += 1
        tally.dropped += 1

    # Waiting for room

    def pump(self, lane: Lane) -> None:
        """Give a lane what waits for it, as long as it has room."""
        while lane.parked:
            parked = next(iter(lane.parked))
            if isinstance(parked, Arrears):
                if not self._give_next(lane, parked):
                    return
                continue
            if lane.must_wait(parked.item):
                return
            others = [one for one in parked.lanes if one is not lane]
            parked.withdraw()  # first of all: a handler may read on at once, and end up here
            if not self._give_now(lane, parked.item):
                self._give_to_another(lane, parked)
            else:
                parked.tally.took(lane.connection if isinstance(lane, PeerLane) else None)
                parked.tally.stop_waiting(parked)
            for other in others:
                self.pump(other)

    def _give_next(self, lane: Lane, arrears: Arrears) -> bool:
        """Give a lane the next last value, if one is left; False if that has to wait."""
        item = arrears.first()
        if item is None:
            del lane.parked[arrears]
            return True
        if lane.must_wait(item):
            return False
        arrears.drop_first()  # first of all, as in `pump`
        if not self._give_now(lane, item):
            self.dropped += 1
        return True

    def trim(self, lane: Lane) -> None:
        """Take out of a lane what waits there and is not for it any more."""
        if not lane.parked:
            return
        wanted = matcher(self._topics.of(lane))
        for parked in list(lane.parked):
            if isinstance(parked, Arrears):
                parked.keep(wanted)
                if not parked:
                    del lane.parked[parked]
            elif not wanted(parked.item.topic):
                parked.withdraw_from(lane)
                if not parked.lanes:
                    self._give_to_another(lane, parked)
        self.pump(lane)  # what stood behind may be smaller

    def _give_to_another(self, lane: Lane, parked: Parked) -> None:
        """What waited for a lane that does not take it any more is for others of its group."""
        plan = _Plan({}, [])
        others = self._instead(lane, parked.item, {lane})
        self._choose(parked.item, others, parked.tally, plan)
        self._carry_out(parked.item, plan, parked.tally)
        parked.tally.stop_waiting(parked)

    def concluded(self, tally: Tally) -> bool:
        """Whether there is nothing to wait for: everybody took it, and keeps up."""
        return not (tally.pending or [one for one in tally.connections if one.blocked])

    async def conclude(self, tally: Tally, timeout: float | None) -> None:
        """Wait for slow subscribers a moment, for others as long as they and `timeout` say."""
        now = asyncio.get_running_loop().time
        until = now() + timeout if timeout is not None and timeout < LONGEST else None
        try:
            await self.settle(tally.connections)
            await tally.wait_for_room(None if until is None else max(0.0, until - now()))
            self.give_up(tally)
            await tally.wait_for_departures(None if until is None else max(0.0, until - now()))
        finally:
            self.give_up(tally)
            tally.let_go()

    def give_up(self, tally: Tally) -> None:
        """What still waits for room is lost, and who had none is told."""
        for parked in list(tally.waiting):
            lanes = list(parked.lanes)
            parked.withdraw()
            tally.stop_waiting(parked)
            self.drop(tally)
            if len(lanes) == 1:  # of a group nobody knows who would have got it
                lanes[0].miss(parked.item.topic)
            for lane in lanes:
                self.pump(lane)  # what stood behind may be smaller

    async def settle(self, connections: Iterable[Connection]) -> None:
        """Give slow peers up to `STALL` to take what was queued for them."""
        slow = dict.fromkeys(one for one in connections if one.blocked)
        self._stalled = {
            one: due for one, due in self._stalled.items() if one.blocked and one.taken < due
        }
        waiting = [one for one in slow if one not in self._stalled]
        if not waiting:
            return
        before = {one: one.taken for one in waiting}
        moments = [asyncio.ensure_future(one.writable()) for one in waiting]
        try:
            await asyncio.wait(moments, timeout=STALL)
        finally:
            for moment in moments:
                moment.cancel()
        for one, taken in before.items():
            if one.blocked and one.taken == taken:
                self._stalled[one] = taken + one.backlog

    def left(self, connection: Connection) -> None:
        """A peer is gone."""
        self._stalled.pop(connection, None)
