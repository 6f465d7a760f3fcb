#!/usr/bin/env bash
# Installs the Debian package on a fresh Debian that systemd has booted, with the README's commands; then
# upgrades it over the running service, removes it, installs it again and purges it.
#
#   tests/packages/debian.sh PACKAGE ROOT     ROOT is a folder made by debootstrap, which is copied
set -euo pipefail
package=$(realpath "$1") fresh=$(realpath "$2")
cd "$(dirname "$0")/../.."
. tests/packages/readme.sh

work=$(mktemp -d) machine=''
root=$work/root
finish() {
  if [ -n "$machine" ]; then
    kill "$machine" 2>/dev/null || true
    wait "$machine" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap finish EXIT
cp -a "$fresh" "$root"
cp "$package" "$root/root/"
printf '#!/bin/sh\nexec "$@"\n' >"$root/usr/bin/sudo"
chmod +x "$root/usr/bin/sudo"

# A network of its own, so that it meets no service of this machine.
systemd-nspawn --quiet --directory="$root" --register=no --keep-unit --private-network --console=pipe \
  /lib/systemd/systemd </dev/null >"$work/console" 2>&1 &
machine=$!
init=''
for _ in $(seq 300); do
  init=$(pgrep -P "$machine" | head -n 1 || true)
  if [ -n "$init" ] && nsenter -t "$init" -a systemctl is-system-running 2>/dev/null | grep -q running; then break; fi
  sleep 0.1
done
inside() { nsenter -t "$init" -a env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@" </dev/null; }
sh_inside() { inside bash -euo pipefail -c "cd /root; $1"; }
inside systemctl is-system-running || { cat "$work/console"; fail "systemd did not start"; }
pid() { inside systemctl show --property=MainPID --value event-persister; }
log() { inside journalctl --no-pager --unit=event-persister; }
is_active() { inside systemctl is-active --quiet event-persister; }

start=$SECONDS
sh_inside "$(readme_block './event-persister_')"
stored=$(sh_inside "$(readme_block '"order.placed"')")
page=$(sh_inside 'curl --silent --show-error http://127.0.0.1:4280/')
assert_stored "$stored"
assert_page "$page"
assert_in_time "apt on a fresh Debian" $((SECONDS - start))

# Under systemd, as its own user, with what is to be kept secret kept.
is_active || fail "not started: $(log)"
[ "$(inside systemctl show --property=StatusText --value event-persister)" = ready ] || fail "not ready: $(log)"
[ "$(inside stat -c %U "/proc/$(pid)")" = event-persister ] || fail "another user"
[ "$(inside stat -c '%U:%G %a' /etc/event-persister/environment)" = 'root:event-persister 640' ] || fail "modes"
[ "$(inside stat -c '%U %a' /var/lib/event-persister)" = 'event-persister 750' ] || fail "mode of the data"
inside grep -z -q EVENT_PERSISTER_CONFIG=/etc/event-persister/event-persister.toml "/proc/$(pid)/environ" \
  || fail "the file of settings is not named"
inside systemd-analyze verify event-persister.service
inside test -s /usr/share/man/man1/event-persister-dead-letters-replay.1.gz || fail "no manual"
inside bash -n /usr/share/bash-completion/completions/event-persister
inside test -s /usr/share/doc/event-persister/copyright || fail "no licence"

# What the administrator has changed outlives an upgrade, and so does what is stored.
sh_inside 'echo EVENT_PERSISTER_TRIM_RETENTION=36500d >> /etc/event-persister/environment'
before=$(pid)
dpkg-deb --raw-extract "$package" "$work/next"
sed -i 's/^Version: .*/&.1/' "$work/next/DEBIAN/control"
dpkg-deb --root-owner-group --build "$work/next" "$root/root/next.deb" >/dev/null
inside apt-get install --quiet --quiet /root/next.deb
is_active || fail "not running after the upgrade: $(log)"
[ "$(pid)" != "$before" ] || fail "the old program still runs"
inside grep -z -q EVENT_PERSISTER_TRIM_RETENTION=36500d "/proc/$(pid)/environ" || fail "the settings are lost"
log | grep -q 'stopped received=1 .* stored=1 .* balanced=true' || fail "no clean stop: $(log)"
count() { sh_inside "curl --silent --show-error http://127.0.0.1:4280/api/events/filter --json '{}'"; }
count | grep -q '"total":1' || fail "the event is lost: $(count)"
[ "$(inside systemctl show --property=NRestarts --value event-persister)" = 0 ] || fail "it fell: $(log)"

inside apt-get remove --quiet --quiet --yes event-persister
if is_active; then fail "it still runs after its removal"; fi
inside test ! -e /usr/bin/event-persister || fail "the program is still there"
inside test -e /etc/event-persister/environment || fail "removal took the settings"

inside apt-get install --quiet --quiet /root/next.deb
is_active || fail "not running after it was installed again: $(log)"
count | grep -q '"total":1' || fail "the event is lost: $(count)"

said=$(inside apt-get purge --quiet --quiet --yes event-persister 2>&1)
grep -q 'the events in /var/lib/event-persister are kept' <<<"$said" || fail "$said"
inside test ! -e /etc/event-persister || fail "settings outlive a purge"
inside test -s /var/lib/event-persister/event-persister.db || fail "a purge took the events"
[ -z "$(inside find /etc/systemd /var/lib/systemd/deb-systemd-helper-enabled /run/systemd/system -name 'event-persister*')" ] \
  || fail "a purge leaves the unit's links"
[ -z "$(inside systemctl --failed --quiet)" ] || fail "failed units: $(inside systemctl --failed)"
echo "debian: installed, upgraded, removed, installed again and purged under systemd"
