# shellcheck shell=bash
# The commands of README.md, for the tests of packages, which run them as they stand there.

# The one block of commands that has a text in it.
readme_block() {
  python3 - "$1" <<'END'
import re, sys

with open("README.md", encoding="utf-8") as file:
    blocks = re.findall(r"^```sh\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)
found = [block for block in blocks if sys.argv[1] in block]
if len(found) != 1:
    sys.exit(f"{len(found)} blocks of README.md have {sys.argv[1]!r}")
print(found[0], end="")
END
}

fail() {
  printf 'failed: %s\n' "$*" >&2
  exit 1
}

# Whether the block that sends an event printed that it was stored.
assert_stored() {
  grep -q '^HTTP/1.1 204 No Content' <<<"$1" || fail "no 204: $1"
  grep -q '"event":"order.placed"' <<<"$1" || fail "the event is not read back: $1"
}

assert_page() {
  grep -q '<title>event-persister</title>' <<<"$1" || fail "no page: $1"
}

# One minute from nothing to a stored event and an open page.
assert_in_time() {
  printf '%s: stored and shown after %s s\n' "$1" "$2"
  [ "$2" -lt 60 ] || fail "$1 took $2 s"
}
