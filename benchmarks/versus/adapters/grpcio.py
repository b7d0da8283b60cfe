"""gRPC over a Unix socket with msgspec's MessagePack as its codec: blocking, or `:aio`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import msgspec

SIZE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode


class Item(msgspec.Struct):
    id: int
    name: str
    value: float
    tags: list[str]

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


decode_item = msgspec.msgpack.Decoder(Item).decode


def handlers(echo: Any) -> Any:
    def method(read: Any, write: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(echo, read, write)

    methods = {
        "json": method(decode, encode),
        "typed": method(decode_item, encode),
        "bytes": method(None, None),
    }
    return grpc.method_handlers_generic_handler("b", methods)


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.address = address

    def start(self) -> None:
        self.server = grpc.server(ThreadPoolExecutor(8), options=SIZE)
        self.server.add_generic_rpc_handlers((handlers(lambda value, context: value),))
        self.server.add_insecure_port(f"unix:{self.address}")
        self.server.start()


class AioServer(Server):
    async def start(self) -> None:  # type: ignore[override]
        async def echo(value: Any, context: Any) -> Any:
            return value

        self.server = grpc.aio.server(options=SIZE)
        self.server.add_generic_rpc_handlers((handlers(echo),))
        self.server.add_insecure_port(f"unix:{self.address}")
        await self.server.start()


class Calls:
    """The three methods of a channel."""

    def open(self, channel: Any) -> None:
        self.channel = channel
        self.request = channel.unary_unary("/b/json", encode, decode)
        self.ask_typed = channel.unary_unary("/b/typed", encode, decode_item)
        self.echo = channel.unary_unary("/b/bytes")

    def __init__(self, address: str) -> None:
        self.address = f"unix:{address}"


class Client(Calls):
    def connect(self) -> None:
        self.open(grpc.insecure_channel(self.address, options=SIZE))

    def typed(self, value: Any) -> Any:
        return self.ask_typed(Item(**value))

    def close(self) -> None:
        self.channel.close()


class AioClient(Calls):
    async def connect(self) -> None:
        self.open(grpc.aio.insecure_channel(self.address, options=SIZE))

    async def typed(self, value: Any) -> Any:
        return await self.ask_typed(Item(**value))

    async def close(self) -> None:
        await self.channel.close()


def choose(variant: str, role: str) -> Any:
    if variant == "aio":
        return SimpleNamespace(Server=AioServer, Client=AioClient, BLOCKING=False, LOOP="asyncio")
    return SimpleNamespace(Server=Server, Client=Client, BLOCKING=True)
