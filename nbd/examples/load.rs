//! Loads an NBD server and prints what it bears:
//! `load SOCKET write|read PIECE_BYTES DEPTH SECONDS [random]`.

use std::path::Path;
use std::time::{Duration, Instant};

use afterimage_nbd::{Client, ClientOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [socket, kind, piece, depth, seconds, order @ ..] = &args[..] else {
        return Err("usage: load SOCKET write|read PIECE_BYTES DEPTH SECONDS [random]".into());
    };
    let (piece, depth): (usize, usize) = (piece.parse()?, depth.parse()?);
    let limit = Duration::from_secs(seconds.parse()?);
    let options = ClientOptions { piece_bytes_max: piece as u32, ..ClientOptions::default() };
    let mut client = Client::connect(Path::new(socket), &options)?;
    let pieces = client.bytes() / piece as u64;
    let data = vec![0x5a; piece];
    let mut buf = vec![0; piece];
    let mut at = 0_u64;
    let mut next = || {
        let step = if order.is_empty() { 1 } else { 7919 };
        at = (at + step) % pieces;
        at * piece as u64
    };
    let started = Instant::now();
    let (mut count, mut times) = (0_u64, Vec::new());
    while started.elapsed() < limit {
        let began = Instant::now();
        let batch = if depth == 1 { 1 } else { 64 * depth as u64 };
        match (kind.as_str(), depth) {
            ("write", _) => {
                client.write_many((0..batch).map(|_| (next(), &data[..])), depth, false)?;
            }
            ("read", 1) => client.read(next(), &mut buf)?,
            _ => {
                let ranges = (0..batch).map(|_| next()).map(|at| at..at + piece as u64);
                client.read_many(ranges, depth, |_, _| Ok(()))?;
            }
        }
        count += batch;
        times.push(began.elapsed());
    }
    let seconds = started.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let per_second = count as f64 / seconds;
    let mib = per_second * piece as f64 / f64::from(1 << 20);
    println!(
        "{kind} {piece} B depth {depth}: {per_second:.0}/s, {mib:.0} MiB/s, batch p50 {:?} p99 {:?}",
        at(0.5),
        at(0.99)
    );
    Ok(())
}
