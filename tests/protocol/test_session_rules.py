"""Two Sessions in whatever order things can happen, and what must hold after every step.

A machine drives both ends through all verbs, carries their bytes in pieces of any size, lets
time pass, closes, cuts, and spoils the wire. Whatever an end was given is written down, and at
the end of each run given once more to a fresh Session, byte by byte: it must be told the same
and say the same.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from interphone.errors import (
    ConnectionLost,
    InterphoneError,
    MessageTooBig,
    Overloaded,
    Unsupported,
)
from interphone.limits import Limits
from interphone.protocol.credit import Credit
from interphone.protocol.messages import Failure
from interphone.protocol.questions import RESOLUTION
from interphone.protocol.session import Session
from interphone.protocol.shapes import Marks, Posting, Terms
from interphone.protocol.states import State
from support.clock import FakeClock
from support.sessions import ABSENT, Event, Recorder

Role = Literal["client", "server"]

MAX_FRAME = 2000
MAX_PENDING = 6
MAX_INFLIGHT = 3
TOPICS = ["a", "b", "constructor"]
PATTERNS = [*TOPICS, "*", "a.>", "a.*.b"]
CHUNK = 300

roles = st.sampled_from(["client", "server"])
paddings = st.sampled_from([0, 0, 1, 100, 130, 1500])
timeouts = st.none() | st.sampled_from([0.5, 1.0, 10.0])
ids = st.integers(1, 2**40)
all_terms = st.builds(
    Terms,
    id=ids,
    group=st.none() | st.sampled_from(["g", "workers"]),
    credit=st.none() | st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)),
)
postings = st.builds(
    Posting,
    ack=st.just("delivered"),
    retain=st.booleans(),
    deadline=st.none() | st.sampled_from([0.5, 10.0]),
)
all_marks = st.builds(
    Marks, to=st.lists(ids, min_size=1, max_size=3).map(tuple), retained=st.booleans()
)

# Events a packet of the other end's user makes, in the order they were sent. Requests may be
# held until there is credit: they are in order among themselves.
FREE = {"subscribe", "unsubscribe", "forget"}  # they need no credit
TOLD = {"message", "publication", "open", "allowed", "missed", *FREE}
ASKED = {"request", "call", "publish"}


class Flow:
    """One direction of a stream: what was sent at one end and came at the other.

    Attributes:
        taken: How much of what came the program has taken.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.sent: list[Any] = []
        self.came: list[Any] = []
        self.taken = 0


class Streamed:
    """A stream, as the test knows it from both ends."""

    def __init__(self, window: int) -> None:
        self.items = Flow(window)
        self.questions = Flow(0)
        self.finished = False


class End:
    """One Session, everything that was done to it, and what it was told.

    Attributes:
        journal: What was done, in order, as (method of End, arguments).
        said: What its user said, as the other end must be told of it.
        questions: What its user asked, by token; but what was never sent.
        streams: Its streams that have not ended, by token.
        waiting: Tokens that have not been settled, with their deadline.
        asked: Nonces of the requests it has been told of and has not answered.
        nonces: Nonces of its own, by token.
    """

    def __init__(self, role: Role, options: dict[str, Any], *, as_node: bool) -> None:
        self.session = Session(role, **options)
        self.seen = Recorder(self.session)
        self.as_node = as_node
        self.journal: list[tuple[str, tuple[Any, ...]]] = []
        self.output = b""
        self.said: list[Event] = []
        self.questions: dict[int, Event] = {}
        self.streams: dict[int, Streamed] = {}
        self.waiting: dict[int, float | None] = {}
        self.asked: list[tuple[Any, Any]] = []
        self.nonces: dict[int, str] = {}
        self.answers: dict[int, Any] = {}
        self.held = self.lost = self.ended = False
        self.seen.on["hello"] = self._admit

    def _admit(self, *_: Any) -> None:
        if self.as_node:  # what the other end showed is forgotten: it is Node to us, and we to it
            self.session.interphone = self.session.native = False
            self.session.can, self.session.credit = frozenset(), None
        self.session.accept("peer-1")
        self.session.resume(self.seen.reactions)

    def do(self, name: str, *args: Any) -> Any:
        """Do something to the session, and write it down."""
        self.journal.append((name, args))
        return getattr(self, name)(*args)

    # What can be done to it

    def open(self) -> None:
        self.session.open(b'{"who":"me"}', id="before")

    def verb(self, name: str, *args: Any, **how: Any) -> Any:
        return getattr(self.session, name)(*args, **how)

    def timed(self, name: str, args: tuple[Any, ...], now: float, timeout: float | None) -> Any:
        return getattr(self.session, name)(*args, now=now, timeout=timeout)

    def open_stream(self, token: int, payload: bytes, window: int, now: float) -> Any:
        return self.session.open_stream(payload, token, window=window, now=now)

    def piece(self, name: str, *args: Any) -> Any:
        return getattr(self.session.streams, name)(*args)

    def optional(self, name: str, args: tuple[Any, ...], how: dict[str, Any]) -> Any:
        return getattr(self.session, name)(*args, **how)

    def feed(self, data: bytes, now: float) -> None:
        self.session.heard = now
        self.session.receive(data, self.seen.reactions)

    def resume(self) -> None:
        self.session.resume(self.seen.reactions)

    def drain(self, reason: Any) -> None:
        self.session.drain(reason, self.seen.reactions)

    def tick(self, now: float) -> None:
        self.session.tick(now, self.seen.reactions)

    def lose(self) -> None:
        self.session.lose(ConnectionLost("cut"), self.seen.reactions)

    def flush(self) -> bytes:
        data = self.session.data_to_send()
        self.output += data
        return data

    def told(self, of: set[str] = TOLD) -> list[Event]:
        """What the other end's user said, as far as it has come."""
        return [unnumbered(event) for event in self.seen.events if event[0] in of]

    def unsent(self, token: int) -> bool:
        """Whether a question was not sent yet."""
        return self.nonces[token] in self.session._questions.held


def unnumbered(event: Event) -> Event:
    """An event without its nonce."""
    match event:
        # From Node, on a topic that was left while it was on its way.
        case ("message", {"pub": topic, "message": value}):
            return ("publication", topic, value)
        case ("message" | "publication" | "allowed" | "missed", *_):
            return event
        case ("request" | "call" | "open", _, value, *_):  # options are this end's business
            return (event[0], value)
    return (event[0], *event[2:])


class Machine(RuleBasedStateMachine):
    flavour: ClassVar[dict[str, Any]] = {}

    @initialize(
        as_node=st.booleans(),
        heartbeat=st.sampled_from([None, 5.0]),
        opened=st.sampled_from([True, True, True, False]),
    )
    def begin(self, as_node: bool, heartbeat: float | None, opened: bool) -> None:
        self.clock = FakeClock()
        limits = Limits(
            max_frame=MAX_FRAME,
            max_handshake_frame=1000,
            max_pending=MAX_PENDING,
            max_inflight=MAX_INFLIGHT,
        )
        self.options = {
            "limits": limits,
            "heartbeat": heartbeat,
            "now": self.clock.now,
            **self.flavour,
        }
        self.as_node = as_node
        self.ends = {role: self.new_end(role) for role in ("client", "server")}
        self.pipes = {"client": b"", "server": b""}  # on their way to this end
        self.spoilt: set[str] = set()  # ends that were fed rubbish
        self.count = 0
        self.client.do("open")
        if opened:
            self.carry_everything()
            assert self.client.session.state is State.OPEN

    def new_end(self, role: Any) -> End:
        return End(role, self.options, as_node=self.as_node)

    @property
    def client(self) -> End:
        return self.ends["client"]

    def other(self, role: str) -> str:
        return "server" if role == "client" else "client"

    def unique(self, padding: int) -> list[Any]:
        """A value nobody has said before."""
        self.count += 1
        return [self.count, "x" * padding]

    def attempt(self, role: str, name: str, args: tuple[Any, ...], *, asks: bool = False) -> Any:
        """Call a verb, which fails exactly if it must; return its result, or None."""
        end = self.ends[role]
        possible = end.session.state is State.OPEN
        full = asks and end.session.pending >= MAX_PENDING
        how = ("timed", name, *args) if name == "timed" else ("verb", name, *args)
        try:
            result = end.do(*(how[1:] if name == "timed" else how))
        except Overloaded:
            assert possible
            assert full
            return None
        except InterphoneError:
            assert not possible
            return None
        assert possible
        assert not full
        return result if asks else True

    def ask(
        self, role: str, name: str, args: tuple[Any, ...], timeout: float | None, said: Event | None
    ) -> None:
        token = self.count = self.count + 1
        end, now = self.ends[role], self.clock.now
        nonce = self.attempt(role, "timed", (name, (*args, token), now, timeout), asks=True)
        if nonce is None:
            return
        end.nonces[token] = nonce
        end.waiting[token] = None if timeout is None else now + timeout
        if said is not None:
            self.note_said(end, token, said)

    def note_said(self, end: End, token: int, said: Event) -> None:
        if said[0] in FREE:
            end.said.append(said)
        else:
            end.questions[token] = said

    # What users do

    @rule(role=roles, padding=paddings)
    def send(self, role: str, padding: int) -> None:
        end, value = self.ends[role], self.unique(padding)
        if self.attempt(role, "send", (end.session.codec.encode(value),)):
            end.said.append(("message", value))

    @rule(role=roles, asks=st.booleans())
    def say_too_much(self, role: str, asks: bool) -> None:
        session = self.ends[role].session
        payload = session.codec.encode("x" * (MAX_FRAME + 1))
        before = session.pending
        try:
            self.ends[role].do("verb", *(("request", payload, 0) if asks else ("send", payload)))
        except MessageTooBig:
            assert session.state is State.OPEN
        except Overloaded:
            assert before == MAX_PENDING
        except InterphoneError:
            assert session.state is not State.OPEN
        else:
            raise AssertionError("a message over the limit was sent")
        assert session.pending == before

    @rule(role=roles, padding=paddings, timeout=timeouts)
    def request(self, role: str, padding: int, timeout: float | None) -> None:
        value = self.unique(padding)
        payload = self.ends[role].session.codec.encode(value)
        self.ask(role, "request", (payload,), timeout, ("request", value))

    @rule(role=roles, padding=paddings, timeout=timeouts)
    def call(self, role: str, padding: int, timeout: float | None) -> None:
        value = self.unique(padding)
        payload = self.ends[role].session.codec.encode(value)
        mark = "request" if self.as_node else "call"  # Node knows no other kind
        self.ask(role, "call", (payload,), timeout, (mark, value))

    @rule(role=roles, timeout=timeouts)
    def ping(self, role: str, timeout: float | None) -> None:
        self.ask(role, "ping", (), timeout, None)

    @rule(topics=st.lists(st.sampled_from(TOPICS), min_size=1, max_size=2), timeout=timeouts)
    def subscribe(self, topics: list[str], timeout: float | None) -> None:
        self.ask("client", "subscribe", (topics,), timeout, ("subscribe", topics))

    @rule(topic=st.sampled_from(TOPICS))
    def unsubscribe(self, topic: str) -> None:
        self.ask("client", "unsubscribe", ([topic],), None, ("unsubscribe", [topic]))

    @rule(topic=st.sampled_from(TOPICS), padding=paddings)
    def ask_to_publish(self, topic: str, padding: int) -> None:
        value = self.unique(padding)
        payload = self.client.session.codec.encode(value)
        self.ask("client", "ask_to_publish", (topic, payload), 1.0, ("publish", topic, value))

    @rule(topic=st.sampled_from(TOPICS), padding=paddings)
    def publish(self, topic: str, padding: int) -> None:
        end, value = self.ends["server"], self.unique(padding)
        body = end.session.publication(topic, end.session.codec.encode(value))
        # To a Node client on a topic it never asked for it would be a message.
        if topic in self.client.session.topics and self.attempt("server", "deliver", (body,)):
            end.said.append(("publication", topic, value))

    # What only two of us say: nothing of it reaches Node, and nothing of it is asked of Node

    @rule(topics=st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=2), terms=all_terms)
    def subscribe_on_terms(self, topics: list[str], terms: Terms) -> None:
        said = ("subscribe", topics, msgspec.to_builtins(terms))
        self.ask_with("subscribe", (topics,), {"terms": terms}, said)

    @rule(topic=st.sampled_from(PATTERNS), id=ids)
    def unsubscribe_one(self, topic: str, id: int) -> None:
        how = {"terms": Terms(id)}
        self.ask_with("unsubscribe", ([topic],), how, ("unsubscribe", [topic], {"id": id}))

    @rule(topic=st.sampled_from(TOPICS), padding=paddings, posting=postings)
    def ask_to_publish_so(self, topic: str, padding: int, posting: Posting) -> None:
        value = self.unique(padding)
        payload = self.client.session.codec.encode(value)
        said = ("publish", topic, value, msgspec.to_builtins(posting))
        self.ask_with("ask_to_publish", (topic, payload), {"posting": posting}, said)

    @rule(topic=st.sampled_from(TOPICS))
    def ask_to_forget(self, topic: str) -> None:
        self.ask_with("ask_to_forget", (topic,), {}, ("forget", topic))

    def ask_with(self, name: str, args: tuple[Any, ...], how: dict[str, Any], said: Event) -> None:
        """Ask with options, which an end that does not know of them is not asked."""
        token = self.count = self.count + 1
        end = self.client
        possible = end.session.state is State.OPEN
        full = end.session.pending >= MAX_PENDING
        try:
            nonce = end.do("optional", name, (*args, token), how)
        except Unsupported:
            assert self.as_node
        except Overloaded:
            assert full
        except InterphoneError:
            assert not possible
        else:
            assert possible
            assert not full
            assert not self.as_node
            end.nonces[token] = nonce
            end.waiting[token] = None
            self.note_said(end, token, said)

    @rule(topic=st.sampled_from(TOPICS), padding=paddings, marks=all_marks)
    def publish_to(self, topic: str, padding: int, marks: Marks) -> None:
        if self.as_node:
            return
        end, value = self.ends["server"], self.unique(padding)
        body = end.session.publication(topic, end.session.codec.encode(value), None, marks)
        if self.attempt("server", "deliver", (body,)):
            end.said.append(("publication", topic, value, msgspec.to_builtins(marks)))

    @rule(id=ids, items=st.integers(0, 2**40), size=st.integers(0, 2**40))
    def allow(self, id: int, items: int, size: int) -> None:
        if not self.as_node and self.attempt("client", "allow", (id, items, size)):
            self.client.said.append(("allowed", id, items, size))

    @rule(id=ids, missed=st.integers(1, 2**40), topic=st.sampled_from(TOPICS))
    def miss(self, id: int, missed: int, topic: str) -> None:
        if not self.as_node and self.attempt("server", "miss", (id, missed, topic)):
            self.ends["server"].said.append(("missed", id, missed, topic))

    @rule(role=roles, which=st.integers(0, 5), fails=st.booleans())
    def answer(self, role: str, which: int, fails: bool) -> None:
        end = self.ends[role]
        if not end.asked:
            return
        nonce, value = end.asked.pop(which % len(end.asked))
        if fails:
            end.do("verb", "fail", nonce, Failure("failed", "why", "KeyError"))
        else:
            end.do("verb", "respond", nonce, end.session.codec.encode(["re", value]))

    @rule(role=roles, which=st.integers(0, 5))
    def forget(self, role: str, which: int) -> None:
        end = self.ends[role]
        if end.waiting:
            token = sorted(end.waiting)[which % len(end.waiting)]
            if end.unsent(token):
                del end.questions[token]
            end.do("verb", "forget", end.nonces[token])
            del end.waiting[token]
            end.streams.pop(token, None)

    # Streams

    @precondition(lambda self: not self.as_node)
    @rule(role=roles, padding=paddings, window=st.sampled_from([1, 2, 5]))
    def open_stream(self, role: str, padding: int, window: int) -> None:
        end, value = self.ends[role], self.unique(padding)
        token, full = self.count, end.session.pending >= MAX_PENDING
        payload = end.session.codec.encode(value)
        try:
            nonce = end.do("open_stream", token, payload, window, self.clock.now)
        except Overloaded:
            assert full
        except InterphoneError:
            assert end.session.state is not State.OPEN
        else:
            assert not full
            end.nonces[token], end.waiting[token] = nonce, None
            end.streams[token] = Streamed(window)
            end.said.append(("open", value))

    def served(self, role: str, which: int) -> tuple[Any, Streamed | None]:
        """A stream that an end serves, and what the test knows of it if it has not ended."""
        end, other = self.ends[role], self.ends[self.other(role)]
        nonces = [nonce for nonce, value in end.asked if value == "stream"]
        if not nonces:
            return None, None
        nonce = nonces[which % len(nonces)]
        known = [other.streams[t] for t in other.streams if other.nonces[t] == nonce]
        return nonce, known[0] if known else None

    @rule(role=roles, which=st.integers(0, 3), padding=paddings, times=st.integers(1, 4))
    def send_items(self, role: str, which: int, padding: int, times: int) -> None:
        nonce, stream = self.served(role, which)
        for _ in range(times if nonce is not None else 0):
            value, end = self.unique(padding), self.ends[role]
            payload = end.session.codec.encode(value)
            if end.do("piece", "item", nonce, payload) and stream is not None:
                stream.items.sent.append(value)

    @rule(role=roles, which=st.integers(0, 3), window=st.sampled_from([1, 3]))
    def demand(self, role: str, which: int, window: int) -> None:
        nonce, stream = self.served(role, which)
        if stream is not None and not stream.questions.window:
            stream.questions.window = window
            self.ends[role].do("piece", "demand", nonce, window)

    @rule(role=roles, which=st.integers(0, 3))
    def use_question(self, role: str, which: int) -> None:
        nonce, stream = self.served(role, which)
        if stream is not None and stream.questions.taken < len(stream.questions.came):
            size = len(self.ends[role].session.codec.encode(stream.questions.came[-1]))
            stream.questions.taken += 1
            self.ends[role].do("piece", "used", nonce, size)

    @rule(role=roles, which=st.integers(0, 3), padding=paddings)
    def send_question(self, role: str, which: int, padding: int) -> None:
        end = self.ends[role]
        token = self.stream_of(end, which)
        if token is None or end.streams[token].finished:
            return
        value = self.unique(padding)
        payload = end.session.codec.encode(value)
        if end.do("piece", "question", end.nonces[token], payload):
            end.streams[token].questions.sent.append(value)

    @rule(role=roles, which=st.integers(0, 3))
    def finish(self, role: str, which: int) -> None:
        end = self.ends[role]
        token = self.stream_of(end, which)
        if token is not None:
            end.streams[token].finished = True
            end.do("piece", "finish", end.nonces[token])

    @rule(role=roles, which=st.integers(0, 3))
    def take_item(self, role: str, which: int) -> None:
        end = self.ends[role]
        token = self.stream_of(end, which)
        if token is None:
            return
        items = end.streams[token].items
        if items.taken < len(items.came):
            size = len(end.session.codec.encode(items.came[items.taken]))
            items.taken += 1
            end.do("piece", "taken", end.nonces[token], size)

    def stream_of(self, end: End, which: int) -> int | None:
        tokens = sorted(end.streams)
        return tokens[which % len(tokens)] if tokens else None

    @rule(role=roles, which=st.integers(0, 5))
    def report_progress(self, role: str, which: int) -> None:
        end = self.ends[role]
        if end.asked and not self.as_node:
            nonce, _ = end.asked[which % len(end.asked)]
            if nonce is not None:
                end.do("verb", "report_progress", nonce, end.session.codec.encode("half"))

    # What drivers do

    @rule(role=roles)
    def flush(self, role: str) -> None:
        end = self.ends[role]
        data = end.do("flush")
        if end.ended:
            assert not data, "something follows an END"
        end.ended = end.session.state in (State.CLOSING, State.CLOSED)
        if not end.lost:
            self.pipes[self.other(role)] += data

    @rule(role=roles, size=st.integers(1, CHUNK))
    def carry(self, role: str, size: int) -> None:
        end = self.ends[role]
        data = self.pipes[role][:size]
        if data and not end.held and not end.lost:
            self.pipes[role] = self.pipes[role][size:]
            end.do("feed", data, self.clock.now)
            self.note(role)

    @rule()
    def carry_everything(self) -> None:
        for _ in range(3):
            for role in ("client", "server"):
                self.flush(role)
                while self.pipes[self.other(role)] and not self.stuck(self.other(role)):
                    self.carry(self.other(role), CHUNK)

    def stuck(self, role: str) -> bool:
        return self.ends[role].held or self.ends[role].lost

    @rule(role=roles)
    def hold(self, role: str) -> None:
        self.ends[role].do("verb", "hold")
        self.ends[role].held = True

    @rule(role=roles)
    def resume(self, role: str) -> None:
        end = self.ends[role]
        if end.held:
            end.held = False
            end.do("resume")
            self.note(role)

    @rule(seconds=st.sampled_from([0.0, 0.004, 0.5, 0.9, 3.0, 5.0]))
    def tick(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for role in ("client", "server"):
            self.ends[role].do("tick", self.clock.now)
            self.note(role)

    @precondition(lambda self: self.count > 8)
    @rule(role=roles, reason=st.sampled_from([None, "bye", 0, "x" * 5000]))
    def drain(self, role: str, reason: Any) -> None:
        self.ends[role].do("drain", reason)
        self.note(role)

    @precondition(lambda self: self.count > 8)
    @rule(role=roles, reason=st.sampled_from([None, "bye", 0, "x" * 5000]))
    def say_goodbye(self, role: str, reason: Any) -> None:
        self.ends[role].do("verb", "say_goodbye", reason)
        if self.ends[role].session.state is State.CLOSING:
            self.flush(role)

    @precondition(lambda self: self.count > 12)
    @rule(role=roles)
    def lose(self, role: str) -> None:
        self.ends[role].do("lose")
        self.ends[role].lost = True
        self.note(role)

    @precondition(lambda self: self.count > 12)
    @rule(role=roles, rubbish=st.binary(min_size=1, max_size=20))
    def spoil(self, role: str, rubbish: bytes) -> None:
        if not self.stuck(role):
            self.pipes[role] += rubbish
            self.spoilt |= {"client", "server"}  # what one reads in it, it may tell the other

    def note(self, role: str) -> None:
        """Take what an end was told into the books."""
        end = self.ends[role]
        failures = end.seen.take_failures()
        for event in end.seen.take():
            if event[0] in ("request", "call"):
                end.asked.append((event[1], event[2]))
            elif event[0] == "open":
                end.asked.append((event[1], "stream"))
            elif event[0] == "item":
                end.streams[event[1]].items.came.append(event[2])
            elif event[0] == "input" and event[2] is not ABSENT:
                _, stream = self.served_by_nonce(role, event[1])
                if stream is not None:
                    stream.questions.came.append(event[2])
            elif event[0] == "cancelled":
                self.stop(end, event[1])
            elif event[0] in FREE:
                end.asked.append((event[1], "free"))
            elif event[0] == "publish":
                end.asked.append((event[1], None))
            elif event[0] in ("answered", "failed"):
                assert event[1] in end.waiting, "settled twice, or nobody asked"
                del end.waiting[event[1]]
                end.streams.pop(event[1], None)
                if event[0] == "failed" and failures.pop(0).delivery == "not_sent":
                    end.questions.pop(event[1], None)
            elif event[0] == "violated":
                late = getattr(end.seen.errors[-1], "code", "") in ("silent", "timeout")
                by_other = self.ends[self.other(role)].seen.names()["violated"]
                assert self.spoilt or late or by_other, end.seen.errors[-1]

    def served_by_nonce(self, role: str, nonce: Any) -> tuple[Any, Streamed | None]:
        other = self.ends[self.other(role)]
        known = [other.streams[t] for t in other.streams if other.nonces[t] == nonce]
        return nonce, known[0] if known else None

    def stop(self, end: End, nonce: Any) -> None:
        """What is asked for no more is answered all the same: that gives the credit back."""
        for asked in end.asked:
            if asked[0] == nonce is not None:
                end.asked.remove(asked)
                end.do("verb", "fail", nonce, Failure("cancelled"))
                return

    # What holds after every step

    @invariant()
    def pieces_come_once_in_order_and_within_their_credit(self) -> None:
        for end in self.ends.values():
            for stream in end.streams.values():
                for flow in (stream.items, stream.questions):
                    assert flow.came == flow.sent[: len(flow.came)]
                    codec, book = end.session.codec, Credit(flow.window)
                    away = [len(codec.encode(each)) for each in flow.sent[flow.taken :]]
                    assert sum(map(book.cost, away)) <= flow.window

    @invariant()
    def credit_is_never_negative_nor_more_than_the_window(self) -> None:
        for end in self.ends.values():
            for stream in (
                *end.session.streams.asked.values(),
                *end.session.streams.served.values(),
            ):
                for credit in (stream.items, stream.questions):
                    assert 0 <= credit.left <= credit.window

    @invariant()
    def no_more_is_asked_than_there_is_room_for(self) -> None:
        for end in self.ends.values():
            if not self.as_node:
                assert end.session._questions.under_way <= MAX_INFLIGHT
            if not self.spoilt:
                asked = sum(value not in ("stream", "free") for _, value in end.asked)
                assert self.as_node or asked <= MAX_INFLIGHT

    @invariant()
    def whatever_is_sent_is_received_once_and_in_order(self) -> None:
        if self.spoilt:
            return
        for role, end in self.ends.items():
            other = self.ends[self.other(role)]
            for said, told in (
                (other.said, end.told()),
                ([*other.questions.values()], end.told(ASKED)),
            ):
                if end.session.state is State.OPEN:
                    assert told == said[: len(told)]
                else:  # it refused what came later
                    rest = iter(said)
                    assert all(event in rest for event in told)

    @invariant()
    def every_token_is_settled_once_or_waits(self) -> None:
        for end in self.ends.values():
            assert end.session.pending == len(end.waiting) <= MAX_PENDING

    @invariant()
    def nothing_waits_longer_than_it_should(self) -> None:
        for end in self.ends.values():
            due = [deadline for deadline in end.waiting.values() if deadline is not None]
            if due and not end.lost:
                assert end.session.next_tick is not None
                assert end.session.next_tick <= max(min(due), self.clock.now) + RESOLUTION

    @invariant()
    def nothing_waits_at_the_end(self) -> None:
        for end in self.ends.values():
            if end.lost:
                assert end.session.state is State.CLOSED
                assert not end.waiting
                assert end.session.next_tick is None

    @invariant()
    def violation_is_the_last_event_of_the_wire(self) -> None:
        for end in self.ends.values():
            wire = [event[0] for event in end.seen.events if event[0] not in ("failed",)]
            assert "violated" not in wire[:-1]
            assert "goodbye" not in wire[:-1]
            if {"violated", "goodbye"} & set(wire):
                assert end.session.state is State.CLOSED
                assert end.session.error is not None

    @invariant()
    def memory_is_bounded(self) -> None:
        for end in self.ends.values():
            held = len(end.session._wire._held) + len(end.session._head)
            assert held <= MAX_FRAME + CHUNK + 5

    def teardown(self) -> None:
        if not hasattr(self, "ends"):
            return
        if not self.spoilt:
            self.everything_arrives_in_the_end()
        for role, end in self.ends.items():
            self.byte_by_byte_is_the_same(role, end)

    def everything_arrives_in_the_end(self) -> None:
        for role in ("client", "server"):
            self.resume(role)
        self.carry_everything()
        self.whatever_is_sent_is_received_once_and_in_order()
        if all(end.session.state is State.OPEN for end in self.ends.values()):
            for role, end in self.ends.items():
                other = self.ends[self.other(role)]
                assert end.told() == other.said
                sent = [q for token, q in other.questions.items() if not other.unsent(token)]
                assert end.told(ASKED) == sent
                for stream in other.streams.values():
                    assert stream.items.came == stream.items.sent
                    assert stream.questions.came == stream.questions.sent

    def byte_by_byte_is_the_same(self, role: str, end: End) -> None:
        again = self.new_end(role)
        for name, args in end.journal:
            if name == "feed":
                data, now = args
                for at in range(len(data)):
                    again.feed(data[at : at + 1], now)
                continue
            try:
                getattr(again, name)(*args)
            except InterphoneError:
                continue
        assert again.seen.events == end.seen.events
        assert [*map(str, again.seen.errors)] == [*map(str, end.seen.errors)]
        assert again.output == end.output
        assert again.session.counts == end.session.counts


class JsonMachine(Machine):
    pass


class NativeMachine(Machine):
    flavour: ClassVar[dict[str, Any]] = {"dialects": ("native", "classic")}


class MessagePackMachine(Machine):
    flavour: ClassVar[dict[str, Any]] = {"messagepack": True}


class DeflateMachine(Machine):
    flavour: ClassVar[dict[str, Any]] = {"compress": True}


class DeflateMessagePackMachine(Machine):
    flavour: ClassVar[dict[str, Any]] = {"compress": True, "messagepack": True}


RUNS = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TestJson = JsonMachine.TestCase
TestJson.settings = RUNS
TestNative = NativeMachine.TestCase
TestNative.settings = RUNS
TestMessagePack = MessagePackMachine.TestCase
TestMessagePack.settings = RUNS
TestDeflate = DeflateMachine.TestCase
TestDeflate.settings = RUNS
TestDeflateMessagePack = DeflateMessagePackMachine.TestCase
TestDeflateMessagePack.settings = RUNS
