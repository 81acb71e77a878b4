//! `tlswarden check-domain`: a domain as a sender sees it, and what would make it right.

use std::fmt::Write;
use std::path::Path;

use clap::Args;

use crate::base::domain_name;
use crate::checking::domain::{self, Advice, CheckedHost, DomainCheck, PublicationState};
use crate::cli::render::{format_time, to_pretty_json};
use crate::cli::{CliError, ConfigFile, EX_IOERR, EX_SOFTWARE, EX_USAGE, findings_status, print_stdout};
use crate::config::Config;

#[derive(Args)]
pub(crate) struct CheckDomainOptions {
    /// The mail domain: `example.com`.
    domain: String,
    #[command(flatten)]
    config: ConfigFile,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Checks a domain, and prints the result; the exit status tells how serious the findings are.
pub(crate) fn check_domain(options: &CheckDomainOptions) -> Result<u8, CliError> {
    if domain_name::normalize(&options.domain).is_none() {
        let text = options.domain.escape_debug();
        return Err(CliError::new(EX_USAGE, format!("`{text}` is no domain name; nothing was looked at")));
    }
    // It is of use where no daemon is installed, too.
    let usual = Path::new("/etc/tlswarden/tlswarden.toml");
    let config = match options.config.config == usual && !usual.exists() {
        true => Config::default(),
        false => options.config.load()?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime =
        runtime.map_err(|e| CliError::new(EX_SOFTWARE, format!("runtime: cannot start: {e}; nothing is shown")))?;
    let seen = runtime.block_on(domain::check_domain(&config, &options.domain));
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    let seen = seen
        .map_err(|cause| CliError::new(EX_IOERR, format!("domain: cannot be looked at: {cause}; nothing is shown")))?;
    print_stdout(&if options.json { to_pretty_json(&seen) } else { render_check(&seen) })?;
    Ok(findings_status(&seen.findings))
}

fn render_check(seen: &DomainCheck) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{} as a sender sees it\n", seen.domain);
    let _ = writeln!(text, "MX       {}{}", seen.mx, if seen.mx_signed { " [signed]" } else { " [not signed]" });
    for host in &seen.hosts {
        render_host(host, &mut text);
    }
    let _ = writeln!(text, "MTA-STS  {}\nTLSRPT   {}\n\n{}", seen.mta_sts, seen.tlsrpt, seen.findings);
    render_advice(&seen.advice, &mut text);
    text
}

fn render_host(host: &CheckedHost, text: &mut String) {
    let preference = host.preference.map_or_else(String::new, |p| format!("{p} "));
    let _ = writeln!(text, "         {preference}{}", host.name);
    for record in &host.tlsa {
        let _ = writeln!(text, "           TLSA {record}");
    }
    for seen in &host.addresses {
        let _ = writeln!(text, "           [{}] {}", seen.address, seen.found);
        if let Some(facts) = &seen.certificate {
            let names = facts.names.join(" ");
            let (from, until) = (format_time(facts.not_before), format_time(facts.not_after));
            let _ = writeln!(text, "             for {names}; from {from} until {until}; signed by {}", facts.issuer);
        }
        if let Some(record) = &seen.fits {
            let _ = writeln!(text, "             fits TLSA {record}");
        }
    }
}

fn render_advice(advice: &Advice, text: &mut String) {
    if advice.zone.is_empty() {
        return;
    }
    let mark = |state: PublicationState| match state {
        PublicationState::Stays => "  ",
        PublicationState::New => "+ ",
        PublicationState::Replaces => "! ",
    };
    let _ = writeln!(text, "What should be published (+ new, ! in place of what is there):\n");
    for line in &advice.zone {
        let _ = writeln!(text, "  {}{}", mark(line.state), line.record);
    }
    let _ = writeln!(text, "\n  {}{}", mark(advice.policy_state), advice.policy_url);
    for line in &advice.policy {
        let _ = writeln!(text, "      {line}");
    }
    for remark in &advice.remarks {
        let _ = writeln!(text, "\n  {remark}");
    }
}
