//! A death at every step of what changes a pool: it opens again, and what was asked for can be
//! asked for again.

use super::{Bed, UNIT, drain, state, units};
use crate::mortal::Mortal;
use afterimage_journal::pool::{Added, Allocate, DrainStep, Limit, Pool, UnitUse};
use afterimage_journal::storage::Storage;
use std::sync::Arc;

/// Runs `work` with a disk that dies after 0, 1, 2... changes, until it gets through; `check` sees
/// each end.
fn at_every_step(work: impl Fn(&Bed, &Pool), prepare: impl Fn(&Bed), check: impl Fn(&Bed, i64)) {
    for step in 0.. {
        let bed = Bed::new();
        prepare(&bed);
        let mortal = Arc::new(Mortal::new(step));
        let storage: Arc<dyn Storage> = mortal.clone();
        if let Ok(pool) = Pool::open(&storage, &bed.home()) {
            work(&bed, &pool);
        }
        let is_dead = mortal.is_dead();
        check(&bed, step);
        if !is_dead {
            assert!(step > 5, "it changes more than that: {step}");
            return;
        }
    }
}

fn all_active(pool: &Pool) {
    assert!(pool.list().iter().all(|m| m.state == "active"), "{:?}", pool.list());
}

#[test]
fn an_addition_that_was_cut_off_can_be_asked_for_again() {
    at_every_step(
        |bed, pool| drop(pool.add(&bed.path("b"), Limit::Bytes(5 * UNIT))),
        |_| {},
        |bed, step| {
            let pool = bed.open();
            all_active(&pool);
            match pool.list().iter().find(|m| m.path == bed.path("b")) {
                Some(member) => assert_eq!(member.limit_bytes, Some(5 * UNIT), "{step}"),
                None => assert_eq!(pool.add(&bed.path("b"), Limit::Keep).unwrap(), Added::New),
            }
            all_active(&bed.open());
        },
    );
}

#[test]
fn a_bump_that_was_cut_off_makes_no_member_untrusted() {
    at_every_step(
        |_, pool| drop((pool.check(), pool.check())),
        |bed| {
            let pool = bed.open();
            pool.add(&bed.path("b"), Limit::Keep).unwrap();
            pool.add(&bed.path("c"), Limit::Keep).unwrap();
        },
        |bed, _| {
            all_active(&Pool::look(&bed.storage, &bed.home()).unwrap());
            all_active(&bed.open());
            all_active(&bed.open());
        },
    );
}

#[test]
fn a_drain_that_was_cut_off_goes_on_and_loses_nothing() {
    let contents = |i: u64| [vec![i as u8; 70_000], vec![0; 200_000], vec![9; 100]].concat();
    at_every_step(
        |bed, pool| {
            // Whatever fails, whoever asks goes on asking.
            let _ = pool.remove(&bed.path("b"), false);
            for _ in 0..9 {
                let _ = pool.drain_step(&|_, _| UnitUse::Written);
            }
        },
        |bed| {
            bed.open().add(&bed.path("b"), Limit::Keep).unwrap();
            std::fs::create_dir_all(bed.path("b/web")).unwrap();
            std::fs::create_dir_all(bed.path("pool/web")).unwrap();
            for i in 1..=2 {
                let path = bed.path(&format!("b/web/unit-{i:010}"));
                std::fs::write(path, sealed(contents(i))).unwrap();
            }
        },
        |bed, step| {
            let pool = bed.open();
            let there = pool.list().iter().any(|m| m.path == bed.path("b"));
            if there {
                if state(&pool, &bed.path("b")).0 == "active" {
                    assert_eq!(units(&bed.path("b/web")).len(), 2, "{step}");
                    pool.remove(&bed.path("b"), false).unwrap();
                }
                assert_eq!(drain(&pool), DrainStep::Done(bed.path("b")), "{step}");
            }
            for i in 1..=2 {
                let path = bed.path(&format!("pool/web/unit-{i:010}"));
                assert_eq!(std::fs::read(path).unwrap(), sealed(contents(i)), "{step}");
            }
            assert_eq!(std::fs::read_dir(bed.path("pool/web")).unwrap().count(), 3, "units, pin");
            // Free again, for this pool or another.
            assert_eq!(pool.add(&bed.path("b"), Limit::Keep).unwrap(), Added::New, "{step}");
        },
    );
}

/// As much of a sealed unit as a move looks at: header and footer.
fn sealed(middle: Vec<u8>) -> Vec<u8> {
    use afterimage_journal::format::index::{FOOTER_BYTES, Footer};
    use afterimage_journal::format::unit_header::UnitHeader;
    let header = UnitHeader {
        group: [1; 16],
        salt: [2; 16],
        number: 1,
        unit_bytes: UNIT,
        epoch: 1,
        flags: 0,
        after_seq: 0,
        prev_last_seq: 0,
        wall_ns: 0,
        mono_ns: 0,
        boot_id: [0; 16],
        mount_id: 0,
    };
    let footer = Footer { count: 0, first_seq: 1, last_seq: 1, index_at: 4096, index_crc: 0 };
    let mut bytes = header.encode().to_vec();
    bytes.extend(middle);
    bytes.resize((UNIT - FOOTER_BYTES) as usize, 0);
    bytes.extend(footer.encode(&header.salt));
    bytes
}

#[test]
fn room_that_was_given_out_and_taken_back_is_never_lost_for_good() {
    let write = |bed: &Bed, pool: &Pool| {
        for i in 1..=3 {
            let Ok(slot) = pool.allocate(&bed.path("pool/web"), UNIT) else { return };
            let path = slot.dir.join(format!("unit-{i:010}"));
            match slot.spare {
                Some(spare) => std::fs::rename(spare, &path).unwrap(),
                None => std::fs::write(&path, vec![1; UNIT as usize]).unwrap(),
            }
            if pool.release(&path).is_err() {
                return;
            }
        }
    };
    at_every_step(
        write,
        |bed| {
            bed.open().add(&bed.home(), Limit::Bytes(3 * UNIT)).unwrap();
        },
        |bed, step| {
            let pool = bed.open();
            let used = pool.list()[0].used_bytes;
            let left = units(&bed.path("pool/web")).len() as u64;
            assert_eq!(used, left * UNIT + pool.list()[0].spare_bytes, "{step}");
            for _ in left..3 {
                pool.allocate(&bed.path("pool/web"), UNIT).unwrap();
            }
        },
    );
}
