//! A client of HTTP. One that could speak TLS, as with all features it could, asks for a provider of
//! cryptography, whether it does or not.

use tokio_rustls::rustls::crypto::ring;

pub(crate) fn builder() -> reqwest::ClientBuilder {
    // Whoever came first has installed the same.
    drop(ring::default_provider().install_default());
    reqwest::Client::builder()
}

pub(crate) fn client() -> reqwest::Client {
    builder().build().unwrap()
}
