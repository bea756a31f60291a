//! Which files are a journal's units, and on which members they are looked for.

use super::description::{Description, MemberEntry, MemberFile, MemberState};
use super::name::FileName;
use super::places::Places;
use crate::storage::{RealStorage, Storage};
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// A pool of a home and two members with a journal on all three.
fn pool(dir: &Path) -> (Arc<dyn Storage>, Description) {
    let storage = RealStorage::shared();
    let home = dir.join("pool");
    let mut described = Description::new();
    described.epoch = 4;
    described.members[0].epoch = 4;
    for (i, name) in ["pool", "b", "c"].iter().enumerate() {
        let member = dir.join(name);
        std::fs::create_dir_all(member.join("web")).unwrap();
        std::fs::write(member.join(format!("web/unit-000000000{}", i + 1)), name).unwrap();
        if i > 0 {
            described.members.push(MemberEntry {
                uuid: Uuid::new_v4(),
                path: member.display().to_string(),
                limit_bytes: None,
                state: MemberState::Active,
                epoch: 4,
                tried: None,
            });
        }
        let member_uuid = described.members[i].uuid;
        let file = MemberFile { format: 1, pool: described.pool, member: member_uuid, epoch: 4 };
        file.write(&storage, &member).unwrap();
    }
    described.write(&storage, &home).unwrap();
    (storage, described)
}

fn numbers(places: &Places) -> Vec<u64> {
    places.units().unwrap().iter().map(|f| f.name.numbers().0).collect()
}

#[test]
fn units_are_found_on_every_member_and_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = pool(dir.path());
    std::fs::write(dir.path().join("c/web/unit-0000000002"), "b").unwrap();
    let places = Places::of(&storage, &dir.path().join("pool/web")).unwrap();
    assert_eq!(numbers(&places), [1, 2, 3]);
    let found = places.find(FileName::Unit(3)).unwrap();
    assert_eq!(found, dir.path().join("c/web/unit-0000000003"));
    assert!(places.missing().is_empty() && places.missing_text().is_empty());
    // A journal that has nothing on the other members is whole without them.
    std::fs::create_dir(dir.path().join("pool/db")).unwrap();
    let places = Places::of(&storage, &dir.path().join("pool/db")).unwrap();
    assert_eq!((places.dirs().len(), numbers(&places).len()), (3, 0));
}

#[test]
fn a_member_that_is_away_or_an_old_copy_is_named_and_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, mut described) = pool(dir.path());
    std::fs::rename(dir.path().join("b"), dir.path().join("elsewhere")).unwrap();
    let places = Places::of(&storage, &dir.path().join("pool/web")).unwrap();
    assert_eq!(numbers(&places), [1, 3]);
    assert_eq!(places.missing_text(), format!(" (member {}/b is not there)", dir.path().display()));
    described.epoch = 6;
    described.members[2].epoch = 5;
    described.write(&storage, &dir.path().join("pool")).unwrap();
    let places = Places::of(&storage, &dir.path().join("pool/web")).unwrap();
    assert_eq!(numbers(&places), [1]);
    assert!(places.missing_text().contains("/c is an old copy"), "{}", places.missing_text());
}

#[test]
fn without_its_description_a_pool_is_read_from_the_home_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, _) = pool(dir.path());
    let home = dir.path().join("pool");
    std::fs::write(home.join("pool.json"), "{").unwrap();
    let places = Places::of(&storage, &home.join("web")).unwrap();
    assert_eq!((numbers(&places), places.missing().len()), (vec![1], 1));
    std::fs::remove_file(home.join("pool.json")).unwrap();
    assert_eq!(Places::of(&storage, &home.join("web")).unwrap().missing().len(), 1);
    // A copy of the journal alone, or a pool that never had another member.
    std::fs::remove_file(home.join("member.json")).unwrap();
    assert!(Places::of(&storage, &home.join("web")).unwrap().missing().is_empty());
}
