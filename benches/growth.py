#!/usr/bin/env python3
"""What a row costs as tables grow in length and in number.

    make bench-growth ROWS="100000 1000000 10000000" TABLES="1 100 1000" TURNS=3

A snapshot of one table of so many rows; then of so many tables that have the largest but one of these numbers of rows
together. Of each the CPU of the box's process until it has stopped, less that of a box whose table has one row (what
it costs to start), by row; what it holds at most; entries and objects in the lake.

A run counts only if `lakehead verify --deep` says PROVEN with exactly the rows of the tables.
"""

import os
import shutil
import statistics

import figures
import ground

ROWS = [int(rows) for rows in os.environ.get("ROWS", "100000 1000000 10000000").split()]
TABLES = [int(tables) for tables in os.environ.get("TABLES", "1 100 1000").split()]
# Tables that are made by one statement: the server locks all of them until it is done.
STEP = 500


def fill(cluster, tables, rows):
    """A database with so many tables of so many rows, unless an earlier run made it."""
    database = f"growth_{tables}_{rows}"
    if cluster.has_database(database):
        return database
    ground.say(f"loading {tables} tables of {rows} rows")
    cluster.sql("postgres", f"DROP DATABASE IF EXISTS {database}_making", f"CREATE DATABASE {database}_making")
    for first in range(1, tables + 1, STEP):
        last = min(first + STEP - 1, tables)
        cluster.sql(f"{database}_making", f"""
DO $$ BEGIN FOR t IN {first} .. {last} LOOP
  EXECUTE format('CREATE TABLE t%s (id bigint PRIMARY KEY, k bigint, note text, amount numeric(14,2), at timestamptz)', t);
  EXECUTE format('INSERT INTO t%s SELECT n, n * 2654435761 %% 1000000007, ''note '' || md5(n::text), n / 7.0,
    timestamptz ''2020-01-01 00:00Z'' + n * interval ''37 s'' FROM generate_series(1, {rows}) n', t);
END LOOP; END $$""")
    cluster.sql(f"{database}_making", "VACUUM (ANALYZE, FREEZE)", "CHECKPOINT")
    cluster.sql("postgres", f"ALTER DATABASE {database}_making RENAME TO {database}")
    return database


class Growth:
    """Tables, and the box that copies them."""

    def __init__(self, cluster, store, tables, rows):
        self.cluster, self.store, self.tables, self.rows = cluster, store, tables, rows
        self.database = fill(cluster, tables, rows)
        self.folder = ground.FOLDER / "growth" / self.database

    def __call__(self, number):
        shutil.rmtree(self.folder, ignore_errors=True)
        source = f"{self.database}_{number}"
        box = ground.Box(self.folder, self.cluster, self.database, self.store, source, ["public.*"])
        # What a run left that was interrupted.
        box.leave()
        box.start()
        status, _ = box.until_shipped()
        used = box.stop()
        figures.demand(used.code == 0, f"the gateway ended with {used.code}")
        found, wanted = box.verify()["rows"].get("S", 0), self.tables * self.rows
        figures.demand(found == wanted, f"{found} rows are proven of {wanted}")
        box.leave()
        return {
            "cpu_s": used.cpu_s,
            "peak_mib": used.largest_mib,
            "entries": status["entry"],
            "objects": status["shipped_objects"],
        }


def main():
    together = sorted(ROWS)[-2] if len(ROWS) > 1 else ROWS[0]
    shapes = [(1, 1), *((1, rows) for rows in ROWS), *((tables, together // tables) for tables in TABLES if tables > 1)]
    with ground.standing() as cluster:
        store = ground.Store(ground.FOLDER / "growth-store")
        shutil.rmtree(store.folder, ignore_errors=True)
        store.start()
        try:
            lines = {f"{tables:,} × {rows:,}": Growth(cluster, store, tables, rows) for tables, rows in shapes}
            runs = figures.alternate(lines)
        finally:
            store.stop()
        median = {name: {key: statistics.median(run[key] for run in done) for key in done[0]} for name, done in runs.items()}
        start = median["1 × 1"]["cpu_s"]
        for (tables, rows), line in zip(shapes, median.values()):
            if rows > 1:
                line["us_per_row"] = round((line["cpu_s"] - start) / (tables * rows) * 1e6, 3)
                line["ms_per_table"] = round((line["cpu_s"] - start) / tables * 1e3, 2)
        figures.keep("growth", {"median": median, "runs": runs}, cluster, 1)
    columns = [
        ("CPU-s", "cpu_s", "{:.2f}"),
        ("µs/row", "us_per_row", "{:.2f}"),
        ("CPU-ms/table", "ms_per_table", "{:.1f}"),
        ("peak MiB", "peak_mib", "{:.0f}"),
        ("entries", "entries", "{:.0f}"),
        ("objects", "objects", "{:.0f}"),
    ]
    print("\n".join(figures.table("tables × rows of each", median, columns)))


if __name__ == "__main__":
    main()
