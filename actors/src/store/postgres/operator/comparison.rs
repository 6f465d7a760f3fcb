//! Holds rows against those that would be written, on the server: `jsonb` is compared by value, `json`
//! by its text, as the columns hold them.
//!
//! JSON that `jsonb` does not take fails the whole question, and diesel does not show the SQLSTATE. The
//! culprits are looked for; they would be refused.

use std::sync::Arc;

use diesel::pg::Pg;
use diesel::prelude::QueryResult;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Bool, Text};
use diesel_async::RunQueryDsl;

use super::audit::in_parts;
use crate::delivery::Entry;
use crate::event::{ReceivedEvent, Resource};
use crate::store::operator::answers::of_columns;
use crate::store::operator::{Compared, NUM_RESOURCES, RESOURCES};
use crate::store::postgres::arrays::Arrays;
use crate::store::postgres::connection::Connection;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::partitions::is_partitioned;
use crate::store::postgres::rows::Rows;

/// Bytes that an entry of a B-tree takes at most, less what stands in it beside the texts.
const INDEX_TAKES: usize = 2_600;

/// An event's number, whether it is there, and the columns that differ.
type Row = (i64, bool, Vec<String>);

pub(super) type MakeArrays = for<'r> fn(&Rows<'r>) -> Arrays;

/// One answer for each entry; none where it would be refused.
pub(super) async fn compare(
    connection: &mut Connection,
    entries: &[Arc<Entry>],
    arrays: MakeArrays,
) -> Result<Vec<Option<Compared>>, Failure> {
    let compare = async |connection: &mut Connection, part: &[Arc<Entry>]| {
        compare_part(connection, part, arrays).await
    };
    in_parts(connection, entries, compare, async |_, _| Ok(None)).await
}

/// None also for those that would be refused without being sent.
async fn compare_part(
    connection: &mut Connection,
    entries: &[Arc<Entry>],
    arrays: MakeArrays,
) -> Result<Vec<Option<Compared>>, Failure> {
    let rows = Rows::new(entries);
    let arrays = arrays(&rows);
    connection.begin_page().await?;
    let answers: Vec<Row> = if is_partitioned(connection).await? {
        let question = CompareEvents::<true>(arrays);
        question.load(&mut connection.pg).await?
    } else {
        let question = CompareEvents::<false>(arrays);
        question.load(&mut connection.pg).await?
    };
    connection.commit().await?;
    let mut compared = vec![None; entries.len()];
    for (number, is_there, columns) in answers {
        let row = usize::try_from(number - 1)
            .ok()
            .and_then(|at| rows.events.get(at));
        let Some((row, compared)) = row.and_then(|row| Some((row, compared.get_mut(row.index)?)))
        else {
            continue;
        };
        *compared = Some(if is_there {
            of_columns(row.event.received, columns)
        } else if may_exceed_an_index(row.event) {
            Compared::Unclear
        } else {
            Compared::Absent
        });
    }
    Ok(compared)
}

/// Of the columns in Prefect's B-trees those without a bound.
fn may_exceed_an_index(event: &ReceivedEvent) -> bool {
    let longest_related = event.related.iter().map(Resource::id).map(str::len).max();
    event.event.len() + event.resource.id().len() > INDEX_TAKES
        || longest_related.unwrap_or_default() > INDEX_TAKES
}

/// Columns of `events` that come from the event, and the type in which they are compared.
const COLUMNS: [(&str, &str); 9] = [
    ("occurred", "timestamptz"),
    ("received", "timestamptz"),
    ("event", "text"),
    ("resource_id", "text"),
    ("resource", "jsonb"),
    ("related", "jsonb"),
    ("related_resource_ids", "jsonb"),
    ("payload", "jsonb"),
    ("follows", "uuid"),
];

/// Both tables are looked into by their indexes, whatever the planner knows about them. The rows of
/// `event_resources` are compared as sorted texts, since they have no order. Where tables are partitioned,
/// the moment is part of what identifies an event.
struct CompareEvents<const BY_MOMENT: bool>(Arrays);

impl<const BY_MOMENT: bool> QueryId for CompareEvents<BY_MOMENT> {
    type QueryId = Self;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<const BY_MOMENT: bool> Query for CompareEvents<BY_MOMENT> {
    type SqlType = (BigInt, Bool, Array<Text>);
}

impl<const BY_MOMENT: bool> QueryFragment<Pg> for CompareEvents<BY_MOMENT> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT given.number, held.id IS NOT NULL, array_remove(ARRAY[");
        for (column, sql_type) in COLUMNS {
            out.push_sql(&format!(
                "CASE WHEN held.{column} IS DISTINCT FROM given.{column}::{sql_type} \
                 THEN '{column}' END, "
            ));
        }
        out.push_sql(&format!(
            "CASE WHEN theirs.lines IS NOT DISTINCT FROM ours.lines THEN NULL \
             WHEN theirs.lines @> ours.lines AND theirs.lines <@ ours.lines THEN '{NUM_RESOURCES}' \
             ELSE '{RESOURCES}' END], NULL) FROM unnest("
        ));
        self.0.push_events(out.reborrow())?;
        out.push_sql(
            ") WITH ORDINALITY AS given (id, occurred, received, event, resource_id, resource, \
             related, related_resource_ids, payload, follows, number) \
             LEFT JOIN (SELECT event_number, array_agg(line ORDER BY line COLLATE \"C\") AS lines \
             FROM (SELECT event_number, ROW(occurred, resource_id, resource_role, resource)::text \
             AS line FROM unnest(",
        );
        self.0.push_resources(out.reborrow())?;
        let [of_event, of_resources] = if BY_MOMENT {
            [
                " AND events.occurred = given.occurred",
                " AND event_resources.occurred = given.occurred",
            ]
        } else {
            [""; 2]
        };
        out.push_sql(&format!(
            ") AS r (event_number, event_id, occurred, resource_id, resource_role, resource)) AS r \
             GROUP BY event_number) AS ours ON ours.event_number = given.number \
             LEFT JOIN LATERAL (SELECT * FROM events WHERE events.id = given.id{of_event} OFFSET 0) AS held \
             ON true \
             CROSS JOIN LATERAL (SELECT array_agg(line ORDER BY line COLLATE \"C\") AS lines \
             FROM (SELECT ROW(occurred, resource_id, resource_role, resource)::text AS line \
             FROM event_resources WHERE event_resources.event_id = given.id{of_resources}) AS r) AS theirs",
        ));
        Ok(())
    }
}
