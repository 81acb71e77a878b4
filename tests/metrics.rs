//! `/metrics` of a running daemon, as Prometheus reads it.

mod running;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tlswarden::metrics::catalogue::{CATALOGUE, SNAPSHOT_METRICS};

use running::Running;

const LOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/postfix-3.7.11/sts-expired.iso.log");

/// How long the daemon may take until it has read a log of six lines.
const PATIENCE: Duration = Duration::from_secs(30);

fn start(folder: &Path) -> Running {
    let at = folder.display();
    let config = format!(
        "[store]\npath = \"{at}/store\"\n[control]\nsocket = \"{at}/control\"\n[socketmap]\nlisten = [\"unix:{at}/ask\"]\n\
         [resolver]\naddress = \"127.0.0.1:9\"\n[status]\nlisten = [\"unix:{at}/metrics\"]\n\
         [[input]]\nfile = \"{at}/mail\\\".log\"\n"
    );
    fs::write(folder.join("config.toml"), config).unwrap();
    fs::copy(LOG, folder.join("mail\".log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tlswarden"));
    command.args(["serve", "--config"]).arg(folder.join("config.toml")).stdin(Stdio::null()).stderr(Stdio::null());
    let daemon = Running(command.spawn().unwrap());
    let limit = Instant::now() + PATIENCE;
    while UnixStream::connect(folder.join("metrics")).is_err() {
        assert!(Instant::now() < limit, "the daemon does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon
}

/// One request on a connection of its own: the head and the body of the response.
fn request(folder: &Path, request: &str) -> (String, String) {
    let mut stream = UnixStream::connect(folder.join("metrics")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// The text format 0.0.4, strictly: metrics with help and type before their samples, each once. Samples by full name.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut described = BTreeSet::new();
    let mut found = BTreeMap::new();
    let mut current = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(name.starts_with("tlswarden_") && help.ends_with('.'), "{line}");
            assert!(described.insert(name.to_owned()), "twice: {name}");
            let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} "))).unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            name.clone_into(&mut current);
            continue;
        }
        let (full, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = full.split_once('{').unwrap_or((full, "}"));
        let of_histogram = ["_bucket", "_sum", "_count"].iter().any(|part| name.strip_suffix(part) == Some(&current));
        assert!((name == current || of_histogram) && labels.ends_with('}'), "{line}");
        assert!(found.insert(full.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
    }
    found
}

#[test]
fn what_was_counted_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let _daemon = start(folder.path());
    let limit = Instant::now() + PATIENCE;
    let shown = loop {
        let (head, body) = request(folder.path(), "GET /metrics");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        let shown = samples(&body);
        if shown.keys().any(|name| name.starts_with("tlswarden_sessions_total{")) {
            break shown;
        }
        assert!(Instant::now() < limit, "nothing was counted: {body}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let name = format!("{}/mail\\\".log", folder.path().display());
    let of_input = |metric: &str| shown[&format!("{metric}{{input=\"{name}\"}}")];
    let lines = fs::read_to_string(LOG).unwrap().lines().count();
    assert_eq!(of_input("tlswarden_lines_total"), lines as f64);
    assert_eq!(of_input("tlswarden_input_behind_bytes"), 0.0);
    assert_eq!(of_input("tlswarden_input_trouble"), 0.0);
    assert!(shown["tlswarden_commits_total"] >= 1.0);
    let of_family = format!("{{input=\"{name}\",family=\"certificate verification\"}}");
    assert_eq!(shown[&format!("tlswarden_lines_used_total{of_family}")], 1.0);
    assert_eq!(shown[&format!("tlswarden_lines_malformed_total{of_family}")], 0.0);
    // Nobody had asked for a policy: the failed session is one of a destination without.
    assert_eq!(shown["tlswarden_sessions_total{policy=\"no-policy-found\",result=\"failure\"}"], 1.0);
    assert_eq!(shown["tlswarden_failures_total{policy=\"no-policy-found\",result_type=\"certificate-expired\"}"], 1.0);
    for metric in SNAPSHOT_METRICS {
        let first =
            if metric.kind == "histogram" { format!("{}_count", metric.metric) } else { metric.metric.to_owned() };
        assert!(shown.keys().any(|name| name.split('{').next() == Some(&first)), "{}", metric.metric);
    }
    for family in CATALOGUE {
        for (_, labels) in family.samples {
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            assert!(shown.contains_key(&format!("{}{labels}", family.metric)), "{}{labels}", family.metric);
        }
    }
}

#[test]
fn answers_are_shown_by_kind_and_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let _daemon = start(folder.path());
    // An address literal has no policy; a name cannot be asked for where no resolver answers.
    let mut postfix = UnixStream::connect(folder.path().join("ask")).unwrap();
    postfix.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut ask = |key: &str, reply: &str| {
        let request = format!("policy {key}");
        write!(postfix, "{}:{request},", request.len()).unwrap();
        let mut octets = [0; 64];
        let read = postfix.read(&mut octets).unwrap();
        assert!(octets[..read].windows(reply.len()).any(|part| part == reply.as_bytes()), "{key}");
    };
    ask("[192.0.2.1]", "NOTFOUND");
    ask("[192.0.2.1]", "NOTFOUND");
    ask("a.example", "TEMP");
    let shown = samples(&request(folder.path(), "GET /metrics").1);
    let answers = |kind: &str| shown[&format!("tlswarden_answers_total{{protocol=\"socketmap\",kind=\"{kind}\"}}")];
    assert_eq!([answers("none"), answers("temp"), answers("sts-enforce")], [2.0, 1.0, 0.0]);
    let within = |le: &str| shown[&format!("tlswarden_answer_seconds_bucket{{protocol=\"socketmap\",le=\"{le}\"}}")];
    assert_eq!(within("+Inf"), 3.0);
    assert!((2.0..=3.0).contains(&within("0.001")));
    assert_eq!(shown["tlswarden_answer_seconds_count{protocol=\"socketmap\"}"], 3.0);
    assert!(shown["tlswarden_answer_seconds_sum{protocol=\"socketmap\"}"] < PATIENCE.as_secs_f64());
}

#[test]
fn nothing_else_is_there_and_nobody_is_held_up() {
    let folder = tempfile::tempdir().unwrap();
    let _daemon = start(folder.path());
    let (head, body) = request(folder.path(), "GET /");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    assert_eq!(body, "/metrics is all that is here\n");
    let (head, _) = request(folder.path(), "POST /metrics");
    assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("allow: GET, HEAD"), "{head}");
    // Connections that say nothing take places, and not the last one.
    let idle: Vec<UnixStream> = (0..15).map(|_| UnixStream::connect(folder.path().join("metrics")).unwrap()).collect();
    assert!(request(folder.path(), "GET /metrics").0.starts_with("HTTP/1.1 200 "));
    drop(idle);
}

#[test]
fn alerts_and_board_name_what_there_is() {
    let known: BTreeSet<&str> =
        SNAPSHOT_METRICS.iter().map(|shown| shown.metric).chain(CATALOGUE.iter().map(|family| family.metric)).collect();
    for file in ["alerts.yml", "grafana.json"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus").join(file);
        let text = fs::read_to_string(path).unwrap();
        let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
        let named: BTreeSet<&str> = words
            .filter(|word| word.starts_with("tlswarden_"))
            .map(|word| word.strip_suffix("_bucket").unwrap_or(word))
            .collect();
        assert!(named.len() > 5, "{file}: {named:?}");
        let unknown: Vec<&&str> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}
