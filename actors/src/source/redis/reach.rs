//! How a host is reached: its addresses one after another, until one greets us.
//!
//! Each address has a time limit of its own, for everything up to the greeting. So a dead one costs that time, and
//! the next is tried. An address that answers is not passed over, whatever it answers.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, RedisError, RedisResult};
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::tls;

use super::connection::Stream;
use super::settings::RedisSettings;
use super::url::host_with_port;

/// A connection to the first address of a host that can be had, encrypted if the URL says so.
pub(super) async fn reach<T, G>(
    settings: &RedisSettings,
    host: &str,
    port: u16,
    limit: Duration,
    greet: impl Fn(Box<dyn Stream>) -> G,
) -> RedisResult<T>
where
    G: Future<Output = RedisResult<T>>,
{
    let looked_up = timeout(limit, lookup_host((host, port))).await;
    let late = |_| silent(format!("the name {host} is not looked up within {limit:?}"));
    let addresses: Vec<SocketAddr> = looked_up.map_err(late)??.collect();
    let greet = &greet;
    let (reached, passed_over) = first_of(&addresses, limit, |address| async move {
        greet(connect_at(settings, host, address).await?).await
    })
    .await?;
    if !passed_over.is_empty() {
        log::warn!(
            "addresses of Redis that say nothing were passed over redis.host={} redis.silent=\"{}\"",
            host_with_port(host, port),
            listed(&passed_over)
        );
    }
    Ok(reached)
}

/// What the first address gives that has something, and those before it that were silent.
async fn first_of<T, C>(
    addresses: &[SocketAddr],
    limit: Duration,
    connect: impl Fn(SocketAddr) -> C,
) -> RedisResult<(T, Vec<SocketAddr>)>
where
    C: Future<Output = RedisResult<T>>,
{
    let mut silent_ones = Vec::new();
    let mut failed: Vec<(SocketAddr, RedisError)> = Vec::new();
    for &address in addresses {
        let connected = timeout(limit, connect(address)).await;
        let late = |_| {
            let why = format!("nothing was heard of {address} for {limit:?}");
            Err(silent(why))
        };
        match connected.unwrap_or_else(late) {
            Ok(connected) => return Ok((connected, silent_ones)),
            Err(error) if !error.is_io_error() => return Err(error),
            Err(error) => {
                if error.is_timeout() {
                    silent_ones.push(address);
                }
                failed.push((address, error));
            }
        }
    }
    Err(together(failed))
}

/// One error of all. That an address is silent matters more than that nobody listens at another.
fn together(mut failed: Vec<(SocketAddr, RedisError)>) -> RedisError {
    if failed.len() == 1
        && let Some((_, error)) = failed.pop()
    {
        return error;
    }
    let kind = if failed.iter().any(|(_, error)| error.is_timeout()) {
        io::ErrorKind::TimedOut
    } else if failed
        .iter()
        .all(|(_, error)| error.is_connection_refusal())
    {
        io::ErrorKind::ConnectionRefused
    } else {
        io::ErrorKind::NotConnected
    };
    let told = failed.iter().map(|(address, error)| {
        let told = error.to_string();
        // Our own words name it.
        if told.contains(&address.to_string()) {
            told
        } else {
            format!("{address}: {told}")
        }
    });
    let told: Vec<String> = told.collect();
    let told = if told.is_empty() {
        "the name has no address".to_owned()
    } else {
        told.join("; ")
    };
    io::Error::new(kind, told).into()
}

fn silent(why: String) -> RedisError {
    io::Error::new(io::ErrorKind::TimedOut, why).into()
}

fn listed(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(", ")
}

async fn connect_at(
    settings: &RedisSettings,
    host: &str,
    address: SocketAddr,
) -> RedisResult<Box<dyn Stream>> {
    let url = &settings.url;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    if !url.tls {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(host.to_owned()).map_err(refused_by_tls)?;
    let files = tls::Files {
        ca: settings.ca_file.as_deref(),
        cert: settings.cert_file.as_deref(),
        key: settings.key_file.as_deref(),
    };
    let config = tls::client(url.check, files, url.tls_versions).map_err(refused_by_tls)?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    Ok(Box::new(connecting.await.map_err(refused_by_tls)?))
}

fn refused_by_tls(error: impl std::fmt::Display) -> RedisError {
    let what = "no encrypted connection";
    RedisError::from((ErrorKind::InvalidClientConfig, what, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpSocket};

    const LIMIT: Duration = Duration::from_millis(200);

    /// Greets with one byte. Returns its address.
    async fn live() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.try_write(b"+").unwrap();
            }
        });
        address
    }

    /// Has no room for another connection, so that an attempt at one is not answered.
    async fn full() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut streams = Vec::new();
        while let Ok(stream) = timeout(LIMIT, TcpStream::connect(address)).await {
            streams.push(stream.unwrap());
        }
        (address, listener, streams)
    }

    async fn unused() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    }

    async fn first(addresses: &[SocketAddr]) -> RedisResult<(SocketAddr, Vec<SocketAddr>)> {
        first_of(addresses, LIMIT, |address| async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.read_u8().await?;
            Ok(address)
        })
        .await
    }

    #[tokio::test]
    async fn an_address_that_is_silent_does_not_hide_the_next() {
        let live = live().await;
        let (full, _listener, _streams) = full().await;
        let says_nothing = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let says_nothing = says_nothing.local_addr().map(|at| (at, says_nothing));
        let (says_nothing, _listener) = says_nothing.unwrap();
        let unused = unused().await;
        assert_eq!(first(&[full, live]).await.unwrap(), (live, vec![full]));
        assert_eq!(
            first(&[unused, says_nothing, live, full]).await.unwrap(),
            (live, vec![says_nothing])
        );
        let alone = first(&[full]).await.unwrap_err();
        assert!(alone.is_timeout(), "{alone}");
        assert_eq!(
            alone.to_string(),
            format!("nothing was heard of {full} for 200ms")
        );
        let both = first(&[unused, full]).await.unwrap_err();
        assert!(both.is_timeout(), "{both}");
        assert_eq!(
            both.to_string(),
            format!(
                "{unused}: Connection refused (os error 111); nothing was heard of {full} for 200ms"
            )
        );
        let refused = first(&[unused, unused]).await.unwrap_err();
        assert!(refused.is_connection_refusal(), "{refused}");
    }

    #[tokio::test]
    async fn an_answer_is_the_last_word() {
        let addresses = [unused().await, live().await];
        let refused = first_of(&addresses, LIMIT, |address| async move {
            if address == addresses[0] {
                return Err(refused_by_tls("its certificate"));
            }
            Ok(())
        });
        let refused = refused.await.unwrap_err();
        assert!(refused.to_string().contains("its certificate"), "{refused}");
    }
}
