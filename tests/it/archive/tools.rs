//! Programs of others, from PyPI: a server that speaks S3, and readers of Parquet.
//!
//! `tests/run.sh` installs them into target/archive-tools.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::ports::free_port;

/// The Python that has them; without one such a test says that it was not run, unless one is required.
pub(super) fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/archive-tools/bin/python");
    #[expect(clippy::disallowed_methods, reason = "the tests' own setting")]
    let is_required = std::env::var("TEST_ARCHIVE_TOOLS").is_ok_and(|set| set == "required");
    if python.exists() {
        return Some(python);
    }
    assert!(!is_required, "no {}", python.display());
    #[expect(clippy::print_stderr, reason = "a test that does not run must say so")]
    {
        eprintln!("not run: there is no {}", python.display());
    }
    None
}

/// Runs a script; the JSON that it prints.
pub(super) fn ask(python: &Path, script: &str, arguments: &[&str]) -> Value {
    let asked = Command::new(python)
        .args(["-c", script])
        .args(arguments)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&asked.stderr);
    assert!(asked.status.success(), "{error}");
    serde_json::from_slice(&asked.stdout).unwrap()
}

/// A server that speaks S3, with a bucket that outlives it; killed when it is dropped.
pub(super) struct Moto {
    python: PathBuf,
    child: Child,
    folder: TempDir,
    pub(super) address: SocketAddr,
}

impl Moto {
    pub(super) async fn start(python: &Path) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let folder = tempfile::tempdir().unwrap();
        let child = launched(python, folder.path(), address).await;
        Self {
            python: python.to_owned(),
            child,
            folder,
            address,
        }
    }

    pub(super) fn kill_9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(super) async fn start_again(&mut self) {
        self.child = launched(&self.python, self.folder.path(), self.address).await;
    }

    /// The names of its objects, with `%2F` for each slash.
    pub(super) fn objects(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with('~')).collect()
    }
}

async fn launched(python: &Path, folder: &Path, address: SocketAddr) -> Child {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/archive/bucket.py");
    let mut child = Command::new(python)
        .args([&script, folder])
        .arg(address.port().to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while TcpStream::connect(address).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "it did not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    child
}

impl Drop for Moto {
    fn drop(&mut self) {
        // It may be dead already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// How a bucket misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mood {
    Well,
    /// Answers every request with this.
    Fails,
    Forbids,
    /// Takes its time with every answer.
    Slow,
    /// Takes half of what is sent, then hangs up.
    Half,
    /// Answers only what is no upload: 500 to every PUT and POST.
    FailsUploads,
}

impl Mood {
    const ALL: [Self; 6] = [
        Self::Well,
        Self::Fails,
        Self::Forbids,
        Self::Slow,
        Self::Half,
        Self::FailsUploads,
    ];
}

/// A proxy before a bucket, in one mood or another.
#[derive(Clone)]
pub(super) struct Moody {
    mood: Arc<AtomicU8>,
    pub(super) address: SocketAddr,
}

impl Moody {
    pub(super) fn before(bucket: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let moody = Self {
            mood: Arc::default(),
            address: listener.local_addr().unwrap(),
        };
        let proxy = moody.clone();
        // A thread of its own: a test waits for its commands without letting others in.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((client, _)) = listener.accept().await {
                    let proxy = proxy.clone();
                    tokio::spawn(async move { drop(proxy.serve(client, bucket).await) });
                }
            });
        });
        moody
    }

    pub(super) fn be(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }

    fn mood(&self) -> Mood {
        Mood::ALL[usize::from(self.mood.load(Ordering::SeqCst))]
    }

    async fn serve(
        &self,
        mut client: tokio::net::TcpStream,
        bucket: SocketAddr,
    ) -> std::io::Result<()> {
        let mut first = vec![0; 16 << 10];
        let length = client.read(&mut first).await?;
        let first = &first[..length];
        let is_upload = first.starts_with(b"PUT") || first.starts_with(b"POST");
        let refusal = match self.mood() {
            Mood::Fails => Some("500 Internal Server Error"),
            Mood::FailsUploads if is_upload => Some("500 Internal Server Error"),
            Mood::Forbids => Some("403 Forbidden"),
            _ => None,
        };
        if let Some(status) = refusal {
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            client.write_all(answer.as_bytes()).await?;
            return client.shutdown().await;
        }
        let mut server = tokio::net::TcpStream::connect(bucket).await?;
        match self.mood() {
            Mood::Slow => tokio::time::sleep(Duration::from_millis(300)).await,
            Mood::Half if is_upload => {
                server.write_all(&first[..length / 2]).await?;
                return Ok(());
            }
            _ => {}
        }
        server.write_all(first).await?;
        tokio::io::copy_bidirectional(&mut client, &mut server)
            .await
            .map(drop)
    }
}
