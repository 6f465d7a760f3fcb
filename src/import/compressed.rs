//! Decompresses gzip and zstd, which are known by their first bytes.
//!
//! Several members or frames in a row are one text, as for the tools of both formats. Data that breaks off is
//! an error behind the last bytes that were read.

use std::io::{self, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

/// As much as one system call should bring.
const BUFFER_BYTES: usize = 128 * 1024;

/// Reads nothing before it is read.
pub(super) struct Unpacked {
    raw: Option<Counted>,
    /// `None` before that, and for ever if it failed.
    unpacked: Option<(Format, Box<dyn Read + Send>)>,
    num_raw: Arc<AtomicU64>,
}

/// Counts what is read, for whoever watches.
struct Counted {
    reader: Box<dyn Read + Send>,
    num_bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let num_read = self.reader.read(buffer)?;
        let num = u64::try_from(num_read).unwrap_or(u64::MAX);
        self.num_bytes.fetch_add(num, Ordering::Relaxed);
        Ok(num_read)
    }
}

impl Unpacked {
    pub(super) fn new(reader: Box<dyn Read + Send>) -> Self {
        let num_raw = Arc::default();
        let reader = Counted {
            reader,
            num_bytes: Arc::clone(&num_raw),
        };
        Self {
            raw: Some(reader),
            unpacked: None,
            num_raw,
        }
    }

    pub(super) fn num_raw(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.num_raw)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Gzip,
    Zstd,
    Plain,
}

/// What the first bytes say; `None` where more of them are needed.
fn format(beginning: &[u8]) -> Option<Format> {
    match beginning {
        [0x1F, 0x8B, ..] => Some(Format::Gzip),
        // Or a frame to be skipped, which may come first.
        [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Some(Format::Zstd),
        []
        | [0x1F | 0x28 | 0x50..=0x5F]
        | [0x28, 0xB5]
        | [0x28, 0xB5, 0x2F]
        | [0x50..=0x5F, 0x2A]
        | [0x50..=0x5F, 0x2A, 0x4D] => None,
        _ => Some(Format::Plain),
    }
}

fn unpack(mut raw: Counted) -> io::Result<(Format, Box<dyn Read + Send>)> {
    let mut beginning = Vec::new();
    // No more is waited for than is needed to tell.
    while format(&beginning).is_none() && (&mut raw).take(1).read_to_end(&mut beginning)? > 0 {}
    let format = format(&beginning).unwrap_or(Format::Plain);
    let all = Cursor::new(beginning).chain(raw);
    let buffered = |all| BufReader::with_capacity(BUFFER_BYTES, all);
    let reader: Box<dyn Read + Send> = match format {
        Format::Plain => Box::new(all),
        Format::Gzip => Box::new(MultiGzDecoder::new(buffered(all))),
        Format::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(buffered(all))?),
    };
    Ok((format, reader))
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(raw) = self.raw.take() {
            self.unpacked = Some(unpack(raw)?);
        }
        let Some((format, reader)) = &mut self.unpacked else {
            return Ok(0);
        };
        let name = match format {
            Format::Plain => return reader.read(buffer),
            Format::Gzip => "gzip",
            Format::Zstd => "zstd",
        };
        reader.read(buffer).map_err(|error| {
            let at = self.num_raw.load(Ordering::Relaxed);
            let what = match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    format!("the {name} data breaks off after {at} bytes; get the rest of the file")
                }
                _ => format!("the {name} data is damaged before byte {at}: {error}"),
            };
            io::Error::new(error.kind(), what)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(text, 1).unwrap()
    }

    fn unpack(data: &[u8]) -> (Vec<u8>, Option<io::Error>) {
        let mut unpacked = Unpacked::new(Box::new(Cursor::new(data.to_vec())));
        let mut text = Vec::new();
        let error = unpacked.read_to_end(&mut text).err();
        (text, error)
    }

    /// Enough that it does not come in one piece.
    fn lines() -> Vec<u8> {
        let lines = (0..200_000).map(|number| format!("{{\"number\":{number}}}\n"));
        lines.collect::<String>().into_bytes()
    }

    #[test]
    fn several_members_and_frames_are_one_text() {
        let text = lines();
        let (first, second) = text.split_at(text.len() / 3);
        let skipped = [
            &[0x53, 0x2A, 0x4D, 0x18, 2, 0, 0, 0, 9, 9][..],
            &zstd(first),
        ]
        .concat();
        for data in [
            text.clone(),
            [gzip(first), gzip(second)].concat(),
            [zstd(first), zstd(second)].concat(),
            [skipped, zstd(second)].concat(),
        ] {
            let (unpacked, error) = unpack(&data);
            assert!(error.is_none(), "{error:?}");
            assert!(unpacked == text);
        }
    }

    #[test]
    fn what_was_cut_off_is_read_up_to_there_and_told() {
        let text = lines();
        for (name, data) in [("gzip", gzip(&text)), ("zstd", zstd(&text))] {
            let cut = data.len() * 2 / 3;
            let (unpacked, error) = unpack(&data[..cut]);
            assert!(
                !unpacked.is_empty() && text.starts_with(&unpacked),
                "{name}"
            );
            let error = error.unwrap().to_string();
            let expected = format!("the {name} data breaks off after {cut} bytes");
            assert!(error.contains(&expected), "{error}");
        }
        let mut damaged = gzip(&text);
        // The checksum at its end.
        let checksum = damaged.len() - 8;
        damaged[checksum] ^= 0xFF;
        let (_, error) = unpack(&damaged);
        assert!(
            error
                .unwrap()
                .to_string()
                .contains("the gzip data is damaged")
        );
    }

    #[test]
    fn short_texts_are_what_they_are() {
        for text in [&b""[..], b"{", b"(", b"P", b"\x1f", b"(\xb5/", b"\n"] {
            let (unpacked, error) = unpack(text);
            assert_eq!((unpacked.as_slice(), error.is_none()), (text, true));
        }
    }
}
