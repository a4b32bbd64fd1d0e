//! A full disk under the access log: traffic goes on, the loss is counted, and it is said once.

use osier_tests::wait;

use crate::web::Web;

/// `accessLogFile` of the whole mesh.
pub fn access_log(file: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |
    accessLogFile: {file}
{more}"
    )
}

#[test]
fn a_full_disk_costs_log_lines_and_no_requests() {
    // Every write to it fails with ENOSPC.
    let web = Web::start(&[("mesh.yaml", &access_log("/dev/full", ""))], &[]);
    let dropped = |sidecar: &osier_tests::mesh::Sidecar| -> u64 {
        let stats = sidecar.admin_get("/stats").text();
        let line = stats.lines().find_map(|line| line.strip_prefix("access_log.lines_dropped: "));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("{stats}"))
    };
    let mut asked = 0;
    // The lines of a second are written together, so this goes on for several writes.
    for goal in [1, 100, 200, 300] {
        wait::until(&format!("{goal} lines are lost"), || {
            (0..20).for_each(|_| assert_eq!(web.ask(), "v1"));
            asked += 20;
            (dropped(&web.client) >= goal).then_some(())
        });
    }
    assert!(dropped(&web.client) <= asked + 100, "no line is counted twice");
    let log = web.client.program.output();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("access log")).collect();
    assert_eq!(said.len(), 1, "{log}");
    assert!(said[0].contains("cannot be written") && said[0].contains("No space left on device"), "{said:?}");
    assert!(dropped(&web.servers[0]) > 0, "the other side as well");

    // Mended: another file.
    let file = web.pilot.path().join("access.log");
    web.pilot.save("mesh.yaml", &access_log(&file.display().to_string(), ""));
    wait::until("lines arrive", || {
        assert_eq!(web.ask(), "v1");
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains("GET / HTTP/1.1")).then_some(())
    });
}
