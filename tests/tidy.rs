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

/// A test function, or one that a macro of the suite makes of its name.
fn has_test(text: &str, name: &str) -> bool {
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    text.match_indices(name).any(|(at, _)| {
        let (before, rest) = (&text[..at], &text[at + name.len()..]);
        let is_fn = before.ends_with("fn ") && rest.starts_with(['(', '<']);
        let is_listed = before.ends_with("    ") && rest.starts_with([':', ',']);
        ends(rest) && (is_fn || is_listed)
    })
}

#[test]
fn threats_name_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/threats.md")).unwrap();
    let mut named = 0;
    let mut found = Vec::new();
    for (path, name) in text.split('`').filter_map(|word| word.split_once(".rs::")) {
        named += 1;
        let path = format!("{path}.rs");
        match std::fs::read_to_string(root.join(&path)) {
            Ok(source) if has_test(&source, name) => {}
            Ok(_) => found.push(format!("{path} has no test {name}")),
            Err(e) => found.push(format!("{path}: {e}")),
        }
    }
    // Each line of an actor's table names one, or says that there is none.
    let (matrix, lines) = text.split_once("## Guest\n").unwrap();
    for line in lines.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| |")) {
        let id = line.split('|').nth(1).unwrap_or_default().trim();
        if !line.contains(".rs::") && !line.contains("no test") {
            found.push(format!("line {id:?} of docs/threats.md names no test"));
        }
        if id != "-" && !matrix.contains(id) {
            found.push(format!("line {id:?} of docs/threats.md is in no cell of its matrix"));
        }
    }
    assert!(named > 60, "the tests that docs/threats.md names were not found");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn small_files_are_read_by_the_one_place_that_waits_for_nobody_and_follows_no_link() {
    let words = ["fs::read(", "fs::read_to_string(", "fs::write(", "File::open(", "File::create("];
    let places = ["agent/src/", "journal/src/", "link/src/", "restore/src/", "s3/src/"];
    let found = complaints(|name, text| {
        if is_test(name) || !places.iter().any(|place| name.starts_with(place)) {
            return Vec::new();
        }
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        let is_found = |line: &&str| {
            let is_of_the_kernel = line.contains("\"/proc/") || line.contains("\"/dev/");
            words.iter().any(|word| line.contains(word)) && !is_of_the_kernel
        };
        let lines = product.lines().filter(is_found);
        lines.map(|line| format!("{}: use `storage::read_plain`", line.trim())).collect()
    });
    assert!(found.is_empty(), "{found}");
}

/// The pages that people read, with their texts.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["", "docs", "docs/decisions"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap().flatten() {
            // The history of changes names what was there then.
            let is_page = entry.path().extension().is_some_and(|e| e == "md");
            if is_page && entry.file_name() != "CHANGELOG.md" {
                let text = std::fs::read_to_string(entry.path()).unwrap();
                found.push((Path::new(folder).join(entry.file_name()), text));
            }
        }
    }
    assert!(found.len() > 10, "the pages were not found: {found:?}");
    found
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn expanded(path: &str) -> Vec<String> {
    let Some((before, (inside, after))) =
        path.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    else {
        return vec![path.to_owned()];
    };
    inside.split(',').flat_map(|one| expanded(&format!("{before}{one}{after}"))).collect()
}

/// True if a path of the repository exists; its last part may hold one `*`.
fn exists(path: &str) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((start, end)) = name.split_once('*') else { return path.exists() };
    let is_meant = |name: &str| name.strip_prefix(start).is_some_and(|rest| rest.ends_with(end));
    let entries = path.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let mut entries = entries.into_iter().flatten().flatten();
    entries.any(|entry| is_meant(&entry.file_name().to_string_lossy()))
}

/// True if a source text has this name as a whole word.
fn has_word(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| {
        !text[..at].ends_with(is_part) && !text[at + name.len()..].starts_with(is_part)
    })
}

/// What is wrong with a word between backquotes, if it names a path of the repository; and whether it does.
fn path_complaint(word: &str, sources: &[PathBuf]) -> (bool, Option<String>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (path, names) = word.split_once("::").unwrap_or((word, ""));
    let is_word = !word.contains(|c: char| c.is_whitespace());
    let is_bare = path.ends_with(".rs") && !path.contains('/');
    if is_word && is_bare && !path.contains(['{', '*']) {
        let is_there = sources.iter().any(|source| source.file_name().is_some_and(|n| n == path));
        return (true, (!is_there).then(|| format!("there is no file {path}")));
    }
    let top = path.split_once('/').map(|(top, _)| top).filter(|top| *top != "target");
    let is_ours = top.is_some_and(|top| !top.is_empty() && root.join(top).is_dir());
    if !is_word || !is_ours {
        return (false, None);
    }
    if let Some(missing) = expanded(path).iter().find(|path| !exists(path)) {
        return (true, Some(format!("{missing} does not exist")));
    }
    if names.is_empty() || !path.ends_with(".rs") {
        return (true, None);
    }
    let text = std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let missing = names.split("::").find(|name| !has_word(&text, name));
    (true, missing.map(|name| format!("{path} has no {name}")))
}

#[test]
fn docs_name_paths_and_functions_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = sources();
    let (mut named, mut linked) = (0, 0);
    let mut found = Vec::new();
    for (page, text) in pages() {
        for word in text.split('`').skip(1).step_by(2) {
            let (is_path, complaint) = path_complaint(word, &sources);
            named += usize::from(is_path);
            found.extend(complaint.map(|why| format!("{}: {why}", page.display())));
        }
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            linked += 1;
            if !root.join(&page).with_file_name(target).exists() {
                found.push(format!("{}: the link to {target} leads nowhere", page.display()));
            }
        }
    }
    assert!(named > 400, "the paths that docs name were not found: {named}");
    assert!(linked > 50, "the links of docs were not found: {linked}");
    assert!(found.is_empty(), "{}", found.join("\n"));
}
