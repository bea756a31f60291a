//! QEMU's migration stream, read and written: bytes only, no I/O of its own but the writer's.
//!
//! * [`Reader`] takes the stream in pieces of any size and hands each page to a [`Sink`]; what is
//!   left are the [`Parts`].
//! * [`Writer`] makes of the same parts and of pages a stream that `-incoming` takes.
//! * [`LiveWriter`] makes of them one whose guest runs at once and asks for pages ([`Answers`]).
//! * [`Head`] says what a stored head holds: machine type, id of the section `ram`, footers.
//!
//! ```text
//! 'QEVM' be32 3                                            magic, version           ┐
//! 07 be32 n, n bytes                                       configuration: machine   │
//!    05 n, n bytes, be32 version, ..                       its subsections          │ head
//! 01 be32 id, 03 'ram', be32 instance, be32 version 4      START of `ram`           ┘
//!    be64 total | 04                                       list of blocks           ┐
//!       n, n bytes, be64 bytes       until total           one block                │ blocks
//!    be64 10                                               end of the section       ┘
//! 7e be32 id                                               footer                   > head
//! 02 be32 id (PART) or 03 be32 id (END)                    pages                    ┐
//!    be64 offset | 08 [| 20]  [n, n bytes]  4096 bytes     page                     │ calls of
//!    be64 offset | 02 [| 20]  [n, n bytes]  00             page of zeroes           │ the sink
//!    be64 10                                               end of the section       │
//! 7e be32 id                                               footer; again from 02    ┘
//! 08 be16 0b, be16 0                                       command, passed over
//! 04 be32 id, n, n bytes, be32, be32, ..                   FULL: a device           ┐
//! 7e be32 id                                               footer; again from 04    │ tail
//! 00                                                       end                      │
//! 06 be32 n, n bytes of JSON                               description of devices   ┘
//! ```
//!
//! Flag 0x20 says: in the block of the page before; without it the block's id follows. The low
//! twelve bits of a word are flags, for pages have 4096 bytes. `background-snapshot` ends with the
//! last PART; other migrations have one END. The head is QEMU's own bytes: all before the list of
//! blocks, and the footer behind it where there are footers. So a [`Writer`] needs nothing but
//! head, blocks and tail.
//!
//! What always holds: memory is bounded by [`Limits`] and one page, whatever the input; how the
//! stream is cut into pieces changes nothing; whatever is not understood is refused by name, with
//! the byte at which it begins; a stream that is whole ends with the description of its devices and
//! has carried each page at least once. Device sections carry no length, so the tail is opaque.
//!
//! Facts are from QEMU 8.2 to 10.0: `migration/ram.c`, `migration/savevm.c`,
//! `docs/devel/migration/main.rst`.

mod block;
mod error;
mod given;
mod head;
mod live;
mod reader;
mod tail;
mod wire;
mod writer;

pub use block::{Block, ID_BYTES_MAX};
pub use error::{Error, Fault, Kind};
pub use given::{Limits, Parts, Sink};
pub use head::Head;
pub use live::{Answer, Answers, LiveWriter};
pub use reader::Reader;
pub use writer::Writer;

/// Bytes of a page of the stream: what x86 calls a page, however large the host's pages are.
pub const PAGE_BYTES: usize = 4096;
