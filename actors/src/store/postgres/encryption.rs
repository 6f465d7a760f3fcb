//! TLS that tells whether it was begun.
//!
//! With `prefer` the server is asked whether it encrypts. The client does not tell what it said.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

#[derive(Clone)]
pub(super) struct Noted<T = MakeRustlsConnect> {
    tls: T,
    was_begun: Arc<AtomicBool>,
}

impl Noted {
    pub(super) fn new(tls: MakeRustlsConnect) -> Self {
        Self {
            tls,
            was_begun: Arc::default(),
        }
    }

    /// Whether a server has agreed to encrypt.
    pub(super) fn was_begun(&self) -> bool {
        self.was_begun.load(Ordering::Relaxed)
    }
}

impl<S, T: MakeTlsConnect<S>> MakeTlsConnect<S> for Noted<T> {
    type Stream = T::Stream;
    type TlsConnect = Noted<T::TlsConnect>;
    type Error = T::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Self::TlsConnect, T::Error> {
        Ok(Noted {
            tls: self.tls.make_tls_connect(domain)?,
            was_begun: Arc::clone(&self.was_begun),
        })
    }
}

impl<S, T: TlsConnect<S>> TlsConnect<S> for Noted<T> {
    type Stream = T::Stream;
    type Error = T::Error;
    type Future = T::Future;

    fn connect(self, stream: S) -> T::Future {
        self.was_begun.store(true, Ordering::Relaxed);
        self.tls.connect(stream)
    }
}
