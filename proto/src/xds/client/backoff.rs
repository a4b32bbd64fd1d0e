//! Pauses between attempts to reach the server: doubling from 500 ms to 30 s, each drawn at random so that the proxies of a mesh don't
//! come back all at once.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// Jittered exponential back-off.
#[derive(Debug)]
pub struct Backoff {
    limit: Duration,
    rng: SmallRng,
}

impl Backoff {
    /// Starts at the shortest pause.
    pub fn new(seed: u64) -> Self {
        Self { limit: FIRST, rng: SmallRng::seed_from_u64(seed) }
    }

    /// The next pause: between half the present limit and all of it.
    pub fn pause(&mut self) -> Duration {
        let pause = self.limit.mul_f64(self.rng.random_range(0.5..=1.0));
        self.limit = (self.limit * 2).min(LONGEST);
        pause
    }

    /// The server answered: the next pause is short again.
    pub fn reset(&mut self) {
        self.limit = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_its_limit_and_starts_again_after_an_answer() {
        let mut backoff = Backoff::new(1);
        for limit_ms in [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000] {
            let limit = Duration::from_millis(limit_ms);
            let pause = backoff.pause();
            assert!(pause >= limit / 2 && pause <= limit, "{pause:?} for {limit:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }

    #[test]
    fn two_clients_do_not_come_back_together() {
        assert_ne!(Backoff::new(1).pause(), Backoff::new(2).pause());
    }
}
