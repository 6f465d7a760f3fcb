//! Rows that go from one table to another with the same columns.

use diesel::dsl::sql;
use diesel::sql_types::{Array, Text};
use diesel_async::RunQueryDsl as _;

use super::layout::Tables;
use super::{Connection, Failure};

/// The columns of a table that can be written: not those that the server generates.
pub(super) struct Columns(Vec<String>);

impl Columns {
    pub(super) async fn of(connection: &mut Connection, table: &str) -> Result<Self, Failure> {
        let question = format!(
            "SELECT array_agg(quote_ident(attname) ORDER BY attnum) FROM pg_catalog.pg_attribute \
             WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped \
             AND attgenerated = ''"
        );
        let names = sql::<Array<Text>>(&question).get_result(&mut connection.pg);
        Ok(Self(names.await?))
    }

    pub(super) fn list(&self) -> String {
        self.0.join(", ")
    }

    /// The same, each of a row with this name.
    pub(super) fn list_of(&self, row: &str) -> String {
        let names = self.0.iter().map(|name| format!("{row}.{name}"));
        names.collect::<Vec<_>>().join(", ")
    }
}

/// Statements that move the rows under a condition from two tables to two others, but for those that are
/// there already.
pub(in crate::store::postgres) async fn move_rows(
    connection: &mut Connection,
    from: &Tables,
    to: &Tables,
    condition: &str,
) -> Result<String, Failure> {
    let mut statements = String::new();
    for (from, to) in from.both().into_iter().zip(to.both()) {
        let columns = Columns::of(connection, &from).await?.list();
        statements.push_str(&format!(
            "WITH moved AS (DELETE FROM {from} WHERE {condition} RETURNING {columns}) \
             INSERT INTO {to} ({columns}) SELECT {columns} FROM moved ON CONFLICT DO NOTHING;\n"
        ));
    }
    Ok(statements)
}
