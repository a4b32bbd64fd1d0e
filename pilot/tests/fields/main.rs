//! The tables of fields in docs/reference, made from the types that pilot reads. To write them anew:
//!
//! ```sh
//! OSIER_UPDATE=1 cargo test -p osier-pilot --test fields
//! ```

#![allow(clippy::unwrap_used)]

mod injection;
mod notes;
mod trace;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use notes::{NOTES, Note};
use osier_pilot::store::schema::mesh::{INJECTED, Loss, MeshConfig, SET_ASIDE};
use osier_pilot::store::schema::{
    Metadata, authentication, authorization, destination_rule::DestinationRule, ingress, kubernetes,
    security, service_entry, virtual_service::VirtualService,
};
use trace::{Use, fields};

const ISTIO: &str = "# Fields of Istio's kinds

What osier-pilot does with each field of the Istio kinds that it reads. Names are those of the API; `[]` is an element of a list, `<name>` a
key of a mapping.

- *supported*: applied.
- *refused*: the resource is refused, with file, line and field; its last good version stays in force.
- *without effect*: taken; it changes nothing for traffic.
- *not applied*: the rest of the resource is applied, and a warning names the field.
- *fails closed*: can't be enforced yet, so everything that is sent to the workloads that the policy covers is refused: HTTP with 403, the
  rest by closing. The access log names the policy.

A field that is in no table is a typo and refuses the resource. Kinds that have no table here are refused: `Gateway`, `Sidecar`,
`EnvoyFilter`, `WasmPlugin`, `ProxyConfig`, `WorkloadGroup`, `Telemetry`, and those of the Gateway API.

<!-- Made by `OSIER_UPDATE=1 cargo test -p osier-pilot --test fields`. -->
";

const KUBERNETES: &str = "# Fields of Kubernetes' kinds

What osier-pilot reads of Kubernetes' own kinds. Fields that are in no table have no effect: API servers add fields at will. `[]` is an
element of a list, `<name>` a key of a mapping. Other kinds are left out with a notice.

A gateway (`osier-proxy gateway`) serves the Ingresses that are ours: `ingressClass`, `ingressControllerMode`, `ingressSelector` and
`ingressService` of [MeshConfig](istio-fields.md#meshconfig) say which these are, and who serves them.

<!-- Made by `OSIER_UPDATE=1 cargo test -p osier-pilot --test fields`. -->
";

type Fields = BTreeMap<String, Use>;

#[test]
fn the_pages_show_what_is_read() {
    let istio: [(&str, Fields); 8] = [
        ("VirtualService", fields::<VirtualService>("spec")),
        ("DestinationRule", fields::<DestinationRule>("spec")),
        ("ServiceEntry", fields::<service_entry::ServiceEntry>("spec")),
        ("WorkloadEntry", fields::<service_entry::WorkloadEntry>("spec")),
        ("AuthorizationPolicy", fields::<authorization::AuthorizationPolicy>("spec")),
        ("PeerAuthentication", fields::<security::PeerAuthentication>("spec")),
        ("RequestAuthentication", fields::<authentication::RequestAuthentication>("spec")),
        ("MeshConfig", fields::<MeshConfig>("")),
    ];
    let own = |all: Fields| all.into_iter().filter(|(path, _)| !path.starts_with("metadata.")).collect();
    let kubernetes: [(&str, Fields); 8] = [
        ("every kind", fields::<Metadata>("metadata")),
        ("Service", own(fields::<kubernetes::Service>(""))),
        ("EndpointSlice", own(fields::<kubernetes::EndpointSlice>(""))),
        ("Pod", own(fields::<kubernetes::Pod>(""))),
        ("Secret", own(fields::<kubernetes::Secret>(""))),
        ("Ingress", own(fields::<ingress::Ingress>(""))),
        ("IngressClass", own(fields::<ingress::IngressClass>(""))),
        ("ConfigMap", own(fields::<kubernetes::ConfigMap>(""))),
    ];
    for note in NOTES {
        let all = istio.iter().chain(&kubernetes).filter(|(kind, _)| *kind == note.kind);
        let used = all.flat_map(|(_, fields)| fields.keys()).any(|path| is_about(note, path));
        assert!(used, "{} {}: there is no such field", note.kind, note.path);
    }
    compare("istio-fields.md", &page(ISTIO, &istio));
    compare("kubernetes-fields.md", &page(KUBERNETES, &kubernetes));
    compare("injection.md", &injection::page());
}

fn page(head: &str, kinds: &[(&str, Fields)]) -> String {
    let mut page = head.to_owned();
    for (kind, fields) in kinds {
        let mut rows: BTreeMap<&str, (String, String)> =
            fields.iter().map(|(path, what)| (path.as_str(), row(kind, path, what))).collect();
        if *kind == "MeshConfig" {
            rows.extend(SET_ASIDE.iter().map(|row| {
                let state = match row.loss {
                    Loss::Nothing if row.why == INJECTED => "supported",
                    Loss::Nothing => "without effect",
                    Loss::Something => "not applied",
                };
                (row.field, (state.to_owned(), row.why.to_owned()))
            }));
        }
        let _ = write!(page, "\n## {kind}\n\n| field | state | note |\n|---|---|---|\n");
        for (path, (state, note)) in rows {
            let _ = writeln!(page, "| `{path}` | {state} | {note} |");
        }
    }
    page
}

fn row(kind: &str, path: &str, what: &Use) -> (String, String) {
    let mut notes = Vec::new();
    let mut state = match what {
        Use::Read(values) => {
            notes.extend((!values.is_empty()).then(|| values.join(", ")));
            "supported"
        }
        Use::Refused => "refused",
        Use::Dropped => "without effect",
    };
    for note in NOTES.iter().filter(|note| note.kind == kind && is_about(note, path)) {
        state = note.state.unwrap_or(state);
        notes.push(note.text.to_owned());
    }
    (state.to_owned(), notes.join("; "))
}

fn is_about(note: &Note, path: &str) -> bool {
    match note.path.strip_suffix('*') {
        Some(beginning) => path.starts_with(beginning),
        None => path == note.path,
    }
}

fn compare(name: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference").join(name);
    if std::env::var_os("OSIER_UPDATE").is_some() {
        std::fs::write(&path, made).unwrap();
        return;
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let line = written.lines().zip(made.lines()).find(|(written, made)| written != made);
    assert!(
        written == made,
        "docs/reference/{name} is not what pilot reads, first at {line:?}\nto update: OSIER_UPDATE=1 cargo test -p osier-pilot --test fields"
    );
}
