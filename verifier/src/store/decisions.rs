//! The decisions log: append-only rows in a hash chain (SPEC 7.5).
//!
//! The chain shows that a row was altered, removed from the middle or put in later. A log that was cut
//! short shows only against a head noted elsewhere.

use coffer_attestation::Digest;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::writing::Writing;
use super::{Store, StoreError, int, uint};
use crate::api::{Decision, LogState};

const CHAIN_LABEL: &[u8] = b"coffer/decision/v1\0";
/// Refused evidence that is kept, 64 MiB at most: anybody can send some, so it must not fill the disk.
const REFUSED_EVIDENCE_MAX: i64 = 64;

impl Store {
    /// Appends one row, with the evidence it is about. When this returns, both are on disk.
    pub(crate) async fn append(
        &self,
        decision: &Decision,
        evidence: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let mut transaction = Writing::begin(&self.pool).await?;
        append_row(&mut transaction, decision).await?;
        if let Some(bytes) = evidence {
            // The same bytes may come again, as a replay; what was kept as released stays so.
            sqlx::query(
                "INSERT INTO evidence (digest, bytes, released, at) VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING",
            )
            .bind(Digest::of(&[bytes]).as_bytes())
            .bind(bytes)
            .bind(decision.allowed)
            .bind(int(decision.at))
            .execute(&mut *transaction)
            .await?;
            sqlx::query(
                "DELETE FROM evidence WHERE released = 0 AND digest NOT IN
                 (SELECT digest FROM evidence WHERE released = 0 ORDER BY at DESC, rowid DESC LIMIT ?)",
            )
            .bind(REFUSED_EVIDENCE_MAX)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// The newest rows with their positions, newest first.
    pub(crate) async fn decisions(&self, limit: u32) -> Result<Vec<(u64, Decision)>, StoreError> {
        let rows = sqlx::query("SELECT seq, record FROM decisions ORDER BY seq DESC LIMIT ?")
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| Ok((uint(row.try_get("seq")?), record(row)?))).collect()
    }

    pub(crate) async fn decision(&self, id: &str) -> Result<Option<Decision>, StoreError> {
        let row = sqlx::query("SELECT record FROM decisions WHERE id = ?")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(record).transpose()
    }

    pub(crate) async fn evidence(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let row = sqlx::query("SELECT bytes FROM evidence WHERE digest = ?")
            .bind(digest.as_bytes())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| row.try_get(0).map_err(StoreError::from)).transpose()
    }

    /// True if a secret was released for exactly these bytes.
    pub(crate) async fn was_released(&self, evidence: &Digest) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT 1 FROM evidence WHERE digest = ? AND released = 1")
            .bind(evidence.as_bytes())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.is_some())
    }

    /// Walks the whole chain.
    pub(crate) async fn log_state(&self) -> Result<LogState, StoreError> {
        /// Rows read at a time, so that a long log does not fill memory.
        const PAGE: i64 = 500;
        let mut state = LogState { rows: 0, head: Digest::ZERO, broken_at: None };
        loop {
            let rows = sqlx::query(
                "SELECT seq, record, prev, hash FROM decisions WHERE seq > ? ORDER BY seq LIMIT ?",
            )
            .bind(int(state.rows))
            .bind(PAGE)
            .fetch_all(&self.pool)
            .await?;
            if rows.is_empty() {
                return Ok(state);
            }
            for row in &rows {
                let seq = uint(row.try_get("seq")?);
                let (prev, hash) = (digest(row, "prev")?, digest(row, "hash")?);
                let text: String = row.try_get("record")?;
                let fits = seq == state.rows.saturating_add(1)
                    && prev == state.head
                    && hash == link(seq, &prev, &text);
                if !fits {
                    state.broken_at = Some(seq);
                    return Ok(state);
                }
                state.rows = seq;
                state.head = hash;
            }
        }
    }
}

/// Appends one row within a transaction that was begun as a writer's, so that no other row comes between.
pub(super) async fn append_row(
    connection: &mut SqliteConnection,
    decision: &Decision,
) -> Result<(), StoreError> {
    let record = serde_json::to_string(decision).map_err(|_| StoreError::Damaged("decisions"))?;
    let last = sqlx::query("SELECT seq, hash FROM decisions ORDER BY seq DESC LIMIT 1")
        .fetch_optional(&mut *connection)
        .await?;
    let (seq, prev) = match last {
        Some(row) => (uint(row.try_get(0)?).saturating_add(1), digest(&row, "hash")?),
        None => (1, Digest::ZERO),
    };
    sqlx::query("INSERT INTO decisions (seq, id, record, prev, hash) VALUES (?, ?, ?, ?, ?)")
        .bind(int(seq))
        .bind(&decision.id)
        .bind(&record)
        .bind(prev.as_bytes())
        .bind(link(seq, &prev, &record).as_bytes())
        .execute(&mut *connection)
        .await?;
    Ok(())
}

fn link(seq: u64, prev: &Digest, record: &str) -> Digest {
    Digest::of(&[CHAIN_LABEL, &seq.to_be_bytes(), prev.as_bytes(), record.as_bytes()])
}

fn digest(row: &SqliteRow, column: &str) -> Result<Digest, StoreError> {
    let bytes: Vec<u8> = row.try_get(column)?;
    Digest::from_slice(&bytes).ok_or(StoreError::Damaged("decisions"))
}

fn record(row: &SqliteRow) -> Result<Decision, StoreError> {
    let text: String = row.try_get("record")?;
    serde_json::from_str(&text).map_err(|_| StoreError::Damaged("decisions"))
}
