//! Server and client together, over a real socket, with a fake engine.

use super::control::{Control, Reply};
use super::*;
use afterimage_journal::pool::{Added, Limit, PoolStatus};
use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Tells when `mark` is asked, which it never answers.
struct Fake(SyncSender<()>);

fn sure<'a, T: Send + 'a>(answer: Result<T, ApiError>) -> Reply<'a, T> {
    Box::pin(async { answer })
}

fn guest(name: &str) -> GuestStatus {
    GuestStatus {
        guest: name.to_owned(),
        state: GuestState::InitialSync,
        rpo_ms: None,
        head_seq: 7,
        durable_seq: 6,
        window: None,
        gaps: vec![],
        journal: JournalSize { units: 1, bytes: 2 },
        disks: vec![],
        stall_ms_max: 3,
        group: name.to_owned(),
        encrypted: false,
        reason: None,
        epoch: 1,
        window_s: 60,
        keep: None,
        thinned: None,
        checkpoint_every_ms: 5000,
        write_rate_bytes_s: 0,
        writes_per_s: 0,
        copy: None,
        agent_restarts: 0,
        offline: false,
        space: None,
        memory: None,
        sites: Vec::new(),
        warnings: Vec::new(),
    }
}

impl Control for Fake {
    fn protect(&self, request: ProtectRequest) -> Reply<'_, Vec<GuestStatus>> {
        sure(Ok(vec![guest(&request.name)]))
    }
    fn unprotect(&self, name: String, purge: bool) -> Reply<'_, ()> {
        sure(if purge { Ok(()) } else { Err(ApiError::not_restorable(name)) })
    }
    fn detach(&self, name: String) -> Reply<'_, Vec<GuestStatus>> {
        sure(Err(ApiError::unknown_name(&name, &["vm1".into(), "vm2".into()])))
    }
    fn attach(&self, name: String) -> Reply<'_, Vec<GuestStatus>> {
        sure(Err(ApiError::not_reachable(name)))
    }
    fn status(&self, name: Option<String>) -> Reply<'_, Vec<GuestStatus>> {
        sure(Ok(vec![guest(name.as_deref().unwrap_or("all"))]))
    }
    fn mark(&self, _name: String, _request: MarkRequest) -> Reply<'_, MarkReply> {
        self.0.send(()).unwrap();
        Box::pin(std::future::pending())
    }
    fn set(&self, name: String, request: SetRequest) -> Reply<'_, Vec<GuestStatus>> {
        let mut status = guest(&name);
        status.window_s = request.window_s.unwrap_or(status.window_s);
        sure(Ok(vec![status]))
    }
    fn pool(&self) -> Reply<'_, PoolStatus> {
        sure(Ok(PoolStatus { epoch: 7, ..PoolStatus::default() }))
    }
    fn pool_add(&self, request: PoolAddRequest) -> Reply<'_, Added> {
        let limited = request.limit == Limit::Bytes(5);
        sure(if limited { Ok(Added::Limited) } else { Ok(Added::New) })
    }
    fn pool_remove(&self, request: PoolRemoveRequest) -> Reply<'_, ()> {
        sure(Err(ApiError::usage(format!("{} {}", request.dir.display(), request.lost))))
    }
    fn info(&self) -> Reply<'_, AgentInfo> {
        sure(Err(ApiError::other("no")))
    }
}

/// Runs `work` against a server on a state directory of its own.
async fn with_server<T: Send + 'static>(
    work: impl FnOnce(Client, Receiver<()>) -> T + Send + 'static,
) -> T {
    let state = tempfile::tempdir().unwrap();
    let listener = server::bind(&socket_path(state.path())).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (asked, marks) = sync_channel(1);
    let control: Arc<dyn Control> = Arc::new(Fake(asked));
    let served = tokio::spawn(server::serve(listener, control, async {
        let _ = stopped.await;
    }));
    let client = Client::new(state.path());
    let result = tokio::task::spawn_blocking(move || work(client, marks)).await.unwrap();
    stop.send(()).unwrap();
    served.await.unwrap().unwrap();
    result
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn calls_reach_the_engine_and_errors_keep_their_kind() {
    block_on(with_server(|client, _| {
        assert_eq!(client.status(None).unwrap()[0].guest, "all");
        assert_eq!(client.status(Some("a/ü b")).unwrap()[0].guest, "a/ü b");
        let request = SetRequest { window_s: Some(5), ..SetRequest::default() };
        assert_eq!(client.set("vm", &request).unwrap()[0].window_s, 5);
        client.unprotect("vm", true).unwrap();
        let kind = |r: Result<Vec<GuestStatus>, ApiError>| r.unwrap_err().kind.exit_code();
        assert_eq!(client.unprotect("vm", false).unwrap_err().kind.exit_code(), 3);
        assert_eq!(kind(client.attach("vm")), 4);
        let unknown = client.detach("vm3").unwrap_err();
        assert_eq!(unknown.kind.exit_code(), 2);
        assert!(unknown.message.contains("vm1, vm2"), "{unknown}");
        assert_eq!(client.info().unwrap_err().kind.exit_code(), 1);
        assert_eq!(client.pool().unwrap().epoch, 7);
        let add = |limit| client.pool_add(&PoolAddRequest { dir: "/b".into(), limit }).unwrap();
        assert_eq!((add(Limit::Keep), add(Limit::Bytes(5))), (Added::New, Added::Limited));
        let gone = PoolRemoveRequest { dir: "/b".into(), lost: true };
        assert_eq!(client.pool_remove(&gone).unwrap_err().message, "/b true");
    }));
}

#[test]
fn a_request_that_never_ends_does_not_hold_up_the_end_of_the_server() {
    let begin = Instant::now();
    let asking = block_on(with_server(|client, marks| {
        let asking = std::thread::spawn(move || {
            client.mark("vm", &MarkRequest { tag: "t".into(), quiesce: false, memory: false })
        });
        marks.recv().unwrap();
        asking
    }));
    assert_eq!(asking.join().unwrap().unwrap_err().kind, ErrorKind::NotReachable);
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
}

#[test]
fn an_agent_that_is_not_there_or_takes_no_connection_is_not_reachable() {
    let state = tempfile::tempdir().unwrap();
    let client = Client::new(state.path());
    let missing = client.status(None).unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NotReachable);
    assert!(missing.message.contains("afterimage agent --state"), "{missing}");
    let path = socket_path(state.path());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert_eq!(client.status(None).unwrap_err().kind, ErrorKind::NotReachable);
    // Left behind by an agent that was killed: the next one takes its place.
    block_on(async { drop(server::bind(&path).unwrap()) });
}

#[test]
fn two_agents_do_not_share_a_socket_and_only_its_user_may_open_it() {
    use std::os::unix::fs::PermissionsExt;
    let state = tempfile::tempdir().unwrap();
    let path = socket_path(state.path());
    block_on(async {
        let _first = server::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = server::bind(&path).unwrap_err();
        assert_eq!(second.kind(), std::io::ErrorKind::AddrInUse);
    });
}

#[test]
fn malformed_requests_are_refused_in_words() {
    use std::io::{Read, Write};
    let answers = block_on(with_server(|client, _| {
        let state = client.state().to_owned();
        let send = |text: &str| {
            let mut stream = std::os::unix::net::UnixStream::connect(socket_path(&state)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        let post = |body: &str| {
            send(&format!(
                "POST /v1/guests HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ))
        };
        [
            post("{"),
            post("{\"name\": 3}"),
            send("GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            send("PUT /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        ]
    }));
    for answer in answers {
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(answer.contains("\"kind\":\"usage\""), "{answer}");
    }
}
