//! The guest agent of a copy that wakes up with its file systems frozen: how it is thawed as part of its
//! start. Pure.
//!
//! What always holds: a copy of a checkpoint that was made with frozen file systems is not resumed by a
//! script unless there is somebody to thaw it.

use super::option::{field, fields, name};
use std::path::PathBuf;

/// The port by which QEMU and libvirt have a guest agent listen.
const PORT: &str = "org.qemu.guest_agent.0";

/// What thaws a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Thaw {
    /// This program.
    pub program: PathBuf,
    /// The socket of the copy's guest agent; `None`: it has none.
    pub socket: Option<String>,
}

/// The socket behind the guest agent's port of a copy, if it has one.
pub(crate) fn socket(options: &[Vec<String>]) -> Option<String> {
    let values = |flag: &'static str| {
        let of = options.iter().filter(move |o| o.first().and_then(|n| name(n)) == Some(flag));
        of.filter_map(|o| o.get(1)).map(|value| fields(value))
    };
    let port = values("device").find(|d| field(d, "name").as_deref() == Some(PORT))?;
    let chardev = field(&port, "chardev")?;
    let behind = values("chardev").find(|c| field(c, "id").as_deref() == Some(&chardev))?;
    field(&behind, "path")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(all: &[&str]) -> Vec<Vec<String>> {
        all.chunks(2).map(|o| o.iter().map(|w| (*w).to_owned()).collect()).collect()
    }

    #[test]
    fn socket_of_the_guest_agents_port_is_found_and_no_other() {
        let other = ["-chardev", "socket,id=c0,path=/c/other.sock,server=on"];
        let chardev = ["-chardev", "socket,id=c1,path=/c/qga.sock,server=on,wait=off"];
        let port = ["-device", "virtserialport,bus=vs0.0,chardev=c1,name=org.qemu.guest_agent.0"];
        let json = [
            "-device",
            r#"{"driver":"virtserialport","chardev":"c1","name":"org.qemu.guest_agent.0"}"#,
        ];
        for device in [port, json] {
            let all = [other, chardev, device].concat();
            assert_eq!(socket(&options(&all)).as_deref(), Some("/c/qga.sock"));
        }
        assert_eq!(socket(&options(&[other, chardev].concat())), None);
        assert_eq!(socket(&options(&[other, port].concat())), None);
        let null = ["-chardev", "null,id=c1"];
        assert_eq!(socket(&options(&[null, port].concat())), None);
    }
}
