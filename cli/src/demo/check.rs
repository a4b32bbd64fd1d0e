//! `osier demo --check`: the demo's story without a terminal, each figure measured and compared with what is wanted.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use osier_core::say;
use serde::Serialize;

use super::load::{Load, Reading};
use super::mesh::Mesh;
use super::table::{self, Figures};
use crate::client::Client;

/// Requests per second during the story.
const RPS: u32 = 100;
/// Requests that a split is measured over.
const SAMPLE: u64 = 1500;
/// Who calls `reviews`.
const SHOP: &str = "spiffe://cluster.local/ns/default/sa/shop";
/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(60);

/// One line of the summary.
#[derive(Serialize)]
struct Figure {
    name: &'static str,
    measured: f64,
    wanted: String,
    ok: bool,
}

/// Collects and prints figures.
struct Report {
    json: bool,
    figures: Vec<Figure>,
}

impl Report {
    fn add(&mut self, name: &'static str, measured: f64, wanted: impl Into<String>, ok: bool) -> Result<()> {
        let figure = Figure { name, measured, wanted: wanted.into(), ok };
        if self.json {
            say!("{}", serde_json::to_string(&figure)?);
        } else {
            let verdict = if ok { "ok" } else { "NOT OK" };
            say!("{:<34}{:>10.1}   wanted {:<16}{verdict}", figure.name, figure.measured, figure.wanted);
        }
        self.figures.push(figure);
        Ok(())
    }

    /// A share in percent that must lie within four standard deviations of `wanted`.
    fn add_share(&mut self, name: &'static str, reading: Reading, wanted: f64) -> Result<()> {
        let total = (reading.v1 + reading.v2) as f64;
        let share = 100.0 * reading.v1 as f64 / total;
        let deviation = (wanted * (100.0 - wanted) / total).sqrt();
        let margin = 4.0 * deviation;
        self.add(name, share, format!("{wanted:.0} +- {margin:.1}"), (share - wanted).abs() <= margin)
    }

    /// By whom `reviews` is called: by the service account of `shop`, who has proved it, unless all is plaintext.
    fn add_identities(&mut self, seen: &Figures, plaintext: bool) -> Result<()> {
        let share = 100.0 * seen.encrypted / seen.requests;
        let wanted = if plaintext { 0.0 } else { 100.0 };
        self.add("requests by mutual TLS, percent", share, format!("{wanted:.0}"), share == wanted)?;
        let expected = if plaintext { vec![] } else { vec![SHOP] };
        let known: Vec<&str> = seen.callers.iter().map(String::as_str).collect();
        let wanted = if plaintext { "0".to_owned() } else { format!("1: {SHOP}") };
        self.add("callers of reviews by identity", known.len() as f64, wanted, known == expected)
    }

    fn add_failures(&mut self, name: &'static str, reading: Reading) -> Result<()> {
        self.add(name, reading.failed as f64, "0", reading.failed == 0)
    }
}

/// Runs the story. The exit status is a failure if any figure is not as wanted.
pub async fn run(mesh: &mut Mesh, plaintext: bool, json: bool) -> Result<ExitCode> {
    let mut report = Report { json, figures: Vec::new() };
    let load = Load::start(mesh.client().explicit_proxy(), RPS);
    wait_for_traffic(&load).await?;

    let first = measure(&load, SAMPLE).await?;
    report.add_share("share of v1 at 90/10, percent", first, 90.0)?;
    report.add_failures("failed at 90/10", first)?;
    let seen = reviews(mesh).await;
    report.add("requests in the sidecars' metrics", seen.requests, "> 0", seen.requests > 0.0)?;
    report.add_identities(&seen, plaintext)?;

    let before = load.tally.read();
    let saved = Instant::now();
    mesh.set_split(50)?;
    let in_force = wait_for_split(&load, 30.0).await?;
    report.add(
        "edit to effect seen, ms",
        (in_force - saved).as_secs_f64() * 1000.0,
        "< 5000",
        in_force - saved < Duration::from_secs(5),
    )?;
    report.add_failures("failed during the edit", since(before, load.tally.read()))?;
    report.add_share("share of v1 at 50/50, percent", measure(&load, SAMPLE).await?, 50.0)?;

    let before = load.tally.read();
    mesh.stop_one("reviews", "v1").await?;
    measure(&load, 200).await?;
    report.add_failures("failed when an instance leaves", since(before, load.tally.read()))?;

    let before = load.tally.read();
    mesh.kill_pilot().await?;
    measure(&load, 200).await?;
    mesh.restart_pilot().await?;
    mesh.set_split(0)?;
    wait_for_split(&load, 99.0).await?;
    measure(&load, 200).await?;
    report.add_failures("failed around pilot's restart", since(before, load.tally.read()))?;
    let after = measure(&load, 300).await?;
    report.add("v1 after the edit to 0/100", after.v1 as f64, "0", after.v1 == 0)?;

    if let Some(failure) = load.tally.first_failure.lock().as_ref() {
        eprintln!("osier: the first failure was: {failure}");
    }
    let ok = report.figures.iter().all(|figure| figure.ok);
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn since(before: Reading, now: Reading) -> Reading {
    Reading {
        succeeded: now.succeeded - before.succeeded,
        failed: now.failed - before.failed,
        v1: now.v1 - before.v1,
        v2: now.v2 - before.v2,
    }
}

/// Waits until the whole chain has answered once; what failed until then is start-up and isn't counted.
async fn wait_for_traffic(load: &Load) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while load.tally.read().succeeded == 0 {
        if Instant::now() > deadline {
            let failure = load.tally.first_failure.lock().clone();
            bail!("no request was answered within {} s: {failure:?}", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    load.tally.first_failure.lock().take();
    Ok(())
}

/// Lets `requests` more requests end and says how.
async fn measure(load: &Load, requests: u64) -> Result<Reading> {
    let before = load.tally.read();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reading = since(before, load.tally.read());
        if reading.succeeded + reading.failed >= requests {
            return Ok(reading);
        }
        if Instant::now() > deadline {
            bail!(
                "only {} of {requests} requests ended within {} s",
                reading.succeeded + reading.failed,
                PATIENCE.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until at least `percent` of a short run of requests goes to v2.
async fn wait_for_split(load: &Load, percent: f64) -> Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reading = measure(load, 40).await?;
        if 100.0 * reading.v2 as f64 / (reading.v1 + reading.v2).max(1) as f64 >= percent {
            return Ok(Instant::now());
        }
        if Instant::now() > deadline {
            bail!("the edited split was not in force after {} s", PATIENCE.as_secs());
        }
    }
}

/// What the sidecars of `reviews` have counted.
async fn reviews(mesh: &Mesh) -> Figures {
    let all = table::read(&Client::direct(), mesh.instances()).await;
    let mut sum = Figures::default();
    for (_, figures) in all.into_iter().filter(|((service, _), _)| *service == "reviews") {
        sum.requests += figures.requests;
        sum.encrypted += figures.encrypted;
        sum.callers.extend(figures.callers);
    }
    sum
}
