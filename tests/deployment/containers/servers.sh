#!/bin/sh
# The entry point of Debian's PostgreSQL and Redis: as much of the official images' as compose.yaml asks for.
set -e
case "$1" in
postgres)
    shift
    bin=$(echo /usr/lib/postgresql/*/bin)
    data=/var/lib/postgresql/data
    install -d -o postgres -m 700 "$data" /var/run/postgresql
    as="setpriv --reuid=postgres --regid=postgres --init-groups"
    if [ ! -s "$data/PG_VERSION" ]; then
        password=$(mktemp)
        printf %s "$POSTGRES_PASSWORD" > "$password"
        chown postgres "$password"
        $as "$bin/initdb" -D "$data" -U "$POSTGRES_USER" -E UTF8 \
            --auth-local=trust --auth-host=scram-sha-256 --pwfile="$password"
        rm "$password"
        echo "host all all all scram-sha-256" >> "$data/pg_hba.conf"
        echo "CREATE DATABASE $POSTGRES_DB" | $as "$bin/postgres" --single -D "$data" postgres
    fi
    exec $as "$bin/postgres" -D "$data" -c listen_addresses='*' "$@" ;;
redis-server)
    exec setpriv --reuid=redis --regid=redis --clear-groups "$@" ;;
*)
    exec "$@" ;;
esac
