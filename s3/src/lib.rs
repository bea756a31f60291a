//! A bucket as a recovery site: a journal's units as compressed objects under numbered manifests, written by
//! [`sink::S3Sink`], read by [`storage::S3Storage`] with everything that reads a journal.
//!
//! What always holds:
//! * one writer a journal: manifests are created by conditional writes, each with its writer's epoch (I-9);
//! * a manifest names only what is there, and what is acknowledged is named (I-3);
//! * names are never used twice, and only what a committed manifest calls dead is deleted, after a grace.
//!
//! Folder by folder: [`url`] names a bucket, [`store`] asks a server, [`object`] and [`manifest`] are the
//! bytes (`docs/s3.md`), [`sink`] writes, [`storage`] reads. Why it is so: decision 13.

pub mod manifest;
pub mod object;
pub mod sink;
pub mod storage;
pub mod store;
pub mod url;

pub use sink::S3Sink;
pub use storage::S3Storage;
pub use url::S3Url;
