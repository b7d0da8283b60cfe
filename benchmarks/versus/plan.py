"""What is measured, with whom, and what is wanted: the peers, the workloads and the goals."""

from __future__ import annotations

from dataclasses import dataclass

REFERENCES = ("hand", "c")


@dataclass(frozen=True)
class Peer:
    """One way of doing the same.

    Attributes:
        name: As it is called in tables; the adapter and its variant for Python ones.
        module: What must be importable for it.
        programs: What must be on PATH.
        server, client: Its ends: "python", "c", "node", or the name of another peer.
    """

    name: str
    module: str = ""
    programs: tuple[str, ...] = ()
    server: str = "python"
    client: str = "python"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("hand"),
        Peer("hand:asyncio"),
        Peer("c", programs=("cc",), server="c", client="c"),
        Peer("interphone", "interphone"),
        Peer("interphone:pure", "interphone"),
        Peer("interphone:idle", "interphone"),
        Peer("interphone:classic", "interphone"),
        Peer("interphone:asyncio", "interphone"),
        Peer("interphone:task", "interphone"),
        Peer("interphone:blocking", "interphone.blocking"),
        Peer("interphone:view", "interphone"),
        Peer("interphone:inline", "interphone"),
        Peer("interphone:serves", "interphone", programs=("node",), client="node"),
        Peer("interphone:asks", "interphone", programs=("node",), server="node"),
        Peer("net-ipc", programs=("node",), server="node", client="node"),
        Peer("net-ipc:mp", programs=("node",), server="node", client="node"),
        Peer("rawsocket"),
        Peer("mpconn"),
        Peer("zeromq", "zmq"),
        Peer("websocket", "websockets"),
        Peer("http", "aiohttp"),
        Peer("grpcio", "grpc"),
        Peer("grpcio:aio", "grpc"),
        Peer("nats", "nats", programs=("nats-server",)),
        Peer("redis", "redis", programs=("redis-server",)),
        Peer("rpyc", "rpyc"),
        Peer("pyro", "Pyro5"),
        Peer("nng", "pynng"),
        Peer("dbus", "dbus_fast", programs=("dbus-daemon",)),
        Peer("zenohd", "zenoh"),
        Peer("iceoryx", "iceoryx2"),
    )
}

# What those names are: for readers of the tables.
TITLES = {
    "hand": "hand-written uvloop + msgspec Protocol",
    "hand:asyncio": "the same on asyncio's own loop",
    "c": "plain blocking C, a thread per connection",
    "rawsocket": "blocking socket + msgspec JSON in Python",
    "mpconn": "multiprocessing.connection",
    "zeromq": "pyzmq, blocking, high-water marks off",
    "websocket": "websockets over a Unix socket",
    "http": "aiohttp over a Unix socket",
    "grpcio": "gRPC, blocking client and thread pool",
    "grpcio:aio": "gRPC, grpc.aio",
    "nats": "nats-py and nats-server, loopback TCP",
    "redis": "redis-py and redis-server, Unix socket",
    "rpyc": "rpyc over a Unix socket",
    "pyro": "Pyro5 over a Unix socket",
    "nng": "pynng",
    "dbus": "dbus-fast through a dbus-daemon",
    "zenohd": "zenoh, peer to peer, Unix socket",
    "iceoryx": "iceoryx2, shared memory, waiting",
    "net-ipc": "net-ipc, Node at both ends, JSON",
    "net-ipc:mp": "net-ipc, Node at both ends, MessagePack",
    "interphone:pure": "interphone without compiled modules",
    "interphone:idle": 'interphone, latency="idle"',
    "interphone:classic": "interphone with Node's packets in JSON",
    "interphone:asyncio": "interphone on asyncio's own loop",
    "interphone:task": "interphone with `async def` handlers",
    "interphone:blocking": "interphone's blocking client",
    "interphone:view": "interphone, bytes read in the shared pool",
    "interphone:inline": "interphone without a shared pool",
    "interphone:serves": "interphone serves net-ipc clients",
    "interphone:asks": "interphone clients of a net-ipc server",
}


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    Attributes:
        kind: Which measurement of `run.py` it is.
        size: Its number: requests at once, subscribers, bytes.
        unit: Of the number; with "µs" and "KiB" less is better, else more is.
        quick, full: Who is measured besides the references.
        quick_placements: Where, in the quick form; the full one takes both.
    """

    name: str
    title: str
    kind: str
    size: int
    unit: str
    quick: tuple[str, ...]
    full: tuple[str, ...]
    quick_placements: tuple[str, ...] = ("one core",)
    placements: tuple[str, ...] = ("one core", "two cores")

    @property
    def less(self) -> bool:
        return self.unit in ("µs", "KiB")


OURS = ("interphone", "interphone:pure")
POOLS = ("interphone:view", "interphone:inline")
VARIANTS = (*OURS, "interphone:classic", "interphone:task")
NODE = ("net-ipc", "net-ipc:mp")
MIXED = ("interphone:serves", "interphone:asks")
ASKED = (
    "mpconn",
    "zeromq",
    "websocket",
    "http",
    "grpcio",
    "grpcio:aio",
    "nats",
    "redis",
    "rpyc",
    "pyro",
    "nng",
    "dbus",
    "zenohd",
    "iceoryx",
)
MANY = ("mpconn", "zeromq", "websocket", "http", "grpcio:aio", "nats", "redis", "dbus")
HEARD = ("mpconn", "zeromq", "websocket", "nats", "redis", "nng")
SENT = ("mpconn", "zeromq", "websocket", "nats", "redis", "zenohd")
BULK = ("mpconn", "zeromq", "websocket", "http", "grpcio", "nng", "iceoryx", "net-ipc:mp")
BOTH = ("one core", "two cores")

WORKLOADS = (
    Workload(
        "W1",
        "a request, one at a time: p50",
        "requests",
        1,
        "µs",
        (
            *OURS,
            "interphone:classic",
            "interphone:asyncio",
            "interphone:blocking",
            "hand:asyncio",
            "rawsocket",
            "mpconn",
            "zeromq",
            "net-ipc",
        ),
        (
            *VARIANTS,
            "interphone:asyncio",
            "interphone:blocking",
            "hand:asyncio",
            "rawsocket",
            *ASKED,
            *NODE,
            *MIXED,
        ),
        BOTH,
    ),
    Workload(
        "W2",
        "requests, 64 under way",
        "requests",
        64,
        "1/s",
        (*OURS, "interphone:classic", "mpconn", "zeromq", "net-ipc"),
        (
            *VARIANTS,
            "interphone:asyncio",
            "hand:asyncio",
            "rawsocket",
            *MANY,
            *NODE,
            *MIXED,
        ),
        BOTH,
    ),
    Workload(
        "W3",
        "one-way messages, complete and in order",
        "send",
        1,
        "1/s",
        (*OURS, "interphone:classic", "zeromq", "net-ipc"),
        (*VARIANTS[:2], "interphone:classic", "hand:asyncio", *SENT, *NODE, *MIXED),
    ),
    *(
        Workload(
            f"W4×{count}",
            f"publish to {count}, deliveries",
            "publish",
            count,
            "1/s",
            (*OURS, "interphone:classic", "zeromq", "net-ipc"),
            (*VARIANTS[:2], "interphone:classic", "hand:asyncio", *HEARD, *zenoh, *NODE),
        )
        for count, zenoh in ((10, ("zenohd",)), (100, ()))  # 100 sessions take it a minute
    ),
    *(
        Workload(
            f"W5 {title}",
            f"bytes there and back, {title}",
            "echo",
            size,
            "GB/s",
            (*OURS, *POOLS, "mpconn"),
            (*OURS, *POOLS, *BULK),
        )
        for title, size in (("64 KiB", 2**16), ("1 MiB", 2**20), ("64 MiB", 2**26))
    ),
    Workload(
        "W6",
        "connections, each with one request",
        "connects",
        1000,
        "1/s",
        OURS,
        (*OURS, "hand:asyncio", "mpconn", "zeromq", "websocket", "http", *NODE),
    ),
    Workload(
        "W6 memory",
        "what an idle connection costs the server",
        "memory",
        1000,
        "KiB",
        OURS,
        (*OURS, "mpconn", "zeromq", "websocket", *NODE),
        placements=("one core",),
    ),
    Workload("W8", "imports", "imports", 1, "µs", (), (), placements=("one core",)),
    Workload(
        "W9",
        "a call beside a stream that never stops: p99",
        "beside",
        1,
        "µs",
        OURS,
        OURS,
    ),
    Workload(
        "W10",
        "a typed call, a Struct in and out: p50",
        "typed",
        1,
        "µs",
        OURS,
        (*OURS, "interphone:asyncio", "grpcio", "grpcio:aio"),
    ),
)

# Imports, each in an interpreter of its own; the first is what they are compared with.
# What a module costs that is installed with its own dependencies only: `typing_extensions`, which
# others bring along, would be loaded by msgspec if it were there (6 ms).
ALONE = {"interphone", "interphone:blocking", "asyncio", "uvloop", "msgspec"}
IMPORTS = {
    "asyncio": ("asyncio", "import asyncio"),
    "interphone": ("interphone", "from interphone import Client, Server"),
    "interphone:blocking": ("interphone.blocking", "from interphone.blocking import Client"),
    "uvloop": ("uvloop", "import uvloop"),
    "msgspec": ("msgspec", "import msgspec"),
    "zeromq": ("zmq", "import zmq"),
    "websocket": ("websockets", "import websockets.asyncio.client, websockets.asyncio.server"),
    "grpcio:aio": ("grpc", "import grpc.aio"),
    "mpconn": ("multiprocessing", "import multiprocessing.connection"),
}


@dataclass(frozen=True)
class Goal:
    """What a row wants: `ours` is at most, or at least, so many times what `versus` is.

    Attributes:
        compiled, pure: The bound with the accelerator, and without; None: no goal.
        of: "value", the number of the workload, "cpu", or "own", a number that is a goal by itself.
    """

    row: str
    workload: str
    placement: str
    ours: str
    versus: str
    most: bool
    compiled: float
    pure: float | None
    of: str = "value"


ONE, TWO = BOTH
GOALS = (
    Goal("W1", "W1", ONE, "interphone", "hand", True, 0.8, 1.0),
    Goal("W1", "W1", ONE, "interphone", "c", True, 1.75, None),
    Goal("W1s", "W1", ONE, "interphone:asyncio", "hand:asyncio", True, 0.35, 0.4),
    Goal("W1b", "W1", ONE, "interphone:blocking", "c", True, 1.4, 1.5),
    Goal("W1w", "W1", TWO, "interphone", "c", True, 0.35, 0.4),
    Goal("W1w", "W1", TWO, "interphone", "hand", True, 0.2, None),
    Goal("W1w CPU", "W1", TWO, "interphone", "hand", True, 0.4, None, "cpu"),
    Goal("W2", "W2", ONE, "interphone", "hand", False, 3.0, 1.8),
    Goal("W2", "W2", TWO, "interphone", "hand", False, 2.1, 1.35),
    Goal("W3", "W3", ONE, "interphone", "hand", False, 2.6, 1.5),
    Goal("W3", "W3", ONE, "interphone", "zeromq", False, 1.8, None),
    Goal("W3", "W3", ONE, "interphone", "c", False, 1.3, None),
    Goal("W4", "W4×10", ONE, "interphone", "hand", False, 4.5, 2.7),
    Goal("W4", "W4×10", ONE, "interphone", "zeromq", False, 1.25, None),
    Goal("W4", "W4×100", ONE, "interphone", "hand", False, 4.5, 2.7),
    Goal("W4", "W4×100", ONE, "interphone", "zeromq", False, 1.25, None),
    Goal("W5", "W5 64 KiB", ONE, "interphone:inline", "c", False, 0.7, 0.7),
    Goal("W5", "W5 1 MiB", ONE, "interphone:inline", "c", False, 0.7, 0.7),
    Goal("W5", "W5 64 MiB", ONE, "interphone:view", "c", False, 2.0, 2.0),
    Goal("W5", "W5 64 KiB", ONE, "interphone:view", "iceoryx", False, 1.0, 1.0),
    Goal("W5", "W5 1 MiB", ONE, "interphone:view", "iceoryx", False, 1.0, 1.0),
    Goal("W5", "W5 64 MiB", ONE, "interphone:view", "iceoryx", False, 1.0, 1.0),
    Goal("W6", "W6", ONE, "interphone", "hand", False, 1.0, 0.7),
    Goal("W6 memory", "W6 memory", ONE, "interphone", "", True, 3.0, 5.0, "own"),
    Goal("W7 one at a time", "W1", ONE, "interphone", "hand", True, 0.75, 1.0, "cpu"),
    Goal("W7 64 under way", "W2", ONE, "interphone", "hand", True, 0.33, 0.55, "cpu"),
    Goal("W8", "W8", ONE, "interphone", "asyncio", True, 1.6, 1.6),
    Goal("W8", "W8", ONE, "interphone:blocking", "asyncio", True, 0.85, 0.85),
    Goal("W9", "W9", ONE, "interphone", "", True, 5.0, 5.0, "beside"),
    Goal("W9", "W9", TWO, "interphone", "", True, 5.0, 5.0, "beside"),
    Goal("W10", "W10", ONE, "interphone", "c", True, 1.8, 2.4),
    Goal("W11 as W1", "W1", ONE, "interphone:classic", "net-ipc", True, 0.45, 0.55),
    Goal("W11 as W2", "W2", ONE, "interphone:classic", "net-ipc", False, 4.0, 2.5),
    Goal("W11 as W3", "W3", ONE, "interphone:classic", "net-ipc", False, 4.0, 3.0),
    Goal("W11 as W4×100", "W4×100", ONE, "interphone:classic", "net-ipc", False, 8.0, 6.0),
)
