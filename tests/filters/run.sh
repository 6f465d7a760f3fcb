#!/usr/bin/env bash
# Records what Prefect answers to filters, counts and pages, into tests/data/filters.jsonl.gz, which the tests replay.
#
#     VENV=<a virtual environment with prefect 3.9 and asyncpg> tests/filters/run.sh
#
# With numbers nothing is recorded: Prefect is asked that many questions over that many events, and the reader is asked
# the same of the very databases that Prefect wrote, PostgreSQL and SQLite. It takes an hour or two. With pysqlite3 in
# the environment Prefect's SQLite is about as new as ours; older ones round seconds otherwise.
#
#     VENV=... tests/filters/run.sh --cases 10000 --events 50000 [--seed 1]
set -euo pipefail
cases='' events=50000 seed=1
while [ $# -gt 0 ]; do
  case "$1" in
  --cases) cases=$2 ;;
  --events) events=$2 ;;
  --seed) seed=$2 ;;
  *) sed -n 's/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
VENV=${VENV:?a virtual environment with prefect and asyncpg}
HERE=$(cd "$(dirname "$0")" && pwd)
DATA=$HERE/../data
EVENTS=$DATA/prefect-events-dev.jsonl.gz
PG_BIN=${PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin | tail -1)}

WORK=$(mktemp -d)
chmod 755 "$WORK"
as_postgres() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
finish() {
  as_postgres "$PG_BIN/pg_ctl" -D "$WORK/server" -m immediate -s stop || true
  rm -rf "$WORK"
}
trap finish EXIT

export PREFECT_HOME=$WORK/prefect PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 NO_COLOR=1
export PREFECT_LOGGING_LEVEL=CRITICAL PREFECT_SERVER_LOGGING_LEVEL=CRITICAL PREFECT_SERVER_UI_ENABLED=false
export PGHOST=127.0.0.1 PGUSER=postgres PGPORT=$((20000 + RANDOM % 10000))
mkdir "$WORK/server"
if [ "$(id -u)" = 0 ]; then chown postgres "$WORK/server"; fi
as_postgres "$PG_BIN/initdb" -D "$WORK/server" -U "$PGUSER" -A trust -E UTF8 --locale=C.UTF-8 > /dev/null
as_postgres "$PG_BIN/pg_ctl" -D "$WORK/server" -w -s -l "$WORK/server/log" \
  -o "-p $PGPORT -c listen_addresses=127.0.0.1 -c unix_socket_directories=$WORK/server -c fsync=off" start
createdb filters

sqlite=sqlite+aiosqlite:///$WORK/filters.db postgresql=postgresql+asyncpg://$PGUSER@$PGHOST:$PGPORT/filters
record() { # url, what record.py is to do
  export PREFECT_API_DATABASE_CONNECTION_URL=$1
  "$VENV/bin/prefect" server database upgrade --yes > "$WORK/log" 2>&1 || { cat "$WORK/log" >&2; exit 1; }
  "$VENV/bin/python" "$HERE/record.py" "$2" "$EVENTS" "${@:3}"
}
if [ -n "$cases" ]; then
  cd "$HERE/../.."
  failed=0
  for database in postgresql sqlite; do
    record "${!database}" many "$cases" "$events" "$seed" > "$WORK/$database.jsonl"
    TEST_FILTERS=$WORK/$database.jsonl TEST_FILTERS_DATABASE=${!database} "${CARGO:-cargo}" test --all-features --test it \
      -- --ignored --exact --nocapture reader::on_a_database_of_prefect::answers_as_prefect_did || failed=1
  done
  exit $failed
fi
cd "$WORK"
record "$sqlite" answer > sqlite.jsonl
record "$postgresql" answer > postgresql.jsonl
"$VENV/bin/python" "$HERE/record.py" merge "$EVENTS" sqlite.jsonl postgresql.jsonl > filters.jsonl.gz
mv filters.jsonl.gz "$DATA/filters.jsonl.gz"
zcat "$DATA/filters.jsonl.gz" | wc -l
