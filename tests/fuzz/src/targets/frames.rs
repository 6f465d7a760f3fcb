//! The messages in the bytes of a WebSocket.

use event_persister_actors::source::http::cut_messages;

const LIMIT: usize = 300;

/// The first byte chooses how the others are cut into pieces. Whatever the pieces, the messages are
/// the same, what is refused is the same, and no more is held than a message and a frame may have.
pub fn frames(data: &[u8]) {
    let Some((seed, bytes)) = data.split_first() else {
        return;
    };
    let whole = cut_messages([bytes], LIMIT);
    let byte_by_byte = cut_messages(bytes.chunks(1), LIMIT);
    let at_random = cut_messages(pieces(bytes, (*seed).into()), LIMIT);
    for other in [byte_by_byte, at_random] {
        assert_eq!(whole.messages, other.messages);
        assert_eq!(whole.error.is_some(), other.error.is_some());
        let longest_header = 14;
        assert!(other.most_held <= 2 * LIMIT + longest_header);
    }
}

fn pieces(mut bytes: &[u8], seed: u64) -> Vec<&[u8]> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(rng.usize(1..=bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}
