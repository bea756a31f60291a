use super::*;
use serde_json::json;

const S: u64 = 1_000_000_000;

fn settings(caps: &[(&str, bool)], bandwidth: u64) -> MigrationSettings {
    let capabilities = caps.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect();
    let parameters = [("max-bandwidth".to_owned(), json!(bandwidth))].into_iter().collect();
    MigrationSettings { capabilities, parameters }
}

fn was() -> MigrationSettings {
    settings(&[("background-snapshot", false), ("events", false), ("xbzrle", true)], 1234)
}

fn undo() -> UndoSnapshot {
    UndoSnapshot {
        monitor: MonitorChannel::Socket("/run/vm.qmp".into()),
        was: was(),
        resume: Some(SnapshotMode::Background),
        mode: Some(SnapshotMode::Background),
        process: Some(ProcessId { pid: 7, start_ticks: 70 }),
        begun_ns: Some(100 * S),
        stopped_ns: None,
        migrate_ns: Some(100 * S),
    }
}

#[test]
fn note_of_an_older_version_is_read_and_cancels_no_migration() {
    let old = json!({
        "monitor": { "Socket": "/run/vm.qmp" },
        "was": { "capabilities": { "events": false }, "parameters": { "max-bandwidth": 1 } },
        "resume": "background",
    });
    let old: UndoSnapshot = serde_json::from_value(old).unwrap();
    assert!(old.is_bare() && !old.is_of_another(Some(ProcessId { pid: 1, start_ticks: 1 })));
    assert_eq!(old.owns_migration(Some(5), 100 * S), None);
    assert!(old.owns_pause(Some(99 * S)));
    let new = serde_json::to_value(undo()).unwrap();
    assert_eq!(serde_json::from_value::<UndoSnapshot>(new).unwrap(), undo());
}

#[test]
fn another_process_owes_nothing() {
    let undo = undo();
    assert!(!undo.is_of_another(undo.process));
    assert!(undo.is_of_another(Some(ProcessId { pid: 7, start_ticks: 71 })));
    assert!(undo.is_of_another(None), "process 7 of tick 70 does not live");
    let own = afterimage_process();
    assert!(!UndoSnapshot { process: Some(own), ..undo }.is_of_another(None));
}

fn afterimage_process() -> ProcessId {
    super::super::Process::look_up(std::process::id()).unwrap().id()
}

#[test]
fn only_a_migration_that_began_when_ours_was_told_to_is_cancelled() {
    let undo = undo();
    assert_eq!(undo.owns_migration(Some(2_000), 102 * S), Some(true), "it began at 100 s");
    assert_eq!(undo.owns_migration(Some(1_000), 104 * S), Some(true), "QEMU took 3 s to begin");
    assert_eq!(undo.owns_migration(Some(1_000), 130 * S), Some(false), "it began at 129 s");
    assert_eq!(undo.owns_migration(Some(50_000), 130 * S), Some(false), "it began at 80 s");
    assert_eq!(undo.owns_migration(None, 101 * S), Some(true), "it is set up");
    assert_eq!(undo.owns_migration(None, 900 * S), None);
    let untold = UndoSnapshot { migrate_ns: None, ..undo };
    assert_eq!(untold.owns_migration(Some(1), 101 * S), Some(false));
}

#[test]
fn guest_that_has_run_since_stays_paused() {
    let stopped = UndoSnapshot { stopped_ns: Some(102 * S), ..undo() };
    assert!(stopped.owns_pause(None), "it never used a disk");
    assert!(stopped.owns_pause(Some(102 * S)));
    assert!(!stopped.owns_pause(Some(104 * S)), "it has run for two seconds since");
    let begun = undo();
    assert!(begun.owns_pause(Some(109 * S)), "it may have been stopped then only");
    assert!(!begun.owns_pause(Some(190 * S)));
    let unknown = UndoSnapshot { begun_ns: None, ..undo() };
    assert!(!unknown.owns_pause(None));
}

#[test]
fn guest_that_went_to_another_host_later_is_not_woken() {
    let stopped = UndoSnapshot { resume: Some(SnapshotMode::Stop), ..undo() };
    assert!(stopped.owns_departure(110 * S));
    assert!(!stopped.owns_departure(400 * S));
}

#[test]
fn settings_that_somebody_changed_since_stay() {
    let (undo, ours) = (undo(), was().for_snapshot(SnapshotMode::Background));
    assert_eq!(undo.settings_to_restore(&ours), was());
    let mut theirs = ours.clone();
    theirs.parameters.insert("max-bandwidth".into(), json!(99));
    theirs.capabilities.insert("events".into(), false);
    let to = undo.settings_to_restore(&theirs);
    assert_eq!(to.parameters.get("max-bandwidth"), None);
    assert_eq!(to.capabilities.get("events"), None);
    assert_eq!(to.capabilities.get("xbzrle"), Some(&true));
}
