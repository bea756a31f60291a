//! A guest without an operating system: a boot sector that writes for ever.
//!
//! Each round it puts a counter into the first four bytes of a 4 KiB block and writes that block
//! to every disk in turn, at one of 256 places from 1 MiB on. The BIOS drives the disks through
//! virtio, so the requests take the way that a real guest's take, iothreads included.
//!
//! ```text
//! 7c00  the code below          8000  counter of the round under way
//! 7e00  rounds acknowledged by all disks, or ffffffff after an I/O error
//! ```

/// Where the first block lies on each disk.
pub const FIRST_BYTE: u64 = 1 << 20;
/// Blocks that are written over and over.
pub const BLOCKS: u64 = 256;
/// Bytes of a block.
pub const BLOCK_BYTES: u64 = 4096;
/// Where the guest counts what was acknowledged.
pub const ACKNOWLEDGED_ADDRESS: u32 = 0x7e00;
/// Where the round under way stands, which is also what its block begins with.
pub const ROUND_ADDRESS: u32 = 0x8000;
/// What the count says once a disk failed.
pub const FAILED: u32 = u32::MAX;

/// A boot sector that writes to the first `disks` disks.
pub fn boot_sector(disks: u8) -> [u8; 512] {
    let last = 0x80 + disks;
    #[rustfmt::skip]
    let code = [
        0x31, 0xc0,                                     // xor ax, ax
        0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0,             // ds = es = ss = 0
        0xbc, 0x00, 0x7c,                               // mov sp, 7c00
        0x66, 0xc7, 0x06, 0x00, 0x80, 0, 0, 0, 0,       // counter = 0
        0x66, 0xc7, 0x06, 0x00, 0x7e, 0, 0, 0, 0,       // acknowledged = 0
        // round:
        0x66, 0xff, 0x06, 0x00, 0x80,                   // inc counter
        0x66, 0xa1, 0x00, 0x80,                         // mov eax, counter
        0x66, 0x25, 0xff, 0x00, 0x00, 0x00,             // and eax, 255
        0x66, 0xc1, 0xe0, 0x03,                         // shl eax, 3
        0x66, 0x05, 0x00, 0x08, 0x00, 0x00,             // add eax, 2048
        0x66, 0xa3, 0x72, 0x7c,                         // packet.lba = eax
        0xb2, 0x80,                                     // mov dl, 80 (the first disk)
        // disk:
        0x52,                                           // push dx
        0xbe, 0x6a, 0x7c,                               // mov si, packet
        0xb8, 0x00, 0x43,                               // mov ax, 4300 (extended write)
        0xcd, 0x13,                                     // int 13
        0x5a,                                           // pop dx
        0x72, 0x17,                                     // jc failed
        0xfe, 0xc2,                                     // inc dl
        0x80, 0xfa, last,                               // cmp dl, last
        0x72, 0xed,                                     // jb disk
        0x66, 0xff, 0x06, 0x00, 0x7e,                   // inc acknowledged
        0x31, 0xc9, 0xba, 0xe8, 0x03,                   // cx:dx = 1000
        0xb4, 0x86, 0xcd, 0x15,                         // int 15, ah 86: wait 1000 us
        0xeb, 0xbe,                                     // jmp round
        // failed:
        0x66, 0xc7, 0x06, 0x00, 0x7e, 0xff, 0xff, 0xff, 0xff,
        0xfa, 0xf4,                                     // cli, hlt
        // packet: 16 bytes, 8 sectors, buffer 0:8000, LBA
        0x10, 0x00, 0x08, 0x00, 0x00, 0x80, 0x00, 0x00,
        0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    sector[510] = 0x55;
    sector[511] = 0xaa;
    sector
}
