//! Tests of the journal engine over real files.

mod append;
