#!/usr/bin/env bash
# Lays the image's files over a fresh Debian, and runs the service there as a container engine would: as
# the image's user, without privileges, the root file system read-only, one volume to write to.
#
#   tests/packages/image.sh ARCHIVE ROOT     ROOT is a folder made by debootstrap, which stays as it is
set -euo pipefail
archive=$(realpath "$1") fresh=$(realpath "$2")
cd "$(dirname "$0")/../.."

# What is mounted and started in here ends with it.
if [ -z "${IN_NAMESPACES_OF_ITS_OWN:-}" ]; then
  IN_NAMESPACES_OF_ITS_OWN=1 exec unshare --mount --net --pid --fork --kill-child "$0" "$archive" "$fresh"
fi
ip link set lo up
. tests/packages/readme.sh
work=$(mktemp -d)
mount -t tmpfs none "$work"
trap 'umount --recursive "$work"; rmdir "$work"' EXIT

# As the Dockerfile says.
of_image() { sed -n "s/^$1[ ]*//p" deploy/Dockerfile; }
user=$(of_image USER) volume=$(of_image VOLUME) listen=$(of_image ENV)
entry=$(of_image ENTRYPOINT | tr -d '[]",')
[ -n "$user" ] && [ -n "$volume" ] && [ -n "$entry" ] || fail "the Dockerfile: $user $volume $entry"

mkdir "$work"/{upper,overlay,root,volume}
mount -t overlay overlay -o "lowerdir=$fresh,upperdir=$work/upper,workdir=$work/overlay" "$work/root"
root=$work/root
tar --extract --gzip --numeric-owner --file "$archive" --directory "$root"
chown "$user" "$work/volume"
mount --bind "$work/volume" "$root$volume"
mount -t proc proc "$root/proc"
mount -o remount,ro "$root"
into=(
  env -i PATH=/usr/local/bin:/usr/bin:/bin "$listen" EVENT_PERSISTER_HTTP_AUTH_STRING=events:secret
  unshare --root="$root" --wd="$volume"
  setpriv --reuid="${user%:*}" --regid="${user#*:}" --clear-groups --no-new-privs --bounding-set=-all
  --inh-caps=-all
)
inside() { "${into[@]}" "$@"; }

! inside touch /written 2>/dev/null || fail "the root file system can be written to"
[ "$(inside id -u):$(inside id -g)" = "$user" ] || fail "not the image's user"
"${into[@]}" "$entry" 2>"$work/log" &
service=$!
for _ in $(seq 300); do
  ! inside "$entry" health --ready >/dev/null 2>&1 || break
  sleep 0.1
done
inside "$entry" health --ready || fail "not ready: $(cat "$work/log")"
ask() { curl --silent --show-error --user events:secret "$@"; }
sent=$(cat /proc/sys/kernel/random/uuid)
event='{"id": "'$sent'", "occurred": "'$(date -u +%FT%TZ)'", "event": "order.placed", "resource": {"prefect.resource.id": "order.17"}}'
status=$(ask --output /dev/null --write-out '%{http_code}' http://127.0.0.1:4280/api/events --json "[$event]")
[ "$status" = 204 ] || fail "$status: $(cat "$work/log")"
ask "http://127.0.0.1:4280/api/events/$sent" | grep -q '"event":"order.placed"' || fail "the event is not read back"
assert_page "$(ask http://127.0.0.1:4280/)"
[ "$(stat -c %u:%g "$work/volume/event-persister.db")" = "$user" ] || fail "the events are not in the volume"
kill "$service"
wait "$service" || fail "it did not end by itself: $(cat "$work/log")"
echo "image: an event stored and shown as $user, with a read-only root"
