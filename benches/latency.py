#!/usr/bin/env python3
"""How long after its COMMIT a transaction is durable, and proven: under load, and without.

    make bench-latency SECONDS=60 RATE=5000

The load: pgbench, held to RATE changes a second, in transactions of four rows inserted and one updated. The
probe: a connection of its own that commits one row every 15 to 25 ms. Both commit synchronously, as the
server sends on only what it has flushed. The probe's position is that of the log right before its COMMIT, read
in the same message, so that its commit record stands at it or a few records behind; its time is when COMMIT
has been answered. Beside it the admin socket is asked, every 2 ms, how far the box is `durable` (fsynced in
the journal) and `shipped` (in the signed ledger): a wait ends with the first answer that shows the position
reached, so that it is too long by at most the time between two answers, which is measured too.

A run counts only if `lakehead verify --deep` says PROVEN with exactly the rows of load and probe, if
every commit of the probe was seen durable and proven, and if the load came to at least 95 % of RATE.
"""

import os
import random
import shutil
import subprocess
import threading
import time

import figures
import ground
import meter

SECONDS = int(os.environ.get("SECONDS", "60"))
RATE = int(os.environ.get("RATE", "5000"))
CHANGES = 5
OBJECT_AGE_S = 5
ASK_EVERY_S = 0.002
DATABASE, SOURCE = "bench_latency", "latency"
SCHEMA = (
    """CREATE TABLE event (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, k bigint, note text,
       amount numeric(14,2), created timestamptz DEFAULT now())""",
    "CREATE TABLE probe (id bigint PRIMARY KEY, note text)",
    "CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL)",
    "INSERT INTO counter SELECT n, 0 FROM generate_series(1, 1000) n",
)
SCRIPT = """
\\set k random(1, 1000)
BEGIN;
INSERT INTO event (k, note, amount) SELECT :k, 'order ' || n || ' left with carrier ' || :k, :k / 7.0
  FROM generate_series(1, 4) n;
UPDATE counter SET n = n + 1 WHERE id = :k;
COMMIT;
"""
SYNCHRONOUS = {"PGOPTIONS": "-c synchronous_commit=on"}


class Watch(threading.Thread):
    """Asks the box how far it is, and notes when it was where."""

    def __init__(self, box):
        super().__init__(daemon=True)
        self.box, self.over = box, threading.Event()
        self.seen = {"durable": [], "shipped": []}
        self.answers = []

    def run(self):
        while not self.over.wait(ASK_EVERY_S):
            status, now = self.box.status(), time.monotonic()
            if not status:
                continue
            self.answers.append(now)
            for mark, seen in self.seen.items():
                position = ground.lsn(status[mark]["position"])
                if not seen or position > seen[-1][0]:
                    seen.append((position, now))

    def stop(self):
        self.over.set()
        self.join()

    def waits_ms(self, mark, commits):
        """From each COMMIT to the first answer that shows it passed."""
        seen, at, waits = self.seen[mark], 0, []
        for position, committed in commits:
            while at < len(seen) and seen[at][0] < position:
                at += 1
            figures.demand(at < len(seen), f"a commit of the probe was not seen {mark}")
            waits.append(max(0.0, seen[at][1] - committed) * 1e3)
        return waits

    def gaps_ms(self, since, until):
        asked = [at for at in self.answers if since <= at <= until]
        return [(later - sooner) * 1e3 for sooner, later in zip(asked, asked[1:])]


class Probe:
    """A connection that commits rows, one by one."""

    def __init__(self):
        words = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", DATABASE]
        environment = {**os.environ, **SYNCHRONOUS}
        pipe = subprocess.PIPE
        self.psql = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.commits = []

    def commit(self, number):
        """One message for all of it: nothing but the server's own work lies between position and COMMIT."""
        insert = f"INSERT INTO probe VALUES ({number}, 'a probe')"
        self.psql.stdin.write(rf"BEGIN\; {insert}\; SELECT pg_current_wal_insert_lsn()\; COMMIT;" + "\n")
        self.psql.stdin.flush()
        position = self.psql.stdout.readline().strip()
        figures.demand(position, "the probe's connection ended")
        self.commits.append((ground.lsn(position), time.monotonic()))

    def stop(self):
        self.psql.stdin.close()
        self.psql.wait()


class Latency:
    """A box that follows, and the rounds."""

    def __init__(self, cluster):
        self.folder = ground.FOLDER / "latency"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.cluster = cluster
        cluster.fresh_database(DATABASE, *SCHEMA)
        self.store = ground.Store(self.folder / "store")
        self.store.start()
        tables, age = ["public.*"], f"{OBJECT_AGE_S} s"
        self.box = ground.Box(self.folder / "box", cluster, DATABASE, self.store, SOURCE, tables, "", age)
        self.script = self.folder / "load.sql"
        self.script.write_text(SCRIPT)
        self.box.start()
        self.box.until(lambda status: status["entry"] > 0 and ground.whole(status["snapshot"]))
        self.probes = 0

    def _load(self, log):
        words = ["pgbench", "-n", "-M", "prepared", "-f", str(self.script), "-c", "8", "-j", "2"]
        words += ["-R", str(RATE / CHANGES), "-T", str(SECONDS + 2 * EDGE_S), "-s", "1", DATABASE]
        return meter.Run(words, log, SYNCHRONOUS)

    def round(self, loaded):
        counted = "SELECT count(*) FROM event"
        before, began = int(self.cluster.sql(DATABASE, counted)), time.monotonic()
        watch, probe = Watch(self.box), Probe()
        watch.start()
        pid = self.box.run.process.pid
        try:
            with open(ground.FOLDER / "peer.log", "a") as log:
                load = self._load(log) if loaded else None
                time.sleep(EDGE_S)
                since, cpu_s = time.monotonic(), meter.process_cpu(pid)
                while time.monotonic() < since + SECONDS:
                    self.probes += 1
                    probe.commit(self.probes)
                    time.sleep(random.uniform(0.015, 0.025))
                until, cpu_s = time.monotonic(), meter.process_cpu(pid) - cpu_s
                if load:
                    figures.demand(load.end().code == 0, "pgbench failed")
            ran_s = time.monotonic() - began
            # Behind the last of the load.
            self.probes += 1
            probe.commit(self.probes)
            last = probe.commits.pop()[0]
            self.box.until(lambda status: ground.lsn(status["shipped"]["position"]) >= last, 120)
            # The watch has to have seen what this saw.
            time.sleep(0.1)
        finally:
            watch.stop()
            probe.stop()
        changes = (int(self.cluster.sql(DATABASE, counted)) - before) / 4 * CHANGES
        if loaded:
            wanted = 0.95 * RATE * (SECONDS + 2 * EDGE_S)
            figures.demand(changes >= wanted, f"{changes:.0f} changes in {ran_s:.0f} s are no {RATE} a second")
        return self.result(watch, probe, since, until, changes, cpu_s)

    def result(self, watch, probe, since, until, changes, cpu_s):
        durable = watch.waits_ms("durable", probe.commits)
        proven = watch.waits_ms("shipped", probe.commits)
        gaps = watch.gaps_ms(since, until)
        part = figures.percentile
        return {
            "probes": len(durable),
            "changes_per_s": changes / (SECONDS + 2 * EDGE_S),
            "durable_p50_ms": part(durable, 0.50),
            "durable_p95_ms": part(durable, 0.95),
            "durable_p99_ms": part(durable, 0.99),
            "durable_max_ms": max(durable),
            "proven_p50_s": part(proven, 0.50) / 1e3,
            "proven_p95_s": part(proven, 0.95) / 1e3,
            "proven_max_s": max(proven) / 1e3,
            "proven_allowed_s": OBJECT_AGE_S + 1,
            "asked_p50_ms": part(gaps, 0.50),
            "asked_p99_ms": part(gaps, 0.99),
            "box_cpu_percent": cpu_s / (until - since) * 100,
        }

    def prove(self):
        figures.demand(self.box.stop().code == 0, "the gateway did not stop")
        rows = self.box.verify()["rows"]
        events = int(self.cluster.sql(DATABASE, "SELECT count(*) FROM event"))
        updates = int(self.cluster.sql(DATABASE, "SELECT sum(n) FROM counter"))
        wanted = {"S": 1000, "I": events + self.probes, "U": updates}
        wanted = {op: count for op, count in wanted.items() if count}
        # Rows read again are of its sequence, which is looked at now and then.
        found = {op: count for op, count in rows.items() if count and op != "R"}
        figures.demand(found == wanted, f"{found} is proven, not {wanted}")


def main():
    columns = [
        ("changes/s", "changes_per_s", "{:,.0f}"),
        ("probes", "probes", "{:,}"),
        ("durable p50 ms", "durable_p50_ms", "{:.1f}"),
        ("p95", "durable_p95_ms", "{:.1f}"),
        ("p99", "durable_p99_ms", "{:.1f}"),
        ("most", "durable_max_ms", "{:.1f}"),
        ("proven p50 s", "proven_p50_s", "{:.2f}"),
        ("p95", "proven_p95_s", "{:.2f}"),
        ("allowed", "proven_allowed_s", "{:.0f}"),
        ("asked every ms, p50", "asked_p50_ms", "{:.1f}"),
        ("p99", "asked_p99_ms", "{:.1f}"),
        ("CPU, % of a core", "box_cpu_percent", "{:.1f}"),
    ]
    results = {}
    with ground.standing() as cluster:
        latency = Latency(cluster)
        for name, loaded in (("idle", False), ("load", True)):
            # What the round before left to be done.
            latency.box.until_shipped(lambda status: status["spool_bytes"] == 0)
            results[name] = latency.round(loaded)
            ground.say(f"{name}: {figures.shown(results[name])}")
        latency.prove()
        latency.store.stop()
        cluster.drop_database(DATABASE)
        shutil.rmtree(latency.folder)
        figures.keep("latency", results, cluster, RATE / 5000)
    title = f"latency: COMMIT to durable and to proven, {SECONDS} s each, object_age {OBJECT_AGE_S} s"
    print("\n".join(figures.table(title, results, columns)))


# Load before and after what is measured.
EDGE_S = 3

if __name__ == "__main__":
    main()
