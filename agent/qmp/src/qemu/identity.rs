//! Which VM a QEMU runs.
//!
//! A socket's path says nothing of it: another QEMU may listen there. A UUID tells VMs apart; where QEMU
//! was given none, its name is all there is.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Qemu;
use crate::Result;

/// Longest part of a VM's name that is kept, in characters.
const NAME_CHARS_MAX: usize = 128;

/// What stays of a VM when its QEMU is started again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmIdentity {
    /// Its UUID (`-uuid`); `None`: QEMU was given none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Its name (`-name`), where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl VmIdentity {
    /// What QEMU's answers mean: a UUID of zeros is none.
    pub fn new(uuid: &str, name: Option<&str>) -> VmIdentity {
        let uuid = uuid.trim().to_ascii_lowercase();
        let is_given = uuid.bytes().any(|b| b != b'0' && b != b'-');
        let name = name.filter(|name| !name.is_empty());
        VmIdentity {
            uuid: is_given.then_some(uuid),
            name: name.map(|name| name.chars().take(NAME_CHARS_MAX).collect()),
        }
    }

    /// True if both may be the same VM. UUIDs decide, and a VM that has one is none that has not;
    /// without UUIDs the names have to be equal.
    pub fn is_same(&self, other: &VmIdentity) -> bool {
        match (&self.uuid, &other.uuid) {
            (Some(one), Some(other)) => one == other,
            (None, None) => self.name == other.name,
            _ => false,
        }
    }
}

impl fmt::Display for VmIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.uuid, &self.name) {
            (Some(uuid), Some(name)) => write!(f, "UUID {uuid}, name {name:?}"),
            (Some(uuid), None) => write!(f, "UUID {uuid}, no name"),
            (None, Some(name)) => write!(f, "no UUID, name {name:?}"),
            (None, None) => f.write_str("no UUID, no name"),
        }
    }
}

impl Qemu {
    /// The VM that runs here.
    pub async fn identity(&self) -> Result<VmIdentity> {
        Ok(VmIdentity::new(&self.uuid().await?, self.name().await?.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &str = "00000000-0000-0000-0000-000000000000";
    const ONE: &str = "6F1A0E2C-0000-0000-0000-000000000001";
    const TWO: &str = "6f1a0e2c-0000-0000-0000-000000000002";

    #[test]
    fn uuid_decides_and_the_name_only_without_one() {
        let vm = VmIdentity::new;
        let same = [
            (vm(ONE, Some("web")), vm(&ONE.to_lowercase(), Some("renamed"))),
            (vm(ONE, None), vm(ONE, Some("web"))),
            (vm(NONE, Some("web")), vm(NONE, Some("web"))),
            (vm(NONE, None), vm(NONE, Some(""))),
        ];
        for (one, other) in same {
            assert!(one.is_same(&other) && other.is_same(&one), "{one} and {other}");
        }
        let differ = [
            (vm(ONE, Some("web")), vm(TWO, Some("web"))),
            (vm(ONE, Some("web")), vm(NONE, Some("web"))),
            (vm(NONE, Some("web")), vm(NONE, Some("db"))),
            (vm(NONE, Some("web")), vm(NONE, None)),
            (vm(NONE, None), vm(ONE, None)),
        ];
        for (one, other) in differ {
            assert!(!one.is_same(&other) && !other.is_same(&one), "{one} and {other}");
        }
    }

    #[test]
    fn identity_of_an_older_state_is_read() {
        let read: VmIdentity = serde_json::from_str("{}").unwrap();
        assert_eq!(read, VmIdentity::default());
        let vm = VmIdentity::new(ONE, Some("web"));
        let json = serde_json::to_string(&vm).unwrap();
        assert_eq!(serde_json::from_str::<VmIdentity>(&json).unwrap(), vm);
    }
}
