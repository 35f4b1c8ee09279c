//! A shop that is open all day: inserts, updates, deletes, in tables of mixed types, from a seed.
//!
//! What it does is in [`steps`], on what tables in [`schema`]; this file paces and counts it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;
use tokio_postgres::{Client, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;

use self::steps::{Effect, Script, Session};
use super::cluster::{ClusterError, connect};
use crate::shutdown::Tasks;

pub mod schema;
pub mod steps;

/// How many rows the tables begin with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rows {
    /// `customers`
    pub customers: u64,
    /// `orders`
    pub orders: u64,
    /// `events`
    pub events: u64,
    /// `documents`, of 55 kB on average
    pub documents: u64,
    /// Each of the other tables.
    pub others: u64,
    /// Keys that earlier runs of a session may have made since: a run begins behind them.
    pub made: u64,
}

/// The workload.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Where, as role `shop`.
    pub url: String,
    /// That role's password.
    pub password: String,
    /// Decides every choice.
    pub seed: u64,
    /// Sessions at once.
    pub sessions: u32,
    /// Transactions per second, of all sessions together.
    pub transactions_per_s: f64,
    /// What the tables began with.
    pub rows: Rows,
}

/// What has been done.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Done {
    /// Transactions, those rolled back included.
    pub transactions: u64,
    /// Rows inserted.
    pub inserted: u64,
    /// Rows updated.
    pub updated: u64,
    /// Rows deleted.
    pub deleted: u64,
    /// Tables emptied.
    pub truncated: u64,
}

/// Counts what all sessions do.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Mutex<Done>>);

impl Rows {
    /// Rows that take about `bytes` on disk.
    pub fn of(bytes: u64) -> Self {
        Self {
            customers: (bytes / 8_000).max(100),
            orders: (bytes / 1_400).max(300),
            events: (bytes / 1_100).max(300),
            documents: (bytes / 200_000).max(12),
            others: (bytes / 100_000).clamp(60, 20_000),
            made: 0,
        }
    }

    /// All rows, those of the table that is not copied excluded.
    pub fn total(&self) -> u64 {
        self.customers + self.orders + self.events + self.documents + 5 * self.others
    }
}

impl Tally {
    /// What has been done so far.
    pub fn read(&self) -> Done {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, effects: &[Effect], affected: &[u64]) {
        let mut done = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        done.transactions += 1;
        for (effect, rows) in effects.iter().zip(affected) {
            match effect {
                Effect::Insert => done.inserted += rows,
                Effect::Update => done.updated += rows,
                Effect::Delete => done.deleted += rows,
                Effect::Truncate => done.truncated += 1,
                Effect::Nothing => {}
            }
        }
    }
}

impl Workload {
    /// Makes the tables and fills them.
    ///
    /// # Errors
    ///
    /// What the server said; the tables may be there in part.
    pub async fn prepare(&self, tasks: &Tasks) -> Result<(), ClusterError> {
        let client = connect(&self.url, &self.password, tasks).await?;
        for sql in [schema::TABLES, &schema::wide(), &schema::initial(&self.rows)] {
            let ran = client.batch_execute(sql).await;
            ran.map_err(|why| ClusterError::Sql { what: "prepare the workload", why })?;
        }
        Ok(())
    }

    /// Works until `stop`, each session in its own pace; what is begun is finished.
    ///
    /// # Errors
    ///
    /// The first that a session met; the others have stopped.
    pub async fn run(
        &self,
        tally: &Tally,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Result<(), ClusterError> {
        let own = &stop.child_token();
        let sessions = (0..self.sessions).map(|slot| async move {
            let result = self.session(slot, tally, tasks, own).await;
            if result.is_err() {
                own.cancel();
            }
            result
        });
        futures_util::future::join_all(sessions).await.into_iter().collect()
    }

    /// One transaction that is larger than any queue.
    ///
    /// # Errors
    ///
    /// What the server said.
    pub async fn large(&self, rows: u64, tally: &Tally, tasks: &Tasks) -> Result<(), ClusterError> {
        let client = connect(&self.url, &self.password, tasks).await?;
        let mut session = Session::new(self.seed, 0, 1, self.rows);
        execute(&client, &session.large(rows), tally).await
    }

    async fn session(
        &self,
        slot: u32,
        tally: &Tally,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Result<(), ClusterError> {
        let client = connect(&self.url, &self.password, tasks).await?;
        let of = u64::from(self.sessions);
        let mut session = Session::new(self.seed, u64::from(slot), of, self.rows);
        let pace = f64::from(self.sessions) / self.transactions_per_s.max(0.01);
        let mut pace = tokio::time::interval(Duration::from_secs_f64(pace));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(pace.tick()).await.is_some() {
            execute(&client, &session.transaction(), tally).await?;
        }
        Ok(())
    }
}

/// Commits one row to the table `mark`, so that the change stream moves beyond what was there before.
///
/// # Errors
///
/// What the server said.
pub async fn mark(client: &Client) -> Result<(), ClusterError> {
    let marked = client.batch_execute("INSERT INTO mark VALUES (clock_timestamp())").await;
    marked.map_err(|why| ClusterError::Sql { what: "mark the end", why })
}

async fn execute(client: &Client, script: &Script, tally: &Tally) -> Result<(), ClusterError> {
    let ran = client.simple_query(&script.sql).await;
    let messages = ran.map_err(|why| ClusterError::Sql { what: "work", why })?;
    let affected: Vec<u64> = messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
            _ => None,
        })
        .collect();
    tally.count(&script.effects, &affected);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::cluster::{Cluster, ClusterOptions};

    #[tokio::test]
    async fn the_shop_counts_what_the_server_counts() {
        let dir = tempfile::tempdir().unwrap();
        let options = ClusterOptions { dir: dir.path().join("c"), ..ClusterOptions::default() };
        let cluster = Cluster::create(&options).unwrap();
        let tasks = Tasks::new();
        let admin = cluster.connect("postgres", &tasks).await.unwrap();
        admin.batch_execute(&schema::roles("a", "b")).await.unwrap();
        admin.batch_execute(&schema::grants("postgres")).await.unwrap();
        let workload = Workload {
            url: cluster.url("shop", "postgres"),
            password: "a".into(),
            seed: 3,
            sessions: 3,
            transactions_per_s: 1e4,
            rows: Rows::of(500_000),
        };
        workload.prepare(&tasks).await.unwrap();
        let rows = "SELECT (SELECT count(*) FROM orders) + (SELECT count(*) FROM events) + (SELECT count(*) FROM documents)
            + (SELECT count(*) FROM audit)";
        let before: i64 = admin.query_one(rows, &[]).await.unwrap().get(0);
        let (tally, stop) = (Tally::default(), CancellationToken::new());
        let until = async {
            while tally.read().truncated == 0 && !tasks.token().is_cancelled() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            stop.cancel();
        };
        let work = async {
            let ran = workload.run(&tally, &tasks, &stop).await;
            ran.inspect_err(|_| tasks.token().cancel())
        };
        let (ran, ()) = tokio::join!(work, until);
        ran.unwrap();
        workload.large(5000, &tally, &tasks).await.unwrap();
        mark(&admin).await.unwrap();
        let after: i64 = admin.query_one(rows, &[]).await.unwrap().get(0);
        let done = tally.read();
        assert!(done.transactions > 500 && done.updated > 100 && done.deleted > 10, "{done:?}");
        let grown = u64::try_from(after - before).unwrap();
        assert!(grown <= done.inserted - done.deleted, "{grown} {done:?}");
        drop(admin);
        cluster.remove().unwrap();
        tasks.stop().await;
    }
}
