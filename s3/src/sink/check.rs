//! What a server has to be able to do, asked before anything is written.

use super::store_error;
use crate::store::{Created, Patient, StoreError};
use afterimage_journal::wire::SinkError;
use uuid::Uuid;

/// Asks whether a second conditional write of a key is refused, and whether objects can be locked where that
/// is wanted.
pub(super) fn server(store: &Patient, root: &str, lock_days: Option<u32>) -> Result<(), SinkError> {
    let key = format!("{root}/probe/{}", Uuid::new_v4().simple());
    let other = |what: &str| {
        SinkError::Refused(format!(
            "the server {what} a write under the condition that nothing is there (If-None-Match). \
             Without it two agents could overwrite each other's manifests: use another server"
        ))
    };
    let create = |bytes: &[u8]| match store.create(&key, bytes, None) {
        Err(StoreError::Unsupported(_)) => Err(other("doesn't know")),
        told => told.map_err(store_error),
    };
    let first = create(b"first")?;
    let second = create(b"second")?;
    store.delete(&key).map_err(store_error)?;
    if first != Created::Ours || second != Created::Theirs(b"first".to_vec()) {
        return Err(other("doesn't heed"));
    }
    if lock_days.is_some() && !store.can_lock().map_err(store_error)? {
        return Err(SinkError::Refused(
            "the URL asks for lock=DAYS, but the bucket has no object lock: make a bucket with it \
             (it can't be had later on every server), or leave lock out"
                .into(),
        ));
    }
    Ok(())
}
