//! TLS as a client, by rustls with ring: no system library is needed.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
#[cfg(any(feature = "postgres", feature = "redis"))]
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use rustls::{DEFAULT_VERSIONS, OtherError, SupportedProtocolVersion};

/// Why no connection can be encrypted; names the file that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsFault(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// Nothing at all, so that any certificate will do, one of version 1 too: protects from nobody who can redirect
    /// traffic.
    Nothing,
    Authority,
    /// The same, and that it is made out to the host.
    AuthorityAndName,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Files<'a> {
    /// The authorities to trust in place of the system's.
    pub(crate) ca: Option<&'a Path>,
    /// Our own certificate and those that lead to it.
    pub(crate) cert: Option<&'a Path>,
    pub(crate) key: Option<&'a Path>,
}

/// The versions of the protocol that may be spoken; the default is all that are safe, 1.2 and 1.3.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Versions {
    #[default]
    Safe,
    #[cfg(any(feature = "postgres", feature = "redis"))]
    Only12,
    #[cfg(any(feature = "postgres", feature = "redis"))]
    Only13,
}

impl Versions {
    #[cfg(any(feature = "postgres", feature = "redis"))]
    /// From the lowest to the highest, as libpq names them, each with the name of what says so. Lower ones than
    /// 1.2 are never spoken.
    pub(crate) fn of(
        lowest: Option<(&str, &str)>,
        highest: Option<(&str, &str)>,
    ) -> Result<Self, String> {
        let number = |limit: Option<(&str, &str)>, default| match limit {
            None => Ok(default),
            Some((name, version)) => match version.replace('_', ".").as_str() {
                "TLSv1" => Ok(10),
                "TLSv1.1" => Ok(11),
                "TLSv1.2" => Ok(12),
                "TLSv1.3" => Ok(13),
                _ => Err(format!("{name} is TLSv1.2 or TLSv1.3, not {version:?}")),
            },
        };
        match (number(lowest, 12)?.max(12), number(highest, 13)?) {
            (12, 13) => Ok(Self::Safe),
            (12, 12) => Ok(Self::Only12),
            (13, 13) => Ok(Self::Only13),
            _ => Err(
                "no version of TLS that is safe lies between the lowest and the highest".to_owned(),
            ),
        }
    }

    fn supported(self) -> &'static [&'static SupportedProtocolVersion] {
        #[cfg(any(feature = "postgres", feature = "redis"))]
        static ONLY_12: [&SupportedProtocolVersion; 1] = [&TLS12];
        #[cfg(any(feature = "postgres", feature = "redis"))]
        static ONLY_13: [&SupportedProtocolVersion; 1] = [&TLS13];
        match self {
            Self::Safe => DEFAULT_VERSIONS,
            #[cfg(any(feature = "postgres", feature = "redis"))]
            Self::Only12 => &ONLY_12,
            #[cfg(any(feature = "postgres", feature = "redis"))]
            Self::Only13 => &ONLY_13,
        }
    }
}

/// For a server that proves nothing, since nothing secret is told to it or believed of it.
///
/// # Errors
///
/// None that is known.
pub fn trusting_anyone() -> Result<ClientConfig, TlsFault> {
    client(Check::Nothing, Files::default(), Versions::Safe)
}

/// For a server whose certificate an authority of this system vouches for.
///
/// # Errors
///
/// This system trusts no authority.
pub fn trusting_authorities() -> Result<ClientConfig, TlsFault> {
    client(Check::AuthorityAndName, Files::default(), Versions::Safe)
}

/// How to connect. The files are read now, so that a renewed one counts from the next connection on.
pub(crate) fn client(
    check: Check,
    files: Files<'_>,
    versions: Versions,
) -> Result<ClientConfig, TlsFault> {
    // Named, for another part of the process may bring a provider of its own.
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier::new(check, files.ca, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions.supported())
        .map_err(|error| TlsFault(format!("TLS cannot be set up: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    match (files.cert, files.key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let secret = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| unreadable("key", key, &error))?;
            builder
                .with_client_auth_cert(chain, secret)
                .map_err(|error| {
                    let (cert, key) = (cert.display(), key.display());
                    TlsFault(format!(
                        "the certificate {cert} cannot be used with the key {key}: {error}"
                    ))
                })
        }
        _ => Err(TlsFault(
            "a client certificate needs both its certificate file and its key file".to_owned(),
        )),
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unreadable("certificate", file, &error))?;
    if certificates.is_empty() {
        let file = file.display();
        return Err(TlsFault(format!("the file {file} holds no certificate")));
    }
    Ok(certificates)
}

fn unreadable(what: &str, file: &Path, error: &pem::Error) -> TlsFault {
    let file = file.display();
    TlsFault(format!("the {what} file {file} cannot be read: {error}"))
}

fn roots(ca: Option<&Path>) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsFault> {
    let mut roots = RootCertStore::empty();
    let trusted = match ca {
        Some(file) => {
            let trusted = certificates(file)?;
            for certificate in &trusted {
                roots.add(certificate.clone()).map_err(|error| {
                    let file = file.display();
                    TlsFault(format!(
                        "a certificate in {file} cannot be trusted: {error}"
                    ))
                })?;
            }
            trusted
        }
        None => {
            let trusted = rustls_native_certs::load_native_certs().certs;
            roots.add_parsable_certificates(trusted.iter().cloned());
            trusted
        }
    };
    if roots.is_empty() {
        return Err(TlsFault(
            "there is no certificate of an authority to trust: install the system's \
             (ca-certificates) or name a file with them"
                .to_owned(),
        ));
    }
    Ok((roots, trusted))
}

/// What is to be done about a certificate that cannot be read here, told where an error is.
struct Unreadable(Error);

impl fmt::Debug for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}. It is of version 1, or malformed. Make it anew with the host's name, as with `openssl x509 -req -extfile \
             FILE`, where FILE has the line subjectAltName=DNS:HOST",
            self.0
        )
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Unreadable {}

#[derive(Debug)]
struct Verifier {
    check: Check,
    /// `None` where no certificate needs to be trusted.
    trusted: Option<Trusted>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
struct Trusted {
    authorities: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Trusted {
    /// A server may show the very certificate that is trusted, made by itself for itself. It says of itself that it
    /// is an authority, which the authorities' verifier takes for no server; the dates were right.
    fn holds(
        &self,
        shown: &CertificateDer<'_>,
        name: &ServerName<'_>,
    ) -> Option<Result<ServerCertVerified, Error>> {
        let parsed = ParsedCertificate::try_from(shown).ok()?;
        let is_trusted = self.certificates.iter().any(|trusted| trusted == shown);
        is_trusted
            .then(|| verify_server_name(&parsed, name).map(|()| ServerCertVerified::assertion()))
    }
}

impl Verifier {
    fn new(
        check: Check,
        ca: Option<&Path>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsFault> {
        let trusted = match check {
            Check::Nothing => None,
            Check::Authority | Check::AuthorityAndName => {
                let (roots, certificates) = roots(ca)?;
                let provider = Arc::clone(provider);
                let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| TlsFault(format!("the trusted certificates: {error}")))?;
                Some(Trusted {
                    authorities: built,
                    certificates,
                })
            }
        };
        Ok(Self {
            check,
            trusted,
            provider: Arc::clone(provider),
        })
    }
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
        let verified = trusted.authorities.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        let verified = match verified {
            Err(Error::InvalidCertificate(CertificateError::Other(_))) => {
                trusted.holds(end_entity, server_name).unwrap_or(verified)
            }
            verified => verified,
        };
        match verified {
            // The name is checked last: a certificate that gets this far is trusted.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.check == Check::Authority => Ok(ServerCertVerified::assertion()),
            Err(error) if ParsedCertificate::try_from(end_entity).is_err() => {
                let unreadable = OtherError(Arc::new(Unreadable(error)));
                Err(CertificateError::Other(unreadable).into())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.trusted.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.trusted.is_none() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(all(test, any(feature = "postgres", feature = "redis")))]
mod tests {
    use super::*;

    #[test]
    fn nothing_below_tls_1_2_is_spoken_and_a_limit_is_kept() {
        let of = |lowest: Option<&'static str>, highest: Option<&'static str>| {
            let named = |limit: Option<&'static str>| limit.map(|version| ("the limit", version));
            Versions::of(named(lowest), named(highest))
        };
        assert_eq!(of(None, None), Ok(Versions::Safe));
        assert_eq!(of(Some("TLSv1"), Some("TLSv1.3")), Ok(Versions::Safe));
        assert_eq!(of(Some("TLSv1.3"), None), Ok(Versions::Only13));
        assert_eq!(of(None, Some("TLSv1.2")), Ok(Versions::Only12));
        assert!(of(None, Some("TLSv1.1")).is_err());
        assert!(of(Some("TLSv1.3"), Some("TLSv1.2")).is_err());
        assert!(of(Some("SSLv3"), None).is_err());
    }
}
