//! `osier install` without a cluster: what it prints, and what it refuses to print.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use osier_tests::process;

#[test]
fn a_reader_that_has_seen_enough_ends_it_without_a_word() {
    let mut command = process::own("osier");
    command.args(["install", "--output", "yaml"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("osier can be started");
    let mut first = String::new();
    // Dropped with everything that it has read ahead: nobody reads on.
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut first).expect("a line");
    let output = child.wait_with_output().expect("osier ends");
    assert_eq!((first.as_str(), output.stderr.as_slice()), ("---\n", &[][..]));
    assert_eq!(output.status.code(), Some(141), "as the kernel would have ended it");
}

#[test]
fn what_the_control_plane_could_not_read_is_refused() {
    for (setting, wanted) in [
        (
            "global.proxy.excludeInboundPorts='*'",
            "global.proxy.excludeInboundPorts: \"*\" is no port number (1 to 65535)",
        ),
        (
            "meshConfig.defaultConfig.proxyMetadata.ISTIO_META_DNS_CAPTURE='yes'",
            "meshConfig: defaultConfig.proxyMetadata.ISTIO_META_DNS_CAPTURE: \"yes\" is neither true nor false",
        ),
        ("meshConfig.outboundTrafficPolicy.mode=SOME", "meshConfig: "),
        ("meshConfig.accesLogFile=x", "did you mean accessLogFile?"),
    ] {
        let mut command = process::own("osier");
        let output = command.args(["install", "--output", "yaml", "--set", setting]).output().expect("osier");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{setting}: {said}");
        assert!(output.stdout.is_empty() && said.contains(wanted), "{setting}: {said}");
    }
}
