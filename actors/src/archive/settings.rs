//! Where the archive is, and how large its files become.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::settings::{As, Count, InvalidUrl, Spelling};

/// Where retention puts what it removes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ArchiveSettings {
    /// Where retention writes events before it removes them: `file:///folder`, or a bucket with the variables
    /// that other clients take: `s3://bucket/prefix` (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_REGION`, `AWS_ENDPOINT_URL`, …), `az://container/prefix` (`AZURE_STORAGE_ACCOUNT_NAME`,
    /// `AZURE_STORAGE_ACCOUNT_KEY`, …) or `gs://bucket/prefix` (`GOOGLE_APPLICATION_CREDENTIALS`, …). Not
    /// set: what retention removes is gone. Needs a build with the feature `archive`, as packages and
    /// images are.
    #[serde(with = "As::<Option<Url>>")]
    #[schemars(extend("examples" = ["file:///var/lib/event-persister/archive"]))]
    pub url: Option<ArchiveUrl>,
    /// Events in one file at most; a file also ends at 32 MiB, and holds events of one day and one pass.
    /// Fewer make more files, more keep events longer out of sight while their rows are removed.
    #[serde(with = "As::<Count>")]
    pub file_events: NonZeroUsize,
    /// The variables of the environment that clients of buckets take.
    #[serde(skip)]
    pub variables: Variables,
}

/// Variables of an environment. Some are secrets, so that only their names are shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// Those that a client of a bucket may take.
    pub fn of<'a>(environment: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let is_taken = |(name, value): &(&str, &str)| {
            let mut clouds = Cloud::ALL.into_iter();
            clouds.any(|cloud| name.starts_with(cloud.variables())) && !value.is_empty()
        };
        let taken = environment.filter(is_taken);
        Self(
            taken
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    #[cfg(feature = "archive")]
    pub(super) fn of_cloud(&self, cloud: Cloud) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(move |(name, _)| name.starts_with(cloud.variables()))
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

impl Default for ArchiveSettings {
    fn default() -> Self {
        Self {
            url: None,
            file_events: NonZeroUsize::MIN.saturating_add(99_999),
            variables: Variables::default(),
        }
    }
}

/// The place of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArchiveUrl {
    /// A folder, by its absolute path.
    Folder(PathBuf),
    /// A bucket, and what all names in it begin with.
    Bucket {
        /// Whose protocol it speaks.
        cloud: Cloud,
        /// The name of the bucket, or of the container in Azure.
        bucket: String,
        /// Without slashes at its ends; may be empty.
        prefix: String,
    },
}

/// A protocol of buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon's S3, and others that speak it.
    S3,
    /// Azure Blob Storage.
    Azure,
    /// Google Cloud Storage.
    Google,
}

impl Cloud {
    const ALL: [Self; 3] = [Self::S3, Self::Azure, Self::Google];

    fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3://",
            Self::Azure => "az://",
            Self::Google => "gs://",
        }
    }

    /// What the names of its variables begin with.
    fn variables(self) -> &'static str {
        match self {
            Self::S3 => "AWS_",
            Self::Azure => "AZURE_",
            Self::Google => "GOOGLE_",
        }
    }
}

impl FromStr for ArchiveUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        const EXPECTED: &str = "give file:///folder, with the absolute path of a folder, s3://bucket/prefix, \
            az://container/prefix or gs://bucket/prefix";
        if let Some(path) = text.strip_prefix("file://") {
            let is_plain = !path.split('/').any(|part| part == "..");
            return if path.starts_with('/') && path.len() > 1 && is_plain {
                Ok(Self::Folder(path.into()))
            } else {
                Err(EXPECTED.into())
            };
        }
        let cloud = |cloud: Cloud| Some((cloud, text.strip_prefix(cloud.scheme())?));
        let (cloud, rest) = Cloud::ALL.into_iter().find_map(cloud).ok_or(EXPECTED)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if bucket.is_empty() || !bucket.bytes().all(is_name) {
            return Err(EXPECTED.into());
        }
        Ok(Self::Bucket {
            cloud,
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for ArchiveUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file://{}", path.display()),
            Self::Bucket {
                cloud,
                bucket,
                prefix,
            } => {
                let slash = if prefix.is_empty() { "" } else { "/" };
                write!(f, "{}{bucket}{slash}{prefix}", cloud.scheme())
            }
        }
    }
}

struct Url;

impl Spelling for Url {
    type Value = ArchiveUrl;

    fn read(given: &Value) -> Result<ArchiveUrl, String> {
        let text = given.as_str().unwrap_or_default().trim();
        text.parse().map_err(|error: InvalidUrl| error.to_string())
    }

    fn write(value: &ArchiveUrl) -> Value {
        value.to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cloud_has_its_own_variables_and_no_other() {
        let environment = [
            ("AWS_REGION", "eu-west-1"),
            ("AZURE_STORAGE_ACCOUNT_KEY", "secret"),
            ("GOOGLE_APPLICATION_CREDENTIALS", ""),
            ("HOME", "/root"),
        ];
        let variables = Variables::of(environment.into_iter());
        assert_eq!(
            format!("{variables:?}"),
            r#"["AWS_REGION", "AZURE_STORAGE_ACCOUNT_KEY"]"#
        );
    }

    #[test]
    fn an_archive_is_a_folder_or_a_bucket() {
        for (text, shown) in [
            ("file:///var/archive", "file:///var/archive"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://my.bucket-1/a/b/", "s3://my.bucket-1/a/b"),
            ("az://container/a", "az://container/a"),
            ("gs://bucket", "gs://bucket"),
        ] {
            let url: ArchiveUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(url.to_string().parse(), Ok(url));
        }
        for wrong in [
            "",
            "/var/archive",
            "file://relative",
            "file:///",
            "file:///a/../b",
            "s3://",
            "s3://a:b/c",
            "gcs://bucket",
        ] {
            let error = wrong.parse::<ArchiveUrl>().unwrap_err().to_string();
            assert!(error.contains("s3://bucket/prefix"), "{wrong}: {error}");
        }
    }
}
