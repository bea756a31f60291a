//! Collects the extents that an export reports for BLOCK_STATUS.
//!
//! What always holds: the extents start at the request's offset, follow one another, none is
//! empty, and together they are no longer than the request; neighbours differ in their flags.

/// Takes extents in order, until the request is covered or the reply is full.
pub struct StatusSink<'a> {
    extents: &'a mut Vec<(u64, u32)>,
    extents_max: usize,
    bytes_left: u64,
}

impl<'a> StatusSink<'a> {
    /// A sink for a request of `bytes`, at most `extents_max` of them, into `extents`, which is
    /// cleared first.
    pub fn new(extents: &'a mut Vec<(u64, u32)>, bytes: u64, extents_max: usize) -> Self {
        extents.clear();
        Self { extents, extents_max, bytes_left: bytes }
    }

    /// Adds the next extent: `len` bytes with the context's `flags`. What reaches past the
    /// request is cut off. Gives whether more is wanted.
    pub fn push(&mut self, len: u64, flags: u32) -> bool {
        let len = len.min(self.bytes_left);
        if len == 0 {
            return self.bytes_left > 0;
        }
        let is_full = self.extents.len() == self.extents_max;
        match self.extents.last_mut() {
            Some((last, same)) if *same == flags => *last += len,
            _ if is_full => {
                self.bytes_left = 0;
                return false;
            }
            _ => self.extents.push((len, flags)),
        }
        self.bytes_left -= len;
        self.bytes_left > 0
    }

    /// Whether a part of the request is left, and there is room for its extents.
    pub fn wants_more(&self) -> bool {
        self.bytes_left > 0
    }

    /// Whether no extent was added.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::StatusSink;

    #[test]
    fn neighbours_merge_and_the_end_is_cut() {
        let mut extents = Vec::new();
        let mut sink = StatusSink::new(&mut extents, 100, 8);
        assert!(sink.push(10, 3));
        assert!(sink.push(20, 3));
        assert!(sink.push(0, 1));
        assert!(!sink.push(500, 0));
        assert!(!sink.push(1, 3));
        assert_eq!(extents, [(30, 3), (70, 0)]);
    }

    #[test]
    fn a_full_sink_takes_only_more_of_its_last_extent() {
        let mut extents = Vec::new();
        let mut sink = StatusSink::new(&mut extents, 100, 1);
        assert!(sink.push(10, 3));
        assert!(sink.push(10, 3));
        assert!(!sink.push(10, 0));
        assert!(!sink.push(10, 3));
        assert_eq!(extents, [(20, 3)]);
    }
}
