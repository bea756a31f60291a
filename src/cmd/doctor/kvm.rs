//! Whether KVM really runs a guest here: `/dev/kvm` may be there and guests hang all the same.

use super::{Finding, host};
use afterimage_restore::{BOOT_MAX, Boot, boot};

const WHAT_TO_DO: &str = "guests can be protected all the same; run them with `-accel tcg` here";

pub(super) fn check() -> Finding {
    let device = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    if let Err(e) = device {
        return Finding::warn("kvm", format!("/dev/kvm can't be opened: {e}"), WHAT_TO_DO);
    }
    if std::env::consts::ARCH != "x86_64" {
        return Finding::ok("kvm", "/dev/kvm is there (not tried on this architecture)");
    }
    match boot(host::qemu_program().as_ref(), "kvm", "host") {
        Ok(Boot::Ran) => Finding::ok("kvm", "a boot sector ran with it"),
        Ok(Boot::Ended(why)) => Finding::warn(
            "kvm",
            format!("/dev/kvm is there, but QEMU fails on it: {why}"),
            WHAT_TO_DO,
        ),
        Ok(Boot::Hung) => Finding::warn(
            "kvm",
            format!("/dev/kvm is there, but a guest on it hangs ({} s)", BOOT_MAX.as_secs()),
            WHAT_TO_DO,
        ),
        Err(e) => Finding::warn("kvm", format!("could not be tried: {e}"), WHAT_TO_DO),
    }
}
