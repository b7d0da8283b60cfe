"""The engine of a desktop program: what runs behind the window, and is asked by it.

    python engine.py NAME

It fits a line to noisy points by gradient descent, which is small, but real: it takes as long as
it is told to, reports how far it is, and stops when the window does not want it any more.
"""

from __future__ import annotations

import asyncio
import random
import sys
from dataclasses import dataclass

import interphone
from interphone import Call, Peer, Server

POINTS = [(x / 50, 3 * x / 50 + 1 + random.Random(x).gauss(0, 0.1)) for x in range(50)]


@dataclass
class Report:
    slope: float
    offset: float
    loss: float


async def train(call: Call, epochs: int, rate: float = 0.1) -> Report:
    slope = offset = loss = 0.0
    for epoch in range(epochs):
        errors = [(slope * x + offset - y, x) for x, y in POINTS]
        loss = sum(error * error for error, _ in errors) / len(errors)
        slope -= rate * sum(error * x for error, x in errors) / len(errors)
        offset -= rate * sum(error for error, _ in errors) / len(errors)
        await call.progress({"epoch": epoch + 1, "loss": loss})
        await asyncio.sleep(0)  # others have a turn: also who takes this call back
    return Report(slope, offset, loss)


if __name__ == "__main__":
    server = Server(sys.argv[1])
    server.method(train)

    @server.on_disconnect
    async def leave(peer: Peer, reason: object) -> None:
        if not server.peers:  # the window is closed: no engine stays behind
            await server.close()

    interphone.run(server.serve_forever())
