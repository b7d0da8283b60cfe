"""iceoryx2: slices of bytes in shared memory, an event for whoever waits; msgspec's JSON in them.

One publisher and one subscriber for each way. The other end copies what it answers into memory of
its own, as an answer that was computed would be.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import iceoryx2 as iox
import msgspec

BLOCKING = True
BIG = 65_536
encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
iox.set_log_level(iox.LogLevel.Error)


class Way:
    """One direction: what is put at one end is taken at the other."""

    def __init__(self, node: Any, name: str) -> None:
        data = node.service_builder(iox.ServiceName.new(name))
        events = node.service_builder(iox.ServiceName.new(f"{name}/wake"))
        self.data = data.publish_subscribe(iox.Slice[ctypes.c_uint8])
        self.data = self.data.history_size(0).subscriber_max_buffer_size(128)
        self.data = self.data.enable_safe_overflow(False).open_or_create()
        self.events = events.event().open_or_create()

    def opened_to_put(self) -> Way:
        publisher = self.data.publisher_builder().initial_max_slice_len(4096)
        self.publisher = publisher.allocation_strategy(iox.AllocationStrategy.PowerOfTwo).create()
        self.notifier = self.events.notifier_builder().create()
        return self

    def opened_to_take(self) -> Way:
        self.subscriber = self.data.subscriber_builder().create()
        self.listener = self.events.listener_builder().create()
        return self

    def put(self, address: Any, size: int) -> None:
        sample = self.publisher.loan_slice_uninit(size)
        ctypes.memmove(sample.payload_ptr, address, size)
        sample.assume_init().send()
        self.notifier.notify()

    def take(self) -> Any:
        """Wait for the next slice; it must be deleted."""
        while (sample := self.subscriber.receive()) is None:
            self.listener.blocking_wait()
        return sample


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)
        self.asked = Way(self.node, f"{address}/ask").opened_to_take()
        self.answers = Way(self.node, f"{address}/answer").opened_to_put()

    def start(self) -> None:
        threading.Thread(target=self.answer, daemon=True).start()

    def answer(self) -> None:
        while True:
            sample = self.asked.take()
            view = sample.payload()
            if view.number_of_elements >= BIG:
                self.answers.put(view.data_ptr, view.number_of_elements)
            else:
                value = decode(ctypes.string_at(view.data_ptr, view.number_of_elements))
                body = encode(value)
                self.answers.put(body, len(body))
            sample.delete()


class Client:
    def __init__(self, address: str) -> None:
        self.address = address

    def connect(self) -> None:
        self.node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)
        self.answers = Way(self.node, f"{self.address}/answer").opened_to_take()
        self.ask = Way(self.node, f"{self.address}/ask").opened_to_put()

    def request(self, value: Any) -> Any:
        body = encode(value)
        self.ask.put(body, len(body))
        sample = self.answers.take()
        view = sample.payload()
        answer = decode(ctypes.string_at(view.data_ptr, view.number_of_elements))
        sample.delete()
        return answer

    def echo(self, data: bytes) -> Any:
        """The answer is read in place; what was the last one is given back."""
        if last := getattr(self, "last", None):
            last.delete()
        self.ask.put(data, len(data))
        self.last = self.answers.take()
        view = self.last.payload()
        return memoryview((ctypes.c_uint8 * view.number_of_elements).from_address(view.data_ptr))

    def close(self) -> None:
        if last := getattr(self, "last", None):
            last.delete()
        for way in (self.answers, self.ask):
            for name in ("subscriber", "listener", "publisher", "notifier"):
                if port := getattr(way, name, None):
                    port.delete()
