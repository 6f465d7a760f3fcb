//! The failures that were logged, so that an outage is one line.

use super::Duty;

#[derive(Default)]
pub(in crate::source::redis) struct FailureLog {
    each: [DutyFailures; Duty::NUM],
    /// Said already by one of them: the server is away for all.
    outage_said: bool,
    /// Said that the guard was not moved for long.
    old_guard_said: bool,
}

#[derive(Clone, Copy, Default)]
struct DutyFailures {
    in_a_row: u32,
    said: bool,
}

impl FailureLog {
    /// Whether this failure is to be logged as a warning. A lost connection is logged by the reads, if anybody
    /// reads, so it is logged here only when it comes a second time.
    pub(super) fn failed(&mut self, duty: Duty, is_refusal: bool, reader_fails: bool) -> bool {
        let outage_is_news = !reader_fails && !self.outage_said;
        let DutyFailures { in_a_row, said } = &mut self.each[duty as usize];
        *in_a_row = in_a_row.saturating_add(1);
        let aloud = !*said && (is_refusal || (*in_a_row > 1 && outage_is_news));
        *said |= aloud;
        self.outage_said |= aloud && !is_refusal;
        aloud
    }

    /// After how many failures a success is to be logged.
    pub(super) fn succeeded(&mut self, duty: Duty) -> Option<u32> {
        self.outage_said = false;
        let old_guard_said = duty == Duty::Guard && std::mem::take(&mut self.old_guard_said);
        let DutyFailures { in_a_row, said } = std::mem::take(&mut self.each[duty as usize]);
        (said || old_guard_said).then_some(in_a_row)
    }

    /// Whether it is to be logged that the guard was not moved for long.
    pub(super) fn guard_is_old(&mut self) -> bool {
        !std::mem::replace(&mut self.old_guard_said, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complains_once_an_outage_and_not_for_what_the_reader_tells_of() {
        let mut failures = FailureLog::default();
        assert_eq!(failures.succeeded(Duty::Hold), None);
        let refused = [true, true].map(|refusal| failures.failed(Duty::Hold, refusal, true));
        assert_eq!(refused, [true, false]);
        assert_eq!(failures.succeeded(Duty::Hold), Some(2));
        let unread = [(); 3].map(|()| failures.failed(Duty::Hold, false, false));
        assert_eq!(unread, [false, true, false]);
        assert_eq!(failures.succeeded(Duty::Hold), Some(3));
        let told = [false, true, true].map(|reader| failures.failed(Duty::Hold, false, reader));
        assert_eq!(told, [false; 3]);
        assert_eq!(failures.succeeded(Duty::Hold), None);
    }

    #[test]
    fn an_outage_is_one_line_and_each_refusal_another() {
        let mut failures = FailureLog::default();
        let outage = [Duty::Hold, Duty::Look, Duty::Hold, Duty::Look]
            .map(|duty| failures.failed(duty, false, false));
        assert_eq!(outage, [false, false, true, false]);
        assert_eq!(failures.succeeded(Duty::Look), None);
        assert_eq!(failures.succeeded(Duty::Hold), Some(2));
        let refused = [Duty::Hold, Duty::Guard].map(|duty| failures.failed(duty, true, false));
        assert_eq!(refused, [true; 2]);
    }

    #[test]
    fn an_old_guard_is_said_once_until_it_has_moved() {
        let mut failures = FailureLog::default();
        assert!(failures.guard_is_old());
        assert!(!failures.guard_is_old());
        assert_eq!(failures.succeeded(Duty::Hold), None);
        assert!(!failures.guard_is_old(), "it has not moved");
        assert_eq!(failures.succeeded(Duty::Guard), Some(0));
        assert!(failures.guard_is_old());
    }
}
