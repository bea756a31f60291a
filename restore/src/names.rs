//! Names of restored images: `GUEST-DISK.raw`, made of the node's name, or of the disk's identity
//! where QEMU made up the node's. Names from a guest's configuration never leave the directory.

use crate::plan::Format;
use afterimage_journal::meta::Volume;

/// Longest part of a file name that comes from one name, in bytes.
const PART_BYTES_MAX: usize = 80;

/// A name with what may not be in a file name replaced.
pub(crate) fn sanitised(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        let fits = c.is_ascii_alphanumeric() || "._-".contains(c);
        if fits {
            out.push(c);
        } else if !out.ends_with('-') {
            out.push('-');
        }
    }
    out.truncate(PART_BYTES_MAX);
    let out = out.trim_matches(['-', '.']).to_owned();
    if out.is_empty() { "disk".into() } else { out }
}

/// The image names of volumes, all different.
pub(crate) fn image_names(volumes: &[&Volume], format: Format) -> Vec<String> {
    let stem = |v: &Volume| {
        // QEMU names nodes that nobody named "#block123": another number at each start.
        let made_up = v.node.is_empty() || v.node.starts_with('#');
        let disk = if made_up { &v.disk } else { &v.node };
        format!("{}-{}", sanitised(&v.guest), sanitised(disk))
    };
    let stems: Vec<String> = volumes.iter().map(|v| stem(v)).collect();
    let name = |(i, stem): (usize, &String)| {
        // File systems that ignore case exist.
        let taken = |other: &String| other.eq_ignore_ascii_case(stem);
        let clash = stems.iter().filter(|s| taken(s)).count() > 1;
        let id = if clash { format!("-volume{}", volumes[i].id) } else { String::new() };
        format!("{stem}{id}.{}", format.as_str())
    };
    stems.iter().enumerate().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn volume(id: u16, node: &str, disk: &str) -> Volume {
        Volume {
            id,
            kind: afterimage_journal::meta::VolumeKind::Disk,
            uuid: Uuid::nil(),
            guest: "vm".into(),
            disk: disk.into(),
            node: node.into(),
            bytes: 512,
            format: "raw".into(),
            source: String::new(),
            active: true,
        }
    }

    #[test]
    fn names_stay_in_the_directory_and_differ() {
        let volumes = [
            volume(1, "../../etc/passwd", "a"),
            volume(2, "#block123", "/machine/peripheral/disk0/virtio-backend"),
            volume(3, "d0", "x"),
            volume(4, "D0", "y"),
            volume(5, "", "..."),
        ];
        let names = image_names(&volumes.iter().collect::<Vec<_>>(), Format::Raw);
        assert_eq!(
            names,
            [
                "vm-etc-passwd.raw",
                "vm-machine-peripheral-disk0-virtio-backend.raw",
                "vm-d0-volume3.raw",
                "vm-D0-volume4.raw",
                "vm-disk.raw"
            ]
        );
    }
}
