//! Whether the consumer group stands where it can stand: nowhere ahead of the stream's last id.
//!
//! `XGROUP SETID` takes any id. A group that was set ahead of all that was ever published is given
//! nothing until the ids have reached it, and what is published until then is never read. Nobody can
//! want that, and Redis says nothing. So the source stops reading, says so, and leaves the trim guard
//! where it is: then all of it is still in the stream when somebody sets the group back.
//!
//! A group that is set anywhere *within* the stream is believed: it is how somebody has entries read
//! again, or passed over.

use super::guard;
use super::replies::Sight;
use super::settings::RedisSettings;
use super::stream_id::StreamId;

/// The first id that counts for Prefect's trimming, and behind which everything is.
const BEGINNING: StreamId = StreamId {
    millis: 0,
    number: 1,
};

/// A group that stands ahead of its stream, or did and was left there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ahead {
    /// Where the group stands.
    pub(super) at: StreamId,
    /// The last id of the stream.
    pub(super) end: StreamId,
    /// Behind this is everything that may be unread.
    pub(super) back_to: StreamId,
}

impl Ahead {
    /// Of a group that was seen only now.
    pub(super) fn of(sight: &Sight, end: StreamId, settings: &RedisSettings) -> Option<Self> {
        let at = guard::find(&sight.groups, &settings.group)?.last_delivered;
        // Where groups are made, also on a stream that nothing was ever published to.
        let end = end.max(BEGINNING);
        (at > end).then(|| Self {
            at,
            end,
            back_to: Self::back_to(sight, end, None, settings),
        })
    }

    /// Where the group belongs: at the guard, which stayed behind all that was not stored, and no
    /// further than it was seen itself; else at the beginning.
    fn back_to(
        sight: &Sight,
        end: StreamId,
        last_sound: Option<StreamId>,
        settings: &RedisSettings,
    ) -> StreamId {
        let guard = guard::find(&sight.groups, &settings.guard_group)
            .map(|guard| guard.last_delivered)
            .filter(|at| settings.guard && *at <= end);
        let last_seen = last_sound.map(guard::position);
        let pending = sight.pending.smallest.map(guard::position);
        let known = guard.into_iter().chain(last_seen).min();
        let known = known.unwrap_or(BEGINNING).min(guard::position(end));
        pending.map_or(known, |pending| pending.min(known))
    }

    /// What is wrong.
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

    /// What to do about it.
    pub(super) fn remedy(&self, settings: &RedisSettings) -> String {
        format!(
            "set it back with `redis-cli XGROUP SETID {} {} {}`; what is stored already counts as \
             duplicate",
            settings.stream, settings.group, self.back_to
        )
    }
}

/// What is known of the ends of a stream, from one look at it to the next.
#[derive(Debug, Default)]
pub(super) struct Positions {
    /// The last id of the stream, when it was last asked for.
    end: Option<StreamId>,
    /// Where the group stood when it stood right.
    last_sound: Option<StreamId>,
    ahead: Option<Ahead>,
}

/// What a look brought that was not known before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// The group stands ahead of the stream.
    Ahead(Ahead),
    /// It stands within the stream again. What stands behind the first and up to the second id
    /// was passed over, if anything.
    Sound {
        /// Behind this one, up to that one.
        passed_over: Option<(StreamId, StreamId)>,
    },
    /// The stream's last id is smaller than it was: what was published last is gone.
    WentBack {
        /// What it was.
        from: StreamId,
        /// What it is.
        to: StreamId,
    },
}

impl Positions {
    /// The group that stands ahead of its stream, while it does.
    pub(super) fn ahead(&self) -> Option<Ahead> {
        self.ahead
    }

    /// The stream is known to have come this far, so that Redis need not be asked for its last id as
    /// long as nothing stands further ahead.
    pub(super) fn known_end(&self) -> Option<StreamId> {
        // While something is wrong, every look is a whole one.
        self.end.filter(|_| self.ahead.is_none())
    }

    /// Takes in what was seen; says what is new.
    pub(super) fn see(&mut self, sight: &Sight, settings: &RedisSettings) -> Vec<News> {
        let mut news = Vec::new();
        if let Some(end) = sight.end.map(|end| end.max(BEGINNING)) {
            let before = self.end.replace(end);
            if let Some(from) = before.filter(|before| *before > end) {
                news.push(News::WentBack { from, to: end });
            }
        }
        let group = guard::find(&sight.groups, &settings.group);
        let (Some(end), Some(group)) = (self.end, group) else {
            return news;
        };
        let at = group.last_delivered;
        let was = self.ahead;
        // Left where it was put, it is as wrong as before, wherever the stream has come meanwhile.
        let is_left = was.is_some_and(|was| was.at == at);
        if at > end || is_left {
            let back_to = was.map_or_else(
                || Ahead::back_to(sight, end, self.last_sound, settings),
                |was| was.back_to.min(guard::position(end)),
            );
            let ahead = Ahead { at, end, back_to };
            self.ahead = Some(ahead);
            if was.is_none() {
                news.push(News::Ahead(ahead));
            }
            return news;
        }
        self.ahead = None;
        if let Some(was) = was {
            let behind = self.last_sound.unwrap_or(was.back_to);
            news.push(News::Sound {
                passed_over: (at > behind).then_some((behind, at)),
            });
        }
        self.last_sound = Some(at);
        news
    }

    /// The group was given everything up to here: by a read of our own, between two looks.
    pub(super) fn read_up_to(&mut self, id: StreamId) {
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

    use super::super::replies::{Group, Pending};
    use super::*;

    fn id(text: &str) -> StreamId {
        text.parse().unwrap()
    }

    fn sight(group: &str, guard: &str, end: Option<&str>) -> Sight {
        let settings = RedisSettings::default();
        let standing = |name: &str, at: &str| Group {
            name: name.to_owned(),
            consumers: 0,
            pending: 0,
            last_delivered: id(at),
            lag: None,
        };
        Sight {
            groups: vec![
                standing(&settings.guard_group, guard),
                standing(&settings.group, group),
            ],
            pending: Pending::default(),
            length: 0,
            end: end.map(id),
        }
    }

    fn see(positions: &mut Positions, group: &str, guard: &str, end: Option<&str>) -> Vec<News> {
        positions.see(&sight(group, guard, end), &RedisSettings::default())
    }

    #[test]
    fn a_group_within_its_stream_is_believed_wherever_it_is_set() {
        let mut positions = Positions::default();
        assert_eq!(see(&mut positions, "5-3", "5-0", Some("9-0")), []);
        assert_eq!(positions.known_end(), Some(id("9-0")));
        for at in ["9-0", "0-1", "7-7"] {
            assert_eq!(see(&mut positions, at, "5-0", None), [], "{at}");
        }
    }

    #[test]
    fn a_group_ahead_is_told_once_and_goes_back_to_the_guard() {
        let mut positions = Positions::default();
        assert_eq!(see(&mut positions, "9-0", "8-0", Some("9-0")), []);
        let ahead = Ahead {
            at: id("50-0"),
            end: id("9-0"),
            back_to: id("8-0"),
        };
        let news = see(&mut positions, "50-0", "8-0", Some("9-0"));
        assert_eq!(news, [News::Ahead(ahead)]);
        assert_eq!(positions.known_end(), None, "asked for with every look");
        // The guard, too, may be set by somebody; what was known stays known.
        assert_eq!(see(&mut positions, "50-0", "60-0", Some("12-0")), []);
        assert_eq!(positions.ahead().unwrap().back_to, id("8-0"));
        assert_eq!(positions.for_lost_guard(), id("8-0"));
        let settings = RedisSettings::default();
        let ahead = positions.ahead().unwrap();
        assert!(
            ahead
                .what(&settings)
                .contains("at 50-0, ahead of the stream's last id 12-0")
        );
        let remedy = ahead.remedy(&settings);
        assert!(
            remedy.contains("XGROUP SETID events event-persister 8-0"),
            "{remedy}"
        );
        let sound = News::Sound { passed_over: None };
        assert_eq!(see(&mut positions, "8-0", "8-0", Some("12-0")), [sound]);
        assert_eq!(positions.ahead(), None);
    }

    #[test]
    fn ids_that_reach_a_group_do_not_make_it_right() {
        let mut positions = Positions::default();
        see(&mut positions, "9-0", "9-0", Some("9-0"));
        see(&mut positions, "50-0", "9-0", Some("9-0"));
        assert_eq!(see(&mut positions, "50-0", "9-0", Some("99-0")), []);
        let ahead = positions.ahead().unwrap();
        let what = ahead.what(&RedisSettings::default());
        assert!(what.contains("reached it meanwhile"), "{what}");
        // Somebody decides to go on from here, or another replica did.
        let passed_over = Some((id("9-0"), id("99-0")));
        let news = see(&mut positions, "99-0", "9-0", Some("99-0"));
        assert_eq!(news, [News::Sound { passed_over }]);
    }

    #[test]
    fn what_was_read_between_two_looks_is_not_passed_over() {
        let mut positions = Positions::default();
        see(&mut positions, "5-0", "5-0", Some("5-0"));
        positions.read_up_to(id("9-0"));
        positions.read_up_to(id("7-0"));
        see(&mut positions, "50-0", "5-0", Some("9-0"));
        positions.read_up_to(id("60-0"));
        let passed_over = Some((id("9-0"), id("12-0")));
        let news = see(&mut positions, "12-0", "5-0", Some("12-0"));
        assert_eq!(news, [News::Sound { passed_over }]);
    }

    #[test]
    fn without_a_guard_to_go_by_it_goes_back_to_where_it_was_seen_or_to_the_beginning() {
        let settings = RedisSettings::default();
        let both = sight("50-0", "50-0", Some("9-0"));
        let ahead = Ahead::of(&both, id("9-0"), &settings).unwrap();
        assert_eq!(ahead.back_to, BEGINNING);
        let mut positions = Positions::default();
        see(&mut positions, "7-3", "50-0", Some("9-0"));
        see(&mut positions, "50-0", "50-0", Some("9-0"));
        assert_eq!(positions.ahead().unwrap().back_to, id("7-0"));
        let mut with_pending = sight("50-0", "8-0", Some("9-0"));
        with_pending.pending.smallest = Some(id("6-2"));
        let ahead = Ahead::of(&with_pending, id("9-0"), &settings).unwrap();
        assert_eq!(ahead.back_to, id("6-0"), "what is pending is not stored");
        assert_eq!(Ahead::of(&both, id("50-0"), &settings), None);
    }

    #[test]
    fn a_group_on_a_new_stream_is_not_ahead_of_it() {
        let mut positions = Positions::default();
        assert_eq!(see(&mut positions, "0-1", "0-1", Some("0-0")), []);
        assert_eq!(positions.ahead(), None);
        let new = sight("0-1", "0-1", Some("0-0"));
        assert_eq!(Ahead::of(&new, id("0-0"), &RedisSettings::default()), None);
    }

    #[test]
    fn a_last_id_that_goes_back_is_told() {
        let mut positions = Positions::default();
        see(&mut positions, "9-0", "9-0", Some("9-0"));
        let went_back = News::WentBack {
            from: id("9-0"),
            to: id("7-0"),
        };
        let news = see(&mut positions, "6-0", "6-0", Some("7-0"));
        assert_eq!(news, [went_back]);
        let news = see(&mut positions, "9-0", "6-0", Some("5-0"));
        assert!(matches!(news[..], [News::WentBack { .. }, News::Ahead(_)]));
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
