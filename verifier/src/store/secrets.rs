//! Secrets, encrypted; the row's id and version are bound into the ciphertext.

use std::collections::BTreeSet;

use coffer_attestation::Digest;
use coffer_policies::ResourceId;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::decisions::append_row;
use super::writing::Writing;
use super::{Store, StoreError, int, uint};
use crate::api::Decision;

/// What is known of a secret without its value.
#[derive(Clone)]
pub(crate) struct SecretMeta {
    pub(crate) id: ResourceId,
    pub(crate) version: u64,
    pub(crate) images: BTreeSet<Digest>,
}

/// A secret with its ciphertext.
pub(crate) struct StoredSecret {
    pub(crate) meta: SecretMeta,
    pub(crate) sealed: Vec<u8>,
}

impl Store {
    /// Stores the next version together with the log row that says so: neither is ever there without the other.
    /// `seal` is told the version's number.
    pub(crate) async fn put_secret<E: From<StoreError>>(
        &self,
        id: &ResourceId,
        images: &BTreeSet<Digest>,
        decision: &Decision,
        seal: impl FnOnce(u64) -> Result<Vec<u8>, E>,
    ) -> Result<u64, E> {
        let database = |e: sqlx::Error| E::from(e.into());
        let unlogged = |e: StoreError| E::from(StoreError::Unlogged(e.to_string()));
        let mut transaction = Writing::begin(&self.pool).await.map_err(database)?;
        let last = sqlx::query("SELECT version FROM secrets WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&mut *transaction)
            .await
            .map_err(database)?;
        let last = match last {
            Some(row) => uint(row.try_get(0).map_err(database)?),
            None => 0,
        };
        let version = last.saturating_add(1);
        let sealed = seal(version)?;
        let images =
            serde_json::to_string(images).map_err(|_| E::from(StoreError::Damaged("secrets")))?;
        sqlx::query(
            "INSERT INTO secrets (id, version, sealed, images, changed_at) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET version = excluded.version, sealed = excluded.sealed,
             images = excluded.images, changed_at = excluded.changed_at",
        )
        .bind(id.as_str())
        .bind(int(version))
        .bind(sealed)
        .bind(images)
        .bind(int(decision.at))
        .execute(&mut *transaction)
        .await
        .map_err(|e| unlogged(e.into()))?;
        append_row(&mut transaction, decision).await.map_err(unlogged)?;
        transaction.commit().await.map_err(|e| unlogged(e.into()))?;
        Ok(version)
    }

    pub(crate) async fn secret(&self, id: &ResourceId) -> Result<Option<StoredSecret>, StoreError> {
        let row = sqlx::query(
            "SELECT id, version, images, sealed FROM secrets WHERE id = ? AND sealed IS NOT NULL",
        )
        .bind(id.as_str())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(StoredSecret { meta: meta(&row)?, sealed: row.try_get("sealed")? }))
    }

    pub(crate) async fn secrets(&self) -> Result<Vec<SecretMeta>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, version, images FROM secrets WHERE sealed IS NOT NULL ORDER BY id",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(meta).collect()
    }

    /// True if there was such a secret.
    pub(crate) async fn remove_secret(
        &self,
        id: &ResourceId,
        now: u64,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE secrets SET sealed = NULL, images = '[]', changed_at = ? WHERE id = ? AND sealed IS NOT NULL",
        )
        .bind(int(now))
        .bind(id.as_str())
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}

fn meta(row: &SqliteRow) -> Result<SecretMeta, StoreError> {
    let damaged = || StoreError::Damaged("secrets");
    let (id, images): (String, String) = (row.try_get("id")?, row.try_get("images")?);
    Ok(SecretMeta {
        id: ResourceId::try_from(id).map_err(|_| damaged())?,
        version: uint(row.try_get("version")?),
        images: serde_json::from_str(&images).map_err(|_| damaged())?,
    })
}
