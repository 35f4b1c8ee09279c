//! Preflight: all that can be known of a source before it is followed. Changes nothing on the server.

use super::{
    catalog::{self, Listing, identifier, literal},
    connect::Target,
    error::SourceError,
    generators, large_objects,
    login::Purpose,
    message::cut,
    name::Names,
    own_url,
    pattern::Patterns,
    publication, slot,
    tls::Channel,
    wire::Wire,
};
use crate::{
    clock::{Clock, SystemClock},
    config,
    error::{Cause, Classified, Finding},
};

/// Looks at a source as [`super::Postgres`] would use it; for `lakehead check`.
pub async fn check(config: &config::Source, appliance: &str) -> Vec<Finding> {
    let mut check = Check { config, names: Names::new(appliance, config), findings: vec![] };
    if let Err(error) = check.run().await {
        check.error("", &error);
    }
    check.findings
}

struct Check<'a> {
    config: &'a config::Source,
    names: Names,
    findings: Vec<Finding>,
}

impl Check<'_> {
    /// Every line; an error of one that the others need ends it.
    async fn run(&mut self) -> Result<(), SourceError> {
        let url = own_url(self.config)?;
        let patterns = Patterns::new(&self.config.tables)?;
        let target = Target::load(self.config, &url)?;
        let mut wire = target.open(Purpose::Sql).await?;
        let channel = match wire.channel() {
            Channel::Plain(_) => "in the clear".to_owned(),
            #[cfg(feature = "sim")]
            Channel::Memory(_) => "in memory".to_owned(),
            Channel::Tls(stream) => {
                let version = stream.get_ref().1.protocol_version();
                format!(
                    "over {}",
                    version.map_or("TLS", |version| version.as_str().unwrap_or("TLS"))
                )
            }
        };
        let version = wire.parameters.get("server_version").cloned().unwrap_or_default();
        self.ok(
            "connection",
            format!("{}, PostgreSQL {version}, a primary, {channel}", wire.host()),
        );
        self.wal_level(&mut wire).await?;
        self.limits(&mut wire).await?;
        self.replication(&target).await;
        self.clock(&mut wire).await?;
        let mut listing = catalog::list(&mut wire, &patterns).await?;
        if listing.tables.is_empty() && listing.refused.is_empty() {
            return Err(SourceError::NoTables(patterns.to_string()));
        }
        self.readable(&mut wire, &listing).await?;
        self.large_objects(&mut wire).await?;
        self.publication(&mut wire, &mut listing).await?;
        self.tables(&listing);
        listing.tables.retain(|_, table| table.selectable);
        self.sequences(&mut wire, &patterns, &listing).await?;
        self.statements(&mut wire).await
    }

    async fn wal_level(&mut self, wire: &mut Wire) -> Result<(), SourceError> {
        let rows = wire.query("read wal_level", "SHOW wal_level").await?;
        match rows.first().and_then(|row| row.optional(0)).unwrap_or_default() {
            "logical" => self.ok("wal_level", "logical"),
            other => self.error("wal_level", &SourceError::WalLevel(cut(other))),
        }
        Ok(())
    }

    /// Our slot, and room for one more while a new table's rows are read.
    async fn limits(&mut self, wire: &mut Wire) -> Result<(), SourceError> {
        let found = slot::look(wire, &self.names.slot).await?;
        let sql = "SELECT current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots), \
                   current_setting('max_wal_senders')::int8 - (SELECT count(*) FROM pg_stat_replication)";
        let rows = wire.query("count replication slots", sql).await?;
        let Some(row) = rows.first() else {
            return Ok(());
        };
        let (slots, senders): (i64, i64) = (row.parse_as(0)?, row.parse_as(1)?);
        let wanted = if found.is_some() { 1 } else { 2 };
        let seen = format!("{slots} and {senders} walsenders are free");
        match slots >= wanted && senders >= 2 {
            true => self.ok("replication slots", seen),
            false => self.problem(
                "replication slots",
                Cause::SlotLimit,
                format!(
                    "{slots} slots and {senders} walsenders are free; {wanted} and 2 are needed"
                ),
            ),
        }
        match found {
            Some(slot) if slot.wal_status == "lost" || slot.confirmed.is_none() => self.problem(
                "slot",
                Cause::SourceGap,
                format!("the server gave up the slot `{}`", self.names.slot),
            ),
            Some(slot) if slot.active => self.ok("slot", format!("`{}`, in use", self.names.slot)),
            Some(_) => self.ok("slot", format!("`{}`", self.names.slot)),
            None => self.ok("slot", format!("`{}` will be made", self.names.slot)),
        }
        Ok(())
    }

    /// Whether this role may replicate: by trying.
    async fn replication(&mut self, target: &Target) {
        let tried = async {
            let mut wire = target.open(Purpose::Replication).await?;
            slot::identify(&mut wire).await
        };
        match tried.await {
            Ok(server) => {
                let system = server.system_identifier;
                self.ok("replication", format!("system {system}, timeline {}", server.timeline));
            }
            Err(error) => {
                let role = identifier(&target.url.user);
                let what = format!("{error}; run: ALTER ROLE {role} REPLICATION");
                let cause = match error.cause() {
                    Cause::SourceUnreachable | Cause::SlotLimit => error.cause(),
                    _ => Cause::SourcePrivilege,
                };
                self.problem("replication", cause, what);
            }
        }
    }

    async fn clock(&mut self, wire: &mut Wire) -> Result<(), SourceError> {
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8";
        let rows = wire.query("read the server's clock", sql).await?;
        let Some(row) = rows.first() else {
            return Ok(());
        };
        let apart_ms = (SystemClock.wall().0 / 1000).saturating_sub(row.parse_as(0)?);
        let text = format!("{}.{:03} s", apart_ms / 1000, apart_ms.unsigned_abs() % 1000);
        match apart_ms.abs() <= CLOCK_APART_MS_MAX {
            true => self.ok("clock", format!("differs from the database's by {text}")),
            false => self.problem(
                "clock",
                Cause::ClockSkew,
                format!("this box's clock differs from the database's by {text}"),
            ),
        }
        Ok(())
    }

    /// SELECT on every table, USAGE on its schema.
    async fn readable(&mut self, wire: &mut Wire, listing: &Listing) -> Result<(), SourceError> {
        let role = self.role();
        let mut missing = vec![];
        let mut schemas: Vec<&str> =
            listing.tables.values().map(|table| table.schema.as_str()).collect();
        schemas.sort_unstable();
        schemas.dedup();
        for schema in schemas {
            let sql = format!("SELECT has_schema_privilege({}, 'USAGE')", literal(schema));
            let rows = wire.query("ask for privileges", &sql).await?;
            if !rows.first().is_some_and(|row| row.flag(0)) {
                missing.push(format!("GRANT USAGE ON SCHEMA {} TO {role}", identifier(schema)));
            }
        }
        let unreadable = listing.tables.values().filter(|table| !table.selectable);
        missing.extend(
            unreadable.map(|table| format!("GRANT SELECT ON {} TO {role}", table.quoted())),
        );
        match missing.is_empty() {
            true => self.ok("privileges", "all matching tables can be read"),
            false => {
                let what = format!("tables cannot be read; run: {}", missing.join("; "));
                self.problem("privileges", Cause::SourcePrivilege, what);
            }
        }
        Ok(())
    }

    /// SELECT on every sequence that goes with what is copied: once it is known what that is.
    async fn sequences(
        &mut self,
        wire: &mut Wire,
        patterns: &Patterns,
        listing: &Listing,
    ) -> Result<(), SourceError> {
        let role = own_url(self.config)?.user;
        match generators::count(wire, patterns, &listing.tables, &role).await {
            Ok((0, None)) => {}
            Ok((1, None)) => self.ok("sequences", "1 can be read"),
            Ok((all, None)) => self.ok("sequences", format!("all {all} can be read")),
            Ok((all, Some(what))) => {
                self.problem("sequences", Cause::SourcePrivilege, format!("of {all}, {what}"));
            }
            // It stops nothing in `run` either.
            Err(error @ SourceError::Server { .. }) => self.error("sequences", &error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// SELECT on every large object.
    async fn large_objects(&mut self, wire: &mut Wire) -> Result<(), SourceError> {
        if self.config.large_objects == config::LargeObjects::Leave {
            return Ok(());
        }
        let (all, closed) = large_objects::count(wire).await?;
        match (all, closed.grant(&own_url(self.config)?.user)) {
            (0, None) => {}
            (1, None) => self.ok("large objects", "1 can be read"),
            (all, None) => self.ok("large objects", format!("all {all} can be read")),
            (all, Some(what)) => {
                self.problem("large objects", Cause::SourcePrivilege, format!("of {all}, {what}"));
            }
        }
        Ok(())
    }

    /// An operator's publication as it is; for ours, the right to make it.
    async fn publication(
        &mut self,
        wire: &mut Wire,
        listing: &mut Listing,
    ) -> Result<(), SourceError> {
        let name = self.names.publication.clone();
        if self.names.append.is_none() {
            match publication::due(wire, &self.names, listing).await {
                Ok(_) => self.ok("publication", format!("`{name}`, an operator's")),
                Err(error) => self.error("publication", &error),
            }
            return Ok(());
        }
        let role = self.role();
        let mut missing = vec![];
        let sql = format!(
            "SELECT has_database_privilege(current_database(), 'CREATE'), quote_ident(current_database()), \
             EXISTS (SELECT FROM pg_publication WHERE pubname = {})",
            literal(&name)
        );
        let rows = wire.query("ask for privileges", &sql).await?;
        if let Some(row) = rows.first().filter(|row| !row.flag(0) && !row.flag(2)) {
            missing.push(format!("GRANT CREATE ON DATABASE {} TO {role}", row.text(1)?));
        }
        let ids: Vec<String> = listing.tables.keys().map(ToString::to_string).collect();
        let sql = format!(
            "SELECT EXISTS (SELECT FROM pg_class WHERE oid = ANY ('{{{}}}'::oid[]) AND NOT pg_has_role(relowner, 'USAGE')), \
             EXISTS (SELECT FROM pg_publication WHERE pubname = {} AND NOT pg_has_role(pubowner, 'USAGE'))",
            ids.join(","),
            literal(&name)
        );
        let rows = wire.query("ask for owners", &sql).await?;
        if rows.first().is_some_and(|row| row.flag(0) || row.flag(1)) {
            // Only an owner may publish a table.
            let tables = listing.tables.values().filter(|table| table.identified);
            let tables: Vec<_> = tables.map(|table| format!("ONLY {}", table.quoted())).collect();
            missing = vec![format!(
                "CREATE PUBLICATION lakehead FOR TABLE {} as the tables' owner, and set `publication = \"lakehead\"`",
                tables.join(", ")
            )];
        }
        match missing.is_empty() {
            true => self.ok("publication", format!("`{name}` can be made and kept up to date")),
            false => {
                let what = format!(
                    "this role cannot publish all matching tables; run: {}",
                    missing.join("; ")
                );
                self.problem("publication", Cause::SourcePrivilege, what);
            }
        }
        Ok(())
    }

    fn tables(&mut self, listing: &Listing) {
        match listing.tables.len() {
            0 => {}
            1 => self.ok("tables", "1 table matches"),
            count => self.ok("tables", format!("{count} tables match")),
        }
        for (table, refusal) in &listing.refused {
            self.problem("tables", refusal.cause, format!("{table}: {}", refusal.why));
        }
        for table in listing.tables.values().filter(|table| !table.identified) {
            let (name, why) = (table.qualified(), table.append_only());
            let what = format!("{name}: only inserts and truncates can be captured, as {why}");
            self.problem("tables", Cause::TableRefused, what);
        }
    }

    /// Whether statements of DDL are told in the stream. They need not be.
    async fn statements(&mut self, wire: &mut Wire) -> Result<(), SourceError> {
        let sql = "SELECT count(*) FROM pg_event_trigger WHERE evtname IN ('lakehead_statement', 'lakehead_drop') AND evtenabled IN ('O', 'A')";
        let rows = wire.query("look for event triggers", sql).await?;
        let found = rows.first().map_or(Ok(0), |row| row.parse_as::<i64>(0))?;
        let seen = match found {
            _ if wire.version() < MESSAGES_SINCE => {
                "not recorded: it takes PostgreSQL 14; what became of a table is seen at the next look at the catalog"
            }
            2 => "recorded, in `pg_lakehead.statements`",
            _ => {
                "not recorded: what became of a table is seen at the next look at the catalog; to have them recorded, as a superuser: lakehead check --ddl-script | psql"
            }
        };
        self.ok("DDL", seen);
        Ok(())
    }

    fn role(&self) -> String {
        own_url(self.config).map(|url| identifier(&url.user)).unwrap_or_default()
    }

    fn line(&self, check: &str) -> String {
        match check {
            "" => format!("source {}", self.config.name),
            check => format!("source {}: {check}", self.config.name),
        }
    }

    fn ok(&mut self, check: &str, seen: impl Into<String>) {
        self.findings.push(Finding::ok(self.line(check), seen));
    }

    fn problem(&mut self, check: &str, cause: Cause, what: impl Into<String>) {
        self.findings.push(Finding::problem(self.line(check), cause, what));
    }

    fn error(&mut self, check: &str, error: &SourceError) {
        self.findings.push(Finding::failed(self.line(check), error));
    }
}

/// The first version whose pgoutput gives logical messages.
const MESSAGES_SINCE: u32 = 140_000;
/// As S3 allows.
const CLOCK_APART_MS_MAX: i64 = 5 * 60 * 1000;
