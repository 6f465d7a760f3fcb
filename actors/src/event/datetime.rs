//! Datetimes as Prefect reads them.
