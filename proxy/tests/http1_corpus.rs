//! The inputs that fuzzing kept, and seeded mutations of them, through the same checks as the fuzz target.

use std::path::Path;

#[path = "../../fuzz/src/http1.rs"]
mod http1;

const ROUNDS: u64 = 6_000;

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/http1");
    let mut inputs: Vec<_> = std::fs::read_dir(&folder)
        .expect("fuzz/corpus/http1 is part of the repository")
        .map(|entry| {
            let path = entry.expect("entry").path();
            (path.display().to_string(), std::fs::read(&path).expect("input"))
        })
        .collect();
    inputs.sort();
    inputs
}

#[test]
fn the_corpus_holds() {
    let inputs = corpus();
    assert!(inputs.len() >= 30, "only {} inputs", inputs.len());
    for (name, input) in inputs {
        // The name is printed if the check panics.
        println!("{name}");
        http1::check(&input);
    }
}

#[test]
fn mutations_of_the_corpus_hold() {
    let inputs = corpus();
    let seed = std::env::var("OSIER_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut random = Random(seed.unwrap_or(0x05ee_d001));
    for _ in 0..ROUNDS {
        let state = random.0;
        let input = mutated(&inputs, &mut random);
        println!("OSIER_TEST_SEED={state}: {}", input.escape_ascii());
        http1::check(&input);
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end.max(1) as u64) as usize
    }
}

/// Pieces that matter to the syntax.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"\0",
    b"\x7f",
    b"\xff",
    b"0",
    b"0\r\n\r\n",
    b"\r\n\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"chunked, ",
    b"Host: a\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: x\r\n",
    b"Te: trailers\r\n",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"GET / HTTP/1.1\r\n",
    b"http://h/",
    b"*",
    b"[::1]:1",
    b"@",
    b"#",
    b"?",
];

fn mutated(inputs: &[(String, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    let mut input = inputs[random.below(inputs.len())].1.clone();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        match random.below(6) {
            0 if at < input.len() => input[at] = random.below(256) as u8,
            1 if at < input.len() => {
                input.remove(at);
            }
            2 => input.truncate(at),
            3 => {
                let other = &inputs[random.below(inputs.len())].1;
                let from = random.below(other.len());
                let upto = from + random.below(other.len() - from);
                input.splice(at..at, other[from..upto].to_vec());
            }
            4 => {
                let upto = at + random.below(input.len() - at + 1);
                let copy = input[at..upto].to_vec();
                input.splice(at..at, copy);
            }
            _ => {
                let word = WORDS[random.below(WORDS.len())];
                input.splice(at..at, word.iter().copied());
            }
        }
    }
    input
}
