"""The blocking client, direct and by the portal, against a raw socket with JSON.

The server runs in a process of its own, as it would. `raw` is what one would write by hand: a
blocking socket, a 4-byte length and msgspec's JSON, answered by a Protocol in the same way.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import msgspec
from harness import compare

from interphone import Server, run
from interphone.blocking import Client

PAYLOAD = {"id": 7, "name": "a name", "value": 1.5, "tags": ["a", "b"]}
THREADS = 8
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
LENGTH = struct.Struct("<I")


class Raw:
    """A client of one thread at a time."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lock = threading.Lock()

    def request(self, value: object) -> Any:
        body = encode(value)
        with self._lock:
            self._socket.sendall(LENGTH.pack(len(body)) + body)
            data = self._socket.recv(65_536)
            while len(data) < 4 + LENGTH.unpack_from(data)[0]:
                data += self._socket.recv(65_536)
        return decode(data[4:])

    def close(self) -> None:
        self._socket.close()


class Echo(asyncio.Protocol):
    """The other end of it."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        while len(data) >= 4 and len(data) >= (end := 4 + LENGTH.unpack_from(data)[0]):
            body = encode(decode(data[4:end]))
            self.transport.write(LENGTH.pack(len(body)) + body)
            data = data[end:]
        self.rest = data


def serve(directory: str, ready: Event) -> None:
    server = Server(Path(directory) / "ours")
    server.on_request(on="inline")(lambda peer, data: data)
    server.method("same", on="inline")(lambda data: data)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with await loop.create_unix_server(Echo, f"{directory}/raw"), server:
            ready.set()
            await server.serve_forever()

    run(main())


def in_threads(ask: Callable[[], object], count: int) -> Any:
    async def everybody(times: int) -> None:  # a coroutine for the harness's sake
        def repeat() -> None:
            for _ in range(times // count):
                ask()

        threads = [threading.Thread(target=repeat) for _ in range(count - 1)]
        for thread in threads:
            thread.start()
        repeat()
        for thread in threads:
            thread.join()

    return everybody


def main(directory: str) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=serve, args=(directory, ready), daemon=True)
    process.start()
    ready.wait()
    raw, portal = Raw(f"{directory}/raw"), Client(Path(directory) / "ours")
    portal.on_message(print)
    with Client(Path(directory) / "ours") as direct, portal:
        asks: dict[str, Callable[[], object]] = {
            "raw socket": lambda: raw.request(PAYLOAD),
            "direct, request": lambda: direct.request(PAYLOAD),
            "direct, call": lambda: direct.call("same", PAYLOAD),
            "portal, request": lambda: portal.request(PAYLOAD),
        }
        for count in (1, THREADS):
            variants = {name: in_threads(ask, count) for name, ask in asks.items()}
            title = f"{count} thread{'s' * (count > 1)}"
            asyncio.run(compare(title, "raw socket", variants, times=4_000))
    raw.close()
    process.terminate()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ip-") as place:
        print(f"Python {sys.version.split()[0]}", end="")
        main(place)
