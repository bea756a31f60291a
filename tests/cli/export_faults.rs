//! `export` where something goes wrong beside it: its scratch directory is full, another export wants the
//! same socket, a file of somebody's is in the way.

use super::shop::{DISK_BYTES, Shop, WRITE_BYTES};
use crate::kit::{Export, SmallFs};
use rustix::process::Signal;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// What qemu-io says to some commands.
fn qemu_io(uri: &str, commands: &[String]) -> String {
    let mut words = vec!["-f", "raw", uri];
    words.extend(commands.iter().flat_map(|c| ["-c", c.as_str()]));
    let output = run("qemu-io", &words);
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The whole of an exported disk.
fn content(shop: &Shop, uri: &str) -> Vec<u8> {
    let copy = shop.path("content");
    let _ = std::fs::remove_file(&copy);
    let done = run("nbdcopy", &[uri, text(&copy)]);
    assert!(done.status.success(), "{done:?}");
    std::fs::read(copy).unwrap()
}

#[test]
fn a_write_that_a_full_scratch_directory_cuts_off_leaves_each_block_old_or_new() {
    let Some(small) = SmallFs::tmpfs(8 << 20) else { return };
    let shop = Shop::new();
    let scratch = small.path().display().to_string();
    let more = ["--writable", "--scratch", &scratch];
    let served = Export::start(&shop.cli, "web", "#2", &shop.path("w"), &more);
    let uri = served.uri("data");
    qemu_io(&uri, &[format!("write -z -u 0 {DISK_BYTES}")]);
    assert!(content(&shop, &uri).iter().all(|byte| *byte == 0));
    let filler = small.fill(300 << 10);
    let said = qemu_io(&uri, &[format!("write -P 0x55 0 {DISK_BYTES}")]);
    assert!(said.contains("No space left"), "{said}");
    let after = content(&shop, &uri);
    let of = |block: usize| block * WRITE_BYTES..(block + 1) * WRITE_BYTES;
    let blocks = DISK_BYTES as usize / WRITE_BYTES;
    for block in 0..blocks {
        let bytes = &after[of(block)];
        assert!(bytes.iter().all(|b| *b == bytes[0]) && [0, 0x55].contains(&bytes[0]), "{block}");
    }
    // A part of each block written now leaves the rest as it was read.
    std::fs::remove_file(filler).unwrap();
    let commands: Vec<String> = (0..blocks)
        .map(|block| format!("write -P 0x77 {} 100", block * WRITE_BYTES + 50))
        .collect();
    let said = qemu_io(&uri, &commands);
    assert!(!said.contains("failed"), "{said}");
    let now = content(&shop, &uri);
    let mut wanted = after;
    for block in 0..blocks {
        wanted[block * WRITE_BYTES + 50..block * WRITE_BYTES + 150].fill(0x77);
    }
    let wrong = (0..blocks).filter(|block| now[of(*block)] != wanted[of(*block)]).count();
    assert_eq!(wrong, 0, "of {blocks} blocks have bytes that nobody wrote");
    // Zeroes and discards of any range are zeroes to the byte.
    let said = qemu_io(&uri, &["discard 10 5000".into(), "write -z 9000 10".into()]);
    assert!(!said.contains("failed"), "{said}");
    wanted[10..5010].fill(0);
    wanted[9000..9010].fill(0);
    assert!(content(&shop, &uri) == wanted);
    assert_eq!(served.end(Signal::TERM).code, 0);
}

#[test]
fn of_exports_that_begin_at_once_on_one_socket_one_is_ready_and_the_others_say_why() {
    let shop = Shop::new();
    let socket = shop.path("s");
    let beside = shop.path("s.new");
    std::fs::write(&beside, "mine").unwrap();
    for round in 0..3 {
        let start = |_| {
            let mut command = Command::new(shop.cli.program());
            command.args(["export", "web", "--at", "latest", "--socket", text(&socket)]);
            command.arg("--state").arg(shop.cli.state()).stdin(Stdio::null());
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let mut ready = Vec::new();
        let mut refused = 0;
        for mut child in (0..4).map(start).collect::<Vec<_>>() {
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            if line.starts_with("ready") {
                ready.push(child);
                continue;
            }
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains("another server listens there"), "{said}");
            refused += 1;
        }
        assert_eq!((ready.len(), refused), (1, 3), "round {round}");
        let uri = format!("nbd+unix:///system?socket={}", socket.display());
        let size = run("nbdinfo", &["--size", &uri]);
        assert_eq!(String::from_utf8_lossy(&size.stdout).trim(), DISK_BYTES.to_string());
        // Killed, it leaves its socket: the next round begins with a stale one.
        let mut child = ready.remove(0);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(std::fs::read_to_string(&beside).unwrap(), "mine");
}
