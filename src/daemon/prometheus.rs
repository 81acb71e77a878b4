//! Shows the daemon's metrics to Prometheus, at `/metrics`.
//!
//! Takes: GET requests of HTTP/1 on a local socket. Gives: the text format 0.0.4, made from a snapshot; it reads
//! nothing that mail waits for, and changes nothing.
//! Limits: [`MAX_CONNECTIONS`] connections at once, more wait; [`HEAD_TIMEOUT`] for a request's head, [`MAX_HEAD`]
//! octets of it.
//! Label sets are fixed, but for the names of the inputs, which the configuration sets.
//! Not here: what is counted (`metrics`), who may connect (the address that is configured).

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};

use crate::answering::connections::{ClientConnection, ClientConnections};
use crate::answering::listener::{Listener, Stream};
use crate::base::parts::PartState;
use crate::daemon::control::Services;
use crate::metrics::answers::{AnswerKind, WAIT_BOUNDS};
use crate::metrics::catalogue::{CATALOGUE, SNAPSHOT_METRICS, SnapshotMetric};
use crate::metrics::line_counts::FamilyCounts;
use crate::metrics::{InputProgress, MtaProtocol, SessionSeries};

/// Connections that are served at once: a few scrapers, each with one.
const MAX_CONNECTIONS: usize = 16;

/// How long a request's head may take to arrive, and how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest head of a request, in octets (the least that hyper takes).
const MAX_HEAD: usize = 8192;

/// Serves whoever connects, until `shutdown` turns true.
pub(crate) async fn serve(
    listener: Listener,
    clients: ClientConnections,
    services: Arc<Services>,
    mut shutdown: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let metrics = services.metrics.clone();
    let begin = |stream, client| {
        let (services, permits) = (Arc::clone(&services), Arc::clone(&permits));
        async move {
            // To be closed for others, with those that have waited for longest.
            let _client: ClientConnection = client;
            let Ok(_permit) = permits.acquire().await else { return };
            match stream {
                Stream::Unix(stream) => serve_connection(stream, services).await,
                Stream::Tcp(stream) => serve_connection(stream, services).await,
            }
        }
    };
    listener.accept_all("status", &metrics, &clients, &mut shutdown, begin).await.shutdown().await;
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin, services: Arc<Services>) {
    let service = service_fn(|request| respond(request, Arc::clone(&services)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD);
    // A client that disconnects early is not an error.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(request: Request<Incoming>, services: Arc<Services>) -> Result<Response<Full<Bytes>>, Infallible> {
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, kind, body) = match request.uri().path() {
        _ if !get => (StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n".to_owned()),
        "/metrics" => match tokio::task::spawn_blocking(move || render_metrics(&services)).await {
            Ok(text) => (StatusCode::OK, EXPOSITION, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        },
        _ => (StatusCode::NOT_FOUND, TEXT, "/metrics is all that is here\n".to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if !get {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    Ok(response)
}

const TEXT: &str = "text/plain; charset=utf-8";
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The current metrics, in Prometheus' text format 0.0.4.
pub(crate) fn render_metrics(services: &Services) -> String {
    let mut page = MetricsPage::default();
    page.add_snapshot("tlswarden_build_info", [(label("version", env!("CARGO_PKG_VERSION")), 1.0)]);
    let running = |state: &PartState| f64::from(u8::from(*state == PartState::Running));
    let parts = services.parts.states();
    page.add_snapshot(
        "tlswarden_part_running",
        parts.iter().map(|(part, state)| (label("part", part), running(state))),
    );
    add_inputs(services, &mut page);
    add_sessions(services, &mut page);
    add_answers(services, &mut page);
    let known = services.policies.counts();
    page.add_gauge("tlswarden_policies", known.policies as f64);
    page.add_gauge("tlswarden_sts_domains", known.domains as f64);
    page.add_gauge("tlswarden_decisions", known.decisions as f64);
    page.add_gauge("tlswarden_history_periods", known.periods as f64);
    page.add_gauge("tlswarden_resolver_validating", f64::from(u8::from(services.resolver.status().validates)));
    let (queries, failed) = services.resolver.query_counts();
    let results = [("answered", queries.saturating_sub(failed)), ("failed", failed)];
    page.add_snapshot(
        "tlswarden_dns_queries_total",
        results.map(|(result, count)| (label("result", result), count as f64)),
    );
    if let Ok(octets) = services.store.size() {
        page.add_gauge("tlswarden_store_bytes", octets as f64);
    }
    let counters = services.metrics.counters();
    for family in CATALOGUE {
        let value = |(name, labels): &(&str, &str)| {
            ((*labels).to_owned(), counters.get(name).copied().unwrap_or_default() as f64)
        };
        page.add_metric("counter", family.metric, family.help, family.samples.iter().map(value));
    }
    page.0
}

fn add_inputs(services: &Services, page: &mut MetricsPage) {
    let now = services.clock.seconds();
    let inputs = services.metrics.inputs();
    let mut each = |metric: &str, value: &dyn Fn(&InputProgress) -> f64| {
        page.add_snapshot(metric, inputs.iter().map(|(name, p)| (label("input", name), value(p))));
    };
    each("tlswarden_input_behind_bytes", &|p| p.behind as f64);
    each("tlswarden_input_lag_seconds", &|p| match (p.at_end_since, p.newest) {
        (Some(_), _) => 0.0,
        (None, Some(newest)) => (now - newest).max(0) as f64,
        (None, None) => f64::NAN,
    });
    each("tlswarden_input_trouble", &|p| f64::from(u8::from(p.trouble.is_some())));
    each("tlswarden_lines_total", &|p| p.lines as f64);
    each("tlswarden_lines_lost_total", &|p| p.lost as f64);
    each("tlswarden_lines_skipped_total", &|p| p.skipped as f64);
    let mut by_family = |metric: &str, value: &dyn Fn(&FamilyCounts) -> u64| {
        let samples = inputs.iter().flat_map(|(name, p)| {
            let labels = move |family: &str| format!("{},{}", label("input", name), label("family", family));
            p.families.iter().map(move |(family, n)| (labels(family), value(n) as f64))
        });
        page.add_snapshot(metric, samples);
    };
    by_family("tlswarden_lines_used_total", &|lines| lines.used);
    by_family("tlswarden_lines_malformed_total", &|lines| lines.malformed);
    by_family("tlswarden_lines_unrecognized_total", &|lines| lines.unrecognized);
}

fn add_sessions(services: &Services, page: &mut MetricsPage) {
    let (mut sessions, mut failures) = (Vec::new(), Vec::new());
    for (counting, n) in services.metrics.session_counts() {
        let n = n as f64;
        match counting {
            SessionSeries::Sessions(policy, succeeded) => {
                let result = if succeeded { "success" } else { "failure" };
                sessions.push((format!("policy=\"{policy}\",result=\"{result}\""), n));
            }
            SessionSeries::Failures(policy, result) => {
                failures.push((format!("policy=\"{policy}\",result_type=\"{result}\""), n));
            }
        }
    }
    page.add_snapshot("tlswarden_sessions_total", sessions);
    page.add_snapshot("tlswarden_failures_total", failures);
}

fn add_answers(services: &Services, page: &mut MetricsPage) {
    let counts: Vec<_> =
        MtaProtocol::ALL.iter().map(|(protocol, name)| (*name, services.metrics.answers(*protocol).counts())).collect();
    let of_kinds = counts.iter().flat_map(|(protocol, counts)| {
        let label = move |kind: &str| format!("protocol=\"{protocol}\",kind=\"{kind}\"");
        AnswerKind::ALL.iter().zip(counts.kinds).map(move |((_, kind), n)| (label(kind), n as f64))
    });
    page.add_snapshot("tlswarden_answers_total", of_kinds);
    page.add_snapshot("tlswarden_answer_seconds", []);
    for (protocol, counts) in &counts {
        let bounds = WAIT_BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, n) in bounds.zip(counts.cumulative) {
            page.add_sample(
                "tlswarden_answer_seconds_bucket",
                &format!("protocol=\"{protocol}\",le=\"{bound}\""),
                n as f64,
            );
        }
        let [.., all] = counts.cumulative;
        page.add_sample("tlswarden_answer_seconds_sum", &format!("protocol=\"{protocol}\""), counts.wait_seconds);
        page.add_sample("tlswarden_answer_seconds_count", &format!("protocol=\"{protocol}\""), all as f64);
    }
}

/// The text, as it is built.
#[derive(Default)]
struct MetricsPage(String);

impl MetricsPage {
    fn add_gauge(&mut self, metric: &str, value: f64) {
        self.add_snapshot(metric, [(String::new(), value)]);
    }

    /// Adds a metric of the snapshot, with its labels and values.
    fn add_snapshot(&mut self, metric: &str, samples: impl IntoIterator<Item = (String, f64)>) {
        let found = SNAPSHOT_METRICS.iter().find(|shown| shown.metric == metric);
        debug_assert!(found.is_some(), "{metric} is not in the catalogue");
        if let Some(SnapshotMetric { metric, kind, help }) = found {
            self.add_metric(kind, metric, help, samples);
        }
    }

    fn add_metric(&mut self, kind: &str, name: &str, help: &str, samples: impl IntoIterator<Item = (String, f64)>) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            self.add_sample(name, &labels, value);
        }
    }

    fn add_sample(&mut self, name: &str, labels: &str, value: f64) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }
}

/// A label whose value may be any text.
fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}
