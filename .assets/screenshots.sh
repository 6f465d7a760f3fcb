#!/usr/bin/env bash
# Makes the README's pictures of the page, in this folder, from events that really were.
#
#   .assets/screenshots.sh EVENTS.jsonl[.gz]     one event a line, as `event-persister events export` prints them
#
# It needs chromium, chromedriver and pngquant; with the font Inter (Debian: fonts-inter) it looks as on a desktop.
set -euo pipefail
events=$(realpath -e "${1:?give a file of events}")
cd "$(dirname "$0")/.."
command -v pngquant >/dev/null || { echo "pngquant is missing" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
TEST_EVENTS=$events TEST_BROWSER=required TEST_SCREENSHOTS=$work \
  cargo test --all-features --test it -- --ignored --exact page::pictures::of_the_readme
for name in events event; do
  pngquant --force --speed 1 --strip --quality 70-100 --output ".assets/page-$name.png" "$work/readme-$name.png"
done
ls -l .assets/*.png
