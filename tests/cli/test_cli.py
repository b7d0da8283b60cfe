"""Every command, in this process."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from interphone import AddressError, Client, InterphoneError, Refuse, Server
from interphone.cli import main
from interphone.cli.ending import CODES
from interphone.cli.helping import PEERS
from interphone.cli.output import Output, escape, json_of
from interphone.cli.values import arguments
from support.ends import Raw

both = pytest.mark.parametrize("server", ["shop", "old"])
in_a_directory = pytest.mark.skipif(sys.platform == "win32", reason="a pipe has no directory")


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


# call, request, send, stream


@both
def test_call_prints_the_result(cli, server):
    assert cli("call", server, "add", "2", "b=40") == (0, "42\n", "")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("3", 3),
        ("-1.5", -1.5),
        ("true", True),
        ("null", None),
        ('"3"', "3"),
        ("[1,[2]]", [1, [2]]),
        ('{"a": "=b"}', {"a": "=b"}),
        ("hello", "hello"),
        ("two words", "two words"),
        ("a-b=c", "a-b=c"),
        ("", ""),
    ],
)
def test_what_is_typed_becomes_a_value(cli, typed, meant):
    done = cli("call", "shop", "echo", "--json", "--", typed)

    assert (done.code, json.loads(done.out)) == (0, [meant, None])


def test_parameters_may_have_names(cli):
    done = cli("call", "shop", "echo", "1", "text", 'key={"a":[true]}', "--json")

    assert json.loads(done.out) == [1, "text", {"a": [True]}]


def test_names_of_parameters_are_those_of_python():
    assert arguments(["ü=3", "x_1=y", "1=2", "a-b=c"]) == (["1=2", "a-b=c"], {"ü": 3, "x_1": "y"})


def test_text_is_printed_as_it_is(cli):
    text = "a\tb  c" + "d" * 200

    assert cli("call", "shop", "echo", text).code == 0
    assert cli("request", "shop", text) == (0, text + "\n", "")


def test_values_come_from_files(cli, tmp_path):
    value, text = tmp_path / "value.json", tmp_path / "text"
    value.write_bytes(b'{"a": 1}\n')
    text.write_bytes(b"two\r\nlines\r\n")

    done = cli("call", "shop", "echo", f"@{value}", f"key=@{text}", "--json")

    assert json.loads(done.out) == [{"a": 1}, "two\r\nlines"]


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        (["@/no/such/file"], "cannot read /no/such/file: No such file or directory"),
        (['{"a":'], "is no JSON"),
        (["key=1", "key=2"], "key is given twice"),
        (["-", "key=-"], "stdin can be read only once"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(cli, told, typed, why):
    done = cli("call", "shop", "wait.forever", *typed)

    assert (done.code, done.out) == (2, "")
    assert why in done.err
    assert done.err.count("\n") == 1
    assert told == []


def test_result_for_people_is_spread_out_and_for_programs_in_one_line(cli):
    assert cli("request", "shop", '{"a": [1]}').out == '{\n  "a": [\n    1\n  ]\n}\n'
    assert cli("request", "shop", '{"a": [1]}', "--json").out == '{"a":[1]}\n'
    assert cli("request", "shop", "hello").out == "hello\n"
    assert cli("request", "shop", "hello", "--json").out == '"hello"\n'


@both
def test_message_is_sent(cli, hosted, told, server):
    assert cli("send", server, '{"a":1}') == (0, "", "")
    assert cli("send", server, "2", "--json").out == '{"sent":true}\n'
    assert cli("call", server, "add", "1").code == 0
    assert told == [{"a": 1}, 2]


@both
def test_stream_prints_each_piece(cli, server):
    assert cli("stream", server, "count", "3").out == "0\n1\n2\n"
    assert cli("stream", server, "count", "last=1000000", "--count", "2").out == "0\n1\n"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_stream_reads_items_from_a_file(cli, tmp_path, end):
    items = tmp_path / "items"
    items.write_bytes(end.join([b"1", b"", b"2", b"39"]))

    assert cli("stream", "shop", "total", "--items", f"@{items}").out == "42\n"


def test_items_are_read_from_stdin_or_a_file_only(cli):
    assert cli("stream", "shop", "total", "--items", "[1,2]").code == 2
    assert cli("stream", "shop", "total", "--items", "@/no/such").code == 2


# sub, pub


@both
def test_publish_tells_for_how_many_it_was(cli, hosted, server):
    assert cli("pub", server, "news", "1").out == "matched 0, queued 0, dropped 0\n"
    done = cli("pub", server, "news", '"x"', "--json", "--delivered")
    assert json.loads(done.out) == {"matched": 0, "queued": 0, "dropped": 0, "delivered": 0}


def test_each_line_of_a_file_is_published(cli, tmp_path):
    values = tmp_path / "values"
    values.write_text('1\n{"a":2}\n')

    done = cli("pub", "shop", "news", f"@{values}", "--lines", "--json")

    assert len(lines(done.out)) == 2
    assert cli("pub", "shop", "news", "text", "--lines").code == 2


def test_subscription_begins_with_last_values_and_ends_after_a_count(cli):
    cli("pub", "shop", "degrees.hall", "18", "--retain")
    cli("pub", "shop", "degrees.attic", '"\\u001b[2J"', "--retain")

    text = cli("sub", "shop", "degrees.*", "--count", "2")
    programs = cli("sub", "shop", "degrees.*", "--count", "2", "--json")

    assert sorted(text.out.splitlines()) == [
        "degrees.attic (last value) \\x1b[2J",
        "degrees.hall (last value) 18",
    ]
    assert text.err == "subscribed to degrees.*; Ctrl-C ends\n"
    assert programs.err == ""
    assert {"topic": "degrees.hall", "value": 18, "retained": True} in lines(programs.out)


def test_subscription_that_heard_too_little_in_its_time_says_so(cli):
    assert cli("sub", "shop", "silence", "--for", "0.01").code == 0
    assert cli("sub", "shop", "silence", "--for", "0.01", "--count", "1").code == 4


# ping, bench


@both
def test_ping_measures(cli, server):
    done = cli("ping", server, "--count", "3", "--interval", "0", "--json")

    *pings, summary = lines(done.out)
    assert [ping["seq"] for ping in pings] == [1, 2, 3]
    times = sorted(ping["ms"] for ping in pings)
    assert (summary["sent"], summary["answered"]) == (3, 3)
    assert [summary["ms"][name] for name in ("min", "median", "max")] == times


def test_subscription_whose_server_closes_early_has_lost_it(cli, hosted):
    async def serve() -> None:
        async with Server("brief") as server:
            while not (await server.publish("a", 1)).matched:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0)

    serving = asyncio.run_coroutine_threadsafe(serve(), hosted.loop)
    done = cli("sub", "brief", "a", "--count", "2", "--wait", "5")
    serving.result(10)

    assert (done.code, done.out) == (3, "a 1\n")
    assert "the server has closed" in done.err


def test_lost_pings_are_a_timeout(cli, hosted, address):
    ready, over = asyncio.Event(), asyncio.Event()

    async def be_mute() -> None:
        async with Raw.serve(address) as comers:
            ready.set()
            await (await comers.get()).let_in()
            await over.wait()

    mute = asyncio.run_coroutine_threadsafe(be_mute(), hosted.loop)
    hosted.do(ready.wait())
    done = cli("ping", address, "-n", "2", "-i", "0", "-t", "0.05")
    hosted.loop.call_soon_threadsafe(over.set)
    mute.result(10)

    assert done.code == 4
    assert done.out.splitlines() == [
        "seq=1  no answer within 0.05 s",
        "seq=2  no answer within 0.05 s",
        f"--- {address}: 2 sent, 0 answered",
    ]


@pytest.mark.parametrize("what", [(), ("add", "1", "b=2"), ("--request", "[1]")])
def test_bench_measures_one_and_many(cli, what):
    done = cli("bench", "shop", *what, "-s", "0.05", "--at-once", "4", "--json")

    one, many = lines(done.out)
    assert (one["at_once"], many["at_once"]) == (1, 4)
    for part in (one, many):
        assert part["answers"] > 0
        assert sum(count for _, count in part["histogram_ms"]) == part["answers"]
        assert part["ms"]["min"] <= part["ms"]["median"] <= part["ms"]["max"]
        bounds = [bound for bound, _ in part["histogram_ms"]]
        assert bounds == sorted(set(bounds))
        assert part["ms"]["max"] < bounds[-1]


def test_bench_draws_a_histogram(cli):
    done = cli("bench", "shop", "-s", "0.05")

    assert "one at a time: " in done.out
    assert "32 at once: " in done.out
    assert " ms │█" in done.out


def test_bench_finds_an_error_before_it_begins(cli):
    done = cli("bench", "shop", "ad")

    assert (done.code, done.out) == (1, "")
    assert "did you mean 'add'?" in done.err
    assert cli("bench", "shop", "add", "1", "--request", "1").code == 2


def test_error_in_the_middle_of_a_bench_is_one_sentence(cli):
    done = cli("bench", "shop", "tire", "-s", "60", "--json")

    assert done.code == 1
    assert json.loads(done.err)["message"] == "enough"
    assert json.loads(done.out)["answers"] > 0


# info, describe, list


@both
def test_info_tells_who_is_there(cli, server):
    text = cli("info", server)
    told = json.loads(cli("info", server, "--json").out)

    assert f"pid         {os.getpid()}\n" in text.out
    assert "method      wait.forever: " in text.out
    assert told["kind"] == "interphone"
    assert told["dialect"] == ("native" if server == "shop" else "classic")
    assert told["info"]["pid"] == told["pid"] == os.getpid()
    assert told["stats"]["peers"] >= 1


def test_classic_is_spoken_on_request(cli):
    assert json.loads(cli("info", "shop", "--classic", "--json").out)["dialect"] == "classic"


def test_server_over_tcp_shows_what_it_shows_to_everybody(cli, hosted):
    done = cli("info", hosted.tcp, "--json")

    told = json.loads(done.out)
    assert (done.code, told["kind"], told["pid"]) == (0, "interphone", None)
    assert "same user" in told["silent"]
    assert cli("call", hosted.tcp, "add", "2").out == "3\n"


@both
def test_methods_are_described(cli, server):
    text = cli("describe", server).out

    assert "add(a: int, b: int = ...) -> int\n    Add two numbers.\n" in text
    assert "echo(value: Any, *more: Any, key: Any = ...) -> Any\n" in text
    assert "count(last: int) ->* int\n" in text
    assert "total(<int>...) -> int\n" in text
    described = json.loads(cli("describe", server, "--json").out)
    assert [each["name"] for each in described["methods"]][:2] == ["add", "count"]


def test_one_method_is_described_in_full(cli):
    assert "Both may be negative." in cli("describe", "shop", "add").out
    assert "at most 7 at once" in cli("describe", "shop", "wait.forever").out
    assert "use 'interphone stream'" in cli("describe", "shop", "total").out
    assert json.loads(cli("describe", "shop", "add", "--json").out)["params"][0]["schema"] == {
        "type": "integer"
    }
    assert cli("describe", "shop", "nothing").code == 1


@in_a_directory
def test_list_shows_what_listens(cli, hosted, home):
    left_over = str(home / "interphone" / "left.sock")
    foreign = str(home / "foreign")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(left_over)
    try:
        with socket.socket(socket.AF_UNIX) as alive:
            alive.bind(foreign)
            alive.listen()
            listed = {each["name"]: each for each in lines(cli("list", "--json").out)}
            text = cli("list").out
    finally:
        os.unlink(left_over)
        os.unlink(foreign)

    assert listed["shop"]["kind"] == listed["old"]["kind"] == "interphone"
    assert listed["shop"]["pid"] == os.getpid()
    assert listed["shop"]["peers"] == 0
    assert listed["shop"]["age"] >= 0
    assert listed["left"]["kind"] == "dead"
    assert (listed[foreign]["kind"], listed[foreign]["pid"]) == ("?", os.getpid())
    head, *rows = text.splitlines()
    assert head.split() == ["NAME", "KIND", "PID", "AGE", "PEERS", "ADDRESS"]
    assert [row.split()[0] for row in rows][:3] == ["left", "old", "shop"]


@in_a_directory
def test_list_counts_peers(cli, client):
    listed = {each["name"]: each for each in lines(cli("list", "--json").out)}

    assert listed["shop"]["peers"] == 1


@in_a_directory
def test_list_says_when_there_is_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("interphone.cli.looking.private_directories", lambda: iter([str(tmp_path)]))

    assert main(["list"]) == 0
    assert capsys.readouterr() == ("", "nothing listens here\n")


@pytest.mark.parametrize(("command", "code"), [("list", 2), ("doctor", 0)])
def test_where_pipes_lie_in_no_directory_that_is_said(command, code, capsys, monkeypatch):
    def none():
        raise AddressError("users have no number on Windows")
        yield

    monkeypatch.setattr("interphone.cli.looking.private_directories", none)
    monkeypatch.setattr("interphone.cli.doctoring.private_directory", lambda: next(none()))

    assert main([command]) == code
    assert "Windows has no directory of its pipes" in "".join(capsys.readouterr())


# Errors


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["call", "shop", "fail", "no such book"], 1, "ValueError: no such book"),
        (["call", "shop", "ad"], 1, "there is no method 'ad': did you mean 'add'?"),
        (["call", "shop", "add", "x"], 1, "'interphone describe shop add' shows them"),
        (["call", "shop", "count", "3"], 2, "count streams its answer: open it as a stream"),
        (["stream", "shop", "add", "3"], 2, "add does not stream: call it"),
        (["call", "nowhere", "add"], 3, "nobody listens there; 'interphone doctor nowhere'"),
        (["call", "shop", "wait.forever", "-t", "0.05"], 4, "no answer within 0.05 s; --timeout"),
        (["request", "shop", "wait", "-t", "0.05"], 4, "no answer within 0.05 s"),
        (["call", "@abstract", "add"], 2, "abstract sockets"),
        (["call", "x" * 300, "add"], 2, "too long"),
        (["call", "tcp://127.0.0.1:99999", "add"], 2, "99999 is not a port"),
        (["call", "shop", "add", "--isdk", "--net-ipc"], 2, "exclude each other"),
        (["pub", "shop", "a.*", "1"], 2, "is a pattern"),
        (["sub", "shop", "a..>.b"], 2, ">"),
        (["request", "shop", str(10**30)], 2, "cannot be encoded"),
        (["request", "shop", "[" * 3000], 2, "[... nests too deeply: 64 levels are the most"),
        (["request", "shop", "[" * 65 + "]" * 65], 2, "the value nests deeper than 64"),
        (["send", "shop", "[" * 900 + "]" * 900], 2, "the value nests deeper than 64"),
        (["call", "shop", "echo", "key=" + "[" * 65 + "]" * 65], 2, "nests deeper than 64"),
        (["pub", "shop", "t", "[" * 65 + "]" * 65], 2, "the value nests deeper than 64"),
        (["pub", "shop", "t", "@/", "--lines"], 2, "cannot read /"),
        (["stream", "shop", "total", "--items", "@/"], 2, "cannot read /"),
        (["call", "tcp://127.0.0.1", "add"], 2, "give tcp://host:port"),
        (["sub", "shop", "t", "--group", "\udcff", "--for", "1"], 2, "no name for a group"),
        (["serve", ".shop:server"], 2, "give module:server"),
        (["serve", "interphone:Server"], 2, "needs parameters"),
        (["serve", "interphone.cli.app:_COMMANDS"], 2, "is no interphone.Server, but a"),
    ],
)
def test_errors_are_one_sentence_and_a_code(cli, args, code, sentence):
    done = cli(*args)

    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("interphone: ")
    assert sentence in done.err.splitlines()[0]
    assert code in CODES


def test_notes_of_an_error_are_shown(cli):
    assert cli("call", "shop", "fail", "x").err.endswith("\n  take another\n")


def test_errors_are_objects_for_programs(cli):
    told = json.loads(cli("call", "shop", "fail", "x", "--json").err)

    assert (told["error"], told["kind"], told["message"]) == ("RemoteError", "ValueError", "x")
    assert (told["exit"], told["notes"]) == (1, ["take another"])


def test_server_that_is_not_there_yet_is_waited_for(cli, hosted, home):
    server = Server("late")
    hosted.loop.call_soon_threadsafe(
        lambda: hosted.loop.call_later(0.2, lambda: hosted.loop.create_task(server.start()))
    )
    server.on_request(lambda peer, data: data)

    assert cli("request", "late", "1", "--wait", "20").out == "1\n"
    hosted.do(server.close())
    assert cli("request", "late", "1", "--wait", "0.05").code == 3


def test_authorize_is_told_the_payload(cli, hosted):
    server = Server("guarded")

    @server.authorize
    def decide(peer: object, payload: Any) -> None:
        if payload != {"token": 7}:
            raise Refuse("no entry \x1b[31m")

    hosted.do(server.start())
    try:
        refused = cli("send", "guarded", "1")
        let_in = cli("send", "guarded", "1", "--payload", '{"token": 7}')
    finally:
        hosted.do(server.close())

    assert refused.code == 3
    assert "no entry \\x1b[31m; --payload gives a token" in refused.err
    assert let_in.code == 0


# What a terminal might act upon


def test_control_characters_of_peers_are_written_out(cli):
    for form in ((), ("--json",)):
        done = cli("call", "shop", "nasty", *form)
        assert not {each for each in done.out if each != "\n" and not each.isprintable()}
        assert json.loads(done.out) == {"\x1b[2J": "\x1b]0;title\x07 \x9b31m \u202e"}


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x202E, 0x2066, 0xD800])
def test_no_such_character_passes(code):
    for text in (escape(f"a{chr(code)}b"), json_of({chr(code): f"a{chr(code)}b"})):
        assert chr(code) not in text
        assert text.isprintable()


def test_newlines_and_tabs_stay_where_they_may():
    assert escape("a\n\tb", keep="\n\t") == "a\n\tb"
    assert escape("ä → €") == "ä → €"
    assert json_of({"a": 10**30}) == '{"a":1000000000000000000000000000000}'
    assert json.loads(json_of(["\ud800"])) == ["\ud800"]


@pytest.mark.parametrize("as_json", [False, True])
def test_windows_says_something_else_of_a_pipe_that_nobody_reads(monkeypatch, as_json):
    class Deserted(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("sys.stdout", Deserted())
    with pytest.raises(BrokenPipeError):
        Output(json=as_json).record(1, "one")


# tap


def test_tap_shows_calls_and_answers(cli, hosted, client):
    hosted.loop.call_soon_threadsafe(hosted.loop.create_task, _keep_calling(client))

    done = cli("tap", "shop", "--name", "add", "--count", "2")
    call, answer = lines(cli("tap", "shop", "--name", "add", "-n", "2", "--json").out)

    assert "call        add 1, 2" in done.out
    assert " ms 3\n" in done.out
    assert done.err == "watching shop; Ctrl-C ends\n2 seen\n"
    assert {call["kind"], answer["kind"]} == {"call", "answer"}
    assert call["name"] == answer["name"] == "add"
    assert cli("tap", "shop", "--kind", "nonsense").code == 2
    assert cli("tap", "shop", "--all", "--kind", "call", "--cut", "0", "-n", "1", "--json").out
    filtered = cli(
        "tap", "shop", "--peer", client.id, "-k", "answer", "-n", "1", "--json", "--secrets"
    )
    assert lines(filtered.out)[0]["peer"] == client.id


async def _keep_calling(client: Client) -> None:
    try:
        while True:
            await client.call("add", 1, 2)
            await asyncio.sleep(0.005)
    except InterphoneError:
        return  # the test is over


# doctor


@in_a_directory
@both
def test_doctor_finds_nothing_wrong(cli, server):
    done = cli("doctor", server)

    assert done.code == 0
    assert f"is listened at by process {os.getpid()}" in done.out
    assert f"{server}.sock.lock is held" in done.out
    assert "lets others in" not in done.out
    findings = lines(cli("doctor", server, "--json").out)
    assert {each["verdict"] for each in findings} == {"fine"}
    assert [each["about"] for each in findings] == [
        "this end", "path", "directory", "socket", "lock", "server",
    ]  # fmt: skip


@in_a_directory
def test_doctor_mends_what_is_left_over(cli, hosted, home):
    path = home / "interphone" / "left.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    Path(f"{path}.lock").write_text("4\n")

    looked = cli("doctor", "left")
    still_there = path.is_socket()
    all_of_them = cli("doctor")
    mended = cli("doctor", "left", "--fix")

    assert (looked.code, still_there, all_of_them.code) == (1, True, 1)
    assert "is left over: nobody listens there any more" in looked.out
    assert "is left over of process 4" in looked.out
    assert (mended.code, mended.out.count("has been removed")) == (0, 2)
    assert not path.exists()
    assert not Path(f"{path}.lock").exists()
    assert cli("doctor").code == 0
    assert cli("call", "shop", "add", "1").code == 0


@in_a_directory
def test_doctor_removes_a_lock_that_is_left_alone(cli, home):
    lock = home / "interphone" / "only.sock.lock"
    lock.write_text("4\n")

    assert "it is in nobody's way" in cli("doctor", "only").out
    assert cli("doctor", "only", "--fix").code == 0
    assert not lock.exists()


@in_a_directory
def test_doctor_never_touches_what_is_not_a_socket_or_lock_of_ours(cli, home):
    file, lock = home / "interphone" / "file.sock", home / "interphone" / "odd.sock.lock"
    file.write_text("precious")
    lock.write_text("a diary, not the number of a process")

    for name, what in (("file", "is a file, and no socket"), ("odd", "is no lock of a server")):
        done = cli("doctor", name, "--fix")
        assert done.code == 1
        assert what in done.out
    assert file.read_text() == "precious"
    assert lock.read_text().startswith("a diary")
    file.unlink()
    lock.unlink()


@in_a_directory
def test_doctor_finds_what_is_no_socket_among_the_sockets(cli, hosted, home):
    directory = home / "interphone"
    made = {name: directory / name for name in ("a.sock", "b.sock", "c.sock", "d.sock", "f", "g")}
    lock = directory / "e.sock.lock"
    os.mkfifo(made["a.sock"])
    made["b.sock"].mkdir()
    made["c.sock"].write_text("precious")
    made["d.sock"].symlink_to("shop.sock")
    os.mkfifo(lock)
    made["f"].write_text("")
    os.mkfifo(made["g"])

    done = cli("doctor", "--fix", "--json")
    one = cli("doctor", "a")
    told = {each["text"]: each["verdict"] for each in lines(done.out)}
    for path in (*made.values(), lock):
        assert path.exists()
        path.rmdir() if path.is_dir() else path.unlink()

    assert (done.code, one.code) == (1, 1)
    assert f"{made['a.sock']} is a FIFO, and no socket" in one.out
    for path, what, verdict in (
        (made["a.sock"], "a FIFO, and no socket of yours", "wrong"),
        (made["b.sock"], "a directory, and no socket of yours", "wrong"),
        (made["c.sock"], "a file, and no socket of yours", "wrong"),
        (made["d.sock"], "a link, and no socket of yours", "wrong"),
        (lock, "a FIFO, and no lock of yours", "wrong"),
        (made["f"], "a file that no server has made; it is in nobody's way", "note"),
        (made["g"], "a FIFO that no server has made; it is in nobody's way", "note"),
    ):
        assert told.pop(f"{path} is {what}") == verdict
    assert "wrong" not in told.values()
    assert cli("doctor").code == 0


@in_a_directory
def test_doctor_of_a_path_below_a_file(cli, home):
    file = home / "file"
    file.write_text("")
    (home / "linked").symlink_to(home)

    below, linked = cli("doctor", f"{file}/s"), cli("doctor", f"{home}/linked/s")

    assert below.code == 1
    assert f"directory: {file} is no directory" in below.out
    assert "lock" not in below.out
    assert linked.code == 0


@in_a_directory
def test_doctor_finds_a_server_whose_socket_was_removed(cli, hosted, home):
    server = Server("lost")
    hosted.do(server.start())
    os.unlink(home / "interphone" / "lost.sock")

    done = cli("doctor", "lost", "--fix")
    hosted.do(server.close())

    assert done.code == 1
    assert f"is held of process {os.getpid()}, but it does not listen" in done.out


@in_a_directory
def test_doctor_closes_the_private_directory_to_others(cli, home):
    directory = home / "interphone"
    directory.chmod(0o755)
    try:
        refused = cli("call", "shop", "add", "1")
        looked, mended = cli("doctor", "shop"), cli("doctor", "shop", "--fix")
        mode = stat.S_IMODE(directory.stat().st_mode)
    finally:
        directory.chmod(0o700)

    assert refused.code == 2
    assert "is not safe" in refused.err
    assert looked.code == 1
    assert "lets others in, mode 0755" in looked.out
    assert (mended.code, mode) == (0, 0o700)


@in_a_directory
def test_doctor_tells_of_a_server_that_says_nothing(cli, home):
    path = home / "mute"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        done = cli("doctor", str(path))
    path.unlink()

    assert done.code == 1
    assert "no connection to" in done.out


@in_a_directory
def test_doctor_finds_the_server_of_another_environment(cli, hosted, home, monkeypatch, tmp_path):
    other, mine = home / "interphone", home / "mine"
    mine.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(mine))
    places = [str(mine / "interphone"), str(other)]
    monkeypatch.setattr("interphone.cli.doctoring.private_directories", lambda: iter(places))

    one, all_of_them = cli("doctor", "shop"), cli("doctor")

    assert one.code == 1
    assert f"a server of that name listens in {other}" in one.out
    assert all_of_them.code == 0
    assert "does not exist yet; the first server makes it" in all_of_them.out
    assert f"2 more in {other}, from another environment" in all_of_them.out


def test_doctor_tells_of_versions_that_differ(cli, monkeypatch):
    monkeypatch.setattr("interphone.introspection.CAPABILITIES", ("errors", "teleport\x07"))
    skew = cli("doctor", "shop")
    monkeypatch.undo()
    monkeypatch.setattr("interphone.introspection.__version__", "99.0")
    newer = cli("doctor", "shop")

    assert skew.code == newer.code == 0
    assert "it cannot: streams, " in skew.out
    assert "this end cannot: teleport\\x07" in skew.out
    assert "interphone 99.0, wire 1, native" in newer.out
    assert "; this end is " in newer.out


@in_a_directory
def test_doctor_of_places_that_are_none(cli, hosted, home):
    assert "does not exist" in cli("doctor", str(home / "no" / "where")).out
    assert cli("doctor", str(home / "no" / "where")).code == 1
    assert cli("doctor", "nothing-here").code == 0
    assert cli("doctor", hosted.tcp).code == 0
    assert cli("doctor", "tcp://127.0.0.1:1").code == 1


# help


def test_help_has_topics_and_commands(cli):
    peers = cli("help", "peers").out

    assert all(f"\n{command} " in f"\n{peers}" for command, *_ in PEERS)
    assert all(f"{code:>3}  " in cli("help", "exits").out for code in CODES)
    assert "@file" in cli("help", "values").out
    assert "tcp://" in cli("help", "addresses").out
    assert cli("help").out == cli("--help").out
    assert cli("help", "call").out == cli("call", "--help").out
    assert cli("help", "nonsense").code == 2


USAGE = [
    (["call"], "missing argument 'ADDRESS': see 'interphone call --help'"),
    (["nonsense"], "no such command 'nonsense': see 'interphone --help'"),
    (["ping", "shop", "--count", "none"], "invalid value for '--count' / '-n': "),
    (["call", "shop", "add", "--no\x1b"], "no such option: --no\\x1b"),
    (["call", "shop", "add", "--payload"], "option '--payload' requires an argument: see"),
]


@pytest.mark.parametrize(("args", "sentence"), USAGE)
def test_wrong_usage_is_2(cli, args, sentence):
    done = cli(*args)

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"interphone: {sentence}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(("args", "sentence"), USAGE)
def test_wrong_usage_is_an_object_for_programs(cli, args, sentence):
    done = cli(args[0], "--json", *args[1:])

    (line,) = done.err.splitlines()
    told = json.loads(line)
    assert (done.code, done.out) == (2, "")
    assert (told["error"], told["exit"]) == ("Misuse", 2)
    if args != ["nonsense"]:  # where it is no option of a command that there is
        assert told["message"].startswith(sentence.partition(":")[0])


def test_json_behind_two_dashes_is_no_option(cli):
    assert cli("nonsense", "--", "--json").err.startswith("interphone: ")


def test_without_anything_it_shows_its_help(cli):
    done = cli()

    assert (done.code, done.out) == (2, "")
    assert "Commands:\n" in done.err
