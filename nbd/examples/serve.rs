//! Serves memory or a file over NBD until its standard input ends:
//! `serve SOCKET memory SIZE_BYTES`, `serve SOCKET file PATH [ro]`, or
//! `serve SOCKET sink SIZE_BYTES`, which takes writes one after the other into warm memory, as a
//! log does, and forgets them: what is left is the cost of the server itself.

use std::cell::RefCell;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use afterimage_nbd::{
    Errno, Export, Exports, FileExport, Limits, MemoryExport, NoObserver, Payload, Server,
    WriteFlags, ZeroFlags,
};

/// The memory that one thread's writes go round in, in bytes.
const RING_BYTES: usize = 16 << 20;

thread_local! {
    static RING: RefCell<(Vec<u8>, usize)> = RefCell::new((vec![1; RING_BYTES], 0));
}

struct Sink(u64);

impl Export for Sink {
    fn bytes(&self) -> u64 {
        self.0
    }

    fn read(&self, _at: u64, buf: &mut [u8]) -> Result<(), Errno> {
        buf.fill(0);
        Ok(())
    }

    fn write(&self, _at: u64, payload: &mut Payload<'_>, _flags: WriteFlags) -> Result<(), Errno> {
        RING.with_borrow_mut(|(ring, next)| {
            let bytes = payload.len();
            if bytes > ring.len() {
                return Err(Errno::NoSpc);
            }
            if *next + bytes > ring.len() {
                *next = 0;
            }
            payload.read_into(&mut ring[*next..*next + bytes])?;
            *next += bytes;
            Ok(())
        })
    }

    fn write_zeroes(&self, _at: u64, _len: u64, _flags: ZeroFlags) -> Result<(), Errno> {
        Ok(())
    }

    fn trim(&self, _at: u64, _len: u64, _flags: WriteFlags) -> Result<(), Errno> {
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (socket, export): (&str, Arc<dyn Export>) = match args[..] {
        [socket, "memory", bytes] => (socket, Arc::new(MemoryExport::new(bytes.parse()?))),
        [socket, "sink", bytes] => (socket, Arc::new(Sink(bytes.parse()?))),
        [socket, "file", path] => (socket, Arc::new(FileExport::open(Path::new(path), false)?)),
        [socket, "file", path, "ro"] => {
            (socket, Arc::new(FileExport::open(Path::new(path), true)?))
        }
        _ => {
            return Err(
                "usage: serve SOCKET memory|sink SIZE_BYTES | serve SOCKET file PATH [ro]".into()
            );
        }
    };
    let exports = Arc::new(Exports::single(export));
    let server =
        Server::listen(Path::new(socket), exports, Limits::default(), Arc::new(NoObserver))?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.shutdown();
    Ok(())
}
