"""pyzmq, blocking: DEALER and ROUTER, PUSH and PULL, PUB and SUB over ipc://, msgspec's JSON.

The high-water marks are off: with those it begins with, a publisher loses most of a burst.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import zmq
from worker import item

BLOCKING = True
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
context = zmq.Context()


def opened(kind: int) -> Any:
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    return socket


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.address, self.sink = f"ipc://{address}", sink

    def start(self) -> None:
        context.setsockopt(zmq.MAX_SOCKETS, 4096)
        self.router, self.pull, self.pub = map(opened, (zmq.ROUTER, zmq.PULL, zmq.XPUB))
        self.router.bind(self.address)
        self.pull.bind(f"{self.address}-push")
        self.pub.bind(f"{self.address}-pub")
        threading.Thread(target=self.answer, daemon=True).start()
        threading.Thread(target=self.hear, daemon=True).start()

    def answer(self) -> None:
        receive, send = self.router.recv_multipart, self.router.send_multipart
        while True:
            who, kind, body = receive()
            send((who, body if kind == b"b" else encode(decode(body))))

    def hear(self) -> None:
        receive, sink = self.pull.recv, self.sink
        while True:
            sink(decode(receive()))

    def publish(self, count: int) -> None:
        send = self.pub.send
        for number in range(count):
            send(encode(item(number)))


class Client:
    def __init__(self, address: str) -> None:
        self.address = f"ipc://{address}"
        self.push: Any = None

    def connect(self) -> None:
        self.dealer = opened(zmq.DEALER)
        self.dealer.connect(self.address)

    def request(self, value: Any) -> Any:
        self.dealer.send_multipart((b"j", encode(value)))
        return decode(self.dealer.recv())

    def post(self, value: Any) -> None:
        self.dealer.send_multipart((b"j", encode(value)))

    def take(self) -> Any:
        return decode(self.dealer.recv())

    def echo(self, data: bytes) -> Any:
        self.dealer.send_multipart((b"b", data), copy=False)
        return self.dealer.recv(copy=False).buffer

    def send(self, count: int) -> None:
        if self.push is None:
            self.push = opened(zmq.PUSH)
            self.push.connect(f"{self.address}-push")
        send = self.push.send
        for number in range(count):
            send(encode(item(number)))

    def close(self) -> None:
        self.dealer.close()
        if self.push is not None:
            self.push.close()


class Subscribers:
    """All in one thread, with a poller."""

    def __init__(self, address: str, sinks: list[Any]) -> None:
        self.open = True
        subscribed = threading.Barrier(2)
        arguments = (address, sinks, subscribed)
        self.thread = threading.Thread(target=self.read, args=arguments, daemon=True)
        self.thread.start()
        subscribed.wait()

    def read(self, address: str, sinks: list[Any], subscribed: threading.Barrier) -> None:
        poller, found = zmq.Poller(), {}
        for sink in sinks:
            socket = opened(zmq.SUB)
            monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.connect(f"ipc://{address}-pub")
            monitor.recv_multipart()
            socket.disable_monitor()
            poller.register(socket, zmq.POLLIN)
            found[socket] = sink
        subscribed.wait()
        while self.open:
            for socket, _ in poller.poll(100):
                sink = found[socket]
                try:
                    for _ in range(64):
                        sink(decode(socket.recv(zmq.NOBLOCK)))
                except zmq.Again:
                    pass
        for socket in found:
            socket.close()

    def close(self) -> None:
        self.open = False
        self.thread.join()
