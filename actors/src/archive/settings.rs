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
    /// Where retention writes events before it removes them: `file:///folder`, or `s3://bucket/prefix` with
    /// the `AWS_…` variables that other clients take (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_REGION`, `AWS_ENDPOINT_URL`, …). Not set: what retention removes is gone. Needs a build
    /// with the feature `archive`, as packages and images are.
    #[serde(with = "As::<Option<Url>>")]
    #[schemars(extend("examples" = ["file:///var/lib/event-persister/archive"]))]
    pub url: Option<ArchiveUrl>,
    /// Events in one file at most; a file also ends at 32 MiB, and holds events of one day and one pass.
    /// Fewer make more files, more keep events longer out of sight while their rows are removed.
    #[serde(with = "As::<Count>")]
    pub file_events: NonZeroUsize,
    /// The variables of the environment that a client of S3 takes.
    #[serde(skip)]
    pub variables: Variables,
}

/// Variables of an environment. Some are secrets, so that only their names are shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// Those that a client of S3 may take.
    pub fn of<'a>(environment: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let of_aws =
            environment.filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty());
        Self(
            of_aws
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    #[cfg(feature = "archive")]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
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
    /// A bucket of S3, and what all names in it begin with.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// Without slashes at its ends; may be empty.
        prefix: String,
    },
}

impl FromStr for ArchiveUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        const EXPECTED: &str =
            "give file:///folder, with the absolute path of a folder, or s3://bucket/prefix";
        if let Some(path) = text.strip_prefix("file://") {
            let is_plain = !path.split('/').any(|part| part == "..");
            return if path.starts_with('/') && path.len() > 1 && is_plain {
                Ok(Self::Folder(path.into()))
            } else {
                Err(EXPECTED.into())
            };
        }
        let rest = text.strip_prefix("s3://").ok_or(EXPECTED)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if bucket.is_empty() || !bucket.bytes().all(is_name) {
            return Err(EXPECTED.into());
        }
        Ok(Self::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for ArchiveUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
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
    fn an_archive_is_a_folder_or_a_bucket() {
        for (text, shown) in [
            ("file:///var/archive", "file:///var/archive"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://my.bucket-1/a/b/", "s3://my.bucket-1/a/b"),
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
            "gs://bucket",
        ] {
            let error = wrong.parse::<ArchiveUrl>().unwrap_err().to_string();
            assert!(error.contains("s3://bucket/prefix"), "{wrong}: {error}");
        }
    }
}
