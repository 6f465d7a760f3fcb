//! Locks of plain data. Every change of it is complete before anything that could panic, so that a lock which
//! a panic poisoned guards nothing broken.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
