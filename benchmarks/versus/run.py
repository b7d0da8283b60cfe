"""The same work done by interphone, by its peers and by what one would write by hand.

    python run.py quick                 few peers, five rounds
    python run.py full                  all peers, nine rounds
    python run.py full --only W1,W2 --peers interphone,zeromq --rounds 5

Each peer is a server process and one or two client processes, pinned to cores by this one. Peers
take turns, round by round, with the references (`hand` and C) among them, because the speed of a
machine changes. Every run is a line in `results.jsonl`; `report.py` makes tables and plots of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import report
from plan import ALONE, IMPORTS, PEERS, REFERENCES, WORKLOADS, Peer, Workload

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORES = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
ANSWER_WITHIN = 30.0  # seconds; whoever is slower has failed
LOST_AFTER = 2.0  # seconds of waiting for publications that do not come
BUSY = 0.35  # of a core used by others: the full form may try such a run once more
TICK = os.sysconf("SC_CLK_TCK")

Record = dict[str, Any]
numbers = itertools.count()
loudness: deque[float] = deque(maxlen=20)  # of the last runs


class Failed(Exception):
    """A peer did not do what it was told."""


class Worker:
    """A process that is told what to do, and what it says."""

    def __init__(self, name: str, command: Sequence[object], **env: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("BENCH_DEBUG") else subprocess.DEVNULL,
            text=True,
            cwd=HERE,
            env=os.environ | env,
        )
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self.listen, daemon=True).start()
        try:
            self.pids = [self.process.pid, *self.hear().get("pids", [])]
        except Failed:
            self.process.kill()
            raise

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def hear(self, timeout: float = ANSWER_WITHIN) -> Record:
        try:
            line = self.lines.get(timeout=timeout)
        except queue.Empty:
            raise Failed(f"{self.name}: no answer in {timeout:.0f} s") from None
        if not line:
            raise Failed(f"{self.name}: ended")
        said: Record = json.loads(line)
        if "error" in said:
            raise Failed(f"{self.name}: {said['error']}")
        return said

    def tell(self, *words: object) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise Failed(f"{self.name}: ended") from None

    def ask(self, *words: object, timeout: float = ANSWER_WITHIN) -> Record:
        self.tell(*words)
        return self.hear(timeout)

    def pin(self, core: int) -> None:
        for pid in self.pids:
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), {core})

    def cpu(self) -> float:
        return sum(time.clock_gettime(clock_of(pid)) for pid in self.pids)

    def resident(self) -> int:
        """Bytes of memory of its own."""
        page = os.sysconf("SC_PAGE_SIZE")
        fields = [Path(f"/proc/{pid}/statm").read_text().split() for pid in self.pids]
        return page * sum(int(resident) for _, resident, *_ in fields)

    def end(self) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended, and has not read all
            self.process.stdin.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def clock_of(pid: int) -> int:
    """The CPU clock of a process: what `clock_getcpuclockid` computes on Linux."""
    return (~pid << 3) | 2


def start(peer: Peer, role: str, address: str) -> Worker:
    """Start an end of a peer."""
    pure = {"INTERPHONE_PURE": "1"} if peer.name.endswith(":pure") else {}
    return Worker(f"{peer.name} {role}", [*command(peer, role), role, address], **pure)


def command(peer: Peer, role: str) -> list[str]:
    kind = peer.server if role == "server" else peer.client
    if kind == "c":
        return [str(floor()), "-"]
    if kind == "node":
        node = "mp" if peer.name == "net-ipc:mp" else "-"
        return ["node", str(HERE / "adapters" / "net_ipc.js"), node]
    return [sys.executable, str(HERE / "worker.py"), peer.name]


def floor() -> Path:
    """The C program, built if its source is newer."""
    source = HERE / "adapters" / "floor.c"
    built = ROOT / ".cache" / "bench" / "floor"
    if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
        built.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", "-O2", "-pthread", "-o", built, source], check=True)
    return built


class Ends:
    """The processes of one peer, for one workload."""

    def __init__(self, peer: Peer, workload: Workload, directory: Path) -> None:
        self.peer = peer
        self.scale = 0.0  # messages a second, as the last run had it
        address = str(directory / f"{peer.name.replace(':', '-')}-{next(numbers)}")
        self.server = start(peer, "server", address)
        self.clients: list[Worker] = []
        try:
            for _ in range(2 if workload.kind == "publish" else 1):
                self.clients.append(start(peer, "client", address))
        except BaseException:
            self.end()
            raise

    @property
    def workers(self) -> list[Worker]:
        return [self.server, *self.clients]

    def pin(self, placement: str) -> None:
        first, second = CORES[0], CORES[0 if placement == "one core" else -1]
        self.server.pin(first)
        for client in self.clients:
            client.pin(second)

    def cpu(self) -> float:
        return sum(worker.cpu() for worker in self.workers)

    def end(self) -> None:
        for worker in reversed(self.workers):
            worker.end()


# Measuring: each gives the number, how many operations it is of, and the CPU seconds they took


def requests(ends: Ends, workload: Workload, seconds: float) -> Record:
    client = ends.clients[0]
    verb = "requests"
    if workload.kind == "typed" and ends.peer.name.startswith(("interphone", "grpcio")):
        verb = "typed"
    client.ask("open")
    client.ask(verb, seconds / 10, workload.size)  # warms up
    client.hear()
    used = ends.cpu()
    done = client.ask(verb, seconds, workload.size)
    used = ends.cpu() - used
    spans = client.hear()
    client.ask("close")
    wall = done["ended"] - done["started"]
    value = spans["p50"] * 1e6 if workload.size == 1 else done["count"] / wall
    return {"value": value, "count": done["count"], "cpu": used, "wall": wall, **spans}


def send(ends: Ends, workload: Workload, seconds: float) -> Record:
    client, server = ends.clients[0], ends.server
    client.ask("open")

    def some(count: int) -> tuple[float, float]:
        server.ask("sink", count)
        used = ends.cpu()
        client.tell("send", count)
        done = server.hear()
        used = ends.cpu() - used
        return done["done"] - client.hear()["started"], used

    count = counted(ends, seconds)
    wall, used = some(count)
    ends.scale = count / wall
    client.ask("close")
    return {"value": count / wall, "count": count, "cpu": used, "wall": wall}


def publish(ends: Ends, workload: Workload, seconds: float) -> Record:
    server, clients = ends.server, ends.clients
    for client in clients:
        client.ask("subscribe", workload.size // len(clients))
    count = counted(ends, seconds, least=100)
    for client in clients:
        client.ask("hear", count)
    used = ends.cpu()
    started = server.ask("publish", count)["started"]
    ended, lost = started, 0
    for client in clients:
        try:
            ended = max(ended, client.hear(LOST_AFTER + 4 * seconds)["done"])
        except Failed as failure:
            if "no answer" not in str(failure):
                raise
            lost += client.ask("missing")["missing"]
            ended = time.perf_counter() - LOST_AFTER - 4 * seconds
    used = ends.cpu() - used
    for client in clients:
        client.ask("close")
    wall, deliveries = max(ended - started, 1e-9), count * workload.size - lost
    ends.scale = count / wall
    value = deliveries / wall
    return {"value": value, "count": deliveries, "cpu": used, "wall": wall, "lost": lost}


def counted(ends: Ends, seconds: float, least: int = 1000) -> int:
    """How many messages take about so long, as far as is known."""
    return min(max(least, int(ends.scale * seconds)), 400_000)


def echo(ends: Ends, workload: Workload, seconds: float) -> Record:
    client = ends.clients[0]
    client.ask("open")
    client.ask("echo", min(workload.size, 2**20), 0)  # warms up
    used = ends.cpu()
    done = client.ask("echo", workload.size, seconds)
    used = ends.cpu() - used
    client.ask("close")
    wall = done["ended"] - done["started"]
    value = 2 * workload.size * done["count"] / wall / 1e9
    return {"value": value, "count": done["count"], "cpu": used, "wall": wall}


def connects(ends: Ends, workload: Workload, seconds: float) -> Record:
    client = ends.clients[0]
    client.ask("connects", 50, 50)  # warms up
    used = ends.cpu()
    done = client.ask("connects", workload.size, 50)
    used = ends.cpu() - used
    wall = done["ended"] - done["started"]
    return {"value": done["count"] / wall, "count": done["count"], "cpu": used, "wall": wall}


def memory(ends: Ends, workload: Workload, seconds: float) -> Record:
    """Of a server that has just started: what is freed and used again would not be seen."""
    client = ends.clients[0]
    client.ask("open")
    client.ask("requests", 0.05, 1)
    client.hear()
    before = ends.server.resident()
    client.ask("hold", workload.size)
    after = ends.server.resident()
    client.ask("drop")
    value = (after - before) / 1024 / workload.size
    return {"value": value, "count": workload.size, "cpu": 0.0, "wall": 0.0}


def beside(ends: Ends, workload: Workload, seconds: float) -> Record:
    client = ends.clients[0]
    client.ask("open")
    client.ask("calls", seconds / 10, 1)
    client.hear()
    client.ask("calls", seconds, 1)
    idle = client.hear()
    client.ask("busy", "on")
    used = ends.cpu()
    done = client.ask("calls", 2 * seconds, 1)
    used = ends.cpu() - used
    busy = client.hear()
    client.ask("busy", "off")
    client.ask("close")
    return {
        "value": busy["p99"] * 1e6,
        "idle": idle["p99"] * 1e6,
        "p50": busy["p50"],
        "p99": busy["p99"],
        "count": done["count"],
        "cpu": used,
        "wall": done["ended"] - done["started"],
    }


MEASURE = {
    "requests": requests,
    "typed": requests,
    "send": send,
    "publish": publish,
    "echo": echo,
    "connects": connects,
    "memory": memory,
    "beside": beside,
}


def imports(rounds: int) -> Iterator[Record]:
    """Interpreters that import one thing, and say how long it took."""
    for at in range(rounds):
        for name, (module, line) in IMPORTS.items():
            if not importable(module):
                continue
            hidden = "import sys; sys.modules['typing_extensions'] = None\n"
            code = (hidden if name in ALONE else "") + (
                "import time; a, b = time.perf_counter(), time.process_time()\n"
                f"{line}\n"
                "print(time.perf_counter() - a, time.process_time() - b)"
            )
            started, watch = time.time(), Foreign()
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            wall, used = map(float, done.stdout.split())
            yield {
                "workload": "W8",
                "placement": "one core",
                "peer": name,
                "round": at,
                "at": started,
                "value": wall * 1e6,
                "count": 1,
                "cpu": used,
                "wall": wall,
                "foreign": watch.cores(used),
            }


# Running


class Foreign:
    """How much of the machine others used since this was made, in cores."""

    def __init__(self) -> None:
        self.since, self.ticks = time.perf_counter(), busy_ticks()

    def cores(self, own: float) -> float:
        seconds = time.perf_counter() - self.since
        return round(max(0.0, (busy_ticks() - self.ticks) / TICK - own) / seconds, 2)


def busy_ticks() -> int:
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return user + nice + system + irq + softirq + steal


def measure(
    workload: Workload, chosen: list[Peer], rounds: int, seconds: float, *, retry: bool, quick: bool
) -> Iterator[Record]:
    """Run one workload with all its peers, in turn."""
    placements = workload.quick_placements if quick else workload.placements
    with tempfile.TemporaryDirectory(prefix="ip-bench-") as place:
        running: dict[str, Ends] = {}
        try:
            for peer in chosen:
                with complaining(running, peer.name):
                    running[peer.name] = Ends(peer, workload, Path(place))
                    running[peer.name].pin(placements[0])
                    MEASURE[workload.kind](running[peer.name], workload, 0.02)
            for at in range(rounds):
                for placement in placements:
                    for name in turns(list(running), random.Random(at)):
                        if name not in running:
                            continue  # it has failed meanwhile
                        with complaining(running, name):
                            fresh = workload.kind == "memory"
                            if fresh:
                                running[name].end()
                                running[name] = Ends(PEERS[name], workload, Path(place))
                            yield once(running[name], workload, placement, at, seconds, retry)
        finally:
            for ends in running.values():
                ends.end()


def once(
    ends: Ends, workload: Workload, placement: str, at: int, seconds: float, retry: bool
) -> Record:
    ends.pin(placement)
    for _ in range(1 + (retry and mostly_quiet())):
        started, watch, own = time.time(), Foreign(), ends.cpu() + time.process_time()
        record = MEASURE[workload.kind](ends, workload, seconds)
        foreign = watch.cores(ends.cpu() + time.process_time() - own)
        loudness.append(foreign)
        if foreign <= BUSY:
            break
    return {
        "workload": workload.name,
        "placement": placement,
        "peer": ends.peer.name,
        "round": at,
        "at": started,
        "foreign": foreign,
        **record,
    }


def mostly_quiet() -> bool:
    """Whether it is likely that a second try has the machine for itself."""
    return sum(foreign <= BUSY for foreign in loudness) >= len(loudness) / 2


class complaining:  # noqa: N801  (used as a statement)
    """Say what failed, loudly, and go on without that peer."""

    def __init__(self, running: dict[str, Ends], name: str) -> None:
        self.running, self.name = running, name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> bool:
        if not isinstance(error, Failed | OSError | ValueError | KeyError):
            return False
        print(f"\n!!! {self.name} is left out: {error}", flush=True)
        if ends := self.running.pop(self.name, None):
            for worker in ends.workers:
                worker.process.kill()
            ends.end()
        return True


def turns(names: list[str], dice: random.Random) -> list[str]:
    """The peers in random order, with the references before, behind, and after every third."""
    references = [name for name in REFERENCES if name in names]
    others = [name for name in names if name not in references]
    dice.shuffle(others)
    order = list(references)
    for at in range(0, len(others), 3):
        order += others[at : at + 3] + references
    return order


def importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def present(wanted: tuple[str, ...], missing: set[str]) -> list[Peer]:
    """Those of the peers that are here; the others are named, once."""
    found = []
    for name in (*REFERENCES, *wanted):
        peer = PEERS[name]
        lacking = [program for program in peer.programs if not shutil.which(program)]
        if peer.module and not importable(peer.module):
            lacking.append(f"module {peer.module}")
        if not lacking:
            found.append(peer)
        elif name not in missing:
            missing.add(name)
            print(f"!!! {name} is not measured: no {', '.join(lacking)} here", flush=True)
    return found


def facts(arguments: argparse.Namespace) -> Record:
    """About this machine and what is measured, for whoever reads the numbers."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    cpu = "?"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(
            (line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu
        )
    return {
        "commit": git("rev-parse", "--short", "HEAD") or "?",
        "source": git("log", "-1", "--format=%h", "--", "src") or "?",
        "changed": bool(git("status", "--porcelain", "--", "src")),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": f"{len(CORES)} of {os.cpu_count()} cores, {cpu}, {platform.release()}",
        "python": platform.python_version(),
        "form": arguments.form,
        "rounds": arguments.rounds,
        "load": [round(load, 1) for load in os.getloadavg()],
    }


def main() -> None:
    arguments = parse()
    if not CORES:
        sys.exit("!!! the comparison with peers pins processes and reads their clocks: Linux only")
    quick = arguments.form == "quick"
    directory = Path(arguments.out)
    directory.mkdir(parents=True, exist_ok=True)
    missing: set[str] = set()
    os.environ.setdefault("NODE_PATH", str(ROOT / ".cache" / "node" / "node_modules"))
    os.sched_setaffinity(0, {CORES[-1]})
    if len(CORES) < 2:
        print("!!! one core only: nothing is measured on two")
    about = facts(arguments)
    records: list[Record] = []
    with open(directory / "results.jsonl", "w") as results:
        results.write(json.dumps({"about": about}) + "\n")
        for workload in WORKLOADS:
            row = workload.name.split("×")[0].split()[0]  # W4 of W4×10, W6 of W6 memory
            if arguments.only and not {row, workload.name} & {*arguments.only}:
                continue
            wanted = workload.quick if quick else workload.full
            if arguments.peers:
                wanted = tuple(name for name in wanted if name in arguments.peers)
            print(f"{time.strftime('%H:%M:%S')} {workload.name}: {workload.title}", flush=True)
            seconds = arguments.seconds
            if workload.kind == "imports":
                runs = imports(arguments.rounds)
            else:
                chosen = present(wanted, missing)
                if workload.kind == "beside":
                    chosen = [peer for peer in chosen if peer.name not in REFERENCES]
                runs = measure(
                    workload, chosen, arguments.rounds, seconds, retry=not quick, quick=quick
                )
            for record in runs:
                records.append(record)
                results.write(json.dumps(record) + "\n")
                results.flush()
    report.write(directory, about, records)
    print((directory / "report.md").read_text())
    print(f"results, tables and plots are in {directory}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure interphone beside its peers.")
    parser.add_argument("form", nargs="?", choices=("quick", "full"), default="quick")
    parser.add_argument("--only", type=lambda text: text.split(","), help="workloads: W1,W4")
    parser.add_argument("--peers", type=lambda text: text.split(","), help="besides hand and c")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="about so long is each run")
    parser.add_argument("--out", default=str(ROOT / ".cache" / "bench" / "last"))
    arguments = parser.parse_args()
    quick = arguments.form == "quick"
    arguments.rounds = arguments.rounds or (5 if quick else 9)
    arguments.seconds = arguments.seconds or (0.12 if quick else 0.3)
    return arguments


if __name__ == "__main__":
    main()
