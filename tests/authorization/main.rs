//! From the YAML of policies to the verdict on a request: pilot reads and compiles them, what comes of it is what the proxy
//! compiles and asks. Nothing between the halves is written here; sockets are the only thing that is missing.

mod custom;
mod reference;
mod shop;
mod tokens;
mod vectors;

use rand::SeedableRng;
use rand::rngs::StdRng;

use reference::{Policies, ask};
use shop::{Shop, Verdict};

/// Sets of policies, and requests and connections asked of each.
const SETS: u64 = 400;
const QUESTIONS: usize = 40;

#[test]
fn random_policies_mean_what_a_naive_reading_says() {
    let (mut allowed, mut denied) = (0, 0);
    for seed in 0..SETS {
        let mut random = StdRng::seed_from_u64(seed);
        let policies = Policies::random(&mut random);
        let yaml = policies.yaml();
        let shop = Shop::new(&yaml);
        for _ in 0..QUESTIONS {
            let question = ask(&mut random);
            let (got, wanted) = (shop.verdict(&question), policies.verdict(&question));
            assert_eq!(got, wanted, "seed {seed}, {question:#?}\n{yaml}");
            match got {
                Verdict::Allowed => allowed += 1,
                Verdict::Denied => denied += 1,
            }
        }
    }
    // Random rules that match nothing, or everything, would prove nothing.
    let all = allowed + denied;
    assert!(allowed > all / 5 && denied > all / 5, "{allowed} allowed, {denied} denied");
}
