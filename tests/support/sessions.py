"""Sessions without I/O: two that talk over a recorded wire, or one and hand-written bytes.

    pair = SessionPair().open()
    pair.say("client", "request", {"a": 1}, "token")
    assert pair.deliver() == [("request", "1", {"a": 1})]

    lone = LoneSession("server").open()
    assert lone.feed({"t": 4, "n": "p"}) == []
    assert lone.sent() == [{"t": 5, "n": "p"}]

Events are tuples, the name first. Payloads are decoded; one that is absent is `ABSENT`, one that
cannot be decoded is the class `PayloadError`. Errors are shown by their class, and kept in
`Recorder.errors`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import msgspec

from interphone.errors import ConnectionLost, InterphoneError, PayloadError
from interphone.protocol.events import Options, Reactions
from interphone.protocol.messages import Goodbye, Hello, Welcome
from interphone.protocol.payload import ABSENT
from interphone.protocol.session import Session
from interphone.protocol.states import State
from interphone.protocol.wire import Wire, tag

from .clock import FakeClock

__all__ = ["Event", "LoneSession", "Recorder", "SessionPair", "bodies", "frame", "in_chunks"]

Event = tuple[Any, ...]
Role = Literal["client", "server"]

# Which argument of a verb is a value, to be encoded as the session at hand does.
VALUES = {"send": 0, "request": 0, "call": 0, "open_stream": 0, "respond": 1, "ask_to_publish": 1}


# Bytes


def frame(packet: Any) -> bytes:
    """A frame around these bytes, or around this value as JSON."""
    body = packet if isinstance(packet, bytes) else json.dumps(packet, separators=(",", ":"))
    data = body.encode() if isinstance(body, str) else body
    return tag(len(data)) + data


def bodies(data: bytes) -> list[bytes]:
    """The bodies of whole frames."""
    found: list[bytes] = []
    wire = Wire(limit=2**31)
    wire.receive(data, found.append)
    assert not wire.unfinished(), "the data ends within a frame"
    return found


def in_chunks(data: bytes, size: int | None) -> Iterator[bytes]:
    """The data in pieces of so many bytes; None: in one."""
    step = size or max(len(data), 1)
    return (data[at : at + step] for at in range(0, len(data), step))


# Recording


class Recorder:
    """What a driver would have been told.

    Attributes:
        events: Everything in order.
        errors: The exceptions of the events that have one, in order.
        on: What else to do about an event, by its name; gets the arguments of the event.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.events: list[Event] = []
        self.errors: list[InterphoneError] = []
        self.failures: list[InterphoneError] = []
        self.on: dict[str, Callable[..., Any]] = {}
        self._taken = 0

    def take(self) -> list[Event]:
        """The events since the last time."""
        new = self.events[self._taken :]
        self._taken = len(self.events)
        return new

    def take_failures(self) -> list[InterphoneError]:
        """What requests of ours failed with, since the last time."""
        new = self.failures[:]
        self.failures.clear()
        return new

    def names(self) -> Counter[str]:
        """How often each event came."""
        return Counter(event[0] for event in self.events)

    @property
    def reactions(self) -> Reactions:
        """One for each kind of event, that writes it down."""
        return Reactions(
            hello=self._hello,
            opened=lambda welcome: self._note("opened", _of(welcome).get("id")),
            message=lambda raw: self._note("message", self.value(raw)),
            request=lambda nonce, raw, options: self._note(
                "request", nonce, self.value(raw), *filter(None, [options.deadline])
            ),
            answered=lambda token, raw: self._note("answered", token, self.value(raw)),
            failed=lambda token, error: self._error("failed", error, token),
            subscribe=lambda nonce, topics, terms: self._note(
                "subscribe", nonce, topics, *_said(terms)
            ),
            unsubscribe=lambda nonce, topics, terms: self._note(
                "unsubscribe", nonce, topics, *_said(terms)
            ),
            publish=lambda nonce, topic, raw, _, posting: self._note(
                "publish", nonce, topic, self.value(raw), *_said(posting)
            ),
            publication=lambda topic, raw, marks: self._note(
                "publication", topic, self.value(raw), *_said(marks)
            ),
            goodbye=self._goodbye,
            unreadable=lambda error: self._error("unreadable", error),
            violated=lambda error: self._error("violated", error),
            call=lambda *facts: self._asked("call", *facts),
            cancelled=lambda nonce: self._note("cancelled", nonce),
            open=lambda *facts: self._asked("open", *facts),
            item=lambda token, raw: self._note("item", token, self.value(raw)),
            granted=lambda nonce: self._note("granted", nonce),
            input=lambda nonce, raw: self._note("input", nonce, self.value(raw)),
            demanded=lambda token: self._note("demanded", token),
            progress=lambda token, raw: self._note("progress", token, self.value(raw)),
            forget=lambda nonce, topic: self._note("forget", nonce, topic),
            allowed=lambda *facts: self._note("allowed", *facts),
            missed=lambda *facts: self._note("missed", *facts),
        )

    def value(self, raw: msgspec.Raw) -> Any:
        """A payload as its receiver sees it."""
        if not raw:
            return ABSENT
        try:
            return self.session.codec.decode(raw)
        except PayloadError:
            return PayloadError

    def _asked(self, name: str, nonce: Any, raw: msgspec.Raw, options: Options) -> None:
        self._note(name, nonce, self.value(raw), options.deadline, options.progress)

    def _hello(self, hello: Hello) -> None:
        self._note("hello", self.value(hello.extras), hello.id)

    def _goodbye(self, goodbye: Goodbye) -> None:
        self._note("goodbye", goodbye.m, goodbye.a)

    def _error(self, name: str, error: InterphoneError, *facts: Any) -> None:
        self.errors.append(error)
        if name == "failed":
            self.failures.append(error)
        self._note(name, *facts, type(error))

    def _note(self, name: str, *facts: Any) -> None:
        self.events.append((name, *facts))
        if name in self.on:
            self.on[name](*facts)


def _said(options: msgspec.Struct) -> list[dict[str, Any]]:
    """Options as they were said; nothing if none were."""
    said = msgspec.to_builtins(options)
    return [said] if said else []


def _of(welcome: Welcome) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(welcome)
    return shown


# Two ends


class SessionPair:
    """A client and a server, and the wire between them.

    Attributes:
        client: The one end.
        server: The other.
        seen: What each end was told, by role.
        wire: Everything that was sent, in order: (role of the sender, bytes).
        clock: The time of both.
    """

    def __init__(
        self,
        *,
        client: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        **both: Any,
    ) -> None:
        self.clock = FakeClock()
        now = self.clock.now
        self.client = Session("client", **both, **(client or {}), now=now)
        self.server = Session("server", **both, **(server or {}), now=now)
        self.seen = {"client": Recorder(self.client), "server": Recorder(self.server)}
        self.wire: list[tuple[Role, bytes]] = []

    def __repr__(self) -> str:
        return f"<SessionPair {self.client!r} {self.server!r}>"

    def session(self, role: Role) -> Session:
        """The end of this role."""
        return self.client if role == "client" else self.server

    def open(self, payload: Any = None, *, chunk_size: int | None = None, **how: Any) -> Self:
        """Let them get to know each other; what they are told of it is taken away."""
        encoded = None if payload is None else self.client.codec.encode(payload)
        self.client.open(encoded, **how)
        self.deliver(chunk_size)
        self.server.accept("peer-1")
        self.server.resume(self.seen["server"].reactions)
        self.deliver(chunk_size)
        assert self.client.state is State.OPEN
        return self

    def say(self, role: Role, verb: str, *args: Any, **how: Any) -> Any:
        """Let one end say something: a verb of Session, with values where it takes payloads."""
        session = self.session(role)
        given = list(args)
        if verb in VALUES:
            given[VALUES[verb]] = session.codec.encode(given[VALUES[verb]])
        if how.get("timeout") is not None:
            how.setdefault("now", self.clock.now)
        return getattr(session, verb)(*given, **how)

    def deliver(self, chunk_size: int | None = None) -> list[Event]:
        """Carry bytes until both ends are silent; return what they were told, in order."""
        told: list[Event] = []
        while self.carry("client", chunk_size, told) or self.carry("server", chunk_size, told):
            pass
        return told

    def carry(self, sender: Role, chunk_size: int | None, told: list[Event]) -> bool:
        """Carry what one end has queued to the other; False if that was nothing."""
        data = self.session(sender).data_to_send()
        if not data:
            return False
        self.wire.append((sender, data))
        receiver: Role = "server" if sender == "client" else "client"
        seen = self.seen[receiver]
        for chunk in in_chunks(data, chunk_size):
            seen.session.heard = self.clock.now
            seen.session.receive(chunk, seen.reactions)
            told += seen.take()
        return True

    def byte_by_byte(self) -> list[Event]:
        """The same with one byte in each chunk."""
        return self.deliver(1)

    def cut(self) -> list[Event]:
        """Break the connection: what is under way is lost; return what the ends are told."""
        told: list[Event] = []
        for seen in self.seen.values():
            seen.session.data_to_send()
            seen.session.lose(ConnectionLost("cut"), seen.reactions)
            told += seen.take()
        return told

    def tick(self, seconds: float = 0.0) -> list[Event]:
        """Let time pass for both; return what they are told."""
        self.clock.advance(seconds)
        told: list[Event] = []
        for seen in self.seen.values():
            seen.session.tick(self.clock.now, seen.reactions)
            told += seen.take()
        return told


# One end


class LoneSession:
    """One Session, and a test that is the other end by hand, in plain JSON.

    Attributes:
        session: The Session.
        seen: What it was told.
    """

    def __init__(self, role: Role, **options: Any) -> None:
        self.session = Session(role, **options)
        self.seen = Recorder(self.session)

    def open(self, **d: Any) -> Self:
        """Get to know each other; `d` is what the other end shows, as Node does by default."""
        if self.session.role == "server":
            self.feed(b"IPC", {"t": 0, "d": d})
            self.session.accept("peer-1")
            self.resume()
        else:
            self.session.open()
            flags = {"compress": False, "messagepack": False}
            self.feed({"t": 0, "d": {"id": "peer-1", **flags, **d}})
        assert self.session.state is State.OPEN
        self.session.data_to_send()
        self.seen.take()
        return self

    def open_to_interphone(self) -> Self:
        """The same, with an end that shows that it is one of us."""
        return self.open(interphone={"version": 1, "dialects": ["classic"]})

    def feed(self, *parts: Any, chunk_size: int | None = None) -> list[Event]:
        """Give it packets (dicts, written as JSON) and bytes; return what it was told."""
        data = b"".join(part if isinstance(part, bytes) else frame(part) for part in parts)
        for chunk in in_chunks(data, chunk_size):
            self.session.receive(chunk, self.seen.reactions)
        return self.seen.take()

    def resume(self) -> list[Event]:
        """Let it go on; return what it was told."""
        self.session.resume(self.seen.reactions)
        return self.seen.take()

    def lose(self, error: InterphoneError | None = None) -> list[Event]:
        """Take its transport away; return what it was told."""
        self.session.lose(error or ConnectionLost("cut"), self.seen.reactions)
        return self.seen.take()

    def tick(self, now: float) -> list[Event]:
        """Tell it the time; return what it was told."""
        self.session.tick(now, self.seen.reactions)
        return self.seen.take()

    def sent(self) -> list[Any]:
        """The packets it has sent since the last time."""
        data = self.session.data_to_send().removeprefix(b"IPC")
        return [json.loads(body) for body in bodies(data)]
