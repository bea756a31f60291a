//! Restores of each form of WHEN, judged by what was written; what is listed; what is refused.

use super::shop::{Shop, WRITE_BYTES, head_of};
use std::path::Path;

/// What the first blocks of both disks hold, a letter a block.
fn letters(report: &serde_json::Value) -> (String, String) {
    let name = |node: &str| {
        let head = head_of(report, node);
        let blocks = head.chunks(WRITE_BYTES);
        blocks
            .map(|block| {
                assert!(block.iter().all(|b| *b == block[0]), "a block of two writes");
                if block[0] == 0 { '.' } else { char::from(block[0]) }
            })
            .collect()
    };
    (name("system"), name("data"))
}

#[test]
fn each_form_of_when_restores_what_was_written_by_then() {
    let shop = Shop::new();
    let [a, b, _, d] = shop.writes;
    let seconds_ago = |seconds: u64| {
        let then: jiff::Timestamp = shop.time(seconds).parse().unwrap();
        let age = jiff::Timestamp::now().duration_since(then).as_millis();
        format!("{age}ms ago")
    };
    let zoned: jiff::Timestamp = shop.time(25).parse().unwrap();
    let local = zoned.to_zoned(jiff::tz::TimeZone::system());
    let cases = [
        (format!("seq:{a}"), ("A...", "....")),
        (format!("seq:{b}"), ("A...", ".B..")),
        (format!("seq:{d}"), ("D.C.", ".B..")),
        ("#1".to_owned(), ("A...", "....")),
        ("#2".to_owned(), ("A...", ".B..")),
        ("tag:before-upgrade".to_owned(), ("A...", ".B..")),
        (shop.time(5), ("....", "....")),
        (shop.time(15), ("A...", "....")),
        (shop.time(95), ("A.C.", ".B..")),
        (seconds_ago(15), ("A...", "....")),
        (local.strftime("%Y-%m-%d %H:%M:%S").to_string(), ("A...", ".B..")),
        (local.strftime("%H:%M:%S").to_string(), ("A...", ".B..")),
        ("latest".to_owned(), ("D.C.", ".B..")),
    ];
    for (i, (when, expected)) in cases.iter().enumerate() {
        let outcome = shop.restore(when, &format!("out{i}"));
        assert_eq!(outcome.code, 0, "{when}: {outcome:?}");
        let (system, data) = letters(&outcome.json());
        assert_eq!((system.as_str(), data.as_str()), *expected, "{when}");
    }
}

#[test]
fn the_pool_alone_copied_elsewhere_restores_the_same() {
    let shop = Shop::new();
    let copy = shop.path("copy");
    copy_tree(&shop.cli.state().join("pool"), &copy.join("pool"));
    std::fs::remove_dir_all(shop.cli.state()).unwrap();
    let cli = crate::kit::Cli::new(env!("CARGO_BIN_EXE_afterimage"), &copy);
    let to = shop.path("out").display().to_string();
    let report = cli.json(&["restore", "shop", "--at", "latest", "--to", &to]);
    assert_eq!(letters(&report), ("D.C.".into(), ".B..".into()));
    assert_eq!(cli.json(&["checkpoints", "web"]).as_array().unwrap().len(), 3);
    cli.ok(&["verify", "web"]);
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn moments_that_cannot_be_restored_are_refused_with_the_nearest_points() {
    let shop = Shop::new();
    let [_, _, c, d] = shop.writes;
    let cases = [
        (shop.time(60), &["gap", "before", "after", "detached by hand"][..]),
        (shop.time(45), &["gap", "before", "after"]),
        (format!("seq:{c}"), &["gap", "before", "after"]),
        (shop.time(0).replace("202", "201"), &["before the journal's window"]),
        (shop.time(7200), &["future", "before"]),
        (shop.time(300), &["behind the newest"]),
        (format!("seq:{}", d + 1000), &["doesn't exist yet"]),
        ("#9".to_owned(), &["no checkpoint #9"]),
        ("tag:nobody".to_owned(), &["tag \"nobody\""]),
    ];
    for (when, words) in cases {
        let to = shop.path("refused").display().to_string();
        for command in [
            vec!["restore", "web", "--at", &when, "--to", &to],
            vec!["verify", "web", "--at", &when],
        ] {
            let outcome = shop.cli.run(&command);
            assert_eq!(outcome.code, 3, "{when}: {outcome:?}");
            assert!(outcome.stdout.is_empty(), "{when}: {outcome:?}");
            for word in words {
                assert!(outcome.stderr.contains(word), "{when} ({word}): {outcome:?}");
            }
        }
        assert!(!Path::new(&to).exists(), "{when}");
    }
}

#[test]
fn checkpoints_are_listed_as_scripts_expect_them() {
    let shop = Shop::new();
    let list = shop.cli.json(&["checkpoints", "web"]);
    let ids: Vec<u64> =
        list.as_array().unwrap().iter().map(|c| c["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3]);
    let second = &list[1];
    assert_eq!(second["tag"], "before-upgrade");
    assert_eq!(second["kind"], "crash");
    assert_eq!(second["memory"], false);
    assert_eq!(second["time"], shop.time(20));
    assert!(second["seq"].as_u64().unwrap() > shop.writes[1]);
    assert!(list[0]["tag"].is_null());
    let since = |when: &str| {
        let list = shop.cli.json(&["checkpoints", "web", "--since", when]);
        list.as_array().unwrap().len()
    };
    assert_eq!(since(&shop.time(15)), 2);
    assert_eq!(since("#3"), 1);
    assert_eq!(since("tag:before-upgrade"), 2);
    assert_eq!(since(&format!("seq:{}", shop.writes[3])), 1);
    let text = shop.cli.ok(&["checkpoints", "shop"]);
    assert!(text.contains("before-upgrade") && text.contains("gap from"), "{text}");
}

#[test]
fn status_without_an_agent_tells_what_the_journal_knows() {
    let shop = Shop::new();
    let status = shop.cli.json(&["status", "web"]);
    assert_eq!(status["guest"], "web");
    assert_eq!(status["state"], "gap");
    assert_eq!(status["offline"], true);
    assert_eq!(status["window"]["to"], shop.time(110));
    assert_eq!(status["gaps"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(status["gaps"][0]["to"], shop.time(90));
    assert_eq!(status["disks"][0]["node"], "system");
    assert_eq!(status["disks"][1]["synced_bytes"], super::shop::DISK_BYTES);
    assert!(status["journal"]["bytes"].as_u64().unwrap() >= 4 * 4096, "{status}");
    assert!(status["rpo_ms"].as_u64().unwrap() > 3_000_000, "{status}");
    for key in ["head_seq", "durable_seq", "stall_ms_max"] {
        assert!(status[key].is_u64(), "{key}: {status}");
    }
    let told = shop.cli.run(&["status", "web"]);
    assert_eq!(told.code, 0);
    assert!(told.stderr.contains("no agent runs"), "{told:?}");
    assert!(told.stdout.contains("detached by hand"), "{told:?}");
}

#[test]
fn verify_finds_a_sound_journal_sound() {
    let shop = Shop::new();
    let report = shop.cli.json(&["verify", "web"]);
    assert!(report["records"].as_u64().unwrap() > 8, "{report}");
    assert_eq!(report["damage"].as_array().unwrap().len(), 0);
    let report = shop.cli.json(&["verify", "web", "--at", "#2"]);
    for disk in report["disks"].as_array().unwrap() {
        assert_eq!(disk["restored"], disk["replayed"], "{report}");
    }
}

#[test]
fn without_memory_a_warm_restore_is_refused_and_says_what_there_is() {
    let shop = Shop::new();
    let to = shop.path("warm").display().to_string();
    let restore = |at: &str, more: &[&str]| {
        let base = ["restore", "web", "--at", at, "--to", &to, "--warm"];
        shop.cli.run(&[&base[..], more].concat())
    };
    for (when, word) in [("#2", "#2 has no memory"), ("latest", "newest"), ("seq:6", "seq:6")] {
        let outcome = restore(when, &[]);
        assert_eq!(outcome.code, 3, "{when}: {outcome:?}");
        assert!(outcome.stderr.contains(word), "{when}: {outcome:?}");
        assert!(outcome.stderr.contains("no checkpoint with memory"), "{when}: {outcome:?}");
    }
    assert_eq!(restore(&shop.time(7200), &[]).code, 3);
    let both = restore("#2", &["--disk", "system"]);
    assert_eq!(both.code, 2, "{both:?}");
    assert!(!Path::new(&to).exists());
    let help = shop.cli.ok(&["restore", "--help"]);
    assert!(help.contains("--warm") && help.contains("`latest`, the newest"), "{help}");
}

#[test]
fn moments_that_are_shown_can_be_pasted_back_though_the_clock_was_set_back() {
    let shop = Shop::set_back();
    let seq_of = |when: &str, to: String| {
        let outcome = shop.restore(when, &to);
        assert_eq!(outcome.code, 0, "{when}: {outcome:?}");
        outcome.json()["seq"].as_u64().unwrap()
    };
    let listed = shop.cli.run(&["checkpoints", "web"]);
    let cells = |line: &str| -> Vec<String> {
        line.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect()
    };
    let rows: Vec<Vec<String>> = listed.stdout.lines().skip(1).map(cells).collect();
    assert_eq!(rows.len(), 4, "{listed:?}");
    for (i, row) in rows.iter().enumerate() {
        let seq: u64 = row[4].parse().unwrap();
        assert_eq!(seq_of(&row[1], format!("checkpoint{i}")), seq, "{row:?}");
    }
    // Those of before and behind the stretch that came twice keep their time.
    let by_number = rows.iter().map(|row| row[1].starts_with("seq:")).collect::<Vec<_>>();
    assert_eq!(by_number, [false, false, true, true], "{listed:?}");

    let status = shop.cli.run(&["status", "web"]);
    let line = status.stdout.lines().find(|l| l.contains("restorable from")).unwrap().to_owned();
    let (from, to) = line.split_once("restorable from ").unwrap().1.split_once(" to ").unwrap();
    assert!(to.starts_with("seq:"), "{line}");
    assert!(seq_of(from, "from".into()) < seq_of(to, "to".into()), "{line}");
    let json = shop.cli.run(&["status", "web", "--json"]).json();
    assert_eq!(json["window"]["to_seq"], serde_json::json!(to[4..].parse::<u64>().unwrap()));
    assert!(json["window"].get("from_seq").is_none(), "{json}");
}
