"""Serving: serve."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..server import Server
from .command import Json, finish, local, perform
from .ending import Misuse
from .output import Output, escape

__all__ = ["serve"]

LOOK = 0.2  # seconds between two looks at the files
GRACE = 10.0  # seconds a server that is replaced has to end
SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})

RESTARTING = "the server is restarted"
CHILD = "INTERPHONE_RELOADING"
"""Set in the environment of a server that is watched and restarted by its parent."""


def serve(
    server: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:SERVER",
            help="A Server in a module, or a function that makes one.",
            show_default=False,
        ),
    ],
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart it when a .py file below changes.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a server until Ctrl-C.

    The module is looked for in the current directory first. With --reload the server is
    restarted when a file of Python in the current directory changes; its clients come back.
    """
    out = Output(json=json)
    if reload:
        local(_Reloader(server, out).run, out)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    finish(perform(lambda: _serve(_load(server), out), out, endless=True))


def _load(what: str) -> Server:
    """Import the module, and return its server."""
    module_name, colon, path = what.partition(":")
    if not module_name or module_name.startswith(".") or not colon or not path:
        raise Misuse(f"{escape(what)!r} names no server: give module:server")
    sys.path.insert(0, os.getcwd())
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
            raise
        raise Misuse(f"there is no module {escape(exc.name)!r} here") from None
    for name in path.split("."):
        if not hasattr(found, name):
            raise Misuse(f"{escape(module_name)} has no {escape(path)!r}")
        found = getattr(found, name)
    if not isinstance(found, Server) and callable(found):
        try:
            inspect.signature(found).bind()
        except TypeError:
            raise Misuse(
                f"{escape(what)} needs parameters: give a Server, or a function without any"
            ) from None
        found = found()
    if not isinstance(found, Server):
        kind = f"{type(found).__module__}.{type(found).__qualname__}"
        raise Misuse(f"{escape(what)} is no interphone.Server, but a {kind}")
    return found


async def _serve(server: Server, out: Output) -> None:
    """Serve until it is cancelled, or closed by itself."""
    reloading = CHILD in os.environ
    ended = asyncio.get_running_loop().create_future()
    server.on_close(partial(_end, ended))
    await server.start()
    try:
        address = str(server.address)
        out.record({"serving": address, "pid": os.getpid()}, f"serving {escape(address)}")
        await ended
    finally:
        reason = RESTARTING if reloading else "Server was shut down"
        await server.close(reason, allow_reconnect=reloading)


def _end(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


class _Reloader:
    """Runs the server in a process of its own, and another one when a file has changed."""

    def __init__(self, what: str, out: Output) -> None:
        self._what = what
        self._out = out
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Run until Ctrl-C or SIGTERM."""
        previous = signal.signal(signal.SIGTERM, _terminated)
        try:
            while True:
                files = _files()
                self._start()
                self._wait_for_change(files)
                self._stop()
        except KeyboardInterrupt:
            return 0
        finally:
            self._stop()
            signal.signal(signal.SIGTERM, previous)

    def _start(self) -> None:
        command = [sys.executable, "-m", "interphone", "serve", self._what]
        if self._out.json:
            command.append("--json")
        self._child = subprocess.Popen(command, env={**os.environ, CHILD: "1"})

    def _wait_for_change(self, before: dict[str, int]) -> None:
        assert self._child is not None  # it was started
        told = False
        while (now := _files()) == before:
            if not told and self._child.poll() is not None:
                self._out.note("the server has ended; it is started again when a file changes")
                told = True
            time.sleep(LOOK)
        changed = {name for name, _ in before.items() ^ now.items()}
        self._out.note(f"{escape(', '.join(sorted(changed)))} changed: restarting")

    def _stop(self) -> None:
        """End the server; one that does not want to is killed."""
        child, self._child = self._child, None
        if child is None:
            return
        if child.poll() is None:
            child.terminate()
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _terminated(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _files() -> dict[str, int]:
    """The Python files below the current directory, and when they changed."""
    return {str(path): changed for path, changed in _changes(Path())}


def _changes(directory: Path) -> Iterator[tuple[Path, int]]:
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in SKIPPED:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _changes(Path(entry.path))
            elif entry.name.endswith(".py"):
                with suppress(FileNotFoundError):  # it has gone meanwhile
                    yield Path(entry.path), entry.stat().st_mtime_ns
