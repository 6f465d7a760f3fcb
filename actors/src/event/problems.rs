//! The mistakes in the fields of an event.

/// How many problems of one field are written out: enough to see what its sender does wrong, few
/// enough that a list of a million wrong values does not make a reason of a hundred megabytes.
const MAX_WRITTEN: usize = 8;

/// The mistakes in one field, in the order in which they were found.
///
/// Says where and what, never a value: reasons are stored, logged and sent back.
#[derive(Debug, Default)]
pub(super) struct Problems {
    written: Vec<String>,
    num_others: usize,
}

impl Problems {
    pub(super) fn one(path: &str, problem: impl std::fmt::Display) -> Self {
        let mut problems = Self::default();
        problems.add(path, problem);
        problems
    }

    pub(super) fn add(&mut self, path: impl std::fmt::Display, problem: impl std::fmt::Display) {
        if self.written.len() < MAX_WRITTEN {
            self.written.push(format!("{path}: {problem}"));
        } else {
            self.num_others += 1;
        }
    }

    /// Takes over the problems of a part of this field.
    pub(super) fn append(&mut self, other: Self) {
        let room = MAX_WRITTEN.saturating_sub(self.written.len());
        self.num_others += other.num_others + other.written.len().saturating_sub(room);
        self.written.extend(other.written.into_iter().take(room));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.written.is_empty()
    }
}

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.written.join("; "))?;
        match self.num_others {
            0 => Ok(()),
            num_others => write!(f, "; and {num_others} more"),
        }
    }
}
