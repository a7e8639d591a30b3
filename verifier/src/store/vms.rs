//! The ledger of VM identities: one row for each, written when evidence of it, or of a later launch of it, is first
//! accepted (SPEC 7.8).

use coffer_attestation::appraisal::{Appraisal, Refusal};
use coffer_attestation::ledger::{self, Current, Entry};
use coffer_attestation::{InstanceId, ObjectName};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::writing::Writing;
use super::{Store, StoreError, int, uint};

impl Store {
    /// Judges accepted evidence against the ledger, and enters its VM if the ledger does not know it, in one
    /// transaction: of two holders that come at once one is refused.
    pub(crate) async fn hold_identity(
        &self,
        appraisal: Appraisal,
        now: u64,
    ) -> Result<Result<Current, Refusal>, StoreError> {
        let claimant = Entry::of(appraisal.facts());
        let mut transaction = Writing::begin(&self.pool).await?;
        let rows = sqlx::query(
            "SELECT instance_id, hak_name, vak_name, incarnation FROM vms
             WHERE instance_id = ? OR vak_name = ?",
        )
        .bind(claimant.instance_id.as_bytes())
        .bind(claimant.vak_name.as_bytes())
        .fetch_all(&mut *transaction)
        .await?;
        let known = rows.iter().map(from_row).collect::<Result<Vec<_>, _>>()?;
        let verdict = ledger::judge(appraisal, &known);
        if verdict.is_ok() && !known.contains(&claimant) {
            // A vTPM that lasts: its launch before has nothing to say from here on.
            sqlx::query("DELETE FROM vms WHERE vak_name = ?")
                .bind(claimant.vak_name.as_bytes())
                .execute(&mut *transaction)
                .await?;
            sqlx::query(
                "INSERT INTO vms (instance_id, hak_name, vak_name, incarnation, first_seen)
                 VALUES (?, ?, ?, ?, ?)",
            )
            .bind(claimant.instance_id.as_bytes())
            .bind(claimant.hak_name.as_bytes())
            .bind(claimant.vak_name.as_bytes())
            .bind(int(claimant.incarnation))
            .bind(int(now))
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(verdict)
    }
}

fn from_row(row: &SqliteRow) -> Result<Entry, StoreError> {
    let damaged = || StoreError::Damaged("vms");
    let bytes = |column: &str| row.try_get::<Vec<u8>, _>(column);
    Ok(Entry {
        instance_id: InstanceId::from_slice(&bytes("instance_id")?).ok_or_else(damaged)?,
        hak_name: ObjectName::from_slice(&bytes("hak_name")?).ok_or_else(damaged)?,
        vak_name: ObjectName::from_slice(&bytes("vak_name")?).ok_or_else(damaged)?,
        incarnation: uint(row.try_get("incarnation")?),
    })
}
