//! What an entry of the stream is to the pipeline.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::delivery::{Content, Entry, Position, Rejection};
use crate::source::Body;

use super::SOURCE_NAME;
use super::stream_id::StreamId;
use super::taken::Fetched;

/// The event is what stands in the field `data`; the last one, should there be several, as a
/// client that makes a map of the fields sees it.
///
/// The field `attributes` is not looked at. Prefect's consumer leaves an entry pending for ever
/// when that is no JSON; but it only repeats the id and the name, and what is an event is stored.
pub(super) fn fetched(id: StreamId, fields: Vec<(Bytes, Bytes)>) -> Fetched {
    let position = Position::new(id.to_string());
    let data = fields.iter().rfind(|(field, _)| field == "data");
    if let Some((_, data)) = data {
        return Fetched {
            id,
            num_bytes: data.len(),
            body: Body::Raw {
                position,
                data: data.clone(),
            },
        };
    }
    let raw = Bytes::from(rendered(&fields));
    Fetched {
        id,
        num_bytes: raw.len(),
        body: Body::Entry(Arc::new(Entry {
            source: Arc::from(SOURCE_NAME),
            position,
            content: Content::Rejected(Rejection {
                raw,
                reason: "the stream's entry has no field `data`; what it has is kept as a list of \
                         fields and values"
                    .to_owned(),
                event_id: None,
            }),
        })),
    }
}

/// All fields in their order, as JSON; what is no UTF-8 as `{"hex": "…"}`.
fn rendered(fields: &[(Bytes, Bytes)]) -> String {
    let fields = fields
        .iter()
        .map(|(field, value)| json!([text_or_hex(field), text_or_hex(value)]));
    Value::Array(fields.collect()).to_string()
}

fn text_or_hex(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({"hex": hex})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(fields: &[(&'static [u8], &'static [u8])]) -> Fetched {
        let id = "1526919030474-55".parse().unwrap();
        let pair = |&(field, value)| (Bytes::from_static(field), Bytes::from_static(value));
        fetched(id, fields.iter().map(pair).collect())
    }

    #[test]
    fn data_decides_whatever_else_there_is() {
        let fields: [(&[u8], &[u8]); 3] = [(b"data", b"{}"), (b"attributes", b"no"), (b"x", b"")];
        let Body::Raw { position, data } = entry(&fields).body else {
            panic!("data is there")
        };
        assert_eq!(
            (position.as_str(), &data[..]),
            ("1526919030474-55", &b"{}"[..])
        );
        let invalid = entry(&[(b"data", b"\xff\xfe")]);
        assert_eq!(invalid.num_bytes, 2, "goes on as it is");
        assert_eq!(entry(&[(b"data", b"1"), (b"data", b"22")]).num_bytes, 2);
    }

    #[test]
    fn an_entry_without_data_is_kept_whole() {
        let fetched = entry(&[(b"a", b"\"1\""), (b"\xff", b"2")]);
        let Body::Entry(entry) = fetched.body else {
            panic!("a rejection")
        };
        assert_eq!(entry.raw(), br#"[["a","\"1\""],[{"hex":"ff"},"2"]]"#);
        assert_eq!(entry.position.as_str(), "1526919030474-55");
        assert_eq!(fetched.num_bytes, entry.num_bytes());
    }
}
