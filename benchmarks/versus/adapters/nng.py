"""pynng over ipc://: REQ and REP, PUB and SUB, msgspec's JSON."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pynng
from worker import item

BLOCKING = True
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.rep = pynng.Rep0(listen=f"ipc://{address}", recv_max_size=0)
        self.pub = pynng.Pub0(listen=f"ipc://{address}-pub", send_buffer_size=8192)

    def start(self) -> None:
        threading.Thread(target=self.answer, daemon=True).start()

    def answer(self) -> None:
        while True:
            body = self.rep.recv()
            self.rep.send(body if len(body) > 60_000 else encode(decode(body)))

    def publish(self, count: int) -> None:
        for number in range(count):
            self.pub.send(encode(item(number)))


class Client:
    def __init__(self, address: str) -> None:
        self.address = address

    def connect(self) -> None:
        self.req = pynng.Req0(dial=f"ipc://{self.address}", recv_max_size=0)

    def request(self, value: Any) -> Any:
        self.req.send(encode(value))
        return decode(self.req.recv())

    def echo(self, data: bytes) -> Any:
        self.req.send(data)
        return self.req.recv()

    def close(self) -> None:
        self.req.close()


class Subscribers:
    """A thread for each: nng has no poller for many."""

    def __init__(self, address: str, sinks: list[Any]) -> None:
        self.sockets = []
        for sink in sinks:
            socket = pynng.Sub0(
                dial=f"ipc://{address}-pub", topics=b"", recv_buffer_size=8192, block_on_dial=True
            )
            self.sockets.append(socket)
            threading.Thread(target=self.read, args=(socket, sink), daemon=True).start()

    def read(self, socket: Any, sink: Any) -> None:
        try:
            while True:
                sink(decode(socket.recv()))
        except pynng.NNGException:
            return

    def close(self) -> None:
        for socket in self.sockets:
            socket.close()
