use super::*;

fn line(options: &[&str]) -> CommandLine {
    let split = |o: &&str| o.split(' ').map(str::to_owned).collect();
    let program = ["qemu-system-x86_64"];
    let kept = program.iter().chain(options).map(split).collect();
    CommandLine { kept, ..CommandLine::default() }
}

fn facts() -> Facts {
    Facts {
        program: Program::Found {
            version: Some([10, 0, 2]),
            machines: vec!["pc-q35-10.0".into(), "pc-q35-8.2".into()],
        },
        kvm: Kvm::Works,
        memory_available_bytes: Some(1 << 40),
        is_root: true,
        has_userfault: true,
    }
}

fn block(id: &str, bytes: u64) -> RamBlock {
    RamBlock { volume: 9, id: id.into(), bytes }
}

/// Refusals and warnings, one a line each.
fn decided(
    options: &[&str],
    blocks: &[RamBlock],
    machine: &str,
    version: &str,
    facts: &Facts,
) -> (String, String) {
    let line = line(options);
    let needs = Needs { qemu_version: version, machine: Some(machine), blocks, line: &line };
    let fit = fit(&needs, facts);
    (fit.refusals.join("\n"), fit.warnings.join("\n"))
}

#[test]
fn what_fits_fits_without_a_word() {
    let blocks = [block("pc.ram", 2 << 30), block("vga.vram", 16 << 20)];
    let options = ["-m 2G", "-accel kvm", "-cpu Skylake-Server"];
    let nothing = (String::new(), String::new());
    assert_eq!(decided(&options, &blocks, "pc-q35-8.2", "8.2.1", &facts()), nothing);
    assert_eq!(decided(&["-m 2048"], &blocks, "pc-q35-10.0", "", &facts()), nothing);
}

#[test]
fn program_version_and_machine_type_are_judged() {
    let blocks = [block("pc.ram", 128 << 20)];
    let missing = Facts { program: Program::Missing("no such file".into()), ..facts() };
    let (refused, _) = decided(&[], &blocks, "pc-q35-10.0", "10.0.2", &missing);
    assert!(refused.contains("qemu-system-x86_64 can't be run here: no such file"), "{refused}");
    let cases = [
        ("10.0.2", "", ""),
        ("9.2.0", "", ""),
        ("10.0.3", "", "version 10.0.2 here and the guest ran on 10.0.3"),
        ("10.1.0", "version 10.0.2 here and the guest ran on 10.1.0", ""),
        ("11.0.0 (some-build)", "ran on 11.0.0", ""),
        ("unknown", "", ""),
    ];
    for (version, refusal, warning) in cases {
        let (refused, warned) = decided(&[], &blocks, "pc-q35-10.0", version, &facts());
        assert!(refused.contains(refusal) && refused.is_empty() == refusal.is_empty(), "{refused}");
        assert!(warned.contains(warning) && warned.is_empty() == warning.is_empty(), "{warned}");
    }
    let (refused, _) = decided(&[], &blocks, "pc-q35-7.0", "", &facts());
    assert!(refused.contains("no machine type pc-q35-7.0"), "{refused}");
    // A program that lists none says nothing.
    let program = Program::Found { version: None, machines: vec![] };
    let (refused, _) = decided(&[], &blocks, "pc-q35-7.0", "", &Facts { program, ..facts() });
    assert_eq!(refused, "");
}

#[test]
fn a_guest_that_ran_with_kvm_needs_it() {
    let blocks = [block("pc.ram", 128 << 20)];
    let without = Facts { kvm: Kvm::Unusable("it hangs".into()), ..facts() };
    let cases: [(&[&str], bool, bool); 9] = [
        (&["-accel kvm"], true, false),
        (&["-enable-kvm"], true, false),
        (&["-machine q35,accel=kvm"], true, false),
        (&["-M pc,accel=kvm,usb=off"], true, false),
        (&["-accel kvm", "-accel tcg"], false, true),
        (&["-machine q35,accel=kvm:tcg"], false, true),
        (&["-accel tcg"], false, false),
        (&["-accel accel=tcg,thread=multi"], false, false),
        (&[], false, false),
    ];
    for (options, refuses, warns) in cases {
        let (refused, warned) = decided(options, &blocks, "pc-q35-10.0", "", &without);
        assert_eq!(refused.contains("it hangs"), refuses, "{options:?}: {refused}");
        assert_eq!(warned.contains("it hangs"), warns, "{options:?}: {warned}");
    }
    let (_, warned) =
        decided(&["-accel kvm", "-cpu host,+x"], &blocks, "pc-q35-10.0", "", &facts());
    assert!(warned.contains("-cpu host"), "{warned}");
}

#[test]
fn ram_blocks_are_those_that_the_command_line_makes() {
    let gib = 1u64 << 30;
    let cases: [(&[&str], RamBlock, &str); 11] = [
        (&["-m 1024"], block("pc.ram", gib), ""),
        (&["-m 1G"], block("pc.ram", gib), ""),
        (&["-m size=1048576K,slots=2,maxmem=4G"], block("pc.ram", gib), ""),
        (&["-m 1.5G"], block("pc.ram", gib + gib / 2), ""),
        (&[], block("pc.ram", 128 << 20), ""),
        (&["-m 512"], block("pc.ram", gib), "pc.ram has 1073741824 bytes and -m makes another"),
        (&["-object memory-backend-ram,id=mem,size=1G"], block("/objects/mem", gib), ""),
        (
            &[r#"-object {"qom-type":"memory-backend-memfd","id":"mem","size":1073741824}"#],
            block("/objects/mem", gib),
            "",
        ),
        (&["-object memory-backend-ram,id=mem,size=1G"], block("mem", gib), ""),
        (&["-object memory-backend-ram,id=mem,size=2G"], block("/objects/mem", gib), "id=mem"),
        (
            &["-m 1G"],
            block("/objects/dimm1", gib),
            "-object memory-backend-ram,id=dimm1,size=1073741824 -device pc-dimm,memdev=dimm1",
        ),
    ];
    for (options, block, refusal) in cases {
        let (refused, _) = decided(options, &[block], "pc-q35-10.0", "", &facts());
        let same = refused.is_empty() == refusal.is_empty();
        assert!(same && refused.contains(refusal), "{options:?}: {refused}");
    }
    let little = Facts { memory_available_bytes: Some(512 << 20), ..facts() };
    let (refused, warned) =
        decided(&["-m 1G"], &[block("pc.ram", gib)], "pc-q35-10.0", "", &little);
    assert!(refused.is_empty() && warned.contains("1024 MiB of memory, 512 MiB"), "{warned}");
}

#[test]
fn what_no_copy_can_have_is_refused_and_a_tap_wants_root() {
    let mut line = line(&["-m 128"]);
    line.refused.push("its device gpu (vfio-pci)".into());
    let tap = vec!["-netdev".to_owned(), "tap,id=n0,script=no".to_owned()];
    line.changed.push((vec!["-netdev".into(), "tap,fd=3,id=n0".into()], tap));
    let blocks = [block("pc.ram", 128 << 20)];
    let needs = Needs { qemu_version: "", machine: None, blocks: &blocks, line: &line };
    let fit = fit(&needs, &Facts { is_root: false, ..facts() });
    assert_eq!(fit.refusals, ["its device gpu (vfio-pci)"]);
    assert!(fit.warnings[0].contains("root"), "{:?}", fit.warnings);
}
