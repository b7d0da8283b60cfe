"""dbus-fast through a dbus-daemon of its own: methods and signals with JSON in a string.

Not for bursts: version 5.2 loses its connection when the socket is full.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from dbus_fast import Message, MessageType
from dbus_fast.aio import MessageBus
from worker import item, start_broker

BLOCKING = False
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
NAME, PLACE = "bench.Same", "/same"
CONFIG = """<busconfig><type>session</type><listen>unix:path={}</listen>
<policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
<limit name="max_incoming_bytes">1000000000</limit>
<limit name="max_outgoing_bytes">1000000000</limit>
<limit name="max_message_size">1000000000</limit>
<limit name="max_completed_connections">5000</limit>
<limit name="max_connections_per_user">5000</limit>
<limit name="max_replies_per_connection">50000</limit></busconfig>"""


async def joined(address: str) -> Any:
    return await MessageBus(f"unix:path={address}").connect()


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.address, self.sink = address, sink

    async def start(self) -> None:
        config = Path(f"{self.address}.conf")
        config.write_text(CONFIG.format(self.address))
        self.pids = [start_broker("dbus-daemon", f"--config-file={config}", "--nofork")]
        while not Path(self.address).exists():
            await asyncio.sleep(0.02)  # the broker is starting
        self.bus = await joined(self.address)
        self.bus.add_message_handler(self.answer)
        await self.bus.request_name(NAME)

    def answer(self, message: Any) -> Any:
        if message.message_type is not MessageType.METHOD_CALL or message.path != PLACE:
            return None
        value = decode(message.body[0])
        return Message.new_method_return(message, "s", [encode(value).decode()])

    async def publish(self, count: int) -> None:
        for number in range(count):
            body = encode(item(number)).decode()
            await self.bus.send(Message.new_signal(PLACE, NAME, "news", "s", [body]))


class Client:
    def __init__(self, address: str) -> None:
        self.address = address

    async def connect(self) -> None:
        self.bus = await joined(self.address)

    async def request(self, value: Any) -> Any:
        body = [encode(value).decode()]
        ask = Message(NAME, PLACE, NAME, "same", signature="s", body=body)
        return decode((await self.bus.call(ask)).body[0])

    async def subscribe(self, sink: Any) -> None:
        def hear(message: Any) -> None:
            if message.message_type is MessageType.SIGNAL and message.member == "news":
                sink(decode(message.body[0]))

        self.bus.add_message_handler(hear)
        rule = Message(
            *("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch"),
            signature="s",
            body=[f"type='signal',interface='{NAME}'"],
        )
        await self.bus.call(rule)

    async def close(self) -> None:
        self.bus.disconnect()
        await self.bus.wait_for_disconnect()
