//! `lakehead verify --against-source`: whether the lake has what the database has, at one position.
//!
//! Keys of rows that differ are in the answer, on standard output: whoever may read the lake asks for them. What
//! goes to standard error, and into logs, has none.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;

use super::{
    Failure, Global,
    meter::{Meter, Step},
    reading,
    verify::Asked,
};
use crate::{
    clock::{Clock, SystemClock},
    config::{self, Config, ConfigError},
    disk,
    error::{Cause, Exit},
    ledger::{PublicKey, SourceReport, audit},
    pipeline,
    replay::{
        self, Chain, Differences, OrderedAs, ProofOptions, ProofProgress, ProofReport, RowState,
        TableProof, Verdict,
    },
    source::{
        order::{self, Order},
        postgres::url::Url,
    },
    units::Age,
};

/// How the content is compared.
#[derive(Args, Clone, Debug)]
pub(super) struct Against {
    /// Compare the lake's rows with the database's, at one position; the database may go on.
    #[arg(long)]
    against_source: bool,
    /// Another way to the database than `url`: postgresql://user@host:5432/database
    #[arg(long, value_name = "URL", requires = "against_source")]
    source_url: Option<String>,
    /// The password for it, mode 0600.
    #[arg(long, value_name = "FILE", requires = "source_url")]
    password_file: Option<PathBuf>,
    /// Behind a gap, have the box repair the rows that differ (`after_gap = "compare"`): an order is laid into its `data_dir`.
    #[arg(long, requires = "against_source")]
    repair: bool,
    /// Where the order is laid instead; bring it to <data_dir>/repair/<source>.json on the box.
    #[arg(long, value_name = "FILE", requires = "repair")]
    repair_file: Option<PathBuf>,
    /// How long to wait: for transactions that are open in the database, and for the ledger to reach what was read.
    #[arg(long, value_name = "SPAN", default_value = "10 min", requires = "against_source")]
    ledger_wait: Age,
    /// How long the database may be kept from cleaning up behind our snapshot.
    #[arg(long, value_name = "SPAN", default_value = "1 h", requires = "against_source")]
    snapshot_age: Age,
}

impl Against {
    /// Whether an order is asked for.
    pub(super) fn repairs(&self) -> bool {
        self.repair
    }

    /// Whether it is asked for.
    pub(super) fn asked(&self) -> bool {
        self.against_source
    }

    /// Whether the options fit these sources.
    pub(super) fn check(&self, config: &Config, sources: &[String]) -> Result<(), Failure> {
        if self.repair_file.is_some() && sources.len() != 1 {
            let what = "--repair-file: each source has an order of its own".into();
            let remedy = format!("name one of them with --source: {}", sources.join(", "));
            return Err(ConfigError::Argument { what, remedy }.into());
        }
        if let Some(file) = &self.repair_file
            && !file.parent().is_some_and(|folder| folder.as_os_str().is_empty() || folder.is_dir())
        {
            let what = format!("--repair-file: the folder of {} is not there", file.display());
            return Err(
                ConfigError::Argument { what, remedy: "make it, or name another".into() }.into()
            );
        }
        for source in sources.iter().filter(|_| self.repair && self.repair_file.is_none()) {
            let file = order::file(&config.appliance.data_dir, source);
            if !file.parent().is_some_and(Path::is_dir) {
                let what = format!(
                    "--repair: {} cannot be laid there: no box has started here",
                    file.display()
                );
                let remedy =
                    "run it on the box, or give --repair-file and bring the file there".into();
                return Err(ConfigError::Argument { what, remedy }.into());
            }
        }
        if self.source_url.is_some() && sources.len() != 1 {
            let what = "--source-url: it is not said whose database that is".into();
            let remedy = format!("name one of them with --source: {}", sources.join(", "));
            return Err(ConfigError::Argument { what, remedy }.into());
        }
        Ok(())
    }

    fn url(&self) -> Result<Option<Url>, Failure> {
        let Some(url) = &self.source_url else { return Ok(None) };
        let mut url = Url::parse(&Config::database_url("--source-url", url)?)?;
        url.password = self.password_file.as_deref().map(config::load_secret).transpose()?;
        Ok(Some(url))
    }
}

/// Compares one source, whose chain `report` proves.
pub(super) async fn prove(
    global: &Global,
    asked: &Asked,
    report: &SourceReport,
    public_keys: &[PublicKey],
    work_dir: PathBuf,
) -> Result<ProofReport, Failure> {
    let (config, against) = (&asked.config, &asked.against);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let named = config.sources.iter().find(|source| source.name == report.source);
    let source = named.ok_or_else(|| {
        let what = format!("{} is not in the configuration", report.source);
        Failure::new(Cause::Config, what, "add its [[source]] with url and tables")
    })?;
    let s3 = pipeline::lake(config, &clock)?;
    let entries = audit::entries(&s3, &config.lake.prefix, report).await?;
    let options = ProofOptions {
        source,
        instead: against.url()?,
        appliance: &config.appliance.name,
        prefix: &config.lake.prefix,
        public_keys,
        ledger_wait_max: against.ledger_wait.0,
        snapshot_age_max: against.snapshot_age.0,
        repair: against.repair,
        work_dir,
    };
    let chain = Chain { entries, head: report.head.clone(), owners: report.owners() };
    let mut meter = global.meter();
    let mut show = |progress| tell(&mut meter, progress);
    let proven = replay::prove(&options, reading::lake(config)?, chain, &clock, &mut show);
    let proven = Box::pin(proven).await;
    drop(meter);
    let (report, order) = proven?;
    if let Some(order) = &order {
        let own = order::file(&config.appliance.data_dir, &report.source);
        lay(order, against.repair_file.as_deref(), &own)?;
    }
    Ok(report)
}

/// Lays an order where a box looks for it, or `elsewhere`.
fn lay(order: &Order, elsewhere: Option<&Path>, own: &Path) -> Result<(), Failure> {
    let bytes = serde_json::to_vec(order).expect("orders are plain data");
    let written = match elsewhere {
        Some(file) => disk::write_durably(file, &bytes),
        None => disk::write_durably_for_owner(own, &bytes),
    };
    written.map_err(|why| {
        let what = format!("write the order {}: {why}", elsewhere.unwrap_or(own).display());
        Failure::new(Cause::DiskFailed, what, "run it as the box's user, or as root")
    })
}

/// Says what is missing where the box's own credentials were used.
pub(super) fn may_not_read(mut failure: Failure) -> Failure {
    if failure.cause == Cause::LakeForbidden.name() {
        for (_, remedy) in &mut failure.problems {
            *remedy = READ_REMEDY.into();
        }
    }
    failure
}

/// 1 where something differs, or is to be repaired; 2 where something was not compared.
pub(super) fn exit(reports: &[ProofReport]) -> Exit {
    if reports.iter().any(|report| report.differs() || report.ordered.is_some()) {
        Exit::Wanting
    } else if reports.iter().all(ProofReport::whole) {
        Exit::Done
    } else {
        Exit::CouldNotRun
    }
}

fn tell(meter: &mut Meter, progress: ProofProgress) {
    let step = |phase, done, all, bytes, more| Step { phase, done, all, bytes, more };
    let none = String::new();
    meter.show(&match progress {
        ProofProgress::Lake { table, done, all } => {
            step("verify: rows of the lake", done, Some(all), false, table)
        }
        ProofProgress::Snapshot => {
            let more = "waiting for the transactions that are open there".into();
            step("verify: snapshots of the database", 0, Some(1), false, more)
        }
        ProofProgress::Source { table, done, all } => {
            step("verify: tables of the database", done, Some(all), false, table)
        }
        ProofProgress::Ledger { done, all } => {
            let more = "waiting for the ledger".into();
            step("verify: log in the ledger", done, Some(all), true, more)
        }
        ProofProgress::Compared { done, all } => {
            step("verify: tables compared", done, Some(all), false, none)
        }
    });
}

/// The answer, for people; and whether an order was asked for.
pub(super) struct Lines<'a>(pub(super) &'a [ProofReport], pub(super) bool);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for report in self.0 {
            let count =
                |verdict| report.tables.iter().filter(|table| table.verdict == verdict).count();
            let equal = count(Verdict::Equal);
            let rows: i128 = report.tables.iter().map(|table| table.source_rows).sum();
            let word = match (report.differs(), report.whole()) {
                (true, _) => "DIFFERENT",
                (false, true) => "EQUAL",
                (false, false) => "NOT WHOLLY COMPARED",
            };
            writeln!(
                f,
                "{}: {word} to its source at {}: {equal} of {} tables are equal, {rows} rows; the snapshot was held for {} s",
                report.source,
                report.position,
                report.tables.len(),
                report.snapshot_held_s
            )?;
            for table in &report.tables {
                table_lines(f, table)?;
            }
            for (table, how) in report.ordered.iter().flatten() {
                match how {
                    OrderedAs::Keys(keys) => writeln!(f, "  {table}: to be repaired, {keys} keys")?,
                    OrderedAs::Anew(why) => writeln!(f, "  {table}: to be read anew: {why}")?,
                }
            }
            if report.ordered.is_some() {
                writeln!(
                    f,
                    "  the order is laid for the box: compare again when its alarm SourceCompare is gone"
                )?;
            } else if self.1 && !report.whole() {
                writeln!(f, "  nothing of it is ordered: no table waits behind a gap")?;
            }
        }
        Ok(())
    }
}

fn table_lines(f: &mut fmt::Formatter<'_>, table: &TableProof) -> fmt::Result {
    let name = &table.table;
    match (&table.verdict, &table.why, &table.differences) {
        (Verdict::Different, _, Some(found)) => difference_lines(f, table, found)?,
        (Verdict::Unknown, why, _) => {
            writeln!(f, "  {name}: not compared: {}", why.as_deref().unwrap_or("it has no rows"))?;
        }
        (_, Some(why), _) => writeln!(f, "  {name}: {why}")?,
        _ => {}
    }
    for (column, why) in &table.left_out {
        writeln!(f, "  {name}.{column}: left out: {why}")?;
    }
    for (column, values) in &table.unknown {
        writeln!(
            f,
            "  {name}.{column}: at least {values} values differ, but were written before it was as it is, or are not in the lake"
        )?;
    }
    if table.reworded > 0 {
        writeln!(f, "  {name}: {} rows are the same, printed otherwise", table.reworded)?;
    }
    Ok(())
}

fn difference_lines(
    f: &mut fmt::Formatter<'_>,
    table: &TableProof,
    found: &Differences,
) -> fmt::Result {
    write!(
        f,
        "  {}: DIFFERENT: {} rows are missing in the lake, {} are in the lake only, {} have other values",
        table.table, found.missing_in_lake, found.missing_in_source, found.altered
    )?;
    if !found.columns.is_empty() {
        let columns = found.columns.iter().map(|(column, rows)| format!("{column} ({rows})"));
        write!(f, "; columns {}", columns.collect::<Vec<_>>().join(", "))?;
    }
    writeln!(f)?;
    if table.without_key {
        return writeln!(f, "    it has no key: its rows are told apart by all their columns");
    }
    if let Some([least, greatest]) = &found.range {
        let key = found.key.join(", ");
        writeln!(f, "    ({key}) from ({}) to ({})", least.join(", "), greatest.join(", "))?;
    }
    for row in found.rows.iter().take(ROWS_SHOWN) {
        let what = match row.what {
            RowState::MissingInLake => "is missing in the lake".to_owned(),
            RowState::MissingInSource => "is in the lake only".to_owned(),
            RowState::Altered => format!("differs in {}", row.columns.join(", ")),
        };
        writeln!(f, "    ({}) {what}", row.key.join(", "))?;
    }
    match found.count() > ROWS_SHOWN as u64 {
        true => writeln!(f, "    and {} more", found.count() - ROWS_SHOWN as u64),
        false => Ok(()),
    }
}

/// Rows that are named for people; `--json` has more.
const ROWS_SHOWN: usize = 20;
const READ_REMEDY: &str = "name credentials that may read the bucket with --credentials-file: the box's own may only write";
