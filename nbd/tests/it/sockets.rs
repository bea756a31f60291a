//! The socket file of a server: what it replaces, what it leaves alone, and who gets a path that two
//! want.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Barrier};

use afterimage_nbd::{
    Client, ClientOptions, Exports, Limits, ListenError, MemoryExport, NoObserver, Server,
};

fn listen(path: &Path) -> Result<afterimage_nbd::ServerHandle, ListenError> {
    let exports = Arc::new(Exports::single(Arc::new(MemoryExport::new(4096))));
    Server::listen(path, exports, Limits::default(), Arc::new(NoObserver))
}

#[test]
fn the_socket_is_private_and_removed_by_the_server_that_made_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let server = listen(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    server.shutdown();
    assert!(!path.exists());
    // One that another has put there stays.
    let server = listen(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    server.shutdown();
    assert!(path.exists());
    drop(other);
}

#[test]
fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = listen(&path).unwrap();
    assert!(matches!(listen(&path), Err(ListenError::InUse(_))));
    Client::connect(&path, &ClientOptions::default()).unwrap();
    server.shutdown();
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(listen(&path), Err(ListenError::NotASocket(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let long = dir.path().join("x".repeat(200));
    assert!(matches!(listen(&long), Err(ListenError::Io { .. })));
}

#[test]
fn nothing_beside_the_path_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let beside = dir.path().join("s.new");
    std::fs::write(&beside, "precious").unwrap();
    let server = listen(&path).unwrap();
    assert_eq!(std::fs::read(&beside).unwrap(), b"precious");
    server.shutdown();
    std::fs::remove_file(&beside).unwrap();
    // Another export's socket has the name now.
    let other = listen(&beside).unwrap();
    let server = listen(&path).unwrap();
    for socket in [&path, &beside] {
        Client::connect(socket, &ClientOptions::default()).unwrap();
    }
    server.shutdown();
    other.shutdown();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was left");
}

#[test]
fn a_link_is_not_followed_to_what_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let (path, target) = (dir.path().join("s"), dir.path().join("target"));
    drop(UnixListener::bind(&target).unwrap());
    std::os::unix::fs::symlink(&target, &path).unwrap();
    assert!(matches!(listen(&path), Err(ListenError::NotASocket(_))));
    assert!(target.exists() && path.is_symlink());
}

#[test]
fn of_several_servers_on_one_path_one_listens_and_the_others_say_so() {
    const SERVERS: usize = 6;
    let dir = tempfile::tempdir().unwrap();
    for round in 0..40 {
        let path = dir.path().join("s");
        if round % 2 == 0 {
            drop(UnixListener::bind(&path).unwrap());
        }
        let barrier = Arc::new(Barrier::new(SERVERS));
        let racers: Vec<_> = (0..SERVERS)
            .map(|_| {
                let (path, barrier) = (path.clone(), Arc::clone(&barrier));
                std::thread::spawn(move || {
                    barrier.wait();
                    listen(&path)
                })
            })
            .collect();
        let mut listening = Vec::new();
        for racer in racers {
            match racer.join().unwrap() {
                Ok(server) => listening.push(server),
                Err(ListenError::InUse(_)) => {}
                Err(other) => panic!("round {round}: {other}"),
            }
        }
        assert_eq!(listening.len(), 1, "round {round}: servers that say that they listen");
        let server = listening.pop().unwrap();
        let client = Client::connect(&path, &ClientOptions::default()).unwrap();
        // Those that looked whether somebody listens here may not be gone yet.
        assert!(server.connections() >= 1, "round {round}: the client is another server's");
        drop(client);
        server.shutdown();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "round {round}");
    }
}

#[test]
fn a_server_that_ends_leaves_its_successors_socket_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut server = listen(&path).unwrap();
    for _ in 0..40 {
        let ending = std::thread::spawn(move || server.shutdown());
        server = loop {
            match listen(&path) {
                Ok(server) => break server,
                Err(ListenError::InUse(_)) => std::thread::yield_now(),
                Err(other) => panic!("{other}"),
            }
        };
        ending.join().unwrap();
        Client::connect(&path, &ClientOptions::default()).unwrap();
    }
}

#[test]
fn a_path_may_be_as_long_as_clients_can_connect_to() {
    let dir = tempfile::tempdir().unwrap();
    let room = afterimage_nbd::SOCKET_PATH_BYTES_MAX - dir.path().as_os_str().len() - 1;
    let path = dir.path().join("x".repeat(room));
    let server = listen(&path).unwrap();
    Client::connect(&path, &ClientOptions::default()).unwrap();
    server.shutdown();
    let longer = dir.path().join("x".repeat(room + 1));
    let refused = listen(&longer).err().unwrap().to_string();
    assert!(refused.contains("108 bytes") && refused.contains("107"), "{refused}");
}
