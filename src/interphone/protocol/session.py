"""Session: one end of one connection, as a state machine without I/O.

It knows no event loop, socket, clock, thread or logger. A driver gives it bytes and time,
and takes bytes from it:

    session.receive(data, react)       bytes in; one call of a reaction per event
    session.lose(error, react)         the transport is gone; every waiting token fails
    session.data_to_send()             everything queued, in one piece
    session.tick(now, react)           deadlines and heartbeats
    session.next_tick                  when to call `tick`, or None: an attribute
    session.resume(react)              go on after `hold`

Large frames need not be copied: `landing`, `room` and `landed` receive them where they are put
together, `pieces_to_send` gives what is queued in pieces.

Verbs (`request`, `respond`, `send`, …) only queue. `receive` never raises: what breaks the
protocol is the last event, `violated`, so that bytes cut anywhere give the same events.

The Session owns nonces, the pending table, deadlines and the question "is this legal
now?". It stores an opaque token for each request: a Future in a driver, anything in a test.

A connection opens in two moments. The server's driver gets `hello` and answers with
`accept` or `refuse`; nothing else is read in between. The client's driver gets `opened`.
Whether the other end is one of us (`interphone`) or a Node package is known from that
exchange, and nothing is ever sniffed from a payload of one of us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any, Final, TypeVar

import msgspec

from ..errors import (
    ConnectionClosed,
    ConnectionLost,
    HandshakeError,
    InterphoneError,
    LocalProtocolError,
    MessageTooBig,
    PayloadError,
    Refused,
    RemoteProtocolError,
    RequestTimeout,
    Unsupported,
)
from ..limits import Limits
from . import handshake, upgrade
from .credit import Guests
from .deflate import Deflate
from .deliveries import Deliveries, delivery
from .dialects import Dialect, Native, dialect_of
from .events import (
    NO_OPTIONS,
    Counts,
    Nonce,
    Options,
    Reactions,
    Role,
    Watch,
    read_options,
)
from .heartbeat import Heartbeat
from .loan import Loan
from .messages import (
    ALLOW,
    BORROW,
    CANCEL,
    CAPABILITIES,
    CONNECTION,
    DEMAND,
    END,
    GRANT,
    IDLE,
    INPUT,
    ITEM,
    LEND,
    MESSAGE,
    MISSED,
    NODE_CODES,
    OPEN,
    PING,
    PONG,
    POOL,
    PROGRESS,
    REQUEST,
    RESPONSE,
    RETURN,
    VERSION,
    Failure,
    Goodbye,
    Hello,
    Identity,
    Packet,
    Room,
    Welcome,
    copy_of,
    error_of,
    node_sentence,
    read_failure,
)
from .payload import ABSENT, pack_quickly
from .pool import BLOCK, Memory, PoolCounts
from .pooled import PooledCodec
from .questions import Questions
from .shapes import (
    Marks,
    Posting,
    Terms,
    allowed,
    missed,
    options_of,
    published,
    told,
    wanted,
)
from .states import LEGAL, State
from .streams import Streams
from .topics import is_pattern
from .wire import Body, Bulk, Outgoing, Wire

__all__ = ["Session"]

T = TypeVar("T")

PREAMBLE = b"IPC"
ORPHAN = "closing orphaned connection"  # net-ipc's words for a connection that never opened
PADDING = b'\x87{"t":7}'  # a packet of no known type
MAX_UNREADABLE = 16  # bodies in a row that are no packet
MAX_KEPT: Final = 64  # bytes of options that are remembered

_LENDING: Final = frozenset({MESSAGE, REQUEST, RESPONSE})  # what may lend something
FREE: Final = frozenset(
    {"sub", "unsub", "forget"}
)  # kinds of requests, answered at once, without credit

# Hot path: looking a member up costs 100 ns on Python 3.11.
_OPEN: Final = State.OPEN
_DRAINING: Final = State.DRAINING
_CLOSED: Final = State.CLOSED
_MESSAGE: Final = bytes([MESSAGE])  # the second byte of a native one


@lru_cache
def _flavour(dialect: type[Dialect], interphone: bool) -> object:
    return dialect, interphone


class Session:
    """One end of one connection.

    Attributes:
        state: Where the connection is in its life.
        interphone: Whether the other end has shown that it is one of us.
        native: Whether the native dialect is spoken.
        can: What both ends can do, of `messages.CAPABILITIES`.
        credit: Requests that the other end takes on at once; None if it does not say.
        isdk: Whether the other end is @isdk/ipc-server (a client learns it from the reply).
        streams: The streams of this connection, both ways.
        codec: How payloads are written in this dialect.
        values: The same for what goes over this connection only: large bytes may be lent.
        pack: What `values` packs with, bound once: hot path.
        pools: Whether this end shows that it can share memory.
        memory: What it shares, once the driver knows the other end; None: nothing.
        nudge: What to write after a burst, if the other end is one that may miss its last byte.
        topics: Topics this end is subscribed to at the other.
        flavour: Two sessions of one flavour, one object, write a publication in the same bytes.
        goodbye: The END that came, if one did.
        error: Why the connection ended, once it did.
        next_tick: When `tick` has something to do, in the driver's clock; None: never.
    """

    __slots__ = (
        "_compress",
        "_deflate",
        "_deliveries",
        "_dialect",
        "_dialects",
        "_guests",
        "_handshake_due",
        "_head",
        "_heartbeat",
        "_hello",
        "_in_head",
        "_legal",
        "_lent_to",
        "_messagepack",
        "_native",
        "_opening",
        "_pool",
        "_put",
        "_questions",
        "_react",
        "_read",
        "_read_last",
        "_shortcuts",
        "_shown",
        "_shown_last",
        "_size",
        "_timeout",
        "_told",
        "_unreadable",
        "_upgrade",
        "_upgrades",
        "_watch",
        "_wire",
        "can",
        "codec",
        "counts",
        "credit",
        "error",
        "flavour",
        "goodbye",
        "interphone",
        "isdk",
        "limits",
        "memory",
        "native",
        "next_tick",
        "nudge",
        "pack",
        "pools",
        "role",
        "state",
        "streams",
        "topics",
        "values",
    )

    def __init__(
        self,
        role: Role,
        *,
        limits: Limits | None = None,
        compress: bool = False,
        messagepack: bool = False,
        upgrades: bool = False,
        dialects: tuple[str, ...] = ("classic",),
        heartbeat: float | None = None,
        idle: bool = False,
        pools: bool = False,
        now: float = 0.0,
    ) -> None:
        self.role = role
        self.limits = limits or Limits()
        self.pools = pools and self.limits.max_pool >= BLOCK
        self.memory: Memory | None = None
        self._pool: PooledCodec | None = None
        self._lent_to = False  # a pool of the other end's is mapped here
        self._watch: Watch | None = None
        self.state = State.OPENING
        self.interphone = False
        self.can: frozenset[str] = frozenset()
        self.credit: Room | None = None
        self.isdk = False
        self.topics: set[str] = set()
        self.goodbye: Goodbye | None = None
        self.error: InterphoneError | None = None
        self.counts = Counts()
        self._compress = compress
        self._messagepack = messagepack
        self._upgrades = upgrades
        self._dialects = dialects
        self._shown = (*CAPABILITIES, IDLE) if idle else CAPABILITIES
        if self.pools:
            self._shown = (*self._shown, POOL)
        self.native = False
        self._heartbeat = Heartbeat(heartbeat, now)
        self._wire = Wire(limit=self.limits.max_handshake_frame)
        self._dialect: Dialect = dialect_of(False, False, True, self.limits.max_depth)
        self.flavour: object = _flavour(type(self._dialect), False)
        self._deflate: Deflate | None = None
        self._shortcuts = False
        self._deliveries: Deliveries | None = None
        self._native: Native | None = None
        self._put = self._wire.put
        self._read: Callable[[Body], Packet | None] = self._dialect.read
        self.codec: Any = self._dialect.codec
        self.values: Any = self.codec
        self.pack: Callable[[Any], Outgoing] = self.codec.pack
        self.nudge = b""
        self._head = bytearray()  # what came before the first frame
        self._in_head = role == "server"
        self._upgrade = ""  # the name this client asked the server to upgrade to
        self._hello: Packet | None = None
        self._unreadable = 0
        self._handshake_due = now + self.limits.handshake_timeout if role == "server" else None
        self.next_tick: float | None = self._handshake_due
        self._enter(State.OPENING)
        self._size = 0  # of the frame that is being dispatched
        self._questions = Questions(self.limits.max_pending, self._note_due)
        self._timeout: float | None = None  # of the last request, and how it was told
        self._told = b""
        self._shown_last, self._read_last = ABSENT, NO_OPTIONS
        self._guests = Guests(self.limits.max_inflight, self.limits.max_held)
        self.streams = Streams(self._put_piece, lambda: self.codec, self.counts)

    def __repr__(self) -> str:
        kind = "interphone" if self.interphone else "isdk" if self.isdk else "node"
        pending = len(self._questions.pending)
        return f"<Session {self.role} {self.state.value}, peer {kind}, pending {pending}>"

    # Receiving

    def receive(self, data: bytes, react: Reactions) -> None:
        """Take bytes from the wire; react to what they mean, in order."""
        if self.state is _CLOSED:
            return
        self._react = react
        try:
            if self._in_head:
                data = self._take_head(data)
                if self._in_head:
                    return
            self._wire.receive(data, self._take_frame)
        except RemoteProtocolError as violation:
            self._violate(violation)
        except HandshakeError as refusal:
            self._end(refusal)
            react.violated(refusal)

    @property
    def landing(self) -> bool:
        """Whether what comes next is of a large frame, for which there is a `room`."""
        return self._wire.landing

    def room(self) -> memoryview:
        """Return where to write what comes next of a large frame, to be told of by `landed`.

        It need not be used: `receive` takes all bytes. It must not be kept.
        """
        return self._wire.room()

    def landed(self, size: int, react: Reactions) -> None:
        """Take so many bytes that were written into the `room`."""
        if self.state is not _CLOSED:
            self._wire.landed(size)
            self.receive(b"", react)

    def hold(self) -> None:
        """Take out no further frame, not even of bytes already received, until `resume`."""
        self._wire.stopped = True

    def resume(self, react: Reactions) -> None:
        """Go on after `hold`, with what has been received meanwhile."""
        if self.state is not State.CLOSED and self._hello is None:
            self._wire.stopped = False
            self.receive(b"", react)

    def lose(self, error: InterphoneError, react: Reactions) -> None:
        """End the session: the transport is gone. Every waiting token fails, now."""
        if self.state is not State.CLOSED:
            self._end(error)
        self._fail_pending(react)

    def unfinished(self) -> bool:
        """Whether the bytes received so far end within a frame."""
        return self._wire.unfinished() or bool(self._head)

    def _take_head(self, data: bytes) -> bytes:
        """Read the preamble or an HTTP head; return what is behind it."""
        self._head += data
        head = bytes(self._head)
        if self.role == "server":
            if head.startswith(PREAMBLE):
                return self._head_done(head[len(PREAMBLE) :])
            if not b"GET".startswith(head[:3]) and not PREAMBLE.startswith(head[:3]):
                raise RemoteProtocolError("a preamble that is none", code="bad-preamble")
            if not head.startswith(b"GET"):
                return b""
            if not self._upgrades:
                raise RemoteProtocolError("an HTTP upgrade, which is off here", code="bad-upgrade")
        found = upgrade.split_head(head)
        if found is None:
            return b""
        if self.role == "server":
            self._wire.put_raw(upgrade.reply(upgrade.read_request(found[0])))
        else:
            upgrade.check_reply(found[0], self._upgrade)
            self._wire.put(self._opening)
        return self._head_done(found[1])

    def _head_done(self, rest: bytes) -> bytes:
        self._in_head = False
        self._head.clear()
        return rest

    def _take_frame(self, body: Body) -> None:
        if self._shortcuts and isinstance(body, bytes) and body[1:2] == _MESSAGE:
            deliveries, native = self._deliveries, self._native
            if deliveries is not None and deliveries.take(body, self._react):
                return
            raw = None if native is None else native.read_message(body)
            if raw is not None:
                self._react.message(raw)
                return
        try:
            if self._deflate is not None:
                body = self._deflate.inflate(body, self._wire.limit)
            packet = self._read(body)
        except PayloadError as exc:
            self._on_unreadable(exc)
            return
        self._unreadable = 0
        self._size = len(body)
        if packet is not None:
            react = self._legal.get(packet.t)
            if react is not None:
                react(self, packet)
                return
        if packet is None or packet.t not in _EVERY:
            self.counts.unknown += 1
        else:
            self.counts.illegal += 1
        if self.state is State.OPENING:
            self._violate(RemoteProtocolError(ORPHAN, code="premature"))

    def _on_unreadable(self, error: PayloadError) -> None:
        self.counts.unreadable += 1
        self._unreadable += 1
        if self.state is State.OPENING:
            self._violate(RemoteProtocolError(ORPHAN, code="premature"))
        elif self.native:
            self._violate(RemoteProtocolError(str(error)))
        elif self._unreadable >= MAX_UNREADABLE:
            error_text = f"{MAX_UNREADABLE} frames in a row that are no packet, the last: {error}"
            self._violate(RemoteProtocolError(error_text))
        else:
            self._react.unreadable(error)

    def _violate(self, error: InterphoneError) -> None:
        """Say goodbye with the reason and end; the last event."""
        if self._in_head:
            self._wire.put_raw(upgrade.REFUSAL if self.role == "server" else b"")
        elif self.state is not State.CLOSING:
            code = getattr(error, "code", "protocol-error")
            self._put_end(None if code == "timeout" else str(error), code=code)
        self._end(error)
        self._react.violated(error)

    def _end(self, error: InterphoneError) -> None:
        self._enter(State.CLOSED)
        self.error = self.error or error
        if self._pool is not None:
            self._pool.close()
        self._wire.stopped = True
        self._handshake_due = None
        self._heartbeat.stop()
        self._note_due()

    def _enter(self, state: State) -> None:
        self.state = state
        if state is State.CLOSING:
            self.nudge = b""
        self._legal = _REACTIONS[state]
        self._find_shortcuts()

    # Opening

    def _on_connection(self, packet: Packet) -> None:
        if self.role == "server":
            self._on_hello(packet)
        else:
            self._on_welcome(packet)

    def open(
        self,
        payload: bytes | None = None,
        *,
        id: str | None = None,
        upgrade_to: str | None = None,
        host: str | None = None,
    ) -> None:
        """Begin as a client: preamble and CONNECTION, or an HTTP head and then CONNECTION.

        Raises:
            MessageTooBig: The payload is over the limit of the handshake.
            PayloadError: With the object around it the payload nests too deeply.
        """
        hello = handshake.write_hello(
            payload,
            id=id,
            compress=self._compress,
            messagepack=self._messagepack,
            identity=self._identity(),
        )
        opening = bytes(self._dialect.packet(CONNECTION, hello))
        self._dialect.codec.check(opening)
        if len(opening) > self.limits.max_handshake_frame:
            raise MessageTooBig(size=len(opening), limit=self.limits.max_handshake_frame)
        if upgrade_to is None:
            self._wire.put_raw(PREAMBLE)
            self._wire.put(opening)
        else:
            self._wire.put_raw(upgrade.request(upgrade_to, host))
            self._opening, self._upgrade, self._in_head = opening, upgrade_to, True

    def _on_hello(self, packet: Packet) -> None:
        hello = handshake.read(self.codec, packet.d, Hello)
        if hello is None:
            self._violate(RemoteProtocolError(ORPHAN, code="premature"))
            return
        self._handshake_due = None
        self._note_due()
        self._hello = packet
        self.interphone = handshake.is_identity(hello.interphone)
        if self.interphone:
            self._learn(hello.interphone)
            self.native = handshake.common_dialect(hello.interphone, self._dialects) == "native"
        self._compress = self._compress and bool(hello.compress) and not self.native
        self._messagepack = self._messagepack and bool(hello.messagepack) and not self.native
        if hello.compress is hello.messagepack is msgspec.UNSET:
            self._wire.pad = self.nudge = PADDING  # the client is @isdk/ipc-server's
        self.hold()
        self._react.hello(hello)

    def accept(self, id: str) -> None:
        """Let the client in that `hello` was about. Call `resume` afterwards.

        If the connection has ended meanwhile nothing happens; the same for `refuse`.
        """
        if self.state is State.CLOSED:
            return
        self._reply(id)
        self._enter(State.OPEN)
        self._opened()

    def refuse(self, reason: Any = None, *, code: str = "refused", id: str = "") -> None:
        """Turn the client away that `hello` was about; the driver hangs up after a moment.

        A Node client gets a reply first: without one its `connect()` never settles (wire.md).
        """
        if self.state is State.CLOSED:
            return
        if not self.interphone:
            self._reply(id)
            self._switch()
        self._hello = None
        self._put_end(reason, code=code)
        self._enter(State.CLOSING)
        self._wire.stopped = False  # what still comes is read, and dropped
        self.error = ConnectionClosed(reason)

    def _reply(self, id: str) -> None:
        assert self._hello is not None  # the driver answers a hello, once
        welcome = handshake.write_welcome(
            handshake.read(self.codec, self._hello.d, Hello) or Hello(),
            id=id,
            compress=self._compress,
            messagepack=self._messagepack,
            identity=self._agreed() if self.interphone else None,
        )
        self._wire.put(self._dialect.packet(CONNECTION, welcome, self._hello.n))
        self._hello = None

    def _identity(self) -> Identity:
        room = Room(self.limits.max_inflight, self.limits.max_held)
        return Identity(VERSION, self._dialects, can=self._shown, credit=room)

    def _agreed(self) -> Identity:
        identity = self._identity()
        if len(self._dialects) > 1:
            identity.dialect = "native" if self.native else "classic"
        return identity

    def _on_welcome(self, packet: Packet) -> None:
        welcome = handshake.read(self.codec, packet.d, Welcome) or Welcome()
        self.interphone = handshake.is_identity(welcome.interphone)
        if self.interphone:
            self._learn(welcome.interphone)
            self.native = handshake.chosen_dialect(welcome.interphone, self._dialects) == "native"
        self.isdk = welcome.compress is msgspec.UNSET and welcome.messagepack is msgspec.UNSET
        self._compress = self._compress and bool(welcome.compress)
        self._messagepack = self._messagepack and bool(welcome.messagepack)
        self._enter(State.OPEN)
        self._opened()
        if self.isdk:
            self._wire.pad = self.nudge = PADDING
        self._react.opened(welcome)

    def _learn(self, shown: object) -> None:
        """Note what the other end shows of itself."""
        ours = (*CAPABILITIES, IDLE, POOL) if self.pools else (*CAPABILITIES, IDLE)
        self.can = handshake.common_capabilities(shown, ours)
        self.credit = handshake.credit_of(shown)
        if self.credit is not None:
            self._questions.restrict(self.credit.requests, self.credit.bytes)

    def _opened(self) -> None:
        """Both CONNECTION frames are plain JSON; everything after them is what was agreed."""
        self._wire.keep_first()
        self._switch()
        self._wire.limit = self.limits.max_frame
        if self.interphone and IDLE not in self.can:
            self._heartbeat.start()
            self._note_due()

    def _switch(self) -> None:
        if self.native:
            self._questions.kind = int
            self._compress = False
        lenient, depth = not self.interphone, self.limits.max_depth
        self._dialect = dialect_of(self.native, self._messagepack, lenient, depth)
        self._read = self._dialect.read
        self.codec = self.values = self._dialect.codec
        self.pack = self.codec.pack
        self.flavour = _flavour(type(self._dialect), self.interphone)
        if self.native and POOL in self.can and self.memory is not None:
            limits = self.limits
            self.values = self._pool = PooledCodec(
                self.codec, self.memory, max_pool=limits.max_pool, max_frame=limits.max_frame
            )
            self.pack = partial(pack_quickly, self._pool)
        if self._compress:
            self._deflate = Deflate()
            self._put = self._put_deflated
        self._find_shortcuts()

    def _find_shortcuts(self) -> None:
        """Find out what need not be read as any packet: where nobody watches, and nothing is lent.

        Hot path: it is done whenever one of these changes, and not for each message.
        """
        dialect = self._dialect
        self._native = self._deliveries = None
        self._shortcuts = False
        if self.state is _OPEN and self._watch is None and isinstance(dialect, Native):
            self._shortcuts = True
            if not self._lent_to:
                self._native = dialect
            if self.role == "client" and "topics" in self.can:
                self._deliveries = Deliveries(self.codec)

    # Being looked at

    def watch(self, watch: Watch | None) -> None:
        """Tell `watch` of every packet from now on, before it is acted upon; None: nobody.

        The connection must be open. It costs nothing while nobody watches: two functions are
        replaced, and no packet is asked whether somebody does.
        """
        read = self._dialect.read
        put = self._wire.put if self._deflate is None else self._put_deflated
        self._watch = watch
        self._find_shortcuts()
        self._read = self._reader()
        self._put = put if watch is None else partial(self._put_watched, put, read, watch)

    def _reader(self) -> Callable[[Body], Packet | None]:
        """How bodies are read at the moment: what is lent is taken, who watches is told."""
        read = self._read_lent if self._lent_to else self._dialect.read
        return read if self._watch is None else partial(self._read_watched, read, self._watch)

    def _read_watched(
        self, read: Callable[[Body], Packet | None], watch: Watch, body: Body
    ) -> Packet | None:
        packet = read(body)
        if packet is not None:
            watch("in", packet, len(body))
        return packet

    def _put_watched(
        self,
        put: Callable[[Outgoing], None],
        read: Callable[[Body], Packet | None],
        watch: Watch,
        body: Outgoing,
    ) -> None:
        put(body)
        try:
            packet = read(bytes(body))
        except PayloadError:  # it is not for who watches to say what may be sent
            return
        if packet is not None:
            if self._pool is not None:
                packet.d = self._pool.value_of(packet.d)
            watch("out", packet, len(body))

    # Large payloads

    def loan(self, size: int) -> Loan:
        """Return memory to build a payload in; of the pool, if there is one and room in it."""
        return Loan(size) if self._pool is None else self._pool.loan(size)

    @property
    def pool_counts(self) -> PoolCounts:
        """What became of large payloads, where memory can be shared."""
        return PoolCounts() if self._pool is None else self._pool.counts

    @property
    def news(self) -> bool:
        """Whether the other end is to be told something of the pools, with what goes next."""
        return self._pool is not None and self._pool.news

    def take_back(self, payload: Outgoing) -> None:
        """Note that something encoded by `values` is not sent."""
        if self._pool is not None:
            self._pool.take_back(payload)

    def _take_back_body(self, body: Outgoing) -> None:
        if isinstance(body, Bulk):
            return  # what is lent is small
        packet = self._dialect.read(body)
        assert packet is not None  # it is ours
        self.take_back(bytes(packet.d))

    def _put_news(self, pool: PooledCodec) -> None:
        """Queue it ahead of the rest: that may be large, and the next may be lent already."""
        if self.answering:
            later = self._wire.set_aside()
            for kind, facts in pool.take_news():
                self._put(self._dialect.packet(kind, self.codec.encode(facts)))
            self._wire.put_back(later)

    def _read_lent(self, body: Body) -> Packet | None:
        """Read a packet that may lend something; then its payload's life keeps that."""
        packet = self._dialect.read(body)
        if packet is not None and packet.t in _LENDING and (packet.k is None or packet.k == "call"):
            assert self._pool is not None  # it reads so since it has mapped a pool
            packet.d = self._pool.receive(packet.d)
        return packet

    def _on_lend(self, packet: Packet) -> None:
        if self._pool is None:
            self.counts.unknown += 1
            return
        mapped = self._pool.on_lend(packet.d)
        self._lent_to = mapped > 0
        self._read = self._reader()
        self._find_shortcuts()
        self._put_piece(BORROW, self.codec.encode(mapped), None)

    def _on_borrow(self, packet: Packet) -> None:
        if self._pool is None:
            self.counts.unknown += 1
        else:
            self._pool.on_borrow(packet.d)

    def _on_return(self, packet: Packet) -> None:
        if self._pool is None:
            self.counts.unknown += 1
        else:
            self._pool.on_return(packet.d)

    # What the other end says

    def _on_message(self, packet: Packet) -> None:
        if self.interphone:
            if packet.k is None:
                self._react.message(packet.d)
                return
            shape = told(self.codec, packet.d) if packet.k == "pub" else None
        else:
            shape = published(self.codec, packet.d)
            if shape is None or shape.topic not in self.topics:  # not asked for: the user's data
                self._react.message(packet.d)
                return
        marks = self._options_of(Marks, packet)
        if shape is None or marks is None:
            self.counts.unknown += 1
        else:
            take = self._react.publication(*shape, marks)
            if self._deliveries is not None and shape.value and packet.o:
                self._deliveries.note(shape.topic, marks, packet.o, take)

    def _on_request(self, packet: Packet) -> None:
        nonce, kind = packet.n, packet.k
        if self.credit is not None:  # it is one of us
            if type(nonce) is not self._questions.kind:
                self._ours(packet)
            if self.streams.served and nonce in self.streams.served:
                raise RemoteProtocolError("a request has the nonce of a stream")
            if kind is None or type(kind) is not str or kind not in FREE:
                self._guests.come(nonce, self._size)
        if self.state is _DRAINING:
            self.fail(nonce, Failure("closing", "the peer is closing"))
        elif self.interphone and kind is None:
            shown = packet.o
            known = shown == self._shown_last  # what is said is nearly always what was said before
            self._react.request(
                nonce, packet.d, self._read_last if known else self._read_options(shown)
            )
        elif self.interphone and kind == "call":
            self._react.call(nonce, packet.d, self._read_options(packet.o))
        elif self.role == "server" and self._on_subscription(packet):
            return
        elif kind is not None and self.interphone:
            self.fail(nonce, Failure("unsupported", f"no such kind of request: {kind!r:.75}"))
        else:
            self._react.request(nonce, packet.d, Options())

    def _read_options(self, shown: msgspec.Raw) -> Options:
        """Read what the asker says of a request, if it is not what was said before."""
        if shown != self._shown_last:
            options = read_options(self.codec, shown)
            if len(shown) > MAX_KEPT:
                return options
            self._shown_last, self._read_last = msgspec.Raw(bytes(shown)), options
        return self._read_last

    def _on_cancel(self, packet: Packet) -> None:
        if self.interphone:
            self._react.cancelled(packet.n)
        else:
            self.counts.unknown += 1

    def _on_open(self, packet: Packet) -> None:
        if not self._ours(packet):
            return
        if packet.n in self._guests:
            raise RemoteProtocolError("a stream has the nonce of a request")
        options = self._read_options(packet.o)
        self.streams.serve(packet.n, options.window, self._size)
        many, limits = len(self.streams.served), self.limits
        if self.state is State.DRAINING:
            self.fail(packet.n, Failure("closing", "the peer is closing"))
        elif many > limits.max_streams or (many > 1 and self.streams.bytes > limits.max_held):
            self.fail(packet.n, Failure("overloaded", f"{many - 1} streams are open already"))
        else:
            self._react.open(packet.n, packet.d, options)

    def _on_item(self, packet: Packet) -> None:
        if self._ours(packet):
            self.streams.on_item(packet, self._react)

    def _on_grant(self, packet: Packet) -> None:
        if self._ours(packet):
            self.streams.on_grant(packet, self._react)

    def _on_input(self, packet: Packet) -> None:
        if self._ours(packet):
            self.streams.on_input(packet, self._react)

    def _on_demand(self, packet: Packet) -> None:
        if self._ours(packet):
            self.streams.on_demand(packet, self._react)

    def _on_progress(self, packet: Packet) -> None:
        if self._ours(packet):
            entry = self._questions.pending.get(packet.n)
            if entry is None:
                self.counts.late += 1
            else:
                self._react.progress(entry.token, packet.d)

    def _ours(self, packet: Packet) -> bool:
        """Whether this is from one of us, whose packets beyond Node's have a nonce like ours."""
        if not self.interphone:
            self.counts.unknown += 1
            return False
        if type(packet.n) is not self._questions.kind:
            raise RemoteProtocolError(f"no nonce of a stream or request: {packet.n!r:.75}")
        return True

    def _on_subscription(self, packet: Packet) -> bool:
        """React to sub, unsub, pub and forget; False if the request is the user's own.

        Node says no more than how it looks; one of us has said what it means.
        """
        publication = published(self.codec, packet.d)
        if publication is not None and (not self.interphone or packet.k == "pub"):
            posting = self._options_or_fail(Posting, packet)
            if posting is not None:
                self._react.publish(packet.n, *publication, packet.d, posting)
            return True
        if self.interphone and packet.k == "forget" and "topics" in self.can:
            self._on_forget(packet)
            return True
        wish = wanted(self.codec, packet.d)
        if wish is None or (self.interphone and packet.k != wish.kind):
            return False
        terms = self._options_or_fail(Terms, packet)
        if terms is not None:
            react = self._react.subscribe if wish.kind == "sub" else self._react.unsubscribe
            react(packet.n, wish.topics, terms)
        return True

    def _options_of(self, of: type[T], packet: Packet) -> T | None:
        """Read what is said about topics; None if it cannot be read."""
        return options_of(self.codec, of, packet.o if "topics" in self.can else ABSENT)

    def _options_or_fail(self, of: type[T], packet: Packet) -> T | None:
        """Read the options of a request; None, and it is answered, if they cannot be read."""
        options = self._options_of(of, packet)
        if options is None:
            self.fail(packet.n, Failure("invalid", f"the options of {packet.k} cannot be read"))
        return options

    def _on_forget(self, packet: Packet) -> None:
        try:
            topic = self.codec.decode(packet.d, str)
        except PayloadError as exc:
            self.fail(packet.n, Failure("invalid", f"no topic: {exc}"))
        else:
            self._react.forget(packet.n, topic)

    def _on_allow(self, packet: Packet) -> None:
        self._on_pair(packet, "server", allowed(self.codec, packet.d), self._react.allowed)

    def _on_missed(self, packet: Packet) -> None:
        self._on_pair(packet, "client", missed(self.codec, packet.d), self._react.missed)

    def _on_pair(
        self, packet: Packet, role: Role, pair: tuple[Any, Any] | None, react: Callable[..., None]
    ) -> None:
        """React to what is said of the subscription `n`."""
        if "topics" not in self.can or self.role != role:
            self.counts.unknown += 1
        elif pair is None or type(packet.n) is not int or packet.n < 1:
            self._violate(RemoteProtocolError(f"a packet of type {packet.t} that is none"))
        else:
            react(packet.n, *pair)

    def _on_response(self, packet: Packet) -> None:
        questions = self._questions
        entry = questions.settle(packet.n, RESPONSE)
        failure = None
        if self.interphone:
            if packet.e is not None:
                failure = read_failure(packet.e)
            if self.streams.asked and type(packet.n) is questions.kind:  # else it is none of ours
                self.streams.asked.pop(packet.n, None)
            if questions.held:
                self._put_held()
        if entry is None:
            if failure is None or failure.code != "cancelled":  # we asked for that one
                self.counts.late += 1
        elif failure is not None:
            self._react.failed(entry.token, error_of(failure))
        else:
            self._react.answered(entry.token, packet.d)

    def _on_ping(self, packet: Packet) -> None:
        self._put(self._dialect.packet(PONG, packet.d, packet.n))

    def _on_pong(self, packet: Packet) -> None:
        entry = self._questions.settle(packet.n, PONG)
        if entry is None:
            self.counts.late += 1  # the pongs of heartbeats, too: they are in no table
        else:
            self._react.answered(entry.token, packet.d)

    def _on_end(self, packet: Packet) -> None:
        goodbye = handshake.read(self.codec, packet.d, Goodbye)
        if self.state is State.OPENING and self.role == "client":
            failure = read_failure(packet.e)
            reason = goodbye.m if goodbye else None
            refused: HandshakeError = HandshakeError(f"the server hung up: {reason}")
            if packet.e is not None:
                refused = Refused(reason, code=failure.code)
            self._end(refused)
            self._react.violated(refused)
        elif goodbye is not None or self.interphone:  # Node ignores an END without d: so do we
            self.goodbye = goodbye or Goodbye()
            self.error = ConnectionClosed(self.goodbye.m, by_peer=True)
            self._end(self.error)
            self._react.goodbye(self.goodbye)

    # What this end says

    @property
    def pending(self) -> int:
        """How many requests of ours wait for an answer."""
        return len(self._questions.pending)

    @property
    def heard(self) -> float:
        """Time of the last sign of life, in the driver's clock; the driver sets it."""
        return self._heartbeat.heard

    @heard.setter
    def heard(self, now: float) -> None:
        self._heartbeat.heard = now

    @property
    def queued(self) -> int:
        """Bytes waiting for `data_to_send`."""
        return self._wire.queued

    def data_to_send(self) -> bytes:
        """Return everything queued, in one piece."""
        pool = self._pool
        if pool is not None and pool.news:
            self._put_news(pool)
        return self._wire.take()

    def pieces_to_send(self) -> list[bytes]:
        """Return everything queued, without copying what is large."""
        pool = self._pool
        if pool is not None and pool.news:
            self._put_news(pool)
        return self._wire.take_pieces()

    def send(self, payload: Outgoing) -> None:
        """Say something that has no answer."""
        if self.state is not _OPEN:
            self._require_open()
        self._put(self._dialect.message(payload))

    def remark(self, payload: Outgoing) -> None:
        """Say something about a request that is being handled: a message, also while closing."""
        if self.answering:
            self._put(self._dialect.message(payload))

    # Each verb that asks returns the nonce, for `forget`; its `token` comes back in
    # `answered` or `failed`, exactly once, unless it is forgotten.

    def request(
        self, payload: Outgoing, token: object, *, now: float = 0.0, timeout: float | None = None
    ) -> Nonce:
        """Ask something."""
        if self.state is not _OPEN:
            self._require_open()
        told = self._told if timeout == self._timeout else self._tell_timeout(timeout)
        nonce = self._questions.ask(token, now, timeout, RESPONSE)
        return self._put_request(nonce, self._dialect.request(payload, nonce, told))

    def call(
        self,
        payload: Outgoing,
        token: object,
        *,
        now: float = 0.0,
        timeout: float | None = None,
        progress: bool = False,
    ) -> Nonce:
        """Ask for a method: the payload is ``{"method", "params", "named"}``.

        A Node end gets it as a JSON-RPC 2.0 envelope would be read: as a plain request.
        """
        if self.state is not _OPEN:
            self._require_open()
        if progress:
            told = self._told_options(timeout, progress=True)
        else:
            told = self._told if timeout == self._timeout else self._tell_timeout(timeout)
        nonce = self._questions.ask(token, now, timeout, RESPONSE)
        write = self._dialect.call if self.interphone else self._dialect.request
        return self._put_request(nonce, write(payload, nonce, told))

    def open_stream(
        self,
        payload: Outgoing,
        token: object,
        *,
        window: int,
        now: float = 0.0,
        timeout: float | None = None,
        progress: bool = False,
    ) -> Nonce:
        """Ask for a method whose answer or question comes piece by piece; as `call`.

        At most `window` units of credit are under way towards us; see `streams`.
        """
        self._require_open()
        nonce = self._questions.ask(token, now, timeout, RESPONSE)
        options = {"credit": window} | (self._options(timeout, progress=progress) or {})
        self._put_asking(nonce, self._dialect.packet(OPEN, payload, nonce, options=options))
        self.streams.ask(nonce, token, window)
        return nonce

    def report_progress(self, nonce: Nonce, payload: Outgoing) -> None:
        """Tell the asker of a request how far the work is."""
        if self.state in (State.OPEN, State.DRAINING):
            self._put(self._dialect.packet(PROGRESS, payload, nonce))

    def _options(self, timeout: float | None, *, progress: bool = False) -> dict[str, Any] | None:
        """What rides along with a request: how long its asker will wait, what else it wants."""
        if not self.interphone or (timeout is None and not progress):
            return None
        options: dict[str, Any] = {} if timeout is None else {"deadline": timeout}
        if progress:
            options["progress"] = True
        return options

    def _told_options(self, timeout: float | None, *, progress: bool = False) -> bytes:
        options = self._options(timeout, progress=progress)
        return self.codec.encode(options) if options else b""

    def _tell_timeout(self, timeout: float | None) -> bytes:
        """Say how long the asker of a request will wait, and keep that for the next."""
        self._timeout, self._told = timeout, self._told_options(timeout)
        return self._told

    def ping(self, token: object, *, now: float = 0.0, timeout: float | None = None) -> Nonce:
        """Ask for a sign of life."""
        self._require_open()
        nonce = self._questions.ask(token, now, timeout, PONG)
        return self._put_asking(nonce, self._dialect.packet(PING, ABSENT, nonce))

    def subscribe(
        self,
        topics: Iterable[str],
        token: object,
        *,
        terms: Terms = Terms(),  # noqa: B008  it is frozen
        now: float = 0.0,
        timeout: float | None = None,
    ) -> Nonce:
        """Ask the server for publications on these topics or patterns.

        Raises:
            Unsupported: The server does not understand the terms, or patterns.
        """
        names = list(topics)
        if any(map(is_pattern, names)):
            self._require_topics("topic patterns")
        payload = self._names("sub", names)
        nonce = self._put_marked("sub", payload, token, now, timeout, self._said(terms))
        self.topics.update(names)
        return nonce

    def unsubscribe(
        self,
        topics: Iterable[str],
        token: object,
        *,
        terms: Terms = Terms(),  # noqa: B008  it is frozen
        now: float = 0.0,
        timeout: float | None = None,
    ) -> Nonce:
        """Ask the server to send them no more."""
        names = list(topics)
        payload = self._names("unsub", names)
        nonce = self._put_marked("unsub", payload, token, now, timeout, self._said(terms))
        self.topics.difference_update(names)
        return nonce

    def _names(self, key: str, names: list[str]) -> bytes:
        encoded: bytes = self.codec.encode({key: names[0] if len(names) == 1 else names})
        return encoded

    def ask_to_publish(
        self,
        topic: str,
        payload: Outgoing,
        token: object,
        *,
        posting: Posting = Posting(),  # noqa: B008  it is frozen
        now: float = 0.0,
        timeout: float | None = None,
    ) -> Nonce:
        """Ask the server to publish; the payload is encoded already.

        Raises:
            Unsupported: The server does not understand how it is meant.
        """
        value = self._dialect.publication(topic, payload)
        return self._put_marked("pub", value, token, now, timeout, self._said(posting))

    def ask_to_forget(
        self, topic: str, token: object, *, now: float = 0.0, timeout: float | None = None
    ) -> Nonce:
        """Ask the server to forget the last value of a topic."""
        self._require_topics("last values")
        return self._put_marked("forget", self.codec.encode(topic), token, now, timeout)

    def allow(self, id: int, items: int, size: int) -> None:
        """Let the server send a subscription so many publications and bytes more."""
        self._tell(ALLOW, id, (items, size))

    def miss(self, id: int, count: int, topic: str) -> None:
        """Tell a subscription that it missed so many publications, the first on this topic."""
        self._tell(MISSED, id, (count, topic))

    def _tell(self, kind: int, id: int, facts: tuple[object, object]) -> None:
        self._require_topics("packets about a subscription")
        self._put(self._dialect.packet(kind, self.codec.encode(facts), id))

    def _said(self, options: Terms | Posting) -> dict[str, Any] | None:
        """What is to be said of a subscription or publication."""
        said: dict[str, Any] = msgspec.to_builtins(options)
        if said:
            self._require_topics(", ".join(said))
        return said or None

    def _require_topics(self, what: str) -> None:
        self._require_open()
        if "topics" not in self.can:
            raise Unsupported(f"the other end does not know of {what}")

    def _put_marked(
        self,
        kind: str,
        payload: bytes,
        token: object,
        now: float,
        timeout: float | None,
        options: dict[str, Any] | None = None,
    ) -> Nonce:
        self._require_open()
        nonce = self._questions.ask(token, now, timeout, RESPONSE)
        mark = kind if self.interphone else None
        body = self._dialect.packet(REQUEST, payload, nonce, mark=mark, options=options)
        put = self._put_asking if kind in FREE else self._put_request
        return put(nonce, body)

    def publication(
        self,
        topic: str,
        payload: Outgoing | msgspec.Raw,
        whole: msgspec.Raw | None = None,
        marks: Marks = Marks(),  # noqa: B008  it is frozen
    ) -> Outgoing:
        """Return the body that delivers a publication in this session's flavour.

        `whole` is the object a Node publisher sent: Node subscribers get all its keys.
        Only an end that can do "topics" may be sent `marks`.
        """
        if self.native and payload:
            return delivery(self.codec, topic, bytes(payload), marks)
        value = (
            self._dialect.publication(topic, payload) if whole is None or self.interphone else whole
        )
        return self._dialect.packet(
            MESSAGE,
            value,
            mark="pub" if self.interphone else None,
            options=msgspec.to_builtins(marks),
        )

    def message_body(self, payload: Outgoing) -> Outgoing:
        """Return the body of a message in this session's flavour."""
        return self._dialect.message(payload)

    def deliver(self, body: Outgoing) -> None:
        """Queue a body that `publication` or `message_body` made, for a session of its flavour."""
        if self.state is not _OPEN:
            self._require_open()
        self._put(body)

    def respond(self, nonce: Nonce, payload: Outgoing) -> None:
        """Answer a request. If the asker is gone the answer is dropped and counted.

        Raises:
            MessageTooBig: The answer is over the limit; nothing was sent.
        """
        if self.state is not _OPEN and self.state is not _DRAINING:
            self.counts.unsendable += 1
            return
        self._put(self._dialect.response(payload, nonce))
        if self.streams.served:
            self._served(nonce)
        elif self.credit is not None:
            self._guests.leave(nonce)

    def fail(self, nonce: Nonce, failure: Failure, *, id: object = ABSENT) -> None:
        """Answer a request that has no result; `id` is that of a Node asker's envelope."""
        if not self.answering:
            self.counts.unsendable += 1
        elif self.interphone:
            told = failure if "errors" in self.can else failure.plain()
            self._put(self._dialect.packet(RESPONSE, ABSENT, nonce, failure=told))
            self._served(nonce)
        else:
            error = {
                "code": NODE_CODES[failure.code],
                "message": node_sentence(failure),
                "data": failure.data,
            }
            if failure.data is None:
                del error["data"]
            answer = {"jsonrpc": "2.0", "error": error} | ({} if id is ABSENT else {"id": id})
            self._put(self._dialect.packet(RESPONSE, self.codec.encode(answer), nonce))
            self._served(nonce)

    def _served(self, nonce: Nonce) -> None:
        """Note that a request or stream of the other end was answered."""
        if not self.streams.answered(nonce) and self.credit is not None:
            self._guests.leave(nonce)

    @property
    def answering(self) -> bool:
        """Whether an answer can still be sent."""
        return self.state is _OPEN or self.state is _DRAINING

    def forget(self, nonce: Nonce) -> None:
        """Nobody waits for this answer any more: one of us is told to stop.

        If it comes all the same it is dropped and counted.
        """
        if self._questions.pending.pop(nonce, None) is not None:
            self._cancel(nonce)
            self._put_held()

    def _cancel(self, nonce: Nonce) -> bool:
        """Tell the other end that nobody waits for this answer; False if it was never asked."""
        self.streams.asked.pop(nonce, None)
        held = self._questions.held.get(nonce)
        if self._questions.withdraw(nonce):
            if held is not None and self._pool is not None:
                self._take_back_body(held)
            return False
        if self.interphone and self.answering:
            self._put(self._dialect.packet(CANCEL, ABSENT, nonce))
        return True

    def drain(self, reason: Any, react: Reactions) -> None:
        """Take no new requests, and fail our own: the first half of a goodbye."""
        if self.state is State.OPEN:
            self._enter(State.DRAINING)
            self.error = ConnectionClosed(reason)
            self._heartbeat.stop()
            self._fail_pending(react)

    def say_goodbye(self, reason: Any, *, reconnect: bool = False) -> None:
        """Queue END: nothing follows it."""
        if self.state in (State.OPEN, State.DRAINING):
            self._put_end(reason, reconnect=reconnect, code="closed")
            self._enter(State.CLOSING)
            self.error = self.error or ConnectionClosed(reason)
            self._heartbeat.stop()
            self._note_due()

    def _put_end(self, reason: Any, *, code: str, reconnect: bool = False) -> None:
        goodbye = {"a": reconnect} if reason is None else {"m": reason, "a": reconnect}
        try:
            payload = self.codec.encode(goodbye)
        except PayloadError:
            text = str(reason).encode("utf-8", "backslashreplace").decode()
            payload = self.codec.encode({"m": text, "a": reconnect})
        coded = self.interphone and code != "closed"
        failure = Failure(code) if coded else None
        try:
            self._put(self._dialect.packet(END, payload, failure=failure))
        except MessageTooBig:
            if reason is not None:  # rather without a reason than not at all
                self._put_end(None, code=code, reconnect=reconnect)

    def _put_deflated(self, body: Outgoing) -> None:
        assert self._deflate is not None  # it was agreed
        self._wire.put(self._deflate.compress(bytes(body), self._wire.limit))

    def _put_piece(self, kind: int, payload: Outgoing | msgspec.Raw, nonce: Nonce) -> None:
        if self.answering:
            self._put(self._dialect.packet(kind, payload, nonce))

    def _put_request(self, nonce: Nonce, body: Outgoing) -> Nonce:
        """Queue a request, or hold it until there is credit."""
        try:
            if len(body) > self._wire.limit or self._questions.may_go(nonce, body):
                self._put(body)
        except MessageTooBig:
            self._unask(nonce)
            raise
        return nonce

    def _put_asking(self, nonce: Nonce, body: Outgoing) -> Nonce:
        """Queue what costs no credit."""
        try:
            self._put(body)
        except MessageTooBig:
            self._unask(nonce)
            raise
        return nonce

    def _unask(self, nonce: Nonce) -> None:
        """Forget what was never sent; others may go in its place."""
        self._questions.settle(nonce, self._questions.pending[nonce].answer)
        self._put_held()

    def _put_held(self) -> None:
        """Send what there is credit for now, if anything can still be sent."""
        if self._questions.held and self.state is _OPEN:
            for body in self._questions.released():
                self._put(body)

    def _require_open(self) -> None:
        if self.state is _OPEN:
            return
        if self.state is State.OPENING:
            raise LocalProtocolError("the connection is not open yet")
        if isinstance(self.error, ConnectionClosed):
            raise ConnectionClosed(self.error.reason, by_peer=self.error.by_peer)
        raise ConnectionLost(self.error, delivery="not_sent")

    # Time

    def _note_due(self) -> None:
        due = (self._handshake_due, self._heartbeat.due, self._questions.due)
        self.next_tick = min((time for time in due if time is not None), default=None)

    def tick(self, now: float, react: Reactions) -> None:
        """Do what is due: expire requests, ask for a sign of life, give up a silent peer."""
        self._react = react
        if self._handshake_due is not None and now >= self._handshake_due:
            self._violate(RemoteProtocolError("no CONNECTION in time", code="timeout"))
        if self._questions.due is not None and now >= self._questions.due:
            self._expire(now)
        if self._heartbeat.due is not None and now >= self._heartbeat.due:
            self._beat(now)
        self._note_due()

    def _expire(self, now: float) -> None:
        for nonce in self._questions.overdue(now):  # a reaction may ask anew, or forget others
            expired = self._questions.pending.pop(nonce, None)
            if expired is not None:
                assert expired.timeout is not None  # it had a deadline
                error = RequestTimeout(expired.timeout)
                if expired.answer == RESPONSE and not self._cancel(nonce):
                    error.delivery = "not_sent"
                self._react.failed(expired.token, error)
        self._put_held()

    def _beat(self, now: float) -> None:
        verdict = self._heartbeat.look(now, reading=not self._wire.stopped)
        if verdict == "ping":
            self._put(self._dialect.packet(PING, ABSENT, "heartbeat"))
        elif verdict == "silent":
            silent = now - self._heartbeat.heard
            self._violate(RemoteProtocolError(f"no sign of life for {silent:.3g} s", code="silent"))

    def _fail_pending(self, react: Reactions) -> None:
        error = self.error or ConnectionLost()
        pending = self._questions.clear()
        self.streams.asked.clear()
        self._note_due()
        for nonce, entry in pending.items():
            failed = copy_of(error)
            if self._questions.withdraw(nonce):
                failed.delivery = "not_sent"
            react.failed(entry.token, failed)


_EVERY: Final[dict[int, Callable[[Session, Packet], None]]] = {
    CONNECTION: Session._on_connection,
    MESSAGE: Session._on_message,
    REQUEST: Session._on_request,
    RESPONSE: Session._on_response,
    PING: Session._on_ping,
    PONG: Session._on_pong,
    END: Session._on_end,
    CANCEL: Session._on_cancel,
    OPEN: Session._on_open,
    ITEM: Session._on_item,
    GRANT: Session._on_grant,
    INPUT: Session._on_input,
    DEMAND: Session._on_demand,
    PROGRESS: Session._on_progress,
    ALLOW: Session._on_allow,
    MISSED: Session._on_missed,
    LEND: Session._on_lend,
    BORROW: Session._on_borrow,
    RETURN: Session._on_return,
}
_REACTIONS = {state: {kind: _EVERY[kind] for kind in legal} for state, legal in LEGAL.items()}
"""What is done about a packet in each state; the others are not legal there."""
