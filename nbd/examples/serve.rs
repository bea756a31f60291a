//! Serves memory or a file over NBD until its standard input ends:
//! `serve SOCKET memory SIZE_BYTES` or `serve SOCKET file PATH [ro]`.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use afterimage_nbd::{Export, Exports, FileExport, Limits, MemoryExport, NoObserver, Server};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (socket, export): (&str, Arc<dyn Export>) = match args[..] {
        [socket, "memory", bytes] => (socket, Arc::new(MemoryExport::new(bytes.parse()?))),
        [socket, "file", path] => (socket, Arc::new(FileExport::open(Path::new(path), false)?)),
        [socket, "file", path, "ro"] => {
            (socket, Arc::new(FileExport::open(Path::new(path), true)?))
        }
        _ => {
            return Err(
                "usage: serve SOCKET memory SIZE_BYTES | serve SOCKET file PATH [ro]".into()
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
