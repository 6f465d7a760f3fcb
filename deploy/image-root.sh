#!/usr/bin/env bash
# Puts together what the image adds to Debian: deploy/image-root.sh PROGRAM LICENCES FOLDER
#
# deploy/Dockerfile and deploy/release.sh both call it.
set -euo pipefail
program=$(realpath "$1") licences=$(realpath "$2") root=$(realpath --canonicalize-missing "$3")
cd "$(dirname "$0")/.."

install -D -m 0755 "$program" "$root/usr/local/bin/event-persister"
install -D -m 0644 -t "$root/usr/local/share/doc/event-persister" LICENSE-APACHE LICENSE-MIT "$licences"
# Events go to an SQLite file in here unless a database is named. The root file system may be read-only.
install -d -m 0750 "$root/var/lib/event-persister"
