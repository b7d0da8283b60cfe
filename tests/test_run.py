from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap

import pytest

import interphone

SERVE = """
    import sys, interphone
    server = interphone.Server(sys.argv[1])
    server.on_ready(lambda where: print("ready", flush=True))
    interphone.run(server.serve_forever())
"""


def test_run_returns_the_result_on_the_fastest_loop():
    async def main() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert interphone.run(main()).startswith("uvloop" if sys.platform != "win32" else "asyncio")


def test_run_raises_what_the_program_raises():
    async def main() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        interphone.run(main())


def test_run_works_in_a_thread():
    async def main() -> int:
        return await asyncio.to_thread(interphone.run, inner())

    async def inner() -> int:
        return 7

    assert asyncio.run(main()) == 7


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -2)])
def test_signal_closes_the_server_and_leaves_no_socket(address, number, code):
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(SERVE), address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"

    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)

    assert process.returncode == code, stderr.decode()
    assert os.listdir(os.path.dirname(address)) == []
    assert (b"Traceback" in stderr) is (number == signal.SIGINT)


def test_import_of_the_package_is_lazy():
    program = "import sys, interphone; print('asyncio' in sys.modules, 'msgspec' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout == "False False\n"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        interphone.nonsense  # noqa: B018
