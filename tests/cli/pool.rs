//! `pool add`, `remove`, `list`: with an agent and without one.

use super::shop::Shop;
use crate::kit::{Agent, Cli, Outcome, REPLY_LIMIT, poll};
use afterimage_journal::Key;
use afterimage_journal::format::cipher::KEY_BYTES;
use serde_json::Value;
use std::path::{Path, PathBuf};

const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");

/// The shop, and empty directories beside it.
struct Bed {
    shop: Shop,
}

impl Bed {
    fn new() -> Self {
        Self::of(Shop::new())
    }

    fn of(shop: Shop) -> Self {
        for name in ["b", "c"] {
            std::fs::create_dir(shop.path(name)).unwrap();
        }
        Self { shop }
    }

    fn cli(&self) -> &Cli {
        &self.shop.cli
    }

    fn path(&self, name: &str) -> PathBuf {
        self.shop.path(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn home(&self) -> PathBuf {
        self.cli().state().join("pool")
    }

    /// Moves the shop's units to a member, as their names alone say where they are.
    fn move_units(&self, to: &str) -> Vec<String> {
        let from = self.home().join("shop");
        let to = self.path(to).join("shop");
        std::fs::create_dir(&to).unwrap();
        let names = units(&from);
        for name in &names {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
            std::fs::remove_file(from.join(name)).unwrap();
        }
        assert!(!names.is_empty());
        names
    }

    /// Drains `b`, which has all units of the shop, without an agent.
    fn drains_b(&self) {
        let names = self.move_units("b");
        let contents = self.contents(&self.path("b"), &names);
        let list = self.cli().json(&["pool", "list"]);
        assert_eq!(member(&list, &self.path("b"))["units"], names.len(), "{list}");
        let said = self.cli().ok(&["pool", "remove", &self.text("b")]);
        assert!(said.contains(&format!("moved {} units", names.len())), "{said}");
        assert_eq!(self.contents(&self.home(), &names), contents);
        assert_eq!(std::fs::read_dir(self.path("b")).unwrap().count(), 0);
    }

    fn contents(&self, dir: &Path, names: &[String]) -> Vec<Vec<u8>> {
        names.iter().map(|n| std::fs::read(dir.join("shop").join(n)).unwrap()).collect()
    }
}

/// Units in a directory of a member, or none if it isn't there.
pub fn units(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = names.map(|e| e.file_name().into_string().unwrap()).collect();
    names.retain(|n| n.starts_with("unit-") && !n.ends_with(".tmp"));
    names.sort();
    names
}

#[track_caller]
fn refused(outcome: &Outcome, words: &str) {
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains(words), "{outcome:?}");
}

/// A member as `pool list` has it; null: it is none.
pub fn member(list: &Value, dir: &Path) -> Value {
    let members = list["members"].as_array().unwrap();
    let found = members.iter().find(|m| m["path"] == dir.to_str().unwrap());
    found.cloned().unwrap_or_default()
}

#[test]
fn members_are_added_limited_listed_and_drained_without_an_agent() {
    let bed = Bed::new();
    let before = bed.cli().json(&["pool", "list"]);
    assert_eq!((&before["epoch"], before["members"].as_array().unwrap().len()), (&0.into(), 1));
    assert!(before["journals"]["shop"]["units"].as_u64().unwrap() > 0, "{before}");
    bed.cli().ok(&["pool", "add", &bed.text("b"), "--limit", "1GiB"]);
    let b = member(&bed.cli().json(&["pool", "list"]), &bed.path("b"));
    assert_eq!((&b["state"], &b["limit_bytes"]), (&"active".into(), &(1u64 << 30).into()), "{b}");
    bed.cli().ok(&["pool", "add", &bed.text("b"), "--limit", "none"]);
    refused(&bed.cli().run(&["pool", "add", &bed.text("b")]), "member of the pool already");
    refused(&bed.cli().run(&["pool", "add", &bed.text("c"), "--limit", "many"]), "write it like");
    refused(&bed.cli().run(&["pool", "remove", &bed.text("c")]), "no member of the pool");
    let home = bed.home().display().to_string();
    bed.cli().ok(&["pool", "add", &home, "--limit", "10GiB"]);
    refused(&bed.cli().run(&["pool", "remove", &home]), "home, which stays");
    bed.drains_b();
    assert_eq!(bed.shop.restore("latest", "out").code, 0);
    let text = bed.cli().ok(&["pool", "list"]);
    assert!(text.contains("10.0 GiB") && text.contains("shop"), "{text}");
}

#[test]
fn an_encrypted_journal_is_drained_without_an_agent_and_without_its_key() {
    let bed = Bed::of(Shop::encrypted(Key::new([7; KEY_BYTES].into())));
    bed.cli().ok(&["pool", "add", &bed.text("b")]);
    bed.drains_b();
}

#[test]
fn a_running_agent_changes_its_pool_and_drains_it_behind_the_scenes() {
    let bed = Bed::new();
    bed.cli().ok(&["pool", "add", &bed.text("b")]);
    let names = bed.move_units("b");
    let contents = bed.contents(&bed.path("b"), &names);
    let agent = Agent::start(PROGRAM, bed.cli().state());
    let epoch = agent.json(&["pool", "list"])["epoch"].as_u64().unwrap();
    agent.ok(&["pool", "add", &bed.text("c")]);
    assert!(agent.json(&["pool", "list"])["epoch"].as_u64().unwrap() > epoch);
    refused(&agent.run(&["pool", "add", &bed.text("c")]), "member of the pool already");
    refused(&agent.run(&["pool", "remove", &bed.text("b"), "--lost"]), "without --lost");
    agent.ok(&["pool", "remove", &bed.text("b")]);
    let drained = poll(REPLY_LIMIT, || {
        let list = agent.json(&["pool", "list"]);
        member(&list, &bed.path("b")).is_null().then_some(())
    });
    assert!(drained.is_some(), "{}", agent.last_words());
    assert_eq!(std::fs::read_dir(bed.path("b")).unwrap().count(), 0);
    agent.stop();
    for (name, contents) in names.iter().zip(contents) {
        let all = [bed.home(), bed.path("c")].map(|d| d.join("shop").join(name));
        let found: Vec<_> = all.iter().filter_map(|p| std::fs::read(p).ok()).collect();
        assert_eq!(found, [contents], "{name} is there once, and the same");
    }
}

#[test]
fn a_drain_goes_on_after_the_agent_was_killed() {
    let bed = Bed::new();
    bed.cli().ok(&["pool", "add", &bed.text("b")]);
    let names = bed.move_units("b");
    bed.cli().ok(&["pool", "add", &bed.home().display().to_string(), "--limit", "1MiB"]);
    let agent = Agent::start(PROGRAM, bed.cli().state());
    agent.ok(&["pool", "remove", &bed.text("b")]);
    let waits = poll(REPLY_LIMIT, || {
        let b = member(&agent.json(&["pool", "list"]), &bed.path("b"));
        b["reason"].as_str().is_some_and(|why| why.contains("no room")).then_some(())
    });
    assert!(waits.is_some(), "{}", agent.last_words());
    assert!(agent.ok(&["pool", "list"]).contains("draining"));
    agent.kill();
    let agent = Agent::start(PROGRAM, bed.cli().state());
    agent.ok(&["pool", "add", &bed.home().display().to_string(), "--limit", "none"]);
    let done = poll(REPLY_LIMIT, || {
        member(&agent.json(&["pool", "list"]), &bed.path("b")).is_null().then_some(())
    });
    assert!(done.is_some(), "{}", agent.last_words());
    agent.stop();
    assert_eq!(units(&bed.home().join("shop")), names);
}

#[test]
fn a_member_that_vanishes_under_the_agent_is_shown_and_comes_back() {
    let bed = Bed::new();
    bed.cli().ok(&["pool", "add", &bed.text("b")]);
    let agent = Agent::start(PROGRAM, bed.cli().state());
    // Caught in the middle of a write, it is named for that at first.
    let becomes = |wanted: &str, why: &str| {
        let seen = poll(REPLY_LIMIT, || {
            let b = member(&agent.json(&["pool", "list"]), &bed.path("b"));
            let said = b["reason"].as_str().unwrap_or_default().contains(why);
            (said && b["state"] == wanted).then_some(())
        });
        assert!(seen.is_some(), "{wanted}: {}", agent.last_words());
    };
    std::fs::rename(bed.path("b"), bed.path("elsewhere")).unwrap();
    becomes("away", "is not there");
    assert!(agent.ok(&["pool", "list"]).contains("is not there"));
    assert!(agent.ok(&["status"]).contains("is not there"));
    refused(&agent.run(&["pool", "remove", &bed.text("b")]), "--lost");
    std::fs::rename(bed.path("elsewhere"), bed.path("b")).unwrap();
    becomes("active", "");
    assert!(!agent.ok(&["status"]).contains("is not there"));
    assert!(agent.last_words().contains("a member of the pool is back"));
    std::fs::remove_dir_all(bed.path("b")).unwrap();
    becomes("away", "is not there");
    agent.ok(&["pool", "remove", &bed.text("b"), "--lost"]);
    assert_eq!(agent.json(&["pool", "list"])["members"].as_array().unwrap().len(), 1);
    agent.stop();
}

#[test]
fn a_lost_description_stops_the_agent_and_is_made_anew() {
    let bed = Bed::new();
    bed.cli().ok(&["pool", "add", &bed.text("b"), &bed.text("c")]);
    std::fs::remove_file(bed.home().join("pool.json")).unwrap();
    let agent = bed.cli().run(&["agent"]);
    refused(&agent, "description is lost");
    refused(&bed.cli().run(&["pool", "list"]), "description is lost");
    // The home alone can be restored from all the same.
    assert_eq!(bed.shop.restore("latest", "out").code, 0);
    bed.cli().ok(&["pool", "add", &bed.text("b"), &bed.text("c")]);
    let list = bed.cli().json(&["pool", "list"]);
    let states: Vec<_> = list["members"].as_array().unwrap().iter().map(|m| &m["state"]).collect();
    assert_eq!(states, ["active", "active", "active"]);
}
