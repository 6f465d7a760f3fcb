//! The variables that libpq and Python's driver read beside a URL. The host hands them in: nothing here looks
//! at the environment of the process.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::settings::TlsMode;
use super::url::Address;

/// By which Python finds the name of the system's user, in this order.
const SYSTEM_USER: [&str; 4] = ["LOGNAME", "USER", "LNAME", "USERNAME"];
const HOME: &str = "HOME";
/// How the names of the variables about TLS begin.
const OF_TLS: &str = "PGSSL";

/// What `PGHOST`, `PGUSER` and their like say, and where the home is. An empty variable is unset.
#[derive(Clone, Default)]
pub struct PgEnvironment(BTreeMap<String, String>);

impl PgEnvironment {
    /// Picks them out of an environment.
    pub fn of<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let is_read =
            |name: &str| name.starts_with("PG") || name == HOME || SYSTEM_USER.contains(&name);
        let read = variables
            .into_iter()
            .filter(|(name, value)| is_read(name) && !value.is_empty());
        Self(
            read.map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    /// Without those about TLS: where something else says everything about it.
    #[must_use]
    pub fn without_tls(mut self) -> Self {
        self.0.retain(|name, _| !name.starts_with(OF_TLS));
        self.0.remove(HOME);
        self
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn user(&self) -> Option<&str> {
        let names = ["PGUSER"].into_iter().chain(SYSTEM_USER);
        names.into_iter().find_map(|name| self.get(name))
    }

    fn in_home(&self, name: &str) -> Option<PathBuf> {
        Some(Path::new(self.get(HOME)?).join(name))
    }

    /// The password in `.pgpass`, or in the file that is named in its place, for the first of the addresses
    /// that stands there.
    ///
    /// A file that others may read counts for nothing, as with libpq.
    pub(super) fn password(
        &self,
        file: Option<&str>,
        addresses: &[Address],
        database: Option<&str>,
        user: Option<&str>,
    ) -> Result<Option<String>, String> {
        let named = file.or(self.get("PGPASSFILE")).map(PathBuf::from);
        let Some(path) = named.or_else(|| self.in_home(".pgpass")) else {
            return Ok(None);
        };
        let shown = path.display();
        match fs::metadata(&path) {
            Ok(file) if !file.is_file() => return Ok(None),
            Ok(file) if file.mode() & 0o077 != 0 => {
                log::warn!(
                    "the file of passwords {shown} counts for nothing: others may read it; chmod 600 it"
                );
                return Ok(None);
            }
            Ok(_) => {}
            Err(_) => return Ok(None),
        }
        let Ok(text) = fs::read_to_string(&path) else {
            return Ok(None);
        };
        let mut entries = Vec::new();
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let fields = fields(line).ok_or_else(|| {
                format!("a line of {shown} is not host:port:database:user:password")
            })?;
            entries.push(fields);
        }
        let matching = addresses.iter().find_map(|address| {
            let host = if address.is_socket() {
                "localhost"
            } else {
                &address.host
            };
            let port = address.given_port.to_string();
            let asked = [Some(host), Some(&port), database, user];
            entries.iter().find(|fields| {
                let mut pairs = fields.iter().zip(asked);
                pairs.all(|(field, asked)| field == "*" || Some(field.as_str()) == asked)
            })
        });
        Ok(matching.map(|fields| fields[4].clone()))
    }

    /// The files of TLS that it names, or that stand in `~/.postgresql`, as far as the mode reads them: each with
    /// its setting, and the variable or file that says so.
    ///
    /// # Errors
    ///
    /// It asks for a check that is not made here.
    pub fn tls_files(&self, mode: TlsMode) -> Result<Vec<(&'static str, String, String)>, String> {
        let named = |key, variable: &str, file: &str| match self.get(variable) {
            Some(value) => Some((key, value.to_owned(), variable.to_owned())),
            None => {
                let path = self.in_home(file).filter(|path| path.exists())?;
                let path = path.display().to_string();
                Some((key, path.clone(), path))
            }
        };
        let mut said = Vec::new();
        if mode == TlsMode::Disable {
            return Ok(said);
        }
        if !matches!(mode, TlsMode::Allow | TlsMode::Prefer) {
            said.extend(named(
                "tls_ca_file",
                "PGSSLROOTCERT",
                ".postgresql/root.crt",
            ));
            if let Some((_, _, by)) = named("", "PGSSLCRL", ".postgresql/root.crl") {
                return Err(format!(
                    "{by}: lists of revoked certificates are not read here; without it, or with a proxy \
                     before the server that reads it"
                ));
            }
        }
        if let Some(certificate) = named("tls_cert_file", "PGSSLCERT", ".postgresql/postgresql.crt")
        {
            let key = named("tls_key_file", "PGSSLKEY", ".postgresql/postgresql.key");
            // Without one, it is in the file of the certificate.
            let (_, path, by) = certificate.clone();
            said.push(certificate);
            said.push(key.unwrap_or(("tls_key_file", path, by)));
        }
        Ok(said)
    }
}

/// The five fields of a line of `.pgpass`.
///
/// A colon behind a backslash separates nothing, and both stay: so reads it the driver of Python, whose file
/// this is.
fn fields(line: &str) -> Option<[String; 5]> {
    let mut fields = vec![String::new()];
    let mut is_escaped = false;
    for character in line.chars() {
        if character == ':' && !is_escaped && fields.len() < 5 {
            fields.push(String::new());
        } else if let Some(field) = fields.last_mut() {
            field.push(character);
        }
        is_escaped = character == '\\' && !is_escaped;
    }
    fields.try_into().ok()
}
