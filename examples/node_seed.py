"""The example of `@isdk/ipc-server`'s README, line by line: Node in the comment, Python below.

What is new here is marked. Server and client would be two programs; here they are one.
"""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import interphone
from interphone import Address, Client, Peer, Server


async def main(path: Path) -> None:
    # const server = new IPCServer({ path: "/myapp" })
    server = Server(path)  # or a bare name, or isdk_path("/myapp") to meet Node there

    # server.on("ready", address => { … })
    @server.on_ready
    def ready(address: Address) -> None:
        print("server started on", Path(str(address)).name)

    # server.on("error", (error, connection) => { … })
    @server.on_error
    def failed(error: Exception, peer: Peer | None) -> None:
        print("an error happened:", error)

    # server.on("connect", (connection, payload) => { … })
    @server.on_connect  # to turn somebody away: @server.authorize, see authorize.py
    def connected(peer: Peer, payload: Any) -> None:
        print("new connection, with an id and the payload", payload)

    # server.on("disconnect", (connection, reason) => { … })
    @server.on_disconnect
    def disconnected(peer: Peer, reason: Any) -> None:
        print("connection ended because of", reason)

    # server.on("close", () => { … })
    @server.on_close
    def closed() -> None:
        print("server closed")

    # server.on("message", (message, connection) => { … })
    @server.on_message
    def message(peer: Peer, data: Any) -> None:
        print("message:", data)

    # server.on("request", function (request, response, connection) {
    #     response("hello")
    #     this.stopped = true
    # })
    @server.on_request
    async def request(peer: Peer, data: Any) -> Any:
        if data == "what time is it?":
            return datetime.now()
        return interphone.PASS  # `stopped` left unset: the next handler is asked

    # await server.start()
    await server.start()

    # const client = new IPCClient({ path: "/myapp" })
    client = Client(path)

    # await client.connect("superSecretPassword")
    await client.connect("superSecretPassword")

    # const ping = await client.ping()
    ping = await client.ping()  # in seconds
    print(f"ping took less than a second: {ping < 1}")

    # await client.send("hello")
    await client.send("hello")

    # const response = await client.request("what time is it?")
    response = await client.request("what time is it?", returns=datetime)  # a type: new
    print("it is", response.strftime("%H:%M"))

    # client.on("event", data => { … })
    # await client.subscribe("event")
    async with client.subscribe("event") as events:  # or @client.on_topic("event") before connect
        # await client.publish("event", "hello from client")
        await client.publish("event", "hello from client")

        # await server.publish({ pub: "event", message: "hello from server" })
        await server.publish("event", "hello from server")

        # const client1 = new IPCClient({ path: "/myapp" })
        # await client1.connect()
        # client1.publish("event", "hello from client1")
        async with Client(path) as client1:  # connects, and closes at the end: new
            await client1.publish("event", "hello from client1")

        for _ in range(3):
            print("event:", (await anext(events)).value)

    # await client.unsubscribe("event")
    #   … that was the end of the block

    # const closed = await client.close("shutting down")
    await client.close("shutting down")

    # client.destroy("shutting down")
    client.abort("shutting down")

    # await server.close(allowReconnect)
    await server.close(allow_reconnect=False)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ip-") as directory:
        interphone.run(main(Path(directory, "myapp")))
