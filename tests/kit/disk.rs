//! The disks of a guest: image, format, and the ways in which QEMU can be given them.

use std::path::PathBuf;

/// The format of a disk's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The guest's bytes and nothing else.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl Format {
    /// As QEMU names it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// How a disk is given to QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `-drive if=none`: its node's name is made up by QEMU at each boot.
    Drive,
    /// `-blockdev`, protocol and format as nodes with names, as libvirt does it.
    Blockdev,
}

/// QEMU's cache mode of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// O_DIRECT on the host.
    None,
    /// Through the host's page cache.
    Writeback,
}

/// One disk of a guest: raw, `-drive`, `cache=none`, no I/O thread unless told otherwise.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The image.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// How QEMU gets it.
    pub style: Style,
    /// Its cache mode.
    pub cache: Cache,
    /// Whether it has an I/O thread of its own.
    pub iothread: bool,
}

impl Disk {
    /// A raw image.
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: Format::Raw,
            style: Style::Drive,
            cache: Cache::None,
            iothread: false,
        }
    }

    /// A qcow2 image.
    pub fn qcow2(path: impl Into<PathBuf>) -> Self {
        Self { format: Format::Qcow2, ..Self::raw(path) }
    }

    /// Given to QEMU by `-blockdev`.
    pub fn blockdev(self) -> Self {
        Self { style: Style::Blockdev, ..self }
    }

    /// With an I/O thread.
    pub fn iothread(self) -> Self {
        Self { iothread: true, ..self }
    }

    /// With the host's page cache.
    pub fn writeback(self) -> Self {
        Self { cache: Cache::Writeback, ..self }
    }

    /// The arguments for disk number `index`: drive id or node `disk0`.., device id `virtio0`..
    pub(super) fn arguments(&self, index: usize) -> Vec<String> {
        let path = self.path.to_str().expect("the image's path is UTF-8").replace(',', ",,");
        let format = self.format.name();
        let direct = if self.cache == Cache::None { "on" } else { "off" };
        let options = format!("cache.direct={direct},discard=unmap");
        let mut arguments = match self.style {
            Style::Drive => vec![
                "-drive".into(),
                format!("if=none,id=disk{index},file={path},format={format},{options}"),
            ],
            Style::Blockdev => vec![
                "-blockdev".into(),
                format!("driver=file,node-name=file{index},filename={path},{options}"),
                "-blockdev".into(),
                format!("driver={format},node-name=disk{index},file=file{index},{options}"),
            ],
        };
        let mut device = format!("virtio-blk-pci,id=virtio{index},drive=disk{index}");
        if self.iothread {
            arguments.extend(["-object".into(), format!("iothread,id=io{index}")]);
            device.push_str(&format!(",iothread=io{index}"));
        }
        arguments.extend(["-device".into(), device]);
        arguments
    }
}
