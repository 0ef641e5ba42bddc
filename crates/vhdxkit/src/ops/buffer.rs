//! The buffer of a copy.

/// What the system maps memory in, and copies fastest to.
const PAGE: usize = 4096;
/// One read: large enough to be fast, small enough for a processor's cache.
pub(super) const CHUNK: usize = 256 << 10;

/// Memory for one read. It starts on a page: off one, reading from the page cache takes about a third
/// longer.
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    pub(super) fn new() -> Self {
        let memory = vec![0; CHUNK.saturating_add(PAGE)];
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        Self { memory, start }
    }

    /// The first `length` bytes, no more than there are.
    pub(super) fn first(&mut self, length: u64) -> &mut [u8] {
        let length = usize::try_from(length).unwrap_or(CHUNK).min(CHUNK);
        let end = self.start.saturating_add(length);
        self.memory.get_mut(self.start..end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_on_a_page_and_gives_what_it_has() {
        for _ in 0..20 {
            let mut buffer = Buffer::new();
            assert_eq!(buffer.first(1).as_ptr().align_offset(PAGE), 0);
            assert_eq!(buffer.first(7).len(), 7);
            assert_eq!(buffer.first(u64::MAX).len(), CHUNK);
        }
    }
}
