//! A WebSocket client.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Connects; the server must choose the subprotocol if it is Prefect's.
pub(crate) async fn connect(
    address: &str,
    subprotocol: Option<&'static str>,
) -> Result<Socket, Error> {
    connect_to(address, "/api/events/in", subprotocol, &[]).await
}

/// The same at any path, with headers of its own.
pub(crate) async fn connect_to(
    address: &str,
    path: &str,
    subprotocol: Option<&'static str>,
    headers: &[(&'static str, &str)],
) -> Result<Socket, Error> {
    let mut request = format!("ws://{address}{path}").into_client_request()?;
    for (name, value) in headers {
        let value = value.parse().expect("a header");
        request.headers_mut().insert(*name, value);
    }
    if let Some(subprotocol) = subprotocol {
        let value = subprotocol.parse().expect("a header");
        request
            .headers_mut()
            .insert("sec-websocket-protocol", value);
    }
    // Without delay, or frames wait on the client's side for the answer to earlier ones.
    let (socket, response) = connect_async_with_config(request, None, true).await?;
    let answered = response.headers().get("sec-websocket-protocol");
    assert_eq!(
        answered.is_some_and(|answered| answered == "prefect"),
        subprotocol.is_some_and(|subprotocol| subprotocol.contains("prefect")),
    );
    Ok(socket)
}

/// The first message of the handshake.
pub(crate) fn auth(token: Value) -> Message {
    Message::text(json!({"type": "auth", "token": token}).to_string())
}

pub(crate) async fn send(socket: &mut Socket, message: Message) {
    socket.send(message).await.expect("sent");
}

pub(crate) async fn send_auth(socket: &mut Socket, token: Value) {
    send(socket, auth(token)).await;
}

/// Sends events, each in a message of its own.
pub(crate) async fn send_events<'a>(
    socket: &mut Socket,
    events: impl IntoIterator<Item = &'a Value>,
) {
    for event in events {
        let message = Message::text(event.to_string());
        socket.feed(message).await.expect("sent");
    }
    socket.flush().await.expect("sent");
}

pub(crate) async fn send_ping(socket: &mut Socket, data: &'static str) {
    send(socket, Message::Ping(data.into())).await;
}

/// The handshake, which must succeed.
pub(crate) async fn authenticate(socket: &mut Socket, token: Value) {
    send_auth(socket, token).await;
    assert_eq!(text(socket).await, r#"{"type":"auth_success"}"#);
}

pub(crate) async fn next(socket: &mut Socket) -> Message {
    tokio::time::timeout(Duration::from_secs(20), socket.next())
        .await
        .expect("an answer in time")
        .expect("an open connection")
        .expect("a frame")
}

pub(crate) async fn text(socket: &mut Socket) -> String {
    next(socket).await.into_text().expect("a text").to_string()
}

pub(crate) async fn closed(socket: &mut Socket) -> CloseFrame {
    match next(socket).await {
        Message::Close(Some(frame)) => frame,
        other => panic!("expected a close, got {other:?}"),
    }
}

/// Sends a ping and returns once its pong is there.
pub(crate) async fn ping(socket: &mut Socket, data: &'static str) {
    send_ping(socket, data).await;
    let mut answer = next(socket).await;
    // The server asks as well, where a test has been silent for long.
    while answer.is_ping() {
        answer = next(socket).await;
    }
    assert_eq!(answer, Message::Pong(data.into()));
}
