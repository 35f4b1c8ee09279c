#!/usr/bin/env python3
"""A table into S3, encrypted: Lakehead beside a pipe of tools, in turn, in one run.

    make bench-snapshot SCALE=1 TURNS=3 SETS="wide tpcb"

Both read the same table of the same server by binary COPY and send it to the same store over TLS.
The peer is `psql | zstd -1 | openssl aes-256-ctr | aws s3 cp`: its file is not authenticated, and
nothing proves that it is whole. Lakehead writes Parquet, encrypted with AES-256-GCM, and the ledger; its
time ends when the last entry is in the store, its CPU when the process has stopped.

A run counts only if `lakehead verify --deep` says PROVEN with as many rows as the table has; that of the
peer, if what is read back, decrypted and unpacked is as long as the COPY was.
"""

import os
import shlex
import shutil
import subprocess

import figures
import ground
import meter

SCALE = float(os.environ.get("SCALE", "1"))
SETS = os.environ.get("SETS", "wide tpcb").split()
TABLES = {"wide": "wide", "tpcb": "pgbench_accounts"}
ROWS = {"wide": int(400_000 * SCALE), "tpcb": 100_000 * max(1, int(40 * SCALE))}
KEY = "-K " + "07" * 32 + " -iv " + "09" * 16
PEER = "COPY, zstd -1, aes-256-ctr, aws s3 cp"
WIDE = """
CREATE TABLE wide (
  id bigint PRIMARY KEY, k1 bigint NOT NULL, k2 int, status smallint, flag boolean, name text, city text,
  note text, amount numeric(14,2), rate numeric(10,6), created timestamptz NOT NULL, updated timestamptz,
  d date, uid uuid, ratio float8, doc jsonb, blob bytea, big text)
"""
# One row in twenty has about 8 KB in `big`, kept out of line and half of it compressible.
FILL_WIDE = """
INSERT INTO wide SELECT
  n, n * 2654435761 % 1000000007, (random() * 100000)::int, (random() * 8)::int, n % 3 = 0,
  'customer_' || md5(n::text),
  (ARRAY['Berlin', 'Lisbon', 'Osaka', 'Sao Paulo', 'Nairobi', 'Oslo', 'Perth', 'Lima'])[1 + n % 8],
  CASE WHEN n % 4 > 0 THEN format('order %s left with carrier %s for %s', n, n % 17, left(md5((n / 10)::text), 12)) END,
  (random() * 1000000)::numeric(14,2), random()::numeric(10,6),
  timestamptz '2020-01-01 00:00Z' + n * interval '37 s',
  CASE WHEN n % 5 > 0 THEN timestamptz '2021-01-01 00:00Z' + random() * 1e8 * interval '1 s' END,
  date '2020-01-01' + (n % 2000)::int, gen_random_uuid(), random(),
  jsonb_build_object('sku', n % 5000, 'qty', (random() * 10)::int, 'price', round((random() * 100)::numeric, 2),
    'tags', jsonb_build_array('a' || n % 10, 'b' || n % 7, 'c'),
    'addr', jsonb_build_object('zip', 10000 + n % 89999, 'street', md5(n::text))),
  decode(md5(random()::text) || md5(random()::text) || md5(random()::text) || md5(random()::text), 'hex'),
  CASE WHEN n % 20 = 0 THEN
    (SELECT string_agg(md5((n * 1000 + i)::text) || ' as the crow flies, not as the road goes ', '') FROM generate_series(1, 125) i)
  END
FROM generate_series(1, {rows}) n
"""


def load(cluster, name):
    """Fills the database, unless an earlier run did."""
    table, rows = TABLES[name], ROWS[name]
    database = f"{name}_{rows}"
    if not cluster.has_database(database):
        ground.say(f"loading {rows} rows of {name}")
        cluster.sql("postgres", f"DROP DATABASE IF EXISTS {database}_making", f"CREATE DATABASE {database}_making")
        if name == "wide":
            cluster.sql(f"{database}_making", WIDE, FILL_WIDE.format(rows=rows))
        else:
            command = ["pgbench", "-i", "-I", "dtgp", "-q", "-s", str(rows // 100_000), f"{database}_making"]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        cluster.sql(f"{database}_making", f"VACUUM (ANALYZE, FREEZE) {table}", "CHECKPOINT")
        cluster.sql("postgres", f"ALTER DATABASE {database}_making RENAME TO {database}")
    return database


class Snapshot:
    """One data set, and the lines that copy it."""

    def __init__(self, cluster, store, name):
        self.cluster, self.store = cluster, store
        self.table, self.rows = TABLES[name], ROWS[name]
        self.database = load(cluster, name)
        self.copy = f"psql -XAtq -d {self.database} -c 'COPY {self.table} TO STDOUT (FORMAT binary)'"
        # Also warms the server's cache, the same for all.
        self.bytes = int(ground.shell(f"{self.copy} | wc -c"))
        self.watched = {"server": cluster.cpu_s, "store": store.cpu_s}
        self.folder = ground.FOLDER / "snapshot" / name

    def result(self, used, bytes_out):
        return {
            "wall_s": used.wall_s,
            "cpu_s": used.cpu_s,
            "cpu_s_per_gb": used.cpu_s / self.bytes * 1e9,
            "server_cpu_s": used.server_cpu_s,
            "store_cpu_s": used.store_cpu_s,
            "peak_mib": used.peak_mib,
            "bytes_in": self.bytes,
            "bytes_out": bytes_out,
            "rows_per_s": self.rows / used.wall_s,
        }

    def peer(self, number):
        place = f"s3://{self.store.bucket}/peer/{self.database}-{number}"
        s3 = f"{shlex.quote(str(ground.AWS))} --endpoint-url {self.store.endpoint} s3 cp --quiet"
        pack = "zstd -1 -q --single-thread"
        command = f"{self.copy} | {pack} | openssl enc -aes-256-ctr {KEY} | {s3} --expected-size {self.bytes} - {place}"
        before = self.store.stored_bytes()
        with open(ground.FOLDER / "peer.log", "a") as log:
            words = ["bash", "-o", "pipefail", "-c", command]
            run = meter.Run(words, log, self.store.environment("lake"), **self.watched)
            used = run.end()
        figures.demand(used.code == 0, f"the pipe ended with {used.code}")
        back = f"{s3} {place} - | openssl enc -d -aes-256-ctr {KEY} | zstd -dcq | wc -c"
        read = int(ground.shell(back, self.store.environment("audit")))
        figures.demand(read == self.bytes, f"{read} bytes came back of {self.bytes}")
        return self.result(used, self.store.stored_bytes() - before)

    def lakehead(self, number):
        shutil.rmtree(self.folder, ignore_errors=True)
        # A name of its own each time: a chain of its own in the store.
        source, tables = f"{self.database}_{number}", [f"public.{self.table}"]
        box = ground.Box(self.folder, self.cluster, self.database, self.store, source, tables)
        # What a run left that was interrupted.
        box.leave()
        before = self.store.stored_bytes()
        box.start(**self.watched)
        _, proven_s = box.until_shipped()
        used = box.stop()
        figures.demand(used.code == 0, f"the gateway ended with {used.code}")
        bytes_out = self.store.stored_bytes() - before
        found = box.verify()["rows"].get("S", 0)
        figures.demand(found == self.rows, f"{found} rows are proven of {self.rows}")
        box.leave()
        used.wall_s, used.peak_mib = proven_s, used.largest_mib
        return self.result(used, bytes_out)


def main():
    columns = [
        ("wall s", "wall_s", "{:.1f}"),
        ("CPU-s", "cpu_s", "{:.2f}"),
        ("CPU-s/GB", "cpu_s_per_gb", "{:.2f}"),
        ("server CPU-s", "server_cpu_s", "{:.2f}"),
        ("peak MiB", "peak_mib", "{:.0f}"),
        ("bytes in", "bytes_in", "{:,.0f}"),
        ("bytes out", "bytes_out", "{:,.0f}"),
        ("rows/s", "rows_per_s", "{:,.0f}"),
    ]
    results, tables = {}, []
    with ground.standing() as cluster:
        for name in SETS:
            store = ground.Store(ground.FOLDER / "snapshot-store")
            shutil.rmtree(store.folder, ignore_errors=True)
            store.start()
            try:
                snapshot = Snapshot(cluster, store, name)
                runs = figures.alternate({PEER: snapshot.peer, figures.OWN: snapshot.lakehead})
            finally:
                store.stop()
            results[name] = figures.summary(runs, ["cpu_s", "wall_s", "bytes_out", "server_cpu_s"])
            title = f"snapshot, {name}: {ROWS[name]:,} rows, {snapshot.bytes / 1e6:,.0f} MB of COPY"
            tables.append(figures.markdown(title, results[name], columns))
        figures.keep("snapshot", results, cluster, SCALE)
    print("\n".join(tables))


if __name__ == "__main__":
    main()
