//! An archive in Azure, against its emulator, which `tests/run.sh --clouds` installs.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::tools::{ask, python};
use super::*;
use crate::support::ports::free_port;

const ACCOUNT: &str = "devstoreaccount1";
/// The emulator's own, as it is published.
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Begins each script; `azure` is what it asks.
const CONNECT: &str = r#"
import sys, json, fnmatch, pyarrow.fs as fs, pyarrow.parquet as pq
account, key, host = sys.argv[1:4]
azure = fs.AzureFileSystem(account, account_key=key, blob_storage_authority=host, blob_storage_scheme="http",
    dfs_storage_authority=host, dfs_storage_scheme="http")
"#;

struct Azurite {
    child: Child,
    _folder: TempDir,
    python: PathBuf,
    host: String,
    case: Case,
}

impl Azurite {
    async fn start(mut case: Case) -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("target/azurite/node_modules/.bin/azurite-blob");
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let host = format!("127.0.0.1:{port}");
        let mut child = Command::new(program)
            .args(["--silent", "--skipApiVersionCheck", "--disableTelemetry"])
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
            .arg("--location")
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while TcpStream::connect(&host).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "it did not start");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let endpoint = format!("http://{host}/{ACCOUNT}");
        let variables = [
            ("EVENT_PERSISTER_ARCHIVE_URL", "az://container/some/events"),
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT),
            ("AZURE_STORAGE_ACCOUNT_KEY", KEY),
            ("AZURE_STORAGE_ENDPOINT", &endpoint),
            ("AZURE_ALLOW_HTTP", "true"),
        ];
        let owned = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        case.variables.extend(owned);
        let azurite = Self {
            child,
            _folder: folder,
            python: python().expect("target/archive-tools"),
            host,
            case,
        };
        azurite.ask("azure.create_dir('container'); print('null')");
        azurite
    }

    fn ask(&self, script: &str) -> Value {
        let script = format!("{CONNECT}{script}");
        ask(&self.python, &script, &[ACCOUNT, KEY, &self.host])
    }

    /// The ids that an independent reader finds, and the names of all objects.
    fn archived(&self) -> (Vec<String>, Vec<String>) {
        const READ: &str = r#"
found = azure.get_file_info(fs.FileSelector("container/some/events", recursive=True, allow_not_found=True))
objects = [f.path for f in found if f.type == fs.FileType.File]
shown = [o for o in objects if fnmatch.fnmatch(o, "container/some/events/occurred_date=*/*.parquet")]
ids = [str(i) for n in shown for i in pq.ParquetFile(azure.open_input_file(n)).read(columns=["id"])["id"].to_pylist()]
print(json.dumps([ids, objects]))
"#;
        serde_json::from_value(self.ask(READ)).unwrap()
    }

    fn holds_once(&self, expected: &BTreeSet<String>) -> usize {
        self.case.are_once(self.archived().0, expected)
    }

    fn is_in_order(&self) {
        let verify = ["archive", "verify", "--json"];
        let verified = self.case.run(&verify).exits(0).json();
        assert_eq!(verified["problems"], Value::Array(Vec::new()), "{verified}");
        let (_, objects) = self.archived();
        let is_left = |name: &String| name.contains("_incoming");
        assert!(!objects.iter().any(is_left), "left over: {objects:?}");
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        // It may be dead already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
#[ignore = "Azure's emulator takes 360 MB: tests/run.sh --clouds"]
async fn a_pass_moves_events_to_azure() {
    for case in [Case::sqlite(), Case::postgres(), Case::postgres().whole()] {
        let azurite = Azurite::start(case).await;
        let case = &azurite.case;
        let all = case.store_events(120);
        case.trim().exits(0);
        let num_archived = azurite.holds_once(&all);
        assert!(num_archived > 90, "{num_archived}");
        azurite.is_in_order();
        case.archive_is_fit();
        let other = format!("sqlite://{}", case.folder.path().join("other.db").display());
        let restore = ["archive", "restore", "--json", "--database-url", &other];
        assert_eq!(case.run(&restore).exits(0).json()["stored"], num_archived);
    }
}

#[tokio::test]
#[ignore = "Azure's emulator takes 360 MB: tests/run.sh --clouds"]
async fn killed_at_each_moment_of_a_pass_to_azure() {
    for moment in [
        "archive::after-beginning",
        "archive::after-upload",
        "archive::before-commit",
        "archive::after-removal",
        "archive::after-copy",
        "archive::after-publishing",
    ] {
        let azurite = Azurite::start(Case::postgres()).await;
        let all = azurite.case.store_events(120);
        let killed = format!("{moment}=1*off->return");
        let killed = [("FAILPOINTS", killed.as_str())];
        let died = azurite.case.run_with(&["trim", "--yes"], &killed);
        assert_eq!(died.code, None, "{moment}: it was killed: {died:?}");
        azurite.case.trim().exits(0);
        azurite.holds_once(&all);
        azurite.is_in_order();
    }
}

/// Not the key, and not a container that is there.
#[tokio::test]
#[ignore = "Azure's emulator takes 360 MB: tests/run.sh --clouds"]
async fn what_azure_refuses_is_told() {
    let mut azurite = Azurite::start(Case::sqlite()).await;
    let all = azurite.case.store_events(60);
    for (name, value) in [
        ("AZURE_STORAGE_ACCOUNT_KEY", "bm90IHRoZSBrZXk="),
        ("EVENT_PERSISTER_ARCHIVE_URL", "az://no-container/events"),
    ] {
        let ran = azurite
            .case
            .run_with(&["trim", "--yes"], &[(name, value)])
            .exits(1)
            .complains(&["nothing is removed until it can"]);
        assert!(!ran.stderr.contains(value) || value.starts_with("az:"));
        assert_eq!(azurite.case.in_tables(), all);
    }
    let key = azurite.case.variables.iter_mut();
    let key = key
        .filter(|(name, _)| name == "AZURE_STORAGE_ACCOUNT_KEY")
        .map(|(_, value)| std::mem::replace(value, "no base64".to_owned()));
    assert_eq!(key.count(), 1);
    let ran = azurite.case.run(&["trim", "--yes"]);
    assert!(ran.code != Some(0) && !ran.stderr.contains("no base64"));
}
