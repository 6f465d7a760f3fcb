//! The archive that retention writes to, in builds that have one.

#[cfg(feature = "archive")]
pub(crate) use with_archive::*;
#[cfg(not(feature = "archive"))]
pub(crate) use without_archive::*;

#[cfg(feature = "archive")]
mod with_archive {
    use std::sync::Arc;

    use anyhow::Context as _;
    pub(crate) use event_persister_actors::archive::Archive;
    use event_persister_actors::archive::ArchivingStore;
    use event_persister_actors::store::EventStore;
    use event_persister_actors::store::archivable::ArchivableRows;
    use event_persister_actors::store::postgres::PostgresStore;
    use event_persister_actors::store::sqlite::SqliteStore;

    use super::super::clock;
    use super::super::stores::{Missing, Settings};
    use crate::config::Config;

    /// The configured archive, if any. Looks at nothing yet.
    pub(crate) fn archive(config: &Config) -> Option<Archive> {
        Archive::new(&config.archive)
    }

    pub(crate) fn validate(config: &Config) -> anyhow::Result<()> {
        match archive(config) {
            None => Ok(()),
            Some(archive) => archive.place().validate().context("archive.url"),
        }
    }

    /// The manifests of the configured database, for a command.
    pub(crate) fn archivable(config: &Config) -> Arc<dyn ArchivableRows> {
        match Settings::new(config, Missing::Ignore) {
            Settings::Sqlite(settings) => Arc::new(SqliteStore::new(settings, clock())),
            Settings::Postgres(settings) => Arc::new(PostgresStore::new(*settings, clock())),
        }
    }

    /// Has retention archive first, if there is an archive.
    pub(crate) fn archiving<S: EventStore + ArchivableRows + 'static>(
        store: S,
        archive: Option<&Archive>,
    ) -> Arc<dyn EventStore> {
        let store = Arc::new(store);
        match archive {
            None => store,
            Some(archive) => {
                let rows = Arc::clone(&store) as Arc<dyn ArchivableRows>;
                Arc::new(ArchivingStore::new(store, rows, archive.clone()))
            }
        }
    }
}

#[cfg(not(feature = "archive"))]
mod without_archive {
    use std::sync::Arc;

    use anyhow::bail;
    use event_persister_actors::archive::ArchiveStats;
    use event_persister_actors::store::EventStore;

    use crate::config::Config;

    /// There is none.
    #[derive(Clone)]
    pub(crate) enum Archive {}

    impl Archive {
        pub(crate) fn stats(&self) -> ArchiveStats {
            match *self {}
        }
    }

    pub(crate) fn archive(_: &Config) -> Option<Archive> {
        None
    }

    /// What retention removes must not be gone where somebody asked for an archive.
    pub(crate) fn validate(config: &Config) -> anyhow::Result<()> {
        if let Some(url) = &config.archive.url {
            bail!(
                "archive.url is {url}, and this build has no archive: build it with `--features archive`, or \
                 take a package or an image"
            );
        }
        Ok(())
    }

    pub(crate) fn archiving<S: EventStore + 'static>(
        store: S,
        _: Option<&Archive>,
    ) -> Arc<dyn EventStore> {
        Arc::new(store)
    }
}
