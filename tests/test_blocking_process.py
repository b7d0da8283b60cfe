"""The blocking API in processes of their own: what they import, Ctrl-C, fork, and their end."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from interphone import Limits
from interphone.blocking import Client, Server
from support.threads import Gate, Inbox

TIMEOUT = 60

posix = pytest.mark.skipif(sys.platform == "win32", reason="no such signals, no fork")


@pytest.fixture
def server(address: str) -> Iterator[Server]:
    server = Server(address)
    gate = Gate()
    server.method("add")(lambda a, b: a + b)
    server.method("slow")(gate.wait)

    @server.method
    def never() -> Iterator[None]:
        gate.wait()
        yield

    with server:
        yield server
        gate.open()


# asyncio's debug mode looks at a file for every frame of a stack, which takes long under Wine.
DEV = [] if sys.platform == "win32" else ["-X", "dev"]
# In development mode asyncio says when a machine is slow, as a warning.
QUIET = "import logging; logging.getLogger('asyncio').setLevel(logging.ERROR)\n"


def command(source: str) -> list[str]:
    return [sys.executable, *DEV, "-W", "error", "-c", QUIET + textwrap.dedent(source)]


def run(source: str, *arguments: str) -> str:
    """Run a program; return what it printed. It must neither fail nor complain."""
    done = subprocess.run(
        [*command(source), *arguments], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@contextmanager
def program(source: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*command(source), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until_asked(server: Server, process: subprocess.Popen[str]) -> None:
    """Wait until the program's call has come to its handler."""
    (peer,) = server.peers.values()
    while not peer.inflight:
        assert process.poll() is None


def signal_while_it_asks(server: Server, process: subprocess.Popen[str]) -> None:
    """Send it SIGUSR1 once it has said that it asks, and the server has been asked."""
    assert process.stdout is not None
    assert process.stdout.readline() == "asking\n"
    wait_until_asked(server, process)
    process.send_signal(signal.SIGUSR1)


# What it imports


@pytest.mark.skipif(sys.platform == "win32", reason="a client of a pipe goes by the portal")
def test_a_client_that_only_asks_imports_no_event_loop(server, address):
    told = run(
        """
        import sys
        import interphone.blocking
        from interphone import RemoteError, contract
        from interphone.blocking import Client

        with Client(sys.argv[1]) as client:
            assert client.call("add", 1, 2, returns=int) == 3
            assert client.within(1).call("add", 1, 2) == 3
            client.send(1)
            client.ping()
            try:
                client.request(1)
            except LookupError as exc:
                print(type(exc).__name__)
        heavy = ("asyncio", "ssl", "concurrent.futures", "uvloop")
        print([name for name in heavy if name in sys.modules])
        """,
        address,
    )
    assert told == "Unhandled\n[]\n"


# Ctrl-C

CALLS = {
    "direct": "client.call('slow', timeout=None)",
    "portal": "client.peer.call('slow', timeout=None)",
    "subscription": "next(items)",
    "stream": "next(stream)",
    "closed": "client.wait_closed()",
}


@posix
@pytest.mark.parametrize("waiting", CALLS)
def test_ctrl_c_interrupts_a_wait(server, address, waiting):
    left = Inbox()
    server.on_disconnect(left.put)
    with program(
        f"""
        import sys
        from contextlib import ExitStack
        from interphone.blocking import Client

        try:
            with ExitStack() as stack:
                client = stack.enter_context(Client(sys.argv[1]))
                if {waiting != "direct"}:
                    items = stack.enter_context(client.subscribe("t"))
                    stream = stack.enter_context(client.stream("never"))
                client.ping()
                print("waiting", flush=True)
                {CALLS[waiting]}
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """,
        address,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        if waiting in ("direct", "portal"):
            wait_until_asked(server, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
        assert (out, err, process.returncode) == ("interrupted\n", "", 0)
    reason = left.next()[1]
    assert reason is None or waiting == "direct"  # which an interrupt may have broken off


@posix
@pytest.mark.parametrize("connected", [True, False])
def test_ctrl_c_interrupts_connecting(address, connected):
    """To a place where nobody is, and to a server that does not answer."""
    gate, asked = Gate(), Gate()
    server = Server(address, limits=Limits(handshake_timeout=60))

    @server.authorize
    def decide(peer: object, payload: object) -> None:
        asked.open()
        gate.wait()

    if connected:
        server.start()
    with program(
        """
        import sys
        from interphone.blocking import Client

        print("connecting", flush=True)
        try:
            Client(sys.argv[1], connect_timeout=None).connect()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """,
        address,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "connecting\n"
        if connected:
            asked.wait()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
        assert (out.splitlines()[-1:], err) in ((["interrupted"], ""), ([], err))
        assert "interrupted" in out or "KeyboardInterrupt" in err
    gate.open()
    server.close(grace=0)


@posix
def test_ctrl_c_closes_a_server(address):
    with program(
        """
        import sys
        from interphone.blocking import Server

        server = Server(sys.argv[1])
        server.method("n")(lambda: 1)
        server.on_ready(lambda address: print("ready", flush=True))
        server.on_close(lambda: print("closed", flush=True))
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """,
        address,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with Client(address) as client:
            assert client.call("n") == 1
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
        assert (out, err, process.returncode) == ("closed\ninterrupted\n", "", 0)
    assert not Path(address).exists()


# Other signals


@posix
def test_a_signal_handler_cannot_wait_for_the_thread_it_interrupts(server, address):
    """It is told so at once, and may use another client."""
    gate = Gate()
    server.method("gated")(gate.wait)
    server.on_request(on="inline")(lambda peer, data: data)
    with program(
        """
        import signal, sys
        from interphone import LocalProtocolError
        from interphone.blocking import Client

        asks = [
            lambda: client.call("add", 1, 2),
            lambda: client.request(1),
            lambda: client.send(1),
            lambda: client.ping(timeout=None),
            lambda: client.publish("t", 1),
            lambda: client.on_message(print),
        ]

        def on_signal(number, frame):
            for ask in asks:
                try:
                    print("no error", ask(), flush=True)
                except LocalProtocolError as exc:
                    print(exc, flush=True)
            with Client(sys.argv[1]) as another:
                print(another.call("add", 1, 2), flush=True)

        signal.signal(signal.SIGUSR1, on_signal)
        client = Client(sys.argv[1])
        with client:
            print("asking", flush=True)
            client.call("gated", timeout=None)
            print(client.call("add", 2, 2))
        """,
        address,
    ) as process:
        signal_while_it_asks(server, process)
        told = [process.stdout.readline() for _ in range(7)]
        gate.open()
        out, err = process.communicate(timeout=TIMEOUT)
    assert all("use another client in a signal handler" in line for line in told[:6]), told
    assert (told[6], out, err, process.returncode) == ("3\n", "4\n", "", 0)


@posix
@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_signal_handler_may_end_the_client_it_interrupts(server, address, end):
    left = Inbox()
    server.on_disconnect(left.put)
    with program(
        f"""
        import signal, sys
        from interphone import ConnectionClosed
        from interphone.blocking import Client

        client = Client(sys.argv[1]).connect()
        signal.signal(signal.SIGUSR1, lambda number, frame: client.{end}("enough"))
        print("asking", flush=True)
        try:
            client.call("slow", timeout=None)
        except ConnectionClosed as exc:
            print(exc.reason)
        """,
        address,
    ) as process:
        signal_while_it_asks(server, process)
        out, err = process.communicate(timeout=TIMEOUT)
    assert (out, err, process.returncode) == ("enough\n", "", 0)
    assert left.next()[1] == "enough"


# Fork


@posix
def test_a_child_forked_in_the_middle_of_a_move_is_told(address):
    told = run(
        """
        import os, signal, sys, threading, warnings
        from interphone import ForkedError
        from interphone.blocking import Client, Server

        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        gate, blocked = threading.Event(), threading.Event()

        def block(peer, data):
            blocked.set()
            gate.wait()
            return data

        server = Server(sys.argv[1])
        server.on_request(on="inline")(block)
        server.start()
        other = Client(sys.argv[1]).connect()
        client = Client(sys.argv[1]).connect()
        asking = threading.Thread(target=other.request, args=(1,))
        asking.start()
        blocked.wait()  # nothing is moved to the loop now
        moving = threading.Thread(target=lambda: client.on_message(print))
        moving.start()
        while not client._move_lock.locked():
            pass
        child = os.fork()
        if not child:
            signal.alarm(20)
            for ask in (lambda: client.on_message(print), client.ping):
                try:
                    ask()
                except ForkedError as exc:
                    print(exc, flush=True)
            client.close()
            print("closed", flush=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        gate.set()
        moving.join()
        asking.join()
        client.close()
        other.close()
        server.close()
        """,
        address,
    )
    lines = told.splitlines()
    assert all("fork" in line for line in lines[:2]), told
    assert lines[2:] == ["closed", "0"]


@posix
def test_a_child_forked_while_it_was_coming_back_is_told(address):
    told = run(
        """
        import os, sys, threading, warnings
        from interphone import ForkedError
        from interphone.blocking import Client, Server

        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        server = Server(sys.argv[1])
        server.start()
        client = Client(sys.argv[1]).connect()
        server.close(allow_reconnect=True)
        away = threading.Event()
        asking = threading.Thread(target=client.call, args=("one",), daemon=True)
        asking.start()
        while client.outage is None:
            away.wait(0.001)
        child = os.fork()
        if not child:
            for ask in (lambda: client.call("one", timeout=None), lambda: client.wait_closed()):
                try:
                    ask()
                except ForkedError as exc:
                    print(exc, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        os._exit(0)
        """,
        address,
    )
    assert told.count("fork") == 2


@posix
def test_a_forked_child_makes_a_client_of_its_own(server, address):
    told = run(
        """
        import os, sys, warnings
        from interphone import ForkedError
        from interphone.blocking import Client

        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        path, far = sys.argv[1], Client(sys.argv[1])
        far.on_message(print)
        direct = Client(path)
        with direct, far:
            ids = direct.id, far.id
            child = os.fork()
            if not child:
                for client in (direct, far):
                    try:
                        client.call("add", 1, 2)
                    except ForkedError as exc:
                        print(exc, flush=True)
                direct.close()
                own = Client(path)
                with own:
                    print(own.call("add", 1, 2), flush=True)
                    with own.subscribe("t"):
                        print(own.call("add", 2, 2), flush=True)
                    assert own.id not in ids
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            print(direct.call("add", 3, 2), far.call("add", 3, 3))
            assert (direct.id, far.id) == ids
        """,
        address,
    )
    lines = told.splitlines()
    assert all("fork" in line for line in lines[:2])
    assert lines[2:] == ["3", "4", "5 6"]


@posix
def test_a_child_that_exits_as_usual_leaves_its_parents_connections_alone(server, address):
    told = run(
        """
        import os, sys, warnings
        from interphone.blocking import Client, Server

        warnings.simplefilter("ignore", DeprecationWarning)
        own = Server(sys.argv[1] + "2")
        own.method("n")(lambda: 1)
        with own, Client(sys.argv[1]) as direct, Client(own.address) as far:
            far.on_message(print)
            child = os.fork()
            if not child:
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
            print(direct.call("add", 1, 2), far.call("n"))
        """,
        address,
    )
    assert told == "3 1\n"
    assert not Path(f"{address}2").exists()


# The end of the program


def test_what_is_open_at_the_end_is_closed(server, address):
    left = Inbox()
    server.on_disconnect(left.put)
    told = run(
        """
        import sys
        from interphone.blocking import Client, Server

        own = Server(sys.argv[1] + "2")
        own.on_request(lambda peer, data: data)
        own.start()
        client = Client(sys.argv[1])
        client.on_message(print)
        client.connect()
        print(client.call("add", 1, 2))
        """,
        address,
    )
    assert told == "3\n"
    assert left.next()[1] is None
    assert not Path(f"{address}2").exists()


def test_a_client_that_only_asked_says_goodbye_at_the_end(server, address):
    left = Inbox()
    server.on_disconnect(left.put)
    run(
        """
        import sys
        from interphone.blocking import Client

        client = Client(sys.argv[1]).connect()
        client.call("add", 1, 2)
        """,
        address,
    )
    assert left.next()[1] is None


def test_hooks_hear_of_the_end(server, address):
    told = run(
        """
        import sys
        from interphone.blocking import Client, Server

        def say(line):
            sys.stdout.write(f"{line}\\n")  # in one piece: others say something, too

        own = Server(sys.argv[1] + "2")
        own.on_disconnect(lambda peer, reason: say("disconnected"))
        own.on_close(lambda: say("server closed"))
        own.start()
        client = Client(sys.argv[1])
        client.on_close(lambda reason: say("client closed"))
        client.connect()
        other = Client(own.address).connect()
        other.ping()
        """,
        address,
    )
    assert sorted(told.splitlines()) == ["client closed", "disconnected", "server closed"]


def test_hooks_in_the_hosts_thread_hear_of_the_end(address):
    told = run(
        """
        import sys, threading
        from interphone import Poll
        from interphone.blocking import Server

        host = Poll()
        own = Server(sys.argv[1], host=host)
        own.on_close(lambda: print(threading.current_thread() is threading.main_thread()))
        own.start()
        host.run_pending()
        """,
        address,
    )
    assert told == "True\n"


def test_a_server_answers_its_own_program_while_that_ends(address):
    """Also what was not asked before: Python 3.12 starts no thread any more."""
    told = run(
        """
        import atexit, sys
        from interphone.blocking import Call, Client, Server

        def last():
            with Client(sys.argv[1]) as client:
                print(client.call("add", 1, 2), client.request("r"), client.call("who"))
                far = client.peer
                print(far.call("add", 1, 2), far.request("r"), far.call("who"))
                with client.subscribe("t") as items:
                    server.publish("t", 7)
                    print(next(items).value)
                print("last")

        server = Server(sys.argv[1])
        server.method("add")(lambda a, b: a + b)
        server.on_request(lambda peer, data: data)
        server.on_disconnect(lambda peer, reason: print("disconnected"))
        server.on_close(lambda: print("closed"))

        @server.method
        def who(call: Call) -> int:
            return len(call.peer.id)

        atexit.register(last)
        server.start()
        """,
        address,
    )
    assert told.splitlines()[-3:] == ["last", "disconnected", "closed"]
    assert told.startswith("3 r ")


def test_what_begins_at_the_end_works_or_says_why_not(address):
    told = run(
        """
        import atexit, sys
        from interphone import LocalProtocolError
        from interphone.blocking import Client, Server

        def last():
            server = Server(sys.argv[1])
            server.method("add")(lambda a, b: a + b)
            server.on_close(lambda: print("closed"))
            try:
                server.start()
            except LocalProtocolError as exc:
                print(exc)
            else:
                with Client(sys.argv[1]) as client:
                    print(client.call("add", 1, 2))

        atexit.register(last)
        """,
        address,
    )
    assert told == "3\nclosed\n" or told.startswith("the background loop cannot begin: can't ")


def test_a_stream_at_the_end_works_or_says_why_not(address):
    told = run(
        """
        import atexit, logging, sys
        from collections.abc import Iterator
        from interphone import RemoteError
        from interphone.blocking import Client, Server

        def last():
            with Client(sys.argv[1]) as client:
                try:
                    with client.stream("count", of=int) as stream:
                        print(list(stream))
                except RemoteError as exc:
                    print(exc)

        logging.getLogger("interphone").addHandler(logging.NullHandler())
        server = Server(sys.argv[1])

        @server.method
        def count() -> Iterator[int]:
            yield from (1, 2)

        server.start()
        client = Client(sys.argv[1])
        client.on_message(print)
        atexit.register(last)
        """,
        address,
    )
    assert told == "[1, 2]\n" or told.startswith("RuntimeError: can't "), told


def test_after_the_end_all_is_closed(server, address):
    """What was given to atexit before interphone was imported comes last."""
    told = run(
        """
        import atexit, sys

        def very_last():
            for end in (own, far, direct):
                end.close()
            for ask in (far.ping, direct.ping, own.ping):
                try:
                    ask()
                except Exception as exc:
                    print(type(exc).__name__)

        atexit.register(very_last)
        from interphone.blocking import Client, Server

        own = Server(sys.argv[1] + "2")
        own.start()
        far = Client(sys.argv[1])
        far.on_message(print)
        far.connect()
        direct = Client(sys.argv[1]).connect()
        """,
        address,
    )
    assert told.splitlines() == ["ConnectionClosed", "ConnectionClosed", "LocalProtocolError"]


@pytest.mark.parametrize("where", ["method", "on_close", "on_message"])
def test_a_handler_that_never_ends_does_not_hold_up_the_end(address, where):
    register = {
        "method": "server.method('stick')(stick)",
        "on_close": "server.on_close(stick)",
        "on_message": "server.on_message(stick)",
    }[where]
    with program(
        f"""
        import sys, threading
        from interphone.blocking import Client, Server

        began = threading.Event()

        def stick(*args):
            began.set()
            threading.Event().wait()

        server = Server(sys.argv[1])
        server.on_disconnect(lambda peer, reason: print("disconnected", flush=True))
        {register}
        server.start()
        client = Client(sys.argv[1]).connect()
        client.send(1)
        client.ping()
        if {where == "method"}:
            asking = threading.Thread(target=client.call, args=("stick",), daemon=True)
            threading.excepthook = print
            asking.start()
        if {where != "on_close"}:
            began.wait()
        """,
        address,
    ) as process:
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    # Python 3.12 starts no further thread then, and this handler may have the one there is.
    assert "disconnected" in out or where == "on_message"
    assert "the program ends, although" in err
    assert "__main__.stick" in err
    assert "Traceback" not in err


@posix
def test_a_child_forked_while_a_handler_runs_ends_at_once(address):
    told = run(
        """
        import os, sys, threading, warnings
        from interphone.blocking import Client, Server

        warnings.simplefilter("ignore", DeprecationWarning)
        began, over = threading.Event(), threading.Event()

        def slow() -> int:
            began.set()
            over.wait()
            return 7

        with Server(sys.argv[1]) as server, Client(sys.argv[1]) as client:
            server.method(slow)
            asking = threading.Thread(target=lambda: print(client.call("slow")))
            asking.start()
            began.wait()
            child = os.fork()
            if not child:
                sys.exit(3)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            over.set()
            asking.join()
        """,
        address,
    )
    assert told == "3\n7\n"


def test_a_client_may_ask_while_the_program_ends(server, address):
    told = run(
        """
        import atexit, sys
        from interphone.blocking import Client

        def last():
            with Client(sys.argv[1]) as client:
                print(client.call("add", 1, 2))

        atexit.register(last)
        """,
        address,
    )
    assert told == "3\n"


def test_a_client_begins_to_listen_while_the_program_ends_or_goes_on_without(server, address):
    told = run(
        """
        import atexit, sys
        from interphone import LocalProtocolError
        from interphone.blocking import Client

        def last():
            with Client(sys.argv[1]) as client:
                try:
                    client.on_message(print)
                except LocalProtocolError as exc:  # Python 3.12
                    print(exc)
                print(client.call("add", 1, 2))

        atexit.register(last)
        """,
        address,
    )
    *why_not, total = told.splitlines()
    assert total == "3"
    assert all(line.startswith("the background loop cannot begin: can't ") for line in why_not)


def test_a_waiting_daemon_thread_does_not_hold_up_the_end(server, address):
    run(
        """
        import sys, threading
        from interphone.blocking import Client

        client = Client(sys.argv[1]).connect()
        far = Client(sys.argv[1])
        far.on_message(print)
        far.connect()

        def wait():
            try:
                far.call("slow", timeout=None)
            except Exception:
                pass

        threading.Thread(target=wait, daemon=True).start()
        far.ping()
        client.close()
        """,
        address,
    )
