//! Where the trim guard and the group stand, for people.

use redis::RedisResult;

use crate::source::operator::{GroupProgress, GuardReport};
use crate::source::redis::position::GroupAhead;
use crate::source::redis::snapshot::{PendingSummary, find};

use super::RedisOperator;

impl RedisOperator {
    pub(super) async fn guard_report(&self) -> RedisResult<GuardReport> {
        let settings = &self.settings;
        let mut commands = self.commands().await?;
        let mut report = GuardReport {
            stream: settings.stream.clone(),
            stream_length: None,
            guard_group: settings.guard_group.clone(),
            guard_position: None,
            last_id: None,
            misplaced: None,
            group: settings.group.clone(),
            group_progress: None,
        };
        if !commands.stream_exists().await? {
            return Ok(report);
        }
        report.stream_length = Some(commands.length().await?);
        let mut groups = commands.all_groups().await?;
        let mut last_id = Some(commands.last_id().await?);
        let mut pending = PendingSummary::default();
        if find(&groups, &settings.group).is_some() {
            // All at one moment, since a guard is compared with what is pending.
            let snapshot = commands.look(None).await?;
            let ahead = GroupAhead::of(&snapshot, settings);
            report.misplaced = ahead.map(|ahead| ahead.what_and_remedy(settings));
            last_id = snapshot.end;
            (groups, pending) = (snapshot.groups, snapshot.pending);
        }
        report.last_id = last_id.map(|id| id.to_string());
        report.guard_position =
            find(&groups, &settings.guard_group).map(|guard| guard.last_delivered.to_string());
        report.group_progress = find(&groups, &settings.group).map(|group| GroupProgress {
            last_delivered: group.last_delivered.to_string(),
            smallest_pending: pending.smallest.map(|id| id.to_string()),
            num_pending: pending.num,
            num_consumers: group.num_consumers,
            lag: group.lag,
        });
        Ok(report)
    }
}
