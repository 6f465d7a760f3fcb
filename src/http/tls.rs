//! The certificate that the listener shows, with ring: no system library is needed.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::CertificateFiles;

/// How often it is looked at whether the files have changed: two questions to the file system.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A certificate that is read again when its files change.
#[derive(Debug)]
pub(super) struct Certificate {
    files: CertificateFiles,
    provider: Arc<CryptoProvider>,
    current: watch::Sender<Arc<CertifiedKey>>,
}

impl Certificate {
    pub(super) fn read(files: CertificateFiles) -> anyhow::Result<Arc<Self>> {
        // Named, for another part of the process may bring a provider of its own.
        let provider = Arc::new(ring::default_provider());
        let current = watch::Sender::new(Arc::new(read(&files, &provider)?));
        Ok(Arc::new(Self {
            files,
            provider,
            current,
        }))
    }

    /// Encrypts with whatever is current when a client comes.
    pub(super) fn acceptor(self: &Arc<Self>) -> anyhow::Result<TlsAcceptor> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Takes over what is renewed, for ever. What cannot be used changes nothing: the two files are
    /// hardly ever replaced in the same instant.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut seen = changed(&self.files);
        loop {
            actix_rt::time::sleep(LOOK_EVERY).await;
            let now = changed(&self.files);
            if now == seen {
                continue;
            }
            seen = now;
            match read(&self.files, &self.provider) {
                Ok(renewed) => {
                    self.current.send_replace(Arc::new(renewed));
                    log::info!("the certificate has changed; new connections see the new one");
                }
                Err(error) => log::error!(
                    "the certificate has changed and cannot be used; the one before stays \
                     error=\"{error:#}\""
                ),
            }
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.borrow()))
    }
}

fn read(files: &CertificateFiles, provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
    let chain =
        certificates(&files.cert).with_context(|| unusable("http.tls_cert_file", &files.cert))?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .with_context(|| unusable("http.tls_key_file", &files.key))?;
    CertifiedKey::from_der(chain, key, provider).with_context(|| {
        format!(
            "the key in {} does not belong to the certificate in {}",
            files.key.display(),
            files.cert.display()
        )
    })
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let chain = CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()?;
    anyhow::ensure!(!chain.is_empty(), "there is no certificate in it");
    Ok(chain)
}

fn unusable(setting: &str, path: &Path) -> String {
    format!("{setting} {} cannot be used", path.display())
}

/// When each file was last changed, as far as the system says.
fn changed(files: &CertificateFiles) -> [Option<SystemTime>; 2] {
    [&files.cert, &files.key].map(|file| std::fs::metadata(file).ok()?.modified().ok())
}
