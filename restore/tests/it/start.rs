//! What is written to start a copy: disks replaced, the original's surroundings left out.

use crate::bed::{Bed, names, restore_to};
use afterimage_restore::Format;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn restored(args: &[&str], xml: Option<&str>, format: Format, disks: &[&str]) -> tempfile::TempDir {
    let mut bed = Bed::new(1, &[4096, 4096]);
    bed.config.guests[0].command_line = args.iter().map(|a| (*a).to_owned()).collect();
    bed.config.guests[0].libvirt_xml = xml.map(str::to_owned);
    bed.config.guests[0].qemu_version = "10.0.2".into();
    bed.journal().set_config(&bed.config).unwrap();
    let last = bed.open_session();
    let out = tempfile::tempdir().unwrap();
    restore_to(&bed.open(), last, out.path(), format, disks).unwrap();
    out
}

fn script(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("web.start.sh")).unwrap()
}

/// What the script would run: the program's arguments, one a line.
fn arguments(dir: &Path) -> Vec<String> {
    // A QEMU that prints what it is asked.
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let qemu = bin.join("qemu-system-x86_64");
    std::fs::write(&qemu, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
    std::fs::set_permissions(&qemu, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let out = Command::new(dir.join("web.start.sh")).env("PATH", path).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn drives_are_replaced_and_the_monitor_is_left_out() {
    let out = restored(
        &[
            "qemu-system-x86_64",
            "-name",
            "a b's",
            "-m",
            "512",
            "-S",
            "-daemonize",
            "-drive",
            "file=/images/d0.img,if=virtio,format=qcow2,l2-cache-size=1M,id=x",
            "-drive",
            "if=virtio,file=/images/d1.img",
            "-qmp",
            "unix:/run/q.sock,server=on,wait=off",
            "-monitor",
            "stdio",
            "-chardev",
            "socket,id=ga,path=/run/ga.sock,server=on",
            "-device",
            "virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
            "-netdev",
            "tap,fds=27:28,id=net0",
            "-device",
            "virtio-net-pci,netdev=net0",
            "-chardev",
            "file,id=log,path=/tmp/log",
            "-serial",
            "chardev:log",
            "-nodefaults",
        ],
        None,
        Format::Raw,
        &[],
    );
    let dir = out.path().display();
    assert_eq!(
        arguments(out.path()),
        [
            "-name",
            "a b's",
            "-m",
            "512",
            "-drive",
            &format!("file={dir}/web-d0.raw,if=virtio,format=raw,id=x"),
            "-drive",
            &format!("if=virtio,file={dir}/web-d1.raw,format=raw"),
            "-chardev",
            &format!("file,id=log,path={dir}/web.log.log"),
            "-serial",
            "chardev:log",
            "-nodefaults"
        ]
    );
    let text = script(out.path());
    assert!(text.contains("#   -qmp unix:/run/q.sock"), "{text}");
    assert!(text.contains("#   -device virtserialport,chardev=ga"), "{text}");
    let json: Vec<String> =
        serde_json::from_slice(&std::fs::read(out.path().join("web.command-line.json")).unwrap())
            .unwrap();
    assert_eq!(json[2], "a b's");
    assert!(json.contains(&"-qmp".to_owned()));
}

#[test]
fn a_copy_shares_no_file_with_the_original() {
    let out = restored(
        &[
            "qemu-system-x86_64",
            "-object",
            "memory-backend-file,id=mem,size=512M,mem-path=/dev/shm/web,share=on",
            "-machine",
            "q35,memory-backend=mem",
            "-mem-path",
            "/dev/hugepages",
            "-serial",
            "file:/var/log/web.log",
            "-drive",
            "file=/images/d0.img,if=virtio",
            "-drive",
            "file=/images/d1.img,if=virtio",
        ],
        None,
        Format::Raw,
        &[],
    );
    let dir = out.path().display();
    assert_eq!(
        arguments(out.path())[..6],
        [
            "-object",
            "memory-backend-ram,id=mem,size=512M",
            "-machine",
            "q35,memory-backend=mem",
            "-serial",
            &format!("file:{dir}/web.serial0.log"),
        ]
    );
}

#[test]
fn blockdevs_are_replaced_nested_and_apart() {
    let out = restored(
        &[
            "qemu-system-x86_64",
            "-blockdev",
            r#"{"driver":"file","node-name":"p0","filename":"/images/d0.img"}"#,
            "-blockdev",
            r#"{"driver":"raw","node-name":"d0","file":"p0"}"#,
            "-blockdev",
            "driver=raw,node-name=d1,file.driver=file,file.filename=/images/d1.img",
            "-mon",
            "chardev=m,mode=control",
            "-chardev",
            r#"{"id":"m","backend":"stdio"}"#,
        ],
        None,
        Format::Qcow2,
        &[],
    );
    let dir = out.path().display();
    let said = arguments(out.path());
    assert_eq!(said.len(), 8, "{said:?}");
    let file: serde_json::Value = serde_json::from_str(&said[1]).unwrap();
    assert_eq!(file["filename"], format!("{dir}/web-d0.qcow2"));
    assert_eq!(file["driver"], "file");
    let node: serde_json::Value = serde_json::from_str(&said[3]).unwrap();
    assert_eq!((&node["driver"], &node["file"]), (&"qcow2".into(), &"p0".into()));
    assert_eq!(
        said[5],
        format!("driver=qcow2,node-name=d1,file.driver=file,file.filename={dir}/web-d1.qcow2")
    );
}

#[test]
fn a_script_that_names_an_original_image_refuses_to_run() {
    let out = restored(
        &["qemu-system-x86_64", "-hda", "/images/d0.img", "-hdb", "/images/d1.img"],
        None,
        Format::Raw,
        &["d0"],
    );
    let run = Command::new(out.path().join("web.start.sh")).output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    assert!(run.stdout.is_empty());
    let said = String::from_utf8(run.stderr).unwrap();
    assert!(said.contains("/images/d1.img") && !said.contains("/images/d0.img"), "{said}");
    assert_eq!(names(out.path()), ["web-d0.raw", "web.command-line.json", "web.start.sh"]);
}

#[test]
fn hostile_names_cannot_break_out_of_the_script() {
    let out = restored(
        &[
            "qemu-system-x86_64",
            "-name",
            "'; echo broken; '\n$(echo worse)`x`",
            "-monitor",
            "x\necho dropped",
            "-hda",
            "/images/d0.img",
            "-hdb",
            "/images/d1.img",
        ],
        None,
        Format::Raw,
        &[],
    );
    let said = arguments(out.path()).join("\n");
    assert!(said.contains("'; echo broken; '\n$(echo worse)`x`"), "{said}");
    assert!(!said.contains("dropped"), "{said}");
}

#[test]
fn a_libvirt_definition_gets_the_restored_images() {
    let xml = "<domain type='kvm'>\n<name>web</name><devices>\
        <disk type='block' device='disk'><driver name='qemu' type='qcow2' cache='none'/>\
        <source dev='/images/d0.img' index='1'><privateData/></source>\
        <backingStore type='file'><source file='/base.img'/><backingStore/></backingStore>\
        <target dev='vda'/></disk>\
        <disk type=\"file\" device=\"disk\"><driver name=\"qemu\" type=\"qcow2\"/>\
        <source file=\"/images/d1.img\"/><target dev='vdb'/></disk>\
        <disk type='file' device='cdrom'><source file='/iso'/></disk></devices></domain>";
    let out = restored(&[], Some(xml), Format::Raw, &[]);
    let said = std::fs::read_to_string(out.path().join("web.xml")).unwrap();
    let dir = out.path().display();
    for part in [
        "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>".to_owned(),
        format!("<source file='{dir}/web-d0.raw'/><target dev='vda'/></disk>"),
        format!("type=\"raw\"/><source file='{dir}/web-d1.raw'/><target dev='vdb'/></disk>"),
        "<disk type='file' device='cdrom'><source file='/iso'/></disk></devices></domain>".into(),
    ] {
        assert!(said.contains(&part), "{said}\nlacks {part}");
    }
    assert!(!said.contains("base.img") && !said.contains("NOT replaced"), "{said}");
    let part = restored(&[], Some(xml), Format::Raw, &["d0"]);
    let said = std::fs::read_to_string(part.path().join("web.xml")).unwrap();
    assert!(said.contains("NOT replaced, still the original's images: /images/d1.img"), "{said}");
}

#[test]
fn a_hostile_definition_runs_nothing_of_its_own() {
    let xml = "<domain type='kvm'>\n<name>web</name><devices>\
        <emulator>/proc/self/cwd/x</emulator>\
        <interface type='ethernet'><script path='/evil'/><downscript path='/evil'/></interface>\
        </devices><seclabel type='none'/>\
        <qemu:commandline><qemu:arg value='-plugin'/><qemu:arg value='/evil.so'/></qemu:commandline>\
        </domain>";
    let out = restored(&[], Some(xml), Format::Raw, &[]);
    let said = std::fs::read_to_string(out.path().join("web.xml")).unwrap();
    for gone in ["/proc/self/cwd", "/evil", "seclabel type", "qemu:arg"] {
        assert!(!said.contains(gone), "{gone}: {said}");
    }
    assert!(said.contains("Taken out") && said.contains("emulator"), "{said}");
    let sound = xml.replace("/proc/self/cwd/x", "/usr/bin/qemu-system-x86_64");
    let out = restored(&[], Some(&sound), Format::Raw, &[]);
    let said = std::fs::read_to_string(out.path().join("web.xml")).unwrap();
    assert!(said.contains("<emulator>/usr/bin/qemu-system-x86_64</emulator>"), "{said}");
}

#[test]
fn a_script_of_a_hostile_journal_refuses_to_run_and_says_why() {
    let out = restored(
        &[
            "/proc/self/cwd/x",
            "-hda",
            "/images/d0.img",
            "-hdb",
            "/images/d1.img",
            "-hdc",
            "/dev/sda",
        ],
        None,
        Format::Raw,
        &[],
    );
    let ran = out.path().join("ran");
    let x = out.path().join("x");
    std::fs::write(&x, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
    std::fs::set_permissions(&x, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(out.path().join("web.start.sh"));
    let run = command.current_dir(out.path()).output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    let said = String::from_utf8(run.stderr).unwrap();
    assert!(said.contains("/dev/sda") && said.contains("/proc/self/cwd/x"), "{said}");
    assert!(!said.contains("/images/") && !ran.exists(), "{said}");
}
