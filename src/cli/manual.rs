//! The manual, a page to each command.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

pub(crate) fn manual(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(super::command(), folder))
        .with_context(|| format!("cannot write to {}", folder.display()))
}
