-- When the host showed that vault: it is believed for a while only (SPEC 7.5.1). Rows from before do not say, and count as
-- never shown.
ALTER TABLE host_clocks ADD COLUMN vault_seen INTEGER;
