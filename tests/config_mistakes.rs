//! Mistakes that people make in the configuration, and what `check-config` says of each: the file, the line, the option, and
//! what was probably meant.
//!
//! `cargo test --test config_mistakes -- --nocapture` prints the table.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_tlswarden");
const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/dkim");

const CONFIGURATION: i32 = 78;
const NO_INPUT: i32 = 66;
const OK: i32 = 0;

/// A complete `[report]`, with a key below the folder.
const REPORT: &str = "[report]\norganization = \"Ex\"\ncontact = \"a@example.com\"\nfrom = \"t@example.com\"\n\
                      [[report.dkim]]\nselector = \"tlsrpt\"\n";

/// The exit status, and what is printed with `F` for the file and `D` for its folder.
fn check(folder: &Path, text: &str) -> (Option<i32>, String) {
    let file = folder.join("tlswarden.toml");
    fs::write(&file, text.replace("DIR", folder.to_str().unwrap())).unwrap();
    let output = Command::new(BINARY).args(["check-config", "--config"]).arg(&file).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let text = text.replace(file.to_str().unwrap(), "F").replace(folder.to_str().unwrap(), "D");
    (output.status.code(), text.trim_end().to_owned())
}

/// Checks each text, and prints the table.
fn check_all(folder: &Path, cases: &[(&str, i32, &str)]) {
    let mut wrong = Vec::new();
    for (text, status, want) in cases {
        let (found, said) = check(folder, text);
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("F:")).collect();
        println!("| {} | {} |", text.replace('\n', "\\n"), lines.join(" / "));
        if found != Some(*status) || !said.contains(want) {
            wrong.push(format!("{text}: {found:?}\n  {said}\n  wanted {want}"));
        }
        if *status != OK && said.lines().count() != 1 {
            wrong.push(format!("{text}: not one line: {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn wrong_types_and_syntax() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        (
            "[policy]\nmax_domains = \"100\"\n",
            "F:2: [policy] max_domains: expected a number without quotes: max_domains = 100",
        ),
        (
            "[report]\nmax_size = \"10MB\"\n",
            "F:2: [report] max_size: invalid number \"10MB\": expected a number of bytes: max_size = 10000000",
        ),
        (
            "[report]\nmax_size = 10MB\n",
            "F:2: [report] max_size: invalid number 10MB: expected a number of bytes: max_size = 10000000",
        ),
        (
            "[report]\nonly_failures = \"yes\"\n",
            "F:2: [report] only_failures: invalid value \"yes\": expected true or false, without quotes",
        ),
        ("[report]\nonly_failures = yes\n", "F:2: [report] only_failures: invalid value yes: expected true or false"),
        ("[report]\nonly_failures = True\n", "F:2: [report] only_failures: invalid value True: expected true or false"),
        (
            "[socketmap]\nlisten = \"inet:127.0.0.1:8461\"\n",
            "F:2: [socketmap] listen: expected a list: listen = [\"inet:127.0.0.1:8461\"]",
        ),
        ("[status]\nlisten = [9845]\n", "F:2: [status] listen: missing quotes: write listen = [\"9845\"]"),
        ("[postfix]\nversion = 3.10\n", "F:2: [postfix] version: missing quotes: write version = \"3.10\""),
        (
            "[report]\nspread = 4\n",
            "F:2: [report] spread: missing quotes and unit (s, min, h, days): expected such as spread = \"4h\"",
        ),
        ("[resolver]\naddress = 127.0.0.1\n", "F:2: [resolver] address: missing quotes: write address = \"127.0.0.1\""),
        (
            "[resolver]\naddress = [\"127.0.0.1\"]\n",
            "F:2: [resolver] address: expected one value in quotes, not a list: address = \"127.0.0.1\"",
        ),
        ("[[input]]\nfile = [\"/a\", \"/b\"]\n", "F:2: [[input]] file: expected one value in quotes, not a list"),
        (
            "[[input]]\ndatagrams = \"/a\"\nmode = 0666\n",
            "F:3: [[input]] mode: invalid number 0666: a number has no leading zero; write mode = \"0666\"",
        ),
        (
            "[[report.suppress]]\ndomain = \"a.example\"\nuntil = 2026-12-31\n",
            "F:3: [[report.suppress]] until: missing quotes: write until = \"2026-12-31\"",
        ),
        (
            "[[report.suppress]]\ndomain = \"a.example\"\nuntil = \"31.12.2026\"\n",
            "F:3: [[report.suppress]] until: invalid date \"31.12.2026\": expected YYYY-MM-DD",
        ),
        (
            "[report]\norganization = Example Inc\n",
            "F:2: [report] organization: missing quotes: write organization = \"Example Inc\"",
        ),
        (
            "[report]\norganization = “Ex”\n",
            "F:2: [report] organization: wrong kind of quotes: write organization = \"Ex\"",
        ),
        ("[report]\norganization = \"Ex\n", "F:2: [report] organization: missing closing quote: \"Ex"),
        ("[report]\norganization = 'Ex\n", "F:2: [report] organization: missing closing quote: 'Ex"),
        ("[report]\norganization =\n", "F:2: [report] organization: the value is missing"),
        ("[report]\norganization: \"Ex\"\n", "F:2: [report]: missing \"=\": write organization = \"Ex\""),
        ("[report]\norganization = \"C:\\x\"\n", "F:2: [report] organization: invalid escape in"),
        (
            "[report]\ndkim = \"DIR/k.pem\"\n",
            "F:2: [report] dkim: invalid value \"D/k.pem\": write a section [[report.dkim]] with selector and key = \"D/k.pem\"",
        ),
        (
            "[report]\nsuppress = [\"a.example\"]\n",
            "F:2: [report] suppress: expected a section: write [[report.suppress]]",
        ),
    ];
    check_all(folder.path(), &cases.map(|(text, want)| (text, CONFIGURATION, want)));
}

#[test]
fn wrong_names_and_sections() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        (
            "[report]\norganisation = \"Ex\"\n",
            "F:2: [report] organisation: unknown option; did you mean \"organization\"?",
        ),
        (
            "[socketmap]\nlistens = [\"unix:/a\"]\n",
            "F:2: [socketmap] listens: unknown option; did you mean \"listen\"?",
        ),
        ("[report]\nmax-size = 1\n", "F:2: [report] max-size: unknown option; did you mean \"max_size\"?"),
        ("[report]\nmax_domains = 1\n", "F:2: [report] max_domains: unknown option here: it belongs below [policy]"),
        (
            "# Ours\ncontact = \"a@example.com\"\n",
            "F:2: contact: the option stands before the first section: it belongs below [report]",
        ),
        ("[reports]\n", "F:1: unknown section [reports]; did you mean [report]?"),
        ("[inputs]\nfile = \"/a\"\n", "F:1: unknown section [inputs]; did you mean [[input]]?"),
        (
            "[[policy.overrides]]\ndomain = \"a.example\"\n",
            "F:1: unknown section [policy.overrides]; did you mean [[policy.override]]?",
        ),
        (
            "[policy.override]\ndomain = \"a.example\"\nnone = true\n",
            "F:1: write [[policy.override]], with two brackets",
        ),
        ("[input]\nfile = \"/a\"\n", "F:1: write [[input]], with two brackets"),
        ("[report.dkim]\nselector = \"s\"\nkey = \"/k\"\n", "F:1: write [[report.dkim]], with two brackets"),
        ("[[report]]\norganization = \"Ex\"\n", "F:1: write [report], with one bracket"),
        ("[[input]]\nfile = \"/a\"\n[input]\nfile = \"/b\"\n", "F:3: write [[input]], with two brackets"),
        (
            "[policy]\nmax_domains = 1\n[report]\n[policy]\n",
            "F:4: duplicate section [policy]: it is there already, in line 1",
        ),
        ("[[report.dkim]]\nkey = \"/k\"\n", "F:1: [[report.dkim]] selector: the option is missing"),
        (
            "[postfix]\ndefault_level = \"opportunistic\"\n",
            "F:2: [postfix] default_level: invalid value \"opportunistic\": expected \"none\", \"may\", \"encrypt\", \"dane\", \"dane-only\", \"verify\", \"secure\" or \"fingerprint\"; did you mean \"may\"?",
        ),
        (
            "[postfix]\ntlsrpt = \"datagram\"\n",
            "F:2: [postfix] tlsrpt: invalid value \"datagram\": expected \"off\", \"log\" or \"datagrams\"; did you mean \"datagrams\"?",
        ),
        (
            "[[policy.override]]\ndomain = \"a.example\"\nskip = \"mta-sts\"\n",
            "F:3: [[policy.override]] skip: invalid value \"mta-sts\": expected \"dane\" or \"sts\"; did you mean \"sts\"?",
        ),
        (
            "[[policy.override]]\ndomain = \"a.example\"\nanswer = \"secure matches=mx.a.example\"\n",
            "F:3: [[policy.override]] answer: a.example: unknown attribute \"matches\": Postfix has none of that name; did you mean \"match\"?",
        ),
        ("[[policy.override]]\ndomain = \"a.example\"\nanswer = \"sceure\"\n", "; did you mean \"secure\"?"),
    ];
    check_all(folder.path(), &cases.map(|(text, want)| (text, CONFIGURATION, want)));
}

#[test]
fn wrong_values() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        (
            "[socketmap]\nlisten = [\"127.0.0.1:8461\"]\n",
            "F:2: [socketmap] listen: invalid address \"127.0.0.1:8461\": expected \"unix:/path\" or \"inet:127.0.0.1:8461\"; did you mean \"inet:127.0.0.1:8461\"?",
        ),
        (
            "[status]\nlisten = [\"9845\"]\n",
            "F:2: [status] listen: invalid address \"9845\": expected \"unix:/path\" or \"inet:127.0.0.1:8461\"; did you mean \"inet:127.0.0.1:9845\"?",
        ),
        ("[status]\nlisten = [\"inet:localhost:9845\"]\n", "; did you mean \"inet:127.0.0.1:9845\"?"),
        ("[socketmap]\nlisten = [\"/run/s\"]\n", "; did you mean \"unix:/run/s\"?"),
        (
            "[socketmap]\nlisten = [\"unix:tlswarden/socketmap\"]\n",
            "F:2: [socketmap] listen: invalid address \"unix:tlswarden/socketmap\": expected an absolute path",
        ),
        ("[socketmap]\nlisten = [\"socketmap:unix:/run/s:policy\"]\n", "; did you mean \"unix:/run/s\"?"),
        (
            "[resolver]\naddress = \"localhost:53\"\n",
            "F:2: [resolver] address: invalid address \"localhost:53\": expected an IP address, with or without a port, such as \"127.0.0.1:53\"; did you mean \"127.0.0.1:53\"?",
        ),
        (
            "[resolver]\naddress = \"::1:53\"\n",
            "F:2: [resolver] address: invalid address \"::1:53\": expected an IP address, with or without a port, such as \"127.0.0.1:53\"; did you mean \"[::1]:53\"?",
        ),
        (
            "[[policy.override]]\ndomain = \"https://example.com\"\nnone = true\n",
            "F:2: [[policy.override]] domain: invalid domain name \"https://example.com\": expected \"example.com\" or \".example.com\"; did you mean \"example.com\"?",
        ),
        ("[[policy.override]]\ndomain = \"*.example.com\"\nnone = true\n", "; did you mean \".example.com\"?"),
        (
            "[report]\nallow = [\"Example.com\"]\n",
            "F:2: [report] allow: invalid domain \"Example.com\": expected \"example.com\", or \".example.com\" for all below it; did you mean \"example.com\"?",
        ),
        (
            "[[report.suppress]]\ndomain = \"*.example.com\"\n",
            "F:2: [[report.suppress]] domain: invalid domain \"*.example.com\"",
        ),
        (
            "[[report.suppress]]\nuntil = \"2026-12-31\"\n",
            "F:1: [[report.suppress]] domain: missing: expected one of `domain` and `destination`",
        ),
        (
            "[report]\nspread = \"-4h\"\n",
            "F:2: [report] spread: invalid duration \"-4h\": expected a number with a unit (s, min, h, days), such as \"5s\"; did you mean \"4h\"?",
        ),
        (
            "[report]\nspread = \"4\"\n",
            "F:2: [report] spread: invalid duration \"4\": expected a number with a unit (s, min, h, days), such as \"4s\"",
        ),
        ("[report]\nretention = \"3 dayz\"\n", "; did you mean \"3 days\"?"),
        ("[report]\nretention = \"1day\"\n", "F:2: [report] retention: 1day is too short"),
        ("[report]\nspread = \"2days\"\n", "F:2: [report] spread: 2days is too long"),
        (
            "[policy]\nanswer_budget = \"5m\"\n",
            "F:2: [policy] answer_budget: invalid duration 5m: expected 100ms to 1m",
        ),
        (
            "[report]\ncontact = \"mailto:a@example.com\"\n",
            "F:2: [report] contact: expected the address without \"mailto:\": contact = \"a@example.com\"",
        ),
        ("[report]\nfrom = \"Ex <t@example.com>\"\n", "; did you mean \"t@example.com\"?"),
        ("[report]\ndeliver = \"localhost:25\"\n", "; did you mean \"smtp:localhost:25\"?"),
        ("[report]\ndeliver = \"smtp://localhost\"\n", "; did you mean \"smtp:localhost:25\"?"),
        ("[report]\ndeliver = \"/usr/sbin/sendmail\"\n", "; did you mean \"sendmail:/usr/sbin/sendmail\"?"),
        ("[report]\ndeliver = \"smtp:mail.example.com:25\"\n", "; did you mean \"submission:mail.example.com:587\"?"),
        (
            "[report]\ndeliver = \"submission:mail.example.com:587\"\nuser = \"x\"\n",
            "F:3: [report] user: expected user and password together, or neither",
        ),
        (
            "[count]\nsending_addresses = [\"mx1.example.com\"]\n",
            "F:2: [count] sending_addresses: invalid address \"mx1.example.com\": expected an IP address",
        ),
        (
            "[[nexthop]]\ndomain = \"*\"\nnexthop = \"smarthost.example:port\"\n",
            "F:3: [[nexthop]] nexthop: invalid next hop \"smarthost.example:port\": \"port\" is not a service in /etc/services; expected a port number",
        ),
        ("[[nexthop]]\ndomain = \"*\"\nnexthop = \"smtp:[x.example]:587\"\n", "; did you mean \"[x.example]:587\"?"),
        (
            "[postfix]\ntlsrpt = \"datagrams\"\n",
            "F:2: [postfix] tlsrpt: \"datagrams\" needs an [[input]] with `datagrams`",
        ),
        ("[[input]]\nfile = \"/a\"\n[[input]]\nfile = \"/a\"\n", "F:4: [[input]] file: duplicate input \"/a\""),
        (
            "[[input]]\nfile = \"/a\"\ntimezone = \"CEST\"\n",
            "F:3: [[input]] timezone: invalid time zone \"CEST\": expected an IANA name such as \"Europe/Berlin\"",
        ),
        (
            "[[input]]\nfile = \"mail.log\"\n",
            "F:2: [[input]] file: invalid path \"mail.log\": expected an absolute path",
        ),
        (
            "[[input]]\nfile = \"/a\"\n[[input]]\njournal = \"true\"\n",
            "F:4: [[input]] journal: invalid path \"true\": expected an absolute path, or true without quotes",
        ),
        ("[store]\npath = \"data\"\n", "F:2: [store] path: invalid path \"data\": expected an absolute path"),
        (
            "[control]\nstatus_group = \"no-such-group\"\n",
            "F:2: [control] status_group: unknown group \"no-such-group\"",
        ),
    ];
    check_all(folder.path(), &cases.map(|(text, want)| (text, CONFIGURATION, want)));
}

#[test]
fn files_that_cannot_be_used_are_named_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("garbage.pem"), "garbage\n").unwrap();
    fs::copy(PathBuf::from(KEYS).join("rsa1024.pem"), folder.path().join("short.pem")).unwrap();
    fs::copy(PathBuf::from(KEYS).join("ed25519.pem"), folder.path().join("good.pem")).unwrap();
    fs::create_dir(folder.path().join("folder")).unwrap();
    let with_key = |name: &str| format!("{REPORT}key = \"DIR/{name}\"\n");
    let second =
        format!("{}[[report.dkim]]\nselector = \"other\"\nkey = \"DIR/nowhere.pem\"\n", with_key("garbage.pem"));
    let (garbage, short, missing) = (with_key("garbage.pem"), with_key("short.pem"), with_key("nowhere.pem"));
    let password = format!("{REPORT}key = \"DIR/good.pem\"\n").replace(
        "[[report.dkim]]",
        "deliver = \"submission:mail.example.com:587\"\nuser = \"x\"\npassword = \"DIR/password\"\n[[report.dkim]]",
    );
    check_all(
        folder.path(),
        &[
            (&garbage, CONFIGURATION, "F:7: [[report.dkim]] tlsrpt: D/garbage.pem: no private key in the file"),
            (&short, CONFIGURATION, "F:7: [[report.dkim]] tlsrpt: D/short.pem: the RSA key is too short"),
            (&missing, CONFIGURATION, "F:7: [[report.dkim]] tlsrpt: D/nowhere.pem: cannot be read: No such file"),
            (&second, CONFIGURATION, "F:10: [[report.dkim]] other: D/nowhere.pem: cannot be read: No such file"),
            (&password, CONFIGURATION, "F:7: [report] password: D/password: No such file"),
            (
                "[[input]]\nfile = \"DIR/folder\"\n",
                NO_INPUT,
                "F:2: [[input]] file: D/folder: not a log file: it is a folder",
            ),
            ("[[input]]\njournal = \"DIR/nowhere\"\n", NO_INPUT, "F:2: [[input]] journal: D/nowhere: not a folder"),
        ],
    );
}

#[test]
fn what_will_probably_not_work_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mail.log"), "").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let control = "[control]\nsocket = \"DIR/control\"\n";
    let in_use = format!("{control}[status]\nlisten = [\"inet:{}\"]\n", taken.local_addr().unwrap());
    let submission = "[report]\ndeliver = \"submission:mail.example.com:587\"\nuser = \"x\"\n";
    let credential = format!("{submission}password = \"credential:nothere\"\n");
    let complete = REPORT
        .replace("[report]\n", &credential)
        .replace("[[report.dkim]]\nselector = \"tlsrpt\"\n", "dkim = \"mta\"\n");
    let password = format!("{submission}password = \"DIR/nowhere\"\n");
    check_all(
        folder.path(),
        &[
            (
                "[[input]]\nfile = \"DIR/mail.log\"\n[resolver]\naddress = \"8.8.8.8:53\"\n",
                OK,
                "warning: F:4: [resolver] address: 8.8.8.8:53 is not on this host",
            ),
            (
                "[[input]]\nfile = \"DIR/nowhere.log\"\n",
                OK,
                "warning: F:2: [[input]] file: D/nowhere.log: it does not exist\n",
            ),
            (
                "[report]\ndeliver = \"sendmail:/usr/sbin/nosuch\"\n",
                OK,
                "warning: F:2: [report] deliver: /usr/sbin/nosuch: No such file",
            ),
            (
                "[status]\nlisten = [\"inet:0.0.0.0:9845\"]\n",
                OK,
                "warning: F:2: [status] listen: \"inet:0.0.0.0:9845\" can be reached from other hosts",
            ),
            ("[status]\nlisten = [\"inet:127.0.0.1:80\"]\n", OK, "the packaged unit cannot use ports below 1024"),
            (&in_use, OK, "is already in use by another process"),
            (&credential, OK, "warning: F:4: [report] password: credential:nothere: not checked"),
            (&complete, OK, "warning: F:4: [report] password: credential:nothere: not checked"),
            (&password, OK, "warning: F:4: [report] password: D/nowhere: No such file"),
        ],
    );
}

#[test]
fn what_is_only_unusual_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    for text in [
        "\u{feff}[policy]\nmax_domains = 1000\n",
        "[policy]\n\tmax_domains = 1000\n",
        "[policy]\r\nmax_domains = 1000\r\n",
        "",
        "[resolver]\naddress = \"127.0.0.1\"\n",
        "[resolver]\naddress = \"::1\"\n",
        "[[input]]\nfile = \"/var/log/mail.log\"\nmta = \"Postfix\"\n",
        "[report]\ndeliver = \"smtp:localhost:25\"\n",
        "[report]\nspread = \"4 hrs\"\n",
        "[count]\nlocal_networks = [\"192.168.1.5/24\", \"192.168.1.5\"]\n",
        "[[policy.override]]\ndomain = \"müller.example\"\nnone = true\n",
        "[[nexthop]]\ndomain = \"*\"\nnexthop = \"[smarthost.example]:submission\"\n",
    ] {
        let (status, said) = check(folder.path(), text);
        assert_eq!(status, Some(OK), "{text}: {said}");
        assert!(said.lines().last().unwrap().starts_with("F: OK"), "{text}: {said}");
    }
}
