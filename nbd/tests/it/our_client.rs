//! Our client against QEMU's server, nbdkit, and our own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use afterimage_nbd::proto::{BASE_ALLOCATION, Mode};
use afterimage_nbd::{Client, ClientError, ClientOptions, Content, Errno, ZeroFlags};

use crate::fixture::{Daemon, Fixture, pattern, run};

const MIB: usize = 1 << 20;

fn modes() -> [ClientOptions; 3] {
    let contexts = vec![BASE_ALLOCATION.to_owned()];
    let base = ClientOptions { contexts, ..ClientOptions::default() };
    [
        ClientOptions { structured: false, ..base.clone() },
        base.clone(),
        ClientOptions { extended: true, ..base },
    ]
}

/// Reads the whole export in many pieces and gives it, with the bytes that came as holes.
fn read_all(client: &mut Client, depth: usize) -> (Vec<u8>, u64) {
    let mut image = vec![0xaa; client.bytes() as usize];
    let mut holes = 0;
    let bytes = client.bytes();
    client
        .read_many([0..bytes / 3, bytes / 3..bytes], depth, |at, content| {
            let at = at as usize;
            match content {
                Content::Data(data) => image[at..at + data.len()].copy_from_slice(data),
                Content::Hole(len) => {
                    image[at..at + len as usize].fill(0);
                    holes += len;
                }
            }
            Ok(())
        })
        .unwrap();
    (image, holes)
}

fn sparse_image(path: &Path, bytes: usize) -> Vec<u8> {
    let mut image = pattern(5, bytes);
    image[MIB..4 * MIB].fill(0);
    image[bytes - 2 * MIB..].fill(0);
    let file = fs::File::create(path).unwrap();
    file.set_len(bytes as u64).unwrap();
    use std::os::unix::fs::FileExt;
    file.write_all_at(&image[..MIB], 0).unwrap();
    file.write_all_at(&image[4 * MIB..bytes - 2 * MIB], 4 * MIB as u64).unwrap();
    image
}

#[test]
fn it_reads_qemu_nbd_in_every_mode_with_holes_and_out_of_order() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, socket) = (dir.path().join("disk"), dir.path().join("s"));
    let image = sparse_image(&disk, 24 * MIB);
    let file = disk.to_str().unwrap();
    let _daemon = Daemon::listening_on(&socket, "qemu-nbd", &["-f", "raw", "-t", "-e", "8", file]);
    for (options, mode) in modes().into_iter().zip([Mode::Simple, Mode::Structured, Mode::Extended])
    {
        let mut client = Client::connect(&socket, &options).unwrap();
        assert_eq!((client.mode(), client.bytes()), (mode, 24 * MIB as u64));
        let (read, holes) = read_all(&mut client, 16);
        assert!(read == image, "what was read differs in {mode:?}");
        if mode != Mode::Simple {
            assert_eq!(holes, 5 * MIB as u64, "holes in {mode:?}");
            let extents = client.block_status(BASE_ALLOCATION, 0, 24 * MIB as u64).unwrap();
            let mib = |count: usize| (count * MIB) as u64;
            assert_eq!(extents, [(mib(1), 0), (mib(3), 3), (mib(18), 0), (mib(2), 3)]);
        }
        client.disconnect().unwrap();
    }
}

#[test]
fn it_writes_to_qemu_nbd_in_every_mode() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, socket) = (dir.path().join("disk"), dir.path().join("s"));
    fs::write(&disk, vec![0; 8 * MIB]).unwrap();
    let _daemon = Daemon::listening_on(
        &socket,
        "qemu-nbd",
        &["-f", "raw", "-t", "--discard=unmap", disk.to_str().unwrap()],
    );
    for (seed, options) in modes().into_iter().enumerate() {
        let mut client = Client::connect(&socket, &options).unwrap();
        let data = pattern(seed as u64, 3 * MIB);
        client.write(MIB as u64, &data, true).unwrap();
        client.write_zeroes(2 * MIB as u64, 4096, ZeroFlags::default()).unwrap();
        client.trim(0, 4096).unwrap();
        client.flush().unwrap();
        let mut back = vec![0xaa; 3 * MIB];
        client.read(MIB as u64, &mut back).unwrap();
        let mut wanted = data;
        wanted[MIB..MIB + 4096].fill(0);
        assert!(back == wanted);
        client.disconnect().unwrap();
        assert!(fs::read(&disk).unwrap()[MIB..4 * MIB] == wanted);
    }
}

#[test]
fn it_reads_qemus_dirty_bitmap() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, socket) = (dir.path().join("q"), dir.path().join("s"));
    let disk = disk.to_str().unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", disk, "64M"]);
    run("qemu-img", &["bitmap", "--add", "-g", "65536", disk, "b1"]);
    let writes = ["-c", "write -P 1 1M 64k", "-c", "write -P 2 10M 1M"];
    run("qemu-io", &[&["-f", "qcow2"], &writes[..], &[disk]].concat());
    let _daemon =
        Daemon::listening_on(&socket, "qemu-nbd", &["-f", "qcow2", "-t", "-r", "-B", "b1", disk]);
    let context = "qemu:dirty-bitmap:b1";
    for extended in [false, true] {
        let options = ClientOptions {
            extended,
            contexts: vec![BASE_ALLOCATION.into(), context.into()],
            ..ClientOptions::default()
        };
        let mut client = Client::connect(&socket, &options).unwrap();
        assert!(client.has_context(context) && client.has_context(BASE_ALLOCATION));
        let extents = client.block_status(context, 0, client.bytes()).unwrap();
        let mib = MIB as u64;
        let wanted = [(mib, 0), (65536, 1), (9 * mib - 65536, 0), (mib, 1), (53 * mib, 0)];
        assert_eq!(extents, wanted);
        let dirty = [mib..mib + 65536, 10 * mib..11 * mib];
        let mut seen = BTreeMap::new();
        client
            .read_many(dirty, 8, |at, content| {
                let Content::Data(data) = content else { panic!("a hole") };
                seen.insert(at, (data.len() as u64, data[0]));
                Ok(())
            })
            .unwrap();
        assert_eq!(seen.values().map(|(len, _)| len).sum::<u64>(), mib + 65536);
        assert_eq!((seen[&mib].1, seen[&(10 * mib)].1), (1, 2));
        assert!(client.is_read_only());
        let refused = client.write(0, &[0; 512], false).unwrap_err();
        // The protocol asks for EPERM; QEMU answers EINVAL.
        let refused_by_server =
            matches!(refused, ClientError::Request { errno: Errno::Perm | Errno::Inval, .. });
        assert!(refused_by_server, "{refused}");
        assert!(matches!(
            client.block_status("qemu:dirty-bitmap:b2", 0, 512),
            Err(ClientError::Context(_))
        ));
    }
}

#[test]
fn it_reads_nbdkit_with_and_without_structured_replies() {
    let dir = tempfile::tempdir().unwrap();
    for extra in [&[][..], &["--no-sr"]] {
        let socket = dir.path().join(format!("s{}", extra.len()));
        let plugin = ["-f", "sparse-random", "48M", "seed=7", "runlength=200000"];
        let _daemon = Daemon::listening_on(&socket, "nbdkit", &[extra, &plugin[..]].concat());
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let copy = dir.path().join("copy");
        run("nbdcopy", &[&uri, copy.to_str().unwrap()]);
        for options in modes() {
            let mut client = Client::connect(&socket, &options).unwrap();
            // nbdkit 1.32 has no extended headers: the client makes do.
            assert_ne!(client.mode(), Mode::Extended);
            assert!(read_all(&mut client, 32).0 == fs::read(&copy).unwrap());
            if client.has_context(BASE_ALLOCATION) {
                let bytes = client.bytes();
                let extents = client.block_status(BASE_ALLOCATION, 0, bytes).unwrap();
                assert_eq!(extents.iter().map(|(len, _)| len).sum::<u64>(), bytes);
                assert!(extents.iter().any(|(_, flags)| *flags == 3));
            }
        }
    }
}

#[test]
fn a_failed_request_is_reported_and_the_connection_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, flag) = (dir.path().join("s"), dir.path().join("fail"));
    let file = format!("error-file={}", flag.display());
    let args = ["-f", "--filter=error", "memory", "8M", "error-pread=ENOSPC", "error-pread-rate=1"];
    let _daemon = Daemon::listening_on(&socket, "nbdkit", &[&args[..], &[&file]].concat());
    for options in modes() {
        let mut client = Client::connect(&socket, &options).unwrap();
        fs::write(&flag, "").unwrap();
        let mut buf = vec![0; 4 * MIB];
        let failed = client.read(0, &mut buf).unwrap_err();
        let ClientError::Request { errno, at, .. } = &failed else { panic!("{failed}") };
        // Replies come in any order: whichever piece failed first is named.
        assert!(*errno == Errno::NoSpc && *at < 4 * MIB as u64, "{failed}");
        fs::remove_file(&flag).unwrap();
        client.read(0, &mut buf).unwrap();
        client.disconnect().unwrap();
    }
}

#[test]
fn a_sink_that_fails_stops_the_read_and_the_connection_goes_on() {
    let (fixture, _) = Fixture::memory(16 * MIB);
    let mut client = fixture.client();
    let mut calls = 0;
    let failed = client
        .read_many(std::iter::once(0..16 * MIB as u64), 8, |_, _| {
            calls += 1;
            if calls == 3 { Err(std::io::Error::other("full")) } else { Ok(()) }
        })
        .unwrap_err();
    assert!(matches!(failed, ClientError::Sink(_)), "{failed}");
    assert_eq!(calls, 3);
    client.read(0, &mut [1; 512]).unwrap();
}

#[test]
fn ranges_outside_the_export_are_refused_before_they_are_sent() {
    let (fixture, _) = Fixture::memory(MIB);
    let mut client = fixture.client();
    let end = MIB as u64;
    let range = |result: Result<(), ClientError>| {
        assert!(matches!(result, Err(ClientError::Range { .. })), "{result:?}");
    };
    range(client.read(end - 1, &mut [0; 2]));
    range(client.read(u64::MAX, &mut [0; 2]));
    range(client.write(end, &[0; 1], false));
    range(client.trim(0, end + 1));
    range(client.write_zeroes(u64::MAX, 2, ZeroFlags::default()));
    range(client.read_many([0..512, end..end + 1], 4, |_, _| Ok(())));
    client.flush().unwrap();
}

#[test]
fn it_lists_exports_and_names_the_one_that_is_missing() {
    let (fixture, _) = Fixture::memory(MIB);
    let other = afterimage_nbd::MemoryExport::new(512);
    fixture.exports.insert("other", std::sync::Arc::new(other));
    let wait = std::time::Duration::from_secs(5);
    assert_eq!(Client::list(&fixture.socket(), wait).unwrap(), ["", "other"]);
    let options = ClientOptions { export: "third".into(), ..ClientOptions::default() };
    let refused = Client::connect(&fixture.socket(), &options).err().unwrap().to_string();
    assert!(refused.contains("third"), "{refused}");
    let nobody = Client::connect(&fixture.path("nobody"), &options).err().unwrap();
    assert!(matches!(nobody, ClientError::Connect { .. }), "{nobody}");
}

#[test]
fn extended_trims_and_zeroes_reach_beyond_32_bits_in_one_request() {
    struct Huge(std::sync::Mutex<Vec<(u64, u64)>>);
    impl afterimage_nbd::Export for Huge {
        fn bytes(&self) -> u64 {
            1 << 40
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Errno> {
            Ok(())
        }
        fn write(
            &self,
            _: u64,
            _: &mut afterimage_nbd::Payload<'_>,
            _: afterimage_nbd::WriteFlags,
        ) -> Result<(), Errno> {
            Err(Errno::Io)
        }
        fn write_zeroes(&self, at: u64, len: u64, _: ZeroFlags) -> Result<(), Errno> {
            self.0.lock().unwrap().push((at, len));
            Ok(())
        }
        fn trim(&self, at: u64, len: u64, _: afterimage_nbd::WriteFlags) -> Result<(), Errno> {
            self.0.lock().unwrap().push((at, len));
            Ok(())
        }
        fn flush(&self) -> Result<(), Errno> {
            Ok(())
        }
    }
    let huge = std::sync::Arc::new(Huge(std::sync::Mutex::default()));
    let (fixture, _) = Fixture::memory(0);
    fixture.exports.insert("", huge.clone());
    let terabyte = 1_u64 << 40;
    let [_, structured, extended] = modes();
    let mut client = Client::connect(&fixture.socket(), &extended).unwrap();
    client.trim(0, terabyte).unwrap();
    client.write_zeroes(5, terabyte - 5, ZeroFlags::default()).unwrap();
    assert_eq!(client.block_status(BASE_ALLOCATION, 0, terabyte).unwrap(), [(terabyte, 0)]);
    assert_eq!(*huge.0.lock().unwrap(), [(0, terabyte), (5, terabyte - 5)]);
    huge.0.lock().unwrap().clear();
    let mut client = Client::connect(&fixture.socket(), &structured).unwrap();
    client.trim(0, terabyte).unwrap();
    assert_eq!(client.block_status(BASE_ALLOCATION, 0, terabyte).unwrap(), [(terabyte, 0)]);
    let trims = huge.0.lock().unwrap();
    assert!(trims.len() > 256 && trims.iter().map(|(_, len)| len).sum::<u64>() == terabyte);
}
