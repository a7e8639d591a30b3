//! What the service keeps: SQLite with a write-ahead log, one file per kind of row.
//!
//! Commits reach the disk before they count (`synchronous = FULL`): a power loss must neither bring a
//! consumed challenge back nor lose the log entry of a release that went out.

mod challenges;
mod decisions;
mod hosts;
mod references;
mod secrets;
mod vms;
mod writing;

use std::path::Path;
use std::time::Duration;

use coffer_attestation::Reject;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

pub(crate) use challenges::{EnrollSession, PendingIdentity, TokenUse};
pub(crate) use hosts::{HostClock, HostRow, ShownVault};
pub(crate) use secrets::{SecretMeta, StoredSecret};

/// The database.
#[derive(Clone)]
pub(crate) struct Store {
    pool: SqlitePool,
}

/// Why a row was not read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database refuses or is damaged.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// The tables could not be brought up to date.
    #[error("database: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A row does not hold what this build wrote.
    #[error("database: a row of `{0}` is damaged")]
    Damaged(&'static str),
    /// The row must not be written.
    #[error("{0}")]
    Refused(Reject),
    /// The decisions log took no row, so what it would have told of was undone.
    #[error("the decisions log refused: {0}")]
    Unlogged(String),
    /// More would be kept than there is a limit for.
    #[error("too many challenges are outstanding")]
    Full,
}

impl Store {
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .pragma("secure_delete", "ON")
            .pragma("trusted_schema", "OFF")
            .busy_timeout(Duration::from_secs(5));
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        sqlx::migrate!("./migrations").run(&pool).await?;
        Ok(Self { pool })
    }

    /// Waits for running statements and closes the file.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

/// SQLite integers are signed; times and counters of ours fit.
fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn uint(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
