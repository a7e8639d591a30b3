//! Host builds the operator accepts.

use coffer_attestation::appraisal::HostReference;
use sqlx::Row as _;

use super::{Store, StoreError};

impl Store {
    pub(crate) async fn put_reference(&self, reference: &HostReference) -> Result<(), StoreError> {
        let json =
            serde_json::to_string(reference).map_err(|_| StoreError::Damaged("host_references"))?;
        sqlx::query(
            "INSERT INTO host_references (name, reference) VALUES (?, ?)
             ON CONFLICT (name) DO UPDATE SET reference = excluded.reference",
        )
        .bind(&reference.name)
        .bind(json)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(crate) async fn references(&self) -> Result<Vec<HostReference>, StoreError> {
        let rows = sqlx::query("SELECT reference FROM host_references ORDER BY name")
            .fetch_all(&self.pool)
            .await?;
        let mut references = Vec::new();
        for row in rows {
            let json: String = row.try_get(0)?;
            references.push(
                serde_json::from_str(&json).map_err(|_| StoreError::Damaged("host_references"))?,
            );
        }
        Ok(references)
    }

    /// True if there was such a reference value.
    pub(crate) async fn remove_reference(&self, name: &str) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM host_references WHERE name = ?")
            .bind(name)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() == 1)
    }
}
