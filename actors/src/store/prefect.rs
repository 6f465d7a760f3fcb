//! The versions of Prefect that this was tried with, 3.8.0, 3.8.8 and 3.9.1, by the last revisions of their schemas.

#[cfg(feature = "postgres")]
pub(super) const REVISIONS_ON_POSTGRES: [&str; 3] =
    ["9e9dadc36797", "d4a7e1c93f52", "91e2b8f3d6a4"];

#[cfg(feature = "sqlite")]
pub(super) const REVISIONS_ON_SQLITE: [&str; 3] = ["f416ea180ae1", "a3b9c7d2e5f1", "27d8f4e1a6c9"];
