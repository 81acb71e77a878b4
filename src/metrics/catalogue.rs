//! Every metric by name: how it is called at `/metrics`, its labels, and what it says.
//!
//! A counter that is not here does not exist (`Metrics::counter` says so), and the manual is made from this table.
//! Label sets are fixed: no name of a domain or host ever becomes one.

/// One metric that only goes up, and the counters that are its samples.
#[derive(Debug)]
pub struct CounterFamily {
    /// Its name at `/metrics`.
    pub metric: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// (counter, label set without braces).
    pub samples: &'static [(&'static str, &'static str)],
}

/// A metric with one counter and no labels.
const fn single_counter(
    metric: &'static str,
    counter: &'static [(&'static str, &'static str)],
    help: &'static str,
) -> CounterFamily {
    CounterFamily { metric, help, samples: counter }
}

/// A metric whose samples are taken from a snapshot when it is rendered.
#[derive(Debug)]
pub struct SnapshotMetric {
    /// Its name at `/metrics`.
    pub metric: &'static str,
    /// `gauge`, `counter` or `histogram`.
    pub kind: &'static str,
    /// What it says.
    pub help: &'static str,
}

const fn gauge(metric: &'static str, help: &'static str) -> SnapshotMetric {
    SnapshotMetric { metric, kind: "gauge", help }
}

const fn counter(metric: &'static str, help: &'static str) -> SnapshotMetric {
    SnapshotMetric { metric, kind: "counter", help }
}

/// The metrics of snapshots, in the order in which they are shown.
pub const SNAPSHOT_METRICS: &[SnapshotMetric] = &[
    gauge("tlswarden_build_info", "The version of the daemon; always 1."),
    gauge(
        "tlswarden_part_running",
        "1 while a part of the daemon runs, 0 while it is off; `tlswarden status` shows why.",
    ),
    gauge("tlswarden_input_behind_bytes", "Bytes of an input that are not read yet."),
    gauge(
        "tlswarden_input_lag_seconds",
        "How old the last line that was counted is; 0 at the end of an input, NaN before its first line.",
    ),
    gauge("tlswarden_input_trouble", "1 while an input cannot be read."),
    counter("tlswarden_lines_total", "Lines read, by input."),
    counter(
        "tlswarden_lines_used_total",
        "Lines and datagrams that said something about a session or a message, by input and family.",
    ),
    counter(
        "tlswarden_lines_malformed_total",
        "Lines that looked like an MTA's and could not be read, by input and family: perhaps a new version's wording.",
    ),
    counter(
        "tlswarden_lines_unrecognized_total",
        "Lines that look like an MTA's and match no known wording, by input and family: perhaps a new version's.",
    ),
    counter("tlswarden_lines_lost_total", "Lines that a syslog daemon left out (rate limit), at least, by input."),
    counter("tlswarden_lines_skipped_total", "Lines over the limit, left out, by input."),
    counter(
        "tlswarden_sessions_total",
        "TLS sessions counted, by the type of the policy in force and whether they succeeded.",
    ),
    counter(
        "tlswarden_failures_total",
        "Failures in the words of RFC 8460, those of sessions and of the policies themselves, by policy type and result type.",
    ),
    counter(
        "tlswarden_answers_total",
        "Answers to an MTA, by protocol and kind; temp defers the mail, for nothing is known.",
    ),
    SnapshotMetric {
        metric: "tlswarden_answer_seconds",
        kind: "histogram",
        help: "How long an MTA waited for its answer, by protocol; one that was ready counts as nothing.",
    },
    gauge("tlswarden_policies", "MTA-STS policies that have not expired."),
    gauge("tlswarden_sts_domains", "Domains whose MTA-STS record is known."),
    gauge("tlswarden_decisions", "Next hops with a decision in memory."),
    gauge("tlswarden_history_periods", "Decisions that sessions may still be held to."),
    gauge(
        "tlswarden_resolver_validating",
        "1 where the resolver validates, as its last probe showed, so that DANE can be done.",
    ),
    counter(
        "tlswarden_dns_queries_total",
        "Queries to the resolver, by whether it answered: anything but an error counts.",
    ),
    gauge("tlswarden_store_bytes", "Bytes of the store on disk."),
];

/// The counters, in the order in which they are shown.
pub const CATALOGUE: &[CounterFamily] = &[
    single_counter("tlswarden_commits_total", &[("commits", "")], "Batches of counts written to the store."),
    CounterFamily {
        metric: "tlswarden_sessions_left_out_total",
        help: "Sessions that were seen and not counted, by cause.",
        samples: &[
            ("sessions-without-domain", "cause=\"no-domain\""),
            ("sessions-unmatched", "cause=\"lines-missing\""),
            ("sessions-crowded-out", "cause=\"table-full\""),
            ("sessions-without-trust-anchors", "cause=\"no-trust-anchors\""),
            ("sessions-of-own-reports", "cause=\"own-report\""),
            ("sessions-local", "cause=\"local-network\""),
            ("sessions-relayed", "cause=\"relayed\""),
            ("sessions-refused", "cause=\"store-refused\""),
        ],
    },
    single_counter(
        "tlswarden_records_refused_total",
        &[("records-refused", "")],
        "Records of sessions under way that the store refused for their content; what was counted is stored all the same.",
    ),
    CounterFamily {
        metric: "tlswarden_sessions_under_no_decision_total",
        help: "Sessions counted as no-policy-found though a policy may be published, by cause.",
        samples: &[
            ("sessions-not-asked", "cause=\"not-asked\""),
            ("sessions-contradicting", "cause=\"contradicts-decision\""),
        ],
    },
    single_counter(
        "tlswarden_sessions_left_to_datagrams_total",
        &[("sessions-left-to-datagrams", "")],
        "Sessions in the log that Postfix's own datagrams count.",
    ),
    CounterFamily {
        metric: "tlswarden_datagrams_left_out_total",
        help: "TLSRPT datagrams that were not counted, by cause; unreadable ones are among tlswarden_lines_malformed_total.",
        samples: &[("datagrams-left-to-log", "cause=\"testing-mode\""), ("datagrams-lost", "cause=\"no-room\"")],
    },
    single_counter(
        "tlswarden_journal_gaps_total",
        &[("journal-gaps", "")],
        "Times that the journal's last counted entry was gone, so that entries may be missing.",
    ),
    single_counter(
        "tlswarden_hints_dropped_total",
        &[("hints-dropped", "")],
        "Failed deliveries after which the domain's record was not looked at, for too many failed at once.",
    ),
    single_counter("tlswarden_exim_told_total", &[("exim_told", "")], "Failed sessions that Exim's event action told."),
    single_counter(
        "tlswarden_exim_told_lost_total",
        &[("exim_told_lost", "")],
        "Of those, not counted: there is no one Exim log to hold them against, or nothing could be stored in time.",
    ),
    CounterFamily {
        metric: "tlswarden_connections_total",
        help: "Connections of an MTA, by protocol.",
        samples: &[
            ("socketmap_connections", "protocol=\"socketmap\""),
            ("readsocket_connections", "protocol=\"readsocket\""),
        ],
    },
    CounterFamily {
        metric: "tlswarden_connections_closed_total",
        help: "Connections of an MTA that were closed, by cause: idle for ten minutes, for the next one where descriptors are \
               short, or for the memory of answers that are not read.",
        samples: &[
            ("connections_closed_idle", "cause=\"idle\""),
            ("connections_closed_for_room", "cause=\"descriptors\""),
            ("connections_closed_for_memory", "cause=\"memory\""),
        ],
    },
    CounterFamily {
        metric: "tlswarden_requests_total",
        help: "Questions of an MTA, by protocol.",
        samples: &[
            ("socketmap_requests", "protocol=\"socketmap\""),
            ("readsocket_requests", "protocol=\"readsocket\""),
        ],
    },
    CounterFamily {
        metric: "tlswarden_requests_refused_total",
        help: "Questions that were no question, by protocol and cause.",
        samples: &[
            ("socketmap_malformed", "protocol=\"socketmap\",cause=\"malformed\""),
            ("socketmap_unknown_map", "protocol=\"socketmap\",cause=\"unknown-map\""),
            ("socketmap_slow_clients", "protocol=\"socketmap\",cause=\"slow\""),
            ("readsocket_malformed", "protocol=\"readsocket\",cause=\"malformed\""),
            ("readsocket_slow_clients", "protocol=\"readsocket\",cause=\"slow\""),
        ],
    },
    single_counter(
        "tlswarden_decisions_temp_total",
        &[("answers_temp", "")],
        "Decisions that nothing is known; each may be answered several times.",
    ),
    single_counter("tlswarden_dane_lookups_total", &[("dane_lookups", "")], "DANE look-ups."),
    single_counter(
        "tlswarden_tlsa_without_data_total",
        &[("tlsa_without_data", "")],
        "Decisions about domains with TLSA records without data, which crash this Postfix.",
    ),
    single_counter("tlswarden_dane_lookups_failed_total", &[("dane_lookups_failed", "")], "DANE look-ups that failed."),
    single_counter("tlswarden_sts_records_asked_total", &[("sts_records_asked", "")], "Look-ups of _mta-sts records."),
    single_counter(
        "tlswarden_sts_records_hinted_total",
        &[("sts_records_hinted", "")],
        "Look-ups of _mta-sts records because a delivery failed under the policy.",
    ),
    single_counter("tlswarden_sts_fetches_total", &[("sts_fetches", "")], "Fetches of MTA-STS documents."),
    single_counter(
        "tlswarden_sts_fetches_failed_total",
        &[("sts_fetches_failed", "")],
        "Fetches of MTA-STS documents that failed.",
    ),
    CounterFamily {
        metric: "tlswarden_evicted_total",
        help: "What gave way in a full table, by table.",
        samples: &[
            ("sts_domains_evicted", "table=\"sts\""),
            ("decisions_evicted", "table=\"decisions\""),
            ("decisions_dropped", "table=\"history\""),
        ],
    },
    single_counter(
        "tlswarden_own_report_lines_dropped_total",
        &[("own_report_lines_dropped", "")],
        "Lines of the MTA's log about our own reports that were not used, because too many waited.",
    ),
    CounterFamily {
        metric: "tlswarden_look_ups_put_off_total",
        help: "What was not looked up because much was being looked up already, by kind.",
        samples: &[
            ("sts_looks_postponed", "kind=\"sts\""),
            ("refreshes_postponed", "kind=\"refresh\""),
            ("decisions_refused", "kind=\"decision\""),
            ("dane_lookups_refused", "kind=\"dane\""),
        ],
    },
    single_counter(
        "tlswarden_decisions_unreadable_total",
        &[("decisions_unreadable", "")],
        "Records of the history that could not be read at start.",
    ),
    CounterFamily {
        metric: "tlswarden_reports_total",
        help: "Attempts to deliver a report, by result; bounced are those that the MTA had accepted before.",
        samples: &[
            ("reports_sent", "state=\"sent\""),
            ("reports_retried", "state=\"retried\""),
            ("reports_refused", "state=\"refused\""),
            ("reports_unknown", "state=\"unknown\""),
            ("reports_expired", "state=\"expired\""),
            ("reports_bounced", "state=\"bounced\""),
        ],
    },
    single_counter(
        "tlswarden_late_counts_dropped_total",
        &[("late-counts-dropped", "")],
        "Counts in no report: they came after the supplement of their day had gone, or after retention.",
    ),
];

/// Whether there is such a counter.
pub fn is_known(counter: &str) -> bool {
    CATALOGUE.iter().any(|family| family.samples.iter().any(|(name, _)| *name == counter))
}
