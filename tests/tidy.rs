//! Style as an ordinary failing test: each finding is a question that somebody has to answer.

use std::path::{Path, PathBuf};

/// Lines of a file past which it has to say why it is one file.
const FILE_LINES_MAX: usize = 450;
/// Columns of a line.
const LINE_COLUMNS_MAX: usize = 110;

/// Files that may be longer, with their own limit: a ratchet, to be lowered.
const LONGER: &[(&str, usize)] = &[("journal/src/history/load.rs", 560)];

fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = [
        "src",
        "agent",
        "journal",
        "link",
        "restore",
        "s3",
        "nbd",
        "migration",
        "tests",
        "benches",
    ]
    .iter()
    .map(|name| root.join(name))
    .collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && entry.file_name() != "target" {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    found.sort();
    assert!(found.len() > 50, "the sources were not found: {found:?}");
    found
}

fn complaints(check: impl Fn(&str, &str) -> Vec<String>) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    for path in sources() {
        let text = std::fs::read_to_string(root.join(&path)).unwrap();
        let name = path.to_string_lossy();
        all.extend(check(&name, &text).into_iter().map(|c| format!("{name}: {c}")));
    }
    all.join("\n")
}

fn is_test(name: &str) -> bool {
    name.starts_with("tests/")
        || name.contains("/tests/")
        || name.contains("/examples/")
        || name.ends_with("tests.rs")
}

#[test]
fn files_and_lines_are_of_a_size_to_be_read() {
    let found = complaints(|name, text| {
        let limit =
            LONGER.iter().find(|(path, _)| *path == name).map_or(FILE_LINES_MAX, |(_, l)| *l);
        let mut found = Vec::new();
        let lines = text.lines().count();
        if lines > limit {
            found.push(format!("{lines} lines (limit {limit}): does it own one thing?"));
        }
        for (i, line) in text.lines().enumerate() {
            // A text that is one line stays one.
            if line.chars().count() > LINE_COLUMNS_MAX && !line.contains('"') {
                found.push(format!("line {} is too long", i + 1));
            }
        }
        found
    });
    assert!(found.is_empty(), "{found}");
}

#[test]
fn every_product_file_says_first_what_it_owns() {
    let found = complaints(|name, text| {
        let says = text.trim_start().starts_with("//!");
        if says || is_test(name) { Vec::new() } else { vec!["no module comment".into()] }
    });
    assert!(found.is_empty(), "{found}");
}

#[test]
fn product_code_leaves_nothing_half_done_and_does_not_panic_on_input() {
    // Written apart, so that this file does not find itself.
    let words = [
        concat!("unimplemented", "!("),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!(".unwrap", "()"),
        concat!(".expect", "(\""),
    ];
    let found = complaints(|name, text| {
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        if is_test(name) || name.starts_with("benches/") {
            return Vec::new();
        }
        let mut found = Vec::new();
        for (i, line) in product.lines().enumerate() {
            for word in words {
                let comment = line.trim_start().starts_with("//");
                if line.contains(word) && !comment {
                    found.push(format!("line {}: {word}", i + 1));
                }
            }
        }
        found
    });
    assert!(found.is_empty(), "{found}");
}
