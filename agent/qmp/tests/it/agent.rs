//! The guest agent, played by a thread that speaks its protocol.

use std::{
    io::{BufRead, BufReader, Write},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use afterimage_qmp::{
    Error,
    guest_agent::{AgentChannel, FreezeState, GuestAgent, thaw_blocking},
};
use serde_json::{Value, json};

use crate::{fakes::Fake, rig::SOON};

/// What the guest is like, and what it was asked.
#[derive(Default)]
struct Guest {
    frozen: bool,
    asked: Vec<String>,
    refuses_to_freeze: bool,
    never_answers_freeze: bool,
}

/// An agent with the rest of somebody's broken-off conversation still in its channel.
fn agent(guest: &Arc<Mutex<Guest>>) -> Fake {
    let guest = Arc::clone(guest);
    Fake::new(move |mut stream| {
        stream.write_all(b"{\"return\": {}}\n{\"return\": 17}\n{\"ret").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).split(b'\n');
        while let Some(Ok(line)) = lines.next() {
            let begin = line.iter().rposition(|&b| b == 0xff).map_or(0, |at| at + 1);
            let request: Value = serde_json::from_slice(&line[begin..]).unwrap();
            let command = request["execute"].as_str().unwrap();
            let mut guest = guest.lock().unwrap();
            guest.asked.push(command.to_owned());
            let answer = match command {
                "guest-sync-delimited" => {
                    assert!(begin > 0, "the agent's parser was not reset");
                    stream.write_all(&[0xff]).unwrap();
                    json!({ "return": request["arguments"]["id"] })
                }
                "guest-ping" => json!({ "return": {} }),
                "guest-fsfreeze-freeze" if guest.refuses_to_freeze => {
                    json!({ "error": { "class": "GenericError", "desc": "failed to freeze /" } })
                }
                "guest-fsfreeze-freeze" => {
                    guest.frozen = true;
                    if guest.never_answers_freeze {
                        continue;
                    }
                    json!({ "return": 3 })
                }
                "guest-fsfreeze-thaw" => {
                    json!({ "return": if std::mem::take(&mut guest.frozen) { 3 } else { 0 } })
                }
                "guest-fsfreeze-status" => {
                    json!({ "return": if guest.frozen { "frozen" } else { "thawed" } })
                }
                _ => json!({ "error": { "class": "CommandNotFound", "desc": "no" } }),
            };
            if writeln!(stream, "{answer}").is_err() {
                return;
            }
        }
    })
}

fn client(fake: &Fake) -> GuestAgent {
    GuestAgent::new(AgentChannel::Socket(fake.path.clone()))
}

#[tokio::test]
async fn freezing_and_thawing_are_done_and_counted() {
    let guest = Arc::default();
    let fake = agent(&guest);
    let agent = client(&fake);
    agent.ping().await.unwrap();
    assert_eq!(agent.freeze_state().await.unwrap(), FreezeState::Thawed);
    assert_eq!(agent.freeze().await.unwrap(), 3);
    assert_eq!(agent.freeze_state().await.unwrap(), FreezeState::Frozen);
    assert_eq!(agent.thaw().await.unwrap(), 3);
    assert_eq!(agent.thaw().await.unwrap(), 0);
}

#[tokio::test]
async fn a_freeze_that_fails_is_undone() {
    let guest = Arc::new(Mutex::new(Guest { refuses_to_freeze: true, ..Guest::default() }));
    let fake = agent(&guest);
    let error = client(&fake).freeze().await.unwrap_err();
    assert!(error.to_string().contains("failed to freeze /"), "{error}");
    assert_eq!(guest.lock().unwrap().asked.last().unwrap(), "guest-fsfreeze-thaw");
}

#[tokio::test]
async fn a_freeze_that_is_never_answered_is_undone() {
    let guest = Arc::new(Mutex::new(Guest { never_answers_freeze: true, ..Guest::default() }));
    let fake = agent(&guest);
    let agent = client(&fake).with_freeze_limit(Duration::from_millis(300));
    let error = agent.freeze().await.unwrap_err();
    assert!(matches!(error, Error::AgentSilent { .. }), "{error}");
    let guest = guest.lock().unwrap();
    assert!(guest.asked.iter().any(|c| c == "guest-fsfreeze-freeze") && !guest.frozen);
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_told_in_time() {
    let silent = Fake::saying(b"");
    let begun = Instant::now();
    let error = client(&silent).ping().await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(error.to_string().contains("qemu-guest-agent installed"), "{error}");
    let nowhere = GuestAgent::new(AgentChannel::Socket("/nosuch/agent".into()));
    assert!(matches!(nowhere.ping().await, Err(Error::Missing { .. })));
}

#[test]
fn the_guard_thaws_without_a_runtime() {
    let guest = Arc::new(Mutex::new(Guest { frozen: true, ..Guest::default() }));
    let fake = agent(&guest);
    assert_eq!(thaw_blocking(&fake.path, SOON).unwrap(), 3);
    assert!(!guest.lock().unwrap().frozen);
    assert_eq!(thaw_blocking(&fake.path, SOON).unwrap(), 0);
}

#[test]
fn the_guard_is_never_held_up_by_an_agent() {
    let limit = Duration::from_millis(200);
    let endless = Fake::new(|mut stream| while stream.write(&[b'x'; 100]).is_ok() {});
    for fake in [Fake::saying(b""), Fake::new(drop), endless] {
        let begun = Instant::now();
        thaw_blocking(&fake.path, limit).unwrap_err();
        assert!(begun.elapsed() < limit * 5, "{:?}", begun.elapsed());
    }
    // A listener whose queue is full would block a plain connect for ever.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let begun = Instant::now();
    thaw_blocking(&path, limit).unwrap_err();
    assert!(begun.elapsed() < limit * 5);
    thaw_blocking("/nosuch/agent".as_ref(), limit).unwrap_err();
}
