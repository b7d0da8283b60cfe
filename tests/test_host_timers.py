"""The timers of Tk (on a virtual display), Qt (offscreen) and Blender (by its contract)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from interphone import Poll, poll_from_blender, poll_from_qt
from interphone.blocking import Client, Server
from support.lacking import lacking
from support.threads import Gate, Worker, no_thread_left

HERE = threading.get_ident


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    with no_thread_left():
        yield


# Tk and Qt have processes of their own: Tk aborts a process in which another thread collects
# what was its garbage, and PySide changes how a process imports modules.

SERVING = """
import sys, threading
from contextlib import contextmanager
from interphone import Poll
from interphone.blocking import Client, Server

@contextmanager
def serving(quit):
    host, found = Poll(), set()
    server = Server(sys.argv[1], host=host)
    server.method("where")(lambda: threading.get_ident())
    server.method("broken")(lambda: 1 / 0)
    server.method("end")(lambda: quit())

    def ask():
        with Client(sys.argv[1]) as client:
            try:
                client.call("broken")  # the timer goes on all the same
            except Exception as exc:
                print(exc)
            found.update(client.call("where") for _ in range(20))
            client.call("end")

    with server:
        asking = threading.Thread(target=ask)
        asking.start()
        yield host, asking, found
"""
TOLD = ["ZeroDivisionError: division by zero", "True", "[]"]


def told_by(source: str, address: str, **environment: str) -> list[str]:
    """Run a program behind `SERVING`; return the lines it prints."""
    done = subprocess.run(
        [sys.executable, "-c", SERVING + source, address],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    if "cannot open shared object file" in done.stderr:
        lacking("the machine has not all that this toolkit needs: `make setup` gets it")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# Tk


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """A display of one's own."""
    xvfb = shutil.which("Xvfb")
    if xvfb is None:
        lacking("no Xvfb here: `make setup` gets it")
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


TK = """
import sys, threading, tkinter
from interphone import poll_from_tk

root = tkinter.Tk()
with serving(root.quit) as (host, asking, found):
    end = poll_from_tk(host, root, interval=0.001)
    root.mainloop()
    while asking.is_alive():
        root.update()
    print(found == {threading.get_ident()})

ran = []
end()
poll_from_tk(host, root, interval=0.001)()  # begun and ended
host.post(ran.append, 1, report=print)
root.after(20, root.quit)
root.mainloop()
print(ran)

poll_from_tk(host, root, interval=0.001)
host.post(root.destroy, report=print)  # a handler may end the widget
root.mainloop()
"""


def test_tk_runs_handlers_in_its_own_thread_until_it_is_told_to_stop(address, display):
    if importlib.util.find_spec("_tkinter") is None:
        pytest.skip("this Python was built without Tk")

    assert told_by(TK, address, DISPLAY=display) == TOLD


QT = """
import sys, threading
from PySide6.QtCore import QTimer
from PySide6.QtGui import QGuiApplication
from interphone import poll_from_qt

application = QGuiApplication([])
assert application.platformName() == "offscreen"
with serving(application.quit) as (host, asking, found):
    end = poll_from_qt(host, application, interval=0.001)
    application.exec()
    while asking.is_alive():
        application.processEvents()
    print(found == {threading.get_ident()})

ran = []
end()
poll_from_qt(host, interval=0.001)()  # begun and ended
host.post(ran.append, 1, report=print)
QTimer.singleShot(20, application.quit)
application.exec()
print(ran)
"""


def test_qt_runs_handlers_in_its_own_thread_until_it_is_told_to_stop(address):
    if importlib.util.find_spec("PySide6") is None:
        lacking("no PySide6 here: `make setup` gets it")

    assert told_by(QT, address, QT_QPA_PLATFORM="offscreen") == TOLD


def test_a_program_without_qt_is_told_so(monkeypatch):
    for name in [name for name in sys.modules if name.endswith(".QtCore")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RuntimeError, match="QtCore"):
        poll_from_qt(Poll())


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


def test_blender_runs_handlers_in_its_own_thread(timers, address):
    host, over = Poll(), Gate()
    server = Server(address, host=host)
    server.method("where")(lambda: HERE())
    server.method("end")(lambda: over.open())

    def ask() -> set[int]:
        with Client(address) as client:
            found = {client.call("where") for _ in range(20)}
            client.call("end")
            return found

    with server:
        end = poll_from_blender(host, interval=0.02)
        asking = Worker(ask)
        while not over.is_open or asking.running:
            timers.turn()
        assert asking.result() == {HERE()}
    assert [*timers.registered.values()] == [True]  # it stays when another file is opened
    assert {*timers.waited} == {0.02}
    end()
    assert not timers.registered
    end()
