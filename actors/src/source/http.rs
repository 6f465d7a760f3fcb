//! Source: HTTP and WebSocket routes that fill an [`intake`](super::intake).
