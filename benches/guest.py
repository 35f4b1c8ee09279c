#!/usr/bin/env python3
"""What those who work in a database feel while one of its tables is read: at full pace, and gently.

    make bench-guest SECONDS=8 CYCLES=15 RATE=200

pgbench's own transactions, RATE a second by eight clients, committed synchronously, in one database with a table
that is too large for the server's memory of pages. Beside it a box reads that table, and is stopped (SIGSTOP) and goes on
in turns, SECONDS each: what differs between both is the reading, whatever the machine does in the course of minutes.
With "gentle" one box reads for CYCLES turns, once its pace has had time to settle; with "full" the table is read to its
end within seconds, so that turns are short and boxes are several. What a transaction took is counted from when it was due, so that
one that waits for those before it is not flattered. Percentiles are of all transactions that were due in the turns of one
kind, but for those of a turn's first EDGE_S.

At a customer's only the server is on the machine. So here the box and the store have their files in memory, not on the
server's disk, and run only where nothing else wants to (SCHED_IDLE): what is felt is the reading itself.
"""

import os
import shutil
import signal
import time
from pathlib import Path

import figures
import ground
import meter

SECONDS = float(os.environ.get("SECONDS", "8"))
CYCLES = int(os.environ.get("CYCLES", "15"))
RATE = int(os.environ.get("RATE", "200"))
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


class Stretches:
    """Turns of one kind: when each was, and the rows that were read in it."""

    def __init__(self):
        self.spans, self.rows = [], 0

    def add(self, seconds, read):
        time.sleep(EDGE_S)
        before, began = read(), time.time()
        time.sleep(seconds)
        self.spans.append((began, time.time()))
        self.rows += read() - before

    def result(self, taken):
        took = [ms for due, ms in taken if any(began <= due < ended for began, ended in self.spans)]
        seconds = sum(ended - began for began, ended in self.spans)
        figures.demand(len(took) > 0.8 * RATE * seconds, f"{len(took)} transactions in {seconds:.0f} s")
        found = {f"p{share}_ms": figures.percentile(took, share / 100) for share in (50, 75, 90, 95, 99)}
        return {"transactions": len(took), **found, "rows_per_s": self.rows / seconds}


class Guest:
    """A box beside pgbench."""

    def __init__(self, cluster, pace):
        self.store = ground.Store(APART / f"store-{pace}")
        self.store.start()
        table = [f"public.{TABLE}"]
        folder = APART / pace
        self.box = ground.Box(folder, cluster, DATABASE, self.store, f"guest_{pace}", table, pace=pace)
        # Of a run that was broken off.
        cluster.drop_slot(self.box.slot)
        self.box.start()
        self.box.until(lambda status: sum(part["rows"] for part in status["snapshot"].values()) > 0)

    def turns(self, seconds, cycles, alone, beside):
        """Stopped and reading, in turns."""
        process = self.box.run.process.pid
        for _ in range(cycles):
            os.kill(process, signal.SIGSTOP)
            alone.add(seconds, lambda: 0)
            os.kill(process, signal.SIGCONT)
            beside.add(seconds, self.rows)
        figures.demand(not ground.whole(self.box.status()["snapshot"]), "the table was read to its end: SCALE is too small")

    def rows(self):
        return sum(max(part["rows"], part["rows_done"]) for part in self.box.status()["snapshot"].values())

    def leave(self):
        self.box.stop()
        self.box.leave()
        self.store.stop()
        shutil.rmtree(self.store.folder)
        shutil.rmtree(self.box.folder)


def measure(cluster):
    """By kind of turn: what transactions took in it."""
    shutil.rmtree(APART, ignore_errors=True)
    APART.mkdir(parents=True)
    cluster.sql(DATABASE, "CHECKPOINT")
    words = ["pgbench", "-n", "-c", str(CLIENTS), "-j", "1", "-R", str(RATE), "-T", "3000"]
    words += ["-s", str(PGBENCH_SCALE), "-l", f"--log-prefix={APART}/taken", DATABASE]
    kinds = {name: Stretches() for name in ("alone", "full", "alone again", "gentle")}
    with open(ground.FOLDER / "peer.log", "a") as log:
        pgbench = meter.Run(words, log, SYNCHRONOUS)
        time.sleep(SETTLE_S)
        for _ in range(FULL_BOXES):
            guest = Guest(cluster, "full")
            guest.turns(FULL_S, 2, kinds["alone"], kinds["full"])
            guest.leave()
        guest = Guest(cluster, "gentle")
        time.sleep(SETTLE_S)
        guest.turns(SECONDS, CYCLES, kinds["alone again"], kinds["gentle"])
        figures.demand(not pgbench.ended(), "pgbench ended early")
        pgbench.kill()
        guest.leave()
    taken = [due for path in APART.glob("taken.*") for due in transactions(path)]
    found = {name: kind.result(taken) for name, kind in kinds.items()}
    for pace, before in (("full", "alone"), ("gentle", "alone again")):
        found[pace]["p95_ratio"] = found[pace]["p95_ms"] / found[before]["p95_ms"]
    shutil.rmtree(APART)
    return found


def transactions(path):
    """When each was due, and how many ms it took, by pgbench's log."""
    for line in path.read_text().splitlines():
        fields = line.split()
        if len(fields) >= 6 and fields[2].isdigit():
            took_ms = int(fields[2]) / 1e3
            yield int(fields[4]) + int(fields[5]) / 1e6 - took_ms / 1e3, took_ms


def main():
    columns = [
        ("transactions", "transactions", "{:,.0f}"),
        ("p50 ms", "p50_ms", "{:.2f}"),
        ("p75 ms", "p75_ms", "{:.2f}"),
        ("p90 ms", "p90_ms", "{:.2f}"),
        ("p95 ms", "p95_ms", "{:.2f}"),
        ("p99 ms", "p99_ms", "{:.2f}"),
        ("p95 / alone", "p95_ratio", "{:.2f}"),
        ("rows read/s", "rows_per_s", "{:,.0f}"),
    ]
    ground.BEHIND = ["chrt", "--idle", "0"]
    with ground.standing() as cluster:
        load(cluster)
        results = measure(cluster)
        figures.keep("guest", results, cluster, ROWS / 10_000_000)
    title = f"guest: pgbench, {RATE} transactions a second, {CYCLES} turns of {SECONDS:g} s"
    print("\n".join(figures.table(title, results, columns)))


# In memory.
APART = Path("/dev/shm/lakehead-bench-guest")
# Of a turn what is not counted.
EDGE_S = 1
# Until a pace is found, and the server has its pages.
SETTLE_S = 20
# At full pace.
FULL_S = 1.5
FULL_BOXES = 4

if __name__ == "__main__":
    main()
