//! What a check breaks, it mends at its end, however that comes.

/// Does something when it is dropped.
pub struct Mend<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for Mend<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
