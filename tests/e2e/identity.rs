//! Which VM a guest is: another one at the same monitor, and one QEMU under two names.

use super::evidence::{causes_since, history, ours_in, point_monitor_at, wait_session_behind};
use super::{DISK_BYTES, PROGRAM, STATE_LIMIT};
use crate::kit::{Agent, Cli, Disk, Vm, VmBuilder, image, poll};
use afterimage_journal::meta::CopyCause;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const WEB: &str = "6f1a0e2c-0000-0000-0000-000000000001";
const DB: &str = "6f1a0e2c-0000-0000-0000-000000000002";

/// A QEMU that waits with `-S`, with one raw disk: nobody has to boot to be told apart.
fn vm_of(dir: &Path, disk: &str) -> (VmBuilder, PathBuf) {
    let path = dir.join(disk);
    image::raw(&path, DISK_BYTES);
    (VmBuilder::new("writer").disk(Disk::raw(path.clone())).stopped(), path)
}

fn named(builder: VmBuilder, uuid: &str, name: &str) -> VmBuilder {
    builder.arg("-uuid").arg(uuid).arg("-name").arg(name)
}

fn wait_reason(cli: &Cli, guest: &str, words: &str) -> Value {
    cli.wait_status(guest, STATE_LIMIT, |s| {
        s["reason"].as_str().is_some_and(|reason| reason.contains(words))
    })
}

#[test]
fn another_vm_at_the_same_monitor_is_left_alone_until_a_person_takes_it() {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let monitor = dir.path().join("monitor");
    let monitor_name = monitor.display().to_string();
    let boot = |builder: &VmBuilder| -> Vm {
        let vm = builder.boot();
        point_monitor_at(&monitor, &vm.agent_qmp());
        vm
    };
    let path = |disk: &str| dir.path().join(disk);
    let vm_with = |image: PathBuf| VmBuilder::new("writer").disk(Disk::qcow2(image)).stopped();
    let (web_image, db_image) = (path("web"), path("db"));
    image::qcow2(&web_image, DISK_BYTES);
    let web = named(vm_with(web_image.clone()), WEB, "web");
    let db = named(vm_with(db_image.clone()), DB, "db");

    let state = dir.path().join("state");
    let mut agent = Agent::start(PROGRAM, &state);
    let vm = boot(&web);
    agent.ok(&["protect", "vm", "--qmp", &monitor_name]);
    agent.wait_state("vm", "protected", STATE_LIMIT);
    vm.quit();
    agent.wait_state("vm", "detached", STATE_LIMIT);

    // The same VM in another process needs nobody's word; its image is untouched.
    let head = history(&agent).head;
    let vm = boot(&web);
    wait_session_behind(&agent, head);
    assert!(!causes_since(&history(&agent), head).contains(&CopyCause::Compare));
    vm.quit();
    agent.wait_state("vm", "detached", STATE_LIMIT);

    // Another one does, a restarted agent's too: what was learned is on disk. It is a clone, with the map
    // that the journal noted last.
    std::fs::copy(&web_image, &db_image).unwrap();
    let mut qemu_io = std::process::Command::new("qemu-io");
    let wrote = qemu_io.args(["-f", "qcow2", "-c", "write -q -P 7 1M 64k"]).arg(&db_image).output();
    assert!(wrote.as_ref().is_ok_and(|o| o.status.success()), "{wrote:?}");
    let head = history(&agent).head;
    let mut vm = db.boot();
    let brought = ours_in(vm.qmp());
    assert!(
        !brought.is_empty() && brought.iter().all(|name| name.contains("-map-")),
        "{brought:?}"
    );
    point_monitor_at(&monitor, &vm.agent_qmp());
    for again in [false, true] {
        if again {
            agent.stop();
            agent = Agent::start(PROGRAM, &state);
        }
        let status = wait_reason(&agent, "vm", "another VM");
        let reason = status["reason"].as_str().unwrap();
        for part in [WEB, "\"web\"", DB, "\"db\"", "set vm --qmp"] {
            assert!(reason.contains(part), "{status}");
        }
        assert_eq!(status["state"], "gap", "{status}");
        assert_eq!(ours_in(vm.qmp()), brought);
    }
    // Nothing of it is the guest's to remove.
    agent.ok(&["detach", "vm"]);
    assert_eq!(ours_in(vm.qmp()), brought);
    agent.ok(&["set", "vm", "--qmp", &monitor_name]);
    agent.ok(&["attach", "vm"]);
    wait_session_behind(&agent, head);
    assert_eq!(causes_since(&history(&agent), head), [CopyCause::Compare]);
    let restored = super::restore(&agent, "latest", dir.path());
    vm.quit();
    image::compare((&db_image, "qcow2"), (&restored[0], "raw")).unwrap();

    // The word was for one VM: the next other one is another one again.
    agent.wait_state("vm", "detached", STATE_LIMIT);
    let _vm = boot(&web);
    wait_reason(&agent, "vm", "another VM");
    let two = agent.run(&["set", "vm", "--qmp", &monitor_name, "--libvirt", "vm"]);
    assert_eq!(two.code, 2, "{two:?}");
}

/// What is ours in a QEMU whose guest is protected: the end of its disk is marked a moment later.
fn settled(vm: &mut Vm) -> Vec<String> {
    let is_helper = |name: &String| name.ends_with("-end") && !name.ends_with("-map-end");
    let is_marked = |name: &String| name.ends_with("-map-end");
    let ours = poll(STATE_LIMIT, || {
        let ours = ours_in(vm.qmp());
        (ours.iter().any(is_marked) && !ours.iter().any(is_helper)).then_some(ours)
    });
    ours.unwrap_or_else(|| panic!("{:?}", ours_in(vm.qmp())))
}

#[test]
fn one_qemu_under_two_names_keeps_the_first_ones_mirrors() {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let second = dir.path().join("second.sock");
    let second_name = second.display().to_string();
    let (builder, _) = vm_of(dir.path(), "disk");
    let chardev = format!("socket,id=second,path={second_name},server=on,wait=off");
    let builder =
        builder.arg("-chardev").arg(&chardev).arg("-mon").arg("chardev=second,mode=control");
    let mut vm = builder.boot();
    let state = dir.path().join("state");
    let agent = Agent::start(PROGRAM, &state);
    let first_name = vm.agent_qmp().display().to_string();
    agent.ok(&["protect", "vm", "--qmp", &first_name]);
    agent.wait_state("vm", "protected", STATE_LIMIT);
    let ours = settled(&mut vm);

    let refused = agent.run(&["protect", "twin", "--qmp", &second_name]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("under the name vm"), "{refused:?}");
    assert_eq!(ours_in(vm.qmp()), ours);

    // Another agent's names are none of ours, and none of its own.
    let other = Agent::start(PROGRAM, dir.path().join("other"));
    for _ in 0..2 {
        let refused = other.run(&["protect", "vm", "--qmp", &second_name]);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("another agent"), "{refused:?}");
        assert_eq!(ours_in(vm.qmp()), ours);
    }
    other.stop();
    let status = agent.json(&["status", "vm"]);
    assert_eq!((&status["state"], &status["gaps"]), (&json!("protected"), &json!([])), "{status}");

    // A state of an older version has both.
    agent.stop();
    let settings = std::fs::read_to_string(state.join("guests/vm.json")).unwrap();
    let mut settings: Value = serde_json::from_str(&settings).unwrap();
    // Of one group: a guest whose journal is not there is refused before.
    settings["name"] = json!("twin");
    settings["qmp"] = json!(second_name);
    std::fs::write(state.join("guests/twin.json"), settings.to_string()).unwrap();
    let agent = Agent::start(PROGRAM, &state);
    let is_out = |status: &Value| {
        let reason = status["reason"].as_str().unwrap_or_default();
        reason.contains("protected already") || reason.contains("another agent")
    };
    let both = poll(STATE_LIMIT, || {
        let (vm, twin) = (agent.json(&["status", "vm"]), agent.json(&["status", "twin"]));
        let one_each = |a: &Value, b: &Value| a["state"] == "protected" && is_out(b);
        (one_each(&vm, &twin) || one_each(&twin, &vm)).then_some((vm, twin))
    });
    let (first, twin) = both.unwrap_or_else(|| panic!("{}", agent.last_words()));
    let (inside, outside) = match first["state"] == "protected" {
        true => (first, twin),
        false => (twin, first),
    };
    let name = inside["guest"].as_str().unwrap();
    let ours = settled(&mut vm);
    // The one that is out tries again and again, at the latest each 3 s.
    std::thread::sleep(std::time::Duration::from_secs(4));
    let status = agent.json(&["status", name]);
    assert_eq!(
        (&status["state"], &status["gaps"]),
        (&json!("protected"), &inside["gaps"]),
        "{status}"
    );
    assert_eq!(ours_in(vm.qmp()), ours);
    assert!(is_out(&agent.json(&["status", outside["guest"].as_str().unwrap()])));
}
