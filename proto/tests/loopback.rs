//! Client and server machines against each other, with a world that changes and a connection that fails, by seed.
//!
//! What can go wrong: the stream breaks with messages in flight, messages come twice, the client reads slowly, takes long to apply,
//! applies types out of order, refuses resources, changes its mind about what it wants, and reconnects to a server that knows nothing.
//! After each step the invariants hold; in the end both sides agree. A failing seed is printed; `OSIER_SEED=n` runs it alone, with
//! a trace.

mod simulation;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use simulation::{Faults, Kind, Simulation};

const SEEDS: u64 = 256;

/// Runs `run` for every seed, or for the one that `OSIER_SEED` names.
fn for_each_seed(test: &str, run: impl Fn(u64, bool)) {
    if let Some(seed) = std::env::var("OSIER_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return run(seed, true);
    }
    for seed in 0..SEEDS {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed, false))) {
            eprintln!(
                "seed {seed} failed; again, with a trace: OSIER_SEED={seed} cargo test -p osier-proto --test loopback {test}"
            );
            resume_unwind(panic);
        }
    }
}

#[test]
fn incremental_ends_agree() {
    for_each_seed("incremental_ends_agree", |seed, trace| {
        let mut simulation = Simulation::new(Kind::Incremental, seed, Faults::of(seed), trace);
        simulation.run();
        simulation.heal();
        simulation.assert_agreement();
    });
}

#[test]
fn incremental_on_demand_ends_agree() {
    for_each_seed("incremental_on_demand_ends_agree", |seed, trace| {
        let mut simulation = Simulation::new(Kind::OnDemand, seed, Faults::of(seed), trace);
        simulation.run();
        simulation.heal();
        simulation.assert_agreement();
    });
}

#[test]
fn state_of_the_world_ends_agree() {
    for_each_seed("state_of_the_world_ends_agree", |seed, trace| {
        let mut simulation = Simulation::new(Kind::StateOfTheWorld, seed, Faults::of(seed), trace);
        simulation.run();
        simulation.heal();
        simulation.assert_agreement();
    });
}

#[test]
fn state_of_the_world_by_name_ends_agree() {
    for_each_seed("state_of_the_world_by_name_ends_agree", |seed, trace| {
        let mut simulation = Simulation::new(Kind::StateOfTheWorldByName, seed, Faults::of(seed), trace);
        simulation.run();
        simulation.heal();
        simulation.assert_agreement();
    });
}

/// The same changes through both variants, each with faults of its own, leave both clients with the same resources.
#[test]
fn both_variants_lead_to_the_same_state() {
    for_each_seed("both_variants_lead_to_the_same_state", |seed, trace| {
        let faults = |seed: u64| Faults { nacks: false, ..Faults::of(seed) };
        let mut incremental = Simulation::new(Kind::Incremental, seed, faults(seed), trace);
        let mut whole = Simulation::new(Kind::StateOfTheWorld, seed, faults(seed ^ 0b101), trace);
        for simulation in [&mut incremental, &mut whole] {
            simulation.run();
            simulation.heal();
            simulation.assert_agreement();
        }
        assert_eq!(incremental.world, whole.world, "the seed makes the changes");
        assert_eq!(incremental.client.store(), whole.client.store());
    });
}
