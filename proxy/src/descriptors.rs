//! How many files (sockets, mostly) the process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What is assumed where the system doesn't say: Linux's own default.
const USUAL: u64 = 1024;

/// Raises the limit as far as the process may by itself, and says what it is then. Soft limits are low for the sake of programs that
/// use `select`; this one does not.
pub fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return USUAL };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        return hard;
    }
    soft
}

/// Connections from clients at a time, where nobody has said how many: each may need a connection of its own to an upstream.
pub fn connections() -> u64 {
    (raise() / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_goes_up_to_where_the_process_may_go() {
        let most = raise();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        assert_eq!((soft, most), (hard, hard));
        assert_eq!(connections(), hard / 2);
    }
}
