//! Things used once: challenges, enrolment tokens, enrolment sessions. Each is removed by the statement
//! that reads it, so of two concurrent users exactly one finds it (SPEC 7.3, 7.6).

use coffer_attestation::protocol::HexBytes;
use coffer_attestation::{Digest, Nonce, ObjectName, Reject};
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::{Store, StoreError, int, uint};
use crate::clock::Moment;

/// Most challenges outstanding: at 120 s each, some 160 guests asking per second.
const NONCES_MAX: i64 = 20_000;
/// How long an expired challenge is remembered as expired rather than unknown.
const NONCE_MEMORY_S: u64 = 600;

/// What became of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenUse {
    /// Spent, for this host and in time.
    Good,
    /// Spent, though made for another host or expired.
    Refused,
    /// Nobody gave it out, or it was spent before.
    Unknown,
}

/// An enrolment that was begun.
pub(crate) struct EnrollSession {
    pub(crate) nonce: Nonce,
    /// SHA-256 of the proof that completes it.
    pub(crate) proof_hash: Digest,
    pub(crate) identity: PendingIdentity,
    /// When it began.
    pub(crate) given: Moment,
}

/// An identity that is not enrolled yet.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct PendingIdentity {
    pub(crate) host: String,
    pub(crate) ak_name: ObjectName,
    pub(crate) ak_public: HexBytes,
    pub(crate) ek_digest: Digest,
    pub(crate) ek_certificate: HexBytes,
    pub(crate) tpm_manufacturer: String,
    pub(crate) tpm_model: String,
    pub(crate) tpm_version: String,
    pub(crate) software_tpm: bool,
    /// What the judgement of its certificates tolerated, for the log row.
    #[serde(default)]
    pub(crate) endorsement_remarks: Vec<String>,
}

impl Store {
    pub(crate) async fn put_nonce(
        &self,
        nonce: &Nonce,
        now: &Moment,
        ttl_s: u64,
    ) -> Result<(), StoreError> {
        self.forget_before(now, NONCE_MEMORY_S).await?;
        sqlx::query("DELETE FROM nonces WHERE run = ? AND steady < ?")
            .bind(&now.run[..])
            .bind(int(now.steady.saturating_sub(NONCE_MEMORY_S)))
            .execute(&self.pool)
            .await?;
        let done = sqlx::query(
            "INSERT INTO nonces (nonce, given_at, run, steady)
             SELECT ?, ?, ?, ? WHERE (SELECT count(*) FROM nonces WHERE run <> ? OR steady >= ?) < ?",
        )
        .bind(nonce.as_bytes())
        .bind(int(now.wall))
        .bind(&now.run[..])
        .bind(int(now.steady))
        .bind(&now.run[..])
        .bind(int(now.steady.saturating_sub(ttl_s)))
        .bind(NONCES_MAX)
        .execute(&self.pool)
        .await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Full) }
    }

    /// Removes a challenge for good and says whether it was still good.
    pub(crate) async fn consume_nonce(
        &self,
        nonce: &Nonce,
        now: &Moment,
        ttl_s: u64,
    ) -> Result<Result<(), Reject>, StoreError> {
        let row = sqlx::query("DELETE FROM nonces WHERE nonce = ? RETURNING given_at, run, steady")
            .bind(nonce.as_bytes())
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(Err(Reject::NonceConsumed)) };
        let good = now.is_within(ttl_s, &moment(&row, "nonces")?);
        Ok(if good { Ok(()) } else { Err(Reject::NonceExpired) })
    }

    /// Forgets what earlier processes gave out and nobody can use any more.
    pub(crate) async fn forget_before(&self, now: &Moment, ttl_s: u64) -> Result<(), StoreError> {
        for table in ["nonces", "enroll_sessions"] {
            let statement =
                format!("DELETE FROM {table} WHERE run <> ? AND (given_at < ? OR given_at > ?)");
            sqlx::query(sqlx::AssertSqlSafe(statement))
                .bind(&now.run[..])
                .bind(int(now.wall.saturating_sub(ttl_s)))
                .bind(int(now.wall))
                .execute(&self.pool)
                .await?;
        }
        Ok(())
    }

    pub(crate) async fn put_token(
        &self,
        hash: &Digest,
        host: &str,
        expires_at: u64,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO enroll_tokens (token_hash, host, expires_at) VALUES (?, ?, ?)")
            .bind(hash.as_bytes())
            .bind(host)
            .bind(int(expires_at))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Removes a token for good and says whether it enrols this host now.
    pub(crate) async fn consume_token(
        &self,
        hash: &Digest,
        host: &str,
        now: u64,
    ) -> Result<TokenUse, StoreError> {
        let row = sqlx::query(
            "DELETE FROM enroll_tokens WHERE token_hash = ? RETURNING host, expires_at",
        )
        .bind(hash.as_bytes())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(TokenUse::Unknown) };
        let (named, expires_at): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        Ok(if named == host && now <= uint(expires_at) {
            TokenUse::Good
        } else {
            TokenUse::Refused
        })
    }

    pub(crate) async fn put_session(
        &self,
        id: &str,
        session: &EnrollSession,
        ttl_s: u64,
    ) -> Result<(), StoreError> {
        let given = &session.given;
        sqlx::query("DELETE FROM enroll_sessions WHERE run = ? AND steady < ?")
            .bind(&given.run[..])
            .bind(int(given.steady.saturating_sub(ttl_s)))
            .execute(&self.pool)
            .await?;
        let identity = serde_json::to_string(&session.identity)
            .map_err(|_| StoreError::Damaged("enroll_sessions"))?;
        sqlx::query(
            "INSERT INTO enroll_sessions (id, nonce, proof_hash, identity, given_at, run, steady)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(id)
        .bind(session.nonce.as_bytes())
        .bind(session.proof_hash.as_bytes())
        .bind(identity)
        .bind(int(given.wall))
        .bind(&given.run[..])
        .bind(int(given.steady))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Removes a session for good, before anything in the answer to it is looked at.
    pub(crate) async fn take_session(&self, id: &str) -> Result<Option<EnrollSession>, StoreError> {
        let row = sqlx::query(
            "DELETE FROM enroll_sessions WHERE id = ?
             RETURNING nonce, proof_hash, identity, given_at, run, steady",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let damaged = || StoreError::Damaged("enroll_sessions");
        let (nonce, proof_hash): (Vec<u8>, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let identity: String = row.try_get(2)?;
        Ok(Some(EnrollSession {
            nonce: Nonce::from_slice(&nonce).ok_or_else(damaged)?,
            proof_hash: Digest::from_slice(&proof_hash).ok_or_else(damaged)?,
            identity: serde_json::from_str(&identity).map_err(|_| damaged())?,
            given: moment(&row, "enroll_sessions")?,
        }))
    }
}

/// The moment a row was given out.
fn moment(row: &SqliteRow, table: &'static str) -> Result<Moment, StoreError> {
    let run: Vec<u8> = row.try_get("run")?;
    Ok(Moment {
        wall: uint(row.try_get("given_at")?),
        steady: uint(row.try_get("steady")?),
        run: run.try_into().map_err(|_| StoreError::Damaged(table))?,
    })
}
