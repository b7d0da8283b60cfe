"""What a type checker must refuse: every line marked `# wrong` is an error, and no other."""

from __future__ import annotations

from typing import Any

from interphone import Client, Peer, Server, Status

server = Server("x")
client = Client("x")


async def no_peer(payload: object) -> None: ...
def wrong_types(peer: int, data: Any) -> None: ...
def right(peer: Peer, data: Any) -> None: ...


server.on_connect(no_peer)  # wrong
server.on_message(wrong_types)  # wrong
server.on_request(no_peer)  # wrong
server.on_request(on="inline")(wrong_types)  # wrong
server.on_close(right)  # wrong
server.on_disconnect(right)
client.on_message(right)  # wrong
client.on_status(lambda status: print(status is Status.READY))
client.subscribe("a", overflow="forget")  # wrong
Client("x", upgrade="websocket")  # wrong
server.error(int)  # wrong
client.error("late")(int)  # wrong
