//! The clients that people have: libnbd's tools, QEMU's, fio.

use std::fs;
use std::sync::Arc;

use afterimage_nbd::{ExportInfo, FileExport, MemoryExport};

use crate::fixture::{Fixture, output, pattern, run};

const MIB: usize = 1 << 20;

/// Runs a Python script in nbdsh, connected nowhere yet; `uri` is set in it.
fn nbdsh(fixture: &Fixture, script: &str) {
    let script = format!("uri = {:?}\nimport errno\n{script}", fixture.uri());
    run("nbdsh", &["-c", &script]);
}

#[test]
fn nbdinfo_shows_size_abilities_and_block_sizes() {
    let (fixture, _) = Fixture::memory(3 * MIB + 512);
    assert_eq!(run("nbdinfo", &["--size", &fixture.uri()]).trim(), "3146240");
    let shown = run("nbdinfo", &[&fixture.uri()]);
    for line in [
        "using structured packets",
        "base:allocation",
        "is_read_only: false",
        "can_fua: true",
        "can_flush: true",
        "can_trim: true",
        "can_zero: true",
        "can_fast_zero: true",
        "can_multi_conn: true",
        "block_size_minimum: 1\n",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(shown.contains(line), "{line} in {shown}");
    }
}

#[test]
fn nbdinfo_lists_named_exports_with_their_descriptions() {
    let (fixture, _) = Fixture::memory(MIB);
    let description = "the second one".to_owned();
    let info = ExportInfo { description, read_only: true, ..ExportInfo::default() };
    fixture.exports.insert("zweite/α", Arc::new(MemoryExport::with_info(2 * MIB, info)));
    let shown = run("nbdinfo", &["--list", &fixture.uri()]);
    for line in [
        "export=\"\"",
        "export=\"zweite/α\"",
        "the second one",
        "export-size: 2097152",
        "is_read_only: true",
    ] {
        assert!(shown.contains(line), "{line} in {shown}");
    }
    let missing = format!("nbd+unix:///nowhere?socket={}", fixture.socket().display());
    let output = output("nbdinfo", &[&missing]);
    assert!(!output.status.success());
}

#[test]
fn nbdinfo_maps_what_was_written_and_what_was_not() {
    let (fixture, _) = Fixture::memory(4 * MIB);
    fixture.client().write(MIB as u64, &vec![1; MIB], false).unwrap();
    let map = run("nbdinfo", &["--map", &fixture.uri()]);
    let lines: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines,
        [
            ["0", "1048576", "3", "hole,zero"],
            ["1048576", "1048576", "0", "data"],
            ["2097152", "2097152", "3", "hole,zero"],
        ]
    );
}

#[test]
fn nbdcopy_brings_an_image_there_and_back_over_many_connections() {
    let (fixture, memory) = Fixture::memory(64 * MIB);
    let (source, back) = (fixture.path("source"), fixture.path("back"));
    let mut image = pattern(1, 64 * MIB);
    image[8 * MIB..24 * MIB].fill(0);
    fs::write(&source, &image).unwrap();
    run("nbdcopy", &[source.to_str().unwrap(), &fixture.uri()]);
    assert!(memory.snapshot() == image, "what was written differs");
    run("nbdcopy", &["--connections=4", &fixture.uri(), back.to_str().unwrap()]);
    assert!(fs::read(back).unwrap() == image, "what was read differs");
}

#[test]
fn nbdsh_finds_every_command_to_do_what_it_says() {
    let (fixture, memory) = Fixture::memory(4 * MIB);
    nbdsh(
        &fixture,
        r#"
h.add_meta_context("base:allocation")
h.connect_uri(uri)
assert h.get_structured_replies_negotiated()
assert h.can_df() and h.can_fua() and h.can_fast_zero()
h.pwrite(b"\x11" * 8192, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(8192, 4096) == b"\x11" * 8192
chunks = []
h.pread_structured(8192, 4096, lambda b, o, s, err: chunks.append((len(b), o)), nbd.CMD_FLAG_DF)
assert chunks == [(8192, 4096)]
# Zeroes come as holes, without their bytes; a short one between data is data.
def structured(count, at):
    found = []
    h.pread_structured(count, at, lambda b, o, s, err: found.append((o, len(b), s)))
    return found
HOLE, DATA = nbd.READ_HOLE, nbd.READ_DATA
assert structured(16384, 0) == [(0, 4096, HOLE), (4096, 8192, DATA), (12288, 4096, HOLE)]
assert structured(1024, 2048) == [(2048, 1024, nbd.READ_HOLE)]
assert structured(4096, 11264) == [(11264, 4096, nbd.READ_DATA)]
assert structured(3 << 20, 1 << 20) == [(i << 20, 1 << 20, nbd.READ_HOLE) for i in (1, 2, 3)]
before = h.stats_bytes_received() if hasattr(h, "stats_bytes_received") else None
assert h.pread(3 << 20, 1 << 20) == bytes(3 << 20)
if before is not None:
    assert h.stats_bytes_received() - before < 1000
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
assert h.pread(8192, 4096) == bytes(4096) + b"\x11" * 4096
def extents(flags=0):
    found = []
    h.block_status(h.get_size(), 0, lambda c, o, e, err: found.extend(e) if c == "base:allocation" else None, flags)
    return found
assert extents() == [4096, 3, 8192, 0, 4182016, 3], extents()
assert extents(nbd.CMD_FLAG_REQ_ONE) == [4096, 3]
h.trim(8192, 4096)
assert extents() == [4194304, 3]
h.zero(4096, 0)
h.flush()
h.pwrite(b"abc", 1000001)
assert h.pread(5, 1000000) == b"\0abc\0"
h.shutdown()
"#,
    );
    assert_eq!(&memory.snapshot()[1_000_000..1_000_005], b"\0abc\0");
}

#[test]
fn nbdsh_gets_the_right_error_for_each_wrong_request() {
    let (fixture, _) = Fixture::memory(MIB);
    let info = ExportInfo { read_only: true, ..ExportInfo::default() };
    fixture.exports.insert("ro", Arc::new(MemoryExport::with_info(MIB, info)));
    nbdsh(
        &fixture,
        r#"
def fails(number, what):
    try:
        what()
    except nbd.Error as error:
        assert error.errnum == number, (errno.errorcode.get(error.errnum), number)
    else:
        raise AssertionError("no error")
h.connect_uri(uri)
h.set_strict_mode(0)
size = h.get_size()
fails(errno.ENOSPC, lambda: h.pwrite(bytes(512), size - 256))
fails(errno.EINVAL, lambda: h.pread(512, size - 256))
fails(errno.EINVAL, lambda: h.pread(512, 2**63))
fails(errno.EINVAL, lambda: h.trim(512, size))
fails(errno.ENOSPC, lambda: h.zero(512, size))
fails(errno.EINVAL, lambda: h.cache(512, 0))
fails(errno.EINVAL, lambda: h.block_status(512, 0, lambda *a: 0))
fails(errno.EINVAL, lambda: h.pread(512, 0, nbd.CMD_FLAG_NO_HOLE))
assert h.pread(512, 0) == bytes(512)
r = nbd.NBD()
r.set_export_name("ro")
r.connect_unix(uri.split("socket=")[1])
r.set_strict_mode(0)
assert r.is_read_only()
fails(errno.EPERM, lambda: r.pwrite(bytes(512), 0))
fails(errno.EPERM, lambda: r.trim(512, 0))
fails(errno.EPERM, lambda: r.zero(512, 0))
assert r.pread(512, 0) == bytes(512)
"#,
    );
}

#[test]
fn nbdsh_negotiates_in_every_older_way() {
    let (fixture, memory) = Fixture::memory(MIB);
    nbdsh(
        &fixture,
        r#"
path = uri.split("socket=")[1]
# Without structured replies.
s = nbd.NBD()
s.set_request_structured_replies(False)
s.connect_unix(path)
assert not s.get_structured_replies_negotiated() and not s.can_df()
s.pwrite(b"old" * 100, 0)
assert s.pread(300, 0) == b"old" * 100
# With EXPORT_NAME instead of GO: without fixed newstyle there is no other way.
for flags in (0, nbd.HANDSHAKE_FLAG_NO_ZEROES):
    e = nbd.NBD()
    e.set_handshake_flags(flags)
    e.connect_unix(path)
    assert e.get_size() == 1 << 20
    assert e.pread(300, 0) == b"old" * 100
# Option by option.
o = nbd.NBD()
o.set_opt_mode(True)
o.connect_unix(path)
names = []
assert o.opt_list(lambda name, text: names.append(name)) == 1 and names == [""]
contexts = []
assert o.opt_list_meta_context(lambda name: contexts.append(name)) == 1
assert contexts == ["base:allocation"]
o.set_export_name("missing")
try:
    o.opt_info()
    raise AssertionError("an export that is not there")
except nbd.Error:
    pass
o.set_export_name("")
o.opt_info()
o.opt_go()
assert o.pread(3, 0) == b"old"
a = nbd.NBD()
a.set_opt_mode(True)
a.connect_unix(path)
a.opt_abort()
# TLS is refused, and a client that can do without goes on.
t = nbd.NBD()
t.set_tls(nbd.TLS_ALLOW)
t.connect_unix(path)
assert not t.get_tls_negotiated()
"#,
    );
    assert_eq!(&memory.snapshot()[..6], b"oldold");
}

#[test]
fn nbdsh_keeps_many_requests_in_flight_over_several_connections() {
    let (fixture, _) = Fixture::memory(8 * MIB);
    nbdsh(
        &fixture,
        r#"
handles = []
for i in range(3):
    c = nbd.NBD()
    c.connect_uri(uri)
    handles.append(c)
size = 4096 * 16
for round in range(20):
    buffers = []
    for i, c in enumerate(handles):
        for j in range(16):
            data = bytes([round, i, j, 7]) * (size // 4)
            at = (i * 16 + j) * size
            buffers.append((c, at, data))
            c.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), at)
    for c in handles:
        while c.aio_in_flight() > 0:
            c.poll(-1)
    for c, at, data in buffers:
        assert handles[round % 3].pread(size, at) == data
"#,
    );
}

#[test]
fn qemu_img_converts_both_ways_and_finds_no_difference() {
    let (fixture, memory) = Fixture::memory(32 * MIB);
    let source = fixture.path("source");
    let mut image = pattern(2, 32 * MIB);
    image[4 * MIB..12 * MIB].fill(0);
    fs::write(&source, &image).unwrap();
    let (source, uri) = (source.to_str().unwrap(), fixture.uri());
    let info = run("qemu-img", &["info", &uri]);
    assert!(info.contains("virtual size: 32 MiB"), "{info}");
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", source, &uri]);
    assert!(memory.snapshot() == image, "what was written differs");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &uri]);
    let qcow = fixture.path("q");
    let qcow = qcow.to_str().unwrap();
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, qcow]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", source, qcow]);
    fixture.client().write(20 * MIB as u64, b"x", false).unwrap();
    let differs = output("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &uri]);
    assert_eq!(differs.status.code(), Some(1));
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes_with_extended_headers() {
    let (fixture, memory) = Fixture::memory(16 * MIB);
    let commands = [
        "write -P 3 0 8M",
        "write -f -P 5 4k 64k",
        "write -z 1M 1M",
        "write -z -u 2M 1M",
        "discard 3M 1M",
        "flush",
        "read -P 3 0 4k",
        "read -P 5 4k 64k",
        "read -P 0 1M 2M",
        "read -P 3 4M 4M",
    ];
    let uri = fixture.uri();
    let mut args = vec!["-f", "raw"];
    for command in &commands {
        args.extend(["-c", command]);
    }
    args.push(&uri);
    let shown = run("qemu-io", &args);
    assert!(!shown.contains("failed") && !shown.contains("Pattern verification"), "{shown}");
    assert_eq!(memory.snapshot()[4096..8192], [5; 4096]);
}

#[test]
fn a_file_export_keeps_holes_and_data_as_qemu_sees_them() {
    let (fixture, _) = Fixture::memory(0);
    let file = fixture.path("disk");
    fs::File::create(&file).unwrap().set_len(16 * MIB as u64).unwrap();
    let export = FileExport::open(&file, false).unwrap();
    fixture.exports.insert("", Arc::new(export));
    let uri = fixture.uri();
    let args = ["-c", "write -P 7 4M 4M", "-c", "discard 5M 1M", "-c", "flush", &uri];
    run("qemu-io", &[&["-f", "raw"], &args[..]].concat());
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", file.to_str().unwrap(), &uri]);
    let map = run("nbdinfo", &["--map", &uri]);
    let totals: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(totals[..4], ["0", "4194304", "3", "hole,zero"], "{map}");
    assert_eq!(totals[4..8], ["4194304", "1048576", "0", "data"], "{map}");
    assert_eq!(totals[8..12], ["5242880", "1048576", "3", "hole,zero"], "{map}");
}

#[test]
fn fio_verifies_mixed_random_writes() {
    let (fixture, _) = Fixture::memory(64 * MIB);
    let engines = run("fio", &["--enghelp"]);
    assert!(engines.split_whitespace().any(|engine| engine == "nbd"), "fio has no nbd engine");
    let uri = format!("--uri={}", fixture.uri());
    for (name, size, depth) in
        [("small", "--bs=4k", "--iodepth=32"), ("mixed", "--bsrange=512-256k", "--iodepth=16")]
    {
        run(
            "fio",
            &[
                &format!("--name={name}"),
                "--ioengine=nbd",
                &uri,
                "--rw=randwrite",
                size,
                depth,
                "--size=64M",
                "--io_size=32M",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
                "--randseed=7",
            ],
        );
    }
}
