//! A store whose retention archives first.
//!
//! A pass goes file by file. The oldest expired events of one day are written to a hidden file; then they are
//! removed in steps as small as without an archive; then the file gets the name under which readers see it.
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
//! | between two removals | a part of the rows; an open manifest, *removing* | a hidden file | removes the rest, which the file names |
//! | after the last removal | no rows; the manifest, *removed* | a hidden file | gives it its name |
//! | after the renaming | no rows; the manifest, *removed* | a visible file | notes it |
//! | between copy and removal in S3 | the same | a visible file, and a hidden one | copies and removes again |
//! | before a partition is dropped | all rows; an open manifest, *writing* | hidden files | forgets the manifest, removes the files, begins again |
//! | after it was dropped | no rows; the manifests, *removed* | hidden files, visible ones | gives each its name |
//!
//! A database that went back in time, to a backup or in a failover, lacks manifests of files that readers
//! see. They are adopted before anything of their day is written. Rows that an adopted file, or any other,
//! holds already are removed without being written again. So are those that were restored.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Archive;
use super::names::{self, Day, INCOMING};
use super::place::PlaceError;
use super::recovery::{away, identify};
use super::writing::{FileWriter, WriteError};
use crate::failpoint;
use crate::status::error_chain;
use crate::store::archivable::{
    ArchivableRows, Budget, EventRow, FileContent, FileState, Manifest, ManifestChange,
    NamedContent, Partition, Position, Removal, RemovalStep,
};
use crate::store::{Cutoffs, EventStore, Removed, StoreError, StoreLayer, TrimStep, Trimmed};

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
}

impl Default for Pass {
    fn default() -> Self {
        Self {
            archive_id: None,
            behind: Position::FIRST,
            day: None,
            not_whole_until: i64::MIN,
            work: None,
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
                    *pass = Pass::default();
                }
                Ok(TrimStep::TakenByAnother) => *pass = Pass::default(),
                Err(error) => {
                    self.archive.stats.failed(error_chain(error));
                    *pass = Pass::default();
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
                let id = identify(&self.archive.place, self.rows.as_ref(), true).await?;
                let id = id.ok_or_else(|| StoreError::unavailable("the archive has no id"))?;
                if !self.recover(pass).await? {
                    return Ok(TrimStep::TakenByAnother);
                }
                pass.archive_id = Some(id.clone());
                id
            }
        };
        let emptying = pass.work.take_if(|work| matches!(work, Work::Empty(_)));
        if let Some(Work::Empty(partition)) = emptying {
            return self.empty(pass, partition, &archive_id, cutoffs).await;
        }
        match &mut pass.work {
            Some(Work::Remove(removing)) => {
                let (step, next) = self.remove(removing, max_events).await?;
                if let Some(next) = next {
                    pass.work = next.map(|file| Work::Publish(vec![file]));
                }
                Ok(step)
            }
            Some(Work::Publish(files)) if !files.is_empty() => {
                self.publish(&files.remove(0)).await?;
                Ok(nothing_removed())
            }
            Some(Work::Publish(_) | Work::Empty(_)) | None => {
                match self.write_next(pass, &archive_id, cutoffs).await? {
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

    /// Removes some rows; the second part says what comes after the last ones.
    async fn remove(
        &self,
        removing: &mut Removing,
        max_events: NonZeroUsize,
    ) -> Result<(TrimStep, Option<Option<NamedContent>>), StoreError> {
        let Removing {
            file,
            is_claimed,
            events,
            num_removed,
        } = removing;
        let end = events.len().min(*num_removed + max_events.get());
        let removal = Removal {
            events: events.get(*num_removed..end).unwrap_or_default(),
            change: match file {
                None => ManifestChange::None,
                Some(NamedContent { file, .. }) if *is_claimed => ManifestChange::Beat(file),
                Some(NamedContent { file, content }) => ManifestChange::Claim(file, content),
            },
            is_last: end == events.len(),
        };
        match self.rows.remove(removal).await? {
            RemovalStep::TakenByAnother => {
                if let Some(NamedContent { file, .. }) = file
                    && !*is_claimed
                {
                    self.forget(file).await;
                }
                Ok((TrimStep::TakenByAnother, None))
            }
            RemovalStep::Removed(removed) => {
                failpoint::pass("archive::after-removal");
                *is_claimed = true;
                *num_removed = end;
                let next = removal.is_last.then(|| file.take());
                Ok((TrimStep::Removed(removed), next))
            }
        }
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
        let place = &self.archive.place;
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
                    let hidden = names::incoming(&manifest.file);
                    let opened = place.open(&hidden, Some(&content)).await.map_err(away)?;
                    let positions = opened.positions().map_err(away)?;
                    log::info!(
                        "a removal that was cut off goes on archive.file={} archive.events={}",
                        manifest.file,
                        content.num_events
                    );
                    let file = manifest.file;
                    pass.work = Some(Work::Remove(Removing {
                        file: Some(NamedContent { file, content }),
                        is_claimed: true,
                        events: positions,
                        num_removed: 0,
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
        self.clear_up().await
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

    /// Removes hidden files that no manifest names; not while somebody is writing. Listed before the manifests
    /// are read: a manifest is opened before any file is written.
    async fn clear_up(&self) -> Result<bool, StoreError> {
        let place = &self.archive.place;
        let listed = place.list(INCOMING).await.map_err(away)?;
        let manifests = self.rows.manifests(true).await?;
        let is_open = |manifest: &Manifest| manifest.state == FileState::Writing;
        if manifests.iter().any(is_open) {
            return Ok(false);
        }
        let named: HashSet<String> = manifests
            .iter()
            .map(|manifest| names::incoming(&manifest.file))
            .collect();
        for listed in listed {
            if !named.contains(&listed.path) {
                place.remove(&listed.path).await.map_err(away)?;
            }
        }
        let swept = place.sweep(|path| named.contains(path)).await;
        swept.map(|()| true).map_err(away)
    }

    /// Gives a file up that was not claimed. What fails here is cleared up by the next pass.
    async fn forget(&self, file: &str) {
        if let Err(error) = self.rows.discard(file).await {
            let error = error_chain(&error);
            log::debug!("a file that was given up could not be forgotten error={error}");
            return;
        }
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
            log::warn!(
                "the database did not know a file of its archive: it is older than the archive, as after a \
                 restored backup or a failover; events that both hold stay in the archive alone \
                 archive.file={path} archive.events={}",
                content.num_events
            );
            self.rows.adopt(&path, &content).await?;
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
        let found = self.page(cutoffs, &pass.behind, i64::MAX, 1).await?;
        let Some(first) = found.first().map(|row| &row.position) else {
            return Ok(Written::Nothing);
        };
        failpoint::pass("archive::after-search");
        let partition = self.rows.whole_partition(cutoffs, first).await?;
        let partition = partition.filter(|partition| {
            pass.not_whole_until < partition.until
                && (pass.behind == Position::FIRST || pass.behind.occurred < partition.from)
        });
        let file = names::file(first.occurred);
        if !self.rows.begin(&file).await? {
            return Ok(Written::TakenByAnother);
        }
        failpoint::pass("archive::after-beginning");
        if let Some(mut partition) = partition {
            partition.opened = file;
            return Ok(Written::Something(Work::Empty(partition)));
        }
        let written = self
            .write_file(pass, first, &file, &file, archive_id, cutoffs)
            .await?;
        let Some((written, events)) = written else {
            return Ok(Written::TakenByAnother);
        };
        if written.is_none() {
            self.forget(&file).await;
        }
        Ok(Written::Something(Work::Remove(Removing {
            file: written,
            is_claimed: false,
            events,
            num_removed: 0,
        })))
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
            let written = self
                .write_file(pass, first, &partition.opened, &file, archive_id, cutoffs)
                .await;
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

    async fn give_up(&self, partition: &Partition) {
        self.forget(&partition.opened).await;
        for file in &partition.files {
            self.forget(&file.file).await;
        }
    }

    /// Writes what comes next to a file, while a manifest is open, which may be that of the file: whether there
    /// is a file, and the events that the archive has now. `None` where another process has given it up.
    async fn write_file(
        &self,
        pass: &mut Pass,
        first: &Position,
        opened: &str,
        file: &str,
        archive_id: &str,
        cutoffs: &Cutoffs,
    ) -> Result<Option<(Option<NamedContent>, Vec<Position>)>, StoreError> {
        let day = Day::of(first.occurred);
        let mut writing = Writing {
            store: self,
            archive_id,
            opened,
            file,
            known: Known::default(),
            writer: None,
            events: Vec::new(),
            num_known: 0,
            beaten: Instant::now(),
        };
        let written = writing.write(&pass.behind, day, pass.day, cutoffs).await;
        let Writing {
            writer,
            events,
            num_known,
            ..
        } = writing;
        let last = match written {
            Ok(last) => last,
            Err(stopped) => {
                if let Some(writer) = writer {
                    writer.abort().await;
                }
                self.forget(file).await;
                return match stopped {
                    Stopped::TakenByAnother => Ok(None),
                    Stopped::Failed(error) => Err(error),
                };
            }
        };
        let mut written = None;
        if let Some(writer) = writer {
            written = self.complete(opened, file, writer).await?;
            if written.is_none() {
                return Ok(None);
            }
        }
        (pass.behind, pass.day) = (last, Some(day));
        self.archive.stats.known(num_known);
        Ok(Some((written, events)))
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
        opened: &str,
        file: &str,
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

/// The work on one file, up to its end.
struct Writing<'a> {
    store: &'a ArchivingStore,
    archive_id: &'a str,
    /// The manifest that is open.
    opened: &'a str,
    file: &'a str,
    known: Known,
    /// Made for the first event that the archive does not hold.
    writer: Option<FileWriter>,
    events: Vec<Position>,
    num_known: usize,
    beaten: Instant,
}

impl Writing<'_> {
    /// Takes pages in until the file is full or the day is over; the position of the last event. `known_day`
    /// is a day of which all files are known.
    async fn write(
        &mut self,
        behind: &Position,
        day: Day,
        known_day: Option<Day>,
        cutoffs: &Cutoffs,
    ) -> Result<Position, Stopped> {
        let ArchivingStore { rows, archive, .. } = self.store;
        if known_day != Some(day) {
            self.store.adopt_unknown(day, self.archive_id).await?;
        }
        let manifests = rows.manifests_in(&day.folder()).await?;
        if manifests
            .iter()
            .any(|manifest| manifest.state == FileState::Removed)
        {
            // Another process is about to show it, and nobody may read it now.
            return Err(Stopped::TakenByAnother);
        }
        self.known = Known::new(manifests);
        let (store, max_events) = (self.store, archive.file_events.get());
        let mut last = behind.clone();
        let mut size = FIRST_PAGE;
        let mut page = store.page(cutoffs, &last, day.end(), size).await?;
        while let Some(row) = page.last() {
            last = row.position.clone();
            let left = max_events.saturating_sub(self.events.len() + page.len());
            // As many as fit into the budget.
            size = match page.len() < size {
                true => page.len(),
                false => (2 * size).min(MAX_PAGE),
            };
            // The next page is read while this one is written.
            let next = async {
                match left {
                    0 => Ok(Vec::new()),
                    _ => store.page(cutoffs, &last, day.end(), size.min(left)).await,
                }
            };
            let (taken, next) = join(self.take_all(page), next).await;
            taken?;
            if self.writer.as_ref().is_some_and(FileWriter::is_large) {
                break;
            }
            page = next?;
            self.beat().await?;
        }
        Ok(last)
    }

    async fn take_all(&mut self, rows: Vec<EventRow>) -> Result<(), Stopped> {
        for row in rows {
            self.take(row).await?;
        }
        Ok(())
    }

    async fn take(&mut self, row: EventRow) -> Result<(), Stopped> {
        self.events.push(row.position.clone());
        let archive = &self.store.archive;
        if self.known.holds(archive, &row.position).await? {
            self.num_known += 1;
            return Ok(());
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let path = names::incoming(self.file);
                let writer = FileWriter::new(&archive.place, &path, self.archive_id).await?;
                self.writer.insert(writer)
            }
        };
        match self
            .store
            .while_beating(self.opened, writer.push(row))
            .await?
        {
            Some(pushed) => Ok(pushed?),
            None => Err(Stopped::TakenByAnother),
        }
    }

    async fn beat(&mut self) -> Result<(), Stopped> {
        if self.beaten.elapsed() >= BEAT {
            self.beaten = Instant::now();
            if !self.store.rows.beat(self.opened).await? {
                return Err(Stopped::TakenByAnother);
            }
        }
        Ok(())
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
