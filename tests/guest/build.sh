#!/usr/bin/env bash
# Makes the guest that tests and demo boot: target/guest/vmlinuz and target/guest/initrd.
# Needs what install.sh installs and fetches. Does nothing where neither inputs nor outputs changed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$root/tests/guest
out=$root/target/guest
PATH=$PATH:/usr/sbin:/sbin

die() { printf 'guest: %s\n' "$*" >&2; exit 1; }

mkdir -p "$out"
exec 9>"$out/.build.lock"
flock -w 900 9 || die "another build holds $out/.build.lock for 15 minutes; look at it first"

kernel=$(compgen -G "$out/kernel/boot/vmlinuz-*" | head -1) || die "no kernel under $out/kernel: run tests/guest/install.sh"
release=${kernel##*/vmlinuz-}
busybox=$(command -v busybox) || die "no busybox: run tests/guest/install.sh"
agent=$(find "$out/qemu-ga" -name qemu-ga -type f -perm -u+x 2>/dev/null | head -1)
[ -n "$agent" ] || die "no QEMU guest agent under $out/qemu-ga: run tests/guest/install.sh"

stamp=$({
    cat "$here"/build.sh "$here"/program/Cargo.* "$here"/program/src/*.rs
    stat -c '%s %Y %n' "$kernel" "$busybox" "$agent"
} | sha256sum)
if [ -s "$out/vmlinuz" ] && [ -s "$out/initrd" ] && [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
rm -f "$out/stamp"
printf 'guest: building the test guest (kernel %s)\n' "$release"

# Static: the guest has no libraries but the agent's. For a named target the flag leaves build scripts alone.
CARGO_TARGET_DIR=$out/cargo RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --locked --release \
    --target x86_64-unknown-linux-gnu --manifest-path "$here/program/Cargo.toml"

tree=$(mktemp -d "$out/.tree.XXXXXX")
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/{bin,modules,data,dev,proc,sys,run,tmp,lib64,lib/x86_64-linux-gnu}
install -m 755 "$out/cargo/x86_64-unknown-linux-gnu/release/guest" "$tree/init"
install -m 755 "$busybox" "$tree/bin/busybox"
ln -s busybox "$tree/bin/sh"

# The guest agent with its libraries, as this machine's loader finds them.
install -m 755 "$agent" "$tree/bin/qemu-ga"
libraries=$(ldd "$agent") || die "ldd $agent failed"
if grep -q 'not found' <<<"$libraries"; then
    die "libraries of the guest agent are missing on this machine:$(printf '\n%s' "$(grep 'not found' <<<"$libraries")")"
fi
grep -o '/[^ ]*' <<<"$libraries" | while read -r library; do
    case $library in
        */ld-linux-x86-64.so.2) install -m 755 "$library" "$tree/lib64/" ;;
        *) install -m 644 "$library" "$tree/lib/x86_64-linux-gnu/" ;;
    esac
done

# Modules in the order in which they must be loaded.
modules_root=$out/kernel
[ -d "$modules_root/lib/modules" ] || modules_root=$out/kernel/usr
depmod -b "$modules_root" "$release"
wanted=(virtio_pci virtio_blk virtio_console crc32c_generic ext4)
for module in "${wanted[@]}"; do
    # Built into some kernels: nothing to load then.
    modprobe -S "$release" -d "$modules_root" --show-depends "$module" 2>/dev/null || true
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$tree/modules/paths"
while read -r path; do
    name=${path##*/}
    case $name in
        *.ko) cp "$path" "$tree/modules/$name" ;;
        *.ko.xz) name=${name%.xz}; xz -dc "$path" >"$tree/modules/$name" ;;
        *.ko.zst) name=${name%.zst}; zstd -dqc "$path" >"$tree/modules/$name" ;;
        *) die "unknown kind of module: $path" ;;
    esac
    printf '%s\n' "$name"
done <"$tree/modules/paths" >"$tree/modules/order"
rm "$tree/modules/paths"
grep -q virtio_blk "$tree/modules/order" || die "no virtio_blk module among the kernel's"

# Not compressed: unpacking costs an emulated guest more than reading.
(cd "$tree" && find . | LC_ALL=C sort | cpio --quiet --owner 0:0 -o -H newc) >"$out/initrd.new"
cp "$kernel" "$out/vmlinuz.new"
chmod 644 "$out/vmlinuz.new"
mv "$out/vmlinuz.new" "$out/vmlinuz"
mv "$out/initrd.new" "$out/initrd"
printf '%s' "$stamp" >"$out/stamp"
printf 'guest: target/guest/vmlinuz and target/guest/initrd (%s) are ready\n' "$(du -h "$out/initrd" | cut -f1)"
