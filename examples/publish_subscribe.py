"""Publish and subscribe: whoever subscribed to a topic hears what anybody publishes on it."""

from __future__ import annotations

from dataclasses import dataclass

import interphone
from interphone import Client, MemoryAddress, Publication, Server

address = MemoryAddress("weather station")
server = Server(address)


@dataclass
class Weather:
    celsius: float
    wind: str = "none"


# For as long as the server lives; a client has the same decorator.
@server.on_topic("weather", of=Weather)
def log(publication: Publication[Weather]) -> None:
    print("server logs:", publication.value)


async def main() -> None:
    async with server, Client(address) as station, Client(address) as reader:
        # For as long as the block: an iterator. Several topics are fine.
        async with reader.subscribe("weather", "sensor") as items:
            receipt = await station.publish("weather", Weather(21.5, "west"))
            print(f"{receipt.matched} subscribers, queued for {receipt.queued}")
            await server.publish("weather", Weather(22.0))

            # Every value arrives, those that are false, too.
            falsy = [0, 0.0, "", False, None, [], {}]
            for value in falsy:
                await station.publish("sensor", value)

            async for item in items:
                print(f"reader hears on {item.topic}: {item.value!r}")
                if item.value == {}:
                    break

        # A publication without a subscriber is no error, and the receipt says so.
        receipt = await station.publish("sensor", 7)
        print(f"{receipt.matched} subscribers; the receipt itself is {bool(receipt)}")

        # With a type, the values are what they say they are.
        async with reader.subscribe("weather", of=Weather) as reports:
            await station.publish("weather", {"celsius": -3.0, "wind": "north"})
            report = await anext(reports)
            print(f"{report.value.celsius} degrees, wind: {report.value.wind}")


if __name__ == "__main__":
    interphone.run(main())
