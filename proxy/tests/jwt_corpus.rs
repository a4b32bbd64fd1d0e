//! The inputs that fuzzing of tokens starts with, and seeded mutations of them, through the same checks as the fuzz target.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[path = "../../fuzz/src/jwt.rs"]
mod jwt;

const ROUNDS: usize = 20_000;

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/jwt");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("fuzz/corpus/jwt is part of the repository")
        .map(|entry| entry.expect("entry").path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("input")).collect()
}

#[test]
fn the_corpus_and_its_mutations_hold() {
    let inputs = corpus();
    assert!(inputs.len() >= 10, "only {} inputs", inputs.len());
    inputs.iter().for_each(|input| jwt::check(input));
    let seed = std::env::var("OSIER_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut random = StdRng::seed_from_u64(seed.unwrap_or(5));
    for _ in 0..ROUNDS {
        let mut input = inputs[random.random_range(0..inputs.len())].clone();
        for _ in 0..random.random_range(1..4) {
            mutate(&mut input, &inputs, &mut random);
        }
        // Shown if the check panics.
        println!("{}", input.escape_ascii());
        jwt::check(&input);
    }
}

fn mutate(input: &mut Vec<u8>, inputs: &[Vec<u8>], random: &mut StdRng) {
    let at = random.random_range(0..=input.len());
    match random.random_range(0..5) {
        0 => input.truncate(at),
        1 => input.insert(at, random.random()),
        2 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.random_range(0..8);
            }
        }
        3 => {
            let other = &inputs[random.random_range(0..inputs.len())];
            input.extend_from_slice(&other[random.random_range(0..=other.len())..]);
        }
        _ => {
            let words: [&[u8]; 10] = [
                b".",
                b"=",
                b"&",
                b"%2e",
                b"; session=",
                b"\nauthorization: Bearer ",
                b"\"",
                b"[[[",
                b"{\"kty\":",
                b"\\u0000",
            ];
            let word = words[random.random_range(0..words.len())];
            input.splice(at..at, word.iter().copied());
        }
    }
}
