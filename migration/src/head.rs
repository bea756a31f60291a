//! The head: what comes before the list of RAM blocks, and the footer behind it.
//!
//! It is kept as the bytes that QEMU sent. What always holds: a head that [`Head::parse`] takes
//! ends with the START of `ram`, and with its footer where there is one.

use crate::wire::{self, Scan, Stop};
use crate::{Error, Fault, Limits};

/// What a head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The machine type with its version, like `pc-q35-10.0`; none where QEMU was told to send no
    /// configuration. `-incoming` wants the same one.
    pub machine: Option<String>,
    /// The number of the section `ram`.
    pub section: u32,
    /// Whether each section ends with a footer.
    pub has_footers: bool,
    /// Bytes of the START of `ram`, the last item before the list of blocks.
    pub(crate) start_bytes: usize,
}

impl Head {
    /// Reads a head as [`crate::Parts::head`] holds it.
    ///
    /// # Errors
    /// It is no head, or not all of one.
    pub fn parse(head: &[u8]) -> Result<Head, Error> {
        Self::split(head).map(|(head, _)| head)
    }

    /// The head, and how many of its bytes come before the list of blocks.
    pub(crate) fn split(head: &[u8]) -> Result<(Head, usize), Error> {
        // All of it is in memory already.
        let limits = Limits { name_bytes_max: usize::MAX, ..Limits::default() };
        let (mut opening, mut at, mut start_bytes) = (Opening::default(), 0, 0);
        while opening.section.is_none() {
            start_bytes = opening.item::<()>(&head[at..], &limits).map_err(|stop| {
                let within = "the head";
                let fault = match stop {
                    Stop::Fault(fault) => fault,
                    Stop::Needs(_) | Stop::Sink(()) => Fault::Cut { within },
                };
                Error::Stream { at: at as u64, fault }
            })?;
            at += start_bytes;
        }
        let (section, rest) = (opening.section.unwrap_or_default(), &head[at..]);
        let has_footers = !rest.is_empty();
        if has_footers && rest != footer(section) {
            let fault = Fault::Footer { found: rest[..rest.len().min(5)].into(), ram: section };
            return Err(Error::Stream { at: at as u64, fault });
        }
        Ok((Head { machine: opening.machine, section, has_footers, start_bytes }, at))
    }
}

/// The footer of a section.
pub(crate) fn footer(section: u32) -> [u8; 5] {
    let [a, b, c, d] = section.to_be_bytes();
    [wire::FOOTER, a, b, c, d]
}

/// Reads a stream from its first byte to the START of `ram`, an item at a time.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    is_begun: bool,
    is_configured: bool,
    machine: Option<String>,
    /// The section `ram`, once it has started.
    pub section: Option<u32>,
}

impl Opening {
    /// What is being read, for errors.
    pub fn place(&self) -> &'static str {
        if self.is_begun { "its head, before the list of RAM blocks" } else { "its first 8 bytes" }
    }

    /// Takes one item and returns its length in bytes.
    pub fn item<E>(&mut self, bytes: &[u8], limits: &Limits) -> Result<usize, Stop<E>> {
        let mut scan = Scan::new(bytes);
        if !self.is_begun {
            magic(&mut scan)?;
            self.is_begun = true;
            return Ok(scan.used());
        }
        match scan.byte()? {
            wire::CONFIGURATION if !self.is_configured => {
                self.machine = Some(machine(&mut scan, limits)?);
                self.is_configured = true;
            }
            wire::SUBSECTION if self.is_configured => subsection(&mut scan)?,
            wire::START => self.section = Some(start(&mut scan)?),
            wire::FULL => {
                let _section = scan.be32()?;
                return Err(Fault::Early { name: scan.name()?.into() }.into());
            }
            wire::COMMAND => return Err(Fault::command(scan.be16()?).into()),
            found => return Err(Fault::Section { found, place: "before memory" }.into()),
        }
        Ok(scan.used())
    }
}

fn magic<E>(scan: &mut Scan<'_>) -> Result<(), Stop<E>> {
    let found = scan.array()?;
    if found != wire::MAGIC {
        return Err(Fault::Magic { found }.into());
    }
    match scan.be32()? {
        wire::VERSION => Ok(()),
        found => Err(Fault::Version { found }.into()),
    }
}

/// The configuration's fields: the name of the machine type.
fn machine<E>(scan: &mut Scan<'_>, limits: &Limits) -> Result<String, Stop<E>> {
    let bytes = scan.be32()? as usize;
    if bytes > limits.name_bytes_max {
        let (what, max) = ("bytes of the name of the machine type", limits.name_bytes_max as u64);
        return Err(Fault::Limit { what, max }.into());
    }
    Ok(scan.text(bytes)?.into())
}

/// A subsection of the configuration. Only those whose length is known can be passed over.
fn subsection<E>(scan: &mut Scan<'_>) -> Result<(), Stop<E>> {
    let name = scan.name()?;
    let version = scan.be32()?;
    match (name, version) {
        ("configuration/target-page-bits", 1) => match scan.be32()? {
            12 => Ok(()),
            bits => Err(Fault::PageBits { bits }.into()),
        },
        // Which ones are listed: those that change the stream and that QEMU checks on both sides
        // (x-ignore-shared, mapped-ram). The list is sent only when one of them is on.
        ("configuration/capabilities", 1) => match scan.be32()? {
            0 => Ok(()),
            _ => Err(Fault::Capability { name: scan.name()?.into() }.into()),
        },
        ("configuration/uuid", 1) => scan.take(16).map(drop),
        _ => Err(Fault::Configuration { name: name.into() }.into()),
    }
}

/// The START of a section, behind its type.
pub(crate) fn start<E>(scan: &mut Scan<'_>) -> Result<u32, Stop<E>> {
    let section = scan.be32()?;
    let name = scan.name()?;
    if name != wire::RAM {
        return Err(Fault::live(name).into());
    }
    match (scan.be32()?, scan.be32()?) {
        (0, wire::RAM_VERSION) => Ok(section),
        (instance, version) => Err(Fault::Ram { version, instance }.into()),
    }
}
