//! Checkpoints with the guest's file systems frozen, and what becomes of a frozen guest when the
//! agent dies.

use super::copy::{Copy, Warm};
use super::evidence::{SOME_WRITES, history, prefix_of, scene_with_roles};
use super::{STATE_LIMIT, Scene};
use crate::kit::{Cli, Disk, Export, Outcome, REPLY_LIMIT, image, poll};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use tempfile::TempDir;

/// Between the agent and the guest's own: hands everything through, but the first answer to a
/// freeze, which it keeps.
struct Keeper {
    path: PathBuf,
    frozen: Receiver<()>,
}

impl Keeper {
    fn new(path: PathBuf, guest_agent: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        let (sender, frozen) = channel();
        let kept = Arc::new(AtomicBool::new(false));
        std::thread::spawn(move || {
            // One at a time, as the guest's port has it.
            for client in listener.incoming().map_while(Result::ok) {
                let guest = UnixStream::connect(&guest_agent).unwrap();
                hand_through(&client, &guest, &kept, &sender);
            }
        });
        Self { path, frozen }
    }
}

fn hand_through(
    client: &UnixStream,
    guest: &UnixStream,
    kept: &Arc<AtomicBool>,
    frozen: &Sender<()>,
) {
    let asked = Arc::new(AtomicBool::new(false));
    let (mut answers, mut to_client) = (guest.try_clone().unwrap(), client.try_clone().unwrap());
    let (seen, kept, frozen) = (Arc::clone(&asked), Arc::clone(kept), frozen.clone());
    let back = std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = answers.read(&mut bytes) {
            if seen.load(Ordering::SeqCst) && !kept.swap(true, Ordering::SeqCst) {
                frozen.send(()).unwrap();
                continue;
            }
            if to_client.write_all(&bytes[..count]).is_err() {
                return;
            }
        }
    });
    let mut to_guest = guest;
    let mut lines = BufReader::new(client);
    let mut line = Vec::new();
    while let Ok(1..) = lines.read_until(b'\n', &mut line) {
        if String::from_utf8_lossy(&line).contains("guest-fsfreeze-freeze") {
            asked.store(true, Ordering::SeqCst);
        }
        to_guest.write_all(&line).unwrap();
        line.clear();
    }
    let _ = guest.shutdown(std::net::Shutdown::Both);
    back.join().unwrap();
}

fn mark(cli: &Cli, tag: &str) -> Outcome {
    cli.run(&["mark", "vm", "--tag", tag, "--quiesce"])
}

fn set_guest_agent(scene: &Scene, path: &Path) {
    scene.agent.ok(&["set", "vm", "--guest-agent", path.to_str().unwrap()]);
}

fn with_file_system(path: PathBuf) -> Disk {
    image::ext4(&path, super::DISK_BYTES);
    Disk::raw(path)
}

#[test]
fn a_quiesced_checkpoint_is_application_consistent_and_a_guest_frozen_by_a_dead_agent_is_thawed() {
    let disks: [fn(PathBuf) -> Disk; 3] = [Disk::raw, Disk::raw, with_file_system];
    let mut scene = scene_with_roles("writer,demo", &disks, |builder| {
        builder.guest_agent().append("ai.writer=vda,vdb ai.demo=vdc")
    });
    scene.vm.ask("writer start", "writer started");
    scene.protected();

    // Nothing is known of a guest agent; then a socket where none listens.
    let unknown = mark(&scene.agent, "unknown");
    assert_eq!(unknown.code, 2, "{unknown:?}");
    assert!(unknown.stderr.contains("--guest-agent"), "{unknown:?}");
    set_guest_agent(&scene, Path::new("/nonexistent/qga.sock"));
    let absent = mark(&scene.agent, "absent");
    assert_eq!(absent.code, 4, "{absent:?}");
    assert!(absent.stderr.contains("/nonexistent/qga.sock"), "{absent:?}");
    assert!(absent.stderr.contains("without --quiesce"), "{absent:?}");

    set_guest_agent(&scene, &scene.vm.guest_agent_socket());
    let marked = mark(&scene.agent, "quiet");
    assert_eq!(marked.code, 0, "{marked:?}");
    let status = |scene: &mut Scene| scene.vm.guest_agent("guest-fsfreeze-status", json!({}));
    assert_eq!(status(&mut scene), Ok(json!("thawed")));
    let list = scene.agent.json(&["checkpoints", "vm"]);
    let quiet = list.as_array().unwrap().iter().find(|c| c["tag"] == "quiet").unwrap();
    assert_eq!(quiet["kind"], "application", "{list}");
    for failed in ["unknown", "absent"] {
        assert!(!list.to_string().contains(failed), "{list}");
    }
    prefix_of(&scene.restore("tag:quiet")[..2]);

    // With memory the guest is frozen just for the instant.
    let both = scene.agent.run(&["mark", "vm", "--tag", "both", "--quiesce", "--memory"]);
    assert_eq!(both.code, 0, "{both:?}");
    assert_eq!(status(&mut scene), Ok(json!("thawed")));
    let list = scene.agent.json(&["checkpoints", "vm"]);
    let both = list.as_array().unwrap().iter().find(|c| c["tag"] == "both").unwrap();
    assert_eq!((&both["kind"], &both["memory"]), (&json!("application"), &json!(true)), "{list}");
    prefix_of(&scene.restore("tag:both")[..2]);
    copies_wake_up_thawed(&scene);

    // The agent is killed between the freeze and the thaw.
    let keeper = Keeper::new(scene.dir.path().join("keeper.sock"), scene.vm.guest_agent_socket());
    set_guest_agent(&scene, &keeper.path);
    let head = history(&scene.agent).head;
    std::thread::scope(|threads| {
        let cli: &Cli = &scene.agent;
        let marking = threads.spawn(|| mark(cli, "cut"));
        keeper.frozen.recv_timeout(REPLY_LIMIT).unwrap();
        assert!(cli.state().join("intents/vm.json").exists());
        scene.agent.kill_worker();
        let cut = marking.join().unwrap();
        assert_eq!(cut.code, 4, "{cut:?}");
    });
    let thawed = poll(REPLY_LIMIT, || (status(&mut scene) == Ok(json!("thawed"))).then_some(()));
    assert!(thawed.is_some(), "the guest stays frozen: {}", scene.agent.last_words());
    let undone = poll(REPLY_LIMIT, || {
        let mut intents = std::fs::read_dir(scene.agent.state().join("intents")).unwrap();
        intents.next().is_none().then_some(())
    });
    assert!(undone.is_some(), "the intent stays");
    super::evidence::wait_session_behind(&scene.agent, head);
    assert!(!scene.agent.json(&["checkpoints", "vm"]).to_string().contains("cut"));
    std::thread::sleep(SOME_WRITES);
    let before = scene.vm.ask_last("writer pause", "writer paused");
    set_guest_agent(&scene, &scene.vm.guest_agent_socket());
    assert_eq!(mark(&scene.agent, "again").code, 0);
    assert_eq!(prefix_of(&scene.restore("tag:again")[..2]), before);
    assert_eq!(scene.vm.stats("writer").errors, 0);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
}

/// Resumes copies of the checkpoint `both`, restored and exported: their guest writes to the file system
/// that was frozen.
fn copies_wake_up_thawed(scene: &Scene) {
    let goes_on = |mut copy: Copy| {
        copy.ask("demo start", "demo started ");
        copy.ask("demo grant to=3", "demo ack id=3");
    };
    let warm = Warm::restore(&scene.agent, "vm", "tag:both");
    goes_on(warm.start("vm"));

    let dir = TempDir::with_prefix("ai-").unwrap();
    let scratch = dir.path().display().to_string();
    let more = ["--warm", "--writable", "--scratch", &scratch];
    let export = Export::start(&scene.agent, "vm", "tag:both", &dir.path().join("nbd"), &more);
    let script = PathBuf::from(export.report["memories"][0]["script"].as_str().unwrap());
    goes_on(Copy::start(&script, &dir.path().join("vm.port.sock")));

    // Of a copy whose guest agent never answers it is told, within a limit.
    let silent = dir.path().join("silent.sock");
    let _port = UnixListener::bind(&silent).unwrap();
    let silent = silent.display().to_string();
    let told = scene.agent.command().args(["thaw", &silent, "--within", "1s"]).output().unwrap();
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.code() == Some(4) && said.contains("still frozen"), "{said}");
}

#[test]
fn a_guest_without_an_agent_is_not_frozen_and_the_answer_comes_soon() {
    // QEMU has the port, and nobody in the guest listens.
    let scene = Scene::new();
    let path = scene.dir.path().join("silent.sock");
    let port = UnixListener::bind(&path).unwrap();
    scene.protect(&["--guest-agent", path.to_str().unwrap()]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    let begin = std::time::Instant::now();
    let refused = mark(&scene.agent, "silent");
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
    assert!(refused.stderr.contains("silent.sock"), "{refused:?}");
    assert!(!scene.agent.state().join("intents/vm.json").exists());
    assert_eq!(scene.agent.json(&["status", "vm"])["state"], "protected");
    drop(port);

    // One that says that it has frozen, and does not answer a thaw for longer than the guard waits.
    let path = scene.dir.path().join("mute.sock");
    let mute = Arc::new(AtomicBool::new(true));
    mute_agent(UnixListener::bind(&path).unwrap(), Arc::clone(&mute));
    set_guest_agent(&scene, &path);
    let (worker, gaps) =
        (scene.agent.worker_pid(), scene.agent.json(&["status", "vm"])["gaps"].clone());
    let unthawed = mark(&scene.agent, "mute");
    assert_eq!(unthawed.code, 4, "{unthawed:?}");
    assert!(unthawed.stderr.contains("thawed"), "{unthawed:?}");
    assert_eq!(scene.agent.worker_pid(), worker, "{}", scene.agent.last_words());
    let intent = scene.agent.state().join("intents/vm.json");
    assert!(intent.exists());
    mute.store(false, Ordering::SeqCst);
    let thawed = poll(REPLY_LIMIT, || (!intent.exists()).then_some(()));
    assert!(thawed.is_some(), "it is thawed as soon as it answers");
    let status = scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    assert_eq!(status["gaps"], gaps, "{status}");
}

/// A guest agent that answers everything but a thaw, for as long as it is mute.
fn mute_agent(listener: UnixListener, mute: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let mute = Arc::clone(&mute);
            std::thread::spawn(move || serve_but_thaw(&client, &mute));
        }
    });
}

fn serve_but_thaw(client: &UnixStream, mute: &AtomicBool) {
    let mut out = client;
    for line in BufReader::new(client).split(b'\n').map_while(Result::ok) {
        let text: String = line.iter().filter(|b| b.is_ascii()).map(|b| char::from(*b)).collect();
        let asked: serde_json::Value = serde_json::from_str(&text).unwrap();
        let answer = match asked["execute"].as_str().unwrap() {
            "guest-sync-delimited" => asked["arguments"]["id"].clone(),
            "guest-fsfreeze-thaw" if mute.load(Ordering::SeqCst) => continue,
            "guest-ping" => json!({}),
            _ => json!(1),
        };
        let marker: &[u8] = if text.contains("delimited") { &[0xff] } else { &[] };
        let answer = [marker, format!("{}\n", json!({ "return": answer })).as_bytes()].concat();
        if out.write_all(&answer).is_err() {
            return;
        }
    }
}
