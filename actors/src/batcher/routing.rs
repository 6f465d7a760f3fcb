//! Decides where a batch goes that could not be written.

use crate::isolation::Control;
use crate::store::{Fault, FaultKind, StoreError};

#[derive(Debug, Clone, Copy)]
pub(super) struct FailedBatch<'a> {
    pub(super) error: &'a StoreError,
    pub(super) control: Control,
    pub(super) num_entries: usize,
    pub(super) may_be_a_culprit: bool,
    pub(super) others_were_written: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Retry,
    /// Out again in halves, after a back-off, and new batches are no larger: it took too long, and
    /// nothing tells yet whether the store takes anything.
    RetryInHalves,
    /// Out again in halves, at once, and others do not wait for them: it took too long while the store takes
    /// others, and new batches are no larger; or somebody held a lock that it needs.
    Narrow(Fault),
    /// Out again in halves, at once: the store takes others, so something in the batch is not taken.
    Split(Fault),
    /// To the suspects: it is one event, and may be the cause.
    Suspect(Fault),
}

impl FailedBatch<'_> {
    /// The result of the controls. Where none was tried, other batches that were written stand for one
    /// that passed.
    pub(super) fn control(&self) -> Control {
        match self.control {
            Control::NotTried if self.others_were_written => Control::Passed,
            control => control,
        }
    }

    pub(super) fn route(&self) -> Route {
        let control = self.control();
        let has_passed = control == Control::Passed;
        let is_slow = matches!(self.error, StoreError::TooSlow { .. });
        let is_many = self.num_entries > 1;
        // A batch that takes the server down with it has no control that passes behind it.
        let is_not_alone = has_passed || self.others_were_written;
        match self.error.fault() {
            // It was not even tried.
            _ if control == Control::FailedBefore => Route::Retry,
            Some(fault) if is_many && is_slow && has_passed => Route::Narrow(fault),
            _ if is_many && is_slow => Route::RetryInHalves,
            // Nothing was heard of it, behind a control that passed. The cause may be anything, so it
            // waits among the suspects and is never judged.
            None if is_slow && has_passed && self.may_be_a_culprit => Route::Suspect(Fault {
                kind: FaultKind::Contention,
                code: None,
            }),
            Some(fault) if is_many && is_not_alone && fault.kind == FaultKind::Contention => {
                Route::Narrow(fault)
            }
            Some(fault) if is_many && is_not_alone => Route::Split(fault),
            Some(fault) if control != Control::Failed && self.may_be_a_culprit => {
                Route::Suspect(fault)
            }
            // A commit may fail where a control, which is rolled back, passes: that is no sign of a
            // store that takes events.
            _ => Route::Retry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault() -> Fault {
        Fault {
            kind: FaultKind::Transient,
            code: Some("57014".to_owned()),
        }
    }

    fn refused() -> StoreError {
        StoreError::Unavailable {
            what: String::new(),
            fault: Some(fault()),
            source: None,
        }
    }

    fn too_slow(code: Option<String>) -> StoreError {
        StoreError::TooSlow {
            what: String::new(),
            code,
            source: None,
        }
    }

    fn failed(error: &StoreError, control: Control, num_entries: usize) -> FailedBatch<'_> {
        FailedBatch {
            error,
            control,
            num_entries,
            may_be_a_culprit: num_entries == 1,
            others_were_written: false,
        }
    }

    #[test]
    fn each_failure_has_one_route() {
        let unknown = Fault {
            kind: FaultKind::Contention,
            code: None,
        };
        let away = StoreError::unavailable("away");
        let (refused, unheard) = (refused(), too_slow(None));
        let cancelled = too_slow(fault().code);
        for (error, control, route_of_many, route_of_one) in [
            (&away, Control::NotTried, Route::Retry, Route::Retry),
            (&away, Control::Passed, Route::Retry, Route::Retry),
            (&refused, Control::FailedBefore, Route::Retry, Route::Retry),
            (&refused, Control::Failed, Route::Retry, Route::Retry),
            (
                &refused,
                Control::NotTried,
                Route::Retry,
                Route::Suspect(fault()),
            ),
            (
                &refused,
                Control::Passed,
                Route::Split(fault()),
                Route::Suspect(fault()),
            ),
            (
                &cancelled,
                Control::Passed,
                Route::Narrow(fault()),
                Route::Suspect(fault()),
            ),
            (
                &cancelled,
                Control::NotTried,
                Route::RetryInHalves,
                Route::Suspect(fault()),
            ),
            (
                &cancelled,
                Control::Failed,
                Route::RetryInHalves,
                Route::Retry,
            ),
            (
                &cancelled,
                Control::FailedBefore,
                Route::Retry,
                Route::Retry,
            ),
            (
                &unheard,
                Control::NotTried,
                Route::RetryInHalves,
                Route::Retry,
            ),
            (
                &unheard,
                Control::Passed,
                Route::RetryInHalves,
                Route::Suspect(unknown),
            ),
        ] {
            assert_eq!(
                failed(error, control, 8).route(),
                route_of_many,
                "{error:?} {control:?}"
            );
            assert_eq!(
                failed(error, control, 1).route(),
                route_of_one,
                "{error:?} {control:?}"
            );
        }
    }

    #[test]
    fn others_that_were_written_stand_for_a_control() {
        let error = refused();
        for control in [Control::NotTried, Control::Failed] {
            let many = FailedBatch {
                others_were_written: true,
                ..failed(&error, control, 8)
            };
            assert_eq!(many.route(), Route::Split(fault()), "{control:?}");
        }
        let not_tried = FailedBatch {
            others_were_written: true,
            ..failed(&error, Control::NotTried, 1)
        };
        assert_eq!(not_tried.control(), Control::Passed);
    }

    #[test]
    fn what_waits_for_the_lock_of_somebody_else_holds_nothing_up() {
        let fault = Fault {
            kind: FaultKind::Contention,
            code: Some("55P03".to_owned()),
        };
        let locked = StoreError::Unavailable {
            what: String::new(),
            fault: Some(fault.clone()),
            source: None,
        };
        let passed = failed(&locked, Control::Passed, 8);
        assert_eq!(passed.route(), Route::Narrow(fault));
        assert_eq!(
            failed(&locked, Control::Failed, 8).route(),
            Route::Retry,
            "nothing can be written"
        );
    }

    #[test]
    fn a_letter_that_cannot_be_written_is_never_suspected() {
        let error = refused();
        let letter = FailedBatch {
            may_be_a_culprit: false,
            ..failed(&error, Control::Passed, 1)
        };
        assert_eq!(letter.route(), Route::Retry);
    }
}
