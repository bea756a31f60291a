//! Commands of one guest are carried out, and saved, in the order in which they were given.

use super::Engine;
use crate::api::{Control, SetRequest};
use crate::settings::GuestSettings;
use afterimage_journal::Options;
use std::sync::Arc;

/// Guests whose commands run beside each other, one after another.
const GUESTS: u32 = 12;
/// Changes beside the end of each.
const CHANGES: u64 = 8;

fn save(state: &std::path::Path, name: &str) {
    let json = serde_json::json!({
        "name": name, "group": name, "window_s": 60, "checkpoint_every_ms": 1000,
        "qmp": state.join(format!("{name}.qmp")),
    });
    let settings: GuestSettings = serde_json::from_value(json).unwrap();
    settings.save(state).unwrap();
}

fn window(window_s: u64) -> SetRequest {
    let json = serde_json::json!({ "window_s": window_s });
    serde_json::from_value(json).unwrap()
}

async fn engine(state: &std::path::Path) -> Arc<Engine> {
    let options = Options { unit_bytes: 1 << 20, ring_bytes: 1 << 20, ..Options::default() };
    Engine::start(state, options, None, 1000).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_beside_an_unprotect_bring_no_guest_back() {
    let tmp = tempfile::tempdir().unwrap();
    let state = tmp.path();
    for i in 0..GUESTS {
        save(state, &format!("vm{i}"));
    }
    let engine = engine(state).await;
    for i in 0..GUESTS {
        let name = format!("vm{i}");
        let set = |n: u64| {
            let (engine, name) = (Arc::clone(&engine), name.clone());
            tokio::spawn(async move { drop(engine.set(name, window(100 + n)).await) })
        };
        let before: Vec<_> = (0..CHANGES).map(set).collect();
        let (ending, gone) = (Arc::clone(&engine), name.clone());
        let unprotect = tokio::spawn(async move { ending.unprotect(gone, true).await });
        let after: Vec<_> = (0..CHANGES).map(set).collect();
        unprotect.await.unwrap().unwrap();
        for change in before.into_iter().chain(after) {
            change.await.unwrap();
        }
        assert!(!GuestSettings::exist(state, &name), "{name} would come back at the next start");
    }
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_change_that_was_made_is_the_one_on_disk() {
    let tmp = tempfile::tempdir().unwrap();
    let state = tmp.path();
    save(state, "vm");
    let engine = engine(state).await;
    for _ in 0..GUESTS {
        let changes = (0..CHANGES).map(|n| {
            let engine = Arc::clone(&engine);
            tokio::spawn(async move { engine.set("vm".into(), window(100 + n)).await })
        });
        for change in changes.collect::<Vec<_>>() {
            change.await.unwrap().unwrap();
        }
        let shown = engine.status(Some("vm".into())).await.unwrap()[0].window_s;
        let saved = GuestSettings::load_all(state).unwrap()[0].window_s;
        assert_eq!(saved, shown);
    }
    engine.stop().await;
}
