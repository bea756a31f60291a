//! What another administrator does while a guest is being frozen for a checkpoint of its memory.

use super::{DISK_BYTES, PROGRAM, STATE_LIMIT};
use crate::kit::{Agent, Disk, Qmp, REPLY_LIMIT, VmBuilder, image, poll};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use tempfile::TempDir;

/// A guest agent that tells of each freeze, and answers it when it may.
fn slow_agent(listener: UnixListener, frozen: SyncSender<()>, go_on: Receiver<()>) {
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            serve(&client, &frozen, &go_on);
        }
    });
}

fn serve(client: &UnixStream, frozen: &SyncSender<()>, go_on: &Receiver<()>) {
    let mut out = client;
    for line in BufReader::new(client).split(b'\n').map_while(Result::ok) {
        let text: String = line.iter().filter(|b| b.is_ascii()).map(|b| char::from(*b)).collect();
        let Ok(asked) = serde_json::from_str::<Value>(&text) else { return };
        let answer = match asked["execute"].as_str().unwrap() {
            "guest-sync-delimited" => asked["arguments"]["id"].clone(),
            "guest-ping" => json!({}),
            "guest-fsfreeze-freeze" => {
                if frozen.send(()).is_err() || go_on.recv().is_err() {
                    return;
                }
                json!(1)
            }
            _ => json!(1),
        };
        let marker: &[u8] = if text.contains("delimited") { &[0xff] } else { &[] };
        let answer = [marker, format!("{}\n", json!({ "return": answer })).as_bytes()].concat();
        if out.write_all(&answer).is_err() {
            return;
        }
    }
}

fn settings(qmp: &mut Qmp) -> (Value, Value) {
    let capabilities = qmp.execute("query-migrate-capabilities", json!({}));
    (capabilities, qmp.execute("query-migrate-parameters", json!({})))
}

#[test]
fn migration_that_begins_during_a_freeze_finds_its_own_settings_and_keeps_them() {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let disk = dir.path().join("disk");
    image::raw(&disk, DISK_BYTES);
    // Nobody waits for its operating system: that its processor runs is enough.
    let mut vm = VmBuilder::new("writer").disk(Disk::raw(disk)).stopped().boot();
    vm.qmp().execute("cont", json!({}));
    let socket = dir.path().join("qga.sock");
    let (frozen, is_frozen) = sync_channel(1);
    let (may_go_on, go_on) = sync_channel(1);
    slow_agent(UnixListener::bind(&socket).unwrap(), frozen, go_on);
    let agent = Agent::start(PROGRAM, dir.path().join("state"));
    let (qmp, qga) = (vm.agent_qmp().display().to_string(), socket.display().to_string());
    agent.ok(&["protect", "vm", "--qmp", &qmp, "--guest-agent", &qga]);
    agent.wait_state("vm", "protected", STATE_LIMIT);
    let was = settings(vm.qmp());

    let words = ["mark", "vm", "--tag", "one", "--quiesce", "--memory"];
    let marked = std::thread::scope(|threads| {
        let marking = threads.spawn(|| agent.run(&words));
        is_frozen.recv_timeout(REPLY_LIMIT).unwrap();
        assert_eq!(settings(vm.qmp()), was);
        // Nobody reads: it goes on until it is cancelled.
        let foreign = dir.path().join("foreign.sock");
        let _listener = UnixListener::bind(&foreign).unwrap();
        let uri = format!("unix:{}", foreign.display());
        vm.qmp().execute("migrate", json!({ "uri": uri }));
        may_go_on.send(()).unwrap();
        let marked = marking.join().unwrap();
        let migration = vm.qmp().execute("query-migrate", json!({}));
        assert!(
            ["setup", "active"].contains(&migration["status"].as_str().unwrap()),
            "{migration}"
        );
        assert_eq!(settings(vm.qmp()), was);
        vm.qmp().execute("migrate_cancel", json!({}));
        marked
    });
    assert_eq!(marked.code, 4, "{marked:?}");
    assert!(marked.stderr.contains("migrat"), "{marked:?}");
    assert!(!agent.state().join("intents").read_dir().is_ok_and(|mut d| d.next().is_some()));
    let cancelled = poll(REPLY_LIMIT, || {
        let migration = vm.qmp().execute("query-migrate", json!({}));
        (migration["status"] == "cancelled").then_some(())
    });
    assert!(cancelled.is_some());

    // Without it the next one is made, and leaves everything as it was.
    may_go_on.send(()).unwrap();
    let marked = agent.run(&["mark", "vm", "--tag", "two", "--quiesce", "--memory"]);
    is_frozen.recv_timeout(REPLY_LIMIT).unwrap();
    assert_eq!(marked.code, 0, "{marked:?}");
    assert_eq!(settings(vm.qmp()), was);
    agent.wait_state("vm", "protected", STATE_LIMIT);
}
