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
mod foreign_folder;
mod health;
mod log;
mod policy;
mod reload;
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

use crate::checking::finding::{Findings, Severity};
use crate::config::detect;
use crate::config::{Config, ConfigError};

/// Success.
pub(crate) const EX_OK: u8 = 0;
/// `doctor`, `check-domain`, `status`: something is off, or works less well than it could.
pub(crate) const EXIT_WARNINGS: u8 = 1;
/// `doctor`, `check-domain`: something is wrong. `status`: no daemon answers, or mail waits.
pub(crate) const EXIT_ERRORS: u8 = 2;
/// EX_USAGE: the arguments make no sense.
pub(crate) const EX_USAGE: u8 = 64;
/// EX_DATAERR: `replay` recognized no line.
pub(crate) const EX_DATAERR: u8 = 65;
/// EX_NOINPUT: a file that was named cannot be read.
pub(crate) const EX_NOINPUT: u8 = 66;
/// EX_UNAVAILABLE: no daemon answers, or another process has the store.
pub(crate) const EX_UNAVAILABLE: u8 = 69;
/// EX_SOFTWARE: a task of the daemon ended by itself.
pub(crate) const EX_SOFTWARE: u8 = 70;
/// EX_IOERR: the disk or a socket failed.
pub(crate) const EX_IOERR: u8 = 74;
/// EX_CONFIG: the configuration.
pub(crate) const EX_CONFIG: u8 = 78;

const EXIT_STATUS: &str = "\
Exit status:
   0  done; doctor, check-domain, status: nothing is wrong
   1  doctor, check-domain: warnings; status: something is off, and no mail waits because of it; reload: a part is off
      because of the new configuration
   2  doctor, check-domain: errors; status: no daemon answers, or mail waits because an answering socket is off or no
      resolver answers
   3  status --check: it cannot be found out
  64  the arguments make no sense
  65  replay: no line of the logs was recognized
  66  a file that was named cannot be read
  69  no daemon answers, or another process has the store
  70  a part of the daemon ended by itself
  74  the disk or a socket failed
  78  the configuration is wrong; the line says where and what is allowed";

/// An error that ends the program: its exit status and its message.
#[derive(Debug)]
pub(crate) struct CliError {
    /// See the constants of this module.
    pub(crate) status: u8,
    /// `subject: problem: cause; consequence`
    pub(crate) message: String,
}

impl CliError {
    /// An error.
    pub(crate) fn new(status: u8, line: impl Into<String>) -> CliError {
        CliError { status, message: line.into() }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> CliError {
        CliError::new(EX_CONFIG, error.to_string())
    }
}

/// Tells the MTA which TLS policy a destination published, counts how outbound TLS sessions ended, reports the counts.
#[derive(Parser)]
#[command(name = "tlswarden", version, after_help = EXIT_STATUS)]
struct CliArguments {
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Subcommand)]
enum CliCommand {
    /// Runs the daemon in the foreground: answers Postfix, follows its log, sends the reports.
    ///
    /// SIGTERM and SIGINT end it in order; SIGHUP rereads the configuration. It logs to standard error.
    Serve(serve::ServeOptions),
    /// Has the daemon take the configuration on disk; fails with the reason if it is refused.
    ///
    /// A configuration that is refused changes nothing: the daemon goes on with the old one (status 78). Status 1: it is in
    /// use, but a part is off because of it, such as reports whose key cannot be read. systemd hands keys over at a start
    /// alone: after a new one in /etc/tlswarden/dkim.d run `systemctl restart tlswarden`.
    Reload(ConfigFile),
    /// Shows each input and how far it is behind its log, the policies, what is due when, and the last errors.
    ///
    /// What is wrong comes first, a line each, and decides the exit status: 0, 1 or 2. Members of the group of
    /// /run/tlswarden/status.sock need not be root.
    Status(status::StatusOptions),
    /// Checks the configuration and what it names.
    CheckConfig {
        #[command(flatten)]
        config: ConfigFile,
        /// Prints the configuration in force as TOML, with defaults and what was detected on this host.
        #[arg(long)]
        print: bool,
    },
    /// Says what is wrong on this host, why it matters, and the line that mends it; changes nothing.
    Doctor(doctor::DoctorOptions),
    /// Shows a domain's own MTA-STS, DANE and TLSRPT as a sender sees them, and what would make them right.
    CheckDomain(check_domain::CheckDomainOptions),
    /// Explains what Postfix is answered about a domain; lists, shows, refreshes, forgets, exports the cached policies.
    Policy(policy::PolicyOptions),
    /// Shows what has been counted so far: sessions by day, recipient domain and policy, and how they failed.
    Results(results::ResultsOptions),
    /// Lists the reports that went, or are to go; shows one; previews what would be sent; sends one once more.
    Reports(reports::ReportsOptions),
    /// Shows what logs would have been counted as; sends and stores nothing.
    #[command(after_help = replay::HELP)]
    Replay(replay::ReplayOptions),
    /// Copies the store into a new folder, while the daemon runs or without it.
    Backup {
        /// The folder; it must not exist, or be empty.
        dir: PathBuf,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Puts a backup in place of the store, once every record of it was read; the daemon must be stopped.
    Restore {
        /// The folder that `backup` wrote; it stays as it is.
        dir: PathBuf,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Makes a key pair that signs reports, and prints its DNS record; never overwrites a file.
    DkimKey(dkim_key::DkimKeyOptions),
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long, value_name = "FILE", global = true, default_value = "/etc/tlswarden/tlswarden.toml")]
    config: PathBuf,
}

impl ConfigFile {
    /// As the daemon has it: what the file does not say is found out.
    fn load(&self) -> Result<Config, CliError> {
        Ok(Config::load_with(&self.config, |config| drop(detect::complete_without_log_access(config)))?)
    }
}

/// The grammar of the command line, for who writes it down: the manual, the completions of shells.
pub fn command() -> clap::Command {
    CliArguments::command()
}

/// Runs the program with the arguments that follow its name; `main` and the tests' own binaries call it.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = std::iter::once(OsString::from("tlswarden")).chain(arguments);
    let arguments = match CliArguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are errors of clap's, on standard output.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { EX_OK });
        }
    };
    let result = match arguments.command {
        CliCommand::Doctor(options) => return exit_code(doctor::doctor(&options)),
        CliCommand::Status(options) => return exit_code(status::status(&options)),
        CliCommand::CheckDomain(options) => return exit_code(check_domain::check_domain(&options)),
        CliCommand::Serve(options) => serve::serve(&options),
        CliCommand::Reload(config) => reload::reload(&config.config),
        CliCommand::CheckConfig { config, print } => check_config::check_config(&config.config, print),
        CliCommand::Policy(options) => policy::policy(&options),
        CliCommand::Results(options) => results::results(&options),
        CliCommand::Reports(options) => reports::reports(&options),
        CliCommand::Replay(options) => replay::replay(&options),
        CliCommand::Backup { dir, config } => config.load().and_then(|config| backup::backup(&config, &dir)),
        CliCommand::Restore { dir, config } => config.load().and_then(|config| backup::restore(&config, &dir)),
        CliCommand::DkimKey(options) => dkim_key::dkim_key(&options),
    };
    exit_code(result.map(|()| EX_OK))
}

fn exit_code(result: Result<u8, CliError>) -> ExitCode {
    match result {
        Ok(status) => ExitCode::from(status),
        Err(fault) => {
            eprintln!("{}tlswarden: {}", log::error_prefix(), fault.message);
            ExitCode::from(fault.status)
        }
    }
}

/// The exit status for a list of findings.
fn findings_status(found: &Findings) -> u8 {
    match found.highest_severity() {
        None | Some(Severity::Note) => EX_OK,
        Some(Severity::Warning) => EXIT_WARNINGS,
        Some(Severity::Error) => EXIT_ERRORS,
    }
}

/// Prints to standard output; that the reader of a pipe stops reading is not an error.
fn print_stdout(text: &str) -> Result<(), CliError> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::new(EX_IOERR, format!("standard output: cannot write: {error}; stopped")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_names_of_the_manual() {
        fn names(command: &clap::Command) -> Vec<String> {
            let nested = |sub: &clap::Command| match names(sub) {
                more if more.is_empty() => vec![sub.get_name().to_owned()],
                more => more.iter().map(|name| format!("{} {name}", sub.get_name())).collect(),
            };
            command.get_subcommands().flat_map(nested).collect()
        }
        let mut wanted =
            "serve, reload, status, check-config, doctor, check-domain, policy explain, policy list, policy show, \
                          policy refresh, policy purge, policy export, results, reports list, reports show, \
                          reports preview, reports resend, replay, backup, restore, dkim-key"
                .split(", ")
                .collect::<Vec<_>>();
        wanted.sort_unstable();
        let mut found = names(&command());
        found.sort_unstable();
        assert_eq!(found, wanted);
    }

    #[test]
    fn help_is_a_command() {
        let help = |arguments: &[&str]| {
            let error = CliArguments::try_parse_from([&["tlswarden"], arguments].concat()).err().expect("no command");
            assert!(!error.use_stderr(), "{error}");
            error.to_string()
        };
        assert!(help(&["help"]).ends_with("the configuration is wrong; the line says where and what is allowed\n"));
        assert_eq!(help(&["help", "policy", "list"]), help(&["policy", "list", "--help"]));
    }
}
