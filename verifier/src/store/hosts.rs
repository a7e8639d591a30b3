//! Enrolled hosts: an identity row that never changes and a clock row that only moves forward.

use coffer_attestation::claims::VaultClaim;
use coffer_attestation::{Digest, InstanceId, ObjectName, Reject};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::decisions::append_row;
use super::writing::Writing;
use super::{PendingIdentity, Store, StoreError, int, uint};
use crate::api::Decision;

/// An enrolled host.
pub(crate) struct HostRow {
    pub(crate) name: String,
    pub(crate) ak_name: ObjectName,
    pub(crate) ak_public: Vec<u8>,
    pub(crate) ek_digest: Digest,
    pub(crate) tpm_manufacturer: String,
    pub(crate) tpm_model: String,
    pub(crate) tpm_version: String,
    pub(crate) software_tpm: bool,
    pub(crate) enrolled_at: u64,
    pub(crate) clock: HostClock,
    pub(crate) last_seen: u64,
    /// The vault it showed with the last evidence that it got a secret for.
    pub(crate) vault: Option<InstanceId>,
    /// Unix seconds of that evidence.
    pub(crate) vault_seen: Option<u64>,
}

/// A vault that an enrolled host showed.
pub(crate) struct ShownVault {
    pub(crate) host: String,
    pub(crate) id: InstanceId,
    /// Unix seconds; rows from before that was noted have none.
    pub(crate) seen: Option<u64>,
}

/// clockInfo of the last accepted quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostClock {
    pub(crate) reset_count: u32,
    pub(crate) restart_count: u32,
    pub(crate) clock: u64,
}

impl Store {
    /// Refuses an identity that would take the place of another, before a credential is spent on it.
    pub(crate) async fn check_identity_free(
        &self,
        host: &str,
        ek: &Digest,
    ) -> Result<(), StoreError> {
        let rows = sqlx::query("SELECT name, ek_digest FROM hosts WHERE name = ? OR ek_digest = ?")
            .bind(host)
            .bind(ek.as_bytes())
            .fetch_all(&self.pool)
            .await?;
        let mut refused = None;
        for row in rows {
            let (name, digest): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            if name == host && digest != ek.as_bytes() {
                return Err(StoreError::Refused(Reject::IdentityImmutable));
            }
            refused = Some(StoreError::Refused(Reject::EkInUse));
        }
        refused.map_or(Ok(()), Err)
    }

    /// Adds a host together with the log row that says so: neither is ever there without the other.
    pub(crate) async fn add_host(
        &self,
        identity: &PendingIdentity,
        clock: HostClock,
        decision: &Decision,
    ) -> Result<(), StoreError> {
        let now = decision.at;
        let mut transaction = Writing::begin(&self.pool).await?;
        sqlx::query(
            "INSERT INTO hosts (name, ak_name, ak_public, ek_digest, ek_certificate, tpm_manufacturer,
             tpm_model, tpm_version, software_tpm, enrolled_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&identity.host)
        .bind(identity.ak_name.as_bytes())
        .bind(&identity.ak_public.0)
        .bind(identity.ek_digest.as_bytes())
        .bind(&identity.ek_certificate.0)
        .bind(&identity.tpm_manufacturer)
        .bind(&identity.tpm_model)
        .bind(&identity.tpm_version)
        .bind(identity.software_tpm)
        .bind(int(now))
        .execute(&mut *transaction)
        .await
        .map_err(taken)?;
        sqlx::query(
            "INSERT INTO host_clocks (ak_name, reset_count, restart_count, clock, last_seen) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(identity.ak_name.as_bytes())
        .bind(i64::from(clock.reset_count))
        .bind(i64::from(clock.restart_count))
        .bind(clock.clock.to_be_bytes().as_slice())
        .bind(int(now))
        .execute(&mut *transaction)
        .await?;
        append_row(&mut transaction, decision)
            .await
            .map_err(|error| StoreError::Unlogged(error.to_string()))?;
        transaction.commit().await?;
        Ok(())
    }

    pub(crate) async fn host_by_ak(
        &self,
        ak_name: &ObjectName,
    ) -> Result<Option<HostRow>, StoreError> {
        let row = sqlx::query(
            "SELECT h.name, h.ak_name, h.ak_public, h.ek_digest, h.tpm_manufacturer, h.tpm_model, h.tpm_version,
             h.software_tpm, h.enrolled_at, c.reset_count, c.restart_count, c.clock, c.last_seen,
             c.vault_id, c.vault_seen
             FROM hosts h JOIN host_clocks c USING (ak_name) WHERE h.ak_name = ?",
        )
        .bind(ak_name.as_bytes())
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(from_row).transpose()
    }

    pub(crate) async fn hosts(&self) -> Result<Vec<HostRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT h.name, h.ak_name, h.ak_public, h.ek_digest, h.tpm_manufacturer, h.tpm_model, h.tpm_version,
             h.software_tpm, h.enrolled_at, c.reset_count, c.restart_count, c.clock, c.last_seen,
             c.vault_id, c.vault_seen
             FROM hosts h JOIN host_clocks c USING (ak_name) ORDER BY h.name",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(from_row).collect()
    }

    /// Notes the vault that a host showed in evidence the policies released a secret to: a developer's host, or one without
    /// a chip, shows none that counts where they get nothing. It is believed for a while only, so it is noted when.
    pub(crate) async fn note_vault(
        &self,
        ak_name: &ObjectName,
        vault: Option<&VaultClaim>,
        now: u64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE host_clocks SET vault_id = ?, vault_key = ?, vault_seen = ? WHERE ak_name = ?",
        )
        .bind(vault.map(|vault| vault.id.0.to_vec()))
        .bind(vault.map(|vault| vault.transport_key.to_vec()))
        .bind(vault.map(|_| int(now)))
        .bind(ak_name.as_bytes())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Notes an accepted quote. Of quotes that overtook each other the latest stays.
    pub(crate) async fn note_quote(
        &self,
        ak_name: &ObjectName,
        clock: HostClock,
        now: u64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE host_clocks SET reset_count = ?, restart_count = ?, clock = ?, last_seen = ?
             WHERE ak_name = ? AND (reset_count, restart_count, clock) <= (?, ?, ?)",
        )
        .bind(i64::from(clock.reset_count))
        .bind(i64::from(clock.restart_count))
        .bind(clock.clock.to_be_bytes().as_slice())
        .bind(int(now))
        .bind(ak_name.as_bytes())
        .bind(i64::from(clock.reset_count))
        .bind(i64::from(clock.restart_count))
        .bind(clock.clock.to_be_bytes().as_slice())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// What enrolled hosts showed of a vault with this transport key, however long ago.
    pub(crate) async fn hosts_with_vault(
        &self,
        transport_key: &[u8; 65],
    ) -> Result<Vec<ShownVault>, StoreError> {
        let rows = sqlx::query(
            "SELECT h.name, c.vault_id, c.vault_seen FROM hosts h JOIN host_clocks c USING (ak_name)
             WHERE c.vault_key = ?",
        )
        .bind(transport_key.as_slice())
        .fetch_all(&self.pool)
        .await?;
        let shown = |row: &SqliteRow| {
            let seen = row.try_get::<Option<i64>, _>(2)?.map(uint);
            Ok(ShownVault { host: row.try_get(0)?, id: vault_id(row.try_get(1)?)?, seen })
        };
        rows.iter().map(shown).collect()
    }

    /// True if there was such a host.
    pub(crate) async fn remove_host(&self, name: &str) -> Result<bool, StoreError> {
        let done =
            sqlx::query("DELETE FROM hosts WHERE name = ?").bind(name).execute(&self.pool).await?;
        Ok(done.rows_affected() == 1)
    }
}

fn from_row(row: &SqliteRow) -> Result<HostRow, StoreError> {
    let damaged = || StoreError::Damaged("hosts");
    let (ak_name, ek_digest, clock): (Vec<u8>, Vec<u8>, Vec<u8>) =
        (row.try_get("ak_name")?, row.try_get("ek_digest")?, row.try_get("clock")?);
    let count = |column: &str| -> Result<u32, StoreError> {
        u32::try_from(row.try_get::<i64, _>(column)?).map_err(|_| damaged())
    };
    Ok(HostRow {
        name: row.try_get("name")?,
        ak_name: ObjectName::from_slice(&ak_name).ok_or_else(damaged)?,
        ak_public: row.try_get("ak_public")?,
        ek_digest: Digest::from_slice(&ek_digest).ok_or_else(damaged)?,
        tpm_manufacturer: row.try_get("tpm_manufacturer")?,
        tpm_model: row.try_get("tpm_model")?,
        tpm_version: row.try_get("tpm_version")?,
        software_tpm: row.try_get("software_tpm")?,
        enrolled_at: uint(row.try_get("enrolled_at")?),
        clock: HostClock {
            reset_count: count("reset_count")?,
            restart_count: count("restart_count")?,
            clock: u64::from_be_bytes(clock.try_into().map_err(|_| damaged())?),
        },
        last_seen: uint(row.try_get("last_seen")?),
        vault: row.try_get::<Option<Vec<u8>>, _>("vault_id")?.map(vault_id).transpose()?,
        vault_seen: row.try_get::<Option<i64>, _>("vault_seen")?.map(uint),
    })
}

fn vault_id(bytes: Vec<u8>) -> Result<InstanceId, StoreError> {
    bytes.try_into().map(InstanceId).map_err(|_| StoreError::Damaged("host_clocks"))
}

/// Two enrolments that ran side by side: the unique columns let one through.
fn taken(error: sqlx::Error) -> StoreError {
    let Some(database) = error.as_database_error().filter(|e| e.is_unique_violation()) else {
        return error.into();
    };
    let reject = if database.message().contains("hosts.name") {
        Reject::IdentityImmutable
    } else {
        Reject::EkInUse
    };
    StoreError::Refused(reject)
}
