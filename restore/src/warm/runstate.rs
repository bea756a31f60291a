//! The run state in a guest's device state, and how a copy goes on.
//!
//! QEMU stores in its section `globalstate` whether the guest ran. A background snapshot stores
//! what it was before QEMU stopped it (`running`); a migration of a guest that was stopped first
//! stores `paused`, and QEMU leaves a copy of that stopped. So that every copy runs on, and stops
//! where it is started with `-S`, `paused` is made `running`; a state that is neither stays.
//!
//! ```text
//! 04 be32 section, 0b "globalstate", be32 instance 0, be32 version 1
//!    be32 bytes of the name and its zero, name (the first 32 of 100 bytes, zeroes behind it)
//! ```

/// What the section begins with, behind its number.
const SECTION: &[u8] = b"\x0bglobalstate\0\0\0\0\0\0\0\x01";
/// Bytes of the length before the name.
const LENGTH_BYTES: usize = 4;
/// Bytes in which the name lies.
const NAME_BYTES: usize = 32;
const RUNNING: &str = "running";
const PAUSED: &str = "paused";

/// Makes a copy of a guest that was stopped for the checkpoint run on.
///
/// Returns the state in which the copy will be when that isn't `running`; `None`: it runs.
pub(super) fn let_run(tail: &mut [u8]) -> Option<String> {
    let field = find(tail)?;
    let state = name(&tail[field.clone()])?;
    if state == RUNNING {
        return None;
    }
    if state != PAUSED {
        return Some(state);
    }
    let bytes = &mut tail[field];
    let (length, name) = bytes.split_at_mut(LENGTH_BYTES);
    length.copy_from_slice(&(RUNNING.len() as u32 + 1).to_be_bytes());
    name.fill(0);
    name[..RUNNING.len()].copy_from_slice(RUNNING.as_bytes());
    None
}

/// Where length and name lie; `None`: not there, or more than once, so that it can't be told. QEMU
/// then lets the copy run.
fn find(tail: &[u8]) -> Option<std::ops::Range<usize>> {
    let mut found = tail.windows(SECTION.len()).enumerate().filter(|(_, w)| *w == SECTION);
    let from = found.next()?.0 + SECTION.len();
    let to = from + LENGTH_BYTES + NAME_BYTES;
    (found.next().is_none() && to <= tail.len()).then_some(from..to)
}

fn name(field: &[u8]) -> Option<String> {
    let end = field[LENGTH_BYTES..].iter().position(|b| *b == 0)?;
    let name = &field[LENGTH_BYTES..LENGTH_BYTES + end];
    std::str::from_utf8(name).ok().filter(|n| !n.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(state: &str) -> Vec<u8> {
        let mut tail = b"\x04\0\0\0\x09".to_vec();
        tail.extend(SECTION);
        tail.extend((state.len() as u32 + 1).to_be_bytes());
        let mut field = [0; 100];
        field[..state.len()].copy_from_slice(state.as_bytes());
        tail.extend(field);
        tail.extend(b"\x7e\0\0\0\x09\0");
        tail
    }

    #[test]
    fn a_paused_guest_runs_and_nothing_else_changes() {
        let mut paused = tail("paused");
        assert_eq!(let_run(&mut paused), None);
        assert_eq!(paused, tail("running"));
        assert_eq!(let_run(&mut paused), None);
        assert_eq!(paused, tail("running"));
        let mut shut = tail("io-error");
        assert_eq!(let_run(&mut shut), Some("io-error".into()));
        assert_eq!(shut, tail("io-error"));
    }

    #[test]
    fn what_is_no_state_is_left_as_it_is() {
        let twice = [tail("paused"), tail("paused")].concat();
        let cut = tail("paused")[..40].to_vec();
        for bytes in [twice, cut, vec![], b"no section".to_vec()] {
            let mut changed = bytes.clone();
            assert_eq!(let_run(&mut changed), None);
            assert_eq!(changed, bytes);
        }
    }
}
