//! Writes the man pages and the shell completions of `tlswarden` into a folder.
//!
//! Takes: a folder. Gives: `tlswarden.8`, made of the command line's own grammar and the table of metrics;
//! `tlswarden.toml.5`, made of the sample configuration; `tlswarden.bash`, `_tlswarden` and `tlswarden.fish`.
//! Nothing is written down twice, so that no page can say what the program does not do.

mod commands;
mod options;
mod page;

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap_complete::{Shell, generate_to};

/// The sample, as it is installed.
const SAMPLE: &str = include_str!("../../config.toml");

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: manual FOLDER");
        return ExitCode::from(64);
    };
    match write(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manual: {}: cannot be written: {error}; stopped", Path::new(&folder).display());
            ExitCode::from(74)
        }
    }
}

fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("tlswarden.8"), commands::page(tlswarden::cli::command()))?;
    fs::write(folder.join("tlswarden.toml.5"), options::page(SAMPLE))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut tlswarden::cli::command(), "tlswarden", folder)?;
    }
    Ok(())
}
