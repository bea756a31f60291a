//! Small files that a journal or a pool is described by: read from a simulated disk, so that the
//! whole way from the file is tried. What is accepted must be what a writer would write.

use super::Target;
use crate::storage::SimStorage;
use afterimage_journal::layout;
use afterimage_journal::pool::{Description, MemberFile};
use afterimage_journal::storage::{Access, Storage};
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

const HOME: &str = "/s/pool";

pub(super) fn targets() -> [Target; 4] {
    let words: &[&[u8]] = &[b"\"members\":", b"\"state\":\"draining\"", b"..", b"-1", b"[]"];
    [
        Target { name: "pool_json", examples: pools, words, run: pool_json },
        Target { name: "member_json", examples: members, words, run: member_json },
        Target {
            name: "journal_json",
            examples: identities,
            words: &[b"\"format\":2"],
            run: identity,
        },
        Target { name: "distrust", examples: distrusts, words: &[b"-", b"\n"], run: distrust },
    ]
}

fn disk(name: &str, bytes: &[u8]) -> Arc<dyn Storage> {
    let storage = SimStorage::new(0);
    let path = Path::new(HOME).join(name);
    let written = storage
        .make_dir(Path::new(HOME))
        .and_then(|()| storage.open(&path, Access::Replace)?.write_all_at(bytes, 0));
    assert!(written.is_ok());
    storage.shared()
}

fn written(name: &str, write: impl Fn(&Arc<dyn Storage>)) -> Vec<Vec<u8>> {
    let storage = disk("unused", &[]);
    write(&storage);
    let read = || {
        let file = storage.open(&Path::new(HOME).join(name), Access::Read)?;
        let mut bytes = vec![0; file.bytes()? as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok::<_, std::io::Error>(bytes)
    };
    read().into_iter().collect()
}

fn pools() -> Vec<Vec<u8>> {
    let description = Description::of_home(Uuid::from_u128(1), Uuid::from_u128(2), 3);
    written("pool.json", |storage| drop(description.write(storage, Path::new(HOME))))
}

fn pool_json(input: &[u8]) {
    // With its checksum made right: as if somebody had written it so.
    let storage = disk("unused", &[]);
    if let Ok(made) = serde_json::from_slice::<Description>(input)
        && made.write(&storage, Path::new(HOME)).is_ok()
        && let Ok(found) = Description::read(&storage, Path::new(HOME))
    {
        assert_eq!(found, Some(made), "not what was written");
    }
    let storage = disk("pool.json", input);
    if let Ok(Some(found)) = Description::read(&storage, Path::new(HOME)) {
        assert!(found.write(&storage, Path::new(HOME)).is_ok(), "what was read can't be written");
        let again = Description::read(&storage, Path::new(HOME));
        assert_eq!(again.ok().flatten(), Some(found), "not what was read");
    }
}

fn members() -> Vec<Vec<u8>> {
    let member =
        MemberFile { format: 1, pool: Uuid::from_u128(1), member: Uuid::from_u128(2), epoch: 3 };
    written("member.json", |storage| drop(member.write(storage, Path::new(HOME))))
}

fn member_json(input: &[u8]) {
    let storage = disk("unused", &[]);
    if let Ok(made) = serde_json::from_slice::<MemberFile>(input)
        && made.write(&storage, Path::new(HOME)).is_ok()
        && let Ok(found) = MemberFile::read(&storage, Path::new(HOME))
    {
        assert_eq!(found, Some(made), "not what was written");
    }
    let storage = disk("member.json", input);
    if let Ok(Some(found)) = MemberFile::read(&storage, Path::new(HOME)) {
        assert!(found.write(&storage, Path::new(HOME)).is_ok(), "what was read can't be written");
        let again = MemberFile::read(&storage, Path::new(HOME));
        assert_eq!(again.ok().flatten(), Some(found), "not what was read");
    }
}

fn identities() -> Vec<Vec<u8>> {
    let identity = layout::Identity {
        encryption: None,
        format: 1,
        group: Uuid::from_u128(1),
        name: "g".into(),
        unit_bytes: 1 << 20,
    };
    let write = |storage: &Arc<dyn Storage>| {
        let _ = layout::write_identity(storage.as_ref(), Path::new(HOME), &identity);
    };
    written("journal.json", write)
}

fn identity(input: &[u8]) {
    let storage = disk("unused", &[]);
    let (storage, home) = (storage.as_ref(), Path::new(HOME));
    // With its checksum made right: as if somebody had written it so.
    if let Ok(made) = serde_json::from_slice::<layout::Identity>(input)
        && layout::write_identity(storage, home, &made).is_ok()
        && let Ok(found) = layout::read_identity_in(storage, home)
    {
        assert_eq!(found, made, "not what was written");
    }
    let storage = disk("journal.json", input);
    if let Ok(found) = layout::read_identity_in(storage.as_ref(), home) {
        assert_eq!(found.format, 1, "a format that is not known");
    }
}

fn distrusts() -> Vec<Vec<u8>> {
    vec![b"17\n".to_vec(), Vec::new()]
}

/// A word that can't be read is a word all the same.
fn distrust(input: &[u8]) {
    let storage = disk(layout::DISTRUST, input);
    let found = layout::read_distrust_in(storage.as_ref(), Path::new(HOME));
    assert!(matches!(found, Ok(Some(_))), "a failed sync is forgotten");
}
