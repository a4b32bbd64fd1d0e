//! Programs under test and their peers as child processes that end with the test, by their own pid.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// A running program; ended when dropped. Its output is in a file that is shown when the test fails.
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `command` with its output in `folder/<name>.log`.
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = std::fs::File::create(&log).expect("the test's folder can be written");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file handle can be duplicated"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until something listens on `address`; panics with the program's output when it ends before.
    pub fn wait_listening(&mut self, address: SocketAddr) {
        let what = format!("{} listens on {address}", self.name);
        wait::until(&what, || {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                panic!("{} ended ({status}):\n{}", self.name, self.output());
            }
            TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()
        });
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a pid fits");
        kill(Pid::from_raw(pid), signal).expect("the program is there");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_some()
    }

    /// Waits for its end.
    pub fn wait_end(&mut self) -> std::process::ExitStatus {
        let what = format!("{} ends", self.name);
        wait::until(&what, || self.child.try_wait().expect("a child can be asked"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Its own children as well: a master that is ended at once leaves its workers behind. Whose end was seen has none, and its
        // number may be somebody else's.
        if matches!(self.child.try_wait(), Ok(None)) {
            for pid in family(self.pid()) {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
        }
        let _ = self.child.wait();
        if std::thread::panicking() {
            let output = self.output();
            let tail: Vec<&str> = output.lines().rev().take(40).collect();
            eprintln!("--- last lines of {}:", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// A process and all that it has started.
pub fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        found.extend(family(child));
    }
    found
}

/// One of our own programs, built by the test command beside the tests.
pub fn own(name: &str) -> Command {
    let this = std::env::current_exe().expect("a program knows its path");
    let beside = this.parent().expect("a program lies in a folder");
    // Tests lie in target/<profile>/deps, programs in target/<profile>.
    let folder =
        if beside.ends_with("deps") { beside.parent().expect("deps lies in a folder") } else { beside };
    let program = folder.join(name);
    assert!(program.is_file(), "{} is not built: run `cargo build --workspace --bins`", program.display());
    Command::new(program)
}

/// A part that the test command installed, by the environment variable that says where it is.
pub fn part(variable: &str) -> Command {
    match std::env::var_os(variable) {
        Some(path) => Command::new(path),
        None => panic!("{variable} is not set: run this suite with `cargo xtask test`"),
    }
}

/// A loopback address with a port that was free a moment ago, that this process was not given before, and that no outgoing connection is
/// given: those have ports from 32768 on.
pub fn free_address() -> SocketAddr {
    const PORTS: std::ops::Range<u16> = 16_384..32_768;
    // In a row, from a place of this process's own: drawn anew each time, two of a test's ports are equal now and then.
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
    wait::until("a free port", || {
        let port = PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end - PORTS.start);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        TcpListener::bind(address).is_ok().then_some(address)
    })
}
