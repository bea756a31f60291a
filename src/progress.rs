//! Progress bars on standard error: drawn on a terminal, silent elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::cell::Cell;

/// The bar takes what the terminal's width leaves.
const TEMPLATE: &str = "{msg} [{wide_bar}] {percent:>3} %  {binary_bytes}/{binary_total_bytes}  \
    {binary_bytes_per_sec}  {eta} left";
/// How often it is drawn at most, times a second.
const DRAW_HZ: u8 = 5;

/// A bar over bytes. It appears when the total is known.
pub struct Bar {
    bar: ProgressBar,
    shown: Cell<bool>,
}

impl Bar {
    /// A bar that begins at nothing; `what` stands before it.
    #[must_use]
    pub fn new(what: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(TEMPLATE)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("##.");
        bar.set_style(style);
        bar.set_message(what.to_owned());
        Self { bar, shown: Cell::new(false) }
    }

    /// How far it is.
    pub fn set(&self, done_bytes: u64, total_bytes: u64) {
        self.bar.set_length(total_bytes);
        if total_bytes > 0 && !self.shown.replace(true) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(DRAW_HZ));
        }
        self.bar.set_position(done_bytes.min(total_bytes));
    }

    /// What stands before it.
    pub fn say(&self, what: &str) {
        if self.bar.message() != what {
            self.bar.set_message(what.to_owned());
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
