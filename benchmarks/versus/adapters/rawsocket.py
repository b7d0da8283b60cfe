"""A blocking socket, 4-byte lengths and msgspec's JSON; at the server a thread per connection."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

import msgspec

BLOCKING = True
LENGTH = struct.Struct("<I")
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


class End:
    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.rest = connection, b""

    def put(self, value: Any) -> None:
        body = encode(value)
        self.connection.sendall(LENGTH.pack(len(body)) + body)

    def take(self) -> Any:
        data = self.rest
        while True:
            if len(data) >= 4:
                end = 4 + LENGTH.unpack_from(data)[0]
                if len(data) >= end:
                    self.rest = data[end:]
                    return decode(data[4:end])
            more = self.connection.recv(65536)
            if not more:
                raise EOFError
            data += more


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.address = address

    def start(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.address)
        self.listener.listen(1024)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        end = End(connection)
        with connection:
            try:
                while True:
                    end.put(end.take())
            except (EOFError, OSError):
                return


class Client:
    def __init__(self, address: str) -> None:
        self.address = address

    def connect(self) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(self.address)
        end = End(self.connection)
        self.post, self.take = end.put, end.take

    def request(self, value: Any) -> Any:
        self.post(value)
        return self.take()

    def close(self) -> None:
        self.connection.close()
