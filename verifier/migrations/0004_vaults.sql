-- The vault that a host showed in the last evidence that it got a secret for: whom a permit or a grant may name (SPEC 7.5.1).
ALTER TABLE host_clocks ADD COLUMN vault_id BLOB;
ALTER TABLE host_clocks ADD COLUMN vault_key BLOB;
CREATE INDEX host_clocks_by_vault ON host_clocks (vault_key);
