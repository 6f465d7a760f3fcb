#!/usr/bin/env bash
# The test command: checks and tests everything, on any Debian machine with Rust.
#
# It installs what is missing, and lists that before it begins:
#   by apt      gcc and libc6-dev for the bundled SQLite; postgresql, pgbouncer, redis-server, nats-server,
#               openssl and sqlite3 for the tests, which start servers of their own; chromium, chromium-driver,
#               curl and npm for those of the page, which look at it in a browser
#   by cargo    cargo-machete and cargo-mutants, into cargo's folder of programs
#   for --packages besides, by apt: dpkg-dev, lintian, debootstrap, systemd-container, podman, runc
#   by npm      axe-core, which judges the page, into target/
#   by pip      schemathesis, into a virtual environment in target/, where there is python3; for the archive
#               moto, DuckDB, pyarrow and pandas, into target/archive-tools
# Besides, cargo keeps the crates that it downloads in its own folder, and the tests use the system's
# temporary folder. Nothing else outside the repository is written to. cargo-deny and promtool are
# used if they are there.
#
#   tests/run.sh              all checks and tests, faults in their short form
#   tests/run.sh --faults     every fault at full length; writes tests/FAULTS.md
#   tests/run.sh --kills 1000 kills replicas, PostgreSQL and the bus (Redis, then NATS) with SIGKILL, that many
#                             rounds each; then those who archive, PostgreSQL and the object store, and a fifth
#                             as often those who drop partitions
#   tests/run.sh --clouds     an archive in Azure, against its emulator, which npm installs into target/ (360 MB)
#   tests/run.sh --failovers 200   so many failovers of Redis Sentinel under load, with prefect-redis publishing;
#                             PREFECT_PYTHON names a Python that has it, else pip installs it into target/
#   tests/run.sh --mutants    changes the actor core in every small way, and sees whether a unit test fails;
#                             takes an hour or two, or less with arguments of cargo-mutants, as -f trim.rs
#   tests/run.sh --mutants-of-the-day   another few of those each day, in two minutes
#   tests/run.sh --packages   builds the packages, installs and uses each on a fresh system; as root. With
#                             TEST_PREFECT, a Python environment that has Prefect, also beside Prefect
#   tests/run.sh --packages twice   builds them in two places, and compares
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-all}
case "$mode" in
all | --faults | --kills | --clouds | --failovers | --mutants | --mutants-of-the-day | --packages) ;;
*)
  sed -n 's/^#   \(tests\/run.sh\)/\1/p' "$0" >&2
  exit 2
  ;;
esac

# Most tests wait for servers: twice as many at a time as there are cores, within what one PostgreSQL
# has connections for.
cores=$(nproc)
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((cores < 4 ? 2 * cores : 8))}

# A failure says where it was; without backtraces all failures can be read at a glance.
export RUST_BACKTRACE=0

# A test that hangs is a test that fails.
limited() { timeout --kill-after=10s 45m "$@"; }

# With the time since the start.
step() { printf '\n== %d:%02d  %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# By apt and by cargo.
missing=() programs=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
if [ "$mode" = --packages ]; then
  # A program, and the package that has it.
  for pair in dpkg-shlibdeps:dpkg-dev lintian:lintian debootstrap:debootstrap \
    systemd-nspawn:systemd-container podman:podman runc:runc curl:curl; do
    command -v "${pair%:*}" >/dev/null || missing+=("${pair#*:}")
  done
elif [[ "$mode" != --mutants* ]]; then
  if [ -z "${TEST_DATABASE_URL:-}" ] && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 \
    && ! command -v pg_config >/dev/null; then
    missing+=(postgresql)
  fi
  command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
  command -v nats-server >/dev/null || [ -x /usr/sbin/nats-server ] || missing+=(nats-server)
  for program in redis-server openssl sqlite3; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
fi
if [ "$mode" = all ]; then
  for program in chromium curl npm; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
  command -v chromedriver >/dev/null || missing+=(chromium-driver)
  command -v cargo-machete >/dev/null || programs+=(cargo-machete)
fi
if [ "$mode" = --clouds ]; then
  command -v npm >/dev/null || missing+=(npm)
fi
if [[ "$mode" = --mutants* || "$mode" = all ]]; then
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
  # Not optimized: to compile them takes longer than they ever work.
  cargo install --quiet --locked --debug "${programs[@]}"
fi
PATH="$PATH:/usr/sbin"

# The rules by which the page is judged. It is no part of what is built, so it is fetched, not kept.
axe=4.14.1
axe_sha512=1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b734f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5
axe_file=$PWD/target/axe-core-$axe/package/axe.min.js
if [ "$mode" = all ]; then
  if [ ! -f "$axe_file" ]; then
    step "axe-core $axe, from npm into target/"
    folder=${axe_file%/package/*}
    mkdir -p "$folder"
    (cd "$folder" && npm pack --silent "axe-core@$axe" >/dev/null)
    sha512sum --check --quiet <<<"$axe_sha512  $folder/axe-core-$axe.tgz"
    tar -xzf "$folder/axe-core-$axe.tgz" -C "$folder" package/axe.min.js
  fi
  export TEST_AXE=$axe_file TEST_BROWSER=required
fi

# A server that speaks S3, and readers of Parquet that are not ours.
if [[ "$mode" =~ ^(all|--faults|--kills|--clouds)$ ]]; then
  if command -v python3 >/dev/null && [ ! target/archive-tools/installed -nt tests/archive/requirements.txt ]; then
    step "by pip into target/archive-tools: tests/archive/requirements.txt"
    python3 -m venv target/archive-tools
    target/archive-tools/bin/pip install --quiet --disable-pip-version-check -r tests/archive/requirements.txt
    touch target/archive-tools/installed
  fi
  [ ! -x target/archive-tools/bin/python ] || export TEST_ARCHIVE_TOOLS=required
fi

it() { cargo test --all-features --test it -- "$@"; }

# Tests the tests: each mutant is the actor core with one small change, and a unit test has to fail for
# it. .cargo/mutants.toml says which code is changed, and which changes cannot matter. It works on a copy
# in target/; a mutant that nobody noticed fails the run with its name.
mutants() {
  local tree=$PWD/target/mutants-tree out=$PWD/target/mutants.out status=0
  mkdir -p "$tree"
  find "$tree" -mindepth 1 -maxdepth 1 ! -name target -exec rm -rf {} +
  # As if just written, or cargo would take what it compiled of the last mutant for this.
  tar --exclude=./target --exclude=./tests/fuzz/target --exclude=./.git -cf - . | tar -xmf - -C "$tree"
  # It is its own dependency for the sake of examples, which would have each mutant compiled twice.
  sed -i '/^event-persister-actors = { path = "\."/d' "$tree/actors/Cargo.toml"
  # The test harness stops at the first failure only where it takes options that are not stable.
  local host
  host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
  local -x "CARGO_TARGET_${host}_RUNNER=env RUSTC_BOOTSTRAP=1"
  # The same cases each time, so that a mutant which is caught once is always caught.
  PROPTEST_CASES=16 PROPTEST_RNG_SEED=1 CARGO_TARGET_DIR=$tree/target RUST_TEST_THREADS=$cores \
    cargo mutants --dir "$tree" --in-place --package event-persister-actors --output "${out%/*}" \
    --build-timeout 600 --timeout "${MUTANT_TIMEOUT:-60}" "$@" || status=$?
  # 2: some were missed; 3: some never came to an end, which a test run does not miss.
  case "$status" in
  0 | 2 | 3) [ ! -s "$out/missed.txt" ] ;;
  *) return "$status" ;;
  esac
}

if [ "$mode" = --mutants ]; then
  step "every mutant of the actor core; what became of each is in target/mutants.out"
  failed=0
  mutants "${@:2}" || failed=$?
  if [ $# = 1 ]; then
    step "and of the rule by which sentinels are believed"
    mutants --config .cargo/mutants-sentinel.toml || failed=$?
  fi
  exit "$failed"
fi

mutants_of_the_day() {
  local num=160
  local shard=$(($(date +%s) / 86400 % num))
  step "mutants of the actor core, today those of shard $shard/$num"
  mutants --shard "$shard/$num" --sharding round-robin
}

if [ "$mode" = --mutants-of-the-day ]; then
  mutants_of_the_day
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

if [ "$mode" = --clouds ]; then
  azurite=3.37.0
  if [ ! -e target/azurite/node_modules/.bin/azurite-blob ]; then
    step "azurite $azurite, from npm into target/"
    npm install --silent --no-audit --no-fund --prefix target/azurite "azurite@$azurite"
  fi
  step "an archive in Azure"
  it --ignored archive::azure
  exit
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
  TEST_KILLS=$rounds it --ignored --exact --nocapture faults::nats::as_often_as_asked
  TEST_ARCHIVE_KILLS=$((rounds / 2)) it --nocapture archive::kills::everything_is_killed
  TEST_PARTITION_KILLS=$((rounds / 5)) it --nocapture partitions::kills::two_replicas_and_the_server
  exit
fi

# Each package on a system that has never seen it: from nothing to a stored event and an open page.
packages() {
  local out=target/packages root=target/debian tools=target/chart-tools
  step "the packages"
  deploy/release.sh
  step "the Debian package, by lintian"
  lintian --fail-on error,warning --tag-display-limit 0 $out/*.deb
  step "the chart"
  [ -x $tools/bin/python ] || python3 -m venv $tools
  $tools/bin/pip install --quiet --disable-pip-version-check -r tests/packages/tools.txt
  rm -rf target/chart
  mkdir target/chart
  tar -xzf $out/event-persister-*.tgz -C target/chart
  $tools/bin/python tests/packages/chart.py target/chart/event-persister
  step "pip"
  tests/packages/wheel.sh $out/*.whl ${TEST_PREFECT:+"$TEST_PREFECT"}
  if [ ! -e $root/ready ]; then
    step "a fresh Debian, in $root"
    rm -rf $root
    mkdir -p $root
    debootstrap --variant=minbase --include=ca-certificates,curl,dbus,systemd bookworm $root/root >$root/log
    touch $root/ready
  fi
  step "apt"
  tests/packages/debian.sh $out/*.deb $root/root
  step "the image, without an engine and with one"
  tests/packages/image.sh $out/*-image.tar.gz $root/root
  tests/packages/engine.sh $out/*-image.tar.gz $root/root
}

# The same commit, elsewhere, from nothing.
packages_twice() {
  local tree
  deploy/release.sh
  tree=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$tree'" EXIT
  git archive HEAD | tar -xf - -C "$tree"
  mkdir "$tree/target"
  cp -R target/release-tools "$tree/target/"
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) "$tree/deploy/release.sh"
  step "the same in both places?"
  diff target/packages/SHA256SUMS "$tree/target/packages/SHA256SUMS"
  echo "all files are the same"
}

if [ "$mode" = --packages ]; then
  if [ "${2:-}" = twice ]; then packages_twice; else packages; fi
  exit
fi

# Each feature alone, what a host needs, and the program without NATS. Every choice of features has crates compiled
# again, so this takes minutes.
lints_of_features() {
  local feature
  local -a library=(cargo clippy -q -p event-persister-actors --no-default-features)
  for feature in archive file http nats postgres redis sqlite testing; do
    "${library[@]}" --features "$feature" -- -D warnings
  done
  # The example is run further below.
  "${library[@]}" --features http,sqlite --example embedded -- -D warnings
  cargo clippy -q -p event-persister --no-default-features -- -D warnings
}

# Tests mostly wait. Meanwhile this takes the time that they leave, and what it says is shown after them.
lints_beside_tests() {
  local log=target/lints-of-features.log status=0
  # Cargo works for one at a time: if the first lint comes before the tests, they begin after it.
  (
    renice -n 19 "$BASHPID" >/dev/null
    lints_of_features
  ) >"$log" 2>&1 &
  local lints=$!
  "$@" || status=$?
  if [ "$status" != 0 ]; then
    kill "$lints" 2>/dev/null || true
    return "$status"
  fi
  step "each feature alone, and the program without NATS: checked beside the tests"
  wait "$lints" || status=$?
  cat "$log"
  return "$status"
}

# The example of a host, until it has stored its order and is told to stop.
embedded() {
  local output pid line
  coproc EXAMPLE { exec "${CARGO_TARGET_DIR:-target}/debug/examples/embedded"; }
  output=${EXAMPLE[0]} pid=$EXAMPLE_PID
  while IFS= read -r -t 60 -u "$output" line; do
    echo "$line"
    # It listens for Ctrl-C a moment later.
    [[ $line != stored:* ]] || { sleep 1; kill -INT "$pid"; }
  done
  wait "$pid"
}

step "format"
cargo fmt --all --check

step "lints, all features"
cargo clippy --workspace --all-targets --all-features -- -D warnings

step "lints, no features"
cargo clippy -p event-persister-actors --all-targets --no-default-features -- -D warnings

step "the library without features knows neither databases nor the web"
graph=$(cargo tree -p event-persister-actors --no-default-features --edges normal --prefix none)
if grep -E '^(async-nats|diesel|redis|tokio-postgres|rustls|actix-web|actix-http|libsqlite3-sys)' <<<"$graph"; then
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
# Compiled as for the mutants, so that they find the crates.
CARGO_TARGET_DIR=$PWD/target/mutants-tree/target limited \
  cargo test -p event-persister-actors --no-default-features --profile mutants

mutants_of_the_day

step "all tests"
cargo test --quiet --workspace --all-features --no-run
cargo build --quiet --workspace --all-features --example embedded
embedded
lints_beside_tests limited cargo test --workspace --all-features

step "the paths for reading, as their own document describes them"
limited tests/openapi/run.sh
