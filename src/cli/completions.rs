//! Completion scripts for shells.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap_complete::Shell;

/// The shells for which the script is tested.
pub(super) fn shell() -> impl TypedValueParser<Value = Shell> {
    PossibleValuesParser::new(["bash", "zsh", "fish"]).try_map(|name| name.parse::<Shell>())
}

pub(crate) fn completions(shell: Shell) -> Vec<u8> {
    let mut command = super::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}
