use afterimage_journal::format::record::{FLAG_COPIED, Kind};
use afterimage_journal::history::When;
use afterimage_journal::log::Draft;
use afterimage_journal::meta::{
    Config, Copy, CopyCause, CopyEvent, Guest, Meta, Session, SessionEvent, Volume,
};
use afterimage_journal::{History, Journal, Options, Seq, View};
use std::path::Path;
use uuid::Uuid;

fn options() -> Options {
    Options { unit_bytes: 1 << 20, ..Options::default() }
}

fn config(group: Uuid) -> Config {
    Config {
        group,
        name: "g".into(),
        guests: vec![Guest {
            name: "vm".into(),
            command_line: vec![],
            libvirt_xml: None,
            qemu_version: String::new(),
        }],
        volumes: vec![Volume {
            id: 1,
            uuid: Uuid::new_v4(),
            guest: "vm".into(),
            disk: "vda".into(),
            node: "d0".into(),
            bytes: 1 << 20,
            format: "raw".into(),
            source: String::new(),
            active: true,
        }],
    }
}

fn write(journal: &Journal, addr: u64, data: &[u8]) -> Seq {
    let mut draft = Draft::of(Kind::Write);
    draft.volume = 1;
    draft.addr = addr;
    draft.len = data.len() as u32;
    journal.append(&draft, data).unwrap()
}

fn session(id: u32, event: SessionEvent) -> Meta {
    Meta::Session(Session {
        id,
        guest: "vm".into(),
        event,
        reason: "test".into(),
        upto: None,
        full: true,
        images: vec![],
    })
}

fn new_journal(dir: &Path) -> Journal {
    let group = Uuid::new_v4();
    let journal = Journal::create(dir, group, "g", options()).unwrap();
    journal.set_config(&config(group)).unwrap();
    journal
}

fn content(dir: &Path, seq: Seq, at: u64, len: usize) -> Vec<u8> {
    let history = History::load(dir).unwrap();
    let mut buffer = vec![0xff; len];
    View::at(&history, 1, seq).unwrap().read(at, &mut buffer).unwrap();
    buffer
}

#[test]
fn every_position_reads_as_it_was_over_many_units() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("j");
    let journal = new_journal(&dir);
    journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    let mut seqs = vec![];
    for i in 0..2000u64 {
        seqs.push(write(&journal, (i % 16) * 4096, &vec![(i % 251) as u8; 4096]));
    }
    let live = History::load(&dir).unwrap();
    assert!(live.units.len() > 5, "{}", live.units.len());
    assert!(live.damage.is_empty(), "{:?}", live.damage);
    assert!(live.head >= *seqs.last().unwrap());
    journal.close().unwrap();
    let history = History::load(&dir).unwrap();
    assert!(history.closed && history.damage.is_empty());
    for i in [20usize, 700, 1999] {
        let byte = (i % 251) as u8;
        assert_eq!(content(&dir, seqs[i], (i as u64 % 16) * 4096, 4096), vec![byte; 4096]);
        let before = ((i - 16) % 251) as u8;
        assert_eq!(content(&dir, seqs[i] - 1, (i as u64 % 16) * 4096, 8), vec![before; 8]);
    }
}

#[test]
fn a_journal_left_open_continues_in_a_new_epoch_with_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("j");
    let journal = new_journal(&dir);
    journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    let last = write(&journal, 0, &[1; 512]);
    drop(journal);
    let (journal, history) = Journal::open(&dir, options()).unwrap();
    assert_eq!((history.head, history.closed, journal.epoch()), (last, false, 2));
    let outside = write(&journal, 0, &[2; 512]);
    journal.append_meta(&session(2, SessionEvent::Open)).unwrap();
    let inside = write(&journal, 0, &[3; 512]);
    journal.sync().unwrap();
    let history = History::load(&dir).unwrap();
    assert!(history.is_restorable(last) && history.is_restorable(inside));
    let refused = history.resolve(&When::Seq(outside)).unwrap_err();
    assert_eq!(refused.before.unwrap().seq, last);
    assert!(refused.after.unwrap().seq > outside);
    assert_eq!(history.gaps.len(), 1, "{:?}", history.gaps);
    assert!(matches!(
        Journal::open(&dir, options()),
        Err(afterimage_journal::Error::Locked { .. })
    ));
}

#[test]
fn copied_blocks_rank_where_their_copy_began() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("j");
    let journal = new_journal(&dir);
    let copy =
        |event| Meta::Copy(Copy { id: 1, volume: 1, event, cause: CopyCause::Initial, upto: 0 });
    let early = write(&journal, 0, &[1; 512]);
    journal.append_meta(&copy(CopyEvent::Start)).unwrap();
    write(&journal, 512, &[2; 512]);
    let mut draft = Draft::of(Kind::Write);
    draft.volume = 1;
    draft.len = 1536;
    draft.flags = FLAG_COPIED;
    draft.scope = 1;
    journal.append(&draft, &[9; 1536]).unwrap();
    journal.append_meta(&copy(CopyEvent::End)).unwrap();
    let end = journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    let mut expected = vec![9u8; 512];
    expected.extend([2; 512]);
    expected.extend([9; 512]);
    assert_eq!(content(&dir, end, 0, 1536), expected);
    assert_eq!(content(&dir, early, 0, 1024)[..512], [1; 512]);
    assert_eq!(content(&dir, early, 0, 1024)[512..], [0; 512]);
    drop(journal);
}
