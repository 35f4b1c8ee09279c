//! Statements as an older server takes them. What it lacks is left out, and said.

/// The first major version that has it, what stands in its place before, and what that leaves out.
struct Lacking {
    since: u32,
    name: &'static str,
    instead: &'static str,
    what: &'static str,
}

/// `tests/fixtures/types.sql`, as a server of that major version takes it.
pub(crate) fn types(sql: &str, major: u32) -> String {
    let mut sql = sql.to_owned();
    for Lacking { since, name, instead, what } in LACKING {
        assert!(sql.contains(name), "the fixture has no {name}");
        if major < since {
            eprintln!("PostgreSQL {major}: left out, it came with {since}: {what}");
            sql = sql.replace(name, instead);
        }
    }
    if major < INFINITE_NUMERIC {
        eprintln!(
            "PostgreSQL {major}: left out, it came with {INFINITE_NUMERIC}: infinite numeric"
        );
        sql = finite(&sql);
    }
    sql
}

/// With NaN where a numeric (of the sixth column, `c05`) is infinite.
fn finite(sql: &str) -> String {
    let mut column = None;
    let lines = sql.lines().map(|line| {
        column = match line.starts_with("INSERT INTO types VALUES") {
            true => Some(0),
            false => column.map(|at: u32| at + 1),
        };
        let infinite = column == Some(NUMERIC_COLUMN) && line.contains("Infinity");
        if infinite { "    'NaN'," } else { line }
    });
    lines.collect::<Vec<_>>().join("\n")
}

const INFINITE_NUMERIC: u32 = 14;
/// Lines below the row's first one.
const NUMERIC_COLUMN: u32 = 6;
const LACKING: [Lacking; 7] = [
    Lacking { since: 13, name: "    c56 xid8,", instead: "    c56 text,", what: "xid8" },
    Lacking {
        since: 13,
        name: "    c59 pg_snapshot,",
        instead: "    c59 txid_snapshot,",
        what: "pg_snapshot",
    },
    Lacking {
        since: 14,
        name: "    c51 int4multirange,",
        instead: "    c51 text,",
        what: "int4multirange",
    },
    Lacking {
        since: 14,
        name: "    c52 tstzmultirange,",
        instead: "    c52 text,",
        what: "tstzmultirange",
    },
    Lacking {
        since: 14,
        name: "'{NaN,1.50,NULL,Infinity}'",
        instead: "'{NaN,1.50,NULL}'",
        what: "infinite numeric in an array",
    },
    Lacking {
        since: 15,
        name: "'2562047788:00:54.775807'",
        instead: "'2147483647:59:59.999999'",
        what: "the longest interval",
    },
    Lacking {
        since: 15,
        name: "    c09 numeric(3,-2),",
        instead: "    c09 numeric,",
        what: "numeric with a negative scale",
    },
];
