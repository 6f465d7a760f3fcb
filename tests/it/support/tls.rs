//! A client of the listener that speaks TLS.

use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::binary::Folder;
use super::server::Server;
use super::wait::in_time;

/// The certificate in the folder, as settings.
pub(crate) const FILES: [(&str, &str); 2] = [
    ("EVENT_PERSISTER_HTTP_TLS_CERT_FILE", "server.pem"),
    ("EVENT_PERSISTER_HTTP_TLS_KEY_FILE", "server.key"),
];

/// Whoever trusts the authority in the folder.
fn connector(folder: &Path) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap();
    roots.add(authority).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

pub(crate) async fn connect_to(folder: &Folder, server: &Server) -> TlsStream<TcpStream> {
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(server.address()).await.unwrap();
    let connected = connector(folder.path()).connect(name, stream).await;
    connected.unwrap()
}

/// Sends one request, which may have more headers behind its first line, and returns the answer.
pub(crate) async fn ask(
    stream: &mut TlsStream<TcpStream>,
    head: &str,
    headers: &str,
    body: &str,
) -> String {
    let request = format!(
        "{head} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = in_time("at its end", stream.read_to_string(&mut answer)).await;
    read.unwrap();
    answer
}

/// Asks until it is ready.
pub(crate) async fn until_ready(folder: &Folder, server: &Server) {
    let ready = async {
        loop {
            let mut client = connect_to(folder, server).await;
            let answer = ask(&mut client, "GET /api/ready", "", "").await;
            if answer.starts_with("HTTP/1.1 200") {
                return;
            }
        }
    };
    in_time("ready", ready).await;
}
