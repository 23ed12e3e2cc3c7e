//! An output buffer that parallel tasks fill, each its own part.
#![allow(unsafe_code)]

/// The address of an output under construction.
#[derive(Clone, Copy)]
pub(crate) struct Output<T = f32> {
    start: *mut T,
    len: usize,
}

// SAFETY: tasks read and write through it ranges that the op keeps disjoint.
unsafe impl<T: Send> Send for Output<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Output<T> {}

impl<T: Copy> Output<T> {
    /// The part `start .. start + len`.
    ///
    /// # Safety
    /// No other live slice may overlap it, and every element is written before it is read.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.len);
        // SAFETY: in bounds by the assertion; disjointness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// Rows of `width` elements, `stride` apart: what one task writes of a matrix.
pub(crate) struct Block {
    output: Output,
    start: usize,
    stride: usize,
    width: usize,
}

impl Output {
    /// The block whose first row begins at `start`.
    ///
    /// # Safety
    /// No other live slice or block may overlap its rows, and every element is written before it is read.
    pub(crate) unsafe fn block(self, start: usize, stride: usize, width: usize) -> Block {
        Block { output: self, start, stride, width }
    }
}

impl Block {
    /// Where row `i` begins in the output.
    pub(crate) fn at(&self, i: usize) -> usize {
        self.start + i * self.stride
    }

    /// Row `i`.
    #[inline(always)]
    pub(crate) fn row(&mut self, i: usize) -> &mut [f32] {
        // SAFETY: the block is its owner's alone, who has one row of it at a time.
        unsafe { self.output.slice(self.at(i), self.width) }
    }
}

/// A vector of `len` elements filled by `fill`, without zeroing it first: on large activations that pass over
/// memory costs several per cent of the op.
///
/// # Safety
/// `fill` must write every element.
pub(crate) unsafe fn build<T: Copy>(len: usize, fill: impl FnOnce(Output<T>)) -> Vec<T> {
    let mut data = Vec::with_capacity(len);
    fill(Output { start: data.as_mut_ptr(), len });
    // SAFETY: capacity is `len`, and the caller promises that all of it was written.
    unsafe { data.set_len(len) };
    data
}
