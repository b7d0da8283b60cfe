"""zenoh, two sessions that know each other by a Unix socket; queryables and subscribers."""

from __future__ import annotations

import json
import threading
from typing import Any

import msgspec
import zenoh
from worker import item

BLOCKING = True
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


def opened(address: str, *, listening: bool) -> Any:
    config = zenoh.Config()
    config.insert_json5("mode", json.dumps("peer"))
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5("scouting/gossip/enabled", "false")
    config.insert_json5("listen/endpoints", json.dumps([f"unixsock-stream/{address}"] * listening))
    where = [] if listening else [f"unixsock-stream/{address}"]
    config.insert_json5("connect/endpoints", json.dumps(where))
    return zenoh.open(config)


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.address, self.sink = address, sink

    def start(self) -> None:
        self.session = opened(self.address, listening=True)
        self.publisher = self.session.declare_publisher(
            "news", congestion_control=zenoh.CongestionControl.BLOCK
        )
        self.kept = [
            self.session.declare_queryable("same", self.answer),
            self.session.declare_subscriber("sink", self.hear),
        ]

    def answer(self, query: Any) -> None:
        query.reply("same", encode(decode(query.payload.to_bytes())))
        query.drop()

    def hear(self, sample: Any) -> None:
        self.sink(decode(sample.payload.to_bytes()))

    def publish(self, count: int) -> None:
        for number in range(count):
            self.publisher.put(encode(item(number)))


class Client:
    def __init__(self, address: str) -> None:
        self.address = address

    def connect(self) -> None:
        self.session = opened(self.address, listening=False)
        self.publisher = self.session.declare_publisher(
            "sink", congestion_control=zenoh.CongestionControl.BLOCK
        )

    def request(self, value: Any) -> Any:
        for reply in self.session.get("same", payload=encode(value)):
            return decode(reply.ok.payload.to_bytes())
        raise OSError("no reply")

    def send(self, count: int) -> None:
        for number in range(count):
            self.publisher.put(encode(item(number)))

    def close(self) -> None:
        self.session.close()


class Subscribers:
    """A session for each."""

    def __init__(self, address: str, sinks: list[Any]) -> None:
        self.sessions, self.kept = [], []
        for sink in sinks:
            session = opened(address, listening=False)
            self.sessions.append(session)
            self.kept.append(session.declare_subscriber("news", self.hearing(sink)))
        threading.Event().wait(0.3)  # a declaration has no acknowledgement

    def hearing(self, sink: Any) -> Any:
        def hear(sample: Any) -> None:
            sink(decode(sample.payload.to_bytes()))

        return hear

    def close(self) -> None:
        for session in self.sessions:
            session.close()
