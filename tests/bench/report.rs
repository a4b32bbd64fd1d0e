//! Medians over the rounds, as JSON objects or as a table with ratios to Envoy.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::row::{Round, Row};
use crate::subject::Kind;

/// One row and subject.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    row: String,
    subject: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_us_min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_us_max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p999_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_kib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pss_kib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ms_per_minute: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wakeups_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ms_per_gib: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kib_per_connection: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    absent: Option<&'static str>,
}

impl Figures {
    /// A subject that the row does not apply to.
    pub fn absent(row: String, subject: Kind, reason: &'static str) -> Self {
        Self {
            row,
            subject,
            cpu_us: None,
            cpu_us_min: None,
            cpu_us_max: None,
            rps: None,
            errors: None,
            p50_us: None,
            p99_us: None,
            p999_us: None,
            rss_kib: None,
            pss_kib: None,
            cpu_ms_per_minute: None,
            wakeups_per_second: None,
            cpu_ms_per_gib: None,
            kib_per_connection: None,
            absent: Some(reason),
        }
    }

    /// Medians of all rounds.
    pub fn new(row: Row, subject: Kind, rounds: &[Round]) -> Self {
        let mut figures = Self { absent: None, ..Self::absent(row.name(), subject, "") };
        figures.rss_kib =
            median(rounds.iter().map(|round| round.memory.rss_kib as f64)).map(|kib| kib as u64);
        figures.pss_kib =
            median(rounds.iter().map(|round| round.memory.pss_kib as f64)).map(|kib| kib as u64);
        figures.kib_per_connection = median(rounds.iter().filter_map(|round| round.kib_per_connection));
        if row == Row::Idle {
            let rate = |value: f64, round: &Round| value / round.done.elapsed.as_secs_f64();
            figures.cpu_ms_per_minute =
                median(rounds.iter().map(|round| 60.0 * rate(round.usage.cpu.as_secs_f64() * 1000.0, round)));
            figures.wakeups_per_second =
                median(rounds.iter().map(|round| rate(round.usage.wakeups as f64, round)));
            return figures;
        }
        let answered: Vec<&Round> = rounds.iter().filter(|round| round.done.requests > 0).collect();
        let cpu = || answered.iter().map(|round| micros(round.usage.cpu) / round.done.requests as f64);
        figures.cpu_us = median(cpu());
        figures.cpu_us_min = cpu().min_by(f64::total_cmp);
        figures.cpu_us_max = cpu().max_by(f64::total_cmp);
        figures.rps = median(
            answered.iter().map(|round| round.done.requests as f64 / round.done.elapsed.as_secs_f64()),
        );
        figures.cpu_ms_per_gib = median(
            rounds
                .iter()
                .filter_map(|round| round.bulk)
                .map(|bulk| bulk.cpu.as_secs_f64() * 1000.0 / (bulk.bytes as f64 / f64::from(1 << 30))),
        );
        figures.errors = (!answered.is_empty()).then(|| rounds.iter().map(|round| round.done.errors).sum());
        let quantile = |q: f64| {
            median(rounds.iter().filter(|round| !round.done.latencies.is_empty()).map(|round| {
                let latencies = &round.done.latencies;
                micros(latencies[((latencies.len() - 1) as f64 * q).round() as usize])
            }))
        };
        (figures.p50_us, figures.p99_us, figures.p999_us) = (quantile(0.5), quantile(0.99), quantile(0.999));
        figures
    }
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len().checked_sub(1)? / 2;
    Some(if values.len() % 2 == 1 { values[middle] } else { (values[middle] + values[middle + 1]) / 2.0 })
}

/// Prints the table.
pub fn print(all: &[Figures]) {
    let envoy: BTreeMap<&str, f64> = all
        .iter()
        .filter(|figures| matches!(figures.subject, Kind::Envoy | Kind::EnvoyH1 | Kind::EnvoyH2))
        .filter_map(|figures| Some((figures.row.as_str(), figures.cpu_us.or(figures.cpu_ms_per_minute)?)))
        // Of two ways to run it the better one is what others are held against.
        .fold(BTreeMap::new(), |mut best, (row, cost)| {
            best.entry(row).and_modify(|least: &mut f64| *least = least.min(cost)).or_insert(cost);
            best
        });
    println!(
        "{:<30}{:<9}{:>9}{:>16}{:>8}{:>10}{:>8}{:>9}{:>9}{:>9}{:>10}{:>10}",
        "row",
        "subject",
        "cpu us",
        "(min - max)",
        "envoy=1",
        "req/s",
        "errors",
        "p50 us",
        "p99 us",
        "p99.9",
        "rss KiB",
        "pss KiB"
    );
    for figures in all {
        if let Some(reason) = figures.absent {
            println!("{:<30}{:<9}absent: {reason}", figures.row, figures.subject.name());
            continue;
        }
        if let (Some(cpu), Some(wakeups)) = (figures.cpu_ms_per_minute, figures.wakeups_per_second) {
            println!(
                "{:<30}{:<9}{cpu:>9.2} ms CPU a minute, {wakeups:.2} wake-ups a second, {} KiB",
                figures.row,
                figures.subject.name(),
                figures.rss_kib.unwrap_or(0)
            );
            continue;
        }
        let ratio = figures.cpu_us.zip(envoy.get(figures.row.as_str())).map(|(cpu, envoy)| cpu / envoy);
        let spread =
            figures.cpu_us_min.zip(figures.cpu_us_max).map(|(min, max)| format!("({min:.1} - {max:.1})"));
        println!(
            "{:<30}{:<9}{:>9}{:>16}{:>8}{:>10}{:>8}{:>9}{:>9}{:>9}{:>10}{:>10}",
            figures.row,
            figures.subject.name(),
            shown(figures.cpu_us, 1),
            spread.unwrap_or_default(),
            shown(ratio, 2),
            shown(figures.rps, 0),
            shown(figures.errors.map(|errors| errors as f64), 0),
            shown(figures.p50_us, 0),
            shown(figures.p99_us, 0),
            shown(figures.p999_us, 0),
            shown(figures.rss_kib.map(|kib| kib as f64), 0),
            shown(figures.pss_kib.map(|kib| kib as f64), 0),
        );
        if let Some(kib) = figures.kib_per_connection {
            println!("{:<30}{:<9}{kib:>9.1} KiB for each connection", figures.row, figures.subject.name());
        }
        if let Some(cpu) = figures.cpu_ms_per_gib {
            println!("{:<30}{:<9}{cpu:>9.0} ms CPU per GiB in bulk", figures.row, figures.subject.name());
        }
    }
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or(String::new(), |value| format!("{value:.digits$}"))
}
