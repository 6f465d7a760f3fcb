//! Encryption by rustls: which certificates are trusted, and what is checked of them.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::settings::{TlsMode, TlsSettings};

/// Makes encrypted connections; says which file is wrong otherwise.
pub(super) fn connector(settings: &TlsSettings) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Verifier::new(settings, &provider)?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match (&settings.cert_file, &settings.key_file) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert_file), Some(key_file)) => {
            let key = PrivateKeyDer::from_pem_file(key_file)
                .map_err(|error| unreadable("key", key_file, &error))?;
            builder
                .with_client_auth_cert(certificates(cert_file)?, key)
                .map_err(|error| {
                    let (cert_file, key_file) = (cert_file.display(), key_file.display());
                    format!("the certificate {cert_file} cannot be used with the key {key_file}: {error}")
                })?
        }
        _ => {
            return Err(
                "a client certificate needs both its certificate file and its key file".to_owned(),
            );
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unreadable("certificate", file, &error))?;
    if certificates.is_empty() {
        return Err(format!("the file {} holds no certificate", file.display()));
    }
    Ok(certificates)
}

fn unreadable(what: &str, file: &Path, error: &rustls::pki_types::pem::Error) -> String {
    format!("cannot read the {what} file {}: {error}", file.display())
}

/// What is checked of a server's certificate.
#[derive(Debug)]
enum Check {
    Nothing,
    Trust,
    TrustAndName,
}

/// Checks certificates as far as `sslmode` asks.
#[derive(Debug)]
struct Verifier {
    check: Check,
    /// `None` where no certificate needs to be trusted.
    trusted: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(settings: &TlsSettings, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let check = match settings.mode {
            TlsMode::VerifyFull if settings.check_hostname => Check::TrustAndName,
            TlsMode::VerifyFull | TlsMode::VerifyCa => Check::Trust,
            // As libpq does: who names a CA wants it to count.
            TlsMode::Require if settings.ca_file.is_some() => Check::Trust,
            TlsMode::Require | TlsMode::Prefer | TlsMode::Allow | TlsMode::Disable => {
                Check::Nothing
            }
        };
        let trusted = match check {
            Check::Nothing => None,
            Check::Trust | Check::TrustAndName => {
                let roots = Arc::new(roots(settings.ca_file.as_deref())?);
                let built =
                    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider))
                        .build()
                        .map_err(|error| format!("the trusted certificates: {error}"))?;
                Some(built)
            }
        };
        Ok(Self {
            check,
            trusted,
            provider: Arc::clone(provider),
        })
    }
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| {
                    format!(
                        "a certificate in {} cannot be trusted: {error}",
                        file.display()
                    )
                })?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(
            "the system trusts no certificates: install ca-certificates, or name a CA file"
                .to_owned(),
        );
    }
    Ok(roots)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(trusted) = &self.trusted else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified =
            trusted.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is checked last: whoever gets this far is trusted.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if matches!(self.check, Check::Trust) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
