"""What people see: `ping`, `bench` and `tap` in a terminal."""

from __future__ import annotations

import os

import pytest

from support.shell import Terminal, interphone, plain

from .conftest import shop


def test_ping_in_a_terminal(hosted):
    with Terminal("ping", "shop", "-i", "0.01") as ping:
        ping.wait_for("seq=3 ")
        ping.interrupt()
        assert ping.end() == 0
    screen = plain(ping.said)
    first = screen.splitlines()[0]
    assert first.startswith("seq=1  ")
    assert first.count(" ms") == 4
    assert " median " in first
    assert "--- shop: " in screen
    assert screen.rstrip().splitlines()[-1].startswith("min ")
    assert "\x1b[1m" in ping.said  # it is coloured


def test_bench_in_a_terminal_shows_how_far_it_is_and_a_histogram(hosted):
    with Terminal("bench", "shop", "-s", "1") as bench:
        bench.wait_for("one at a time ━")
        bench.wait_for("one at a time: ")
        bench.wait_for("32 at once: ")
        assert bench.end() == 0
    screen = plain(bench.said)
    assert " per second" in screen
    assert " ms │██" in screen


def test_interrupted_bench_in_a_terminal(hosted):
    with Terminal("bench", "old", "-s", "600") as bench:
        bench.wait_for("one at a time ")
        bench.interrupt()
        assert bench.end() == 0
    assert "one at a time: " in plain(bench.said)


def test_tap_in_a_terminal_scrolls_above_a_count(hosted):
    with Terminal("tap", "shop") as tap:
        tap.wait_for("watching shop: 0 seen; Ctrl-C ends")
        assert interphone("call", "shop", "nasty").code == 0
        tap.wait_for("disconnect")
        tap.wait_for(" seen; Ctrl-C ends")
        tap.interrupt()
        assert tap.end() == 0
    screen = plain(tap.said)
    assert " → " in screen
    assert " ← " in screen
    assert "call        nasty" in screen
    assert "\\x1b[2J" in screen or "\\u001b[2J" in screen
    assert "\x1b[2J" not in tap.said
    assert screen.rstrip().endswith(" seen")


def test_long_call_in_a_terminal_shows_how_far_it_is(hosted):
    with Terminal("call", "shop", "wait.forever", "-t", "60") as call:
        call.wait_for("wait.forever ━")
        call.interrupt()
        assert call.end() == 130


@pytest.mark.parametrize("args", [("call", "late", "add", "1"), ("sub", "late", "t")])
def test_waiting_for_a_server_in_a_terminal_shows_a_sign_of_life(hosted, args):
    with Terminal(*args, "--wait", "60") as waiting:
        waiting.wait_for("waiting for late ━")
        waiting.interrupt()
        assert waiting.end() == (130 if args[0] == "call" else 0)


def test_the_sign_of_life_is_gone_when_the_server_has_come(hosted):
    with Terminal("call", "later", "add", "1", "--wait", "60") as waiting:
        waiting.wait_for("waiting for later ━")
        server = shop("later", hosted.told)
        hosted.do(server.start())
        assert waiting.end() == 0
    hosted.do(server.close())
    assert plain(waiting.said).endswith("2\n")
    assert "\x1b[2K" in waiting.said.rpartition("waiting for later")[2]  # that line is erased


@pytest.mark.parametrize(("variable", "coloured"), [("NO_COLOR", False), ("X", True)])
def test_colours_may_be_turned_off(hosted, monkeypatch, variable, coloured):
    monkeypatch.setenv(variable, "1")
    with Terminal("info", "shop") as info:
        assert info.end() == 0
    assert ("\x1b[" in info.said) is coloured
    assert f"{os.getpid()}" in info.said
