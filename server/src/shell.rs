//! `qrm-server completions` and `man`: what the flags are, for shells and for `man`.

use std::io::stdout;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::config::Cli;

#[derive(Debug, Clone, Args)]
pub(crate) struct ShellArgs {
    /// Which.
    shell: Shell,
}

/// Writes a shell's completions.
pub(crate) fn completions(args: &ShellArgs) -> ExitCode {
    clap_complete::generate(args.shell, &mut Cli::command(), "qrm-server", &mut stdout());
    ExitCode::SUCCESS
}

/// Writes the manual page: the program's, then that of `serve`.
pub(crate) fn man() -> anyhow::Result<ExitCode> {
    let program = Cli::command();
    clap_mangen::Man::new(program.clone()).render(&mut stdout())?;
    if let Some(serve) = program.find_subcommand("serve") {
        let page = clap_mangen::Man::new(serve.clone());
        page.render_options_section(&mut stdout())?;
    }
    Ok(ExitCode::SUCCESS)
}
