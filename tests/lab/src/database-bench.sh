#!/bin/sh
# The workload of `cargo xtask bench disk`: makes a cluster on the volume, and asks it with pgbench.
set -eu

bin=/usr/lib/postgresql/15/bin
volume=/var/lib/postgresql
run=/run/postgresql
as_postgres="setpriv --reuid=postgres --regid=postgres --clear-groups --no-new-privs --"

mkdir -p -m 0755 "$run"
chown postgres:postgres "$run" "$volume"
# Storage that the host has given already, as dm-crypt's is once it is made: what a file costs to grow is not measured.
dd if=/dev/zero of="$volume/all" bs=1M 2>/dev/null || sync
rm "$volume/all"
$as_postgres "$bin/initdb" -D "$volume/data" -E UTF8 --locale=C.UTF-8 --auth=trust --no-sync >/dev/null
sync
$as_postgres "$bin/postgres" -D "$volume/data" -c listen_addresses= -c unix_socket_directories="$run" \
    -c max_wal_size=64MB &
server=$!
until "$bin/pg_isready" -q -h "$run"; do sleep 1; done
pgbench="$as_postgres $bin/pgbench -h $run"
$pgbench -i -q -s 4 postgres
for round in 1 2 3; do
    $pgbench -n -c 4 -T 20 postgres
done
kill -INT "$server"
wait "$server" || true
