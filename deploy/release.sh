#!/usr/bin/env bash
# Builds what a release consists of, into target/packages, and publishes nothing:
#
#   event_persister-VERSION-….whl            the wheel, for pip
#   event-persister_VERSION-1_amd64.deb      the Debian package
#   event-persister-VERSION-image.tar.gz     what the image adds to Debian
#   event-persister-VERSION.tgz              the chart
#   event-persister-VERSION.cdx.json         what the program is made of (CycloneDX)
#   SHA256SUMS
#
# One program is in all of them. It is built for glibc 2.17 with zig as the linker, so it runs on any
# Linux of the last ten years. The same tree and the same tools are to make the same bytes, wherever the
# tree lies: `tests/run.sh --packages twice` compares.
#
# It needs Rust, a C compiler, Python 3.10 with venv, git and dpkg-dev. The tools of
# deploy/release-tools.txt, and cargo-deb, are installed into target/release-tools.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
export LC_ALL=C TZ=UTC

root=$PWD
out=target/packages parts=target/release-parts tools=target/release-tools
cargo_deb=3.8.0
python=target/python # as deep as deploy/python, whose paths it has
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

step() { printf '\n== %s\n' "$*"; }

# Files of one time and one owner, in one order.
archive() {
  local name=$1 folder=$2
  shift 2
  tar --create --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
    --format=gnu --directory "$folder" "$@" | gzip -9n >"$out/$name"
}

step "tools"
[ -x $tools/bin/python ] || python3 -m venv $tools
$tools/bin/pip install --quiet --disable-pip-version-check -r deploy/release-tools.txt
# PyPI has an old one.
cargo install --quiet --locked --root $tools --version $cargo_deb cargo-deb
PATH=$root/$tools/bin:$PATH
rm -rf $out $parts $python
mkdir -p $out $parts/completions

step "licences"
python3 deploy/third_party.py >$parts/THIRD-PARTY.txt

step "the program, and what it is made of"
cp -RL deploy/python $python
cp $parts/THIRD-PARTY.txt $python/LICENSE-THIRD-PARTY.txt
cargo=${CARGO_HOME:-$HOME/.cargo}
wheel() (
  # No path of this machine stands in the program.
  for map in "$root=/src" "$cargo=/cargo" "$(rustc --print sysroot)=/rust"; do
    RUSTFLAGS+=" --remap-path-prefix=$map" CFLAGS+=" -ffile-prefix-map=$map"
  done
  export RUSTFLAGS CFLAGS CARGO_TARGET_DIR=$root/target
  cd $python
  maturin build --locked --profile dist --features archive --target x86_64-unknown-linux-gnu --zig \
    --compatibility manylinux_2_17 --out "$root/$1"
)
wheel $parts/wheel
python3 -m zipfile -e $parts/wheel/*.whl $parts/unpacked
program=$parts/event-persister
install -m 0755 $parts/unpacked/event_persister-*.data/scripts/event-persister $program
sbom=$out/event-persister-$version.cdx.json
sed "s#$root#/src#g" $parts/unpacked/event_persister-*.dist-info/sboms/event-persister.cyclonedx.json >"$sbom"

step "the wheel"
cp "$sbom" $python/event-persister.cdx.json
printf '\n[tool.maturin.sbom]\nrust = false\ninclude = ["event-persister.cdx.json"]\n' >>$python/pyproject.toml
wheel $out
cmp $program <(python3 -c 'import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
name, = (name for name in wheel.namelist() if name.endswith("/scripts/event-persister"))
sys.stdout.buffer.write(wheel.read(name))' $out/*.whl)

step "the Debian package"
$program config example >$parts/event-persister.toml
$program manual $parts/man
$program completions bash >$parts/completions/event-persister
$program completions zsh >$parts/completions/_event-persister
$program completions fish >$parts/completions/event-persister.fish
gzip -9n <CHANGELOG.md >$parts/changelog.gz
maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)
cat >$parts/changelog <<END
event-persister ($version-1) unstable; urgency=medium

  * Changes are in /usr/share/doc/event-persister/changelog.gz.

 -- $maintainer  $(date -R -u -d "@$SOURCE_DATE_EPOCH")
END
{
  cat LICENSE-MIT
  printf '\nOr, as you like:\n\nOn Debian systems the Apache License 2.0 is in /usr/share/common-licenses/Apache-2.0.\n'
  printf '\nThe licences of the crates in the program are in THIRD-PARTY.txt beside this file.\n'
} >$parts/copyright
cargo deb --no-build --no-strip --output "$out/event-persister_${version}-1_amd64.deb"

step "the root of the image"
deploy/image-root.sh $program $parts/THIRD-PARTY.txt $parts/image
archive "event-persister-$version-image.tar.gz" $parts/image .

step "the chart"
mkdir $parts/chart
cp -R deploy/chart $parts/chart/event-persister
archive "event-persister-$version.tgz" $parts/chart event-persister

step "made in $out"
(cd $out && sha256sum -- * >SHA256SUMS && cat SHA256SUMS)
