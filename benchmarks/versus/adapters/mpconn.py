"""multiprocessing.connection: pickled objects, a thread for each connection at the server."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from multiprocessing import connection as mp
from typing import Any

from worker import item

BLOCKING = True
REQUEST, MESSAGE, SUBSCRIBE = range(3)


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.address, self.sink = address, sink
        self.subscribers: list[Any] = []

    def start(self) -> None:
        self.listener = mp.Listener(self.address, backlog=1024)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            connection = self.listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: Any) -> None:
        try:
            while True:
                kind, value = connection.recv()
                if kind == REQUEST:
                    connection.send(value)
                elif kind == MESSAGE:
                    self.sink(value)
                else:
                    self.subscribers.append(connection)
                    connection.send(None)
        except (EOFError, OSError):
            if connection in self.subscribers:
                self.subscribers.remove(connection)
            connection.close()

    def publish(self, count: int) -> None:
        for number in range(count):
            value = item(number)
            for connection in list(self.subscribers):
                with suppress(OSError):  # it has gone, and its thread is about to see it
                    connection.send(value)


class Client:
    def __init__(self, address: str) -> None:
        self.address = address

    def connect(self) -> None:
        self.connection = mp.Client(self.address)
        self.take = self.connection.recv

    def request(self, value: Any) -> Any:
        self.connection.send((REQUEST, value))
        return self.connection.recv()

    echo = request

    def post(self, value: Any) -> None:
        self.connection.send((REQUEST, value))

    def send(self, count: int) -> None:
        for number in range(count):
            self.connection.send((MESSAGE, item(number)))

    def close(self) -> None:
        self.connection.close()


class Subscribers:
    """A thread for each, as one would write it."""

    def __init__(self, address: str, sinks: list[Any]) -> None:
        self.connections = [mp.Client(address) for _ in sinks]
        self.threads = []
        for connection, sink in zip(self.connections, sinks, strict=True):
            connection.send((SUBSCRIBE, None))
            connection.recv()
            thread = threading.Thread(target=self.read, args=(connection, sink), daemon=True)
            thread.start()
            self.threads.append(thread)

    def read(self, connection: Any, sink: Any) -> None:
        try:
            while True:
                sink(connection.recv())
        except (EOFError, OSError):
            return

    def close(self) -> None:
        """Not before the threads have seen the end: they would read from who gets the fd next."""
        for connection in self.connections:
            with socket.socket(fileno=os.dup(connection.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)
        for thread, connection in zip(self.threads, self.connections, strict=True):
            thread.join()
            connection.close()
