//! Options with a disk's image replaced by an export over NBD. Pure text.
//!
//! What always holds: an option that names a placeholder names the export instead, in the form that
//! it had (a plain name, `-drive`, `-blockdev` as text or JSON), and nothing of a file is left in it.

use super::command_line::CommandLine;
use super::option::{joined, parts};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What only a file's node has.
const OF_FILE: &[&str] =
    &["driver", "filename", "aio", "locking", "drop-cache", "pr-manager", "aio-max-batch"];

/// An export, and the file name that stands for it in a command line.
pub(crate) struct Export {
    /// The placeholder.
    pub stands: String,
    /// The export's name.
    pub name: String,
}

/// Replaces all placeholders.
pub(crate) fn over_nbd(line: &mut CommandLine, socket: &Path, exports: &[Export]) {
    for option in &mut line.kept {
        for value in option.iter_mut() {
            for export in exports {
                *value = replaced(value, socket, export);
            }
        }
    }
}

fn replaced(value: &str, socket: &Path, export: &Export) -> String {
    if let Ok(mut json @ Value::Object(_)) = serde_json::from_str::<Value>(value) {
        replace_json(&mut json, socket, export);
        return json.to_string();
    }
    let uri = format!(
        "nbd+unix:///{}?socket={}",
        uri_part(&export.name),
        uri_part(&socket.to_string_lossy())
    );
    if value == export.stands {
        return uri;
    }
    let all = parts(value);
    let named = |p: &String| p.split_once('=').filter(|(_, v)| *v == export.stands).is_some();
    let Some(key) = all.iter().find(|p| named(p)).and_then(|p| p.split_once('=')) else {
        return value.to_owned();
    };
    let Some(prefix) = key.0.strip_suffix("filename") else {
        let part = |p: String| if named(&p) { format!("{}={uri}", key.0) } else { p };
        let kept = all.iter().filter(|p| !p.starts_with("aio="));
        return joined(&kept.cloned().map(part).collect::<Vec<_>>());
    };
    let of_file = |p: &String| {
        let own = p.split('=').next().and_then(|k| k.strip_prefix(prefix));
        own.is_some_and(|k| OF_FILE.contains(&k))
    };
    let mut kept: Vec<String> = all.iter().filter(|p| !of_file(p)).cloned().collect();
    kept.extend([
        format!("{prefix}driver=nbd"),
        format!("{prefix}server.type=unix"),
        format!("{prefix}server.path={}", socket.display()),
        format!("{prefix}export={}", export.name),
    ]);
    joined(&kept)
}

fn replace_json(json: &mut Value, socket: &Path, export: &Export) {
    let Value::Object(object) = json else { return };
    for (_, value) in object.iter_mut() {
        replace_json(value, socket, export);
    }
    if object.get("filename").and_then(Value::as_str) == Some(&export.stands) {
        let kept = |(key, _): &(&String, &Value)| !OF_FILE.contains(&key.as_str());
        let mut new: Map<String, Value> =
            object.iter().filter(kept).map(|(k, v)| (k.clone(), v.clone())).collect();
        new.insert("driver".into(), "nbd".into());
        new.insert("server".into(), json!({ "type": "unix", "path": socket.to_string_lossy() }));
        new.insert("export".into(), export.name.clone().into());
        *object = new;
    }
}

/// A text as a part of a URI.
#[must_use]
pub fn uri_part(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_an_image_becomes_an_export() {
        let cases = [
            ("/p/1", "nbd+unix:///d%200?socket=/run/a%2Cb"),
            (
                "file=/p/1,if=virtio,format=raw,aio=native",
                "file=nbd+unix:///d%200?socket=/run/a%2Cb,if=virtio,format=raw",
            ),
            (
                "driver=raw,node-name=d0,file.driver=file,file.filename=/p/1,file.locking=off",
                "driver=raw,node-name=d0,file.driver=nbd,file.server.type=unix,\
                 file.server.path=/run/a,,b,file.export=d 0",
            ),
            (
                "driver=file,node-name=f0,filename=/p/1,read-only=off",
                "node-name=f0,read-only=off,driver=nbd,server.type=unix,server.path=/run/a,,b,\
                 export=d 0",
            ),
            (
                r#"{"driver":"raw","file":{"driver":"file","filename":"/p/1","aio":"native"}}"#,
                r#"{"driver":"raw","file":{"driver":"nbd","export":"d 0","server":{"path":"/run/a,b","type":"unix"}}}"#,
            ),
            ("file=/other,if=virtio", "file=/other,if=virtio"),
        ];
        for (before, after) in cases {
            let mut line = CommandLine {
                kept: vec![vec!["qemu".into()], vec!["-x".into(), before.into()]],
                ..CommandLine::default()
            };
            let export = Export { stands: "/p/1".into(), name: "d 0".into() };
            over_nbd(&mut line, Path::new("/run/a,b"), &[export]);
            assert_eq!(line.kept[1][1], after);
        }
    }
}
