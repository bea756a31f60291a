use super::super::RestoredDisk;
use super::super::command_line::{CommandLine, rewrite, rewrite_to_resume};
use super::super::devices::Place;
use crate::plan::Format;
use std::path::Path;

const DISKS: [RestoredDisk<'static>; 0] = [];

/// What becomes of options, each one text with a blank behind its name, in a copy that boots and in one
/// that resumes.
fn adapted(options: &[&str]) -> [CommandLine; 2] {
    let args: Vec<String> = std::iter::once("qemu-system-x86_64")
        .chain(options.iter().flat_map(|o| o.splitn(2, ' ')))
        .map(str::to_owned)
        .collect();
    let is_public = |path: &Path| path.starts_with("/public");
    let place = Place { dir: Path::new("/out"), name: "web", machine: None, is_public };
    [
        rewrite(&args, &DISKS, Format::Raw, &place),
        rewrite_to_resume(&args, &DISKS, Format::Raw, &place),
    ]
}

fn kept(line: &CommandLine) -> Vec<String> {
    line.kept.iter().skip(1).map(|o| o.join(" ")).collect()
}

#[test]
fn what_runs_code_or_writes_files_is_left_out() {
    for option in [
        "-plugin /evil.so",
        "-plugin file=/evil.so",
        "-readconfig /evil.cfg",
        "-writeconfig /etc/passwd",
        "-D /etc/passwd",
        "-d guest_errors",
        "-trace events=/x,file=/etc/passwd",
        "-dump-vmstate /etc/passwd",
        "-incoming exec:evil",
        "-virtfs local,path=/,mount_tag=x,security_model=none",
        "-fsdev local,id=f,path=/,security_model=none",
        "-loadvm x",
        "-pidfile /etc/passwd",
        "-monitor unix:/run/x,server=on",
    ] {
        let [cold, warm] = adapted(&[option, "-m 64"]);
        if !option.starts_with("-loadvm") {
            assert_eq!(kept(&cold), ["-m 64"], "{option}");
        }
        assert_eq!(kept(&warm), ["-m 64"], "{option}");
    }
}

#[test]
fn networks_run_nothing_and_lines_reach_no_device() {
    for (option, wanted) in [
        ("-netdev tap,id=n,script=/evil", "-netdev tap,id=n,script=no,downscript=no"),
        ("-netdev tap,id=n,helper=/evil", "-netdev tap,id=n,script=no,downscript=no"),
        ("-nic tap,downscript=/evil,model=e1000", "-nic tap,model=e1000,script=no,downscript=no"),
        ("-netdev bridge,id=n,br=br0,helper=/evil", "-netdev bridge,id=n,br=br0"),
        ("-netdev user,id=n,smb=/", "-netdev user,id=n"),
        ("-netdev user,id=n,guestfwd=tcp:10.0.2.9:1-cmd:evil", "-netdev user,id=n"),
        (
            "-netdev {\"type\":\"user\",\"id\":\"n\",\"smb\":\"/\"}",
            "-netdev {\"id\":\"n\",\"type\":\"user\"}",
        ),
        ("-netdev user,id=n,hostfwd=tcp::2222-:22", "-netdev user,id=n,hostfwd=tcp::2222-:22"),
        ("-chardev pipe,id=c,path=/etc/passwd", "-chardev null,id=c"),
        ("-chardev serial,id=c,path=/dev/sda", "-chardev null,id=c"),
        (
            "-chardev {\"backend\":\"parallel\",\"id\":\"c\",\"path\":\"/dev/sda\"}",
            "-chardev null,id=c",
        ),
        ("-serial /dev/sda", "-serial null"),
        ("-serial pipe:/etc/passwd", "-serial null"),
        ("-serial file:/etc/passwd", "-serial file:/out/web.serial0.log"),
    ] {
        for line in adapted(&[option]) {
            assert_eq!(kept(&line), [wanted], "{option}");
            assert!(line.asked.is_empty(), "{option}: {line:?}");
        }
    }
}

#[test]
fn what_else_is_of_the_host_stops_the_script_and_is_named() {
    for (option, what) in [
        ("-drive file=/dev/sda,format=raw", "/dev/sda"),
        ("-drive file=/public/disk,format=raw", "/public/disk"),
        ("-drive file=/etc/shadow,readonly=on", "/etc/shadow"),
        ("-drive file=fat:rw:/,format=raw", "fat:rw:/"),
        ("-drive file=nbd://far/x", "nbd://far/x"),
        ("-drive file=/out/../etc/shadow,readonly=on", "/out/../etc/shadow"),
        ("-drive file=/out/other-vm.raw", "/out/other-vm.raw"),
        ("-blockdev driver=host_device,node-name=x,filename=/dev/sda", "/dev/sda"),
        (
            "-blockdev {\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/dev/sda\"}}",
            "/dev/sda",
        ),
        (
            "-blockdev {\"driver\":\"ssh\",\"node-name\":\"x\",\"host\":\"far\",\"path\":\"x\"}",
            "ssh:",
        ),
        ("-hda /dev/sda", "/dev/sda"),
        ("-pflash /var/lib/vars.fd", "/var/lib/vars.fd"),
        ("-kernel /etc/shadow", "/etc/shadow"),
        ("-kernel vmlinuz", "vmlinuz"),
        ("-fw_cfg name=opt/x,file=/etc/shadow", "/etc/shadow"),
        ("-device e1000,romfile=/etc/shadow", "/etc/shadow"),
        ("-device loader,file=/etc/shadow", "/etc/shadow"),
        ("-device usb-mtp,rootdir=/", "/"),
        ("-device usb-host,vendorid=1", "-device usb-host,vendorid=1"),
        ("-global e1000.romfile=/etc/shadow", "/etc/shadow"),
        ("-set drive.x.file=/dev/sda", "the option -set drive.x.file=/dev/sda"),
        ("-object input-linux,id=i,evdev=/dev/input/event0", "/dev/input/event0"),
        ("-object filter-dump,id=f,netdev=n,file=/etc/passwd", "/etc/passwd"),
        ("-machine q35,dumpdtb=/etc/passwd", "/etc/passwd"),
        ("-audiodev wav,id=a,path=/etc/passwd", "/etc/passwd"),
        ("-mem-path /dev/shm", "/dev/shm"),
        ("-option-of-tomorrow x", "the option -option-of-tomorrow x"),
    ] {
        let [cold, warm] = adapted(&[option]);
        if !option.starts_with("-mem-path") {
            assert!(cold.asked.iter().any(|a| a == what), "{option}: {cold:?}");
            assert!(warm.asked.iter().any(|a| a == what), "{option}: {warm:?}");
        }
    }
}

#[test]
fn the_system_s_firmware_and_public_files_are_read_and_shown() {
    for (option, shown) in [
        ("-bios /usr/share/seabios/bios.bin", "/usr/share/seabios/bios.bin"),
        ("-drive if=pflash,readonly=on,file=/usr/share/OVMF/CODE.fd", "/usr/share/OVMF/CODE.fd"),
        ("-drive file=/public/a.iso,media=cdrom", "/public/a.iso"),
        ("-cdrom /public/a.iso", "/public/a.iso"),
        ("-kernel /public/vmlinuz", "/public/vmlinuz"),
    ] {
        for line in adapted(&[
            option,
            "-object rng-random,id=r,filename=/dev/urandom",
            "-append root=/dev/vda",
        ]) {
            assert!(line.asked.is_empty(), "{option}: {line:?}");
            assert_eq!(line.shown, [shown], "{option}");
        }
    }
    // A node of its own below one that is read only, as libvirt writes it.
    let nodes = [
        r#"-blockdev {"driver":"file","filename":"/public/a.iso","node-name":"s","auto-read-only":true}"#,
        r#"-blockdev {"driver":"raw","node-name":"f","read-only":true,"file":"s"}"#,
    ];
    for line in adapted(&nodes) {
        assert!(line.asked.is_empty() && line.shown == ["/public/a.iso"], "{line:?}");
    }
}

#[test]
fn the_program_of_a_journal_is_a_qemu_or_the_script_stops() {
    let place = Place { dir: Path::new("/out"), name: "web", machine: None, is_public: |_| false };
    let run = |program: &str| rewrite(&[program.to_owned()], &DISKS, Format::Raw, &place);
    let hostile = run("/proc/self/cwd/x");
    assert_eq!(hostile.kept[0], ["qemu-system-x86_64"]);
    assert!(hostile.asked[0].contains("/proc/self/cwd/x"), "{hostile:?}");
    let elsewhere = run("/proc/self/cwd/qemu-system-x86_64");
    assert_eq!(elsewhere.kept[0], ["qemu-system-x86_64"]);
    assert!(elsewhere.asked.is_empty() && elsewhere.changed.len() == 1, "{elsewhere:?}");
}
