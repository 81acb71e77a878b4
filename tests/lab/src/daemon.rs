//! The real daemon as a child process, and the command line beside it.
//!
//! Takes: a [`Program`] and a world. Gives: a running `serve` that answers, its log in the world's folder.
//! Limits: `START` to be ready, `STOP` to end after SIGTERM.
//! When it fails: a text with the last lines of the daemon's log.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::report::{self, Totals};
use crate::world::World;

/// How long the daemon may take until it answers.
const START: Duration = Duration::from_secs(30);
/// How long it may take to end.
const STOP: Duration = Duration::from_secs(30);

/// How `tlswarden` is run: as a program of its own, or as the lab itself with `daemon` before the arguments.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    first: Vec<OsString>,
    zone: Option<&'static str>,
}

impl Program {
    /// The `tlswarden` binary.
    pub fn tlswarden(path: impl Into<PathBuf>) -> Program {
        Program { path: path.into(), first: Vec::new(), zone: None }
    }

    /// The `lab` binary, which holds the same code behind `lab daemon …`.
    pub fn lab(path: impl Into<PathBuf>) -> Program {
        Program { path: path.into(), first: vec!["daemon".into()], zone: None }
    }

    /// On a host of this time zone.
    pub fn in_zone(mut self, zone: &'static str) -> Program {
        self.zone = Some(zone);
        self
    }

    /// Runs a command to its end, with the world's configuration.
    pub async fn run(&self, world: &World, arguments: &[&str]) -> std::io::Result<Output> {
        let (subcommand, rest) = arguments.split_first().unwrap_or((&"", &[]));
        self.command().arg(subcommand).arg("--config").arg(world.config()).args(rest).output().await
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.first).stdin(Stdio::null()).kill_on_drop(true);
        command.envs(self.zone.map(|zone| ("TZ", zone)));
        command
    }
}

/// A running daemon. It is killed when it is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `serve` and waits until its socketmap takes connections.
    pub async fn start(program: &Program, world: &World) -> Result<Daemon, String> {
        let mut daemon = Daemon::spawn(program, world)?;
        daemon.ready(world).await?;
        Ok(daemon)
    }

    /// Starts `serve` and waits for nothing.
    pub fn spawn(program: &Program, world: &World) -> Result<Daemon, String> {
        let log = world.folder().join("daemon.log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).map_err(|e| e.to_string())?;
        let errors = file.try_clone().map_err(|e| e.to_string())?;
        let child = program
            .command()
            .arg("serve")
            .arg("--config")
            .arg(world.config())
            .env("NO_COLOR", "1")
            .stdout(file)
            .stderr(errors)
            .spawn()
            .map_err(|e| format!("{}: {e}", program.path.display()))?;
        Ok(Daemon { child, log })
    }

    /// Waits until its socketmap takes connections.
    pub async fn ready(&mut self, world: &World) -> Result<(), String> {
        let begin = Instant::now();
        while UnixStream::connect(world.socketmap()).await.is_err() {
            if let Some(status) = self.child.try_wait().map_err(|e| e.to_string())? {
                return Err(self.fault(&format!("the daemon ended at start: {status}")));
            }
            if begin.elapsed() > START {
                return Err(self.fault("the daemon does not answer"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Its process id, until it has been waited for.
    pub fn id(&self) -> Option<Pid> {
        self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
    }

    /// Ends it with SIGTERM; an exit code other than 0 is an error.
    pub async fn stop(mut self) -> Result<(), String> {
        if let Some(pid) = self.id() {
            kill_process(pid, Signal::TERM).map_err(|e| e.to_string())?;
        }
        match tokio::time::timeout(STOP, self.child.wait()).await {
            Err(_) => Err(self.fault("the daemon does not end after SIGTERM")),
            Ok(Err(e)) => Err(e.to_string()),
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.fault(&format!("the daemon ended after SIGTERM: {status}"))),
        }
    }

    /// Ends it as a power cut would.
    pub async fn kill(mut self) -> Result<(), String> {
        self.child.kill().await.map_err(|e| e.to_string())
    }

    /// What went wrong, with the end of the daemon's log.
    fn fault(&self, what: &str) -> String {
        format!("{what}; the end of {}:\n{}", self.log.display(), tail(&self.log))
    }
}

/// What the daemon has counted on a day, by recipient domain (`tlswarden reports preview --out`).
pub async fn counted(program: &Program, world: &World, day: &str) -> Result<BTreeMap<String, Totals>, String> {
    let reports = reports(program, world, day).await?;
    Ok(reports.into_iter().map(|(domain, report)| (domain, report::totals(&report))).collect())
}

/// The report that the daemon would send of a day now, by recipient domain; one with a fault is an error.
pub async fn reports(program: &Program, world: &World, day: &str) -> Result<BTreeMap<String, Value>, String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let output = program
        .run(world, &["reports", "preview", "--day", day, "--out", &folder.path().to_string_lossy()])
        .await
        .map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(format!("tlswarden reports preview: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut reports = BTreeMap::new();
    let mut about_a_domain = false;
    for line in said.lines() {
        let Some(path) = line.trim_start().strip_prefix(&*folder.path().to_string_lossy()) else {
            if !line.starts_with(' ') {
                about_a_domain = !line.contains(" mx:") && !line.contains(" (supplement): ");
            }
            continue;
        };
        if !about_a_domain {
            continue;
        }
        let path = folder.path().join(path.trim_start_matches('/'));
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // RFC 8460 §5.1: submitter!policy-domain!begin!end!unique.json.gz
        let Some(domain) = name.split('!').nth(1).filter(|_| name.ends_with(".json.gz")) else {
            return Err(format!("tlswarden reports preview wrote `{name}`, which is no name of a report"));
        };
        let octets = fs::read(&path).map_err(|e| e.to_string())?;
        let report = serde_json::from_reader(GzDecoder::new(&octets[..])).map_err(|e| format!("{name}: {e}"))?;
        let faults = report::json_faults(&report);
        if !faults.is_empty() {
            return Err(format!("{name}: {}", faults.join("; ")));
        }
        reports.insert(domain.to_owned(), report);
    }
    Ok(reports)
}

/// A report in a line: for each policy its type, its sessions and its failure details.
pub fn line(report: &Value) -> String {
    let policies = report["policies"].as_array().into_iter().flatten().map(|policy| {
        let count =
            |which: &str| policy["summary"][format!("total-{which}-session-count")].as_u64().unwrap_or_default();
        let mut parts = Vec::new();
        for (which, word) in [("successful", "ok"), ("failure", "failed")] {
            parts.extend((count(which) > 0).then(|| format!("{} {word}", count(which))));
        }
        for detail in policy["failure-details"].as_array().map_or(&[][..], Vec::as_slice) {
            let reason = detail["failure-reason-code"].as_str().map(|code| format!("/{code}")).unwrap_or_default();
            let kind = detail["result-type"].as_str().unwrap_or("?");
            parts.push(format!("{} {kind}{reason}", detail["failed-session-count"]));
        }
        format!("{}: {}", policy["policy"]["policy-type"].as_str().unwrap_or("?"), parts.join(", "))
    });
    policies.collect::<Vec<_>>().join("; ")
}

/// The last 30 lines of a file.
pub fn tail(path: &Path) -> String {
    let text = fs::read(path).map(|octets| String::from_utf8_lossy(&octets).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
