//! A store whose retention archives first.
//!
//! A pass goes file by file. The oldest expired events of one day are written to a hidden file; then they are
//! removed in steps as small as without an archive; then the file gets the name under which readers see it.
//! While rows are removed the next file is written, where the store lets both happen at once. Its manifest is
//! opened by the transaction that closes the one before, so that no other process comes in between.
//!
//! A partition of PostgreSQL of which nothing is kept is written to files, all of them hidden, and dropped at
//! once. If an event has come to it meanwhile, or somebody reads it all the while, the files are forgotten, and it
//! goes file by file.
//!
//! # What a crash leaves
//!
//! | it happens | the database | the archive | the next pass |
//! |---|---|---|---|
//! | while a file is written | all rows; an open manifest, *writing* | half a hidden file, or one | forgets the manifest, removes the file, begins again |
//! | between two removals | a part of the rows; an open manifest, *removing* | a hidden file, and perhaps half of the next | removes the rest, which the file names, and half a file |
//! | after the last removal | no rows; the manifest, *removed*, and perhaps the next one, open | a hidden file, and perhaps half of the next | gives it its name; forgets the next |
//! | after the renaming | no rows; the manifest, *removed* | a visible file | notes it |
//! | between copy and removal in S3 | the same | a visible file, and a hidden one | copies and removes again |
//! | before a partition is dropped | all rows; an open manifest, *writing* | hidden files | forgets the manifest, removes the files, begins again |
//! | after it was dropped | no rows; the manifests, *removed* | hidden files, visible ones | gives each its name |
//!
//! A database that went back in time, to a backup or in a failover, lacks manifests of files that readers
//! see. They are adopted before anything of their day is written. Rows that an adopted file, or any other,
//! holds already are removed without being written again. So are those that were restored. Where it has an older
//! state of a manifest, the file is taken from where it is by now.
//!
//! The outcome of a change may be unknown, as of a commit whose answer was lost. Then the pass ends, and the next one
//! goes by what the database says. A hidden file is removed only by whom the database tells that it was not claimed.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Archive;
use super::names::{self, Day, INCOMING};
use super::place::PlaceError;
use super::reading::{ArchivedFile, FileFault};
use super::recovery::{Begin, away, confirm, identify};
use super::writing::{FileWriter, WriteError};
use crate::failpoint;
use crate::status::error_chain;
use crate::store::archivable::{
    ArchivableRows, Budget, EventRow, FileContent, FileState, Manifest, ManifestChange,
    NamedContent, Partition, Position, Removal, RemovalStep,
};
use crate::store::{
    Contention, Cutoffs, EventStore, Removed, StoreError, StoreLayer, TrimStep, Trimmed,
};

/// How often whoever writes a file says that it is at work.
const BEAT: Duration = Duration::from_secs(1);

/// Who has not said so for this long is gone. Shorter takes the work from somebody who is slow and has to
/// begin again; longer makes a pass after a crash wait.
const SILENCE: Duration = Duration::from_secs(6);

/// Events and bytes that are read at a time. A first page is small, since events may be large.
const FIRST_PAGE: usize = 200;
const MAX_PAGE: usize = 2_000;
const PAGE_BYTES: usize = 4 << 20;

/// A store whose retention writes events to an archive before it removes them.
pub struct ArchivingStore {
    below: Arc<dyn EventStore>,
    rows: Arc<dyn ArchivableRows>,
    archive: Archive,
    pass: Mutex<Pass>,
}

/// How far a pass has come; forgotten at its end.
struct Pass {
    /// Of the archive, once it is known to be the right one and nothing is left of earlier passes.
    archive_id: Option<String>,
    /// The last event that a file was written for.
    behind: Position,
    /// The day whose files are all known.
    day: Option<Day>,
    /// Partitions that end here or earlier are not dropped whole: it was tried.
    not_whole_until: i64,
    work: Option<Work>,
    /// The next file, which is written while the rows of another are removed.
    ahead: Option<Writing>,
}

impl Default for Pass {
    fn default() -> Self {
        Self {
            archive_id: None,
            behind: Position::FIRST,
            day: None,
            not_whole_until: i64::MIN,
            work: None,
            ahead: None,
        }
    }
}

enum Work {
    Remove(Removing),
    Empty(Partition),
    Publish(Vec<NamedContent>),
}

/// Rows that are in the archive, and on their way out of the tables.
struct Removing {
    /// `None` where other files hold all of them.
    file: Option<NamedContent>,
    is_claimed: bool,
    events: Vec<Position>,
    num_removed: usize,
    /// Whether it was seen to what comes behind these.
    has_looked_ahead: bool,
}

impl Removing {
    fn new(file: Option<NamedContent>, events: Vec<Position>) -> Self {
        Self {
            file,
            is_claimed: false,
            events,
            num_removed: 0,
            has_looked_ahead: false,
        }
    }

    /// Where the next step ends.
    fn next_end(&self, max_events: NonZeroUsize) -> usize {
        let end = self.num_removed.saturating_add(max_events.get());
        self.events.len().min(end)
    }
}

/// A step that removed nothing, after which there is more to do.
fn nothing_removed() -> TrimStep {
    TrimStep::Removed(Removed {
        rows: Trimmed::default(),
        took: Duration::ZERO,
        // Nobody has looked.
        others_write: true,
        with_their_table: false,
    })
}

impl StoreLayer for ArchivingStore {
    fn below(&self) -> &dyn EventStore {
        self.below.as_ref()
    }

    fn trim<'a>(
        &'a self,
        cutoffs: &'a Cutoffs,
        max_events: NonZeroUsize,
    ) -> LocalBoxFuture<'a, Result<TrimStep, StoreError>> {
        Box::pin(async move {
            let mut pass = self.pass.lock().await;
            let step = self.step(&mut pass, cutoffs, max_events).await;
            match &step {
                // One that took too long is made again, smaller.
                Ok(TrimStep::Removed(_)) | Err(StoreError::TooSlow { .. }) => {}
                Ok(TrimStep::Finished) => {
                    self.archive.stats.works();
                    self.end(&mut pass).await;
                }
                Ok(TrimStep::TakenByAnother) => self.end(&mut pass).await,
                Err(error) => {
                    self.archive.stats.failed(error_chain(error));
                    self.end(&mut pass).await;
                }
            }
            step
        })
    }
}

impl ArchivingStore {
    /// A layer over a store and the rows of the same database.
    pub fn new(
        below: Arc<dyn EventStore>,
        rows: Arc<dyn ArchivableRows>,
        archive: Archive,
    ) -> Self {
        Self {
            below,
            rows,
            archive,
            pass: Mutex::default(),
        }
    }

    async fn end(&self, pass: &mut Pass) {
        if let Some(ahead) = std::mem::take(pass).ahead {
            ahead.give_up(self).await;
        }
    }

    async fn step(
        &self,
        pass: &mut Pass,
        cutoffs: &Cutoffs,
        max_events: NonZeroUsize,
    ) -> Result<TrimStep, StoreError> {
        let archive_id = match &pass.archive_id {
            Some(id) => id.clone(),
            None => {
                self.rows.prepare().await?;
                let found = self.page(cutoffs, &Position::FIRST, i64::MAX, 1).await?;
                let begin = match found.is_empty() {
                    true => Begin::Note,
                    false => Begin::Archive,
                };
                let id = identify(&self.archive.place, self.rows.as_ref(), begin).await?;
                let Some(id) = id else {
                    return self.rows.remove_strays(cutoffs, max_events).await;
                };
                if !self.recover(pass).await? {
                    return Ok(TrimStep::TakenByAnother);
                }
                pass.archive_id = Some(id.clone());
                id
            }
        };
        match pass.work.take() {
            Some(Work::Empty(partition)) => self.empty(pass, partition, &archive_id, cutoffs).await,
            Some(Work::Remove(removing)) => {
                self.remove(pass, removing, &archive_id, cutoffs, max_events)
                    .await
            }
            Some(Work::Publish(mut files)) if !files.is_empty() => {
                let file = files.remove(0);
                // The others have their turn even where this one takes too long.
                pass.work = Some(Work::Publish(files));
                self.publish(&file).await?;
                Ok(nothing_removed())
            }
            Some(Work::Publish(_)) | None => {
                let written = match pass.ahead.take() {
                    Some(ahead) => self.finish_file(pass, ahead, cutoffs).await?,
                    None => self.write_next(pass, &archive_id, cutoffs).await?,
                };
                match written {
                    Written::Something(work) => {
                        pass.work = Some(work);
                        Ok(nothing_removed())
                    }
                    Written::TakenByAnother => Ok(TrimStep::TakenByAnother),
                    // The search began in the middle; it is over only when one from the beginning finds nothing.
                    Written::Nothing if pass.behind != Position::FIRST => {
                        pass.behind = Position::FIRST;
                        Ok(nothing_removed())
                    }
                    Written::Nothing => self.rows.remove_strays(cutoffs, max_events).await,
                }
            }
        }
    }

    /// Removes some rows of a file. Meanwhile as many are written to the next one.
    async fn remove(
        &self,
        pass: &mut Pass,
        mut removing: Removing,
        archive_id: &str,
        cutoffs: &Cutoffs,
        max_events: NonZeroUsize,
    ) -> Result<TrimStep, StoreError> {
        let is_last = removing.next_end(max_events) == removing.events.len();
        let (step, ahead) = if is_last {
            // Whose manifest is open changes here, so that nothing else may ask for it.
            let ahead = pass.ahead.take();
            let next = ahead.as_ref().map(|ahead| ahead.file.as_str());
            let step = self.remove_some(&mut removing, max_events, next).await;
            (step, ahead)
        } else {
            let ahead = self
                .look_ahead(pass, &mut removing, archive_id, cutoffs)
                .await;
            let ahead = self.write_ahead(ahead, cutoffs, max_events);
            join(self.remove_some(&mut removing, max_events, None), ahead).await
        };
        pass.ahead = ahead;
        if is_last && matches!(step, Ok(TrimStep::Removed(_))) {
            if let Some(ahead) = &mut pass.ahead {
                failpoint::pass("archive::after-beginning");
                ahead.opened.clone_from(&ahead.file);
            }
            let file = removing.file.take();
            pass.work = file.map(|file| Work::Publish(vec![file]));
        } else {
            pass.work = Some(Work::Remove(removing));
        }
        step
    }

    /// With the last rows the manifest of the `next` file is opened.
    async fn remove_some(
        &self,
        removing: &mut Removing,
        max_events: NonZeroUsize,
        next: Option<&str>,
    ) -> Result<TrimStep, StoreError> {
        let end = removing.next_end(max_events);
        let Removing {
            file,
            is_claimed,
            events,
            num_removed,
            ..
        } = removing;
        let removal = Removal {
            events: events.get(*num_removed..end).unwrap_or_default(),
            change: match file {
                None => ManifestChange::None,
                Some(NamedContent { file, .. }) if *is_claimed => ManifestChange::Beat(file),
                Some(NamedContent { file, content }) => ManifestChange::Claim(file, content),
            },
            is_last: end == events.len(),
            next,
        };
        match self.rows.remove(removal).await? {
            RemovalStep::TakenByAnother => {
                if let Some(NamedContent { file, .. }) = file
                    && !*is_claimed
                {
                    self.forget(file).await;
                }
                Ok(TrimStep::TakenByAnother)
            }
            RemovalStep::Removed(removed) => {
                failpoint::pass("archive::after-removal");
                *is_claimed = true;
                *num_removed = end;
                Ok(TrimStep::Removed(removed))
            }
        }
    }

    /// What is written already of the next file, or its beginning. `None` where there is none, or where it has to
    /// wait: what fails here is tried again, and told, when its turn comes.
    async fn look_ahead(
        &self,
        pass: &mut Pass,
        removing: &mut Removing,
        archive_id: &str,
        cutoffs: &Cutoffs,
    ) -> Option<Writing> {
        if let Some(ahead) = pass.ahead.take() {
            return Some(ahead);
        }
        let opened = removing.file.as_ref()?.file.clone();
        // What is behind a file of an earlier pass is not known.
        let is_behind = removing.events.last() <= Some(&pass.behind);
        let may_read = self.below.contention() != Contention::WriteLock;
        if std::mem::replace(&mut removing.has_looked_ahead, true) || !is_behind || !may_read {
            return None;
        }
        let (first, partition) = self.find_next(pass, cutoffs).await.ok()??;
        if partition.is_some() {
            return None;
        }
        let file = names::file(first.occurred);
        let begun = Writing::begin(self, pass, &first, [&opened, &file], archive_id).await;
        begun.ok()
    }

    async fn write_ahead(
        &self,
        ahead: Option<Writing>,
        cutoffs: &Cutoffs,
        num_events: NonZeroUsize,
    ) -> Option<Writing> {
        let mut ahead = ahead?;
        let written = ahead.write(self, cutoffs, num_events.get()).await;
        if written.is_err() {
            ahead.give_up(self).await;
            return None;
        }
        failpoint::pass("archive::after-writing-ahead");
        Some(ahead)
    }

    /// Shows a file to readers. Does it again where that was done before.
    async fn publish(&self, file: &NamedContent) -> Result<(), StoreError> {
        let NamedContent { file, content } = file;
        let place = &self.archive.place;
        let hidden = names::incoming(file);
        let size = |listed: super::place::Listed| listed.num_bytes;
        match place.look(&hidden).await.map_err(away)?.map(size) {
            Some(num_bytes) if num_bytes == content.num_bytes => {
                place.publish(&hidden, file).await.map_err(away)?;
            }
            Some(num_bytes) => return Err(damaged(file, &hidden, num_bytes, content)),
            None => match place.look(file).await.map_err(away)?.map(size) {
                Some(num_bytes) if num_bytes == content.num_bytes => {}
                Some(num_bytes) => return Err(damaged(file, file, num_bytes, content)),
                None => {
                    return Err(StoreError::unavailable(format!(
                        "{file} is gone from the archive {place}, and its {} events are in no table any \
                         more: put it, or {hidden}, back from a copy; nothing is removed until then",
                        content.num_events
                    )));
                }
            },
        }
        failpoint::pass("archive::after-publishing");
        self.rows.published(file).await?;
        self.archive.stats.published(content);
        log::debug!(
            "events were archived archive.file={file} archive.events={} archive.bytes={}",
            content.num_events,
            content.num_bytes
        );
        Ok(())
    }

    /// Finishes what earlier passes left; whether nobody else is at work.
    async fn recover(&self, pass: &mut Pass) -> Result<bool, StoreError> {
        let mut taken_over = None;
        for manifest in self.rows.manifests(true).await? {
            match (manifest.state, manifest.content.clone()) {
                (FileState::Removed, Some(content)) => {
                    let file = manifest.file;
                    self.publish(&NamedContent { file, content }).await?;
                }
                (FileState::Removing, Some(content)) => {
                    if !self.is_abandoned(&manifest).await? {
                        return Ok(false);
                    }
                    let opened = self.open_wherever(&manifest.file, &content).await?;
                    let positions = opened.positions().map_err(away)?;
                    log::info!(
                        "a removal that was cut off goes on archive.file={} archive.events={}",
                        manifest.file,
                        content.num_events
                    );
                    let file = manifest.file;
                    taken_over = Some(file.clone());
                    pass.work = Some(Work::Remove(Removing {
                        is_claimed: true,
                        ..Removing::new(Some(NamedContent { file, content }), positions)
                    }));
                }
                (FileState::Writing | FileState::Removing | FileState::Removed, _) => {
                    if !self.is_abandoned(&manifest).await? {
                        return Ok(false);
                    }
                    self.rows.discard(&manifest.file).await?;
                }
                (FileState::Archived, _) => {}
            }
        }
        self.clear_up(taken_over.as_deref()).await
    }

    /// A file that is hidden as long as its rows are removed; unless the database went back to that time.
    async fn open_wherever(
        &self,
        file: &str,
        content: &FileContent,
    ) -> Result<ArchivedFile, StoreError> {
        let place = &self.archive.place;
        let opened = match place.open(&names::incoming(file), Some(content)).await {
            Err(FileFault::Place(error)) if error.is_missing() => {
                place.open(file, Some(content)).await
            }
            opened => opened,
        };
        opened.map_err(away)
    }

    /// Whether nobody works on a file, although its manifest is open.
    async fn is_abandoned(&self, manifest: &Manifest) -> Result<bool, StoreError> {
        let began = Instant::now();
        let need_not_wait = failpoint::is_set("archive::nobody-is-at-work");
        while !need_not_wait && began.elapsed() < SILENCE {
            tokio::time::sleep(BEAT / 2).await;
            let unfinished = self.rows.manifests(true).await?;
            let now = unfinished.iter().find(|other| other.file == manifest.file);
            let is_as_before =
                now.is_some_and(|now| (now.beats, now.state) == (manifest.beats, manifest.state));
            if !is_as_before {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes hidden files that nobody will show; not while somebody else is at work. Listed before the manifests are
    /// read: a manifest is opened before any file is written.
    async fn clear_up(&self, taken_over: Option<&str>) -> Result<bool, StoreError> {
        let place = &self.archive.place;
        let listed = place.list(INCOMING).await.map_err(away)?;
        let manifests = self.rows.manifests(true).await?;
        let is_open = |manifest: &Manifest| match manifest.state {
            FileState::Writing => true,
            FileState::Removing => taken_over != Some(&manifest.file),
            FileState::Removed | FileState::Archived => false,
        };
        if manifests.iter().any(is_open) {
            return Ok(false);
        }
        let hidden = |manifest: &Manifest| names::incoming(&manifest.file);
        let named: HashSet<String> = manifests.iter().map(hidden).collect();
        let mut left: HashSet<String> = listed.into_iter().map(|listed| listed.path).collect();
        left.retain(|path| !named.contains(path));
        if !left.is_empty() {
            // A folder may have lost the renaming in a power failure.
            for manifest in self.rows.manifests(false).await? {
                let hidden = hidden(&manifest);
                if left.contains(&hidden)
                    && let Some(content) = manifest.content
                    && place.look(&manifest.file).await.map_err(away)?.is_none()
                {
                    left.remove(&hidden);
                    let file = manifest.file;
                    self.publish(&NamedContent { file, content }).await?;
                }
            }
        }
        for path in &left {
            place.remove(path).await.map_err(away)?;
        }
        let swept = place.sweep(|path| named.contains(path)).await;
        swept.map(|()| true).map_err(away)
    }

    /// Gives up the file whose manifest is open; whether it was not claimed, and never will be. Otherwise the next
    /// pass sees what is to be done with it.
    async fn forget(&self, file: &str) -> bool {
        match self.rows.discard(file).await {
            Ok(true) => self.remove_hidden(file).await,
            Ok(false) => return false,
            Err(error) => {
                let error = error_chain(&error);
                log::debug!("a file that was given up could not be forgotten error={error}");
                return false;
            }
        }
        true
    }

    async fn remove_hidden(&self, file: &str) {
        if let Err(error) = self.archive.place.remove(&names::incoming(file)).await {
            let error = error_chain(&error);
            log::debug!("a file that was given up could not be removed error={error}");
        }
    }

    /// Notes files of a day that readers see and no manifest names.
    async fn adopt_unknown(&self, day: Day, archive_id: &str) -> Result<(), StoreError> {
        let place = &self.archive.place;
        let listed = place.list(&day.folder()).await.map_err(away)?;
        let manifests = self.rows.manifests_in(&day.folder()).await?;
        let mut by_checksum: HashMap<String, String> = manifests
            .iter()
            .filter_map(|manifest| {
                Some((
                    manifest.content.as_ref()?.sha256.clone(),
                    manifest.file.clone(),
                ))
            })
            .collect();
        for listed in listed
            .into_iter()
            .filter(|listed| names::is_visible(&listed.path))
        {
            let path = listed.path;
            if manifests.iter().any(|manifest| manifest.file == path) {
                continue;
            }
            let opened = place.open(&path, None).await.map_err(away)?;
            if opened.archive_id() != archive_id {
                return Err(StoreError::unavailable(format!(
                    "{path} in the archive {place} belongs to another archive: move it away; nothing is \
                     removed until then"
                )));
            }
            let content = opened.content().map_err(away)?;
            if let Some(original) = by_checksum.get(&content.sha256) {
                log::warn!(
                    "a file in the archive is a copy of another: who reads all files sees its events twice; \
                     remove it archive.file={path} archive.copy_of={original}"
                );
                continue;
            }
            log::warn!(
                "the database did not know a file of its archive: it is older than the archive, as after a \
                 restored backup or a failover; events that both hold stay in the archive alone \
                 archive.file={path} archive.events={}",
                content.num_events
            );
            self.rows.adopt(&path, &content).await?;
            by_checksum.insert(content.sha256, path);
        }
        Ok(())
    }

    /// Writes the next file.
    ///
    /// Its manifest is opened before its rows are read: what was read before may have been archived by another
    /// process meanwhile. Only while a manifest is open, nobody else archives anything.
    async fn write_next(
        &self,
        pass: &mut Pass,
        archive_id: &str,
        cutoffs: &Cutoffs,
    ) -> Result<Written, StoreError> {
        let Some((first, partition)) = self.find_next(pass, cutoffs).await? else {
            return Ok(Written::Nothing);
        };
        let file = names::file(first.occurred);
        if !self.rows.begin(&file).await? {
            return Ok(Written::TakenByAnother);
        }
        failpoint::pass("archive::after-beginning");
        if let Some(mut partition) = partition {
            partition.opened = file;
            return Ok(Written::Something(Work::Empty(partition)));
        }
        match Writing::begin(self, pass, &first, [&file, &file], archive_id).await {
            Ok(writing) => self.finish_file(pass, writing, cutoffs).await,
            Err(stopped) => {
                self.forget(&file).await;
                stopped.none().map(|()| Written::TakenByAnother)
            }
        }
    }

    /// The next event that has to go, and its partition if that may be dropped as a whole.
    async fn find_next(
        &self,
        pass: &mut Pass,
        cutoffs: &Cutoffs,
    ) -> Result<Option<(Position, Option<Partition>)>, StoreError> {
        let found = self.page(cutoffs, &pass.behind, i64::MAX, 1).await?;
        let Some(first) = found.into_iter().next().map(|row| row.position) else {
            return Ok(None);
        };
        failpoint::pass("archive::after-search");
        let partition = self.rows.whole_partition(cutoffs, &first).await?;
        let partition = partition.filter(|partition| {
            pass.not_whole_until < partition.until
                && (pass.behind == Position::FIRST || pass.behind.occurred < partition.from)
        });
        Ok(Some((first, partition)))
    }

    /// Writes what a file lacks; then its rows are removed.
    async fn finish_file(
        &self,
        pass: &mut Pass,
        writing: Writing,
        cutoffs: &Cutoffs,
    ) -> Result<Written, StoreError> {
        let file = writing.file.clone();
        let Some((written, events)) = self.write_file(pass, writing, cutoffs).await? else {
            return Ok(Written::TakenByAnother);
        };
        if written.is_none() {
            self.forget(&file).await;
        }
        Ok(Written::Something(Work::Remove(Removing::new(
            written, events,
        ))))
    }

    /// Writes the next file of a partition; after the last one drops it.
    async fn empty(
        &self,
        pass: &mut Pass,
        mut partition: Partition,
        archive_id: &str,
        cutoffs: &Cutoffs,
    ) -> Result<TrimStep, StoreError> {
        let next = self.page(cutoffs, &pass.behind, partition.until, 1).await?;
        if let Some(first) = next.first().map(|row| &row.position) {
            let file = names::file(first.occurred);
            let files = [partition.opened.as_str(), file.as_str()];
            let written = match Writing::begin(self, pass, first, files, archive_id).await {
                Ok(writing) => self.write_file(pass, writing, cutoffs).await,
                Err(stopped) => stopped.none().map(|()| None),
            };
            let Ok(Some((written, events))) = written else {
                self.give_up(&partition).await;
                return written.map(|_| TrimStep::TakenByAnother);
            };
            partition.num_events += events.len() as u64;
            partition.fingerprint += self.rows.fingerprint(&events);
            partition.files.extend(written);
            pass.work = Some(Work::Empty(partition));
            return Ok(nothing_removed());
        }
        if let Some(removed) = self.rows.drop_partition(&partition).await? {
            failpoint::pass("archive::after-removal");
            pass.work = Some(Work::Publish(partition.files));
            return Ok(TrimStep::Removed(removed));
        }
        log::info!(
            "a partition was written to or read all the while, and is archived file by file"
        );
        pass.not_whole_until = partition.until;
        pass.behind = Position::FIRST;
        self.give_up(&partition).await;
        Ok(nothing_removed())
    }

    /// Its files have no manifests; as long as the open one is there, it was not dropped.
    async fn give_up(&self, partition: &Partition) {
        if self.forget(&partition.opened).await {
            for file in &partition.files {
                self.remove_hidden(&file.file).await;
            }
        }
    }

    /// Writes a file up to its end, while a manifest is open, which may be that of the file: whether there is a
    /// file, and the events that the archive has now. `None` where another process has given it up.
    async fn write_file(
        &self,
        pass: &mut Pass,
        mut writing: Writing,
        cutoffs: &Cutoffs,
    ) -> Result<Option<(Option<NamedContent>, Vec<Position>)>, StoreError> {
        if let Err(stopped) = writing.write(self, cutoffs, usize::MAX).await {
            writing.give_up(self).await;
            return stopped.none().map(|()| None);
        }
        let mut written = None;
        if let Some(writer) = writing.writer {
            let names = [&writing.opened, &writing.file, &writing.archive_id];
            written = self.complete(names.map(String::as_str), writer).await?;
            if written.is_none() {
                return Ok(None);
            }
        }
        (pass.behind, pass.day) = (writing.last, Some(writing.day));
        self.archive.stats.known(writing.num_known);
        Ok(Some((written, writing.events)))
    }

    async fn page(
        &self,
        cutoffs: &Cutoffs,
        behind: &Position,
        before: i64,
        max_events: usize,
    ) -> Result<Vec<EventRow>, StoreError> {
        let max_events = max_events.min(self.archive.file_events.get());
        let budget = Budget {
            max_events: NonZeroUsize::new(max_events).unwrap_or(NonZeroUsize::MIN),
            max_bytes: PAGE_BYTES,
        };
        self.rows.expired(cutoffs, behind, before, budget).await
    }

    /// Waits until a file is in the archive whole; `None` where another process has given it up.
    async fn complete(
        &self,
        [opened, file, archive_id]: [&str; 3],
        writer: FileWriter,
    ) -> Result<Option<NamedContent>, StoreError> {
        let finished = self.while_beating(opened, writer.finish()).await;
        let content = match finished {
            Ok(Some(Ok(Some(content)))) => content,
            Ok(None) => return Ok(None),
            Ok(Some(Ok(None))) => {
                self.forget(file).await;
                return Err(StoreError::unavailable("a file of the archive was empty"));
            }
            Ok(Some(Err(error))) => {
                self.forget(file).await;
                return Err(away(error));
            }
            Err(error) => return Err(error),
        };
        failpoint::pass("archive::after-upload");
        let hidden = names::incoming(file);
        let looked = self.archive.place.look(&hidden).await.map_err(away)?;
        let num_bytes = looked.map_or(0, |listed| listed.num_bytes);
        if num_bytes != content.num_bytes {
            self.forget(file).await;
            return Err(damaged(file, &hidden, num_bytes, &content));
        }
        confirm(&self.archive.place, archive_id).await?;
        let file = file.to_owned();
        Ok(Some(NamedContent { file, content }))
    }

    /// Waits for a part of the work on a file, and says meanwhile that somebody is at it; `None` once another
    /// process has given the file up.
    async fn while_beating<T>(
        &self,
        file: &str,
        work: impl Future<Output = T>,
    ) -> Result<Option<T>, StoreError> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(Some(done)),
                () = tokio::time::sleep(BEAT) => {
                    if !self.rows.beat(file).await? {
                        return Ok(None);
                    }
                }
            }
        }
    }
}

fn damaged(file: &str, at: &str, num_bytes: u64, content: &FileContent) -> StoreError {
    StoreError::unavailable(format!(
        "{at} in the archive has {num_bytes} bytes, and {file} was written with {}: it is damaged; nothing is \
         removed until it is whole",
        content.num_bytes
    ))
}

enum Written {
    Something(Work),
    Nothing,
    TakenByAnother,
}

enum Stopped {
    TakenByAnother,
    Failed(StoreError),
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl From<WriteError> for Stopped {
    fn from(error: WriteError) -> Self {
        Self::Failed(away(error))
    }
}

impl From<PlaceError> for Stopped {
    fn from(error: PlaceError) -> Self {
        Self::Failed(away(error))
    }
}

impl Stopped {
    /// Nothing, where another process has the work.
    fn none(self) -> Result<(), StoreError> {
        match self {
            Self::TakenByAnother => Ok(()),
            Self::Failed(error) => Err(error),
        }
    }
}

/// The work on one file, up to its end.
struct Writing {
    /// The manifest that is open.
    opened: String,
    file: String,
    archive_id: String,
    day: Day,
    known: Known,
    /// Made for the first event that the archive does not hold.
    writer: Option<FileWriter>,
    events: Vec<Position>,
    num_known: usize,
    /// The last event that was looked at.
    last: Position,
    /// What was read behind it.
    page: Vec<EventRow>,
    page_size: usize,
    beaten: Instant,
}

impl Writing {
    async fn begin(
        store: &ArchivingStore,
        pass: &Pass,
        first: &Position,
        [opened, file]: [&str; 2],
        archive_id: &str,
    ) -> Result<Self, Stopped> {
        let day = Day::of(first.occurred);
        if pass.day != Some(day) {
            store.adopt_unknown(day, archive_id).await?;
        }
        let manifests = store.rows.manifests_in(&day.folder()).await?;
        if manifests
            .iter()
            .any(|manifest| manifest.state == FileState::Removed)
        {
            // Another process is about to show it, and nobody may read it now.
            return Err(Stopped::TakenByAnother);
        }
        Ok(Self {
            opened: opened.to_owned(),
            file: file.to_owned(),
            archive_id: archive_id.to_owned(),
            day,
            known: Known::new(manifests),
            writer: None,
            events: Vec::new(),
            num_known: 0,
            // Events that come late, of an earlier day, are left to the next search.
            last: pass.behind.clone().max(day.before()),
            page: Vec::new(),
            page_size: 0,
            beaten: Instant::now(),
        })
    }

    /// Takes in so many events, or a few more, until the file is full or the day is over.
    async fn write(
        &mut self,
        store: &ArchivingStore,
        cutoffs: &Cutoffs,
        num_events: usize,
    ) -> Result<(), Stopped> {
        let enough = self.events.len().saturating_add(num_events);
        if self.page_size == 0 {
            self.page_size = FIRST_PAGE;
            let before = self.day.end();
            self.page = store.page(cutoffs, &self.last, before, FIRST_PAGE).await?;
        }
        while self.events.len() < enough
            && let Some(row) = self.page.last()
        {
            self.last = row.position.clone();
            let page = std::mem::take(&mut self.page);
            let num_taken = self.events.len() + page.len();
            let left = store.archive.file_events.get().saturating_sub(num_taken);
            // As many as fit into the budget.
            self.page_size = match page.len() < self.page_size {
                true => page.len(),
                false => (2 * self.page_size).min(MAX_PAGE),
            };
            // The next page is read while this one is written.
            let (last, before) = (self.last.clone(), self.day.end());
            let size = self.page_size.min(left);
            let next = async {
                match size {
                    0 => Ok(Vec::new()),
                    _ => store.page(cutoffs, &last, before, size).await,
                }
            };
            let (taken, next) = join(self.take_all(store, page), next).await;
            taken?;
            if self.writer.as_ref().is_some_and(FileWriter::is_large) {
                break;
            }
            self.page = next?;
            self.beat(store).await?;
        }
        Ok(())
    }

    async fn take_all(
        &mut self,
        store: &ArchivingStore,
        rows: Vec<EventRow>,
    ) -> Result<(), Stopped> {
        for row in rows {
            self.take(store, row).await?;
        }
        Ok(())
    }

    async fn take(&mut self, store: &ArchivingStore, row: EventRow) -> Result<(), Stopped> {
        self.events.push(row.position.clone());
        let archive = &store.archive;
        if self.known.holds(archive, &row.position).await? {
            self.num_known += 1;
            return Ok(());
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let path = names::incoming(&self.file);
                let writer = FileWriter::new(&archive.place, &path, &self.archive_id).await?;
                self.writer.insert(writer)
            }
        };
        match store.while_beating(&self.opened, writer.push(row)).await? {
            Some(pushed) => Ok(pushed?),
            None => Err(Stopped::TakenByAnother),
        }
    }

    async fn beat(&mut self, store: &ArchivingStore) -> Result<(), Stopped> {
        if self.beaten.elapsed() >= BEAT {
            self.beaten = Instant::now();
            if !store.rows.beat(&self.opened).await? {
                return Err(Stopped::TakenByAnother);
            }
        }
        Ok(())
    }

    async fn give_up(self, store: &ArchivingStore) {
        if let Some(writer) = self.writer {
            writer.abort().await;
        }
        store.forget(&self.file).await;
    }
}

/// The files of a day that the archive has already. Of those whose range holds an event, the positions are read.
#[derive(Default)]
struct Known(Vec<(NamedContent, Option<HashSet<Position>>)>);

impl Known {
    fn new(manifests: Vec<Manifest>) -> Self {
        let archived = manifests
            .into_iter()
            .filter(|manifest| manifest.state == FileState::Archived);
        let named = archived.filter_map(|Manifest { file, content, .. }| {
            let content = content?;
            Some((NamedContent { file, content }, None))
        });
        Self(named.collect())
    }

    /// Whether a file holds an event; positions are asked for in order.
    async fn holds(&mut self, archive: &Archive, position: &Position) -> Result<bool, Stopped> {
        self.0.retain(|(named, _)| named.content.last >= *position);
        for (named, positions) in &mut self.0 {
            if named.content.first > *position {
                continue;
            }
            let positions = match positions {
                Some(positions) => positions,
                None => {
                    let opened = archive.place.open(&named.file, Some(&named.content)).await;
                    let read = opened.and_then(|opened| opened.positions());
                    positions.insert(read.map_err(away)?.into_iter().collect())
                }
            };
            if positions.contains(position) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
