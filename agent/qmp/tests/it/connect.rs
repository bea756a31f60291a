//! Sockets that are not a free QMP monitor: each has a clear error, in bounded time.

use std::{
    fs,
    os::unix::net::UnixListener,
    path::Path,
    time::{Duration, Instant},
};

use afterimage_qmp::{Client, Error, Kind, Limits};
use serde_json::json;

use crate::{
    fakes::{Fake, returns},
    rig::{DRIVE_RAW, Process, Vm, wait_for_socket},
};

async fn refused(path: &Path) -> Error {
    let limits = Limits { greeting: Duration::from_millis(500), ..Limits::default() };
    let begun = Instant::now();
    let error = Client::connect_with(path, limits).await.expect_err("it connected");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    error
}

#[tokio::test]
async fn what_is_no_socket_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert!(matches!(refused(&at("nothing")).await, Error::Missing { .. }));
    fs::write(at("file"), "").unwrap();
    let error = refused(&at("file")).await;
    assert!(error.to_string().contains("not a socket but a regular file"), "{error}");
    assert_eq!(error.kind(), Kind::FixInput);
    assert!(refused(folder.path()).await.to_string().contains("a directory"));
}

#[tokio::test]
async fn a_socket_without_a_listener_is_a_process_that_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(refused(&path).await, Error::Refused { .. }));
}

/// QEMU 10.0 says to a new client what was meant for the one that it is taking leave of.
#[tokio::test]
async fn events_before_the_greeting_are_another_clients() {
    let event = b"{\"timestamp\": {\"seconds\": 1}, \"event\": \"STOP\"}\r\n";
    let fake = Fake::qmp_behind(event, |request| returns(request, json!({})));
    Client::connect(&fake.path).await.unwrap();
    // Without a greeting behind them it is no monitor all the same.
    let fake = Fake::saying(event);
    assert!(matches!(refused(&fake.path).await, Error::Silent { .. }));
}

#[tokio::test]
async fn a_second_client_is_told_that_another_holds_the_monitor() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let error = refused(&vm.path("qmp")).await;
    assert!(matches!(error, Error::Silent { .. }), "{error}");
    let pid = format!("qemu-system-x86 with pid {}", vm.process.pid());
    assert!(error.to_string().contains(&pid), "{error}");
    // The other socket serves, and the first is free once its client is gone.
    Client::connect(vm.path("qmp2")).await.unwrap();
    let path = vm.path("qmp");
    let Vm { qemu, process: _process, .. } = &vm;
    assert!(qemu.run_state().await.is_ok());
    let second = Client::connect(vm.path("qmp2")).await.unwrap();
    drop(second);
    Client::connect(vm.path("qmp2")).await.unwrap();
    assert!(matches!(refused(&path).await, Error::Silent { .. }));
}

#[tokio::test]
async fn what_talks_but_not_qmp_is_recognised() {
    let cases: [(&'static [u8], &str); 7] = [
        (b"NBDMAGICIHAVEOPT\0\x03", "an NBD server"),
        (b"RFB 003.008\n", "a VNC display"),
        (b"SSH-2.0-x\r\n", "an SSH server"),
        (b"QEMU 10.0.2 monitor - type 'help' for more information\r\n(qemu) ", "human monitor"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1.1 400"),
        (b"{\"hello\": 1}\n", "hello"),
        (b"\xff\xfe\x00", "\\xff\\xfe\\x00"),
    ];
    for (said, recognised) in cases {
        let fake = Fake::saying(said);
        let error = refused(&fake.path).await;
        assert!(matches!(error, Error::NotQmp { .. }), "{error}");
        assert!(error.to_string().contains(recognised), "{error}");
    }
}

#[tokio::test]
async fn what_hangs_up_or_never_speaks_or_never_stops_is_left_in_time() {
    let hangs_up = Fake::new(drop);
    assert!(matches!(refused(&hangs_up.path).await, Error::NotQmp { .. }));
    let silent = Fake::saying(b"");
    assert!(matches!(refused(&silent.path).await, Error::Silent { .. }));
    let endless =
        Fake::new(|mut stream| while std::io::Write::write(&mut stream, &[b'x'; 4096]).is_ok() {});
    assert!(matches!(refused(&endless.path).await, Error::NotQmp { .. }));
    let greets_only = Fake::saying(b"{\"QMP\": {}}\n");
    let limits = Limits { greeting: Duration::from_millis(300), ..Limits::default() };
    let error = Client::connect_with(&greets_only.path, limits).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn a_full_queue_of_clients_does_not_block() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(tokio::net::UnixStream::connect(&path).await);
    }
    assert!(matches!(refused(&path).await, Error::Silent { .. }));
}

#[tokio::test]
async fn a_real_nbd_server_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd");
    let mut command = std::process::Command::new("nbdkit");
    let _server = Process::start(command.arg("-f").arg("-U").arg(&path).args(["memory", "1M"]));
    wait_for_socket(&path);
    assert!(refused(&path).await.to_string().contains("an NBD server"));
}
