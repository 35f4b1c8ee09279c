#!/usr/bin/env python3
"""What a box takes when nothing happens, and how long it takes to be ready.

    make bench-idle SECONDS=60 JOURNAL_GIB=1 TURNS=3

100 tables of 100 rows, their snapshots in the ledger, then SECONDS in which nobody writes: the CPU of the
box's process as a part of one core, what is resident, and its requests to the store. Ready is what
`sd_notify` says, READY=1, heard on a socket of the bench's: recovery is done and the road is open. It is
measured from the start of the process TURNS times, each behind a SIGKILL: with a journal that has nothing
left to send, and with one of JOURNAL_GIB, of rows that nothing compresses, which grew while no store was
there. The files are in the system's memory.

A run counts only if `lakehead verify --deep` says PROVEN with exactly the rows of the tables and of the
journal.
"""

import os
import shutil
import signal
import socket
import statistics
import time

import figures
import ground
import meter

SECONDS = int(os.environ.get("SECONDS", "60"))
JOURNAL_GIB = float(os.environ.get("JOURNAL_GIB", "1"))
TABLES, ROWS = 100, 100
SETTLE_S = 5
DATABASE, SOURCE = "bench_idle", "idle"
MAKE = f"""
DO $$ BEGIN FOR t IN 1 .. {TABLES} LOOP
  EXECUTE format('CREATE TABLE t%s (id bigint PRIMARY KEY, note text, amount numeric(14,2))', t);
  EXECUTE format('INSERT INTO t%s SELECT n, ''row '' || n, n / 7.0 FROM generate_series(1, {ROWS}) n', t);
END LOOP; END $$
"""
# One transaction's rows.
STEP = 20_000


class Idle:
    """A box that has nothing to do."""

    def __init__(self, cluster):
        self.folder, self.cluster = ground.FOLDER / "idle", cluster
        shutil.rmtree(self.folder, ignore_errors=True)
        cluster.fresh_database(DATABASE, MAKE, ground.NOISE)
        self.store = ground.Store(self.folder / "store")
        self.store.start()
        self.rows = 0

    def _box(self):
        return ground.Box(self.folder / "box", self.cluster, DATABASE, self.store, SOURCE, ["public.*"])

    def start(self):
        """Starts the box; gives the seconds until it says that it is ready."""
        self.box = self._box()
        path = self.folder / "notify.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.bind(str(path))
            ear.settimeout(READY_S_MAX)
            began = time.monotonic()
            self.box.start({"NOTIFY_SOCKET": str(path)})
            while b"READY=1" not in ear.recv(4096).splitlines():
                pass
            return time.monotonic() - began

    def kill(self):
        """Nothing is left to its stop."""
        used = self.box.run.end(signal.SIGKILL)
        figures.demand(used.code == -signal.SIGKILL, f"the gateway ended with {used.code}")

    def ready(self, what):
        """The box runs before and after."""
        took = []
        for _ in range(figures.ROUNDS):
            self.kill()
            took.append(self.start())
            ground.say(f"ready, {what}: {took[-1]:.3f} s")
        return took

    def rest(self):
        """What it takes in SECONDS of nothing."""
        self.box.until_shipped()
        time.sleep(SETTLE_S)
        pid = self.box.run.process.pid
        before, cpu_s, began = self.box.status(), meter.process_cpu(pid), time.monotonic()
        time.sleep(SECONDS)
        cpu_s, seconds = meter.process_cpu(pid) - cpu_s, time.monotonic() - began
        after = self.box.status()
        figures.demand(after["received_at"] == before["received_at"], "something was written meanwhile")
        figures.demand(not after["alarms"], f"alarms: {after['alarms']}")
        return {
            "seconds": seconds,
            "cpu_percent": cpu_s / seconds * 100,
            "resident_mib": meter.resident_mib(pid),
            "requests": after["requests"] - before["requests"],
            "sent_bytes": after["sent_bytes"] - before["sent_bytes"],
            "journal_syncs": after["journal_syncs"] - before["journal_syncs"],
            "entries": after["entry"] - before["entry"],
        }

    def fill(self):
        """Lets changes pile up, while no store is there, until the journal is as large as asked for."""
        self.store.stop()
        wanted = JOURNAL_GIB * 2**30
        while True:
            first = self.rows + 1
            self.rows += STEP
            self.cluster.sql(DATABASE, ground.FILL_NOISE.format(first=first, last=self.rows))
            end = self.cluster.sql(DATABASE, "SELECT pg_current_wal_insert_lsn()")
            self.cluster.sql(DATABASE, "UPDATE t1 SET note = note WHERE id = 1")
            status, _ = self.box.until(lambda status: ground.past(status["durable"]["position"], end))
            ground.say(f"journal: {status['journal_bytes'] / 2**20:.0f} MiB")
            figures.demand(self.rows * ground.NOISE_ROW_BYTES < 3 * wanted + 2**28, "the journal does not grow")
            if status["journal_bytes"] >= wanted:
                return status["journal_bytes"]

    def prove(self):
        """The store comes back, under another address; all is sent."""
        self.kill()
        self.store.start()
        took = self.start()
        end = self.cluster.sql(DATABASE, "SELECT pg_current_wal_insert_lsn()")
        self.cluster.sql(DATABASE, "UPDATE t1 SET note = note WHERE id = 1")
        self.box.until(lambda status: ground.past(status["shipped"]["position"], end))
        figures.demand(self.box.stop().code == 0, "the gateway did not stop")
        rows = self.box.verify()["rows"]
        found = {op: rows.get(op, 0) for op in "SI"}
        wanted = {"S": TABLES * ROWS, "I": self.rows}
        figures.demand(found == wanted, f"{found} is proven, not {wanted}")
        return took


def main():
    results = {}
    with ground.standing() as cluster:
        idle = Idle(cluster)
        first_s = idle.start()
        results["idle"] = idle.rest()
        ground.say(figures.shown(results["idle"]))
        empty = idle.ready("nothing to send")
        idle.box.until(lambda status: status["state"] == "streaming")
        journal_bytes = idle.fill()
        full = idle.ready(f"{JOURNAL_GIB:g} GiB")
        last_s = idle.prove()
        idle.store.stop()
        cluster.drop_database(DATABASE)
        shutil.rmtree(idle.folder)
        results["ready"] = {
            "first_s": first_s,
            "empty_s": statistics.median(empty),
            "full_s": statistics.median([*full, last_s]),
            "full_most_s": max([*full, last_s]),
            "journal_bytes": journal_bytes,
        }
        figures.keep("idle", results, cluster, JOURNAL_GIB)
    columns = [
        ("CPU, % of a core", "cpu_percent", "{:.2f}"),
        ("resident MiB", "resident_mib", "{:.0f}"),
        ("requests", "requests", "{}"),
        ("fsyncs", "journal_syncs", "{}"),
        ("entries", "entries", "{}"),
    ]
    title = f"idle: {TABLES} tables, {SECONDS} s in which nothing happens"
    print("\n".join(figures.table(title, {"lakehead": results["idle"]}, columns)))
    columns = [
        ("first start s", "first_s", "{:.2f}"),
        ("nothing to send", "empty_s", "{:.2f}"),
        ("full journal", "full_s", "{:.2f}"),
        ("at most", "full_most_s", "{:.2f}"),
        ("journal bytes", "journal_bytes", "{:,}"),
    ]
    print("\n".join(figures.table("ready: from the start of the process", {"lakehead": results["ready"]}, columns)))


READY_S_MAX = 120

if __name__ == "__main__":
    main()
