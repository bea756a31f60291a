//! Peers that no real program would be.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A listener at a path of its own.
pub struct Fake {
    pub path: PathBuf,
    _folder: TempDir,
}

impl Fake {
    /// Each connection is given to `serve` on a thread of its own.
    pub fn new(serve: impl Fn(UnixStream) + Send + Sync + Clone + 'static) -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serve = serve.clone();
                thread::spawn(move || serve(stream));
            }
        });
        Fake { path, _folder: folder }
    }

    /// Says `what` and then nothing.
    pub fn saying(what: &'static [u8]) -> Fake {
        Fake::new(move |mut stream| {
            stream.write_all(what).unwrap();
            // Until the other side is gone.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        })
    }

    /// Greets as QMP, then answers each request with what `answer` says.
    pub fn qmp(answer: impl Fn(&Value) -> Vec<u8> + Send + Sync + Clone + 'static) -> Fake {
        Fake::qmp_behind(b"", answer)
    }

    /// The same behind something that it says first.
    pub fn qmp_behind(
        what: &'static [u8],
        answer: impl Fn(&Value) -> Vec<u8> + Send + Sync + Clone + 'static,
    ) -> Fake {
        Fake::new(move |mut stream| {
            stream.write_all(what).unwrap();
            let greeting = json!({ "QMP": { "version": {}, "capabilities": [] } });
            writeln!(stream, "{greeting}").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(line)) = lines.next() {
                let request: Value = serde_json::from_str(&line).unwrap();
                let reply = match request["execute"].as_str() {
                    Some("qmp_capabilities") => returns(&request, json!({})),
                    _ => answer(&request),
                };
                if stream.write_all(&reply).is_err() {
                    return;
                }
            }
        })
    }
}

/// The answer to `request`.
pub fn returns(request: &Value, value: Value) -> Vec<u8> {
    line(&json!({ "return": value, "id": request["id"] }))
}

pub fn line(message: &Value) -> Vec<u8> {
    format!("{message}\r\n").into_bytes()
}
