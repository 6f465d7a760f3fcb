#!/usr/bin/env bash
# Stores hostile events, and lets Prefect's own code read every one of them back.
#
#     VENV=<a virtual environment with prefect 3.8 and asyncpg> tests/readable/run.sh [NUMBER [SEED]]
#
# NUMBER events (20,000) are generated from SEED (the time of the day), and imported into a database that Prefect's
# own migrations made: SQLite, and PostgreSQL at PGPORT (a server of its own where that is not set). Then Prefect
# reads all of them, page by page, by its storage's code and by its REST API, searches, filters and counts them;
# and pg_dump and sqlite3 write them out and read them in again. What is wrong is printed; the exit code is 1.
#
# The table that CI replays is recorded with
#
#     readable.py cases | readable.py record | readable.py record | gzip -9n > tests/data/prefect-readable.jsonl.gz
#
# of which the first `record` has PREFECT_API_DATABASE_CONNECTION_URL of a PostgreSQL that Prefect migrated and the
# second of such an SQLite file. Both are emptied.
set -euo pipefail
NUMBER=${1:-20000}
SEED=${2:-$(date +%s)}
VENV=${VENV:?a virtual environment with prefect and asyncpg}
HERE=$(cd "$(dirname "$0")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
BINARY=${BINARY:-$ROOT/target/debug/event-persister}
PG_BIN=${PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin | tail -1)}

WORK=$(mktemp -d)
chmod 755 "$WORK"
as_postgres() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
SERVER=
finish() {
  if [ -n "$SERVER" ]; then as_postgres "$PG_BIN/pg_ctl" -D "$SERVER" -m immediate -s stop || true; fi
  rm -rf "$WORK"
}
trap finish EXIT

export PREFECT_HOME=$WORK/prefect PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 NO_COLOR=1
export PREFECT_LOGGING_LEVEL=CRITICAL PREFECT_SERVER_LOGGING_LEVEL=CRITICAL PREFECT_SERVER_UI_ENABLED=false
export PGHOST=127.0.0.1 PGUSER=${PGUSER:-postgres}
if [ -z "${PGPORT:-}" ]; then
  export PGPORT=$((20000 + RANDOM))
  SERVER=$WORK/server
  mkdir "$SERVER"
  if [ "$(id -u)" = 0 ]; then chown postgres "$SERVER"; fi
  as_postgres "$PG_BIN/initdb" -D "$SERVER" -U "$PGUSER" -A trust -E UTF8 --locale=C.UTF-8 > /dev/null
  as_postgres "$PG_BIN/pg_ctl" -D "$SERVER" -w -s -l "$SERVER/log" \
    -o "-p $PGPORT -c listen_addresses=127.0.0.1 -c unix_socket_directories=$SERVER -c fsync=off" start
fi

prefect_at() { # url command…
  local url=$1
  shift
  (cd "$WORK" && PREFECT_API_DATABASE_CONNECTION_URL=$url "$@")
}
migrate() { prefect_at "$1" "$VENV/bin/prefect" server database upgrade --yes > "$WORK/log" || { cat "$WORK/log"; exit 1; }; }

EVENTS=$WORK/events.jsonl
"$VENV/bin/python" "$HERE/readable.py" generate "$NUMBER" "$SEED" > "$EVENTS"
echo "seed $SEED: $NUMBER events, $(wc -c < "$EVENTS") bytes"
FAILED=0

try() { # name, url, url of another database for Prefect to try in, url for the import
  migrate "$2"
  migrate "$3"
  # Exit code 1: there are dead letters.
  (cd "$WORK" && "$BINARY" import "$EVENTS" --database-url "$4" 2>&1 | tail -1) || true
  echo "$1: what Prefect reads"
  SCRATCH_URL=$3 prefect_at "$2" "$VENV/bin/python" "$HERE/readable.py" check "$EVENTS" || FAILED=1
}

try SQLite "sqlite+aiosqlite:///$WORK/events.db" "sqlite+aiosqlite:///$WORK/scratch.db" "sqlite://$WORK/events.db"
# Texts with a NUL are cut there by `.dump` (and by nothing else).
sqlite3 "$WORK/events.db" .dump | sqlite3 "$WORK/restored.db"
CONTENT="SELECT count(*), sum(length(payload)), (SELECT count(*) FROM event_resources) FROM events"
if [ "$(sqlite3 "$WORK/events.db" "$CONTENT")" != "$(sqlite3 "$WORK/restored.db" "$CONTENT")" ]; then
  echo "WRONG: sqlite3 does not read its .dump back"
  FAILED=1
fi

for name in readable_events readable_scratch readable_restored; do
  dropdb --if-exists "$name" 2> /dev/null
  createdb "$name"
done
AT=postgresql+asyncpg://$PGUSER@$PGHOST:$PGPORT
try PostgreSQL "$AT/readable_events" "$AT/readable_scratch" "postgresql://$PGUSER@$PGHOST:$PGPORT/readable_events"
pg_dump -Fc readable_events > "$WORK/dump"
pg_restore -d readable_restored "$WORK/dump"
CONTENT="SELECT count(*), md5(string_agg(e::text, '' ORDER BY id)) FROM events AS e"
if [ "$(psql -tAc "$CONTENT" readable_events)" != "$(psql -tAc "$CONTENT" readable_restored)" ]; then
  echo "WRONG: pg_restore does not read what pg_dump wrote"
  FAILED=1
fi
exit "$FAILED"
