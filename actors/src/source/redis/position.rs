//! Where the consumer group and the trim guard may stand, and whether they do.
//!
//! The group stands nowhere ahead of the stream's last id, though `XGROUP SETID` takes any id: it would be
//! given nothing until the ids have reached it, and what is published until then would never be read. So the
//! source stops reading, says so, and leaves the trim guard where it is until somebody sets the group back.
//! A group that is set anywhere *within* the stream is believed.
//!
//! The trim guard is a second group that keeps others from trimming what is not committed. Prefect's
//! consumers trim the stream behind the smallest id that was *delivered* in each group, committed or not,
//! and pass over groups whose consumers were idle for too long, but never a group without consumers. The
//! guard stands where nothing uncommitted is behind it. Any replica moves it: what was true when it looked
//! stays true, so it needs no leader.

use std::time::Duration;

use tokio::time::Instant;

use super::settings::RedisSettings;
use super::snapshot::StreamSnapshot;
use super::stream_id::StreamId;

/// The first id that counts for Prefect's trimming, and behind which everything is.
pub(super) const BEGINNING: StreamId = StreamId {
    millis: 0,
    number: 1,
};

/// The stream's end may go back. To ask for it costs as much as the first and the last entry are large.
const ASK_END_EVERY: Duration = Duration::from_secs(10);

/// Behind this nothing is uncommitted; `None` if the group is not there.
pub(super) fn safe_id(snapshot: &StreamSnapshot, settings: &RedisSettings) -> Option<StreamId> {
    let group = snapshot.group(&settings.group)?;
    Some(snapshot.pending.smallest.unwrap_or(group.last_delivered))
}

/// Where the guard stands for a safe id: at the start of its millisecond.
///
/// Prefect compares ids as texts, where `…-10` is smaller than `…-2`. Only `…-0` is the smallest
/// of its millisecond there too. A group at `0-0` counts for nothing.
pub(super) fn guard_position(safe: StreamId) -> StreamId {
    StreamId {
        number: u64::from(safe.millis == 0),
        ..safe
    }
}

/// A group that stands ahead of its stream, or did and was left there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupAhead {
    pub(super) at: StreamId,
    pub(super) end: StreamId,
    /// Behind this is everything that may be unread.
    pub(super) back_to: StreamId,
}

impl GroupAhead {
    pub(super) fn of(snapshot: &StreamSnapshot, settings: &RedisSettings) -> Option<Self> {
        let at = snapshot.group(&settings.group)?.last_delivered;
        // Where groups are made, also on a stream that nothing was ever published to.
        let end = snapshot.end?.max(BEGINNING);
        (at > end).then(|| Self {
            at,
            end,
            back_to: Self::back_to(snapshot, end, None, settings),
        })
    }

    /// At the guard, which stayed behind all that was not stored, and no further than the group was seen
    /// itself; else at the beginning.
    fn back_to(
        snapshot: &StreamSnapshot,
        end: StreamId,
        last_sound: Option<StreamId>,
        settings: &RedisSettings,
    ) -> StreamId {
        let guard = snapshot
            .group(&settings.guard_group)
            .map(|guard| guard.last_delivered)
            .filter(|at| settings.guard && *at <= end);
        let last_seen = last_sound.map(guard_position);
        let pending = snapshot.pending.smallest.map(guard_position);
        let known = guard.into_iter().chain(last_seen).min();
        let known = known.unwrap_or(BEGINNING).min(guard_position(end));
        pending.map_or(known, |pending| pending.min(known))
    }

    pub(super) fn what(&self, settings: &RedisSettings) -> String {
        let Self { at, end, .. } = self;
        let group = &settings.group;
        if at > end {
            return format!(
                "the consumer group {group} stands at {at}, ahead of the stream's last id {end}: what is \
                 published until the ids have reached it would never be read"
            );
        }
        format!(
            "the consumer group {group} stands at {at}, where it was set ahead of the stream; the ids \
             have reached it meanwhile, and what was published before that was never read"
        )
    }

    pub(super) fn remedy(&self, settings: &RedisSettings) -> String {
        format!(
            "set it back with `redis-cli XGROUP SETID {} {} {}`; what is stored already counts as \
             duplicate",
            settings.stream, settings.group, self.back_to
        )
    }

    pub(super) fn what_and_remedy(&self, settings: &RedisSettings) -> String {
        format!("{}; {}", self.what(settings), self.remedy(settings))
    }
}

/// The group's position and the stream's end, as far as they are known from one look to the next.
#[derive(Debug, Default)]
pub(super) struct Positions {
    end: Option<StreamId>,
    end_seen_at: Option<Instant>,
    /// Where the group stood when it stood right.
    last_sound: Option<StreamId>,
    ahead: Option<GroupAhead>,
    passed_over: Option<PassedOver>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PassedOver {
    pub(super) behind: StreamId,
    pub(super) up_to: StreamId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WentBack {
    pub(super) from: StreamId,
    pub(super) to: StreamId,
}

impl Positions {
    pub(super) fn ahead(&self) -> Option<GroupAhead> {
        self.ahead
    }

    /// How far the stream had come when that was last seen, however long ago.
    pub(super) fn end(&self) -> Option<StreamId> {
        self.end
    }

    /// As far as the stream surely came: its last id matters only where something stands further ahead.
    pub(super) fn known_end(&self) -> Option<StreamId> {
        let is_fresh = |at: Instant| at.elapsed() < ASK_END_EVERY;
        // While something is wrong, every look is a whole one.
        self.end
            .filter(|_| self.ahead.is_none() && self.end_seen_at.is_some_and(is_fresh))
    }

    /// The stream's end may have gone back: it is asked for with the next look.
    pub(super) fn doubt_end(&mut self) {
        self.end_seen_at = None;
    }

    /// Takes in a look; `end_before` was known when it began, and reads may have brought more meanwhile.
    pub(super) fn see(
        &mut self,
        snapshot: &StreamSnapshot,
        end_before: Option<StreamId>,
        settings: &RedisSettings,
    ) -> Option<WentBack> {
        let mut went_back = None;
        if let Some(end) = snapshot.end.map(|end| end.max(BEGINNING)) {
            let from = end_before.filter(|before| *before > end);
            went_back = from.map(|from| WentBack { from, to: end });
            self.end = match went_back {
                Some(_) => Some(end),
                None => self.end.max(Some(end)),
            };
            self.end_seen_at = Some(Instant::now());
        }
        let group = snapshot.group(&settings.group);
        let (Some(end), Some(group)) = (self.end, group) else {
            return went_back;
        };
        let at = group.last_delivered;
        let was = self.ahead;
        // Left where it was put, it is as wrong as before, wherever the stream has come meanwhile.
        let is_left = was.is_some_and(|was| was.at == at);
        if at > end || is_left {
            let back_to = was.map_or_else(
                || GroupAhead::back_to(snapshot, end, self.last_sound, settings),
                |was| was.back_to.min(guard_position(end)),
            );
            self.ahead = Some(GroupAhead { at, end, back_to });
            return went_back;
        }
        self.ahead = None;
        if let Some(was) = was {
            let behind = self.last_sound.unwrap_or(was.back_to);
            if at > behind {
                let before = self.passed_over;
                self.passed_over = Some(PassedOver {
                    behind: before.map_or(behind, |before| before.behind.min(behind)),
                    up_to: before.map_or(at, |before| before.up_to.max(at)),
                });
            }
        }
        self.last_sound = Some(at);
        went_back
    }

    pub(super) fn passed_over(&self) -> Option<PassedOver> {
        self.passed_over
    }

    pub(super) fn counted_passed_over(&mut self) {
        self.passed_over = None;
    }

    /// The group was given everything up to here: by a read of our own, between two looks.
    pub(super) fn read_up_to(&mut self, id: StreamId) {
        if self.end <= Some(id) {
            self.end = Some(id);
            self.end_seen_at = Some(Instant::now());
        }
        if self.ahead.is_none() && self.last_sound.is_some_and(|last| last < id) {
            self.last_sound = Some(id);
        }
    }

    /// Where a guard belongs that stands ahead of the stream as well.
    pub(super) fn for_lost_guard(&self) -> StreamId {
        self.ahead.map_or(BEGINNING, |ahead| ahead.back_to)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::snapshot::{Group, PendingSummary};
    use super::*;

    fn id(text: &str) -> StreamId {
        text.parse().unwrap()
    }

    fn snapshot(group: &str, guard: &str, end: Option<&str>) -> StreamSnapshot {
        let settings = RedisSettings::default();
        let standing = |name: &str, at: &str| Group {
            name: name.to_owned(),
            num_consumers: 0,
            last_delivered: id(at),
            lag: None,
        };
        StreamSnapshot {
            groups: vec![
                standing(&settings.guard_group, guard),
                standing(&settings.group, group),
            ],
            end: end.map(id),
            ..StreamSnapshot::default()
        }
    }

    fn see(
        positions: &mut Positions,
        group: &str,
        guard: &str,
        end: Option<&str>,
    ) -> Option<WentBack> {
        let snapshot = snapshot(group, guard, end);
        let before = positions.end();
        positions.see(&snapshot, before, &RedisSettings::default())
    }

    #[test]
    fn the_guard_stays_behind_everything_that_is_not_committed() {
        let settings = RedisSettings::default();
        let safe = |smallest: Option<&str>| {
            let mut snapshot = snapshot("9-3", "0-1", None);
            snapshot.pending.smallest = smallest.map(id);
            safe_id(&snapshot, &settings).unwrap()
        };
        assert_eq!(safe(None), id("9-3"));
        assert_eq!(safe(Some("5-1")), id("5-1"));
        let other = RedisSettings {
            group: "other".to_owned(),
            ..RedisSettings::default()
        };
        assert_eq!(safe_id(&snapshot("9-3", "0-1", None), &other), None);
    }

    #[test]
    fn the_guard_stands_before_its_whole_millisecond_also_as_a_text() {
        assert_eq!(
            guard_position(id("1700000000000-12")),
            id("1700000000000-0")
        );
        assert_eq!(guard_position(id("0-7")), id("0-1"), "0-0 would not count");
        let guard = guard_position(id("1700000000000-2")).to_string();
        for number in 0..200 {
            assert!(guard <= format!("1700000000000-{number}"));
        }
    }

    #[test]
    fn a_group_within_its_stream_is_believed_wherever_it_is_set() {
        let mut positions = Positions::default();
        see(&mut positions, "5-3", "5-0", Some("9-0"));
        assert_eq!(positions.known_end(), Some(id("9-0")));
        for at in ["9-0", "0-1", "7-7"] {
            assert_eq!(see(&mut positions, at, "5-0", None), None, "{at}");
            assert_eq!((positions.ahead(), positions.passed_over()), (None, None));
        }
    }

    #[test]
    fn a_group_ahead_goes_back_to_the_guard() {
        let mut positions = Positions::default();
        see(&mut positions, "9-0", "8-0", Some("9-0"));
        let ahead = GroupAhead {
            at: id("50-0"),
            end: id("9-0"),
            back_to: id("8-0"),
        };
        see(&mut positions, "50-0", "8-0", Some("9-0"));
        assert_eq!(positions.ahead(), Some(ahead));
        assert_eq!(positions.known_end(), None, "asked for with every look");
        // The guard, too, may be set by somebody; what was known stays known.
        see(&mut positions, "50-0", "60-0", Some("12-0"));
        assert_eq!(positions.for_lost_guard(), id("8-0"));
        let settings = RedisSettings::default();
        let ahead = positions.ahead().unwrap();
        let what = ahead.what(&settings);
        assert!(
            what.contains("at 50-0, ahead of the stream's last id 12-0"),
            "{what}"
        );
        let remedy = ahead.remedy(&settings);
        assert!(
            remedy.contains("XGROUP SETID events event-persister 8-0"),
            "{remedy}"
        );
        see(&mut positions, "8-0", "8-0", Some("12-0"));
        assert_eq!((positions.ahead(), positions.passed_over()), (None, None));
    }

    #[test]
    fn ids_that_reach_a_group_do_not_make_it_right() {
        let mut positions = Positions::default();
        see(&mut positions, "9-0", "9-0", Some("9-0"));
        see(&mut positions, "50-0", "9-0", Some("9-0"));
        see(&mut positions, "50-0", "9-0", Some("99-0"));
        let ahead = positions.ahead().unwrap();
        let what = ahead.what(&RedisSettings::default());
        assert!(what.contains("reached it meanwhile"), "{what}");
        // Somebody decides to go on from here, or another replica did.
        let passed_over = |behind, up_to| {
            let (behind, up_to) = (id(behind), id(up_to));
            Some(PassedOver { behind, up_to })
        };
        see(&mut positions, "99-0", "9-0", Some("99-0"));
        assert_eq!(positions.passed_over(), passed_over("9-0", "99-0"));
        // Until they are counted they stay known, whatever comes next.
        see(&mut positions, "500-0", "9-0", Some("99-0"));
        see(&mut positions, "120-0", "9-0", Some("120-0"));
        assert_eq!(positions.passed_over(), passed_over("9-0", "120-0"));
        positions.counted_passed_over();
        assert_eq!(positions.passed_over(), None);
    }

    #[test]
    fn what_was_read_between_two_looks_is_not_passed_over() {
        let mut positions = Positions::default();
        see(&mut positions, "5-0", "5-0", Some("5-0"));
        positions.read_up_to(id("9-0"));
        positions.read_up_to(id("7-0"));
        see(&mut positions, "50-0", "5-0", Some("9-0"));
        let passed_over = PassedOver {
            behind: id("9-0"),
            up_to: id("12-0"),
        };
        see(&mut positions, "12-0", "5-0", Some("12-0"));
        assert_eq!(positions.passed_over(), Some(passed_over));
    }

    #[test]
    fn without_a_guard_to_go_by_it_goes_back_to_where_it_was_seen_or_to_the_beginning() {
        let settings = RedisSettings::default();
        let both = snapshot("50-0", "50-0", Some("9-0"));
        let ahead = GroupAhead::of(&both, &settings).unwrap();
        assert_eq!(ahead.back_to, BEGINNING);
        let mut positions = Positions::default();
        see(&mut positions, "7-3", "50-0", Some("9-0"));
        see(&mut positions, "50-0", "50-0", Some("9-0"));
        assert_eq!(positions.ahead().unwrap().back_to, id("7-0"));
        let mut with_pending = snapshot("50-0", "8-0", Some("9-0"));
        with_pending.pending = PendingSummary {
            smallest: Some(id("6-2")),
            ..PendingSummary::default()
        };
        let ahead = GroupAhead::of(&with_pending, &settings).unwrap();
        assert_eq!(ahead.back_to, id("6-0"), "what is pending is not stored");
        let within = snapshot("50-0", "50-0", Some("50-0"));
        assert_eq!(GroupAhead::of(&within, &settings), None);
    }

    #[test]
    fn a_group_on_a_new_stream_is_not_ahead_of_it() {
        let mut positions = Positions::default();
        see(&mut positions, "0-1", "0-1", Some("0-0"));
        assert_eq!(positions.ahead(), None);
        let new = snapshot("0-1", "0-1", Some("0-0"));
        assert_eq!(GroupAhead::of(&new, &RedisSettings::default()), None);
    }

    #[test]
    fn a_last_id_that_goes_back_is_told() {
        let mut positions = Positions::default();
        see(&mut positions, "9-0", "9-0", Some("9-0"));
        let went_back = WentBack {
            from: id("9-0"),
            to: id("7-0"),
        };
        let news = see(&mut positions, "6-0", "6-0", Some("7-0"));
        assert_eq!(news, Some(went_back));
        assert!(see(&mut positions, "9-0", "6-0", Some("5-0")).is_some());
        assert!(positions.ahead().is_some());
    }

    #[test]
    fn a_look_that_was_overtaken_by_a_read_does_not_show_a_stream_that_went_back() {
        let mut positions = Positions::default();
        see(&mut positions, "9-0", "9-0", Some("9-0"));
        let before = positions.end();
        positions.read_up_to(id("12-0"));
        let late = snapshot("10-0", "9-0", Some("10-0"));
        let settings = RedisSettings::default();
        assert_eq!(positions.see(&late, before, &settings), None);
        assert_eq!(positions.known_end(), Some(id("12-0")));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_known_from_what_is_read_and_asked_for_where_nothing_is() {
        let mut positions = Positions::default();
        see(&mut positions, "9-0", "9-0", Some("9-0"));
        for millis in 10..20 {
            tokio::time::advance(ASK_END_EVERY / 2).await;
            let id = StreamId { millis, number: 0 };
            positions.read_up_to(id);
            assert_eq!(positions.known_end(), Some(id));
        }
        // An earlier entry says nothing about the end.
        tokio::time::advance(ASK_END_EVERY).await;
        positions.read_up_to(id("15-0"));
        assert_eq!(positions.known_end(), None);
        positions.read_up_to(id("20-0"));
        positions.doubt_end();
        assert_eq!(positions.known_end(), None);
    }

    proptest! {
        /// Whatever is set to whatever: nothing unread is ever in front of where the remedy leads.
        #[test]
        fn the_way_back_leads_behind_all_that_was_not_seen_as_read(
            looks in prop::collection::vec((0_u64..20, 0_u64..20, 0_u64..20), 1..20),
        ) {
            let mut positions = Positions::default();
            let mut last_sound = None;
            for (group, guard, end) in looks {
                let [group, guard, end] = [group, guard, end].map(|millis| format!("{millis}-5"));
                see(&mut positions, &group, &guard, Some(&end));
                match positions.ahead() {
                    None => {
                        prop_assert!(id(&group) <= id(&end));
                        last_sound = Some(id(&group));
                    }
                    Some(ahead) => {
                        prop_assert!(ahead.back_to < ahead.at);
                        if let Some(last_sound) = last_sound {
                            prop_assert!(ahead.back_to <= last_sound);
                        }
                    }
                }
            }
        }
    }
}
