//! Secrets from files, as Docker, Kubernetes and systemd hand them out.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// More is no secret, but a file that was named by mistake.
const MAX_BYTES: u64 = 64 * 1024;

/// The contents without the ends of line behind them. The errors hold nothing of them.
pub(super) fn read(variable: &str, path: &Path) -> Result<String, String> {
    let shown = path.display();
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| {
            format!(
                "{variable}: cannot read {shown}: {error}; name a file that this user may read, or \
                 unset the variable"
            )
        })?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!(
            "{variable}: {shown} is larger than any secret; name the file that holds it alone"
        ));
    }
    let text = String::from_utf8(bytes).map_err(|_| {
        format!("{variable}: {shown} is not UTF-8; name the file that holds the secret as text")
    })?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(format!(
            "{variable}: {shown} is empty; write the secret into it, or unset the variable"
        )),
        secret => Ok(secret.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tempfile::NamedTempFile;

    use super::*;

    fn read_back(contents: &[u8]) -> Result<String, String> {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(contents).unwrap();
        read("V_FILE", file.path())
    }

    #[test]
    fn only_the_ends_of_line_behind_it_are_removed() {
        assert_eq!(read_back(b" a b \r\n\n"), Ok(" a b ".to_owned()));
        assert_eq!(read_back(b"a\nb"), Ok("a\nb".to_owned()));
    }

    #[test]
    fn what_cannot_be_a_secret_is_refused_and_not_repeated() {
        for (contents, expected) in [
            (&b"\n"[..], "is empty"),
            (b"s3cret\xff", "not UTF-8"),
            (&[b's'; 70_000], "larger than any secret"),
        ] {
            let error = read_back(contents).unwrap_err();
            assert!(error.starts_with("V_FILE: "), "{error}");
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        let missing = read("V_FILE", Path::new("missing/secret")).unwrap_err();
        assert!(missing.contains("missing/secret"), "{missing}");
    }
}
