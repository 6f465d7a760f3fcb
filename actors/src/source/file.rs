//! Source: newline-delimited events from any reader.
