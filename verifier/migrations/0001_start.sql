-- The verifier's tables (SPEC 7). Times are Unix seconds.

-- Identities. A row is made once and never changed; another TPM under the same name needs a removal first.
CREATE TABLE hosts (
    name TEXT NOT NULL PRIMARY KEY,
    ak_name BLOB NOT NULL UNIQUE,
    ak_public BLOB NOT NULL,
    ek_digest BLOB NOT NULL UNIQUE,
    ek_certificate BLOB NOT NULL,
    tpm_manufacturer TEXT NOT NULL,
    tpm_model TEXT NOT NULL,
    tpm_version TEXT NOT NULL,
    software_tpm INTEGER NOT NULL,
    enrolled_at INTEGER NOT NULL
) STRICT;

CREATE TRIGGER hosts_are_immutable BEFORE UPDATE ON hosts
BEGIN SELECT RAISE(ABORT, 'identity rows are immutable'); END;

-- What changes with every accepted quote. The clock is 8 bytes, big-endian, so that it compares as a number.
CREATE TABLE host_clocks (
    ak_name BLOB NOT NULL PRIMARY KEY REFERENCES hosts (ak_name) ON DELETE CASCADE,
    reset_count INTEGER NOT NULL,
    restart_count INTEGER NOT NULL,
    clock BLOB NOT NULL,
    last_seen INTEGER NOT NULL
) STRICT;

-- One-time enrolment tokens, by hash.
CREATE TABLE enroll_tokens (
    token_hash BLOB NOT NULL PRIMARY KEY,
    host TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

-- Enrolments begun. The expected proof is kept as a hash; the secret itself is not kept.
CREATE TABLE enroll_sessions (
    id TEXT NOT NULL PRIMARY KEY,
    nonce BLOB NOT NULL,
    proof_hash BLOB NOT NULL,
    identity TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

-- Challenges given out and not yet used.
CREATE TABLE nonces (
    nonce BLOB NOT NULL PRIMARY KEY,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX nonces_by_expiry ON nonces (expires_at);

-- Newest version of each secret, encrypted. A removed secret keeps its row without a value, so that a
-- version number is never used twice.
CREATE TABLE secrets (
    id TEXT NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    sealed BLOB,
    images TEXT NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT;

-- Host builds that are accepted, as JSON.
CREATE TABLE host_references (
    name TEXT NOT NULL PRIMARY KEY,
    reference TEXT NOT NULL
) STRICT;

-- The decisions log: hash = SHA-256("coffer/decision/v1" NUL | u64 seq, big-endian | prev | record).
CREATE TABLE decisions (
    seq INTEGER NOT NULL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    record TEXT NOT NULL,
    prev BLOB NOT NULL,
    hash BLOB NOT NULL
) STRICT;

CREATE TRIGGER decisions_are_not_changed BEFORE UPDATE ON decisions
BEGIN SELECT RAISE(ABORT, 'the decisions log is append-only'); END;
CREATE TRIGGER decisions_are_not_removed BEFORE DELETE ON decisions
BEGIN SELECT RAISE(ABORT, 'the decisions log is append-only'); END;

-- Evidence as received, by its digest, which the log names. Of refused evidence only the newest is kept.
CREATE TABLE evidence (
    digest BLOB NOT NULL PRIMARY KEY,
    bytes BLOB NOT NULL,
    released INTEGER NOT NULL,
    at INTEGER NOT NULL
) STRICT;
