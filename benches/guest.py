#!/usr/bin/env python3
"""What those who work in a database feel while one of its tables is read: at full pace, and gently.

    make bench-guest SECONDS=30 RATE=200 TURNS=3

pgbench's own transactions, RATE a second by eight clients, committed synchronously, in one database with a table
that is too large for the server's memory of pages. In each turn it runs once for all: alone, then beside a box that
reads the table with `snapshot_pace = "full"`, then alone again, then beside one with "gentle", SECONDS each; less,
if the table is read to its end before. What a transaction took is counted from when it was due, so that one that
waits for those before it is not flattered. Percentiles are of all transactions that were due in a stretch, but for
those of its first EDGE_S.

At a customer's only the server is on the machine. So here the box and the store have their files in memory, not on the
server's disk, and get what the others leave of the processors (nice 19): what is felt is the reading itself.
"""

import os
import shutil
import statistics
import time
from pathlib import Path

import figures
import ground
import meter

SECONDS = int(os.environ.get("SECONDS", "30"))
RATE = int(os.environ.get("RATE", "200"))
TURNS = int(os.environ.get("TURNS", "3"))
ROWS = int(10_000_000 * float(os.environ.get("SCALE", "1")))
PGBENCH_SCALE = 20
CLIENTS = 8
DATABASE, TABLE = "bench_guest", "shelf"
FILL = f"""
CREATE TABLE {TABLE} AS SELECT n AS id, md5(n::text) AS name, n % 1000 AS kind, now() AS made,
  repeat(md5((n * 7)::text), 6) AS note FROM generate_series(1, {ROWS}) n
"""
SYNCHRONOUS = {"PGOPTIONS": "-c synchronous_commit=on"}


def load(cluster):
    """Fills the database, unless an earlier run did."""
    if cluster.has_database(DATABASE):
        held = cluster.sql(DATABASE, f"SELECT max(id) FROM {TABLE}")
        if held == str(ROWS):
            return
    ground.say(f"filling {DATABASE}")
    cluster.fresh_database(DATABASE, FILL, f"ALTER TABLE {TABLE} ADD PRIMARY KEY (id)", f"VACUUM ANALYZE {TABLE}")
    ground.shell(f"pgbench -i -q -s {PGBENCH_SCALE} {DATABASE} 2>&1")


class Guest:
    """One turn: pgbench, and the boxes beside it."""

    def __init__(self, cluster, number):
        self.cluster = cluster
        self.folder = APART
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.number = number
        self.stretches = {}

    def run(self):
        words = ["pgbench", "-n", "-c", str(CLIENTS), "-j", "1", "-R", str(RATE), "-T", str(4 * SECONDS + 120)]
        words += ["-s", str(PGBENCH_SCALE), "-l", f"--log-prefix={self.folder}/taken", DATABASE]
        self.cluster.sql(DATABASE, "CHECKPOINT")
        with open(ground.FOLDER / "peer.log", "a") as log:
            pgbench = meter.Run(words, log, SYNCHRONOUS)
            time.sleep(EDGE_S)
            self.alone("alone")
            self.beside("full")
            self.alone("again")
            self.beside("gentle")
            figures.demand(not pgbench.ended(), "pgbench ended early")
            pgbench.kill()
        return self.result()

    def alone(self, name):
        time.sleep(REST_S)
        began = time.time()
        time.sleep(SECONDS)
        self.stretches[name] = (began, time.time(), 0)

    def beside(self, pace):
        store = ground.Store(self.folder / f"store-{pace}")
        store.start()
        box = ground.Box(
            self.folder / pace, self.cluster, DATABASE, store, f"guest_{pace}", [f"public.{TABLE}"], pace=pace
        )
        box.start()
        box.until(lambda status: sum(part["rows"] for part in status["snapshot"].values()) > 0)
        rows, began = self.rows(box.status()), time.time()
        while time.time() < began + SECONDS:
            time.sleep(0.2)
            status = box.status()
            if status and ground.whole(status["snapshot"]):
                break
        ended = time.time()
        rows = self.rows(box.status()) - rows
        figures.demand(ended - began >= 3 * EDGE_S, f"the table was read in {ended - began:.1f} s: SCALE is too small")
        self.stretches[pace] = (began, ended, rows / (ended - began))
        box.stop()
        box.leave()
        store.stop()

    @staticmethod
    def rows(status):
        return sum(max(part["rows"], part["rows_done"]) for part in status["snapshot"].values())

    def result(self):
        """By stretch: percentiles of what transactions took, in ms, and what was read."""
        taken = []
        for path in self.folder.glob("taken.*"):
            for line in path.read_text().splitlines():
                fields = line.split()
                if len(fields) < 6 or not fields[2].isdigit():
                    continue
                took_ms = int(fields[2]) / 1e3
                taken.append((int(fields[4]) + int(fields[5]) / 1e6 - took_ms / 1e3, took_ms))
        found = {}
        for name, (began, ended, rows_per_s) in self.stretches.items():
            took = [ms for due, ms in taken if began + EDGE_S <= due < ended]
            figures.demand(len(took) > 0.9 * RATE * (ended - began - EDGE_S), f"{name}: {len(took)} transactions")
            found[name] = {
                "transactions": len(took),
                "p50_ms": figures.percentile(took, 0.50),
                "p95_ms": figures.percentile(took, 0.95),
                "p99_ms": figures.percentile(took, 0.99),
                "rows_per_s": rows_per_s,
            }
        for pace, before in (("full", "alone"), ("gentle", "again")):
            found[pace]["p95_ratio"] = found[pace]["p95_ms"] / found[before]["p95_ms"]
        return found


def main():
    columns = [
        ("transactions", "transactions", "{:,.0f}"),
        ("p50 ms", "p50_ms", "{:.2f}"),
        ("p95 ms", "p95_ms", "{:.2f}"),
        ("p99 ms", "p99_ms", "{:.2f}"),
        ("p95 / alone", "p95_ratio", "{:.2f}"),
        ("rows read/s", "rows_per_s", "{:,.0f}"),
    ]
    turns = []
    ground.BEHIND = ["nice", "-n", "19"]
    with ground.standing() as cluster:
        load(cluster)
        for number in range(TURNS):
            turns.append(Guest(cluster, number).run())
            for name, stretch in turns[-1].items():
                ground.say(f"turn {number + 1} {name}: {figures.shown(stretch)}")
        shutil.rmtree(APART)
        results = {
            name: {key: statistics.median(turn[name][key] for turn in turns) for key in turns[0][name]}
            for name in turns[0]
        }
        figures.keep("guest", {**results, "turns": turns}, cluster, ROWS / 10_000_000)
    title = f"guest: pgbench, {RATE} transactions a second, {TURNS} turns of {SECONDS} s"
    print("\n".join(figures.table(title, results, columns)))


# In memory.
APART = Path("/dev/shm/lakehead-bench-guest")
# Of a stretch what is not counted, and what lies between two.
EDGE_S = 2
REST_S = 5

if __name__ == "__main__":
    main()
