//! Things used once: challenges, enrolment tokens, enrolment sessions. Each is removed by the statement
//! that reads it, so of two concurrent users exactly one finds it (SPEC 7.3, 7.6).

use coffer_attestation::protocol::HexBytes;
use coffer_attestation::{Digest, Nonce, ObjectName, Reject};
use serde::{Deserialize, Serialize};
use sqlx::Row as _;

use super::{Store, StoreError, int, uint};

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
    pub(crate) expires_at: u64,
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
        now: u64,
        ttl_s: u64,
    ) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM nonces WHERE expires_at < ?")
            .bind(int(now.saturating_sub(NONCE_MEMORY_S)))
            .execute(&self.pool)
            .await?;
        let done = sqlx::query(
            "INSERT INTO nonces (nonce, expires_at)
             SELECT ?, ? WHERE (SELECT count(*) FROM nonces WHERE expires_at >= ?) < ?",
        )
        .bind(nonce.as_bytes())
        .bind(int(now.saturating_add(ttl_s)))
        .bind(int(now))
        .bind(NONCES_MAX)
        .execute(&self.pool)
        .await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Full) }
    }

    /// Removes a challenge for good and says whether it was still good.
    pub(crate) async fn consume_nonce(
        &self,
        nonce: &Nonce,
        now: u64,
    ) -> Result<Result<(), Reject>, StoreError> {
        let row = sqlx::query("DELETE FROM nonces WHERE nonce = ? RETURNING expires_at")
            .bind(nonce.as_bytes())
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(Err(Reject::NonceConsumed)) };
        let expires_at = uint(row.try_get(0)?);
        Ok(if now <= expires_at { Ok(()) } else { Err(Reject::NonceExpired) })
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
        now: u64,
    ) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM enroll_sessions WHERE expires_at < ?")
            .bind(int(now))
            .execute(&self.pool)
            .await?;
        let identity = serde_json::to_string(&session.identity)
            .map_err(|_| StoreError::Damaged("enroll_sessions"))?;
        sqlx::query(
            "INSERT INTO enroll_sessions (id, nonce, proof_hash, identity, expires_at) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(id)
        .bind(session.nonce.as_bytes())
        .bind(session.proof_hash.as_bytes())
        .bind(identity)
        .bind(int(session.expires_at))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Removes a session for good, before anything in the answer to it is looked at.
    pub(crate) async fn take_session(&self, id: &str) -> Result<Option<EnrollSession>, StoreError> {
        let row = sqlx::query(
            "DELETE FROM enroll_sessions WHERE id = ? RETURNING nonce, proof_hash, identity, expires_at",
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
            expires_at: uint(row.try_get(3)?),
        }))
    }
}
