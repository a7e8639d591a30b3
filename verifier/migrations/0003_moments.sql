-- What is good for a while says when it was given out, by both clocks (SPEC 7.6). Nothing here lives longer than
-- minutes: whoever holds an old one asks again.
DROP TABLE nonces;
CREATE TABLE nonces (
    nonce BLOB NOT NULL PRIMARY KEY,
    given_at INTEGER NOT NULL,
    -- The process that gave it out, and its own seconds.
    run BLOB NOT NULL,
    steady INTEGER NOT NULL
) STRICT;
CREATE INDEX nonces_by_moment ON nonces (run, steady);

DROP TABLE enroll_sessions;
CREATE TABLE enroll_sessions (
    id TEXT NOT NULL PRIMARY KEY,
    nonce BLOB NOT NULL,
    proof_hash BLOB NOT NULL,
    identity TEXT NOT NULL,
    given_at INTEGER NOT NULL,
    run BLOB NOT NULL,
    steady INTEGER NOT NULL
) STRICT;
