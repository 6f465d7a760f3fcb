//! Where the files are: a folder or a bucket.
//!
//! An object appears whole or not at all, in a folder after it was synced to the disk. A bucket has no renaming:
//! a copy, then a removal of the old name, which no reader looks at.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{HttpClient, HttpConnector};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, ObjectStoreExt as _, PutMode,
    PutOptions, RetryConfig, WriteMultipart,
};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::names::{INCOMING, MARKER};
use super::settings::{ArchiveUrl, Cloud, Variables};
use crate::failpoint;

/// How long a request may take. A part of 5 MiB takes less over a slow line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A pass that fails is made again after the next interval: nobody waits for long here.
const MAX_RETRIES: usize = 3;
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

/// S3 takes no smaller parts. At most two are held.
const PART_BYTES: usize = 5 << 20;
const MAX_PARTS: usize = 2;

/// What could not be done, with which object.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {} in the archive {place}", if .path.is_empty() { "anything" } else { .path.as_str() })]
pub struct PlaceError {
    doing: &'static str,
    path: String,
    place: String,
    #[source]
    source: Box<object_store::Error>,
}

impl PlaceError {
    /// Whether the object is not there.
    pub fn is_missing(&self) -> bool {
        matches!(*self.source, object_store::Error::NotFound { .. })
    }

    pub(super) fn is_there_already(&self) -> bool {
        matches!(
            *self.source,
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }
        )
    }
}

/// An object as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its path in the archive.
    pub path: String,
    /// Its size.
    pub num_bytes: u64,
    /// When it was written, by the clock of the place.
    pub modified: DateTime<Utc>,
}

/// A folder or a bucket, and what all names in it begin with.
pub struct Place {
    shown: String,
    url: ArchiveUrl,
    variables: Variables,
    opened: OnceCell<Arc<dyn ObjectStore>>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Place {
    pub(super) fn new(url: ArchiveUrl, variables: Variables) -> Self {
        Self {
            shown: url.to_string(),
            url,
            variables,
            opened: OnceCell::new(),
        }
    }

    /// Whether the settings and the variables of a bucket fit together. Connects to nothing.
    ///
    /// # Errors
    ///
    /// They do not.
    pub fn validate(&self) -> Result<(), PlaceError> {
        match &self.url {
            ArchiveUrl::Folder(_) => Ok(()),
            ArchiveUrl::Bucket { .. } => self.connect().map(drop),
        }
    }

    fn connect(&self) -> Result<Arc<dyn ObjectStore>, PlaceError> {
        let opened = match &self.url {
            ArchiveUrl::Folder(path) => LocalFileSystem::new_with_prefix(path)
                .map(|opened| Arc::new(opened.with_fsync(true)) as Arc<dyn ObjectStore>),
            ArchiveUrl::Bucket {
                cloud,
                bucket,
                prefix,
            } => open_bucket(*cloud, bucket, &self.variables).map(|bucket| {
                if prefix.is_empty() {
                    bucket
                } else {
                    Arc::new(PrefixStore::new(bucket, prefix.as_str()))
                }
            }),
        };
        opened.map_err(self.error("open", ""))
    }

    fn error(
        &self,
        doing: &'static str,
        path: &str,
    ) -> impl FnOnce(object_store::Error) -> PlaceError {
        let (path, place) = (path.to_owned(), self.shown.clone());
        move |source| PlaceError {
            doing,
            path,
            place,
            source: Box::new(source),
        }
    }

    /// A folder is looked for at each opening that fails: it may be mounted later.
    async fn store(&self) -> Result<&Arc<dyn ObjectStore>, PlaceError> {
        self.opened.get_or_try_init(async || self.connect()).await
    }

    /// Makes the folder, where this is one.
    pub(super) async fn make(&self) -> Result<(), PlaceError> {
        let ArchiveUrl::Folder(path) = &self.url else {
            return Ok(());
        };
        let path = path.clone();
        let made = tokio::task::spawn_blocking(move || std::fs::create_dir_all(path)).await;
        let made = made.map_err(std::io::Error::other).flatten();
        made.map_err(|source| self.error("make the folder of", "files")(generic("folder", source)))
    }

    /// Whether there is the folder, where this is one.
    pub(super) fn is_there(&self) -> bool {
        match &self.url {
            ArchiveUrl::Folder(path) => path.is_dir(),
            ArchiveUrl::Bucket { .. } => true,
        }
    }

    pub(super) async fn read(&self, path: &str) -> Result<Bytes, PlaceError> {
        let got = self.store().await?.get(&Path::from(path)).await;
        let got = got.map_err(self.error("read", path))?;
        got.bytes().await.map_err(self.error("read", path))
    }

    /// The size and the time of an object; `None` where it is not there.
    pub(super) async fn look(&self, path: &str) -> Result<Option<Listed>, PlaceError> {
        match self.store().await?.head(&Path::from(path)).await {
            Ok(meta) => Ok(Some(Listed {
                path: path.to_owned(),
                num_bytes: meta.size,
                modified: meta.last_modified,
            })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error("look at", path)(error)),
        }
    }

    /// All objects of a folder, in no order.
    pub(super) async fn list(&self, folder: &str) -> Result<Vec<Listed>, PlaceError> {
        let folder_path = Path::from(folder);
        let prefix = (!folder.is_empty()).then_some(&folder_path);
        let listed = self.store().await?.list(prefix).map_ok(|meta| Listed {
            path: meta.location.to_string(),
            num_bytes: meta.size,
            modified: meta.last_modified,
        });
        let listed: Vec<Listed> = listed
            .try_collect()
            .await
            .map_err(self.error("list", folder))?;
        Ok(listed)
    }

    /// The marker's text, where there is one.
    pub(super) async fn marker(&self) -> Result<Option<Bytes>, PlaceError> {
        match self.read(MARKER).await {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the marker, unless there is one.
    pub(super) async fn mark(&self, text: String) -> Result<(), PlaceError> {
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        let put = self.store().await?;
        let put = put
            .put_opts(&Path::from(MARKER), text.into(), options)
            .await;
        put.map(drop).map_err(self.error("write", MARKER))
    }

    /// Writes a small object where no reader looks, and removes it; its time by the clock there. `None` where
    /// the folder is still to be made.
    ///
    /// # Errors
    ///
    /// The archive cannot be written.
    pub async fn probe(&self) -> Result<Option<DateTime<Utc>>, PlaceError> {
        if !self.is_there() {
            return Ok(None);
        }
        let path = format!("{INCOMING}/probe-{}", Uuid::new_v4().simple());
        let put = self
            .store()
            .await?
            .put(&Path::from(path.as_str()), "probe".into())
            .await;
        put.map_err(self.error("write", &path))?;
        let looked = self.look(&path).await;
        self.remove(&path).await?;
        Ok(looked?.map(|listed| listed.modified))
    }

    pub(super) async fn upload(&self, path: &str) -> Result<Upload, PlaceError> {
        let upload = self.store().await?.put_multipart(&Path::from(path)).await;
        let upload = upload.map_err(self.error("write", path))?;
        Ok(Upload {
            parts: WriteMultipart::new_with_chunk_size(upload, PART_BYTES),
            path: path.to_owned(),
            place: self.shown.clone(),
        })
    }

    /// Removes an object; that it is gone already is no error.
    pub(super) async fn remove(&self, path: &str) -> Result<(), PlaceError> {
        match self.store().await?.delete(&Path::from(path)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error("remove", path)(error)),
        }
    }

    /// Gives an object the name under which readers see it.
    pub(super) async fn publish(&self, hidden: &str, shown: &str) -> Result<(), PlaceError> {
        let store = self.store().await?;
        let (from, to) = (Path::from(hidden), Path::from(shown));
        match &self.url {
            ArchiveUrl::Folder(_) => store
                .rename(&from, &to)
                .await
                .map_err(self.error("rename", hidden)),
            ArchiveUrl::Bucket { cloud, .. } => {
                store
                    .copy(&from, &to)
                    .await
                    .map_err(self.error("copy", hidden))?;
                if *cloud == Cloud::Azure {
                    self.is_copied(hidden, shown).await?;
                }
                failpoint::pass("archive::after-copy");
                self.remove(hidden).await
            }
        }
    }

    /// Azure may still be at work on a copy that it has answered: it is read, to see that all of it is there.
    async fn is_copied(&self, hidden: &str, shown: &str) -> Result<(), PlaceError> {
        let size = self.look(hidden).await?.map(|listed| listed.num_bytes);
        let num_bytes = self.read(shown).await?.len() as u64;
        if size == Some(num_bytes) {
            return Ok(());
        }
        let cut = std::io::Error::other(format!("the copy has {num_bytes} bytes by now"));
        Err(self.error("copy", hidden)(generic("Azure", cut)))
    }

    /// Removes what uploads that were cut off left in a folder. `is_at_work` tells of which object an upload
    /// may still be going on.
    pub(super) async fn sweep(&self, is_at_work: impl Fn(&str) -> bool) -> Result<(), PlaceError> {
        let ArchiveUrl::Folder(path) = &self.url else {
            return Ok(());
        };
        let folder = path.join(INCOMING);
        let Ok(entries) = std::fs::read_dir(&folder) else {
            // Nothing was ever written.
            return Ok(());
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((object, _)) = name.split_once('#') else {
                continue;
            };
            if !is_at_work(&format!("{INCOMING}/{object}")) {
                std::fs::remove_file(entry.path())
                    .map_err(|source| self.error("remove", &name)(generic("folder", source)))?;
            }
        }
        Ok(())
    }
}

fn generic(store: &'static str, source: std::io::Error) -> object_store::Error {
    object_store::Error::Generic {
        store,
        source: Box::new(source),
    }
}

/// An object that is being written. It is not there before its end.
pub(super) struct Upload {
    parts: WriteMultipart,
    path: String,
    place: String,
}

impl Upload {
    fn error(&self) -> impl FnOnce(object_store::Error) -> PlaceError + use<> {
        let (path, place) = (self.path.clone(), self.place.clone());
        move |source| PlaceError {
            doing: "write",
            path,
            place,
            source: Box::new(source),
        }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), PlaceError> {
        let error = self.error();
        self.parts
            .wait_for_capacity(MAX_PARTS)
            .await
            .map_err(error)?;
        self.parts.write(bytes);
        Ok(())
    }

    pub(super) async fn finish(self) -> Result<(), PlaceError> {
        let error = self.error();
        self.parts.finish().await.map(drop).map_err(error)
    }

    /// Gives it up. What stays behind of it is no object.
    pub(super) async fn abort(self) {
        if let Err(error) = self.parts.abort().await {
            log::debug!("an upload to the archive could not be given up error={error}");
        }
    }
}

/// What is the same for the clients of all clouds, whose types have nothing in common.
macro_rules! configured {
    ($builder:expr, $key:ident, $variables:expr) => {{
        let (mut builder, mut options) = ($builder, ClientOptions::new());
        for (name, value) in $variables {
            match name.to_ascii_lowercase().parse() {
                Ok($key::Client(key)) => options = options.with_config(key, value),
                Ok(key) => builder = builder.with_config(key, value),
                // Of another client.
                Err(_) => {}
            }
        }
        builder
            .with_client_options(options)
            .with_http_connector(Connector)
            .with_retry(RetryConfig {
                backoff: BackoffConfig::default(),
                max_retries: MAX_RETRIES,
                retry_timeout: RETRY_TIMEOUT,
            })
    }};
}

fn open_bucket(
    cloud: Cloud,
    bucket: &str,
    variables: &Variables,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let variables = variables.of_cloud(cloud);
    Ok(match cloud {
        Cloud::S3 => {
            let builder = configured!(AmazonS3Builder::new(), AmazonS3ConfigKey, variables);
            Arc::new(builder.with_bucket_name(bucket).build()?)
        }
        Cloud::Azure => {
            let builder = configured!(MicrosoftAzureBuilder::new(), AzureConfigKey, variables);
            Arc::new(builder.with_container_name(bucket).build()?)
        }
        Cloud::Google => {
            let builder = configured!(GoogleCloudStorageBuilder::new(), GoogleConfigKey, variables);
            Arc::new(builder.with_bucket_name(bucket).build()?)
        }
    })
}

/// Connects with our own TLS, as all of our connections are: by rustls with ring, and the system's
/// authorities.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic {
                store: "bucket",
                source,
            };
        let tls = crate::tls::trusting_authorities().map_err(|error| failed(error.into()))?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(!may_be_plain(options))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .build();
        Ok(HttpClient::new(
            client.map_err(|error| failed(error.into()))?,
        ))
    }
}

/// Whether a server may be spoken to without TLS: `AWS_ALLOW_HTTP`, `AZURE_ALLOW_HTTP`, `GOOGLE_ALLOW_HTTP`.
fn may_be_plain(options: &ClientOptions) -> bool {
    let allowed = options.get_config_value(&ClientConfigKey::AllowHttp);
    allowed.is_some_and(|allowed| allowed == "true")
}
