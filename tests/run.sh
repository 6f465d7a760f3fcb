#!/usr/bin/env bash
# The test command: checks and tests everything, on any Debian machine with Rust.
#
# It installs what is missing, and lists that before it begins:
#   by apt      gcc and libc6-dev for the bundled SQLite; postgresql, pgbouncer, redis-server, openssl
#               and sqlite3 for the tests, which start servers of their own
#   by cargo    cargo-machete and cargo-mutants, into cargo's folder of programs
# Besides, cargo keeps the crates that it downloads in its own folder, and the tests use the system's
# temporary folder. Nothing else outside the repository is written to. cargo-deny and promtool are
# used if they are there.
#
#   tests/run.sh              all checks and tests, faults in their short form
#   tests/run.sh --faults     every fault at full length; writes tests/FAULTS.md
#   tests/run.sh --kills 1000 kills replicas, PostgreSQL and Redis with SIGKILL, that many rounds
#   tests/run.sh --failovers 200   so many failovers of Redis Sentinel under load, with prefect-redis publishing;
#                             PREFECT_PYTHON names a Python that has it, else pip installs it into target/
#   tests/run.sh --mutants    changes the actor core in every small way, and sees whether a unit test fails;
#                             takes an hour or two, or less with arguments of cargo-mutants, as -f trim.rs
#   tests/run.sh --mutants-of-the-day   another hundredth of that each day, in a few minutes
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-all}
case "$mode" in
all | --faults | --kills | --failovers | --mutants | --mutants-of-the-day) ;;
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

# By apt and by cargo.
missing=() programs=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
if [[ "$mode" != --mutants* ]]; then
  if [ -z "${TEST_DATABASE_URL:-}" ] && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 \
    && ! command -v pg_config >/dev/null; then
    missing+=(postgresql)
  fi
  command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
  for program in redis-server openssl sqlite3; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
fi
if [ "$mode" = all ]; then
  command -v cargo-machete >/dev/null || programs+=(cargo-machete)
fi
if [[ "$mode" = --mutants* ]]; then
  command -v cargo-mutants >/dev/null || programs+=(cargo-mutants)
fi

# All of it is said before anything is done.
if [ "${#missing[@]}" -gt 0 ]; then
  step "will be installed on this machine, by apt: ${missing[*]}"
fi
if [ "${#programs[@]}" -gt 0 ]; then
  step "will be installed for this user, by cargo into ${CARGO_HOME:-~/.cargo}/bin: ${programs[*]}"
fi
if [ "${#missing[@]}" -gt 0 ]; then
  as_root apt-get update -qq
  as_root apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
if [ "${#programs[@]}" -gt 0 ]; then
  cargo install --quiet --locked "${programs[@]}"
fi
PATH="$PATH:/usr/sbin"

it() { cargo test --all-features --test it -- "$@"; }

# Tests the tests: each mutant is the actor core with one small change, and a unit test has to fail for
# it. .cargo/mutants.toml says which code is changed, and which changes cannot matter. It works on a copy
# in target/; a mutant that nobody noticed fails the run with its name.
mutants() {
  local tree=$PWD/target/mutants-tree out=$PWD/target/mutants.out status=0
  mkdir -p "$tree"
  find "$tree" -mindepth 1 -maxdepth 1 ! -name target -exec rm -rf {} +
  tar --exclude=./target --exclude=./tests/fuzz/target --exclude=./.git -cf - . | tar -xf - -C "$tree"
  # It is its own dependency for the sake of examples, which would have each mutant compiled twice.
  sed -i '/^event-persister-actors = { path = "\."/d' "$tree/actors/Cargo.toml"
  # The same cases each time, so that a mutant which is caught once is always caught.
  PROPTEST_CASES=16 PROPTEST_RNG_SEED=1 CARGO_TARGET_DIR=$tree/target RUST_TEST_THREADS=$cores \
    cargo mutants --dir "$tree" --in-place --package event-persister-actors --output "${out%/*}" \
    --build-timeout 600 --timeout 60 "$@" || status=$?
  # 2: some were missed; 3: some never came to an end, which a test run does not miss.
  case "$status" in
  0 | 2 | 3) [ ! -s "$out/missed.txt" ] ;;
  *) return "$status" ;;
  esac
}

if [ "$mode" = --mutants ]; then
  step "every mutant of the actor core; what became of each is in target/mutants.out"
  mutants "${@:2}"
  exit
fi

if [ "$mode" = --mutants-of-the-day ]; then
  shard=$(($(date +%s) / 86400 % 100))
  step "mutants of the actor core, today those of shard $shard/100"
  mutants --shard "$shard/100" --sharding round-robin
  exit
fi

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

if [ "$mode" = --failovers ]; then
  rounds=${2:-200}
  python=${PREFECT_PYTHON:-$PWD/target/prefect/bin/python}
  if [ ! -x "$python" ]; then
    step "will be installed by pip into target/prefect: tests/addresses/requirements.txt"
    python3 -m venv target/prefect
    target/prefect/bin/pip install --quiet -r tests/addresses/requirements.txt
  fi
  cargo build --locked --all-features --bin event-persister
  step "$rounds failovers of Redis Sentinel"
  "$python" tests/failovers/failovers.py "${CARGO_TARGET_DIR:-target}/debug/event-persister" "$rounds"
  exit
fi

if [ "$mode" = --kills ]; then
  rounds=${2:-1000}
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
limited cargo test --quiet -p event-persister-actors --features http,sqlite --example embedded
limited cargo build --quiet -p event-persister-actors --features http,sqlite --example embedded
timeout --signal=INT --preserve-status --kill-after=30s 3s "${CARGO_TARGET_DIR:-target}/debug/examples/embedded"

step "all tests"
limited cargo test --workspace --all-features
