//! The command `archive`: one file for each of its commands.

#[cfg(not(feature = "archive"))]
pub(crate) use without_archive::{judge, run, tell_if_unset};

#[cfg(feature = "archive")]
mod check;
#[cfg(feature = "archive")]
mod list;
#[cfg(feature = "archive")]
mod restore;
#[cfg(feature = "archive")]
mod verify;

#[cfg(feature = "archive")]
pub(crate) use check::{judge, tell_if_unset};
#[cfg(feature = "archive")]
pub(crate) use with_archive::run;

#[cfg(feature = "archive")]
mod with_archive {
    use anyhow::Context as _;
    use event_persister_actors::archive::Archive;
    use indicatif::MultiProgress;

    use super::{list, restore, verify};
    use crate::cli::ArchiveCommand;
    use crate::config::Config;
    use crate::wiring;

    /// Runs one of the commands; whether it did all that it was asked, and all is well.
    pub(crate) async fn run(
        config: &Config,
        screen: &MultiProgress,
        command: &ArchiveCommand,
    ) -> anyhow::Result<bool> {
        match command {
            ArchiveCommand::List(output) => {
                list::run(wiring::archivable(config).as_ref(), output.json).await?;
                Ok(true)
            }
            ArchiveCommand::Verify(output) => {
                let place = archive(config)?.place();
                verify::run(wiring::archivable(config).as_ref(), &place, output.json).await
            }
            ArchiveCommand::Restore(flags) => {
                restore::run(config, screen, archive(config)?.place(), flags).await
            }
        }
    }

    fn archive(config: &Config) -> anyhow::Result<Archive> {
        wiring::archive(config).context(
            "no archive is configured: set archive.url (EVENT_PERSISTER_ARCHIVE_URL) to where its files are",
        )
    }
}

#[cfg(not(feature = "archive"))]
mod without_archive {
    use anyhow::bail;
    use indicatif::MultiProgress;

    use crate::cli::ArchiveCommand;
    use crate::config::Config;
    use crate::wiring::Finding;

    /// Finds nothing: a build without an archive that is told to have one does not start.
    pub(crate) async fn judge(_: &Config) -> Vec<Finding> {
        Vec::new()
    }

    /// Such a build knows nothing of archives.
    pub(crate) fn tell_if_unset(_: &Config) -> impl Future<Output = ()> + use<> {
        std::future::ready(())
    }

    pub(crate) async fn run(
        _: &Config,
        _: &MultiProgress,
        _: &ArchiveCommand,
    ) -> anyhow::Result<bool> {
        bail!(
            "this build has no archive: build it with `--features archive`, or take a package or an image"
        );
    }
}
