//! Gives consumers their permits, in the order in which they asked, for as long as there is room.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::credit::Credit;
use crate::delivery::SourceIndex;
use crate::messages::EnqueueRefused;
use crate::source::Permit;

pub(super) type PermitReply = Result<Permit, EnqueueRefused>;

pub(super) struct Permits {
    pub(super) credit: Credit,
    asking: VecDeque<(SourceIndex, oneshot::Sender<PermitReply>)>,
}

impl Permits {
    pub(super) fn new(credit: Credit) -> Self {
        Self {
            credit,
            asking: VecDeque::new(),
        }
    }

    /// Puts a consumer behind those that wait; [`grant`](Self::grant) answers it.
    pub(super) fn ask(&mut self, source: SourceIndex) -> oneshot::Receiver<PermitReply> {
        let (asker, answer) = oneshot::channel();
        self.asking.push_back((source, asker));
        answer
    }

    /// Gives permits to at most so many of those that wait, as far as there is room.
    pub(super) fn grant(&mut self, mut max_permits: usize) {
        for _ in 0..self.asking.len() {
            if max_permits == 0 {
                break;
            }
            let Some((source, asker)) = self.asking.pop_front() else {
                break;
            };
            if asker.is_closed() {
                continue;
            }
            match self.credit.grant(source) {
                Some(permit) => {
                    if asker.send(Ok(permit)).is_ok() {
                        max_permits -= 1;
                    } else {
                        self.credit.spend(source, 0, 0);
                    }
                }
                None => self.asking.push_back((source, asker)),
            }
        }
    }

    pub(super) fn refuse_all(&mut self) {
        for (_, asker) in self.asking.drain(..) {
            asker.send(Err(EnqueueRefused)).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERMIT: Permit = Permit {
        max_messages: 10,
        max_bytes: 1_000,
    };

    #[test]
    fn grants_in_the_order_of_asking_and_passes_over_those_that_have_gone() {
        let mut permits = Permits::new(Credit::new(100, 10_000, PERMIT, 3));
        let mut answers: Vec<_> = (0..3).map(|n| permits.ask(SourceIndex(n))).collect();
        drop(answers.remove(0));
        permits.grant(1);
        assert_eq!(answers[0].try_recv(), Ok(Ok(PERMIT)));
        assert!(answers[1].try_recv().is_err(), "one permit, not two");
        permits.refuse_all();
        assert_eq!(answers[1].try_recv(), Ok(Err(EnqueueRefused)));
    }

    #[test]
    fn a_consumer_waits_until_there_is_room() {
        let mut permits = Permits::new(Credit::new(20, 10_000, PERMIT, 1));
        let mut full = || {
            let mut answer = permits.ask(SourceIndex(0));
            permits.grant(usize::MAX);
            permits.credit.spend(SourceIndex(0), 20, 20);
            let mut waiting = permits.ask(SourceIndex(0));
            permits.grant(usize::MAX);
            assert!(answer.try_recv().is_ok() && waiting.try_recv().is_err());
            waiting
        };
        let mut waiting = full();
        permits.credit.give_back(20, 20);
        permits.grant(usize::MAX);
        assert_eq!(waiting.try_recv(), Ok(Ok(PERMIT)));
    }
}
