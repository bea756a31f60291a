//! A monitor that says whatever it likes, to the whole client.

use super::Target;
use afterimage_qmp::{Client, Event, Limits, Monitor};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::time::Duration;

const LINE_BYTES_MAX: usize = 4096;
const WAIT_MAX: Duration = Duration::from_millis(500);

pub(super) fn targets() -> [Target; 1] {
    [Target { name: "qmp", examples, words: WORDS, run: monitor }]
}

const WORDS: &[&[u8]] = &[
    b"\n",
    b"\"return\":",
    b"\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"}",
    b"\"id\":2",
    b"\"event\":\"STOP\"",
    b"\"timestamp\":{\"seconds\":-1}",
    b"\"data\":",
    b"{}",
    b"null",
    b"[[[[[[",
];

fn examples() -> Vec<Vec<u8>> {
    let greeted = "{\"QMP\":{\"version\":{\"qemu\":{\"major\":9}},\"capabilities\":[]}}\n\
        {\"return\":{},\"id\":1}\n";
    let event =
        "{\"event\":\"STOP\",\"data\":{},\"timestamp\":{\"seconds\":1,\"microseconds\":2}}\n";
    let answer = "{\"return\":{\"status\":\"running\"},\"id\":2}\n";
    vec![[greeted, event, answer].concat().into_bytes(), event.as_bytes().to_vec()]
}

/// Whatever a monitor says, connecting and commands return in good time; an event that is read is
/// one of what was said.
fn monitor(input: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<Value>(input)
        && let Some(event) = Event::from_message(&message)
    {
        assert_eq!(message["event"], json!(event.name));
        assert!(event.timestamp.unix_us >= 0);
    }
    let Ok(dir) = tempfile::tempdir() else { return };
    let path = dir.path().join("q");
    let Ok(listener) = UnixListener::bind(&path) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let _ = stream.write_all(input).and_then(|()| stream.shutdown(Shutdown::Write));
            let _ = stream.set_read_timeout(Some(WAIT_MAX));
            let _ = stream.read_to_end(&mut Vec::new());
        });
        runtime.block_on(async {
            let limits = Limits {
                greeting: WAIT_MAX,
                message_bytes_max: LINE_BYTES_MAX,
                ..Limits::default()
            };
            let Ok(client) = Client::connect_with(&path, limits).await else { return };
            let answer = client.execute_within("query-status", Value::Null, WAIT_MAX).await;
            assert!(client.pending() <= 1 || answer.is_err());
        });
    });
}
