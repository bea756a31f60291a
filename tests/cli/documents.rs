//! Manual pages, completions, help: made from the one definition of the command line.

use std::process::{Command, Output};
use tempfile::TempDir;

fn afterimage(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_afterimage")).args(words).output().unwrap()
}

/// The subcommands that the help lists.
fn subcommands() -> Vec<String> {
    let help = String::from_utf8(afterimage(&["--help"]).stdout).unwrap();
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let first_lines = list.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    first_lines.map(|l| l.split_whitespace().next().unwrap().to_owned()).collect()
}

#[test]
fn each_subcommand_has_help_and_a_manual_page() {
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("man");
    let made = afterimage(&["man", "--to", to.to_str().unwrap()]);
    assert!(made.status.success(), "{made:?}");
    let names = subcommands();
    assert!(names.len() > 12 && names.contains(&"restore".to_owned()), "{names:?}");
    for name in names.iter().filter(|n| *n != "help") {
        let page = std::fs::read_to_string(to.join(format!("afterimage-{name}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{name}");
        let help = afterimage(&[name, "--help"]);
        assert!(help.status.success() && !help.stdout.is_empty(), "{name}: {help:?}");
    }
    let page = std::fs::read_to_string(to.join("afterimage.1")).unwrap();
    assert!(page.contains("Exit codes") || page.contains("EXTRA"), "{page}");
}

#[test]
fn each_shell_has_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let made = afterimage(&["completions", shell]);
        assert!(made.status.success(), "{shell}: {made:?}");
        let script = String::from_utf8(made.stdout).unwrap();
        assert!(script.contains("checkpoint-every"), "{shell}");
    }
    assert_eq!(afterimage(&["completions", "cmd"]).status.code(), Some(2));
}

#[test]
fn what_is_not_built_is_not_accepted() {
    let cases: [&[&str]; 4] = [
        &["restore", "vm", "--at", "latest", "--to", "/x", "--warm"],
        &["protect", "vm", "--inline", "--image", "/x"],
        &["export", "vm"],
        &["failover", "test", "vm"],
    ];
    for words in cases {
        assert_eq!(afterimage(words).status.code(), Some(2), "{words:?}");
    }
}
