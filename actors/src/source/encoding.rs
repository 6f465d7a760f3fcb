//! The encoding in which a JSON text comes, and the text without its mark.
//!
//! Told by the first bytes alone, as by Python's `json.loads` and so by Prefect's server: a byte-order mark,
//! or the zeros that the first two characters of JSON, being ASCII, have in wider encodings.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    Utf16(Endian),
    Utf32(Endian),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endian {
    Little,
    Big,
}

#[cfg(feature = "file")]
pub(super) const ENOUGH: usize = 4;

/// The encoding of a text that begins so, and the length of its byte-order mark.
pub(super) fn detect(beginning: &[u8]) -> (Encoding, usize) {
    use Encoding::{Utf8, Utf16, Utf32};
    use Endian::{Big, Little};
    match beginning {
        [0, 0, 0xFE, 0xFF, ..] => (Utf32(Big), 4),
        [0xFF, 0xFE, 0, 0, ..] => (Utf32(Little), 4),
        [0xFE, 0xFF, ..] => (Utf16(Big), 2),
        [0xFF, 0xFE, ..] => (Utf16(Little), 2),
        [0xEF, 0xBB, 0xBF, ..] => (Utf8, 3),
        [0, 0, _, _, ..] => (Utf32(Big), 0),
        [0, _, _, _, ..] | [0, _] => (Utf16(Big), 0),
        [_, 0, 0, 0, ..] => (Utf32(Little), 0),
        [_, 0, _, _, ..] | [_, 0] => (Utf16(Little), 0),
        _ => (Utf8, 0),
    }
}

impl Encoding {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "UTF-8",
            Self::Utf16(Endian::Little) => "UTF-16LE",
            Self::Utf16(Endian::Big) => "UTF-16BE",
            Self::Utf32(Endian::Little) => "UTF-32LE",
            Self::Utf32(Endian::Big) => "UTF-32BE",
        }
    }

    /// The text behind the mark; `None` if it is not in this encoding.
    #[cfg(feature = "http")]
    pub(super) fn decode(self, bytes: &[u8]) -> Option<String> {
        let mut text = String::with_capacity(self.decoded_len(bytes)?);
        self.each(bytes, |character| text.push(character))?;
        Some(text)
    }

    /// How many bytes the text has once it is UTF-8; `None` if it is not in this encoding.
    #[cfg(feature = "http")]
    pub(super) fn decoded_len(self, bytes: &[u8]) -> Option<usize> {
        let mut num_bytes = 0;
        self.each(bytes, |character| num_bytes += character.len_utf8())?;
        Some(num_bytes)
    }

    #[cfg(feature = "http")]
    fn each(self, bytes: &[u8], mut take: impl FnMut(char)) -> Option<()> {
        match self {
            Self::Utf8 => std::str::from_utf8(bytes).ok()?.chars().for_each(take),
            Self::Utf16(endian) => {
                let (units, rest) = bytes.as_chunks::<2>();
                let units = units.iter().map(|unit| match endian {
                    Endian::Little => u16::from_le_bytes(*unit),
                    Endian::Big => u16::from_be_bytes(*unit),
                });
                for character in char::decode_utf16(units) {
                    take(character.ok()?);
                }
                rest.is_empty().then_some(())?;
            }
            Self::Utf32(endian) => {
                let (units, rest) = bytes.as_chunks::<4>();
                for unit in units {
                    take(char::from_u32(match endian {
                        Endian::Little => u32::from_le_bytes(*unit),
                        Endian::Big => u32::from_be_bytes(*unit),
                    })?);
                }
                rest.is_empty().then_some(())?;
            }
        }
        Some(())
    }
}

#[cfg(all(test, feature = "http"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WIDE: [Encoding; 4] = [
        Encoding::Utf16(Endian::Little),
        Encoding::Utf16(Endian::Big),
        Encoding::Utf32(Endian::Little),
        Encoding::Utf32(Endian::Big),
    ];

    fn encode(encoding: Encoding, text: &str) -> Vec<u8> {
        match encoding {
            Encoding::Utf8 => text.as_bytes().to_vec(),
            Encoding::Utf16(endian) => text
                .encode_utf16()
                .flat_map(|unit| match endian {
                    Endian::Little => unit.to_le_bytes(),
                    Endian::Big => unit.to_be_bytes(),
                })
                .collect(),
            Encoding::Utf32(endian) => text
                .chars()
                .flat_map(|character| match endian {
                    Endian::Little => u32::from(character).to_le_bytes(),
                    Endian::Big => u32::from(character).to_be_bytes(),
                })
                .collect(),
        }
    }

    #[test]
    fn half_a_unit_and_half_a_pair_are_no_text() {
        for encoding in WIDE {
            let mut bytes = encode(encoding, "[]");
            bytes.push(b' ');
            assert_eq!(encoding.decode(&bytes), None, "{encoding:?}");
        }
        assert_eq!(WIDE[0].decode(&[b'[', 0, 0, 0xD8]), None);
        assert_eq!(Encoding::Utf8.decode(b"[\xff]"), None);
    }

    proptest! {
        #[test]
        fn tells_every_encoding_of_a_list(rest in ".{0,20}", marked in any::<bool>()) {
            let text = format!("[{{{rest}");
            for encoding in WIDE.into_iter().chain([Encoding::Utf8]) {
                let mut bytes = if marked { encode(encoding, "\u{feff}") } else { Vec::new() };
                let mark = bytes.len();
                bytes.extend(encode(encoding, &text));
                prop_assert_eq!(detect(&bytes), (encoding, mark));
                let decoded = encoding.decode(&bytes[mark..]);
                prop_assert_eq!(decoded.as_deref(), Some(text.as_str()));
                prop_assert_eq!(encoding.decoded_len(&bytes[mark..]), Some(text.len()));
            }
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let (encoding, mark) = detect(&bytes);
            let decoded = encoding.decode(&bytes[mark..]);
            prop_assert_eq!(decoded.map(|text| text.len()), encoding.decoded_len(&bytes[mark..]));
        }
    }
}
