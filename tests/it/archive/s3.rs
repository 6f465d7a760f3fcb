//! An archive in a bucket, which behaves well or does not; and by the protocol of Google.

use super::tools::{Mood, Moody, Moto, ask, python};
use super::*;

pub(super) struct Bucket {
    pub(super) case: Case,
    moody: Moody,
    pub(super) python: PathBuf,
    pub(super) moto: Moto,
}

impl Bucket {
    pub(super) async fn new(case: Case) -> Option<Self> {
        let python = python()?;
        let moto = Moto::start(&python).await;
        let moody = Moody::before(moto.address);
        let mut bucket = Self {
            case,
            moody,
            python,
            moto,
        };
        let endpoint = format!("http://{}", bucket.moody.address);
        let variables = [
            ("EVENT_PERSISTER_ARCHIVE_URL", "s3://bucket/some/events"),
            ("AWS_ENDPOINT_URL", &endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "us-east-1"),
        ];
        let owned = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        bucket.case.variables.extend(owned);
        Some(bucket)
    }

    /// The ids that an independent reader finds, with the pattern that the handbook gives.
    fn archived(&self) -> Vec<String> {
        const READ: &str = r#"
import sys, json, pyarrow.parquet as pq, pyarrow.fs as fs, fnmatch
s3 = fs.S3FileSystem(access_key="key", secret_key="secret", endpoint_override=sys.argv[1], scheme="http", region="us-east-1")
files = s3.get_file_info(fs.FileSelector("bucket/some/events", recursive=True, allow_not_found=True))
names = [f.path for f in files if fnmatch.fnmatch(f.path, "bucket/some/events/occurred_date=*/*.parquet")]
ids = [str(i) for n in names for i in pq.ParquetFile(s3.open_input_file(n)).read(columns=["id"])["id"].to_pylist()]
print(json.dumps(ids))
"#;
        let found = ask(&self.python, READ, &[&self.moto.address.to_string()]);
        let found = found.as_array().unwrap().iter();
        found.map(|id| id.as_str().unwrap().to_owned()).collect()
    }

    pub(super) fn holds_once(&self, expected: &BTreeSet<String>) -> usize {
        self.case.are_once(self.archived(), expected)
    }

    pub(super) fn is_in_order(&self) {
        let verified = self
            .case
            .run(&["archive", "verify", "--json"])
            .exits(0)
            .json();
        assert_eq!(verified["problems"], Value::Array(Vec::new()), "{verified}");
        let objects = self.moto.objects();
        let is_left = |name: &String| name.contains("_incoming");
        assert!(!objects.iter().any(is_left), "left over: {objects:?}");
    }
}

/// The same bucket, asked as Google's are.
async fn of_google(case: Case) -> Option<Bucket> {
    let mut bucket = Bucket::new(case).await?;
    let variables = &mut bucket.case.variables;
    variables.retain(|(name, _)| !name.starts_with("AWS_"));
    let base_url = format!("http://{}", bucket.moody.address);
    let googles = [
        ("EVENT_PERSISTER_ARCHIVE_URL", "gs://bucket/some/events"),
        ("GOOGLE_BASE_URL", &base_url),
        ("GOOGLE_ALLOW_HTTP", "true"),
        ("GOOGLE_BEARER_TOKEN", "token"),
    ];
    variables.extend(googles.map(|(name, value)| (name.to_owned(), value.to_owned())));
    Some(bucket)
}

async fn passes_to(bucket: Option<Bucket>) {
    let Some(bucket) = bucket else {
        return;
    };
    let all = bucket.case.store_events(120);
    bucket.case.trim().exits(0);
    let num_archived = bucket.holds_once(&all);
    assert!(num_archived > 90, "{num_archived}");
    bucket.is_in_order();
    bucket.case.archive_is_fit();
    let other = format!(
        "sqlite://{}",
        bucket.case.folder.path().join("other.db").display()
    );
    let restore = ["archive", "restore", "--json", "--database-url", &other];
    let restored = bucket.case.run(&restore).exits(0).json();
    assert_eq!(restored["stored"], num_archived);
}

#[tokio::test]
async fn from_sqlite() {
    passes_to(Bucket::new(Case::sqlite()).await).await;
}

#[tokio::test]
async fn from_postgresql() {
    passes_to(Bucket::new(Case::postgres()).await).await;
}

#[tokio::test]
async fn from_postgresql_as_google_has_it() {
    passes_to(of_google(Case::postgres()).await).await;
}

/// Nothing is removed that was not archived, and once the bucket is well again the work is done.
async fn misbehaves(mood: Mood, complaint: &str) {
    let Some(bucket) = Bucket::new(Case::sqlite()).await else {
        return;
    };
    let all = bucket.case.store_events(60);
    bucket.case.trim().exits(0);
    let more = bucket.case.store_events(60);
    let all: BTreeSet<String> = all.union(&more).cloned().collect();
    bucket.moody.be(mood);
    let ran = bucket.case.trim();
    if mood == Mood::Slow {
        ran.exits(0);
    } else {
        ran.exits(1)
            .complains(&["nothing is removed until it can", complaint]);
    }
    bucket.moody.be(Mood::Well);
    bucket.holds_once(&all);
    bucket.case.trim().exits(0);
    bucket.holds_once(&all);
    bucket.is_in_order();
}

#[tokio::test]
async fn answers_500() {
    misbehaves(Mood::Fails, "500").await;
}

#[tokio::test]
async fn answers_500_to_uploads() {
    misbehaves(Mood::FailsUploads, "500").await;
}

#[tokio::test]
async fn answers_403() {
    misbehaves(Mood::Forbids, "cannot read").await;
}

#[tokio::test]
async fn answers_slowly() {
    misbehaves(Mood::Slow, "").await;
}

#[tokio::test]
async fn takes_half() {
    misbehaves(Mood::Half, "cannot write").await;
}

/// A bucket has no renaming: killed between the copy and the removal of the hidden file.
async fn killed_after_the_copy(bucket: Option<Bucket>) {
    let Some(bucket) = bucket else {
        return;
    };
    let all = bucket.case.store_events(120);
    let killed = [("FAILPOINTS", "archive::after-copy=1*off->return")];
    let died = bucket.case.run_with(&["trim", "--yes"], &killed);
    assert_eq!(died.code, None, "it was killed: {died:?}");
    bucket.holds_once_or_less(&all);
    bucket.case.trim().exits(0);
    bucket.holds_once(&all);
    bucket.is_in_order();
}

#[tokio::test]
async fn killed_between_copy_and_removal() {
    killed_after_the_copy(Bucket::new(Case::postgres()).await).await;
}

#[tokio::test]
async fn killed_between_copy_and_removal_as_google_has_it() {
    killed_after_the_copy(of_google(Case::postgres()).await).await;
}

impl Bucket {
    fn holds_once_or_less(&self, expected: &BTreeSet<String>) {
        let mut all = self.case.in_tables();
        for id in self.archived() {
            assert!(all.insert(id.clone()), "{id} is there twice");
        }
        assert!(all.is_subset(expected));
    }
}
