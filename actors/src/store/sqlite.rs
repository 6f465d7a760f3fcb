//! Store: SQLite.
