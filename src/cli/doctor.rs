//! `tlswarden doctor`: what is wrong on this host, and the line that mends it.

use std::path::PathBuf;

use clap::Args;

use super::render::to_pretty_json;
use super::{CliError, ConfigFile, EX_SOFTWARE, findings_status, print_stdout};
use crate::checking::host;
use crate::daemon::services::DoctorContext;

#[derive(Args)]
pub(crate) struct DoctorOptions {
    #[command(flatten)]
    config: ConfigFile,
    /// Postfix's configuration folder, in place of its own default; Exim is not looked at then.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["exim", "exim_config"])]
    postfix_config: Option<PathBuf>,
    /// Exim's program; Postfix is not looked at then.
    #[arg(long, value_name = "PROGRAM")]
    exim: Option<PathBuf>,
    /// Exim's configuration file, in place of its own default; Postfix is not looked at then.
    #[arg(long, value_name = "FILE")]
    exim_config: Option<PathBuf>,
    /// A name whose signatures are broken on purpose, which a validating resolver refuses; empty: none is asked.
    #[arg(long, value_name = "NAME", default_value = "dnssec-failed.org")]
    bogus_name: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Looks, and prints what was found; the exit status says how bad it is.
pub(crate) fn doctor(options: &DoctorOptions) -> Result<u8, CliError> {
    let where_to_look = host::HostCheckOptions {
        config: options.config.config.clone(),
        postfix: options.postfix_config.clone(),
        exim: options.exim.clone(),
        exim_config: options.exim_config.clone(),
        bogus: options.bogus_name.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime =
        runtime.map_err(|e| CliError::new(EX_SOFTWARE, format!("runtime: cannot start: {e}; nothing is shown")))?;
    let found = runtime.block_on(host::check_host(&where_to_look, &DoctorContext));
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    print_stdout(&if options.json { to_pretty_json(&found) } else { found.to_string() })?;
    Ok(findings_status(&found))
}
