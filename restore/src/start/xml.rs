//! A libvirt definition with the disks' images replaced.
//!
//! Works on the text, disk by disk, so that everything else stays as libvirt wrote it.

use super::{RestoredDisk, program};
use crate::plan::Format;
use afterimage_planted as planted;
use std::path::Path;

/// The definition for a copy.
pub(super) fn rewrite(
    xml: &str,
    disks: &[RestoredDisk<'_>],
    format: Format,
    memory: Option<&Path>,
) -> String {
    let mut out = String::new();
    let mut left = Vec::new();
    let mut rest = xml;
    let mut found = Vec::new();
    while let Some((before, disk, behind)) = next_disk(rest) {
        out += before;
        out += &rewrite_disk(disk, disks, format, &mut found);
        rest = behind;
    }
    out += rest;
    let taken_out = confine(&mut out);
    for disk in disks {
        if !found.contains(&disk.volume.id) {
            left.push(disk.volume.source.replace("--", "- -"));
        }
    }
    let mut remark = String::from(
        "<!-- A restored copy: same name, UUID and network addresses as the original. \
         Change them to run both. -->\n",
    );
    if let Some(memory) = memory {
        remark += &format!(
            "<!-- Starting this boots the copy. libvirt takes no stream of another's: what resumes \
             {} is the script beside it. -->\n",
            memory.display().to_string().replace("--", "- -")
        );
    }
    if !left.is_empty() {
        remark += &format!(
            "<!-- NOT replaced, still the original's images: {}. Do not start it like this. -->\n",
            left.join(", ")
        );
    }
    if !taken_out.is_empty() {
        remark += &format!(
            "<!-- Taken out, since a definition from elsewhere must not decide it: {}. -->\n",
            taken_out.join(", ")
        );
    }
    match out.find("?>") {
        // A comment may not stand before the XML declaration.
        Some(at) if out.trim_start().starts_with("<?xml") => {
            out.insert_str(at + 2, &format!("\n{remark}"));
            out
        }
        _ => remark + &out,
    }
}

/// Takes out what runs programs or lifts libvirt's confinement because the definition says so; says what.
fn confine(xml: &mut String) -> Vec<&'static str> {
    if planted::is("journal-decides-what-runs") {
        return Vec::new();
    }
    let mut taken_out = Vec::new();
    for name in
        ["qemu:commandline", "qemu:override", "script", "downscript", "seclabel", "emulator"]
    {
        let mut from = 0;
        while let Some((start, end)) = whole_element(&xml[from..], name) {
            let (start, end) = (from + start, from + end);
            if name == "emulator" && is_system_emulator(&xml[start..end]) {
                from = end;
                continue;
            }
            xml.replace_range(start..end, "");
            from = start;
            if !taken_out.contains(&name) {
                taken_out.push(name);
            }
        }
    }
    taken_out
}

/// Whether an element names a QEMU in one of the system's directories.
fn is_system_emulator(element: &str) -> bool {
    let text = element.split_once('>').and_then(|(_, rest)| rest.split_once('<')).map(|(t, _)| t);
    text.is_some_and(|text| program::in_script(text.trim()).is_ok_and(|runs| runs == text.trim()))
}

/// The first such element, with all that is in it.
fn whole_element(xml: &str, name: &str) -> Option<(usize, usize)> {
    let (start, end) = element(xml, name)?;
    if xml[start..end].ends_with("/>") {
        return Some((start, end));
    }
    let close = format!("</{name}>");
    // Cut off: nothing behind it can be told from what is in it.
    let end = xml[end..].find(&close).map_or(xml.len(), |at| end + at + close.len());
    Some((start, end))
}

/// What lies before the next `<disk>`, it, and what lies behind it.
fn next_disk(xml: &str) -> Option<(&str, &str, &str)> {
    let start = ["<disk ", "<disk>"].iter().filter_map(|t| xml.find(t)).min()?;
    let end = start + xml[start..].find("</disk>")? + "</disk>".len();
    Some((&xml[..start], &xml[start..end], &xml[end..]))
}

fn rewrite_disk(
    disk: &str,
    disks: &[RestoredDisk<'_>],
    format: Format,
    found: &mut Vec<u16>,
) -> String {
    let Some((from, to)) = element(disk, "source") else { return disk.to_owned() };
    let source = &disk[from..to];
    let named = ["file", "dev"].iter().find_map(|k| attribute(source, k));
    let Some(old) = named.map(|(a, b)| unescaped(&source[a..b])) else { return disk.to_owned() };
    let hit = disks.iter().find_map(|d| {
        let (path, new) = d.replacement()?;
        (path == old).then_some((d.volume.id, new))
    });
    let Some((id, new)) = hit else { return disk.to_owned() };
    found.push(id);
    // Whatever the source was (a device, with a backing chain below), the copy is a plain file.
    let mut out = disk.to_owned();
    let end = match source.ends_with("/>") {
        true => to,
        false => disk.find("</source>").map_or(to, |at| at + "</source>".len()),
    };
    out.replace_range(from..end, &format!("<source file='{}'/>", escaped(&new)));
    if let Some((from, to)) = element(&out, "backingStore") {
        let whole = match out[from..to].ends_with("/>") {
            true => to,
            // Chains nest: the last end tag is the outermost's.
            false => out.rfind("</backingStore>").map_or(to, |at| at + "</backingStore>".len()),
        };
        out.replace_range(from..whole, "");
    }
    set_attribute(&mut out, "driver", "type", format.as_str());
    set_attribute(&mut out, "disk", "type", "file");
    out
}

/// The start tag of the first such element.
fn element(xml: &str, name: &str) -> Option<(usize, usize)> {
    let mut from = 0;
    loop {
        let open = format!("<{name}");
        let start = from + xml[from..].find(&open)?;
        let behind = xml[start + open.len()..].chars().next()?;
        if behind.is_whitespace() || behind == '>' || behind == '/' {
            let end = start + xml[start..].find('>')? + 1;
            return Some((start, end));
        }
        from = start + open.len();
    }
}

/// The range of an attribute's value in a start tag.
fn attribute(tag: &str, name: &str) -> Option<(usize, usize)> {
    for quote in ['\'', '"'] {
        let open = format!(" {name}={quote}");
        if let Some(at) = tag.find(&open) {
            let start = at + open.len();
            let end = start + tag[start..].find(quote)?;
            return Some((start, end));
        }
    }
    None
}

fn set_attribute(xml: &mut String, element_name: &str, name: &str, value: &str) {
    let Some((from, to)) = element(xml, element_name) else { return };
    if let Some((a, b)) = attribute(&xml[from..to], name) {
        xml.replace_range(from + a..from + b, value);
    }
}

fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;")
}
