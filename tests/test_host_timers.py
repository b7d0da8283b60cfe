"""The timers of Tk (on a virtual display), Qt (offscreen) and Blender (by its contract)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from interphone import Poll, poll_from_blender, poll_from_qt, poll_from_tk
from interphone.blocking import Client, Server
from support.threads import Gate, Worker, no_thread_left

HERE = threading.get_ident


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    with no_thread_left():
        yield


@pytest.fixture
def host() -> Poll:
    return Poll()


@pytest.fixture
def asked(address: str, host: Poll) -> Iterator[Callable[[Callable[[], None]], Worker]]:
    """Starts another program that asks where the handlers run, and then what to do in the end."""
    server = Server(address, host=host)
    server.method("where")(lambda: HERE())
    server.method("broken")(lambda: 1 / 0)

    def ask() -> set[int]:
        with Client(address) as client:
            with pytest.raises(Exception, match="ZeroDivisionError"):
                client.call("broken")  # the timer goes on all the same
            found = {client.call("where") for _ in range(20)}
            client.call("end")
            return found

    def start(end: Callable[[], None]) -> Worker:
        server.method("end")(lambda: end())
        return Worker(ask)

    with server:
        yield start


# Tk


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """A display of one's own."""
    xvfb = shutil.which("Xvfb")
    if xvfb is None:
        pytest.skip("no Xvfb here")
    reading, writing = os.pipe()
    command = [xvfb, "-displayfd", str(writing), "-screen", "0", "320x240x24", "-nolisten", "tcp"]
    process = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    with open(reading) as told:
        number = told.readline().strip()
    assert number, "Xvfb did not start"
    yield f":{number}"
    process.terminate()
    process.wait()


@pytest.fixture
def root(display: str) -> Iterator[Any]:
    tkinter = pytest.importorskip("tkinter")
    root = tkinter.Tk(display)
    yield root
    with suppress(tkinter.TclError):  # the test did
        root.destroy()


def test_tk_runs_handlers_in_its_own_thread(root, host, asked):
    ended = poll_from_tk(host, root, interval=0.001)
    asking = asked(root.quit)

    root.mainloop()
    while asking.running:
        root.update()

    assert asking.result() == {HERE()}
    ended()
    root.update()


def test_tk_stops_polling_when_it_is_told(root, host):
    end = poll_from_tk(host, root, interval=0.001)
    end()
    ran: list[int] = []
    host.post(ran.append, 1, report=print)

    root.after(20, root.quit)
    root.mainloop()

    assert ran == []


def test_a_handler_may_destroy_the_widget(root, host):
    poll_from_tk(host, root, interval=0.001)
    host.post(root.destroy, report=print)

    root.mainloop()


# Qt; in a process of its own, because PySide changes how this one imports modules

QT = """
import sys, threading
from PySide6.QtCore import QTimer
from PySide6.QtGui import QGuiApplication
from interphone import Poll, poll_from_qt
from interphone.blocking import Client, Server

host, found, ran = Poll(), set(), []
application = QGuiApplication([])
assert application.platformName() == "offscreen"
server = Server(sys.argv[1], host=host)
server.method("where")(lambda: threading.get_ident())
server.method("broken")(lambda: 1 / 0)
server.method("end")(application.quit)

def ask():
    with Client(sys.argv[1]) as client:
        try:
            client.call("broken")
        except Exception as exc:
            print(exc)
        found.update(client.call("where") for _ in range(20))
        client.call("end")

with server:
    end = poll_from_qt(host, application, interval=0.001)
    asking = threading.Thread(target=ask)
    asking.start()
    application.exec()
    while asking.is_alive():
        application.processEvents()
    print(found == {threading.get_ident()})

    end()
    poll_from_qt(host, interval=0.001)()  # begun and ended
    host.post(ran.append, 1, report=print)
    QTimer.singleShot(20, application.quit)
    application.exec()
    print(ran)
"""


def test_qt_runs_handlers_in_its_own_thread_until_it_is_told_to_stop(address):
    if importlib.util.find_spec("PySide6") is None:
        pytest.skip("no PySide6 here")
    done = subprocess.run(
        [sys.executable, "-c", QT, address],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
    )

    if "cannot open shared object file" in done.stderr:
        pytest.skip("the machine has not all that Qt needs")
    assert done.stdout.splitlines() == ["ZeroDivisionError: division by zero", "True", "[]"], (
        done.stderr
    )


def test_a_program_without_qt_is_told_so(host, monkeypatch):
    for name in [name for name in sys.modules if name.endswith(".QtCore")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RuntimeError, match="QtCore"):
        poll_from_qt(host)


# Blender: a stand-in with the contract of `bpy.app.timers`, since Blender itself is no package
# of Python's. A function is called again after as many seconds as it returns.


class Timers:
    def __init__(self) -> None:
        self.registered: dict[Callable[[], float | None], bool] = {}
        self.waited: list[float] = []

    def register(
        self,
        function: Callable[[], float | None],
        *,
        first_interval: float = 0,
        persistent: bool = False,
    ) -> None:
        self.registered[function] = persistent
        self.waited.append(first_interval)

    def unregister(self, function: Callable[[], float | None]) -> None:
        if function not in self.registered:
            raise ValueError("Error: function is not registered")
        del self.registered[function]

    def is_registered(self, function: Callable[[], float | None]) -> bool:
        return function in self.registered

    def turn(self) -> None:
        """One turn of the main loop, in which every timer is due."""
        for function in list(self.registered):
            again = function()
            if again is None:
                del self.registered[function]
            else:
                self.waited.append(again)


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> Timers:
    timers = Timers()
    bpy: Any = ModuleType("bpy")
    bpy.app = SimpleNamespace(timers=timers)
    monkeypatch.setitem(sys.modules, "bpy", bpy)
    return timers


def test_blender_runs_handlers_in_its_own_thread(timers, host, asked):
    over = Gate()
    end = poll_from_blender(host, interval=0.02)
    asking = asked(over.open)

    while not over.is_open or asking.running:
        timers.turn()

    assert asking.result() == {HERE()}
    assert [*timers.registered.values()] == [True]  # it stays when another file is opened
    assert {*timers.waited} == {0.02}
    end()
    assert not timers.registered
    end()
