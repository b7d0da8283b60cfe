"""What work costs as it grows: connections, subscriptions, topics and pending requests.

    python bench_growth.py                         quick: two minutes
    python bench_growth.py full                    all sizes, more rounds
    python bench_growth.py --only topics --rounds 5
    python bench_growth.py full --docs             onto the page, with its plots

A server, the crowd that it has to do with, and whoever asks are processes of their own, all on
one core, for each size. All sizes live side by side and take turns, round by round; a figure is
for one unit of what must be touched, and its ratio is to the smallest size in the same round. CPU
is of all three processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "versus"))
LINUX = sys.platform == "linux"
if LINUX:  # the others have no such clocks
    import plot
    import report
    from run import CORES, Foreign, Worker, facts

Record = dict[str, Any]
BEGIN, END = "<!-- growth: begin -->", "<!-- growth: end -->"
LONG = 120.0  # seconds that making a size may take


class Place:
    """The processes of one size: a server, its crowd, and whoever asks."""

    def __init__(self, directory: Path, name: str, size: int) -> None:
        self.size = size
        self.notes: Record = {}  # what making it took
        address = str(directory / f"{size}-{name}")
        program = [sys.executable, HERE / "growth_worker.py"]
        self.workers: list[Worker] = []
        try:
            for title, role in (("server", "server"), ("crowd", "client"), ("asker", "client")):
                worker = Worker(f"{title} of {size} {name}", [*program, role, address])
                self.workers.append(worker)
                worker.pin(CORES[0])
        except BaseException:
            self.end()
            raise
        self.server, self.crowd, self.asker = self.workers

    def cpu(self) -> float:
        return sum(worker.cpu() for worker in self.workers)

    def timed(self, worker: Worker, *words: object) -> float:
        """Have it done; return the seconds it took."""
        said = worker.ask(*words, timeout=LONG)
        return float(said["ended"]) - float(said["started"])

    def spread(self, publisher: Worker, topic: str, count: int, each: int) -> float:
        """Publish, and wait until `each` subscriptions in the crowd have had everything."""
        self.crowd.ask("hear", count * each)
        said = publisher.ask("publish", topic, count, timeout=LONG)
        return float(self.crowd.hear(LONG)["done"]) - float(said["started"])

    def end(self) -> None:
        for worker in reversed(self.workers):
            worker.end()


Work = Callable[[Place], tuple[float, int]]
"""Does something; returns the seconds it took, and how many units it was of."""


@dataclass(frozen=True)
class Case:
    """One line of a plot.

    Attributes:
        name: What is counted, for the tables.
        work: It.
        smallest: The size that the others are compared to.
        most: The largest size it is measured with.
    """

    name: str
    work: Work
    smallest: int = 1
    most: int = 10**9


@dataclass(frozen=True)
class Scene:
    """What is there before something is measured: so and so many of one thing.

    Attributes:
        part: Which plot it belongs to.
        make: Makes it in a new place.
        full, quick: The sizes.
        cases: What is measured there.
        name: For the server: one that ends with `tight` takes 1,024 requests at once.
    """

    part: str
    make: Callable[[Place], None]
    full: tuple[int, ...]
    quick: tuple[int, ...]
    cases: tuple[Case, ...]
    name: str = "growth"


# Connections


def idle(place: Place) -> None:
    """So many connections that say nothing, and one that asks."""
    place.asker.ask("churn", 20)
    before = place.server.resident()
    started, used = time.perf_counter(), place.cpu()
    place.crowd.ask("hold", place.size, timeout=LONG)
    place.notes = {
        "seconds": time.perf_counter() - started,
        "cpu": place.cpu() - used,
        "memory": place.server.resident() - before,
    }
    place.asker.ask("hold", 1)
    place.asker.ask("request", 200)


def requests(place: Place) -> tuple[float, int]:
    return place.timed(place.asker, "request", 400), 400


def connects(place: Place) -> tuple[float, int]:
    return place.timed(place.asker, "churn", 60), 60


# Subscriptions


def subscribers(place: Place) -> None:
    place.crowd.ask("hold", place.size, timeout=LONG)
    place.crowd.ask("listen", 1, "t", timeout=LONG)
    place.asker.ask("hold", 1)


def to_each(place: Place) -> tuple[float, int]:
    count = 20  # always: so many go in one write to each
    return place.spread(place.server, "t", count, place.size), count * place.size


def one_client(*topics: str) -> Callable[[Place], None]:
    """One client with so many subscriptions to each of the topics."""

    def make(place: Place) -> None:
        place.crowd.ask("hold", 1)
        place.asker.ask("hold", 1)
        place.crowd.ask("listen", place.size, *topics, timeout=LONG)

    return make


def one_topic(topic: str, count: int = 150) -> Work:
    """Publish, as a client, on a topic that one subscription wants."""

    def work(place: Place) -> tuple[float, int]:
        name = topic.replace("{}", str(place.size // 4))
        return place.spread(place.asker, name, count, 1), count

    return work


def same_topic(place: Place) -> tuple[float, int]:
    count = 10
    return place.spread(place.asker, "same", count, place.size), count * place.size


def group(place: Place) -> None:
    place.crowd.ask("hold", min(10, place.size))
    place.asker.ask("hold", 1)
    place.crowd.ask("listen_in_group", place.size, "g", timeout=LONG)


def comes_and_goes(topic: str, who: str = "crowd", count: int = 60) -> Work:
    """Subscribe and unsubscribe one more."""

    def work(place: Place) -> tuple[float, int]:
        worker = place.crowd if who == "crowd" else place.asker
        name = topic.replace("{}", str(place.size // 4))
        return place.timed(worker, "come_and_go", name, count), count

    return work


def one_client_alone(place: Place) -> None:
    place.asker.ask("hold", 1)


def all_come_and_go(place: Place) -> tuple[float, int]:
    return place.timed(place.asker, "all_come_and_go", place.size), place.size


def one_comes_and_goes(place: Place) -> tuple[float, int]:
    times = max(1, 20 // place.size)
    took = sum(place.timed(place.asker, "one_comes_and_goes", place.size) for _ in range(times))
    return took, times * place.size


# Topics


def topics(*patterns: str) -> Callable[[Place], None]:
    """So many topics, or patterns, ten to a subscription, of ten clients."""

    def make(place: Place) -> None:
        place.crowd.ask("hold", min(10, place.size // 10))
        place.asker.ask("hold", 1)
        for pattern in patterns:
            place.crowd.ask("listen_in_tens", place.size // len(patterns), pattern, timeout=LONG)

    return make


def last_values(place: Place) -> None:
    place.asker.ask("hold", 1)
    place.server.ask("retain", place.size, timeout=LONG)


# Pending


def waiting(timeouts: str) -> Callable[[Place], None]:
    """So many requests of one client that wait, with no timeout, one, or many."""

    def make(place: Place) -> None:
        place.asker.ask("hold", 1)
        place.asker.ask("pend", place.size, timeouts, timeout=LONG)
        while place.server.ask("waits")["count"] < place.size:
            time.sleep(0.01)

    return make


def in_bulk(command: str) -> Work:
    def work(place: Place) -> tuple[float, int]:
        times = max(1, 100 // place.size) if command != "expire" else 1
        took = sum(place.timed(place.asker, command, place.size) for _ in range(times))
        return took, times * place.size

    return work


CONNECTIONS = (1, 10, 100, 1_000, 10_000)
SUBSCRIPTIONS = (1, 10, 100, 300, 1_000)
TOPICS = (10, 100, 1_000, 10_000, 100_000)
PENDING = (1, 10, 100, 1_000, 10_000)

SCENES = (
    Scene(
        "connections",
        idle,
        CONNECTIONS,
        (1, 100, 1_000),
        (
            Case("a request on one of them", requests),
            Case("one more connects, asks and leaves", connects),
        ),
    ),
    Scene(
        "subscriptions",
        subscribers,
        SUBSCRIPTIONS,
        (1, 30, 300),
        (Case("each has a connection: a delivery", to_each),),
    ),
    Scene(
        "subscriptions",
        one_client("own.{}", "same"),
        SUBSCRIPTIONS,
        (1, 30, 300),
        (
            Case("all of one client: a publication to one of them", one_topic("own.{}")),
            Case("all of one client: a delivery to all of them", same_topic),
            Case("all of one client: one more comes and goes", comes_and_goes("more")),
        ),
    ),
    Scene(
        "subscriptions",
        one_client_alone,
        SUBSCRIPTIONS,
        (1, 30, 300),
        (Case("one client: all come and go, each", all_come_and_go),),
    ),
    Scene(
        "subscriptions",
        group,
        SUBSCRIPTIONS,
        (1, 30, 300),
        (Case("members of a group: a publication", one_topic("g")),),
    ),
    Scene(
        "one subscription",
        one_client("a.{,}"),
        SUBSCRIPTIONS,
        (1, 30, 300),
        (Case("names of one subscription: a publication", one_topic("a.{}")),),
    ),
    Scene(
        "one subscription",
        one_client("a.{,}.*"),
        SUBSCRIPTIONS,
        (1, 30, 300),
        (Case("patterns of one subscription: a publication", one_topic("a.{}.x")),),
    ),
    Scene(
        "one subscription",
        one_client_alone,
        SUBSCRIPTIONS,
        (1, 30, 300),
        (Case("one subscription comes and goes, each name", one_comes_and_goes),),
    ),
    Scene(
        "topics",
        topics("t.{}.x"),
        TOPICS,
        (10, 1_000, 10_000),
        (
            Case("names: a publication to one", one_topic("t.{}.x"), 10),
            Case("names: one more comes and goes", comes_and_goes("more.x", "asker"), 10),
        ),
    ),
    Scene(
        "topics",
        topics("t.{}.*", "*.{}.y.>"),
        TOPICS,
        (10, 1_000, 10_000),
        (
            Case("patterns: a publication to one", one_topic("t.{}.x"), 10),
            Case("patterns: one more comes and goes", comes_and_goes("more.*", "asker"), 10),
        ),
    ),
    Scene(
        "topics",
        last_values,
        TOPICS,
        (10, 1_000, 10_000),
        (
            Case("last values: a name's comes", comes_and_goes("kept.{}.x", "asker"), 10),
            Case("last values: a pattern's comes", comes_and_goes("kept.{}.*", "asker", 10), 10),
        ),
    ),
    *(
        Scene("pending", waiting(kind), PENDING, (1, 100, 3_000), (Case(name, requests),))
        for kind, name in (
            ("none", "without a timeout: a request beside them"),
            ("one", "with the same timeout: a request beside them"),
            ("many", "with 10,000 timeouts: a request beside them"),
        )
    ),
    Scene(
        "all at once",
        one_client_alone,
        PENDING,
        (1, 100, 3_000),
        (
            Case("asked at once, answered at once, each", in_bulk("drain")),
            Case("taken back at once, each", in_bulk("cancel")),
            Case("overdue within 0.8 s, each", in_bulk("expire"), 100),
        ),
    ),
    Scene(
        "all at once",
        one_client_alone,
        PENDING,
        (1, 100, 3_000),
        (Case("asked at once, 1,024 taken at a time, each", in_bulk("drain")),),
        "tight",
    ),
)

PARTS = {
    "connections": "connections",
    "subscriptions": "subscriptions",
    "one subscription": "names or patterns of one subscription",
    "topics": "topics, patterns or last values",
    "pending": "requests that wait",
    "all at once": "requests at once",
}


def measure(scene: Scene, sizes: tuple[int, ...], rounds: int, first: int) -> list[Record]:
    """All cases of a scene, at all sizes in turn, in new processes; the first round is `first`."""
    records = []
    with tempfile.TemporaryDirectory(prefix="ip-growth-") as directory, ExitStack() as stack:
        places = []
        for size in sizes:
            place = Place(Path(directory), scene.name, size)
            stack.callback(place.end)
            scene.make(place)
            places.append(place)
        for at in range(-1, rounds):  # the first one warms up
            for case in scene.cases:
                for place in places:
                    if case.smallest <= place.size <= case.most:
                        record = once(scene, case, place)
                        if at >= 0:
                            records.append({"round": first + at, **record})
        if scene.make is idle:
            records += map(held, places)
    return records


def once(scene: Scene, case: Case, place: Place) -> Record:
    watch, used = Foreign(), place.cpu()
    wall, units = case.work(place)
    used = place.cpu() - used
    return {
        "part": scene.part,
        "case": case.name,
        "smallest": case.smallest,
        "size": place.size,
        "wall": wall / units,
        "cpu": used / units,
        "foreign": watch.cores(used),
    }


def held(place: Place) -> Record:
    """What making so many connections took, what they weigh, and what closing them takes."""
    collected = place.server.ask("collected")
    used = place.server.cpu()
    wall = place.timed(place.server, "close")
    used = place.server.cpu() - used
    return {
        "connections": place.size,
        **{name: value / place.size for name, value in place.notes.items()},
        "collecting": collected["seconds"],
        "objects": collected["objects"],
        "close": wall / place.size,
        "close cpu": used / place.size,
    }


# Tables and plots


def by_round(records: list[Record], case: str, size: int, of: str) -> dict[int, float]:
    return {
        record["round"]: record[of]
        for record in records
        if record.get("case") == case and record["size"] == size
    }


def ratios(records: list[Record], case: str, size: int, of: str) -> list[float]:
    """To the smallest size, of each round."""
    smallest = min(record["size"] for record in records if record.get("case") == case)
    mine, least = (by_round(records, case, each, of) for each in (size, smallest))
    return [mine[at] / least[at] for at in mine if least.get(at)]


def write(directory: Path, about: Record, records: list[Record]) -> None:
    """Write growth.md and the plots."""
    measured = [record for record in records if "case" in record]
    foreign = sorted(record["foreign"] for record in measured)
    lines = [
        f"Commit {about['commit']}, source {about['source']}"
        f"{', with changes' if about['changed'] else ''}; {about['date']}, Python "
        f"{about['python']}, {about['machine']}; form `{about['form']}`: "
        f"{about['rounds']} rounds, {about['times']} times. "
        f"Others used {foreign[len(foreign) // 2]:.2f} cores in the middle run.",
        "",
    ]
    for part, across in PARTS.items():
        mine = [record for record in measured if record["part"] == part]
        if not mine:
            continue
        name = f"growth-{report.file_name(part)}.svg"
        curves: dict[str, list[tuple[float, float]]] = {}
        lines += [f"### {part.capitalize()}", "", f"![{part}](performance/{name})", ""]
        lines += ["| | size | µs | ratio | CPU µs | CPU ratio |", "| - | -: | -: | -: | -: | -: |"]
        for case in dict.fromkeys(record["case"] for record in mine):
            sizes = sorted({record["size"] for record in mine if record["case"] == case})
            curve = curves[case] = []
            for size in sizes:
                cells = [case if size == sizes[0] else "", f"{size:,}"]
                for of in ("wall", "cpu"):
                    each = [*by_round(mine, case, size, of).values()]
                    found = report.middle(ratios(mine, case, size, of))
                    cells += [report.short(statistics.median(each) * 1e6), report.spread(found)]
                if found is not None:
                    curve.append((float(size), found[0]))
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        title = f"CPU for each unit, as a ratio to the fewest, by the number of {across}"
        (directory / name).write_text(plot.lines(title, across, curves), "utf-8")
        if part == "connections":
            lines += [*connections(records), ""]
    (directory / "growth.md").write_text("\n".join(lines), "utf-8")


def connections(records: list[Record]) -> list[str]:
    lines = [
        "| connections | connects a second | CPU µs each | memory each, KiB | objects at the "
        "server | closing them, µs each | CPU µs each |",
        "| -: " * 7 + "|",
    ]
    made = [one for one in records if "connections" in one]
    for count in dict.fromkeys(one["connections"] for one in made):
        all_of_it = [one for one in made if one["connections"] == count]
        one = {name: statistics.median(each[name] for each in all_of_it) for name in all_of_it[0]}
        cells = [
            f"{count:,}",
            report.short(1 / one["seconds"]),
            report.short(one["cpu"] * 1e6),
            f"{one['memory'] / 1024:.1f}" if count >= 100 else "",
            report.short(one["objects"]),
            report.short(one["close"] * 1e6),
            report.short(one["close cpu"] * 1e6),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def put_into_docs(directory: Path) -> None:
    for plot_file in directory.glob("growth-*.svg"):
        report.put_plot(directory, plot_file.name)
    text = (directory / "growth.md").read_text("utf-8")
    report.replace_in_page(BEGIN, END, ["", *text.splitlines()])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what growing work costs.")
    parser.add_argument("form", nargs="?", choices=("quick", "full"), default="quick")
    parser.add_argument("--only", type=lambda text: text.split(","), help="parts: topics,pending")
    parser.add_argument("--rounds", type=int, help="with the same processes")
    parser.add_argument("--times", type=int, help="in new processes: some are slow all their life")
    parser.add_argument("--most", type=int, default=10**9, help="no size over this")
    parser.add_argument("--out", default=str(HERE.parent / ".cache" / "bench" / "growth"))
    parser.add_argument("--docs", action="store_true", help="put the result onto the page")
    arguments = parser.parse_args()
    quick = arguments.form == "quick"
    arguments.rounds = arguments.rounds or (3 if quick else 2)
    arguments.times = arguments.times or (1 if quick else 3)
    directory = Path(arguments.out)
    directory.mkdir(parents=True, exist_ok=True)
    records: list[Record] = []
    with open(directory / "growth.jsonl", "w") as results:
        about = facts(arguments) | {"times": arguments.times}
        results.write(json.dumps({"about": about}) + "\n")
        for scene in SCENES:
            if arguments.only and scene.part not in arguments.only:
                continue
            sizes = tuple(
                size for size in (scene.quick if quick else scene.full) if size <= arguments.most
            )
            print(f"{time.strftime('%H:%M:%S')} {scene.cases[0].name}", flush=True)
            for again in range(arguments.times):
                found = measure(scene, sizes, arguments.rounds, again * arguments.rounds)
                results.writelines(json.dumps(record) + "\n" for record in found)
                results.flush()
                records += found
    write(directory, about, records)
    if arguments.docs:
        put_into_docs(directory)
    print((directory / "growth.md").read_text("utf-8"))
    print(f"results, tables and plots are in {directory}")


if __name__ == "__main__":
    if LINUX:
        main()
    else:
        print("growth is measured on Linux only: processes are pinned, and their clocks read")
