use super::*;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;

const QEMU: (u32, u32) = (65_534, 65_534);

fn is_root() -> bool {
    if !geteuid().is_root() {
        eprintln!("not run: only root can give files to another user");
    }
    geteuid().is_root()
}

fn uid_of(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().uid()
}

#[test]
fn only_a_directory_of_its_own_belongs_to_qemus_user() {
    if !is_root() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let dir = prepare_run_dir(state.path(), "vm", Some(QEMU)).unwrap();
    assert_eq!((uid_of(&dir), uid_of(&dir.join(PULL_DIR))), (0, QEMU.0));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(state.path()), 0o711);
    assert_eq!((mode(&dir), mode(&dir.join(PULL_DIR))), (0o711, 0o700));
    // The same guest runs as our own user now.
    prepare_run_dir(state.path(), "vm", None).unwrap();
    assert_eq!(uid_of(&dir.join(PULL_DIR)), 0);
}

#[test]
fn directory_that_an_older_version_gave_away_is_taken_back_and_emptied() {
    if !is_root() {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("run/vm");
    std::fs::create_dir_all(&dir).unwrap();
    let victim = state.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    symlink(&victim, dir.join("memory.sock")).unwrap();
    symlink(state.path(), dir.join(PULL_DIR)).unwrap();
    symlink(&victim, dir.join(super::super::attach::PROCESS_FILE)).unwrap();
    std::os::unix::fs::chown(&dir, Some(QEMU.0), None).unwrap();
    prepare_run_dir(state.path(), "vm", Some(QEMU)).unwrap();
    assert_eq!((uid_of(&dir), uid_of(state.path()), uid_of(&victim)), (0, 0, 0));
    let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [PULL_DIR]);
    assert!(std::fs::symlink_metadata(dir.join(PULL_DIR)).unwrap().is_dir());
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn symlink_in_the_place_of_a_socket_gives_nothing_away() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (socket, victim, link) =
        (dir.path().join("socket"), dir.path().join("victim"), dir.path().join("link"));
    let _listener = UnixListener::bind(&socket).unwrap();
    std::fs::write(&victim, "").unwrap();
    symlink(&victim, &link).unwrap();
    give(&socket, QEMU.0).unwrap();
    assert_eq!(uid_of(&socket), QEMU.0);
    assert!(give(&link, QEMU.0).unwrap_err().to_string().contains("no socket"));
    assert!(give(&victim, QEMU.0).is_err());
    assert_eq!(uid_of(&victim), 0);
}
