#!/usr/bin/env bash
# Asks a service what its own OpenAPI document describes, thousands of times, right and wrong: no answer is a 500, and
# each is one that the document describes.
#
#     tests/openapi/run.sh [the binary]
#
# It makes a virtual environment in target/ for schemathesis. Where there is no python3 it says so, and tests nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
SCHEMATHESIS=4.32.5
SECONDS_AT_MOST=${SECONDS_AT_MOST:-45}
target=${CARGO_TARGET_DIR:-$PWD/target}
binary=${1:-$target/debug/event-persister}
venv=$target/schemathesis-$SCHEMATHESIS

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
  echo "skipped: schemathesis needs python3, 3.10 or newer"
  exit 0
fi
if [ ! -x "$venv/bin/schemathesis" ]; then
  python3 -m venv "$venv" && "$venv/bin/pip" install -q "schemathesis==$SCHEMATHESIS" || {
    rm -rf "$venv"
    echo "skipped: schemathesis could not be installed (python3-venv, or the way to PyPI)"
    exit 0
  }
fi

work=$(mktemp -d)
finish() {
  kill "$service" 2> /dev/null || true
  wait "$service" 2> /dev/null || true
  rm -rf "$work"
}
data=$PWD/tests/data here=$PWD/tests/openapi
cd "$work"
zcat "$data/prefect-events-dev.jsonl.gz" | sed -n 1,200p > events.jsonl
echo "no event" >> events.jsonl
env -i "$binary" import events.jsonl > import.log 2>&1 || [ $? = 1 ]
env -i EVENT_PERSISTER_LISTEN=127.0.0.1:0 "$binary" 2> service.log &
service=$!
trap finish EXIT
until address=$(grep -m1 -o 'listen=http://[^ ]*' service.log); do
  kill -0 "$service"
  sleep 0.1
done

"$venv/bin/schemathesis" --config-file "$here/schemathesis.toml" --no-color \
  run "${address#listen=}/api/openapi.json" --max-time "$SECONDS_AT_MOST" --seed "${SEED:-18}" \
  --max-examples 200 --generation-database none --warnings off || { tail -20 service.log; exit 1; }
if grep -E 'panicked|ERROR' service.log; then
  exit 1
fi
