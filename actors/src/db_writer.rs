//! db_writer
