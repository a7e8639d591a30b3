#!/bin/sh
# The database appliance's workload: makes a cluster on its volume if there is none, and runs it until SIGTERM.
# Started as root by coffer-init; PostgreSQL and what makes the cluster run as postgres.
set -eu

bin=/usr/lib/postgresql/15/bin
volume=/var/lib/postgresql
data=$volume/data
run=/run/postgresql
password=/run/coffer/secrets/database-password
as_postgres="setpriv --reuid=postgres --regid=postgres --clear-groups --no-new-privs --"

mkdir -p -m 0750 "$run"
chown postgres:postgres "$run" "$volume"

if [ ! -d "$data" ]; then
    # Under another name until it is whole and on the volume: one that was cut off is begun again.
    rm -rf "$data.new"
    (umask 077 && cat "$password" > "$run/password")
    chown postgres:postgres "$run/password"
    $as_postgres "$bin/initdb" -D "$data.new" -E UTF8 --locale=C.UTF-8 --data-checksums \
        --auth-local=peer --auth-host=scram-sha-256 --pwfile="$run/password"
    rm "$run/password"
    echo "host all all 0.0.0.0/0 scram-sha-256" >> "$data.new/pg_hba.conf"
    sync
    mv "$data.new" "$data"
    sync
fi

# SIGTERM would let PostgreSQL wait for its clients; SIGINT ends their sessions and shuts down at once.
server=
trap '[ -z "$server" ] || kill -INT "$server" 2>/dev/null || true' TERM
$as_postgres "$bin/postgres" -D "$data" -c listen_addresses='*' -c unix_socket_directories="$run" &
server=$!
status=0
while :; do
    wait "$server" && status=0 || status=$?
    # A signal ends the wait before the server has ended.
    kill -0 "$server" 2>/dev/null || break
done
exit "$status"
