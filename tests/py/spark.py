"""Reads a whole lake with Spark, and beside it with pyarrow: each object's columns and values, and each table as one.

What Spark has read it writes anew, without anything of ours, and pyarrow compares: the values of each column, in order.
Standard input: as that of `readers.py`. Standard output: what was counted, as JSON.
"""

import json
import pathlib
import sys

import pyarrow
import pyarrow.compute
import pyarrow.parquet
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from decrypt import lake_key, opened
from lake import Lake

CONFIG = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "1g",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.mergeSchema": "true",
    # Dates are those of one calendar throughout: Spark asks when it meets one before 1582, or writes it.
    "spark.sql.parquet.datetimeRebaseModeInRead": "CORRECTED",
    "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
}


def session(folder):
    builder = SparkSession.builder.master("local[1]").config("spark.local.dir", str(folder / "spark"))
    for name, value in CONFIG.items():
        builder = builder.config(name, value)
    spark = builder.config("spark.sql.warehouse.dir", str(folder / "warehouse")).getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def fetched(lake, site, folder):
    """The objects with rows, as files that lie as they do in the lake, by table."""
    key = lake_key(site["key_file"]) if site.get("key_file") else None
    tables = {}
    for name in lake.keys(f"{site['prefix']}/{site['source']}/"):
        if not name.endswith(".parquet"):
            continue
        body, meta = lake.get(name)
        file = folder / "lake" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(opened(key, body, meta) if key else body)
        tables.setdefault(folder / "lake" / name.split("/dt=")[0], []).append(file)
    return tables


def plain(column):
    """A column as both have it: of floating point numbers their bits, as NaN is not equal to itself."""
    column, kind = column.combine_chunks(), column.type
    if pyarrow.types.is_floating(kind):
        width = pyarrow.int32() if kind.bit_width == 32 else pyarrow.int64()
        return column.fill_null(0).view(width)
    return column


def refusal(spark, file):
    """What Spark says of a file when it is told of nothing; empty: it takes it."""
    try:
        spark.read.parquet(str(file)).schema
    except Exception as why:
        return str(why)
    return ""


def compare(spark, file, folder):
    """How many rows an object has, how many columns, how many Spark refuses, and the schema that it was told, if it has to be."""
    ours = pyarrow.parquet.ParquetFile(file).read()
    # What is annotated as a UUID Spark refuses, and the whole file with it, but where it is told of the other columns alone.
    refused = [field.name for field in ours.schema if field.type == pyarrow.uuid()]
    if refused:
        assert "UUID" in (said := refusal(spark, file)), f"{file}: Spark has UUIDs now, which the README is to say: {said}"
    ours = ours.drop_columns(refused)
    told = from_arrow_schema(ours.schema) if refused else None
    reader = spark.read.schema(told) if told else spark.read
    written = folder / "written"
    reader.parquet(str(file)).coalesce(1).write.mode("overwrite").option("compression", "none").parquet(str(written))
    parts = sorted(written.glob("*.parquet"))
    assert len(parts) == 1, f"{file}: {len(parts)} files were written"
    theirs = pyarrow.parquet.ParquetFile(parts[0]).read()
    assert ours.column_names == theirs.column_names, f"{file}: {ours.column_names}, Spark {theirs.column_names}"
    for name in ours.column_names:
        one, other = plain(ours[name]), plain(theirs[name])
        assert one.is_null().equals(other.is_null()), f"{file}: NULLs of {name}"
        assert one.equals(other.cast(one.type)), f"{file}: {name}, {one.type}, Spark {other.type}"
    return ours.num_rows, ours.num_columns, len(refused), told


def alike(files):
    """The files of a table in groups: a column whose type became another is one that Spark does not bring together."""
    schemas = {file: pyarrow.parquet.read_schema(file) for file in files}
    kinds = {}
    for schema in schemas.values():
        for field in schema:
            kinds.setdefault(field.name, set()).add(field.type)
    changed = [name for name, of in kinds.items() if len(of) > 1]
    groups = {}
    for file, schema in schemas.items():
        kind = tuple(schema.field(name).type if name in schema.names else None for name in changed)
        groups.setdefault(kind, []).append(file)
    return groups.values()


def main():
    site = json.load(sys.stdin)
    folder = pathlib.Path(site["dir"]).absolute()
    tables = fetched(Lake.of(site), site, folder)
    spark = session(folder)
    objects, rows, values, refused, changed = 0, 0, 0, 0, 0
    for table, files in tables.items():
        found = {file: compare(spark, file, folder) for file in files}
        groups, whole = alike(files), 0
        changed += len(groups) > 1
        for group in groups:
            reader = spark.read.option("basePath", str(table))
            if told := next((told for file in group if (told := found[file][-1])), None):
                reader = reader.schema(told)
            frame = reader.parquet(*map(str, group))
            # A count reads no column.
            frame.write.format("noop").mode("overwrite").save()
            whole += frame.count()
        counts = found.values()
        assert whole == sum(count for count, *_ in counts), f"{table.name}: {whole} rows at once"
        objects, rows = objects + len(files), rows + whole
        values += sum(count * columns for count, columns, *_ in counts)
        refused += sum(columns for _, _, columns, _ in counts)
    counted = {"tables": len(tables), "objects": objects, "rows": rows, "values": values, "refused": refused, "changed": changed}
    print(json.dumps({"spark": spark.version} | counted))
    spark.stop()


if __name__ == "__main__":
    main()
