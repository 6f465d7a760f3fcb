//! Completion scripts for shells.

use clap::ValueEnum;

/// A shell that has completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompletedShell {
    Bash,
    Zsh,
    Fish,
}

/// The completion script of a shell.
pub(crate) fn completions(shell: CompletedShell) -> Vec<u8> {
    let shell = match shell {
        CompletedShell::Bash => clap_complete::Shell::Bash,
        CompletedShell::Zsh => clap_complete::Shell::Zsh,
        CompletedShell::Fish => clap_complete::Shell::Fish,
    };
    let mut command = super::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}
