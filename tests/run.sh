#!/usr/bin/env bash
# The test command: checks and tests everything, on any Debian machine with Rust.
#
# It installs what is missing, and lists that before it begins:
#   by apt      gcc and libc6-dev for the bundled SQLite; postgresql, pgbouncer, redis-server, openssl
#               and sqlite3 for the tests, which start servers of their own
#   by cargo    cargo-machete, into cargo's folder of programs
# Besides, cargo keeps the crates that it downloads in its own folder, and the tests use the system's
# temporary folder. Nothing else outside the repository is written to. cargo-deny and promtool are
# used if they are there.
#
#   tests/run.sh              all checks and tests, faults in their short form
#   tests/run.sh --faults     every fault at full length; writes tests/FAULTS.md
#   tests/run.sh --kills 1000 kills replicas, PostgreSQL and Redis with SIGKILL, that many rounds
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-all}
rounds=${2:-1000}
case "$mode" in
all | --faults | --kills) ;;
*)
  sed -n 's/^#   \(tests\/run.sh\)/\1/p' "$0" >&2
  exit 2
  ;;
esac

# Most tests wait for servers: twice as many at a time as there are cores, within what one PostgreSQL
# has connections for.
cores=$(nproc)
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((cores < 4 ? 2 * cores : 8))}

# A test that hangs is a test that fails.
limited() { timeout --kill-after=10s 20m "$@"; }

step() { printf '\n== %s\n' "$*"; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
if [ -z "${TEST_DATABASE_URL:-}" ] && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 \
  && ! command -v pg_config >/dev/null; then
  missing+=(postgresql)
fi
command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
for program in redis-server openssl sqlite3; do
  command -v "$program" >/dev/null || missing+=("$program")
done
wants_machete=false
if [ "$mode" = all ] && ! command -v cargo-machete >/dev/null; then
  wants_machete=true
fi

# All of it is said before anything is done.
if [ "${#missing[@]}" -gt 0 ]; then
  step "will be installed on this machine, by apt: ${missing[*]}"
fi
if "$wants_machete"; then
  step "will be installed for this user, by cargo into ${CARGO_HOME:-~/.cargo}/bin: cargo-machete"
fi
if [ "${#missing[@]}" -gt 0 ]; then
  as_root apt-get update -qq
  as_root apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
if "$wants_machete"; then
  cargo install --quiet --locked cargo-machete
fi
PATH="$PATH:/usr/sbin"

it() { cargo test --all-features --test it -- "$@"; }

if [ "$mode" = --faults ]; then
  step "everything that may break, broken"
  outcomes=$(mktemp)
  trap 'rm -f "$outcomes"' EXIT
  export TEST_FAULTS_OUTCOMES=$outcomes TEST_SECONDS_OF_TROUBLE=60
  failed=0
  it faults:: --test-threads=4 || failed=$?
  it --ignored --exact faults::table::is_written_from_the_outcomes
  exit "$failed"
fi

if [ "$mode" = --kills ]; then
  step "$rounds rounds of SIGKILL"
  TEST_KILLS=$rounds it --ignored --exact --nocapture faults::kills::as_often_as_asked
  exit
fi

step "format"
cargo fmt --all --check

step "lints, all features"
cargo clippy --workspace --all-targets --all-features -- -D warnings

step "lints, no features"
cargo clippy -p event-persister-actors --all-targets --no-default-features -- -D warnings

step "each feature alone"
for feature in file http postgres redis sqlite testing; do
  cargo clippy -q -p event-persister-actors --no-default-features --features "$feature" -- -D warnings
done

step "the library without features knows neither databases nor the web"
graph=$(cargo tree -p event-persister-actors --no-default-features --edges normal --prefix none)
if grep -E '^(diesel|redis|tokio-postgres|rustls|actix-web|actix-http|libsqlite3-sys)' <<<"$graph"; then
  echo "the crates above must not be needed by ports, actors and pipeline" >&2
  exit 1
fi

step "unused dependencies"
cargo machete

if command -v cargo-deny >/dev/null; then
  step "licences, sources and bans of dependencies"
  cargo deny --config .deny.toml check bans licenses sources
fi

if command -v promtool >/dev/null; then
  step "alerts"
  promtool check rules deploy/alerts.yml
  promtool test rules deploy/alerts.test.yml
fi

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --all-features --no-deps

step "tests of the library without features"
limited cargo test -p event-persister-actors --no-default-features

step "the example of a host"
limited cargo run --quiet -p event-persister-actors --features http,sqlite --example embedded

step "all tests"
limited cargo test --workspace --all-features
