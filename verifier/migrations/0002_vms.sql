-- The ledger of VM identities (SPEC 7.8): the one live holder of each.
CREATE TABLE vms (
    instance_id BLOB NOT NULL PRIMARY KEY,
    hak_name BLOB NOT NULL,
    vak_name BLOB NOT NULL UNIQUE,
    incarnation INTEGER NOT NULL,
    first_seen INTEGER NOT NULL
) STRICT;
