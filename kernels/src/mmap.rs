//! Files as read-only memory.

use std::fs::File;
use std::io;
use std::path::Path;

pub use memmap2::Mmap;

/// Maps a whole file for reading.
///
/// The caller keeps the file as it is while the map lives: one that is truncated meanwhile ends the process
/// with `SIGBUS` at the next read, as with every memory-mapped file.
#[allow(unsafe_code)]
pub fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map is read-only, so nothing in this process can write through it. What is left
    // is another process changing the file under us; checkpoints are written once, and replaced by renaming.
    unsafe { Mmap::map(&file) }
}

/// Drops the resident pages that lie wholly within `range`: bytes that were copied out need not stay in memory
/// beside their copy. Reading them again reads the file again. A hint; where it is refused nothing changes.
#[allow(unsafe_code)]
pub fn release(map: &Mmap, range: std::ops::Range<usize>) {
    #[cfg(unix)]
    {
        const PAGE: usize = 1 << 16; // a multiple of every page size in use
        let start = range.start.next_multiple_of(PAGE);
        let end = range.end.min(map.len()) / PAGE * PAGE;
        if start < end {
            // SAFETY: the mapping is file-backed and read-only, so dropped pages come back with the same bytes.
            let _ =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        }
    }
    #[cfg(not(unix))]
    let _ = (map, range);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_what_is_there() {
        let here = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/mmap.rs"));
        assert!(map_file(here).unwrap().starts_with(b"//! Files"));
        assert!(map_file(Path::new("/nowhere")).is_err());
    }
}
