//! What is wrong with a stream, where, and what to do about it.

use std::convert::Infallible;

/// Why a stream was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error<E = Infallible> {
    /// The stream itself.
    #[error("migration stream, byte {at}: {fault}")]
    Stream {
        /// Where what is wrong begins, in bytes from the stream's first one.
        at: u64,
        /// What it is.
        fault: Fault,
    },
    /// The sink refused what it was given.
    #[error("what is at byte {at} of the migration stream was not taken: {error}")]
    Sink {
        /// Where what it was given begins.
        at: u64,
        /// The sink's own error.
        error: E,
    },
}

/// What a caller can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The stream ends too early: take another one.
    Cut,
    /// It is no stream of QEMU's, or not any more: take another one; if that says the same, report it.
    Damaged,
    /// QEMU is set to send what is not supported: change its settings, as the message says.
    Unsupported,
    /// Larger than a limit allows.
    TooLarge,
    /// The sink failed; the stream is not to blame.
    Sink,
}

impl<E> Error<E> {
    /// What a caller can do.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Error::Stream { fault, .. } => fault.kind(),
            Error::Sink { .. } => Kind::Sink,
        }
    }
}

impl Error<Infallible> {
    /// The same error, for a caller whose sink can fail.
    #[must_use]
    pub fn widen<E>(self) -> Error<E> {
        match self {
            Error::Stream { at, fault } => Error::Stream { at, fault },
            Error::Sink { error, .. } => match error {},
        }
    }
}

/// A fact about a stream that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Another kind of file.
    #[error("no migration stream: it begins with {found:02x?}, not with \"QEVM\"")]
    Magic {
        /// Its first four bytes.
        found: [u8; 4],
    },
    /// A version that no supported QEMU writes.
    #[error("version {found} of the stream; QEMU 8.2 and later write version 3")]
    Version {
        /// The version.
        found: u32,
    },
    /// It ends too early.
    #[error(
        "the stream ends within {within}: QEMU ended, gave up (`query-migrate` says why), or the \
         copy is not whole; take another one"
    )]
    Cut {
        /// What is not there to its end.
        within: &'static str,
    },
    /// The device state does not end as it should.
    #[error(
        "the device state has no end: the stream was cut short; or the machine has \
         suppress-vmdesc=on, which is not supported, for then nobody can tell: leave it off"
    )]
    NoEnd,
    /// Memory is not there in whole.
    #[error(
        "{sent} pages were sent of a memory of {pages}: turn off what leaves pages out (capability \
         multifd or x-ignore-shared, free-page-hint of virtio-balloon, virtio-mem)"
    )]
    PagesMissing {
        /// Pages that were sent, each time that one was.
        sent: u64,
        /// Pages of all blocks.
        pages: u64,
    },
    /// The configuration names a capability.
    #[error("capability {name} is on and not supported: turn it off by migrate-set-capabilities")]
    Capability {
        /// QEMU's name of it.
        name: String,
    },
    /// A part of the configuration whose length is not known.
    #[error("{name:?} in the configuration is not known, nor where it ends: report QEMU's version")]
    Configuration {
        /// QEMU's name of it.
        name: String,
    },
    /// Other pages than those of x86.
    #[error("pages of 2^{bits} bytes: only guests with pages of 4096 bytes are supported")]
    PageBits {
        /// Their size, as a power of two.
        bits: u32,
    },
    /// A way of sending memory that is not supported.
    #[error("memory is sent by {name} (flag {flag:#x}), which is not supported: {remedy}")]
    Sending {
        /// The way.
        name: &'static str,
        /// QEMU's flag for it.
        flag: u64,
        /// What to turn off.
        remedy: &'static str,
    },
    /// Flags that make no sense.
    #[error("word {word:#x} in the section of memory: its flags mean nothing here")]
    Word {
        /// The word.
        word: u64,
    },
    /// A command to the destination.
    #[error("command {name} ({number}) is not supported: {remedy}")]
    Command {
        /// QEMU's number of it.
        number: u16,
        /// QEMU's name of it.
        name: &'static str,
        /// What to turn off.
        remedy: &'static str,
    },
    /// A live section of something else than memory.
    #[error("{name:?} sends a live section of its own, which is not supported: {remedy}")]
    Live {
        /// QEMU's name of it.
        name: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A device section before memory.
    #[error(
        "device {name:?} sends its state before memory, which is not supported: remove the device \
         (virtio-mem does so)"
    )]
    Early {
        /// QEMU's name of it.
        name: String,
    },
    /// A type of section where it can't be.
    #[error("a section of type {found:#04x} {place}")]
    Section {
        /// The type.
        found: u8,
        /// Where.
        place: &'static str,
    },
    /// A part of another section than memory's.
    #[error("section {found} goes on, memory is section {ram}")]
    SectionId {
        /// The section's number.
        found: u32,
        /// That of memory.
        ram: u32,
    },
    /// Another version of memory's section.
    #[error("section ram has version {version}, instance {instance}; supported is version 4, 0")]
    Ram {
        /// Its version.
        version: u32,
        /// Its instance.
        instance: u32,
    },
    /// A footer that doesn't close its section, or none where there should be one.
    #[error("the section of memory ends with {found:02x?}, not with the footer of section {ram}")]
    Footer {
        /// What is there.
        found: Vec<u8>,
        /// The section of memory.
        ram: u32,
    },
    /// A name that is no text.
    #[error("a name that is no text: {found:02x?}")]
    Name {
        /// Its bytes.
        found: Vec<u8>,
    },
    /// The list of blocks makes no sense.
    #[error("RAM block {id:?} of {bytes} bytes: {why}")]
    Block {
        /// Its id.
        id: String,
        /// Its length in bytes.
        bytes: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The list of blocks came again.
    #[error("the list of RAM blocks changed while memory was sent: take another stream")]
    ListAgain,
    /// A page of a block that isn't in the list.
    #[error("a page of RAM block {id:?}, which is not in the list")]
    UnknownBlock {
        /// Its id.
        id: String,
    },
    /// The first page has no block.
    #[error("a page of the same block as the one before it, but there is none")]
    NoBlock,
    /// A page behind a block's end.
    #[error("a page at {offset:#x} of RAM block {id:?}, which has {bytes:#x} bytes")]
    Outside {
        /// The block's id.
        id: String,
        /// Where the page lies in it, in bytes.
        offset: u64,
        /// The block's length in bytes.
        bytes: u64,
    },
    /// A "page of zeroes" that is not.
    #[error("a page of equal bytes {fill:#04x}: only zeroes are sent so")]
    Fill {
        /// The byte.
        fill: u8,
    },
    /// Larger than allowed.
    #[error("{what}: more than the limit of {max}; raise it if this is right")]
    Limit {
        /// What is too large, with its unit.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// Something came behind an error.
    #[error("this reader has failed before: begin anew with a new reader")]
    Failed,
}

impl Fault {
    /// What a caller can do.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Fault::Cut { .. } | Fault::NoEnd => Kind::Cut,
            Fault::PagesMissing { .. }
            | Fault::Version { .. }
            | Fault::Capability { .. }
            | Fault::Configuration { .. }
            | Fault::PageBits { .. }
            | Fault::Sending { .. }
            | Fault::Command { .. }
            | Fault::Live { .. }
            | Fault::Early { .. }
            | Fault::Ram { .. } => Kind::Unsupported,
            Fault::Limit { .. } => Kind::TooLarge,
            _ => Kind::Damaged,
        }
    }

    /// The fault of a command of the stream: `migration/savevm.c`.
    pub(crate) fn command(number: u16) -> Fault {
        let postcopy = "turn off the capabilities return-path, postcopy-ram and dirty-bitmaps";
        let (name, remedy) = match number {
            1 => ("OPEN_RETURN_PATH", postcopy),
            2 => ("PING", postcopy),
            3 => ("POSTCOPY_ADVISE", postcopy),
            4 => ("POSTCOPY_LISTEN", postcopy),
            5 => ("POSTCOPY_RUN", postcopy),
            6 => ("POSTCOPY_RAM_DISCARD", postcopy),
            7 => ("PACKAGED", postcopy),
            8 => ("ENABLE_COLO", "turn off the capability x-colo"),
            9 => ("POSTCOPY_RESUME", postcopy),
            10 => ("RECV_BITMAP", postcopy),
            _ => ("unknown", "report QEMU's version"),
        };
        Fault::Command { number, name, remedy }
    }

    /// The fault of a live section that is not memory's.
    pub(crate) fn live(name: &str) -> Fault {
        let remedy = match name {
            "block" => "turn off the capability block",
            "dirty-bitmap" => "turn off the capability dirty-bitmaps",
            _ if name.contains("vfio") => {
                "remove the device: passed-through devices can't be saved"
            }
            _ => "remove what sends it",
        };
        Fault::Live { name: name.into(), remedy }
    }

    /// The fault of a word of the section `ram` that is neither page nor end.
    #[cold]
    pub(crate) fn word(word: u64) -> Fault {
        use crate::wire::{COMPRESSED, FLAGS_MASK, HOOK, MULTIFD_FLUSH, SIZES, XBZRLE};
        let flags = word & FLAGS_MASK;
        let ways = [
            (XBZRLE, "XBZRLE", "turn off the capability xbzrle"),
            (HOOK, "RDMA", "migrate to a unix socket, not by rdma"),
            (COMPRESSED, "compression", "turn off the capability compress"),
            (MULTIFD_FLUSH, "multifd", "turn off the capability multifd"),
        ];
        for (flag, name, remedy) in ways {
            if flags & flag != 0 {
                return Fault::Sending { name, flag, remedy };
            }
        }
        if flags & SIZES != 0 { Fault::ListAgain } else { Fault::Word { word } }
    }
}
