#!/usr/bin/env bash
# Has a container engine (podman) build the Dockerfile from the released files, and runs the image.
#
#   tests/packages/engine.sh ARCHIVE ROOT     ROOT is a folder made by debootstrap, the base image's stand-in
set -euo pipefail
archive=$(realpath "$1") fresh=$(realpath "$2")
cd "$(dirname "$0")/../.."
. tests/packages/readme.sh

work=$(mktemp -d)
engine() {
  STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot podman --root "$work/storage" --runroot "$work/run" \
    --cgroup-manager cgroupfs --events-backend none --runtime runc "$@"
}
finish() {
  engine rm --force --all --time 0 >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap finish EXIT
base=$(sed -n 's/^ARG DEBIAN_RELEASE=//p' deploy/Dockerfile)
tar --create --directory "$fresh" . | engine import --quiet - "docker.io/library/debian:$base-slim" >/dev/null

# As the head of the Dockerfile says.
mkdir "$work/files"
tar --extract --gzip --file "$archive" --directory "$work/files"
engine build --quiet --pull-never --format docker --file deploy/Dockerfile --tag localhost/event-persister \
  --build-context files="$work/files" . >/dev/null
# A machine without systemd has no timers for health checks: the test asks by itself.
engine run --detach --name persister --pull=never --network none --read-only --cap-drop all \
  --security-opt no-new-privileges --no-healthcheck --ulimit nofile=4096:4096 --ulimit nproc=1024:1024 \
  --env EVENT_PERSISTER_HTTP_AUTH_STRING=events:secret --volume events:/var/lib/event-persister \
  localhost/event-persister >/dev/null
inside() { engine exec persister "$@"; }
for _ in $(seq 100); do
  ! inside event-persister health --ready >/dev/null 2>&1 || break
  sleep 0.1
done
health=$(sed -n 's/^HEALTHCHECK .* CMD //p' deploy/Dockerfile | tr -d '[]",')
# shellcheck disable=SC2086
inside $health || fail "not alive: $(engine logs persister 2>&1)"
[ "$(inside id -u):$(inside id -g)" = 65532:65532 ] || fail "not the image's user"
! inside touch /written 2>/dev/null || fail "the root file system can be written to"
inside test -s /etc/ssl/certs/ca-certificates.crt || fail "no authorities"
inside test -s /usr/local/share/doc/event-persister/THIRD-PARTY.txt || fail "no licences"

# There is no curl in the image.
event='{"occurred": "'$(date -u +%FT%TZ)'", "event": "order.placed", "resource": {"prefect.resource.id": "order.17"}, "id": "'$(cat /proc/sys/kernel/random/uuid)'"}'
engine exec --interactive persister event-persister import - <<<"$event"
inside event-persister events list | grep -q order.placed || fail "the event is not read back"
engine stop --time 40 persister >/dev/null
[ "$(engine inspect --format '{{.State.ExitCode}}' persister)" = 0 ] || fail "no clean end"
# The volume outlives the container.
engine rm persister >/dev/null
engine run --rm --pull=never --network none --read-only --no-healthcheck --ulimit nofile=4096:4096 \
  --ulimit nproc=1024:1024 --volume events:/var/lib/event-persister localhost/event-persister events list \
  | grep -q order.placed || fail "the volume lost the event"
echo "engine: the image built, run read-only, stopped, and its volume kept"
