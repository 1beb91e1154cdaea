//! `man` and `completions`: the manual page and the words of a shell, made of the command line itself.

use clap::{Arg, Command};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, italic, roman},
};

use super::{
    error::CommandError,
    help::{EXIT_CODES, PARTS},
};

/// The script by which a shell completes our commands and options.
pub(super) fn completions(mut command: Command, shell: Shell) -> String {
    let (name, mut script) = (command.get_name().to_owned(), Vec::new());
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The manual page, with every command and its options, in the form of `man(7)`.
pub(super) fn page(mut command: Command) -> Result<String, CommandError> {
    command.build();
    let man = Man::new(command.clone()).section("8").manual("System administration");
    let mut text = Vec::new();
    let parts = [
        man.render_title(&mut text),
        man.render_name_section(&mut text),
        man.render_synopsis_section(&mut text),
        man.render_description_section(&mut text),
        man.render_options_section(&mut text),
        commands(&command).to_writer(&mut text),
        pairs().to_writer(&mut text),
    ];
    parts.into_iter().collect::<Result<(), _>>().map_err(CommandError::Output)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A section for each command.
fn commands(command: &Command) -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["COMMANDS"]);
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let arguments: Vec<_> = command.get_arguments().filter(|a| is_own(a)).collect();
        let places = arguments.iter().filter(|argument| argument.is_positional());
        let places: Vec<_> = places.map(ToString::to_string).collect();
        let name = format!("{} {}", command.get_name(), places.join(" "));
        page.control("SS", [name.trim()]);
        let about = command.get_long_about().or(command.get_about());
        page.text([roman(about.map(ToString::to_string).unwrap_or_default())]);
        for argument in arguments {
            page.control("TP", []);
            page.text([bold(argument.to_string())]);
            page.text([roman(described(argument))]);
        }
    }
    page
}

/// What stands under every command stands once, above.
fn is_own(argument: &Arg) -> bool {
    !argument.is_global_set() && !["help", "version"].contains(&argument.get_id().as_str())
}

fn described(argument: &Arg) -> String {
    let help = argument.get_long_help().or(argument.get_help());
    let text = help.map(ToString::to_string).unwrap_or_default();
    let defaults: Vec<_> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if defaults.is_empty() || !argument.get_action().takes_values() {
        return text;
    }
    format!("{text} [default: {}]", defaults.join(", "))
}

/// Exit codes, variables, files and examples.
fn pairs() -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in EXIT_CODES {
        page.control("TP", []);
        page.text([bold(code.to_string())]);
        page.text([roman(meaning)]);
    }
    for part in PARTS {
        page.control("SH", [part.heading.to_uppercase().as_str()]);
        for (name, meaning) in part.pairs {
            page.control("TP", []);
            page.text([italic(*name)]);
            page.text([roman(*meaning)]);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, ValueEnum};

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn the_page_has_every_command_option_and_exit_code() {
        let page = page(Cli::command()).unwrap();
        let plain = page.replace("\\-", "-");
        let mut command = Cli::command();
        command.build();
        for command in command.get_subcommands().filter(|c| c.get_name() != "help") {
            let name = command.get_name();
            // A heading of several words stands in quotes.
            let headings = [format!("\n.SS {name}\n"), format!("\n.SS \"{name} ")];
            assert!(headings.iter().any(|heading| plain.contains(heading)), "{name}\n{plain}");
            for argument in command.get_arguments().filter(|argument| !argument.is_positional()) {
                let option = format!("--{}", argument.get_long().unwrap());
                assert!(plain.contains(&option), "{command}: {option}\n{plain}");
            }
        }
        for heading in ["NAME", "SYNOPSIS", "OPTIONS", "COMMANDS", "ENVIRONMENT", "FILES"] {
            assert!(page.contains(&format!(".SH {heading}\n")), "{heading}");
        }
        assert!(
            page.contains(".SH \"EXIT STATUS\"\n") && page.contains("GATEWAY_CONFIG"),
            "{page}"
        );
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in Shell::value_variants() {
            let script = completions(Cli::command(), *shell);
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {command}");
            }
        }
    }
}
