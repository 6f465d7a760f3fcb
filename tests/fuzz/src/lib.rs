//! The fuzz targets and what of the server they need: a binary has no library to depend on, so its
//! modules are compiled from where they stand.

/// What is not fuzzed is not used here.
#[allow(dead_code, unused_imports)]
#[path = "../../../src"]
mod server {
    pub(crate) mod cli;
    pub(crate) mod config;
    pub(crate) mod output;
    pub(crate) mod http {
        mod settings;
        pub(crate) use settings::{CertificateFiles, Listen, ListenerSettings};
    }
    pub(crate) mod logging {
        mod settings;
        pub(crate) use settings::Log;
    }
    /// The rendering alone: the rest needs the stores.
    pub(crate) mod dead_letters {
        mod list;
        mod show;
        pub(crate) use {list::page, show::describe};
    }
}

// Where these modules look for each other.
use server::{cli, config, dead_letters, http, logging, output};

pub mod targets;
