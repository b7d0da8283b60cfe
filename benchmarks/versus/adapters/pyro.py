"""Pyro5 over a Unix socket, with serpent, which it begins with."""

from __future__ import annotations

import threading
from typing import Any

import Pyro5.api

BLOCKING = True


@Pyro5.api.expose
class Same:
    def same(self, value: Any) -> Any:
        return value


class Server:
    def __init__(self, address: str, sink: Any) -> None:
        self.daemon = Pyro5.api.Daemon(unixsocket=address)
        self.daemon.register(Same(), "same")

    def start(self) -> None:
        threading.Thread(target=self.daemon.requestLoop, daemon=True).start()


class Client:
    def __init__(self, address: str) -> None:
        self.uri = f"PYRO:same@./u:{address}"

    def connect(self) -> None:
        self.proxy = Pyro5.api.Proxy(self.uri)
        self.proxy._pyroBind()
        self.request = self.proxy.same

    def close(self) -> None:
        self.proxy._pyroRelease()
