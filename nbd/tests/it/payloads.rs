//! Payloads on their way: bounded waits for them.

use crate::fixture::Fixture;
use afterimage_nbd::Errno;
use afterimage_nbd::export::{Export, Payload, WriteFlags, ZeroFlags};
use afterimage_nbd::proto::Mode;
use afterimage_nbd::proto::flags::CMD_WRITE;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Says how much of a payload arrived in time, then waits for the rest, and says what it was.
struct Patient {
    arrived: Sender<usize>,
    whole: Mutex<Sender<Vec<u8>>>,
}

impl Patient {
    fn new() -> (Self, Receiver<usize>, Receiver<Vec<u8>>) {
        let ((arrived, heard), (whole, wholes)) = (channel(), channel());
        (Self { arrived, whole: Mutex::new(whole) }, heard, wholes)
    }
}

impl Export for Patient {
    fn bytes(&self) -> u64 {
        1 << 20
    }

    fn read(&self, _at: u64, buf: &mut [u8]) -> Result<(), Errno> {
        buf.fill(0);
        Ok(())
    }

    fn write(&self, _at: u64, payload: &mut Payload<'_>, _: WriteFlags) -> Result<(), Errno> {
        let mut data = vec![0; payload.len()];
        let got = payload.read_within(&mut data, Duration::from_millis(20))?;
        self.arrived.send(got).unwrap();
        payload.read_into(&mut data[got..])?;
        self.whole.lock().unwrap().send(data).unwrap();
        Ok(())
    }

    fn write_zeroes(&self, _at: u64, _len: u64, _: ZeroFlags) -> Result<(), Errno> {
        Ok(())
    }

    fn trim(&self, _at: u64, _len: u64, _: WriteFlags) -> Result<(), Errno> {
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
}

#[test]
fn an_export_can_give_up_waiting_and_still_gets_every_byte_in_order() {
    let (export, arrived, whole) = Patient::new();
    let fixture = Fixture::new(export);
    let mut raw = fixture.raw().greet().go(Mode::Structured);
    let data = crate::fixture::pattern(7, 300_000);
    let limit = Duration::from_secs(60);
    raw.request(CMD_WRITE, 0, 0, data.len() as u64);
    raw.send(&data[..100_001]);
    let got = arrived.recv_timeout(limit).unwrap();
    assert!(got <= 100_001, "{got}");
    raw.send(&data[100_001..]);
    assert_eq!(raw.error(), 0);
    assert!(whole.recv_timeout(limit).unwrap() == data);
    // One that is here at once is not waited for.
    raw.request(CMD_WRITE, 0, 0, 512);
    raw.send(&data[..512]);
    assert_eq!(raw.error(), 0);
    assert!(whole.recv_timeout(limit).unwrap() == data[..512]);
}
