"""A program that owns its main thread, as Blender does, and serves others from it.

Its scene may be touched by the main thread only. `Poll` brings the handlers there: the main
loop runs what waits once in each turn, for some milliseconds at most. In Blender, Tk and Qt
`poll_from_blender`, `poll_from_tk` and `poll_from_qt` do that from a timer.
"""

from __future__ import annotations

import threading

from interphone import Poll
from interphone.blocking import Client, Server


class Scene:
    """Stands for what a host guards: it may be used in the thread that made it."""

    def __init__(self) -> None:
        self._owner = threading.get_ident()
        self.objects: list[str] = []

    def add(self, name: str) -> int:
        assert threading.get_ident() == self._owner, "the wrong thread"
        self.objects.append(name)
        return len(self.objects)


scene = Scene()
host = Poll()
server = Server("studio", host=host)
quitting = False


@server.method
def add_sphere(radius: float) -> int:
    return scene.add(f"sphere of radius {radius:g}")


@server.method
def quit() -> None:
    global quitting
    quitting = True


@server.method(on="thread")
def thread_of_files() -> str:  # what needs nothing of the host's runs elsewhere
    return threading.current_thread().name.split("_")[0]


def another_program() -> None:
    with Client("studio") as client:
        for radius in (1, 2, 3):
            print(f"objects: {client.call('add_sphere', radius)}")
        print(f"files are read in a thread of {client.call('thread_of_files')}")
        print(f"the link lives whatever the host does: {client.ping() < 1}")
        client.call("quit")


def main() -> None:
    with server:
        other = threading.Thread(target=another_program)
        other.start()
        frames = 0
        while not quitting:  # the host's main loop
            host.run_pending(budget=0.005)
            frames += 1
        other.join()
    print(f"the scene after {'some' if frames else 'no'} turns: {scene.objects}")


if __name__ == "__main__":
    main()
