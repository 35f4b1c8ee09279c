#!/usr/bin/env python3
"""A backlog of changes, drained: Lakehead beside `pg_recvlogical`, in turn, in one run.

    make bench-stream SCALE=1 TURNS=3

A slot is made while the table is empty, then the load runs; every round drains a copy of that slot with
the same options, so that the server sends the same messages. The peer throws them away. Lakehead
keeps them in its journal (durable), seals them as encrypted Parquet, sends them to the store over TLS
and signs the ledger (proven); its CPU is that of the process from its start until it has stopped.

A run counts only if `lakehead verify --deep` says PROVEN with exactly the rows of the load. A last
transaction of one row, after the position at which the peer stops, marks the end.
"""

import os
import shutil
import subprocess

import figures
import ground
import meter

SCALE = float(os.environ.get("SCALE", "1"))
LOADS = os.environ.get("LOADS", "ins upd").split()
ROWS = int(600_000 * SCALE) // 1000 * 1000
PEER = "pg_recvlogical > /dev/null"
DATABASE, SOURCE, PEER_SLOT = "bench_stream", "stream", "bench_peer"
SCHEMA = """
CREATE TABLE event (
  id bigint PRIMARY KEY, k bigint, status smallint, flag boolean, name text, note text, amount numeric(14,2),
  created timestamptz, uid uuid, doc jsonb);
CREATE PUBLICATION bench FOR TABLE event;
CREATE PROCEDURE ins(count bigint, step int) LANGUAGE plpgsql AS $$
BEGIN
  FOR base IN 0 .. count / step - 1 LOOP
    INSERT INTO event SELECT
      n, n * 2654435761 % 1000000007, n % 8, n % 3 = 0, 'customer_' || md5(n::text),
      format('order %s left with carrier %s as it always does', n, n % 17), (n % 1000000)::numeric / 7,
      timestamptz '2020-01-01 00:00Z' + n * interval '37 s', md5(n::text)::uuid,
      jsonb_build_object('sku', n % 5000, 'qty', n % 10, 'zip', 10000 + n % 89999,
        'tags', jsonb_build_array('a' || n % 10, 'b' || n % 7))
    FROM generate_series(base * step + 1, base * step + step) n;
    COMMIT;
  END LOOP;
END $$;
CREATE PROCEDURE upd(count bigint, step int) LANGUAGE plpgsql AS $$
BEGIN
  FOR base IN 0 .. count / step - 1 LOOP
    UPDATE event SET amount = amount + 1, status = (status + 1) % 8, created = created + interval '1 day'
    WHERE id BETWEEN base * step + 1 AND base * step + step;
    COMMIT;
  END LOOP;
END $$;
"""
ROWS_PER_TRANSACTION = {"ins": 1000, "upd": 500}
OPERATION = {"ins": "I", "upd": "U"}


class Stream:
    """One load, and the lines that drain it."""

    def __init__(self, cluster, number, name):
        self.cluster, self.name, self.number = cluster, name, number
        self.folder = ground.FOLDER / "stream"
        self.store = ground.Store(self.folder / "store")
        self.base = f"bench_{name}"
        self._remember()
        call = f"CALL {name}({ROWS}, {ROWS_PER_TRANSACTION[name]})"
        ground.say(f"loading: {call}")
        cluster.sql(DATABASE, call)
        self.end = cluster.sql(DATABASE, "SELECT pg_current_wal_insert_lsn()")
        cluster.sql(DATABASE, f"INSERT INTO event (id) VALUES ({-1 - number})", "CHECKPOINT")
        self.cluster.copy_slot(DATABASE, self.base, PEER_SLOT)
        self.bytes = int(ground.shell(f"{receive(cluster, self.end)} | wc -c"))

    def _remember(self):
        """Keeps the box, the lake and the slot as they are: every round begins from there."""
        if self.number == 0:
            self._empty_table()
        shutil.rmtree(self.folder / "seed", ignore_errors=True)
        for part in ("box", "store"):
            ground.copy(self.folder / part, self.folder / "seed" / part)
        report = self._started().verify()
        self.store.stop()
        self.entries, self.rows = report["entries"], report["rows"]
        self.cluster.copy_slot(DATABASE, self._slot(), self.base)

    def _empty_table(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        box = self._started()
        box.start()
        box.until(lambda status: status["entry"] > 0 and ground.whole(status["snapshot"]))
        figures.demand(box.stop().code == 0, "the gateway did not stop")
        self.store.stop()

    def _started(self):
        """The store, running, and the box that goes with it."""
        self.store.start()
        more = 'publication = "bench"'
        return ground.Box(
            self.folder / "box", self.cluster, DATABASE, self.store, SOURCE, ["public.event"], more, "5 s"
        )

    def _slot(self):
        return f"lakehead_bench_{SOURCE}"

    def result(self, used, bytes_in, bytes_out, durable_s, durable_cpu_s, proven_s):
        return {
            "durable_s": durable_s,
            "proven_s": proven_s,
            "cpu_s": used.cpu_s,
            "us_per_row": used.cpu_s / ROWS * 1e6,
            "us_per_row_durable": durable_cpu_s / ROWS * 1e6,
            "server_cpu_s": used.server_cpu_s,
            "store_cpu_s": used.store_cpu_s,
            "peak_mib": used.peak_mib,
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
            "rows_per_s": ROWS / durable_s,
        }

    def peer(self, _):
        self.cluster.copy_slot(DATABASE, self.base, PEER_SLOT)
        command = ["bash", "-c", f"{receive(self.cluster, self.end)} > /dev/null"]
        with open(ground.FOLDER / "peer.log", "a") as log:
            used = meter.Run(command, log, server=self.cluster.cpu_s).end()
        figures.demand(used.code == 0, f"pg_recvlogical ended with {used.code}")
        return self.result(used, self.bytes, 0, used.wall_s, used.cpu_s, used.wall_s)

    def lakehead(self, _):
        for part in ("box", "store"):
            ground.copy(self.folder / "seed" / part, self.folder / part)
        self.cluster.copy_slot(DATABASE, self.base, self._slot())
        box = self._started()
        before = self.store.stored_bytes()
        box.start(server=self.cluster.cpu_s, store=self.store.cpu_s)
        _, durable_s = box.until(lambda status: ground.past(status["durable"]["position"], self.end))
        durable_cpu_s = meter.process_cpu(box.run.process.pid)
        status, proven_s = box.until(lambda status: ground.past(status["shipped"]["position"], self.end))
        # The next load begins behind what is confirmed.
        box.until(lambda status: ground.past(status["confirmed"], self.end))
        used = box.stop()
        figures.demand(used.code == 0, f"the gateway ended with {used.code}")
        bytes_out = self.store.stored_bytes() - before
        rows = box.verify()["rows"]
        self.store.stop()
        self._demand_rows(rows, status)
        used.peak_mib = used.largest_mib
        return self.result(used, status["stream_bytes"], bytes_out, durable_s, durable_cpu_s, proven_s)

    def _demand_rows(self, rows, status):
        new = {op: count - self.rows.get(op, 0) for op, count in rows.items()}
        wanted = {"I": 1}
        wanted[OPERATION[self.name]] = wanted.get(OPERATION[self.name], 0) + ROWS
        new = {op: count for op, count in new.items() if count}
        figures.demand(new == wanted, f"{new} is proven, not {wanted}")
        # The peer writes a newline after each message: rows, and BEGIN and COMMIT of each transaction.
        messages = self.bytes - status["stream_bytes"]
        transactions = ROWS // ROWS_PER_TRANSACTION[self.name]
        expected = ROWS + 2 * transactions
        figures.demand(abs(messages - expected) < 2000, f"{self.bytes} and {status['stream_bytes']} bytes of messages")


def receive(cluster, end):
    major = int(cluster.version.split(".")[0])
    options = f"-o proto_version={min(4, max(1, major - 12))} -o publication_names=bench"
    if major >= 14:
        options += " -o streaming=off -o messages=true -o binary=true"
    return f"pg_recvlogical -d {DATABASE} -S {PEER_SLOT} --start {options} --endpos={end} --no-loop -F 0 -f -"


def main():
    columns = [
        ("durable s", "durable_s", "{:.1f}"),
        ("proven s", "proven_s", "{:.1f}"),
        ("CPU-s", "cpu_s", "{:.2f}"),
        ("µs/row", "us_per_row", "{:.2f}"),
        ("until durable", "us_per_row_durable", "{:.2f}"),
        ("server CPU-s", "server_cpu_s", "{:.2f}"),
        ("peak MiB", "peak_mib", "{:.0f}"),
        ("bytes in", "bytes_in", "{:,.0f}"),
        ("bytes out", "bytes_out", "{:,.0f}"),
        ("rows/s", "rows_per_s", "{:,.0f}"),
    ]
    results, tables = {}, []
    with ground.standing() as cluster:
        cluster.fresh_database(DATABASE, SCHEMA)
        for number, name in enumerate(LOADS):
            stream = Stream(cluster, number, name)
            try:
                runs = figures.alternate({PEER: stream.peer, figures.OWN: stream.lakehead})
            finally:
                stream.store.stop()
            results[name] = figures.summary(runs, ["cpu_s", "durable_s", "proven_s", "server_cpu_s"])
            title = f"stream, {name}: {ROWS:,} rows, {stream.bytes / 1e6:,.0f} MB of messages"
            tables.append(figures.markdown(title, results[name], columns))
        cluster.drop_database(DATABASE)
        figures.keep("stream", results, cluster, SCALE)
    print("\n".join(tables))


if __name__ == "__main__":
    main()
