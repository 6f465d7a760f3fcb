//! Certificates for one test.

use std::path::Path;
use std::process::Command;

/// A name that no server of a test has.
pub(crate) const ELSEWHERE: &str = "DNS:elsewhere.example";

/// An authority (`ca.pem`), and a certificate for 127.0.0.1 and localhost that it signed
/// (`server.pem`, `server.key`).
pub(crate) fn make(directory: &Path) {
    let authority = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -x509 -days 2 \
                     -subj /CN=authority -keyout ca.key -out ca.pem";
    openssl(directory, authority);
    sign(directory);
}

/// Another certificate for the same names, signed by the authority that is there.
pub(crate) fn sign(directory: &Path) {
    sign_for(directory, "DNS:localhost,IP:127.0.0.1");
}

/// The same for other names.
pub(crate) fn sign_for(directory: &Path, names: &str) {
    let names = format!("subjectAltName={names}\nbasicConstraints=CA:FALSE\n");
    std::fs::write(directory.join("names"), names).unwrap();
    let request = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost \
                   -keyout new.key -out server.csr";
    openssl(directory, request);
    let signature = "x509 -req -days 2 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
                     -extfile names -out new.pem";
    openssl(directory, signature);
    for kind in ["key", "pem"] {
        let [new, server] = ["new", "server"].map(|name| directory.join(format!("{name}.{kind}")));
        std::fs::rename(new, server).unwrap();
    }
}

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(directory)
        .output()
        .expect("openssl is installed");
    assert!(output.status.success(), "{output:?}");
}
