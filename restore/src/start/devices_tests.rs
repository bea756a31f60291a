use super::super::RestoredDisk;
use super::super::command_line::{CommandLine, rewrite_to_resume};
use super::Place;
use crate::plan::Format;
use std::path::Path;

const DISKS: [RestoredDisk<'static>; 0] = [];

/// A command line of options, each one text with a blank behind its name.
fn adapted_at(dir: &str, options: &[&str]) -> CommandLine {
    let args: Vec<String> = std::iter::once("qemu")
        .chain(options.iter().flat_map(|o| o.splitn(2, ' ')))
        .map(str::to_owned)
        .collect();
    let place = Place {
        dir: Path::new(dir),
        name: "web",
        machine: Some("pc-q35-10.0"),
        is_public: |_| false,
    };
    rewrite_to_resume(&args, &DISKS, Format::Raw, &place)
}

/// What is left of it.
fn adapted(options: &[&str]) -> Vec<String> {
    let line = adapted_at("/out", options);
    assert!(line.refused.is_empty(), "{line:?}");
    line.kept.iter().skip(1).map(|o| o.join(" ")).collect()
}

const MACHINE: &str = "-machine pc-q35-10.0";

#[test]
fn every_device_stays_with_something_else_behind_it() {
    // In the order: what the original has, what a copy has.
    let cases = [
        (
            "-chardev socket,id=ga,path=/run/ga.sock,server=on",
            "-chardev socket,id=ga,path=/out/web.ga.sock,server=on,wait=off",
        ),
        (
            "-chardev socket,id=ch0,fd=35,server=on,wait=off,mux=on",
            "-chardev socket,id=ch0,path=/out/web.ch0.sock,server=on,wait=off,mux=on",
        ),
        (
            "-chardev udp,id=u,port=5",
            "-chardev socket,id=u,path=/out/web.u.sock,server=on,wait=off",
        ),
        ("-chardev pty,id=serial0", "-chardev pty,id=serial0"),
        (
            "-chardev file,id=log,path=/tmp/log,append=on",
            "-chardev file,id=log,path=/out/web.log.log,append=on",
        ),
        ("-chardev pty,id=s0,logfile=/var/log/s0", "-chardev pty,id=s0,logfile=/out/web.s0.log"),
        ("-serial file:/tmp/console", "-serial file:/out/web.serial0.log"),
        (
            "-device virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
            "-device virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
        ),
        (
            "-serial unix:/run/s.sock,server=on",
            "-serial unix:/out/web.serial0.sock,server=on,wait=off",
        ),
        (
            "-serial mon:telnet:localhost:4000",
            "-serial unix:/out/web.serial0.sock,server=on,wait=off",
        ),
        ("-serial stdio", "-serial stdio"),
        ("-vnc :3,password=on", "-vnc unix:/out/web.vnc.sock"),
        ("-vnc none", "-vnc none"),
        (
            "-spice port=5900,addr=0.0.0.0",
            "-spice unix=on,addr=/out/web.spice.sock,disable-ticketing=on",
        ),
        ("-netdev user,id=n0,hostfwd=tcp::2222-:22", "-netdev user,id=n0,hostfwd=tcp::2222-:22"),
        (
            "-netdev tap,fd=27,id=n0,vhost=on,vhostfd=28",
            "-netdev tap,id=n0,script=no,downscript=no",
        ),
        (
            "-netdev tap,fds=27:28:29,id=n0,vnet_hdr=off",
            "-netdev tap,id=n0,vnet_hdr=off,script=no,downscript=no,queues=3",
        ),
        (
            r#"-netdev {"type":"tap","fd":"38","vhost":true,"vhostfd":"40","id":"hostnet0"}"#,
            "-netdev tap,id=hostnet0,script=no,downscript=no",
        ),
        ("-netdev socket,fd=9,id=n1", "-netdev hubport,id=n1,hubid=4000"),
        ("-netdev tap,ifname=vnet3,id=n0", "-netdev tap,ifname=vnet3,id=n0"),
        (
            "-object memory-backend-file,id=mem,size=1G,mem-path=/dev/shm/vm,share=on,prealloc=on",
            "-object memory-backend-ram,id=mem,size=1G,prealloc=on",
        ),
        (
            "-object memory-backend-memfd,id=mem,size=1G,share=on",
            "-object memory-backend-memfd,id=mem,size=1G,share=on",
        ),
        ("-device vhost-vsock-pci,guest-cid=3,vhostfd=20", "-device vhost-vsock-pci,guest-cid=3"),
        ("-object secret,id=s,data=x", "-object secret,id=s,data=x"),
        ("-monitor none", "-monitor none"),
        ("-kernel /boot/vmlinuz", "-kernel /boot/vmlinuz"),
    ];
    for (original, copy) in cases {
        assert_eq!(adapted(&[original]), [copy, MACHINE], "{original}");
    }
    let json = adapted(&[
        r#"-object {"qom-type":"memory-backend-file","id":"m","size":4096,"mem-path":"/x","share":true}"#,
    ]);
    assert_eq!(json[0], r#"-object {"id":"m","qom-type":"memory-backend-ram","size":4096}"#);
    let two = adapted(&["-serial tcp:a:1", "-serial tcp:a:2", "-parallel udp:a:3"]);
    assert_eq!(two[1], "-serial unix:/out/web.serial1.sock,server=on,wait=off");
    assert_eq!(two[2], "-parallel unix:/out/web.parallel0.sock,server=on,wait=off");
}

#[test]
fn what_is_no_device_is_left_out() {
    for option in [
        "-qmp unix:/q,server=on",
        "-monitor stdio",
        "-S",
        "-daemonize",
        "-snapshot",
        "-incoming defer",
        "-loadvm x",
        "-pidfile /run/p",
        "-add-fd fd=3,set=1",
        "-mem-path /dev/hugepages",
        "-object secret,id=master,format=raw,file=/var/lib/key",
    ] {
        let line = adapted_at("/out", &[option]);
        assert_eq!(line.kept.len(), 2, "{option}: {line:?}");
        assert_eq!(line.dropped.len(), 1, "{option}");
    }
    // A socket of a monitor alone goes with it, one that a device uses too stays.
    let kept = adapted(&["-chardev socket,id=m,path=/q", "-mon chardev=m,mode=control"]);
    assert_eq!(kept, [MACHINE]);
    let kept =
        adapted(&["-chardev socket,id=m,path=/q,mux=on", "-mon m", "-device isa-serial,chardev=m"]);
    assert_eq!(kept.len(), 3, "{kept:?}");
}

#[test]
fn the_machine_type_is_that_of_the_stream() {
    let cases = [
        ("-machine q35,accel=kvm,usb=off", "-machine pc-q35-10.0,accel=kvm,usb=off"),
        ("-M type=q35,accel=tcg", "-M pc-q35-10.0,accel=tcg"),
        ("-machine pc-q35-10.0,smm=on", "-machine pc-q35-10.0,smm=on"),
        (
            r#"-machine {"type":"q35","usb":false}"#,
            r#"-machine {"type":"pc-q35-10.0","usb":false}"#,
        ),
    ];
    for (original, copy) in cases {
        assert_eq!(adapted(&[original]), [copy], "{original}");
    }
    let merged = adapted(&["-machine accel=kvm", "-m 512"]);
    assert_eq!(merged, ["-machine accel=kvm", "-m 512", MACHINE]);
}

#[test]
fn state_that_no_checkpoint_holds_is_refused_by_name() {
    for (option, words) in [
        ("-device vfio-pci,host=01:00.0,id=gpu", ["gpu", "vfio-pci"]),
        (r#"-device {"driver":"vhost-user-fs-pci","id":"fs0"}"#, ["fs0", "vhost-user-fs-pci"]),
        ("-device vhost-user-blk-pci,chardev=c", ["vhost-user-blk-pci", "process"]),
        ("-netdev vhost-user,id=n7,chardev=c", ["n7", "vhost-user"]),
        (r#"-netdev {"type":"vhost-vdpa","id":"n8"}"#, ["n8", "vhost-vdpa"]),
        ("-tpmdev emulator,id=tpm0,chardev=c", ["TPM", "tpm0"]),
        ("-nic socket,fd=4", ["-nic socket", "descriptor"]),
    ] {
        let line = adapted_at("/out", &[option]);
        assert_eq!(line.refused.len(), 1, "{option}: {line:?}");
        assert!(words.iter().all(|w| line.refused[0].contains(w)), "{:?}", line.refused);
    }
}

#[test]
fn where_no_socket_can_have_its_path_the_device_has_nothing_behind_it() {
    let long = format!("/{}", "x".repeat(100));
    let line = adapted_at(
        &long,
        &["-chardev socket,id=ga,path=/run/ga.sock", "-serial tcp:a:1", "-vnc :1"],
    );
    let kept: Vec<String> = line.kept.iter().skip(1).map(|o| o.join(" ")).collect();
    assert_eq!(kept[..3], ["-chardev null,id=ga", "-serial null", "-display none"]);
    let odd = adapted_at("/a,b", &["-chardev socket,id=ga,path=/run/ga.sock"]);
    assert!(odd.kept[1][1].contains("path=/a,,b/web.ga.sock"), "{odd:?}");
}
