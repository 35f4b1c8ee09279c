"""Reads a whole lake with DuckDB and pyarrow, and checks what must hold in it whatever happened:

- every object opens in both readers, and both see as many rows as the ledger says, by `_op`;
- what stands in the lake is what the ledger names, no more and no less; no upload is left open;
- a `_sequence` stands once, in order within an object, and without gaps from 1 on;
- `changes` entries tile: each begins where the last one ended.

Standard input: {"endpoint", "bucket", "key", "secret", "ca", "prefix", "source", "key_file" or null, "dir",
"box": {"key", "secret"}} as JSON.
Standard output: what was counted, as JSON.
"""

import collections
import json
import pathlib
import sys
import time

import duckdb
import pyarrow.parquet

from decrypt import lake_key, opened
from lake import Lake

META = ["_op", "_sequence", "_position", "_committed_at", "_xid", "_unchanged", "_exact"]


def entries(lake, prefix, source):
    """The ledger's bodies, in order."""
    keys = lake.keys(f"{prefix}/_ledger/{source}/")
    bodies = [json.loads(lake.get(key)[0].split(b"\n")[0]) for key in keys]
    assert [body["entry"] for body in bodies] == list(range(1, len(bodies) + 1)), "entries have gaps"
    return bodies


def tiled(bodies):
    reached = None
    for body in bodies:
        if body["kind"] in ("changes", "gap"):
            assert reached is None or body["from"] == reached, f"entry {body['entry']} begins at {body['from']}, not at {reached}"
            reached = body["to"]
    return reached


def left_open(lake):
    """Uploads that stay open: a box that lives may be at one, as of the entry that it writes of a look."""
    for _ in range(20):
        if not (left := lake.uploads()):
            break
        time.sleep(0.25)
    return left


def held(lake, prefix):
    """The keys of all that is not the ledger's own."""
    return {name for name in lake.keys(f"{prefix}/") if "/_ledger/" not in name and "/_check/" not in name}


def told(lake, prefix, source):
    """The ledger's bodies, once they name all that the lake holds: what a box that lives has just put they name a moment later."""
    for _ in range(20):
        stored = held(lake, prefix)
        bodies = entries(lake, prefix, source)
        if not (unnamed := stored - {item["key"] for body in bodies for item in body["objects"]}):
            break
        time.sleep(0.25)
    assert not unnamed, f"only in the lake: {sorted(unnamed)}"
    return bodies


def main():
    site = json.load(sys.stdin)
    lake, prefix, source = Lake.of(site), site["prefix"], site["source"]
    folder = pathlib.Path(site["dir"])
    folder.mkdir(parents=True, exist_ok=True)
    key = lake_key(site["key_file"]) if site.get("key_file") else None
    db = duckdb.connect()
    # It takes a file of the same name, size and second for the one that it has read.
    db.execute("SET enable_external_file_cache = false")
    bodies = told(lake, prefix, source)
    reached = tiled(bodies)
    named = [item for body in bodies for item in body["objects"]]
    names = [item["key"] for item in named]
    assert len(set(names)) == len(names), "an object stands in the ledger twice"
    assert (lost := set(names) - held(lake, prefix)) == set(), f"only in the ledger: {sorted(lost)}"
    box = Lake.of(site | site["box"])  # only the box may ask for open uploads
    assert (left := left_open(box)) == [], f"uploads are left open: {left}"

    sequences, rows, tables, uuids = [], collections.Counter(), set(), collections.Counter()
    for item in named:
        if not item["key"].endswith(".parquet"):
            continue
        body, meta = lake.get(item["key"])
        assert len(body) == item["bytes"], item["key"]
        file = folder / "object.parquet"
        file.write_bytes(opened(key, body, meta) if key else body)
        table = pyarrow.parquet.read_table(file)
        missing = [name for name in META if name not in table.column_names]
        assert not missing, f"{item['key']} lacks {missing}"
        seen = collections.Counter(table["_op"].to_pylist())
        duck = dict(db.execute("SELECT _op, count(*) FROM read_parquet(?) GROUP BY 1", [str(file)]).fetchall())
        said = {op: count for op, count in item["rows"].items() if count}
        assert dict(seen) == duck == said, f"{item['key']}: pyarrow {dict(seen)}, DuckDB {duck}, ledger {said}"
        # Every column, every value, in both.
        width = len(db.execute("SELECT * FROM read_parquet(?)", [str(file)]).fetch_arrow_table().column_names)
        assert width == table.num_columns, item["key"]
        own, kind = table["_sequence"].to_pylist(), item["key"].rsplit("/", 1)[1].split("-")[0]
        ops = {"snapshot": "S", "repair": "RD", "changes": "IUDT"}[kind]
        assert set(seen) <= set(ops), f"{item['key']} holds {dict(seen)}"
        if kind == "changes":
            assert own == sorted(own), f"{item['key']} is out of order"
            sequences += own
        else:
            assert set(own) <= {0}, f"{item['key']}: rows that were read are no changes"
        rows.update(seen)
        uuids.update(str(field.type) for field in table.schema if field.metadata and field.metadata.get(b"source_type") == b"uuid")
        tables.add(item["key"].split("/dt=")[0])
    sequences.sort()
    assert sequences == list(range(1, len(sequences) + 1)), f"sequences are not dense and unique: {holes(sequences)}"
    last = reached["sequence"] if reached else 0
    assert last == len(sequences), f"the ledger reaches {last}, the lake {len(sequences)}"
    print(json.dumps({"entries": len(bodies), "objects": len(named), "rows": rows, "tables": len(tables), "changes": len(sequences), "uuids": uuids}))


def holes(sequences):
    counted = collections.Counter(sequences)
    twice = [n for n, count in counted.items() if count > 1][:10]
    missing = [n for n in range(1, (sequences[-1] if sequences else 0) + 1) if n not in counted][:10]
    return f"twice {twice}, missing {missing}"


if __name__ == "__main__":
    main()
