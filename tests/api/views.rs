//! The shipped views: the alerts, the dashboard and the runbook agree with each other and with the metrics there are.
//!
//! What a metric is called is read from the table in `docs/telemetry.md`, which a test beside the metrics holds to the
//! code; the reasons from the README's table of failures, which is held to the code too. Whether the queries return data
//! is for a real Prometheus to say: `make test-prometheus`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

const RULES: &str = include_str!("../../deploy/prometheus/rules.yaml");
const RULES_TEST: &str = include_str!("../prometheus/rules_test.yaml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/dashboard.json");
const RUNBOOK: &str = include_str!("../../docs/runbook.md");
const TELEMETRY: &str = include_str!("../../docs/telemetry.md");
const README: &str = include_str!("../../README.md");

/// What is said in PromQL besides metrics and labels.
const PROMQL: [&str; 20] = [
    "absent",
    "and",
    "by",
    "changes",
    "count",
    "histogram_quantile",
    "increase",
    "max",
    "min",
    "offset",
    "on",
    "or",
    "rate",
    "sum",
    "topk",
    "unless",
    "vector",
    "without",
    "avg",
    "clamp_min",
];
/// What Prometheus itself, or whoever scrapes, adds to every series.
const LABELS_OF_THE_SCRAPE: [&str; 3] = ["instance", "job", "namespace"];

/// A rule as it stands in the file.
struct Alert<'a> {
    name: &'a str,
    text: &'a str,
}

impl Alert<'_> {
    fn all() -> Vec<Self> {
        let alerts: Vec<_> = RULES
            .split("- alert: ")
            .skip(1)
            .map(|text| Self { name: text.lines().next().expect("a name"), text })
            .collect();
        assert!(alerts.len() > 5, "the file is not read as it is written");
        alerts
    }

    /// The text of a key: in its line, or in the deeper lines below.
    fn get(&self, key: &str) -> String {
        let lines: Vec<_> = self.text.lines().collect();
        let at = lines.iter().position(|line| line.trim_start().starts_with(&format!("{key}: ")));
        let at = at.unwrap_or_else(|| panic!("{} has no {key}", self.name));
        let depth = |line: &str| line.len() - line.trim_start().len();
        let (_, first) = lines[at].split_once(": ").expect("it was found by it");
        if !matches!(first, "|-" | ">-") {
            return first.to_owned();
        }
        let below = lines[at + 1..].iter().take_while(|line| depth(line) > depth(lines[at]));
        below.map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

/// The runbook's entries: heading → text.
fn entries(part: &str) -> BTreeMap<&'static str, &'static str> {
    let (_, rest) =
        RUNBOOK.split_once(&format!("\n## {part}\n")).unwrap_or_else(|| panic!("the runbook has no {part}"));
    let text = rest.split("\n## ").next().expect("the rest");
    let entries = text.split("\n### ").skip(1);
    entries.map(|entry| entry.split_once('\n').expect("a heading and its text")).collect()
}

/// The words in backticks that look like reasons.
fn reasons_in(text: &str) -> BTreeSet<&str> {
    let is_reason = |word: &&str| word.contains('_') && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    text.split('`').skip(1).step_by(2).filter(is_reason).collect()
}

/// The reasons that are the caller's to mend, as the runbook lists them.
fn callers_reasons() -> BTreeSet<&'static str> {
    let (_, text) = RUNBOOK.split_once("\n## Reasons that are the caller's\n").expect("the runbook has this part");
    reasons_in(text)
}

/// The name that Prometheus shows → its labels, the parts of histograms each for itself.
fn metrics() -> BTreeMap<String, BTreeSet<String>> {
    let (_, table) = TELEMETRY.split_once("<!-- metrics:start -->").expect("the table");
    let (table, _) = table.split_once("<!-- metrics:end -->").expect("its end");
    let mut metrics = BTreeMap::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let (name, kind) = (cells[1].trim_matches('`'), cells[2]);
        let labels = cells[4].split(", ").map(|label| label.trim_matches('`').replace('.', "_"));
        let labels: BTreeSet<_> = labels.chain(LABELS_OF_THE_SCRAPE.map(str::to_owned)).collect();
        if kind != "histogram" {
            metrics.insert(name.to_owned(), labels);
            continue;
        }
        for part in ["_sum", "_count"] {
            metrics.insert(format!("{name}{part}"), labels.clone());
        }
        let labels = labels.into_iter().chain(["le".to_owned()]).collect();
        metrics.insert(format!("{name}_bucket"), labels);
    }
    metrics
}

/// The names in a query: each word with the metric before the braces that it stands in, if it stands in some.
fn words(query: &str) -> Vec<(String, Option<String>)> {
    let mut words: Vec<(String, Option<String>)> = Vec::new();
    // What stands in quotes is a value.
    let bare: String = query.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let mut selected: Option<String> = None;
    let mut rest = bare.as_str();
    while let Some(first) = rest.chars().next() {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len()).max(1);
        let (word, after) = rest.split_at(length);
        match first {
            '{' => selected = words.last().map(|(metric, _)| metric.clone()),
            '}' => selected = None,
            // A variable of Grafana's.
            '$' => {
                let end = after.find(|c| !is_part(c)).unwrap_or(after.len());
                rest = &after[end..];
                continue;
            }
            _ if first.is_ascii_alphabetic() || first == '_' => words.push((word.to_owned(), selected.clone())),
            _ => {}
        }
        rest = after;
    }
    words
}

/// What is wrong with the names in a query, and which metrics it is about.
fn names_of(query: &str, metrics: &BTreeMap<String, BTreeSet<String>>) -> (Vec<String>, BTreeSet<String>) {
    let every_label: BTreeSet<_> = metrics.values().flatten().collect();
    let (mut problems, mut used) = (Vec::new(), BTreeSet::new());
    for (word, metric) in words(query) {
        let is_known = if let Some(metric) = metric {
            metrics.get(&metric).is_some_and(|labels| labels.contains(&word))
        } else if metrics.contains_key(&word) {
            used.insert(word.clone());
            true
        } else {
            PROMQL.contains(&word.as_str()) || every_label.contains(&word)
        };
        if !is_known {
            problems.push(format!("{word} in {query}"));
        }
    }
    (problems, used)
}

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).expect("the dashboard is JSON")
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().expect("panels").iter()
}

/// Everything that the dashboard asks Prometheus.
fn queries_of_the_dashboard() -> Vec<String> {
    let dashboard = dashboard();
    let annotations = dashboard["annotations"]["list"].as_array().expect("annotations").clone();
    let targets = panels(&dashboard).filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries = targets.chain(&annotations).filter_map(|query| query["expr"].as_str());
    queries.map(ToOwned::to_owned).collect()
}

#[test]
fn every_alert_says_what_a_person_needs_and_leads_to_its_entry() {
    for alert in Alert::all() {
        let name = alert.name;
        assert!(matches!(alert.get("severity").as_str(), "critical" | "warning"), "{name}");
        assert!((20..=80).contains(&alert.get("summary").len()), "{name}: {}", alert.get("summary"));
        assert!(alert.get("description").len() >= 100, "{name}: {}", alert.get("description"));
        assert_eq!(alert.get("runbook"), format!("docs/runbook.md#{}", name.to_lowercase()));
        let row = format!("| `{name}` | {} | ", alert.get("severity"));
        assert!(TELEMETRY.contains(&row), "docs/telemetry.md has no row that begins with {row}");
    }
}

#[test]
fn every_alert_has_an_entry_in_the_runbook_and_every_entry_its_alert() {
    let alerts: BTreeSet<_> = Alert::all().iter().map(|alert| alert.name).collect();
    let entries: BTreeSet<_> = entries("Alerts").into_keys().collect();
    assert_eq!(alerts, entries);
}

#[test]
fn every_reason_is_in_the_runbook_once() {
    let (_, table) = README.split_once("<!-- failures:start -->").expect("the table of failures");
    let (table, _) = table.split_once("<!-- failures:end -->").expect("its end");
    let rows = table.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let reasons: BTreeSet<_> =
        rows.map(|row| row.split('|').nth(2).expect("the reason").trim().trim_matches('`')).collect();
    let operators: BTreeSet<_> = entries("Reasons").into_keys().collect();
    let callers = callers_reasons();
    assert_eq!(operators.union(&callers).copied().collect::<BTreeSet<_>>(), reasons);
    assert!(operators.is_disjoint(&callers));
}

#[test]
fn every_entry_says_what_it_means_and_what_to_do_and_its_links_lead_somewhere() {
    for (name, text) in entries("Alerts").into_iter().chain(entries("Reasons")) {
        for part in ["Means", "Callers see", "Look", "Do", "Do not"] {
            assert_eq!(text.matches(&format!("\n**{part}**: ")).count(), 1, "{name}: {part}");
        }
    }
    let headings = RUNBOOK.lines().filter_map(|line| line.strip_prefix('#'));
    let anchors: BTreeSet<_> =
        headings.map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-")).collect();
    for link in RUNBOOK.split("](#").skip(1) {
        let (anchor, _) = link.split_once(')').expect("a link ends");
        assert!(anchors.contains(anchor), "the runbook has no {anchor}");
    }
}

/// Otherwise the alert would wake somebody for a caller's mistake, or the dashboard show another ratio than the alert.
#[test]
fn the_error_ratio_leaves_out_the_reasons_that_are_the_callers() {
    let queries: Vec<_> =
        Alert::all().iter().map(|alert| alert.get("expr")).chain(queries_of_the_dashboard()).collect();
    let mut count = 0;
    for left_out in queries.iter().flat_map(|query| query.split("reason!~\"").skip(1)) {
        let (left_out, _) = left_out.split_once('"').expect("the value ends");
        // The empty one: no reason, because it did not fail.
        let expected: Vec<_> = [""].into_iter().chain(callers_reasons()).collect();
        assert_eq!(left_out.split('|').collect::<Vec<_>>(), expected);
        count += 1;
    }
    assert_eq!(count, 4, "two in the alert, two on the dashboard");
}

#[test]
fn every_alert_is_tested_firing_and_silent() {
    for alert in Alert::all() {
        let tests: Vec<_> = RULES_TEST.split(&format!("- alertname: {}\n", alert.name)).skip(1).collect();
        let expects = |what| tests.iter().any(|test| test.lines().nth(1).is_some_and(|line| line.trim() == what));
        assert!(expects("exp_alerts:"), "{} is not shown to fire", alert.name);
        assert!(expects("exp_alerts: []"), "{} is not shown to be silent", alert.name);
    }
}

#[test]
fn every_query_names_metrics_and_labels_that_there_are() {
    let metrics = metrics();
    let alerts = Alert::all().into_iter().map(|alert| alert.get("expr"));
    let problems: Vec<_> =
        alerts.chain(queries_of_the_dashboard()).flat_map(|query| names_of(&query, &metrics).0).collect();
    assert!(problems.is_empty(), "{problems:#?}");
    // In the runbook queries stand among other words.
    let is_ours = |word: &&str| ["license_gateway_", "rpc_server_", "http_client_"].iter().any(|p| word.starts_with(p));
    let split = RUNBOOK.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(is_ours);
    for name in split {
        assert!(metrics.contains_key(name), "the runbook asks for {name}");
    }
}

#[test]
fn every_metric_is_on_the_dashboard() {
    let metrics = metrics();
    let used: BTreeSet<_> = queries_of_the_dashboard().iter().flat_map(|query| names_of(query, &metrics).1).collect();
    for name in metrics.keys() {
        // Of a histogram one part is enough.
        let family = name.trim_end_matches("_sum").trim_end_matches("_count").trim_end_matches("_bucket");
        assert!(used.iter().any(|used| used.starts_with(family)), "{name} is on no panel");
    }
}

#[test]
fn every_panel_has_a_place_a_unit_and_words() {
    let dashboard = dashboard();
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64()), "{title}: its id is taken");
        let at = |side: &str| panel["gridPos"][side].as_u64().expect("a number");
        for (x, y) in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
            assert!(x < 24 && taken.insert((x, y)), "{title} lies on another panel at {x}, {y}");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 15), "{title} is not described");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        for asked in panel["targets"].as_array().expect("queries").iter().chain([panel]) {
            assert_eq!(asked["datasource"]["uid"], "${datasource}", "{title}");
        }
        for target in panel["targets"].as_array().expect("queries") {
            let query = target["expr"].as_str().expect("a query");
            assert!(query.contains(r#"instance=~"$instance""#), "{title} shows all instances: {query}");
        }
    }
}
