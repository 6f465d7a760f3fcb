#!/usr/bin/env bash
# Installs the wheel into a fresh environment of Python, without a network, with the README's commands;
# then uses it from Python, beside Prefect if there is one.
#
#   tests/packages/wheel.sh WHEEL [PREFECT]     PREFECT is an environment that has Prefect in it
set -euo pipefail
wheel=$(realpath "$1") prefect=${2:-}
cd "$(dirname "$0")/../.."

# Nothing is fetched, and no service of this machine is met.
if [ -z "${IN_NETWORK_OF_ITS_OWN:-}" ]; then
  as=()
  [ "$(id -u)" = 0 ] || as=(--map-root-user)
  IN_NETWORK_OF_ITS_OWN=1 exec unshare --net "${as[@]}" "$0" "$wheel" ${prefect:+"$prefect"}
fi
ip link set lo up
. tests/packages/readme.sh

work=$(mktemp -d) service=''
finish() {
  [ -z "$service" ] || kill "$service" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT
cp "$wheel" "$work/"
python=${prefect:+$prefect/bin/}python3

start=$SECONDS
"$python" -m venv "$work/venv"
commands=$(readme_block 'pip install event_persister')
stored=$(readme_block '"order.placed"')
(
  cd "$work"
  . venv/bin/activate
  # The last line starts the service.
  eval "$(head -n -1 <<<"$commands")"
  exec $(tail -n 1 <<<"$commands") 2>"$work/log"
) >"$work/pip" &
service=$!
for _ in $(seq 600); do
  ! grep -q 'ready: ' "$work/log" 2>/dev/null || break
  sleep 0.1
done
grep -q 'ready: ' "$work/log" || fail "not ready: $(cat "$work/pip" "$work/log")"
answer=$(bash -euo pipefail -c "$stored")
page=$(curl --silent --show-error http://127.0.0.1:4280/)
assert_stored "$answer"
assert_page "$page"
assert_in_time "pip in a fresh environment" $((SECONDS - start))
kill "$service"
wait "$service" || fail "it did not end by itself: $(cat "$work/log")"
service=''

if [ -n "$prefect" ]; then
  "$prefect/bin/python3" -c 'import site; print(site.getsitepackages()[0])' \
    >"$(echo "$work"/venv/lib/python*/site-packages)/prefect.pth"
fi
(cd "$work" && PREFECT_HOME=$work/prefect venv/bin/python "$OLDPWD/tests/packages/wheel.py" ${prefect:+--prefect})
