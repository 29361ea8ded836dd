//! What is made from a binary's clap tree: man page, shell completions, reference page.

use clap::{Command, ValueEnum};
use std::io::{self, Write};

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A man page (roff).
    Man,
    /// The reference page of `docs/cli.md`.
    Markdown,
    /// Completions for bash.
    Bash,
    /// Completions for zsh.
    Zsh,
    /// Completions for fish.
    Fish,
}

/// Writes `kind` for `command` to `out`.
pub fn write(kind: Kind, mut command: Command, out: &mut dyn Write) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let shell = match kind {
        Kind::Man => return clap_mangen::Man::new(command).render(out),
        Kind::Markdown => return out.write_all(markdown(&command).as_bytes()),
        Kind::Bash => clap_complete::Shell::Bash,
        Kind::Zsh => clap_complete::Shell::Zsh,
        Kind::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    out.write_all(&script)
}

/// The reference page of one binary: its long help and that of each subcommand, as code blocks under headings.
pub fn markdown(command: &Command) -> String {
    let mut command = command.clone().term_width(100);
    command.build();
    let mut page = section(2, command.get_name(), &command);
    for subcommand in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        page += &section(3, &format!("{} {}", command.get_name(), subcommand.get_name()), subcommand);
    }
    page
}

fn section(level: usize, title: &str, command: &Command) -> String {
    let help = command.clone().render_long_help().to_string();
    let help: Vec<_> = help.lines().map(str::trim_end).collect();
    format!("{} `{title}`\n\n```text\n{}\n```\n\n", "#".repeat(level), help.join("\n").trim_end())
}
