//! A host without file descriptors, and journals that somebody made to do harm: real processes under limits.

use super::shop::Shop;
use crate::kit::{Cli, Outcome};
use afterimage_journal::format::record::Kind;
use afterimage_journal::log::Draft;
use afterimage_journal::{Journal, Options, layout};
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Units that are added: more files than are open at a time under the limits here.
const UNITS: u64 = 40;

/// The shop's journal with many units, without a catalogue.
fn large() -> Shop {
    let shop = Shop::new();
    let dir = layout::journal_dir(shop.cli.state(), "shop").unwrap();
    let unit_wait = Duration::from_secs(20);
    let (journal, _) = Journal::open(&dir, Options { unit_wait, ..Options::default() }).unwrap();
    let payload = [7; 60_000];
    for i in 0..UNITS * 17 {
        let draft = Draft { volume: 1, len: payload.len() as u32, ..Draft::of(Kind::Write) };
        journal.append(&Draft { addr: i % 8 * 65_536, ..draft }, &payload).unwrap();
    }
    journal.close().unwrap();
    assert!(layout::units(&dir).unwrap().len() as u64 >= UNITS);
    shop
}

/// The shop's commands with so many file descriptors at most.
fn limited(shop: &Shop, files: u64) -> Cli {
    let limit = format!("ulimit -n {files}; exec \"$@\"");
    Cli::new(shop.cli.program(), shop.cli.state()).through(&["sh", "-c", &limit, "sh"])
}

fn is_no_rot(outcome: &Outcome, what: &str) {
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.code != 3 && outcome.code != 2, "{what}: {outcome:?}");
    for word in ["damaged", "there is no guest", "panicked"] {
        assert!(!said.contains(word), "{what}: {outcome:?}");
    }
}

#[test]
fn few_file_descriptors_are_no_damage() {
    let shop = large();
    let to = shop.path("out").display().to_string();
    let commands: [&[&str]; 3] = [
        &["verify", "shop"],
        &["checkpoints", "web"],
        &["restore", "web", "--at", "#1", "--to", &to],
    ];
    for command in commands {
        let mut done = Vec::new();
        for files in (4..28).step_by(2).chain([40, 64]) {
            let outcome = limited(&shop, files).run(command);
            is_no_rot(&outcome, &format!("{command:?} with {files} files"));
            done.push(outcome.code == 0);
            let _ = std::fs::remove_dir_all(&to);
        }
        assert!(!done[0] && done[done.len() - 1], "{command:?}: {done:?}");
    }
}

#[test]
fn a_unit_that_claims_a_large_index_is_read_in_little_memory() {
    use afterimage_journal::format::index::{FOOTER_BYTES, Footer};
    use afterimage_journal::format::unit_header::{BLOCK_BYTES, UnitHeader};
    let shop = Shop::new();
    let file = std::fs::File::options().read(true).write(true).open(shop.unit()).unwrap();
    let mut block = vec![0; BLOCK_BYTES as usize];
    file.read_exact_at(&mut block, 0).unwrap();
    // Sparse, and all that it says of itself passes its checksums.
    let unit_bytes = 1 << 30;
    let header = UnitHeader { unit_bytes, ..UnitHeader::decode(&block).unwrap() };
    file.set_len(unit_bytes).unwrap();
    file.write_all_at(&header.encode(), 0).unwrap();
    let count = 9 << 20;
    let index_at = unit_bytes - FOOTER_BYTES - count * 48;
    let footer = Footer { count, first_seq: 1, last_seq: count, index_at, index_crc: 0 };
    file.write_all_at(&footer.encode(&header.salt), unit_bytes - FOOTER_BYTES).unwrap();
    drop(file);
    // 400 MB of address space: less than the index would take.
    let limit = "ulimit -v 400000; exec \"$@\"";
    let cli = Cli::new(shop.cli.program(), shop.cli.state()).through(&["sh", "-c", limit, "sh"]);
    for command in [&["checkpoints", "web"][..], &["verify", "shop"]] {
        let outcome = cli.run(command);
        assert!((0..=3).contains(&outcome.code), "{command:?}: {outcome:?}");
        assert!(!outcome.stderr.contains("allocation"), "{outcome:?}");
    }
}
