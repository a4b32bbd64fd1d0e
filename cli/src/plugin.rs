//! This program as a plugin of kubectl: found as `kubectl-osier`, it is called `kubectl osier`, and its help texts say so.

use std::ffi::OsStr;
use std::path::Path;

use clap::builder::StyledStr;
use clap::{Arg, Command};

/// What it is called then.
const NAME: &str = "kubectl osier";

/// True where the program was found under the name that kubectl looks for.
pub fn is_plugin(program: Option<&OsStr>) -> bool {
    let name = program.and_then(|program| Path::new(program).file_stem());
    name.is_some_and(|name| name == "kubectl-osier")
}

/// The command under its other name.
pub fn renamed(command: Command) -> Command {
    texts(command.name(NAME).bin_name(NAME).display_name(NAME))
}

/// Help texts of a command and of everything below it.
fn texts(mut command: Command) -> Command {
    if let Some(text) = command.get_after_help().map(other_name) {
        command = command.after_help(text);
    }
    if let Some(text) = command.get_about().map(other_name) {
        command = command.about(text);
    }
    if let Some(text) = command.get_long_about().map(other_name) {
        command = command.long_about(text);
    }
    command.mut_args(argument).mut_subcommands(texts)
}

fn argument(mut argument: Arg) -> Arg {
    if let Some(text) = argument.get_help().map(other_name) {
        argument = argument.help(text);
    }
    if let Some(text) = argument.get_long_help().map(other_name) {
        argument = argument.long_help(text);
    }
    argument
}

/// Commands in examples and in running text.
fn other_name(text: &StyledStr) -> String {
    text.to_string().replace("  osier ", "  kubectl osier ").replace("`osier ", "`kubectl osier ")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Arguments;

    #[test]
    fn the_name_it_is_found_under_decides() {
        for (program, plugin) in [
            ("kubectl-osier", true),
            ("/usr/local/bin/kubectl-osier", true),
            ("kubectl-osier.exe", true),
            ("osier", false),
            ("/opt/kubectl-osier/osier", false),
        ] {
            assert_eq!(is_plugin(Some(OsStr::new(program))), plugin, "{program}");
        }
        assert!(!is_plugin(None));
    }

    #[test]
    fn no_help_text_says_another_name() {
        fn check(command: &mut Command) {
            let help = command.render_long_help().to_string();
            for line in help.lines().filter(|line| line.contains("osier ")) {
                let of_program = ["  osier ", "`osier ", ": osier "].iter().any(|wrong| line.contains(wrong));
                assert!(!of_program, "{line}\nin {help}");
            }
            command.get_subcommands_mut().for_each(check);
        }
        let mut command = renamed(Arguments::command());
        command.build();
        check(&mut command);
        let status =
            command.find_subcommand_mut("proxy-status").expect("the command").render_long_help().to_string();
        assert!(
            status.contains("Usage: kubectl osier proxy-status")
                && status.contains("  kubectl osier proxy-status\n"),
            "{status}"
        );
    }
}
