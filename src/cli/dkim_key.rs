//! `tlswarden dkim-key`: a key pair that signs reports, and the record to publish.
//!
//! Takes: a selector, a kind, a file. Gives: the private key in a file that only its owner can read, and on standard output
//! its DNS record and its lines for the configuration. A file that is there is never overwritten.
//! Where there is a folder `dkim.d` beside the configuration, as the package has it, the file goes there and stays root's, for
//! systemd hands the daemon a copy. Elsewhere a file that root makes belongs to whoever owns the store's folder: the
//! daemon's user.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{CliError, ConfigFile, EX_CONFIG, EX_IOERR, EX_SOFTWARE, EX_USAGE, print_stdout};
use crate::base::domain_name;
use crate::config::Config;
use crate::daemon::services::{DkimPublicKey, KeyType, generate_key};

/// The folder of which systemd gives the daemon a copy (`LoadCredential=dkim:` in tlswarden.service).
const CREDENTIAL_FOLDER: &str = "dkim.d";

#[derive(Args)]
pub(crate) struct DkimKeyOptions {
    /// The selector: the key's name in DNS, SELECTOR._domainkey.DOMAIN.
    #[arg(long, default_value = "tlsrpt")]
    selector: String,
    /// RSA of 2048 bits, which every receiver verifies, or Ed25519.
    #[arg(long = "type", value_enum, default_value_t = KeyType::Rsa)]
    kind: KeyType,
    /// The domain; without it that of `from` in [report].
    #[arg(long)]
    domain: Option<String>,
    /// Where the private key goes; without it SELECTOR.pem in the folder dkim.d beside the configuration, or where there is
    /// none dkim-SELECTOR.pem beside it.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
}

pub(crate) fn dkim_key(options: &DkimKeyOptions) -> Result<(), CliError> {
    let config = match options.config.load() {
        Ok(config) => Some(config),
        // A key is wanted before there is a configuration, too.
        Err(_) if options.domain.is_some() && options.out.is_some() => None,
        Err(fault) => return Err(fault),
    };
    let domain = signing_domain(options, config.as_ref())?;
    let selector = &options.selector;
    if domain_name::normalize(&format!("{selector}._domainkey.{domain}")).is_none() {
        let problem = format!("--selector: `{}` is no DNS name; allowed: such as `tlsrpt`", selector.escape_debug());
        return Err(CliError::new(EX_USAGE, problem));
    }
    let beside = options.config.config.parent().unwrap_or(Path::new("."));
    let folder = beside.join(CREDENTIAL_FOLDER);
    let path = options.out.clone().unwrap_or_else(|| match folder.is_dir() {
        true => folder.join(format!("{selector}.pem")),
        false => beside.join(format!("dkim-{selector}.pem")),
    });
    let owner = config.as_ref().filter(|_| path.parent() != Some(&folder));
    let failed = |e: std::io::Error| {
        CliError::new(EX_IOERR, format!("{}: cannot be made: {e}; no key was written", path.display()))
    };
    // Opened first: where the file is there already, no second is spent on a key.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    let written = generate_key(options.kind, selector, &domain)
        .map_err(|e| {
            CliError::new(EX_SOFTWARE, format!("{}: no key was made: {e}; the file is removed", path.display()))
        })
        .and_then(|(pem, public)| {
            file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
            give_to_store_owner(&file, owner).map_err(failed)?;
            Ok(public)
        });
    match written {
        // The daemon starts in another folder.
        Ok(public) => print_stdout(&render_instructions(&public, &std::path::absolute(&path).unwrap_or(path))),
        Err(fault) => {
            // Half a key is of no use, and would be in the way of the next try.
            let _ = std::fs::remove_file(&path);
            Err(fault)
        }
    }
}

fn signing_domain(options: &DkimKeyOptions, config: Option<&Config>) -> Result<String, CliError> {
    let from = config.and_then(|config| config.report.from.as_deref());
    match (&options.domain, from.and_then(|from| from.rsplit_once('@'))) {
        (Some(named), _) => domain_name::normalize(named).ok_or_else(|| {
            let found = named.escape_debug();
            CliError::new(EX_USAGE, format!("--domain: `{found}` is no domain name; allowed: such as `example.com`"))
        }),
        // The configuration was checked.
        (None, Some((_, domain))) => Ok(domain_name::normalize(domain).unwrap_or_else(|| domain.to_owned())),
        (None, None) => {
            Err(CliError::new(EX_CONFIG, "[report] from: not set; allowed: set it, or say --domain; no key was made"))
        }
    }
}

/// Root gives the file to the owner of the store's folder that the configuration names.
fn give_to_store_owner(file: &File, config: Option<&Config>) -> std::io::Result<()> {
    let Some(owner) = config.and_then(|config| std::fs::metadata(&config.store.path).ok()) else { return Ok(()) };
    let mine = file.metadata()?;
    if mine.uid() == 0 && owner.uid() != 0 { fchown(file, Some(owner.uid()), Some(owner.gid())) } else { Ok(()) }
}

fn render_instructions(public: &DkimPublicKey, path: &Path) -> String {
    let for_mail = public.for_all_mail(format!("{}-mail", public.selector));
    let section = |key: &DkimPublicKey| {
        format!(
            "[[report.dkim]]\nselector = \"{}\"\ndomain = \"{}\"\nkey = {}\n",
            key.selector,
            key.domain,
            toml::Value::from(path.display().to_string())
        )
    };
    format!(
        "The private key is in {path}; only its owner can read it.\n\n\
         Publish these two records of the key:\n\n{record}\n\n{record_for_mail}\n\n\
         The first one, with s=tlsrpt, is for reports alone (RFC 8460, section 3). The second one is for receivers that check a\n\
         report as any other mail, for DMARC: they do not take a key with s=tlsrpt. Each report is signed under both names.\n\n\
         Then put this into the configuration, and restart the daemon:\n\n{section}\n{section_for_mail}",
        path = path.display(),
        record = public.zone_line(),
        record_for_mail = for_mail.zone_line(),
        section = section(public),
        section_for_mail = section(&for_mail),
    )
}
