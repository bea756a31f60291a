//! What is fuzzed: a name, inputs to start from, words worth inserting, and the claim.

mod files;
mod format;
mod link;
mod migration;
mod nbd;
mod qmp;
mod stored;
mod text;

/// One decoder, and what is claimed of it.
pub struct Target {
    /// Its name, that of its corpus too.
    pub name: &'static str,
    /// Inputs that are known to be good.
    pub examples: fn() -> Vec<Vec<u8>>,
    /// Words that are worth inserting.
    pub words: &'static [&'static [u8]],
    /// Panics when the input breaks a claim.
    pub run: fn(&[u8]),
}

/// All of them.
#[must_use]
pub fn all() -> Vec<Target> {
    let mut all = Vec::new();
    all.extend(format::targets());
    all.extend(files::targets());
    all.extend(stored::targets());
    all.extend(link::targets());
    all.extend(migration::targets());
    all.extend(nbd::targets());
    all.extend(qmp::targets());
    all.extend(text::targets());
    all
}
