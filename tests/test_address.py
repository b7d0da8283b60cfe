from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interphone.address import (
    MemoryAddress,
    PipeAddress,
    TcpAddress,
    UnixAddress,
    isdk_path,
    net_ipc_path,
    path_limit,
    private_directory,
    resolve,
    tcp_address,
)
from interphone.errors import AddressError

HERE = os.getcwd()
NOBODY = 4_000_000_000
"""Somebody who owns nothing here."""

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="paths of this host")


def unix(target: str | Path, *, platform: str = "linux", uid: int = NOBODY) -> UnixAddress:
    address = resolve(target, platform=platform, environ={"HOME": "/home/me"}, uid=uid)
    assert isinstance(address, UnixAddress)
    return address


# Names


@pytest.mark.parametrize("name", ["app", "my app", "a.b-c_d", "übung", ";uid=0;", "C:", "x.sock"])
def test_a_name_is_a_socket_in_the_private_directory(name: str) -> None:
    assert unix(name) == UnixAddress(f"/tmp/interphone-{NOBODY}/{name}.sock", private=True)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "empty"),
        ("@app", "abstract"),
        ("\0app", "abstract"),
        ("a\0b", "control characters"),
        ("a\nb", "control characters"),
        ("a\x7fb", "control characters"),
        ("a\x85b", "control characters"),
        ("$app", "reserved"),
        ("app.lock", "lock files"),
        ("./app.lock", "lock files"),
        ("tcp://localhost:1", "tcp_address"),
        ("file:///tmp/x", "is a URL"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint):
        unix(name)


@posix_only
def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(AddressError, match="name of a file"):
        unix("\ud800")


def test_an_address_is_text() -> None:
    with pytest.raises(AddressError, match="bytes"):
        resolve(Strange())  # type: ignore[arg-type]


class Strange:
    def __fspath__(self) -> bytes:
        return b"/x"


@pytest.mark.parametrize(
    "address",
    [UnixAddress("/x"), TcpAddress("h", 1), PipeAddress("\\\\.\\pipe\\x"), MemoryAddress()],
    ids=str,
)
def test_an_address_stays_what_it_is(address: UnixAddress) -> None:
    assert resolve(address) is address


def test_addresses_are_readable() -> None:
    assert str(UnixAddress("/run/x.sock")) == "/run/x.sock"
    assert str(TcpAddress("localhost", 4466)) == "tcp://localhost:4466"
    assert str(TcpAddress("::1", 4466)) == "tcp://[::1]:4466"
    assert str(PipeAddress("\\\\.\\pipe\\x")) == "\\\\.\\pipe\\x"
    assert str(MemoryAddress("test")) == "memory:test"
    assert repr(MemoryAddress("test")).startswith("<MemoryAddress 'test' at 0x")


def test_every_memory_address_is_a_place_of_its_own() -> None:
    assert MemoryAddress("a") != MemoryAddress("a")


# Paths


@posix_only
@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/run/app", "/run/app"),
        ("//run//./app", "/run/app"),
        ("./app", f"{HERE}/app"),
        ("../app", f"{HERE}/../app"),
        (".app", f"{HERE}/.app"),
        ("a/b", f"{HERE}/a/b"),
        ("/a/link/../b", "/a/link/../b"),
        ("~/app", "/home/me/app"),
        (Path("app"), f"{HERE}/app"),
        (Path("/run/app"), "/run/app"),
    ],
)
def test_a_path_is_that_file(target: str | Path, path: str) -> None:
    assert unix(target) == UnixAddress(path)


@pytest.mark.parametrize("target", ["/", ".", "..", "/tmp/", "a/..", "~", "~root", "./"])
def test_a_directory_is_refused(target: str) -> None:
    with pytest.raises(AddressError, match="is a directory"):
        unix(target)


@posix_only
def test_an_unknown_home_is_refused() -> None:
    with pytest.raises(AddressError, match="no home"):
        unix("~no-such-user-here/app")


def test_a_path_into_the_private_directory_is_private() -> None:
    assert unix(f"/tmp/interphone-{NOBODY}/x").private
    assert not unix(f"/tmp/interphone-{NOBODY}/x/y").private


@pytest.mark.parametrize(("platform", "limit"), [("linux", 107), ("darwin", 103), ("freebsd", 103)])
def test_a_path_has_so_many_bytes(platform: str, limit: int) -> None:
    assert path_limit(platform) == limit
    longest = "/" + "x" * (limit - 1)
    assert unix(longest, platform=platform).path == longest

    with pytest.raises(AddressError, match=f"{limit + 1} bytes, the limit is {limit}"):
        unix(longest + "x", platform=platform)
    with pytest.raises(AddressError, match=f"{limit + 1} bytes"):
        unix(longest[:-1] + "é", platform=platform)


# The private directory


def test_the_runtime_directory_is_used_if_it_is_ours(tmp_path: Path) -> None:
    mine = tmp_path.stat().st_uid
    for place, uid, found in [
        (f"{tmp_path}", mine, f"{tmp_path}/interphone"),
        (f"{tmp_path}/", mine, f"{tmp_path}/interphone"),
        (f"{tmp_path}", NOBODY, f"/tmp/interphone-{NOBODY}"),
        ("relative", NOBODY, f"/tmp/interphone-{NOBODY}"),
        (f"{tmp_path}/missing", NOBODY, f"/tmp/interphone-{NOBODY}"),
        ("a\0b", NOBODY, f"/tmp/interphone-{NOBODY}"),
        ("", NOBODY, f"/tmp/interphone-{NOBODY}"),
    ]:
        for platform in ("linux", "darwin"):
            environ = {"XDG_RUNTIME_DIR": place}
            assert private_directory(platform=platform, environ=environ, uid=uid) == found


@posix_only
def test_a_file_or_a_link_is_no_runtime_directory(tmp_path: Path) -> None:
    mine = tmp_path.stat().st_uid
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    without = private_directory(environ={}, uid=mine)

    for name in ("file", "link"):
        environ = {"XDG_RUNTIME_DIR": str(tmp_path / name)}
        assert private_directory(environ=environ, uid=mine) == without


@posix_only
def test_cron_and_desktop_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is `/run/user/<uid>`, it is used with and without the variable."""
    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path: lstat("/" if path == "/run/user/0" else path))

    for environ in ({}, {"XDG_RUNTIME_DIR": "/run/user/0"}):
        found = private_directory(platform="linux", environ=environ, uid=0)
        assert found == "/run/user/0/interphone"


def test_macos_uses_its_own_tmpdir(tmp_path: Path) -> None:
    mine, environ = tmp_path.stat().st_uid, {"TMPDIR": f"{tmp_path}/"}

    assert private_directory(platform="darwin", environ=environ, uid=mine) == (
        f"{tmp_path}/interphone"
    )
    assert str(tmp_path) not in private_directory(platform="linux", environ=environ, uid=NOBODY)


@posix_only
def test_by_default_it_is_ours() -> None:
    assert private_directory() == private_directory(uid=os.geteuid())


# Windows


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("app", "interphone-app"),
        ("/app", "app"),
        ("a/b", "a-b"),
        ("a\\b", "a-b"),
        ("./x", ".-x"),
        ("//./pipe/isdk-ipc", "isdk-ipc"),
        ("//./pipe/a/b", "a\\b"),
        ("\\\\.\\PIPE\\x", "x"),
        ("\\\\?\\pipe\\x", "x"),
        ("//./pipe/./a//b", "a\\b"),
        ("x" * 236, "interphone-" + "x" * 236),
        ("\U0001f4de" * 118, "interphone-" + "\U0001f4de" * 118),
        ("übung", "interphone-übung"),
    ],
)
def test_on_windows_it_is_a_pipe(target: str, name: str) -> None:
    assert resolve(target, platform="win32", environ={}) == PipeAddress(f"\\\\.\\pipe\\{name}")


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("x" * 237, "257 characters, the limit is 256"),
        ("/" + "x" * 248, "257 characters"),
        ("\U0001f4de" * 118 + "x", "257 characters"),
        ("/", "names no pipe"),
        ("//./pipe/", "names no pipe"),
        ("//./pipe/./", "names no pipe"),
        ("//./pipe/../x", "leads out of the pipes"),
        ("//./pipe/a/../../C:/x", "leads out of the pipes"),
        ("//server/pipe/x", "another host"),
        ("\\\\server\\pipe\\x", "another host"),
        ("app.", "a dot or a space at the end"),
        ("app ", "a dot or a space at the end"),
        ("", "empty"),
        ("a\nb", "control characters"),
        ("$app", "reserved"),
    ],
)
def test_a_pipe_that_cannot_be_is_refused(target: str, complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint):
        resolve(target, platform="win32", environ={})


# TCP


def test_the_port_is_the_one_of_net_ipc() -> None:
    assert tcp_address() == TcpAddress("127.0.0.1", 4466)


@pytest.mark.parametrize(("host", "port"), [("", 1), ("a\nb", 1), ("h", -1), ("h", 65536)])
def test_what_is_no_port_is_refused(host: str, port: int) -> None:
    with pytest.raises(AddressError):
        tcp_address(host, port)


# The two Node packages


@pytest.mark.parametrize(
    ("name", "linux", "windows"),
    [
        ("isdk-ipc", "/t/isdk-ipc", "//./pipe/isdk-ipc"),
        ("myapp", "/t/myapp", "//./pipe/myapp"),
        ("/myapp", "/myapp", "//./pipe/myapp"),
        ("a/b", "/t/a/b", "//./pipe/a/b"),
        ("./x", "./x", "//./pipe/./x"),
        ("../x", "../x", "//./pipe/../x"),
        (".x", ".x", "//./pipe/.x"),
        ("", "/t/isdk-ipc", "//./pipe/isdk-ipc"),
    ],
)
def test_paths_of_isdk(name: str, linux: str, windows: str) -> None:
    for platform in ("linux", "darwin"):
        assert isdk_path(name, platform=platform, environ={"TMPDIR": "/t"}) == linux
    assert isdk_path(name, platform="win32", environ={}) == windows


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({}, "/tmp/isdk-ipc"),
        ({"TMPDIR": "/a/", "TMP": "/b"}, "/a/isdk-ipc"),
        ({"TMPDIR": "", "TMP": "/b", "TEMP": "/c"}, "/b/isdk-ipc"),
        ({"TEMP": "/c"}, "/c/isdk-ipc"),
        ({"TMPDIR": "/"}, "/isdk-ipc"),
    ],
)
def test_the_temporary_directory_of_node(environ: dict[str, str], path: str) -> None:
    assert isdk_path(platform="linux", environ=environ) == path


@pytest.mark.parametrize(
    ("name", "linux", "windows"),
    [
        ("net-ipc", "./net-ipc", "net-ipc"),
        ("myapp", "./myapp", "myapp"),
        ("~x", "./~x", "~x"),
        ("/myapp", "/myapp", "myapp"),
        ("a/b", "a/b", "a-b"),
        ("./x", "./x", ".-x"),
        (".x", ".x", ".x"),
        ("", "./net-ipc", "net-ipc"),
    ],
)
def test_paths_of_net_ipc(name: str, linux: str, windows: str) -> None:
    assert net_ipc_path(name, platform="linux") == linux
    assert net_ipc_path(name, platform="win32") == f"\\\\.\\pipe\\{windows}"


@posix_only
@pytest.mark.parametrize("name", ["myapp", "a/b", "./x", ".x", "~x", ""])
def test_paths_of_node_are_never_private(name: str) -> None:
    for path in (net_ipc_path(name, platform="linux"), isdk_path(name, platform="linux")):
        assert not unix(path).private


# Anything


@given(st.text(), st.sampled_from(["linux", "darwin", "win32"]))
def test_any_text_gives_an_address_or_is_refused(text: str, platform: str) -> None:
    try:
        address = resolve(text, platform=platform, environ={"HOME": "/home/me"}, uid=NOBODY)
    except AddressError:
        return
    assert isinstance(address, PipeAddress if platform == "win32" else UnixAddress)
    assert resolve(str(address), platform=platform, environ={}, uid=NOBODY) == address
