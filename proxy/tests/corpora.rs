//! The inputs that fuzzing starts with, and seeded mutations of them, through the same checks as the fuzz targets.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[path = "../../fuzz/src/certificate.rs"]
mod certificate;
#[path = "../../fuzz/src/jwt.rs"]
mod jwt;
#[path = "../../fuzz/src/path.rs"]
mod path;
#[path = "../../fuzz/src/xds.rs"]
mod xds;

/// A corpus, and how much is made of it.
struct Corpus {
    target: &'static str,
    /// Fewer inputs are a mistake.
    least: usize,
    /// How many mutations are checked.
    rounds: usize,
}

#[test]
fn paths_hold() {
    hold(
        Corpus { target: "path", least: 5, rounds: 10_000 },
        path::check,
        &[b"/", b".", b"..", b"%2e", b"%2F", b"%5c", b"\\", b"//", b"%", b"?", b"#", b"%00", b"%25"],
    );
}

#[test]
fn resources_hold() {
    hold(
        Corpus { target: "xds", least: 5, rounds: 10_000 },
        xds::check,
        &[b"\x0a", b"\x12\x00", b"\xff\xff\xff\xff\x0f", b"\x08\x01", b"type.googleapis.com/"],
    );
}

#[test]
fn certificates_hold() {
    hold(
        Corpus { target: "certificate", least: 5, rounds: 10_000 },
        certificate::check,
        &[b"\x00", b"\x30\x82", b"\x86", b"\x82", b"spiffe://a/ns/b/sa/c", b"\x16\x03\x01", b"\xff"],
    );
}

#[test]
fn tokens_hold() {
    hold(
        Corpus { target: "jwt", least: 10, rounds: 20_000 },
        jwt::check,
        &[
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
        ],
    );
}

/// Checks the corpus of a target, and mutations of it with `words` that matter to its syntax.
fn hold(corpus: Corpus, check: fn(&[u8]), words: &[&[u8]]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(corpus.target);
    let files = std::fs::read_dir(&folder).expect("the corpus is part of the repository");
    let mut files: Vec<_> = files.map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    let inputs: Vec<_> = files.iter().map(|file| std::fs::read(file).expect("input")).collect();
    assert!(inputs.len() >= corpus.least, "only {} inputs", inputs.len());
    inputs.iter().for_each(|input| check(input));
    let seed = std::env::var("OSIER_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut random = StdRng::seed_from_u64(seed.unwrap_or(5));
    for _ in 0..corpus.rounds {
        let mut input = inputs[random.random_range(0..inputs.len())].clone();
        for _ in 0..random.random_range(1..4) {
            mutate(&mut input, &inputs, words, &mut random);
        }
        // Shown if the check panics.
        println!("{}", input.escape_ascii());
        check(&input);
    }
}

fn mutate(input: &mut Vec<u8>, inputs: &[Vec<u8>], words: &[&[u8]], random: &mut StdRng) {
    let at = random.random_range(0..=input.len());
    match random.random_range(0..6) {
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
        4 => {
            let end = random.random_range(at..=input.len());
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        _ => {
            let word = words[random.random_range(0..words.len())];
            input.splice(at..at, word.iter().copied());
        }
    }
}
