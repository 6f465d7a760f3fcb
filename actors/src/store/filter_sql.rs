//! The statements that find events by a filter, for both databases.
//!
//! They mean what those of Prefect mean, down to what `LIKE` takes for the same letter: SQLite takes large and
//! small letters of ASCII for the same, PostgreSQL does not. A name that begins with a text is compared with a
//! pattern, in which `%` and `_` mean what they mean to `LIKE`, as in Prefect.
//!
//! Only what a person typed is bound; everything else stands in the text.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::event::{ID_LABEL, ROLE_LABEL};
use crate::reader::{
    AnyResourceFilter, Buckets, Countable, EventFilter, Labels, MAX_PAGE_BYTES, NameFilter,
    Occurred, Order, Part, Place, RelatedFilter, ResourceFilter, TextQuery,
};

/// The dialects of the two databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    #[cfg(feature = "postgres")]
    Postgres,
    #[cfg(feature = "sqlite")]
    Sqlite,
}

/// A value that is bound to a statement.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Moment(DateTime<Utc>),
    Id(Uuid),
    #[cfg(feature = "postgres")]
    Number(i64),
    Float(f64),
}

/// A statement and its values, in the order of their numbers.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) text: String,
    pub(super) values: Vec<Value>,
    dialect: Dialect,
}

/// The columns that are read of an event.
const COLUMNS: [&str; 8] = [
    "id", "occurred", "received", "event", "resource", "related", "payload", "follows",
];

/// What a group takes beside its two texts, as a row and in JSON: names of fields, a number and two times.
const GROUP_BYTES: usize = 160;

/// The most groups that there is room for.
const MAX_GROUPS: usize = MAX_PAGE_BYTES / GROUP_BYTES;

impl Statement {
    fn new(dialect: Dialect) -> Self {
        Self {
            text: String::new(),
            values: Vec::new(),
            dialect,
        }
    }

    /// Some of a filter's events.
    pub(super) fn page(dialect: Dialect, filter: &EventFilter, part: Part) -> Self {
        let mut statement = Self::new(dialect);
        let (direction, behind) = match filter.order {
            Order::Asc => ("ASC", ">"),
            Order::Desc => ("DESC", "<"),
        };
        let order = format!("ORDER BY occurred {direction}, id {direction}");
        let mut condition = statement.filter(&match part.after {
            Some(place) if !filter.resource.distinct => narrowed(filter, place),
            _ => filter.clone(),
        });
        let after = part.after.map(|place| {
            let (occurred, id) = (statement.moment(place.occurred), statement.id(place.id));
            format!("(occurred, id) {behind} ({occurred}, {id})")
        });
        if filter.resource.distinct {
            let place = format!("row_number() OVER (PARTITION BY resource_id {order})");
            condition = format!(
                "events.id IN (SELECT numbered.id FROM (SELECT events.id AS id, {place} AS nth FROM events \
                 WHERE {condition}) AS numbered WHERE nth = 1)"
            );
        }
        if let Some(after) = after {
            condition = format!("{condition} AND {after}");
        }
        let columns = COLUMNS.map(|column| statement.column(column)).join(", ");
        let num_bytes = ["resource", "related", "payload"].map(|column| statement.size(column));
        let num_bytes = num_bytes.join(" + ");
        // As many as there is room for, but always one: a list of large events has more pages. What is sorted are ids
        // alone; sizes are asked of the first fifty, and texts are read once it is known which have room.
        let limit = part.limit;
        const SAME: &str = "events.id = page.id AND events.occurred = page.occurred";
        statement.text = format!(
            "SELECT {columns}, found FROM (SELECT id, occurred, count(*) OVER () AS found, \
             sum(num_bytes) OVER sorted AS num_bytes, row_number() OVER sorted AS place \
             FROM (SELECT events.id AS id, events.occurred AS occurred, {num_bytes} AS num_bytes \
             FROM (SELECT events.id AS id, events.occurred AS occurred \
             FROM events WHERE {condition} {order} LIMIT {limit}) AS page JOIN events ON {SAME}) AS sized \
             WINDOW sorted AS ({order})) AS page JOIN events ON {SAME} \
             WHERE page.num_bytes <= {MAX_PAGE_BYTES} OR page.place = 1 ORDER BY page.place",
        );
        statement
    }

    /// One event.
    pub(super) fn event(dialect: Dialect, id: Uuid) -> Self {
        let mut statement = Self::new(dialect);
        let columns = COLUMNS.map(|column| statement.column(column)).join(", ");
        let id = statement.id(id);
        statement.text = format!("SELECT {columns} FROM events WHERE id = {id}");
        statement
    }

    /// How many events a filter finds.
    pub(super) fn total(dialect: Dialect, filter: &EventFilter) -> Self {
        let mut statement = Self::new(dialect);
        let condition = statement.filter(filter);
        let what = match filter.resource.distinct {
            true => "count(DISTINCT resource_id)",
            false => "count(*)",
        };
        statement.text = format!("SELECT {what} AS total FROM events WHERE {condition}");
        statement
    }

    /// How many events there are of each kind.
    pub(super) fn counts(dialect: Dialect, filter: &EventFilter, countable: &Countable) -> Self {
        let mut statement = Self::new(dialect);
        let condition = statement.filter(filter);
        statement.text = match countable {
            Countable::Time(buckets) => {
                let bucket = statement.bucket(buckets);
                format!(
                    "SELECT {bucket} AS bucket, count(*) AS num FROM events WHERE {condition} \
                     GROUP BY bucket"
                )
            }
            Countable::Event => statement.groups("event", "event", &condition),
            Countable::Resource => {
                let names = ["prefect.resource.name", "prefect.name"];
                let [name, old_name] = names.map(|label| statement.label("events", label));
                let label = format!("coalesce({name}, {old_name}, resource_id)");
                statement.groups("resource_id", &label, &condition)
            }
        };
        statement
    }

    /// The same statements, for a database that is to tell how it finds what they ask for.
    #[cfg(feature = "testing")]
    pub(super) fn explained(
        dialect: Dialect,
        filter: &EventFilter,
        countable: Option<&Countable>,
    ) -> Vec<Self> {
        let mut statements = match countable {
            Some(countable) => vec![Self::counts(dialect, filter, countable)],
            None => {
                let part = Part {
                    limit: crate::reader::MAX_PAGE,
                    after: None,
                    counts: true,
                };
                vec![
                    Self::total(dialect, filter),
                    Self::page(dialect, filter, part),
                ]
            }
        };
        let explain = match dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => "EXPLAIN (ANALYZE, BUFFERS)",
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => "EXPLAIN QUERY PLAN",
        };
        for statement in &mut statements {
            statement.text = format!("{explain} {}", statement.text);
        }
        statements
    }

    /// The ids of what was written last.
    pub(super) fn written_since(dialect: Dialect, moment: DateTime<Utc>, limit: usize) -> Self {
        let mut statement = Self::new(dialect);
        let moment = statement.moment(moment);
        statement.text = format!(
            "SELECT id FROM events WHERE updated >= {moment} ORDER BY updated DESC LIMIT {limit}"
        );
        statement
    }

    /// Events by a value, which is shown by the label that it had last.
    fn groups(&self, value: &str, label: &str, condition: &str) -> String {
        const ORDER: &str = "ORDER BY num DESC, label ASC, value ASC";
        let groups = format!(
            "SELECT value, label, CAST(sum(num) AS bigint) AS num, min(oldest) AS oldest, max(latest) AS latest \
             FROM (SELECT value, first_value(label) OVER (PARTITION BY value ORDER BY latest DESC) AS label, \
             num, oldest, latest \
             FROM (SELECT {value} AS value, {label} AS label, max(occurred) AS latest, \
             min(occurred) AS oldest, count(*) AS num FROM events WHERE {condition} \
             GROUP BY value, label) AS counted) AS labelled \
             GROUP BY value, label {ORDER} LIMIT {MAX_GROUPS}"
        );
        // As many as there is room for, but always one, as on a page.
        format!(
            "SELECT value, label, num, oldest, latest FROM (SELECT value, label, num, oldest, latest, \
             sum({GROUP_BYTES} + octet_length(value) + octet_length(label)) OVER sorted AS num_bytes, \
             row_number() OVER sorted AS place FROM ({groups}) AS most WINDOW sorted AS ({ORDER})) AS sized \
             WHERE num_bytes <= {MAX_PAGE_BYTES} OR place = 1 ORDER BY place"
        )
    }

    /// The number of the bucket that an event lies in.
    fn bucket(&mut self, buckets: &Buckets) -> String {
        // Twice rounded down, as in Prefect: to the beginning of a bucket, and to its number.
        let seconds = buckets.micros() as f64 / 1e6;
        let seconds = self.bind(Value::Float(seconds));
        match self.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => {
                let pivot = self.moment(Buckets::pivot());
                let micros = self.bind(Value::Number(buckets.micros()));
                // From what is before all time nothing can be taken away.
                const OCCURRED: &str = "greatest(occurred, timestamptz '0001-01-01 00:00+00')";
                format!(
                    "CAST(floor(CAST(floor(CAST(extract(epoch FROM {OCCURRED} - {pivot}) AS numeric) * 1000000 \
                     / {micros}) * {micros} / 1000000 AS double precision) / {seconds}) AS bigint)"
                )
            }
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => {
                // A conversion cuts off, which rounds up what is less than zero.
                let pivot = Buckets::pivot().timestamp();
                let place = format!("((strftime('%s', occurred) - {pivot}) / {seconds})");
                format!("(CAST({place} AS integer) - ({place} < CAST({place} AS integer)))")
            }
        }
    }

    /// The condition for all that the filter wants, but for `distinct`.
    fn filter(&mut self, filter: &EventFilter) -> String {
        let occurred = self.occurred("events", filter);
        let mut all = vec![occurred];
        self.names(&filter.event, &mut all);
        self.resource(filter, &filter.resource, &mut all);
        for related in &filter.related {
            self.related(filter, related, &mut all);
        }
        for any_resource in &filter.any_resource {
            self.any_resource(filter, any_resource, &mut all);
        }
        if !filter.id.is_empty() {
            let ids: Vec<_> = filter.id.iter().map(|id| self.id(*id)).collect();
            all.push(format!("events.id IN ({})", ids.join(", ")));
        }
        if let Some(query) = &filter.text {
            self.search(query, &mut all);
        }
        joined("AND", &all)
    }

    fn occurred(&mut self, table: &str, filter: &EventFilter) -> String {
        let since = self.moment(filter.occurred.since);
        let until = self.moment(filter.occurred.until);
        format!("{table}.occurred >= {since} AND {table}.occurred <= {until}")
    }

    fn names(&mut self, filter: &NameFilter, all: &mut Vec<String>) {
        const COLUMN: &str = "events.event";
        if !filter.prefix.is_empty() {
            all.push(self.begins(COLUMN, &filter.prefix));
        }
        for prefix in &filter.exclude_prefix {
            let begins = self.begins(COLUMN, std::slice::from_ref(prefix));
            all.push(format!("NOT {begins}"));
        }
        if !filter.name.is_empty() {
            all.push(self.is_one_of(COLUMN, &filter.name));
        }
        if !filter.exclude_name.is_empty() {
            let is_one_of = self.is_one_of(COLUMN, &filter.exclude_name);
            all.push(format!("NOT {is_one_of}"));
        }
    }

    fn resource(&mut self, filter: &EventFilter, resource: &ResourceFilter, all: &mut Vec<String>) {
        const COLUMN: &str = "events.resource_id";
        if !resource.id.is_empty() {
            // The table of events has no index that begins with the resource.
            let has_id = self.is_one_of("event_resources.resource_id", &resource.id);
            let is_primary = "event_resources.resource_role = ''".to_owned();
            all.push(self.has_resource(filter, &[has_id, is_primary]));
            // A related resource may have an empty role. PostgreSQL takes two conditions for independent, and would
            // expect far too few events; what stands in a CASE it does not take into account.
            let is_it = self.is_one_of(COLUMN, &resource.id);
            all.push(format!("CASE WHEN {is_it} THEN true ELSE false END"));
        }
        if !resource.id_prefix.is_empty() {
            all.push(self.begins(COLUMN, &resource.id_prefix));
        }
        if !resource.labels.is_empty() {
            let mut conditions = vec!["event_resources.resource_role = ''".to_owned()];
            // The table has no label for the role, so patterns for it find nothing.
            self.labels(&resource.labels, false, &mut conditions);
            all.push(self.has_resource(filter, &conditions));
        }
    }

    fn related(&mut self, filter: &EventFilter, related: &RelatedFilter, all: &mut Vec<String>) {
        let mut conditions = Vec::new();
        if !related.id.is_empty() {
            conditions.push(self.is_one_of("event_resources.resource_id", &related.id));
        }
        if !related.role.is_empty() {
            conditions.push(self.is_one_of("event_resources.resource_role", &related.role));
        }
        if !related.resources_in_roles.is_empty() {
            let pairs = related.resources_in_roles.iter().map(|(id, role)| {
                let (id, role) = (self.string(id), self.string(role));
                format!(
                    "event_resources.resource_id = {id} AND event_resources.resource_role = {role}"
                )
            });
            let pairs: Vec<_> = pairs.collect();
            conditions.push(joined("OR", &pairs));
        }
        let is_asked = !conditions.is_empty() || !related.labels.is_empty();
        self.labels(&related.labels, true, &mut conditions);
        if !is_asked {
            return;
        }
        // Without a role the primary resource is not meant.
        if related.role.is_empty() {
            conditions.push("event_resources.resource_role <> ''".to_owned());
        }
        all.push(self.has_resource(filter, &conditions));
    }

    fn any_resource(
        &mut self,
        filter: &EventFilter,
        resource: &AnyResourceFilter,
        all: &mut Vec<String>,
    ) {
        let mut conditions = Vec::new();
        if !resource.id.is_empty() {
            conditions.push(self.is_one_of("event_resources.resource_id", &resource.id));
        }
        if !resource.id_prefix.is_empty() {
            conditions.push(self.begins("event_resources.resource_id", &resource.id_prefix));
        }
        let is_asked = !conditions.is_empty() || !resource.labels.is_empty();
        self.labels(&resource.labels, true, &mut conditions);
        if is_asked {
            all.push(self.has_resource(filter, &conditions));
        }
    }

    /// Whether an event has a resource for which all of the conditions hold.
    fn has_resource(&mut self, filter: &EventFilter, conditions: &[String]) -> String {
        let occurred = self.occurred("event_resources", filter);
        let mut all = vec![occurred];
        all.extend_from_slice(conditions);
        format!(
            "events.id IN (SELECT event_resources.event_id FROM event_resources WHERE {})",
            joined("AND", &all)
        )
    }

    fn labels(&mut self, labels: &Labels, with_role: bool, conditions: &mut Vec<String>) {
        for (label, patterns) in &labels.0 {
            let condition = match label.as_str() {
                ID_LABEL if patterns.is_empty() => continue,
                ID_LABEL => self.matches("event_resources.resource_id", patterns),
                ROLE_LABEL if with_role && patterns.is_empty() => continue,
                ROLE_LABEL if with_role => {
                    self.is_one_of("event_resources.resource_role", patterns)
                }
                _ if patterns.is_empty() => "1 = 0".to_owned(),
                label => {
                    let value = self.label("event_resources", label);
                    self.matches(&value, patterns)
                }
            };
            conditions.push(condition);
        }
    }

    fn search(&mut self, query: &str, all: &mut Vec<String>) {
        let query = TextQuery::parse(query);
        let parts = ["event", "resource", "related", "payload"].map(|part| self.column_of(part));
        let text = format!("lower({})", parts.join(" || ' ' || "));
        let mut contains = |term: &String| {
            let pattern = escaped(&term.to_lowercase(), '/', "%_");
            let pattern = self.string(&format!("%{pattern}%"));
            format!("{text} LIKE {pattern} ESCAPE '/'")
        };
        if !query.include.is_empty() {
            let terms: Vec<_> = query.include.iter().map(&mut contains).collect();
            all.push(joined("OR", &terms));
        }
        for term in &query.exclude {
            let contains = contains(term);
            all.push(format!("NOT ({contains})"));
        }
        all.extend(query.required.iter().map(contains));
    }

    fn begins(&mut self, column: &str, prefixes: &[String]) -> String {
        let patterns = prefixes.iter().map(|prefix| {
            let pattern = self.string(&format!("{prefix}%"));
            format!("{column} LIKE {pattern}")
        });
        let patterns: Vec<_> = patterns.collect();
        joined("OR", &patterns)
    }

    fn matches(&mut self, value: &str, patterns: &[String]) -> String {
        let alternatives = patterns.iter().map(|pattern| {
            let (not, pattern) = match pattern.strip_prefix('!') {
                Some(pattern) => ("NOT ", pattern),
                None => ("", pattern.as_str()),
            };
            let pattern = escaped(pattern, '\\', "%_")
                .replace('*', "%")
                .replace('?', "_");
            let pattern = self.string(&pattern);
            format!("{value} {not}LIKE {pattern} ESCAPE '\\'")
        });
        let alternatives: Vec<_> = alternatives.collect();
        joined("OR", &alternatives)
    }

    fn is_one_of(&mut self, column: &str, texts: &[String]) -> String {
        let texts: Vec<_> = texts.iter().map(|text| self.string(text)).collect();
        format!("({column} IN ({}))", texts.join(", "))
    }

    /// The text of a label of a resource; null where it has none.
    fn label(&mut self, table: &str, label: &str) -> String {
        match self.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => {
                let label = self.string(label);
                format!("({table}.resource ->> {label})")
            }
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => {
                // SQLite takes a NUL for the end of a label, and would find others. One with a quote or a backslash
                // is found by Prefect neither.
                if label.contains(['\0', '"', '\\']) {
                    return "NULL".to_owned();
                }
                let path = match label.contains(|c: char| c.is_ascii_control()) {
                    true => format!("$.{}", serde_json::Value::from(label)),
                    false => format!("$.\"{label}\""),
                };
                let path = self.string(&path);
                format!("json_extract({table}.resource, {path})")
            }
        }
    }

    /// A column as it is read, under its own name.
    fn column(&self, column: &str) -> String {
        match column {
            "resource" | "related" | "payload" => format!("{} AS {column}", self.column_of(column)),
            _ => format!("events.{column} AS {column}"),
        }
    }

    /// How many bytes a column's text has.
    fn size(&self, column: &str) -> String {
        match self.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => format!("octet_length({})", self.column_of(column)),
            // Of a column itself it knows that without reading it.
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => format!("octet_length(events.{column})"),
        }
    }

    /// A column of text, or of JSON as text.
    fn column_of(&self, column: &str) -> String {
        format!("CAST(events.{column} AS text)")
    }

    fn moment(&mut self, moment: DateTime<Utc>) -> String {
        self.bind(Value::Moment(moment))
    }

    fn id(&mut self, id: Uuid) -> String {
        self.bind(Value::Id(id))
    }

    fn string(&mut self, text: &str) -> String {
        let text = match self.dialect {
            // It has no text with a NUL, and takes none.
            #[cfg(feature = "postgres")]
            Dialect::Postgres => text.replace('\0', "\u{FFFD}"),
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => text.to_owned(),
        };
        self.bind(Value::Text(text))
    }

    fn bind(&mut self, value: Value) -> String {
        self.values.push(value);
        let number = self.values.len();
        match self.dialect {
            #[cfg(feature = "postgres")]
            Dialect::Postgres => format!("${number}"),
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => format!("?{number}"),
        }
    }
}

/// A filter whose events begin at a place. SQLite finds what lies behind it by the index only if the bounds say so.
fn narrowed(filter: &EventFilter, place: Place) -> EventFilter {
    let mut narrowed = filter.clone();
    let Occurred { since, until } = &mut narrowed.occurred;
    match filter.order {
        Order::Asc => *since = place.occurred.max(*since),
        Order::Desc => *until = place.occurred.min(*until),
    }
    narrowed
}

/// Conditions of which all or one must hold. Nested by halves: both databases count how deep an expression is.
fn joined(operator: &str, conditions: &[String]) -> String {
    match conditions {
        [] => "1 = 1".to_owned(),
        [one] => format!("({one})"),
        many => {
            let (left, right) = many.split_at(many.len() / 2);
            format!(
                "({} {operator} {})",
                joined(operator, left),
                joined(operator, right)
            )
        }
    }
}

/// A text in which these letters, and the one that escapes, mean themselves.
fn escaped(text: &str, escape: char, special: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == escape || special.contains(c) {
            out.push(escape);
        }
        out.push(c);
    }
    out
}
