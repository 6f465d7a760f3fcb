//! How this process keeps memory.
//!
//! This file holds all unsafe code of the program.
#![allow(unsafe_code)]

use std::time::Duration;

/// Buffers up to this size come from memory that is kept. A batch takes several of some MiB; to ask the
/// kernel for them anew costs a fifth of this process's CPU.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 32 << 20;

/// More than this is given back once nobody has used it for a while: writers at full speed free and take
/// less than this. Larger keeps for longer what a crowd has needed, smaller takes back what is needed soon.
const MAX_KEPT: u64 = 64 << 20;
const LOOK_EVERY: Duration = Duration::from_secs(2);
const NUM_LOOKS: u32 = 2;

/// Has glibc keep freed memory once for all threads. By itself it keeps some for each, and never uses it for
/// another. No thread here allocates so much that they would wait for each other.
pub(crate) fn keep_once() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the calls take two numbers and touch nothing of ours; they are made before there are other
    // threads. What they answer does not matter: refused, all stays as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Gives back, from now on, what a crowd has needed. By itself glibc gives back only what is behind the last
/// thing in use, which may be nothing of hundreds of MiB.
pub(crate) fn give_back() -> std::io::Result<()> {
    let look = || {
        let mut looks = Looks::default();
        loop {
            std::thread::sleep(LOOK_EVERY);
            if num_kept().is_some_and(|kept| looks.find(kept)) {
                trim();
                looks.trimmed(num_kept().unwrap_or_default());
            }
        }
    };
    let thread = std::thread::Builder::new().name("memory".to_owned());
    thread.spawn(look).map(drop)
}

#[derive(Debug, Default)]
struct Looks {
    /// How many in a row found too much.
    num: u32,
    /// What could not be given back the last time.
    rest: u64,
}

impl Looks {
    /// So many bytes are kept; whether to give them back.
    fn find(&mut self, kept: u64) -> bool {
        self.rest = self.rest.min(kept);
        if kept <= self.rest + MAX_KEPT {
            self.num = 0;
            return false;
        }
        self.num += 1;
        self.num >= NUM_LOOKS
    }

    /// They were given back but for the rest: pieces of pages that are in use.
    fn trimmed(&mut self, rest: u64) {
        *self = Self { num: 0, rest };
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn num_kept() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let resident: u64 = resident.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    // SAFETY: it only counts, under glibc's own locks.
    let info = unsafe { libc::mallinfo() };
    // Numbers of 32 bits that wrap around, in every version of glibc.
    let used = info
        .uordblks
        .cast_unsigned()
        .wrapping_add(info.hblkhd.cast_unsigned());
    Some((resident * 1024).saturating_sub(used.into()))
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn num_kept() -> Option<u64> {
    None
}

fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it gives back pages that nothing of ours is in, under glibc's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_kept_for_a_while_is_given_back_and_a_rest_is_let_be() {
        let mut looks = Looks::default();
        let found = [MAX_KEPT + 1, MAX_KEPT, MAX_KEPT + 1, MAX_KEPT + 1];
        let given_back = found.map(|kept| looks.find(kept));
        assert_eq!(given_back, [false, false, false, true]);
        looks.trimmed(MAX_KEPT);
        assert!(!looks.find(2 * MAX_KEPT) && !looks.find(2 * MAX_KEPT));
        assert!(!looks.find(3 * MAX_KEPT) && looks.find(3 * MAX_KEPT));
        looks.trimmed(MAX_KEPT);
        // A rest that has gone meanwhile is none.
        assert!(!looks.find(0) && !looks.find(2 * MAX_KEPT) && looks.find(2 * MAX_KEPT));
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn what_is_freed_is_seen_and_given_back() {
        let pieces: Vec<Vec<u8>> = (0..20_000).map(|_| vec![1; 10_000]).collect();
        // Between them something stays, so that nothing of it is behind the last thing in use.
        let (stay, go): (Vec<_>, Vec<_>) = pieces
            .into_iter()
            .enumerate()
            .partition(|(number, _)| number % 100 == 0);
        drop(go);
        let before = num_kept().unwrap();
        assert!(before > 150_000_000, "{before}");
        trim();
        let after = num_kept().unwrap();
        assert!(after < before - 100_000_000, "{after} of {before}");
        drop(stay);
    }
}
