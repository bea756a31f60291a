//! libvirt by `virsh`: a fake one, in front of a real QEMU.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use afterimage_qmp::{
    Error, Monitor, Qemu, QemuEvent,
    guest_agent::{AgentChannel, GuestAgent, thaw_blocking_virsh},
    libvirt::{BlockTarget, Libvirt, Target as Domain},
    qemu::{RESUME_LIMIT, RunState},
};
use serde_json::json;

use crate::rig::*;

/// No shell would leave this name whole.
const DOMAIN: &str = "web'; echo $HOME \"one";

fn fake_virsh(folder: &Path) -> Domain {
    let program = folder.join("virsh");
    fs::write(&program, include_str!("virsh.py")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let program = program.to_str().unwrap().to_owned();
    Domain { program, uri: Some("qemu:///system".to_owned()), domain: DOMAIN.to_owned() }
}

async fn libvirt(vm: &Vm) -> Libvirt {
    Libvirt::open(fake_virsh(vm.path("").as_path())).await.unwrap()
}

#[tokio::test]
async fn a_domain_is_mirrored_resumed_and_detached_like_any_other() {
    let vm = Vm::prelaunch(&[BLOCKDEV_QCOW2]).await;
    let libvirt = libvirt(&vm).await;
    let qemu = Qemu::open(Arc::new(libvirt)).await.unwrap();
    assert_eq!(qemu.run_state().await.unwrap(), RunState::Prelaunch);
    let mut target = Target::start(&vm, "target");
    let attachment = qemu.attach(&spec(&vm, 0, &target).await).await.unwrap();
    vm.boot().await;
    let mut events = qemu.events();
    target.kill();
    let failed = event(&mut events, |e| matches!(e, QemuEvent::BlockJobError { .. })).await;
    let (job, operation, action) = (attachment.job.clone(), "write".into(), "stop".into());
    assert_eq!(failed, QemuEvent::BlockJobError { job, operation, action });
    target.start_again();
    qemu.resume(&attachment.job, RESUME_LIMIT, |_| {}).await.unwrap();
    qemu.drain().await.unwrap();
    qemu.detach(&attachment).await.unwrap();
    assert_eq!(vm.qemu.ours().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn what_virsh_says_of_a_domain_is_read() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let libvirt = libvirt(&vm).await;
    assert_eq!(libvirt.state().await.unwrap(), "running");
    assert_eq!(libvirt.dump_xml().await.unwrap().trim(), "<domain type='qemu'/>");
    let disk = |device: &str, target: &str, source: Option<&str>| BlockTarget {
        device: device.to_owned(),
        target: target.to_owned(),
        source: source.map(str::to_owned),
    };
    let image = Some("/images/with space.qcow2");
    let expected = [disk("disk", "vda", image), disk("cdrom", "sda", None)];
    assert_eq!(libvirt.block_list().await.unwrap(), expected);
    let error = libvirt.execute("nosuch", json!({ "a": "$(id) 'x' \"y\"" })).await.unwrap_err();
    assert!(matches!(&error, Error::Command { class, .. } if class == "CommandNotFound"));
    let log = fs::read_to_string(vm.path("virsh.log")).unwrap();
    let last: Vec<String> =
        serde_json::from_str(log.lines().rfind(|l| l.contains("nosuch")).unwrap()).unwrap();
    let command = json!({ "execute": "nosuch", "arguments": { "a": "$(id) 'x' \"y\"" } });
    assert_eq!(last[..4], ["--connect", "qemu:///system", "qemu-monitor-command", "--domain"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&last[5]).unwrap(), command);
}

/// The event printer may be dead or silent: the look once a second tells the same.
#[tokio::test]
async fn without_printed_events_the_changes_are_seen_all_the_same() {
    let mut vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let domain = fake_virsh(vm.path("").as_path());
    let script = fs::read_to_string(&domain.program).unwrap();
    let script = script.replace("for line in Qmp(\"qmp3\").lines:", "for line in []:");
    fs::write(&domain.program, script).unwrap();
    let qemu = Qemu::open(Arc::new(Libvirt::open(domain).await.unwrap())).await.unwrap();
    let mut target = Target::start(&vm, "target");
    let mut events = qemu.events();
    let attachment = qemu.attach(&spec(&vm, 0, &target).await).await.unwrap();
    let ready = QemuEvent::BlockJobReady { job: attachment.job.clone() };
    event(&mut events, |e| *e == ready).await;
    vm.boot().await;
    event(&mut events, |e| *e == QemuEvent::Resume).await;
    target.kill();
    event(&mut events, |e| matches!(e, QemuEvent::BlockJobError { .. })).await;
    vm.qemu.stop().await.unwrap();
    event(&mut events, |e| *e == QemuEvent::Stop).await;
    vm.process.kill();
    let end = async { while !matches!(events.next_meaning().await, QemuEvent::Eof { .. }) {} };
    tokio::time::timeout(SOON, end).await.unwrap();
    assert!(matches!(qemu.run_state().await, Err(Error::Closed { .. })));
    assert!(matches!(qemu.events().next_meaning().await, QemuEvent::Eof { .. }));
}

#[tokio::test]
async fn a_missing_domain_or_virsh_is_told_from_each_other() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let good = fake_virsh(vm.path("").as_path());
    let error = Libvirt::open(Domain { domain: "other".into(), ..good.clone() }).await.unwrap_err();
    assert!(error.to_string().contains("failed to get domain 'other'"), "{error}");
    let program = vm.path("nosuch").to_str().unwrap().to_owned();
    let error = Libvirt::open(Domain { program, ..good }).await.unwrap_err();
    assert!(error.to_string().contains("is libvirt-clients installed?"), "{error}");
}

#[tokio::test]
async fn a_virsh_that_hangs_is_ended_in_time() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let libvirt = libvirt(&vm).await;
    fs::write(&libvirt.target().program, "#!/bin/sh\nexec sleep 60\n").unwrap();
    let limit = Duration::from_millis(300);
    let begun = std::time::Instant::now();
    let error = libvirt.execute_within("query-status", json!(null), limit).await.unwrap_err();
    assert!(matches!(&error, Error::Timeout { command, .. } if command == "query-status"));
    // One look of the watch may have been before it.
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn the_agent_in_the_guest_is_reached_through_libvirt() {
    let folder = tempfile::tempdir().unwrap();
    let domain = fake_virsh(folder.path());
    let agent = GuestAgent::new(AgentChannel::Libvirt(domain.clone()));
    agent.ping().await.unwrap();
    assert_eq!(agent.freeze().await.unwrap(), 2);
    assert_eq!(agent.thaw().await.unwrap(), 2);
    let thawed = tokio::task::spawn_blocking(move || thaw_blocking_virsh(&domain, SOON));
    assert_eq!(thawed.await.unwrap().unwrap(), 2);
}
