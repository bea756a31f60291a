//! The client against a monitor that misbehaves.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use afterimage_qmp::{Client, Error, Limits, Monitor, Qemu, QemuEvent, event::EVENTS_MAX};
use serde_json::{Value, json};

use crate::fakes::{Fake, line, returns};

async fn connect(fake: &Fake) -> Client {
    let limits = Limits { message_bytes_max: 1 << 16, ..Limits::default() };
    Client::connect_with(&fake.path, limits).await.unwrap()
}

async fn ask(client: &Client, what: &str) -> Result<Value, Error> {
    client.execute_within(what, Value::Null, Duration::from_secs(5)).await
}

#[tokio::test]
async fn a_message_longer_than_the_limit_ends_the_connection_and_not_us() {
    let fake = Fake::qmp(|r| returns(r, json!("x".repeat(1 << 17))));
    let client = connect(&fake).await;
    let mut events = client.events();
    let error = ask(&client, "query-status").await.unwrap_err();
    assert!(matches!(&error, Error::Closed { reason } if reason.contains("65536")), "{error}");
    assert!(matches!(events.next_meaning().await, QemuEvent::Eof { .. }));
}

#[tokio::test]
async fn a_line_that_is_no_json_ends_the_connection_with_what_it_was() {
    let fake = Fake::qmp(|_| b"qemu: fatal: oops\n".to_vec());
    let client = connect(&fake).await;
    let error = ask(&client, "query-status").await.unwrap_err();
    assert!(
        matches!(&error, Error::Closed { reason } if reason.contains("fatal: oops")),
        "{error}"
    );
    assert!(matches!(ask(&client, "again").await, Err(Error::Closed { .. })));
}

#[tokio::test]
async fn strange_messages_between_are_passed_over() {
    let fake = Fake::qmp(|r| {
        let mut all = Vec::new();
        all.extend(line(&json!({ "return": 1, "id": 999 })));
        all.extend(line(&json!({ "return": 1, "id": "text" })));
        all.extend(line(&json!({ "error": { "class": "GenericError", "desc": "no id" } })));
        all.extend(b"\r\n[]\n7\nnull\n");
        all.extend(line(&json!({ "event": "NEWER_THAN_US", "data": { "a": [1] } })));
        all.extend(line(&json!({ "event": 7 })));
        all.extend(line(&json!({ "event": "STOP", "timestamp": { "seconds": -1 } })));
        all.extend(returns(r, json!("yes")));
        all.extend(returns(r, json!("twice")));
        all
    });
    let client = connect(&fake).await;
    let mut events = client.events();
    for _ in 0..3 {
        assert_eq!(ask(&client, "x").await.unwrap(), "yes");
    }
    let event = events.next().await;
    assert_eq!((event.name.as_str(), &event.data), ("NEWER_THAN_US", &json!({ "a": [1] })));
    assert_eq!(event.meaning(), QemuEvent::Other { name: "NEWER_THAN_US".into() });
    assert_eq!(events.next_meaning().await, QemuEvent::Stop);
}

#[tokio::test]
async fn an_answer_without_return_or_error_is_an_error_that_names_the_command() {
    let fake = Fake::qmp(|r| line(&json!({ "id": r["id"] })));
    let error = ask(&connect(&fake).await, "query-jobs").await.unwrap_err();
    assert!(matches!(&error, Error::Shape { command, .. } if command == "query-jobs"), "{error}");
}

#[tokio::test]
async fn answers_reach_their_callers_in_any_order() {
    // The first of two requests is answered after the second.
    let held: Arc<Mutex<Option<Value>>> = Arc::default();
    let fake = Fake::qmp(move |r| {
        let mut held = held.lock().unwrap();
        match held.take() {
            None => {
                *held = Some(r.clone());
                Vec::new()
            }
            Some(first) => {
                let mut both = returns(r, r["execute"].clone());
                both.extend(returns(&first, first["execute"].clone()));
                both
            }
        }
    });
    let client = connect(&fake).await;
    let (a, b) = tokio::join!(ask(&client, "a"), ask(&client, "b"));
    assert_eq!((a.unwrap(), b.unwrap()), (json!("a"), json!("b")));
}

/// A monitor that answers when told to.
fn patient() -> (Fake, mpsc::Sender<()>) {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let fake = Fake::qmp(move |r| {
        let _ = wait.lock().unwrap().recv();
        returns(r, r["execute"].clone())
    });
    (fake, go)
}

#[tokio::test]
async fn a_late_answer_and_a_dropped_caller_disturb_nobody() {
    let (fake, go) = patient();
    let client = connect(&fake).await;
    let error = client.execute_within("slow", Value::Null, Duration::from_millis(50)).await;
    assert!(matches!(&error, Err(Error::Timeout { command, limit_ms: 50 }) if command == "slow"));
    // Dropped in mid-air: it was sent, its answer will come.
    let dropped = ask(&client, "dropped");
    assert!(tokio::time::timeout(Duration::from_millis(50), dropped).await.is_err());
    assert_eq!(client.pending(), 2);
    for _ in 0..3 {
        go.send(()).unwrap();
    }
    assert_eq!(ask(&client, "third").await.unwrap(), "third");
    assert_eq!(client.pending(), 0);
}

#[tokio::test]
async fn a_monitor_that_answers_nothing_is_not_fed_without_end() {
    let (fake, _go) = patient();
    let client = connect(&fake).await;
    let mut asked = 0;
    let error = loop {
        match client.execute_within("x", Value::Null, Duration::from_millis(1)).await {
            Err(Error::Timeout { .. }) => asked += 1,
            other => break other.unwrap_err(),
        }
        assert!(asked < 1000, "no limit");
    };
    assert!(matches!(error, Error::Overloaded { pending, .. } if pending == asked), "{error}");
}

#[tokio::test]
async fn a_flood_of_events_is_reported_as_lost_and_its_end_is_kept() {
    const SENT: usize = EVENTS_MAX + 500;
    let fake = Fake::qmp(|r| {
        let flood = (0..SENT).flat_map(|n| line(&json!({ "event": format!("E{n}") })));
        flood.chain(returns(r, json!({}))).collect()
    });
    let client = connect(&fake).await;
    let mut events = client.events();
    ask(&client, "x").await.unwrap();
    let QemuEvent::Overflow { lost } = events.next_meaning().await else { panic!("no overflow") };
    assert_eq!(lost as usize, SENT - EVENTS_MAX);
    for n in SENT - EVENTS_MAX..SENT {
        assert_eq!(events.next().await.name, format!("E{n}"));
    }
}

#[tokio::test]
async fn an_old_qemu_is_refused_by_its_version() {
    async fn version(major: u64, minor: u64) -> Result<Qemu, Error> {
        let fake = Fake::qmp(move |r| {
            let qemu = json!({ "major": major, "minor": minor, "micro": 3 });
            returns(r, json!({ "qemu": qemu, "package": "" }))
        });
        Qemu::connect(&fake.path).await
    }
    let error = version(8, 1).await.unwrap_err();
    assert!(matches!(error, Error::TooOld { .. }), "{error}");
    assert!(error.to_string().contains("QEMU 8.1.3 is too old"), "{error}");
    for (major, minor) in [(8, 2), (9, 0), (11, 0)] {
        version(major, minor).await.unwrap();
    }
}

#[tokio::test]
async fn answers_of_another_shape_are_errors_and_not_guesses() {
    for nonsense in [json!(null), json!([]), json!({}), json!([{}]), json!("x"), json!([[1]])] {
        let odd = nonsense.clone();
        let fake = Fake::qmp(move |r| match r["execute"].as_str() {
            Some("query-version") => {
                returns(r, json!({ "qemu": { "major": 10, "minor": 0, "micro": 0 } }))
            }
            _ => returns(r, odd.clone()),
        });
        let qemu = Qemu::connect(&fake.path).await.unwrap();
        assert!(qemu.run_state().await.is_err(), "{nonsense}");
        assert!(qemu.uuid().await.is_err(), "{nonsense}");
        let empty = nonsense == json!([]);
        assert_eq!(qemu.jobs().await.is_ok(), empty, "{nonsense}");
        assert_eq!(qemu.exports().await.is_ok(), empty, "{nonsense}");
        if !nonsense.is_array() {
            assert!(qemu.disks().await.is_err(), "{nonsense}");
        }
    }
}
