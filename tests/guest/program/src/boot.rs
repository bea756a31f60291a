//! What the first process of a system has to do: mount the kernel's file systems, load modules,
//! find the disks, start the guest agent, and power off. Nothing here returns a guest that half
//! works: what fails is said on the console, and the guest powers off.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::port::wait_for_named_port;

/// Mounts what the kernel offers and loads the modules named in `/modules/order`.
pub fn prepare() -> io::Result<()> {
    for (source, target, kind) in [
        ("proc", "/proc", "proc"),
        ("sys", "/sys", "sysfs"),
        ("dev", "/dev", "devtmpfs"),
        ("run", "/run", "tmpfs"),
        ("tmp", "/tmp", "tmpfs"),
    ] {
        fs::create_dir_all(target)?;
        mount(source, target, kind)?;
    }
    // SAFETY: ignoring a signal touches no memory; children are then reaped by the kernel.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    for name in fs::read_to_string("/modules/order")?.lines() {
        load_module(&format!("/modules/{name}"))
            .map_err(|e| io::Error::other(format!("load module {name}: {e}")))?;
    }
    Ok(())
}

/// Mounts `source` on `target`, read-write, with no options.
pub fn mount(source: &str, target: &str, kind: &str) -> io::Result<()> {
    let [source_c, target_c, kind_c] = [source, target, kind].map(|s| CString::new(s).unwrap());
    // SAFETY: three strings that end in NUL and live through the call, and no data.
    let done = unsafe {
        libc::mount(source_c.as_ptr(), target_c.as_ptr(), kind_c.as_ptr(), 0, std::ptr::null())
    };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::other(format!("mount {source} on {target} as {kind}: {error}")))
}

fn load_module(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: an open descriptor, an empty string that ends in NUL, no flags.
    let done = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    let error = io::Error::last_os_error();
    // There already, or for an instruction that this CPU lacks: neither is needed then.
    let harmless = matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENODEV));
    if done == 0 || harmless { Ok(()) } else { Err(error) }
}

/// The virtio disks, in the order in which QEMU was given them.
pub fn disks() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("vd"))
        .collect();
    names.sort();
    names.into_iter().map(|name| format!("/dev/{name}")).collect()
}

/// Starts the QEMU guest agent where its port exists.
pub fn start_guest_agent() -> io::Result<bool> {
    let Some(port) = wait_for_named_port("org.qemu.guest_agent.0", Duration::ZERO) else {
        return Ok(false);
    };
    Command::new("/bin/qemu-ga")
        .args(["-m", "virtio-serial", "-p", &port, "-t", "/run", "-f", "/run/qga.pid"])
        .stdin(Stdio::null())
        .spawn()?;
    Ok(true)
}

/// Writes everything back and powers the machine off.
pub fn power_off() -> ! {
    // SAFETY: neither call takes memory of ours.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
    loop {
        std::thread::park();
    }
}
