//! `export` without a guest: the clients of others read and write what it serves, judged by what
//! `restore` makes of the same moments; what it refuses, and how it ends.

use super::shop::{DISK_BYTES, Shop, WRITE_BYTES};
use crate::kit::{Cli, Export, SmallFs, image};
use rustix::process::Signal;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs a client that must succeed; gives what it printed.
#[track_caller]
fn client(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &stderr
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.env("PATH", path).args(arguments);
    command.output().unwrap_or_else(|e| panic!("{program}: {e} (tests/guest/install.sh)"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An export of `web` on a socket of that name.
fn export(shop: &Shop, at: &str, socket: &str, more: &[&str]) -> Export {
    Export::start(&shop.cli, "web", at, &shop.path(socket), more)
}

/// Scratch files of tests lie beside their journals.
fn writable(shop: &Shop, at: &str, socket: &str) -> Export {
    let dir = shop.path("scratch");
    std::fs::create_dir_all(&dir).unwrap();
    export(shop, at, socket, &["--writable", "--scratch", text(&dir)])
}

/// The restored image of a disk.
fn restored(shop: &Shop, at: &str, to: &str, node: &str) -> PathBuf {
    let report = shop.restore(at, to).json();
    let disks = report["disks"].as_array().unwrap();
    let disk = disks.iter().find(|d| d["node"] == node).unwrap();
    PathBuf::from(disk["path"].as_str().unwrap())
}

fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut words = vec!["-f", "raw", uri];
    words.extend(commands.iter().flat_map(|c| ["-c", c]));
    client("qemu-io", &words)
}

#[test]
fn several_moments_at_a_time_are_what_restore_makes_of_them_for_the_clients_of_others() {
    let shop = Shop::new();
    let [a, b, _, d] = shop.writes;
    let moments =
        [format!("seq:{a}"), "tag:before-upgrade".into(), format!("seq:{d}"), shop.time(95)];
    let exports: Vec<Export> = moments
        .iter()
        .enumerate()
        .map(|(i, at)| export(&shop, at, &format!("s{i}"), &[]))
        .collect();
    assert!(exports[1].report["seq"].as_u64().unwrap() > b);
    for (i, (at, export)) in moments.iter().zip(&exports).enumerate() {
        for node in ["system", "data"] {
            let image = restored(&shop, at, &format!("out{i}{node}"), node);
            let uri = export.uri(node);
            client("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), &uri]);
            let copy = shop.path(&format!("copy{i}{node}"));
            client("nbdcopy", &[&export.uri(&format!("web/{node}")), text(&copy)]);
            assert!(std::fs::read(&copy).unwrap() == std::fs::read(&image).unwrap(), "{at}");
        }
    }
    for export in exports {
        let outcome = export.end(Signal::TERM);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (0, ""), "{outcome:?}");
        assert_eq!(outcome.stderr, "");
    }
}

#[test]
fn the_exports_are_listed_with_their_sizes_and_tell_what_is_a_hole() {
    let shop = Shop::new();
    let [_, b, ..] = shop.writes;
    let export = export(&shop, &format!("seq:{b}"), "s", &[]);
    let report = &export.report;
    assert_eq!(report["socket"], text(&shop.path("s")));
    assert_eq!((&report["seq"], &report["time"]), (&b.into(), &shop.time(20).into()));
    let expected = serde_json::json!([
        {"name": "system", "node": "system", "guest": "web", "bytes": DISK_BYTES},
        {"name": "data", "node": "data", "guest": "web", "bytes": DISK_BYTES},
    ]);
    assert_eq!(report["exports"], expected);

    let listed: Value =
        serde_json::from_str(&client("nbdinfo", &["--list", "--json", &export.uri("")])).unwrap();
    let mut names: Vec<&str> = listed["exports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["export-name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["data", "system", "web/data", "web/system"]);
    for one in listed["exports"].as_array().unwrap() {
        assert_eq!(one["export-size"], DISK_BYTES);
        assert_eq!((&one["is_read_only"], &one["can_multi_conn"]), (&true.into(), &true.into()));
    }
    let map: Value =
        serde_json::from_str(&client("nbdinfo", &["--map", "--json", &export.uri("data")]))
            .unwrap();
    let runs: Vec<(u64, u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|run| {
            let number = |key: &str| run[key].as_u64().unwrap();
            (number("offset"), number("length"), number("type"))
        })
        .collect();
    let block = WRITE_BYTES as u64;
    assert_eq!(runs, [(0, block, 3), (block, block, 0), (2 * block, DISK_BYTES - 2 * block, 3)]);
}

#[test]
fn a_chosen_disk_alone_is_the_default_export() {
    let shop = Shop::new();
    let export = export(&shop, "latest", "s", &["--disk", "data"]);
    let image = restored(&shop, "latest", "out", "data");
    for name in ["", "data", "web/data"] {
        client("qemu-img", &["compare", text(&image), &export.uri(name)]);
    }
    assert!(!run("nbdinfo", &[&export.uri("system")]).status.success());
}

#[test]
fn what_is_written_is_read_back_and_never_touches_the_moment() {
    let shop = Shop::new();
    let image = restored(&shop, "latest", "out", "system");
    let written = writable(&shop, "latest", "w");
    let other = writable(&shop, "latest", "v");
    let point = export(&shop, "latest", "r", &[]);
    // A whole file system over it, judged by its own checker.
    let fs = shop.path("fs");
    image::ext4(&fs, DISK_BYTES);
    client("nbdcopy", &[text(&fs), &written.uri("system")]);
    client("qemu-img", &["compare", text(&fs), &written.uri("system")]);
    let copy = shop.path("copy");
    client("nbdcopy", &[&written.uri("system"), text(&copy)]);
    client("e2fsck", &["-f", "-n", text(&copy)]);
    // Sectors, zeroes and discards of sizes that are no blocks.
    let commands = [
        "write -P 0x11 512 512",
        "write -P 0x22 65536 131072",
        "write -z 70000 3000",
        "write -z -u 131072 4096",
        "discard 139264 8192",
        "flush",
        "read -P 0x11 512 512",
        "read -P 0x22 65536 4464",
        "read -P 0 70000 3000",
        "read -P 0 131072 4096",
        "read -P 0 139264 8192",
        "read -P 0x22 147456 49152",
    ];
    let said = qemu_io(&written.uri("data"), &commands);
    assert!(!said.contains("failed") && !said.contains("Pattern"), "{said}");
    client("qemu-img", &["compare", text(&image), &point.uri("system")]);
    client("qemu-img", &["compare", text(&image), &other.uri("system")]);
    let refused = run("qemu-io", &["-f", "raw", &point.uri("data"), "-c", "write 0 512"]);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned()
        + &String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("ead-only") || said.contains("Permission"), "{said}");
    assert_eq!(written.end(Signal::INT).code, 0);
    assert_eq!(std::fs::read_dir(shop.path("scratch")).unwrap().count(), 0);
    let again = writable(&shop, "latest", "w");
    client("qemu-img", &["compare", text(&image), &again.uri("system")]);
}

#[test]
fn a_full_scratch_directory_is_the_clients_error_and_the_export_lives_on() {
    let Some(small) = SmallFs::new(8 << 20) else { return };
    let shop = Shop::new();
    let scratch = small.path().display().to_string();
    let served = export(&shop, "#2", "w", &["--writable", "--scratch", &scratch]);
    assert!(served.report["scratch_free_bytes"].as_u64().unwrap() < 8 << 20);
    let uri = served.uri("data");
    qemu_io(&uri, &["write -P 0x33 0 4096"]);
    let filler = small.fill(0);
    let full = run("qemu-io", &["-f", "raw", &uri, "-c", "write -P 0x44 262144 524288"]);
    let said = String::from_utf8_lossy(&full.stderr) + String::from_utf8_lossy(&full.stdout);
    assert!(said.contains("No space left"), "{said}");
    qemu_io(&uri, &["read -P 0x33 0 4096", "read -P 0x42 4096 4096"]);
    std::fs::remove_file(filler).unwrap();
    let said = qemu_io(&uri, &["write -P 0x44 262144 524288", "read -P 0x44 262144 524288"]);
    assert!(!said.contains("failed"), "{said}");
    assert_eq!(served.end(Signal::TERM).code, 0);
}

#[test]
fn a_stale_socket_is_taken_over_and_one_that_is_listened_on_is_not() {
    let shop = Shop::new();
    let socket = shop.path("s");
    export(&shop, "#1", "s", &[]).kill();
    assert!(socket.exists(), "SIGKILL leaves it");
    let first = export(&shop, "#1", "s", &[]);
    let words = ["export", "web", "--at", "#2", "--socket", text(&socket)];
    let second = shop.cli.run(&words);
    assert_eq!(second.code, 2, "{second:?}");
    assert!(second.stderr.contains("another server listens"), "{second:?}");
    client("nbdinfo", &[&first.uri("system")]);
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(first.end(Signal::HUP).code, 0);
    assert!(!socket.exists());
    // Somebody else's socket counts the same.
    let _other = UnixListener::bind(&socket).unwrap();
    assert_eq!(shop.cli.run(&words).code, 2);
    assert!(socket.exists());
}

#[test]
fn a_moment_that_cannot_be_restored_is_refused_with_the_nearest_points_and_no_socket_appears() {
    let shop = Shop::new();
    let socket = shop.path("s");
    let [.., c, d] = shop.writes;
    for (at, words) in [
        (format!("seq:{c}"), &["gap", "before", "after"][..]),
        (shop.time(60), &["gap", "before", "after"]),
        (shop.time(7200), &["future"]),
        (format!("seq:{}", d + 1000), &["doesn't exist yet"]),
        ("#9".into(), &["no checkpoint #9"]),
    ] {
        let outcome = shop.cli.run(&["export", "web", "--at", &at, "--socket", text(&socket)]);
        assert_eq!(outcome.code, 3, "{at}: {outcome:?}");
        for word in words {
            assert!(outcome.stderr.contains(word), "{at} ({word}): {outcome:?}");
        }
        assert!(!socket.exists() && outcome.stdout.is_empty(), "{at}: {outcome:?}");
    }
}

#[test]
fn wrong_words_and_paths_are_refused_with_what_to_do() {
    let shop = Shop::new();
    let socket = shop.path("s").display().to_string();
    let long = shop.path(&"x".repeat(108)).display().to_string();
    let nowhere = shop.path("none/s").display().to_string();
    let file = shop.path("file").display().to_string();
    std::fs::write(&file, "mine").unwrap();
    let below_file = format!("{file}/s");
    let scratch = shop.path("none").display().to_string();
    let at = ["--at", "latest", "--socket"];
    for (more, words) in [
        (vec![socket.as_str(), "--disk", "dat"], &["\"dat\"", "web/data", "web/system"][..]),
        (vec![&long], &["107", "shorter"]),
        (vec![&nowhere], &["no directory", "none", "--socket"]),
        (vec![&below_file], &["no directory", "file"]),
        (vec![&file], &["no socket", "another path"]),
        (vec![&socket, "--scratch", "/tmp"], &["--writable"]),
        (vec![&socket, "--writable", "--scratch", &scratch], &["none", "--scratch"]),
        (vec![&socket, "--writable", "--scratch", &file], &["file", "--scratch"]),
    ] {
        let words_of = [&["export", "web"], &at[..], &more[..]].concat();
        let outcome = shop.cli.run(&words_of);
        assert_eq!(outcome.code, 2, "{more:?}: {outcome:?}");
        for word in words {
            assert!(outcome.stderr.contains(word), "{more:?} ({word}): {outcome:?}");
        }
        assert!(!Path::new(&socket).exists(), "{more:?}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    let unknown = shop.cli.run(&["export", "wbe", "--at", "latest", "--socket", &socket]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    let nothing = Cli::new(env!("CARGO_BIN_EXE_afterimage"), shop.path("nostate"));
    assert_eq!(nothing.run(&["export", "web", "--at", "latest", "--socket", &socket]).code, 2);
}

#[test]
fn a_damaged_record_is_an_error_for_its_range_and_named() {
    let shop = Shop::new();
    let [_, b, ..] = shop.writes;
    // The payload of B is the only 4 KiB of them in the unit.
    let mut unit = std::fs::read(shop.unit()).unwrap();
    let at = unit.windows(WRITE_BYTES).position(|w| w.iter().all(|x| *x == b'B')).unwrap();
    unit[at + 17] ^= 1;
    std::fs::write(shop.unit(), unit).unwrap();
    let served = export(&shop, &format!("seq:{b}"), "s", &[]);
    let rotten = run("qemu-io", &["-r", "-f", "raw", &served.uri("data"), "-c", "read 4096 4096"]);
    let said = String::from_utf8_lossy(&rotten.stderr) + String::from_utf8_lossy(&rotten.stdout);
    assert!(said.contains("Input/output error"), "{said}");
    let sound = ["-r", "-f", "raw", &served.uri("system"), "-c", "read -P 0x41 0 4096"];
    let said = client("qemu-io", &sound);
    assert!(!said.contains("failed"), "{said}");
    let outcome = served.end(Signal::TERM);
    for word in ["web/data", &format!("record {b}"), "unit-0000000001", "byte 4096"] {
        assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
    }
}
