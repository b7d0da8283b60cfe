"""Every command as a process: against interphone, and against real Node servers; and Ctrl-C."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.shell import COMMAND, Running, environment, interphone

SERVED = """
from interphone import Server, run

assert callable(run)
server = Server("served")

@server.method
async def version() -> int:
    return 1

def make():
    return server

nothing = 3
"""

ENTRY = shutil.which("interphone", path=os.path.dirname(sys.executable))

posix = pytest.mark.skipif(os.name == "nt", reason="no such shell, signals, devices or list")


# Once each


@pytest.mark.parametrize(
    ("args", "input", "out"),
    [
        (("call", "shop", "add", "-", "b=2"), "40\n", "42\n"),
        (("request", "old", "-"), "two words\n", "two words\n"),
        (("send", "shop", "1"), "", ""),
        (("stream", "shop", "total", "--items", "-"), "1\n2\n\n39", "42\n"),
        (("pub", "shop", "t", "-", "--lines"), "1\n2\n", "matched 0, queued 0, dropped 0\n" * 2),
        (("describe", "old", "add"), "", "add(a: int, b: int = ...) -> int\n"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_command_is_a_process(hosted, args, input, out):
    done = interphone(*args, input=input)

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(out)


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(("list",), marks=posix),
        ("info", "shop"),
        ("doctor", "shop"),
        ("help", "peers"),
    ],
)
def test_nothing_is_coloured_in_a_pipe(hosted, args):
    done = interphone(*args)

    assert done.code == 0
    assert done.out
    assert "\x1b" not in done.out + done.err


def test_error_is_an_exit_code(hosted):
    done = interphone("call", "shop", "fail", "x")

    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("interphone: ValueError: x\n")


@posix
@pytest.mark.parametrize(("closed", "out"), [("<&-", "2\n"), (">&-", ""), ("2>&-", "2\n")])
def test_standard_descriptors_may_be_closed(hosted, closed, out):
    command = shlex.join([*COMMAND, "call", "shop", "add", "1"])
    done = subprocess.run(
        ["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, env=environment()
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, out, "")


@posix
def test_full_disk_is_said(hosted):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "call", "shop", "add", "1"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    assert done.returncode == 2
    assert done.stderr == "interphone: cannot write the output: No space left on device\n"


def test_nobody_reads_on(hosted):
    with subprocess.Popen(
        [*COMMAND, "stream", "shop", "count", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().split() == [b"0"]
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


@pytest.mark.parametrize(
    "args",
    [("--help",), ("help",), ("help", "exits"), ("call", "--help"), ("info", "shop", "--json")],
)
def test_nobody_reads_from_the_beginning(hosted, args):
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [*COMMAND, *args], stdout=writes, stderr=subprocess.PIPE, text=True, env=environment()
    )
    os.close(writes)

    assert (done.returncode, done.stderr) == (141, "")


def test_what_the_users_module_raises_is_told_whatever_it_is(tmp_path):
    (tmp_path / "bad.py").write_text("def make():\n    raise OSError(22, 'my own device')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = interphone("serve", "bad:make", env={"PYTHONPATH": path})

    assert done.code == 1
    assert "my own device" in done.err


@posix
def test_interrupted_while_it_is_imported(tmp_path):
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = interphone("list", env={"PYTHONPATH": str(tmp_path)})

    assert done == (130, "", "")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(missing):
    code = f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_module('interphone')"
    code = code.replace("'interphone')", "'interphone', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'interphone[cli]'" in done.stderr


@pytest.mark.skipif(os.name == "nt" and ENTRY is None, reason="interphone is not installed here")
def test_entry_point_is_the_same(hosted):
    done = subprocess.run([ENTRY, "call", "shop", "add", "2"], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, "3\n")


def test_module_does_nothing_when_it_is_imported():
    assert "main" in runpy.run_module("interphone.__main__", run_name="imported")


def test_public_names_stay_what_they_are():
    code = "import interphone.cli, interphone; print(callable(interphone.run))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stdout == "True\n"


@pytest.mark.skipif(os.name == "nt", reason="nobody can list pipes")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completes_names(hosted, shell):
    words = "interphone call sh"
    env = {
        "_INTERPHONE_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": "2",
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }

    assert "shop" in interphone(env=env).out


# Node


@pytest.mark.node
@pytest.mark.parametrize("family", ["net", "isdk"])
def test_node_server_is_asked(node, family):
    done = interphone("request", node[family], '{"a": [1, null]}', "--json")

    assert (done.code, done.out, done.err) == (0, '{"a":[1,null]}\n', "")


@pytest.mark.node
@pytest.mark.parametrize("family", ["net", "isdk"])
def test_node_server_takes_what_it_can(cli, node, family):
    path = node[family]

    assert cli("send", path, '{"a": 1}').code == 0
    assert cli("ping", path, "-n", "2", "-i", "0").out.count(" ms") >= 2
    assert cli("bench", path, "-s", "0.02").code == 0
    assert cli("bench", path, "-s", "0.02", "--request", '{"a": 1}').code == 0
    assert "Node" in cli("doctor", path).out
    told = json.loads(cli("info", path, "--json").out)
    assert told["kind"] == {"net": "net-ipc", "isdk": "@isdk/ipc-server"}[family]
    assert told["dialect"] == "classic"


@posix
@pytest.mark.node
@pytest.mark.parametrize(("family", "kind"), [("net", "net-ipc"), ("isdk", "@isdk/ipc-server")])
def test_node_server_is_listed(cli, node, family, kind):
    asked = [json.loads(line) for line in cli("list", "--ask", "--json").out.splitlines()]
    assert kind in [each["kind"] for each in asked if each["name"] == node[family]]


@pytest.mark.node
@pytest.mark.parametrize("family", ["net", "isdk"])
@pytest.mark.parametrize(
    "args",
    [
        ("describe",),
        ("call", "add", "1"),
        ("stream", "count", "1"),
        ("tap",),
        ("bench", "add"),
        ("sub", "a.*"),
        ("pub", "a", "1", "--retain"),
    ],
    ids=lambda args: args[0],
)
def test_what_node_cannot_is_one_sentence(cli, node, family, args):
    command, *rest = args
    done = cli(command, node[family], *rest)

    assert (done.code, done.out) == (2, "")
    assert len([line for line in done.err.splitlines() if line.startswith("interphone: ")]) == 1


@posix
@pytest.mark.node
def test_isdk_server_has_topics(node, hosted):
    name = Path(node["isdk"]).name
    with Running("sub", name, "--isdk", "news", "-n", "1", "--json") as sub:
        while sub.process.poll() is None:  # until the other has subscribed
            assert interphone("pub", node["isdk"], "news", '{"a":1}').code == 0
        assert sub.end() == 0
    assert json.loads(sub.said) == {"topic": "news", "value": {"a": 1}}


@pytest.mark.node
def test_net_ipc_path_is_meant_in_the_current_directory(node):
    path = Path(node["net"])
    directory = None if os.name == "nt" else path.parent  # pipes have none
    done = interphone("request", path.name, "1", "--net-ipc", cwd=directory)

    assert (done.code, done.out) == (0, "1\n")


# Ctrl-C


@posix
def test_interrupted_subscription_is_no_failure(hosted):
    with Running("sub", "shop", "news.>") as sub:
        sub.wait_for("subscribed")
        interphone("pub", "shop", "news.now", "1")
        sub.wait_for("news.now 1")
        sub.interrupt()
        assert sub.end() == 0
    assert "Traceback" not in sub.said


@posix
def test_interrupted_call_is_cancelled_at_the_other_end(hosted, told):
    with Running("call", "shop", "wait.forever", "-t", "60") as call:
        while "waiting" not in told:
            assert call.process.poll() is None
        call.interrupt()
        assert call.end() == 130
    while "stopped" not in told:
        pass
    assert call.said == ""


@posix
@pytest.mark.parametrize(
    "args", [("stream", "shop", "total", "--items", "-"), ("pub", "shop", "t", "-", "--lines")]
)
def test_interrupted_while_stdin_is_silent(hosted, client, args):
    with Running(*args, stdin=subprocess.PIPE) as running:
        while len(hosted.do(peers_of(client))) < 2:
            assert running.process.poll() is None
        running.interrupt()
        assert running.end() == 130
    assert running.said == ""


async def peers_of(client):
    stats = await client.call("$stats")
    return range(stats["peers"])


@posix
def test_interrupted_ping_sums_up(hosted):
    with Running("ping", "old", "-i", "0.01", "--json") as ping:
        ping.wait_for('"seq":3')
        ping.interrupt()
        assert ping.end() == 0
    summary = json.loads(ping.said.splitlines()[-1])
    assert summary["answered"] >= 3


@posix
def test_interrupted_bench_tells_what_was_measured(hosted, told):
    with Running("bench", "shop", "echo", "1", "-s", "600", "--json") as bench:
        while not hosted.do(calls_of("echo")):
            assert bench.process.poll() is None
        bench.interrupt()
        assert bench.end() == 0
    assert json.loads(bench.said)["answers"] > 0


async def calls_of(name):
    from interphone import Client

    async with Client("shop") as client:
        stats = await client.call("$stats")
    return next(each["calls"] > 100 for each in stats["methods"] if each["name"] == name)


@posix
def test_interrupted_tap_is_no_failure(hosted):
    with Running("tap", "old") as tap:
        tap.wait_for("watching old")
        interphone("call", "old", "add", "1")
        tap.wait_for("disconnect")
        tap.interrupt()
        assert tap.end() == 0
    assert "call        add 1" in tap.said
    assert " seen" in tap.said


# serve


@posix
@pytest.mark.parametrize("what", ["served:server", "served:make"])
def test_server_is_served_until_ctrl_c(home, tmp_path, what):
    (tmp_path / "served.py").write_text(SERVED)
    with Running("serve", what, cwd=tmp_path) as serve:
        serve.wait_for(f"serving {home}/interphone/served.sock")
        assert interphone("call", "served", "version").out == "1\n"
        serve.interrupt()
        assert serve.end() == 0
    assert not (home / "interphone" / "served.sock").exists()
    assert "Traceback" not in serve.said


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("served", "names no server: give module:server"),
        ("absent:server", "there is no module 'absent' here"),
        ("served:absent", "served has no 'absent'"),
        ("served:nothing", "is no interphone.Server, but a builtins.int"),
    ],
)
def test_what_cannot_be_served(home, tmp_path, what, why):
    (tmp_path / "served.py").write_text(SERVED)
    done = interphone("serve", what, cwd=tmp_path)

    assert (done.code, done.out) == (2, "")
    assert why in done.err


def test_address_that_is_taken(hosted, tmp_path):
    (tmp_path / "served.py").write_text(SERVED.replace('"served"', '"shop"'))
    done = interphone("serve", "served:server", cwd=tmp_path)

    assert (done.code, done.out) == (2, "")
    pipe, lock = "a live server listens there", f"a live server holds it (process {os.getpid()})"
    assert (pipe if os.name == "nt" else lock) in done.err


@posix
def test_server_is_restarted_when_a_file_changes_and_its_clients_come_back(home, tmp_path):
    module = tmp_path / "served.py"
    module.write_text(SERVED)
    with (
        Running("serve", "served:server", "--reload", "--json", cwd=tmp_path) as serve,
        Running("sub", "served", "news", "--wait", "30") as sub,
    ):
        serve.wait_for('"serving"')
        sub.wait_for("subscribed")
        module.write_text(SERVED.replace("return 1", "return 12"))
        serve.wait_for('"serving"')
        assert interphone("call", "served", "version", "--wait", "10").out == "12\n"
        sub.wait_for("the connection was away")
        module.write_text("this is no Python")
        serve.wait_for("SyntaxError")
        module.write_text(SERVED.replace("return 1", "return 123"))
        serve.wait_for('"serving"')
        assert interphone("call", "served", "version", "--wait", "10").out == "123\n"
        serve.interrupt()
        assert serve.end() == 0
        sub.interrupt()
        assert sub.end() == 0
    assert not (home / "interphone" / "served.sock").exists()


@posix
def test_terminated_reloader_leaves_no_server_behind(home, tmp_path):
    (tmp_path / "served.py").write_text(SERVED)
    with Running("serve", "served:server", "--reload", "--json", cwd=tmp_path) as serve:
        serve.wait_for('"serving"')
        child = json.loads(serve.said.splitlines()[-1])["pid"]
        serve.process.terminate()
        assert serve.end() == 143
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
