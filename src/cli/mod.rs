//! The command line: arguments in, an exit status out.
//!
//! Takes: the arguments after the program's name. Gives: text on standard output, one line a fault on standard error.
//! The exit statuses are those of sysexits(3), listed in `--help`.
//! Not here: what a subcommand does (`cli/*.rs`).

mod backup;
mod check_config;
mod check_domain;
mod control;
mod dkim_key;
mod doctor;
mod policy;
mod render;
mod replay;
mod reports;
mod results;
mod serve;
mod status;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::base::tlsrpt::Day;
use crate::checking::finding::{Findings, Weight};
use crate::config::detect;
use crate::config::{Config, ConfigError};

/// Everything went well.
pub const OK: u8 = 0;
/// `doctor` and `domain`: something works less well than it could.
pub const WARNINGS: u8 = 1;
/// `doctor` and `domain`: something is wrong.
pub const ERRORS: u8 = 2;
/// EX_USAGE: the arguments make no sense.
pub const USAGE: u8 = 64;
/// EX_NOINPUT: a file that was named cannot be read.
pub const NO_INPUT: u8 = 66;
/// EX_UNAVAILABLE: no daemon answers, or another process has the store.
pub const UNAVAILABLE: u8 = 69;
/// EX_SOFTWARE: a task of the daemon ended by itself.
pub const SOFTWARE: u8 = 70;
/// EX_IOERR: the disk or a socket failed.
pub const IO: u8 = 74;
/// EX_CONFIG: the configuration.
pub const CONFIG: u8 = 78;

const EXIT_STATUS: &str = "\
Exit status:
   0  done; doctor, domain: nothing is wrong
   1  doctor, domain: warnings
   2  doctor, domain: errors
  64  the arguments make no sense
  66  a file that was named cannot be read
  69  no daemon answers, or another process has the store
  70  a part of the daemon ended by itself
  74  the disk or a socket failed
  78  the configuration is wrong; the line says where and what is allowed";

/// A fault that ends the program: its exit status and its one line.
#[derive(Debug)]
pub struct Fault {
    /// See the constants of this module.
    pub status: u8,
    /// `subject: problem: cause; consequence`
    pub line: String,
}

impl Fault {
    /// A fault.
    pub fn new(status: u8, line: impl Into<String>) -> Fault {
        Fault { status, line: line.into() }
    }
}

impl From<ConfigError> for Fault {
    fn from(error: ConfigError) -> Fault {
        Fault::new(CONFIG, error.to_string())
    }
}

/// Tells the MTA which TLS policy a destination published, counts how outbound TLS sessions ended, reports the counts.
#[derive(Parser)]
#[command(name = "tlswarden", version, after_help = EXIT_STATUS, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the daemon in the foreground: answers Postfix, follows its log, sends the reports.
    ///
    /// SIGTERM and SIGINT end it in order; SIGHUP rereads the configuration. It logs to standard error.
    Serve(serve::Options),
    /// Checks the configuration and what it names, and prints it as it was understood, defaults included.
    Check(ConfigFile),
    /// Shows each input and how far it is behind its log, the policies, what is due when, and the last errors.
    Status {
        #[command(flatten)]
        config: ConfigFile,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows what Postfix would be answered about a domain now, in both wordings, and why, step by step.
    Policy {
        /// The next hop as Postfix would ask: `example.com`, `[mx.example.com]:587`.
        domain: String,
        #[command(flatten)]
        config: ConfigFile,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists the cached policies; shows, refreshes or forgets one; writes them as a table for Postfix.
    Policies(policy::Options),
    /// Copies the store into a new folder, while the daemon runs or without it; put back in place it is the store.
    Backup {
        /// The folder; it must not exist, or be empty.
        dir: PathBuf,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Says what is wrong on this host, why it matters, and the line that mends it; changes nothing.
    Doctor(doctor::Options),
    /// Shows a domain's own MTA-STS, DANE and TLSRPT as a sender sees them, and what would make them right.
    Domain(check_domain::Options),
    /// Shows what logs would have been counted as; sends and stores nothing.
    #[command(after_help = replay::HELP)]
    Replay(replay::Options),
    /// Shows what has been counted so far: sessions by day, recipient domain and policy, and how they failed.
    Results(results::Options),
    /// Lists the reports that went, or are to go, and what came of them; shows one; sends one once more.
    Reports(reports::Options),
    /// Shows, or writes as files, the reports that would be sent for a day; sends nothing.
    Report {
        /// The UTC day, YYYY-MM-DD; without it every day that has counts.
        #[arg(long)]
        day: Option<Day>,
        /// One recipient domain alone.
        #[arg(long)]
        domain: Option<String>,
        /// Writes each report into this folder, under its RFC 8460 file name.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Makes a key pair that signs reports, and prints its DNS record; never overwrites a file.
    DkimKey(dkim_key::Options),
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long, value_name = "FILE", global = true, default_value = "/etc/tlswarden/tlswarden.toml")]
    config: PathBuf,
}

impl ConfigFile {
    /// As the daemon has it: what the file does not say is found out.
    fn load(&self) -> Result<Config, Fault> {
        Ok(Config::load_and(&self.config, |config| drop(detect::complete_unread(config)))?)
    }
}

/// The grammar of the command line, for who writes it down: the manual, the completions of shells.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the program with the arguments that follow its name; `main` and the tests' own binaries call it.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = std::iter::once(OsString::from("tlswarden")).chain(arguments);
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are errors of clap's, on standard output.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { OK });
        }
    };
    let result = match arguments.command {
        Command::Doctor(options) => return exit(doctor::doctor(&options)),
        Command::Domain(options) => return exit(check_domain::domain(&options)),
        Command::Serve(options) => serve::serve(&options),
        Command::Check(config) => check_config::check(&config.config),
        Command::Status { config, json } => config.load().and_then(|config| status::status(&config, json)),
        Command::Policy { domain, config, json } => {
            config.load().and_then(|config| policy::policy(&config, &domain, json))
        }
        Command::Backup { dir, config } => config.load().and_then(|config| backup::backup(&config, &dir)),
        Command::Policies(options) => policy::policies(&options),
        Command::Replay(options) => replay::replay(&options),
        Command::Results(options) => results::results(&options),
        Command::Reports(options) => reports::reports(&options),
        Command::Report { day, domain, out, config } => {
            config.load().and_then(|config| reports::report(&config, day, domain, out.as_deref()))
        }
        Command::DkimKey(options) => dkim_key::dkim_key(&options),
    };
    exit(result.map(|()| OK))
}

fn exit(result: Result<u8, Fault>) -> ExitCode {
    match result {
        Ok(status) => ExitCode::from(status),
        Err(fault) => {
            eprintln!("tlswarden: {}", fault.line);
            ExitCode::from(fault.status)
        }
    }
}

/// The exit status of what was found.
fn status_of(found: &Findings) -> u8 {
    match found.heaviest() {
        None | Some(Weight::Note) => OK,
        Some(Weight::Warning) => WARNINGS,
        Some(Weight::Error) => ERRORS,
    }
}

/// Prints, and takes it that whoever reads a pipe may stop reading.
fn print(text: &str) -> Result<(), Fault> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Fault::new(IO, format!("standard output: cannot write: {error}; stopped")))
        }
        _ => Ok(()),
    }
}
