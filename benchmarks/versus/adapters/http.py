"""aiohttp over a Unix socket: a POST for each request, msgspec's JSON."""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec
from aiohttp import web

BLOCKING = False
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.address = address

    async def start(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/json", self.json)
        app.router.add_post("/bytes", self.bytes)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.UnixSite(runner, self.address).start()

    async def json(self, request: web.Request) -> web.Response:
        return web.Response(body=encode(decode(await request.read())))

    async def bytes(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read())


class Client:
    def __init__(self, address: str) -> None:
        self.address = address

    async def connect(self) -> None:
        connector = aiohttp.UnixConnector(self.address, limit=0)
        self.session = aiohttp.ClientSession(connector=connector)

    async def request(self, value: Any) -> Any:
        async with self.session.post("http://x/json", data=encode(value)) as answer:
            return decode(await answer.read())

    async def echo(self, data: bytes) -> Any:
        async with self.session.post("http://x/bytes", data=data) as answer:
            return await answer.read()

    async def close(self) -> None:
        await self.session.close()
