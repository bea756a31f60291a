//! Names of exports: the node's, GUEST/NODE, the disk's where QEMU made up the node's, and "" for
//! a single disk. A name that would be two disks' is nobody's.

use crate::names::sanitised;
use crate::plan::shown;
use afterimage_journal::meta::Volume;

/// The names of a disk, the one that it is shown by first.
fn wanted(volume: &Volume) -> Vec<String> {
    let mut names = Vec::new();
    // QEMU names nodes that nobody named "#block123": another number at each start.
    if volume.node.is_empty() || volume.node.starts_with('#') {
        names.push(sanitised(&volume.disk));
        names.push(format!("{}/{}", volume.guest, sanitised(&volume.disk)));
    }
    if !volume.node.is_empty() {
        names.push(volume.node.clone());
        names.push(shown(volume));
    }
    names.push(volume.uuid.to_string());
    names
}

fn is_unique(all: &[Vec<String>], name: &str) -> bool {
    !name.is_empty() && all.iter().filter(|names| names.iter().any(|n| n == name)).count() == 1
}

/// The name that each disk is shown by.
pub(super) fn primary(volumes: &[&Volume]) -> Vec<String> {
    let all: Vec<_> = volumes.iter().map(|v| wanted(v)).collect();
    // Its UUID is nobody else's, so there is always one.
    let first = |names: &Vec<String>| names.iter().find(|n| is_unique(&all, n)).cloned();
    all.iter().map(|names| first(names).unwrap_or_default()).collect()
}

/// Every name, and the index of the disk that it means. UUIDs name those disks only that have no
/// other name.
pub(super) fn all(volumes: &[&Volume]) -> Vec<(String, usize)> {
    let all: Vec<_> = volumes.iter().map(|v| wanted(v)).collect();
    let mut found = Vec::new();
    for (index, names) in all.iter().enumerate() {
        let mut unique: Vec<&String> = names.iter().filter(|n| is_unique(&all, n)).collect();
        if unique.len() > 1 {
            unique.pop();
        }
        found.extend(unique.into_iter().map(|name| (name.clone(), index)));
    }
    if volumes.len() == 1 {
        found.push((String::new(), 0));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn volume(id: u16, guest: &str, node: &str, disk: &str) -> Volume {
        Volume {
            id,
            kind: afterimage_journal::meta::VolumeKind::Disk,
            uuid: Uuid::from_u128(id.into()),
            guest: guest.into(),
            disk: disk.into(),
            node: node.into(),
            bytes: 512,
            format: "raw".into(),
            source: String::new(),
            active: true,
        }
    }

    fn names_of(volumes: &[Volume]) -> Vec<(String, usize)> {
        all(&volumes.iter().collect::<Vec<_>>())
    }

    #[test]
    fn a_single_disk_is_also_the_default() {
        let names = names_of(&[volume(1, "web", "system", "virtio0")]);
        let expected = ["system", "web/system", ""].map(|n| (n.to_owned(), 0));
        assert_eq!(names, expected);
    }

    #[test]
    fn the_same_node_in_two_guests_is_told_apart_by_the_guest() {
        let volumes = [volume(1, "web", "disk0", "virtio0"), volume(2, "db", "disk0", "virtio0")];
        assert_eq!(names_of(&volumes), [("web/disk0".to_owned(), 0), ("db/disk0".to_owned(), 1)]);
        assert_eq!(primary(&volumes.iter().collect::<Vec<_>>()), ["web/disk0", "db/disk0"]);
    }

    #[test]
    fn a_node_whose_name_qemu_made_up_is_shown_by_its_disk() {
        let volumes = [
            volume(1, "web", "#block101", "/machine/peripheral/virtio0/virtio-backend"),
            volume(2, "web", "", ""),
            volume(3, "web", "", ""),
        ];
        let refs: Vec<_> = volumes.iter().collect();
        let expected = ["machine-peripheral-virtio0-virtio-backend".to_owned()];
        assert_eq!(primary(&refs)[..1], expected);
        // Nothing but their UUIDs tells the others apart.
        assert_eq!(primary(&refs)[1], volumes[1].uuid.to_string());
        assert!(all(&refs).contains(&("#block101".to_owned(), 0)));
    }
}
