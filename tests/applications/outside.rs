//! What is outside the mesh, called through the explicit proxy of a workload.

use osier_tests::backend::Backend;

use crate::mesh::Mesh;

/// What the mesh does not know is looked up for the client, over HTTP and CONNECT, unless that is forbidden.
#[test]
fn outside_the_mesh() {
    let mesh = Mesh::start("web", "http", 8080);
    let outside = Backend::start_at("outside", ([127, 0, 0, 5], 0).into());
    let port = outside.address.port();
    let local = Backend::start("local");
    // All of them are on this machine, which `no_proxy` would keep from the proxy.
    let get = "curl -sS --noproxy '' -m 20 -w '%{http_code}\\n'";
    let script = format!(
        "{get} http://127.0.0.5:{port}/ | sed -n '1p;$p'
         {get} -p http://127.0.0.5:{port}/ | sed -n '1p;$p'
         {get} http://localhost:{0}/ | sed -n '1p;$p'
         {get} -p http://localhost:{0}/ | sed -n '1p;$p'
         {get} -o rest http://nobody.invalid:{0}/
         {get} -o rest $http_proxy/
         {get} -o rest -p $http_proxy/",
        local.address.port()
    );
    assert_eq!(
        mesh.visit(&[], &script),
        "backend outside\n200\nbackend outside\n200\nbackend local\n200\nbackend local\n200\n503\n503\n503\n"
    );

    let only = "apiVersion: v1
kind: ConfigMap
metadata: {name: istio}
data: {mesh: 'outboundTrafficPolicy: {mode: REGISTRY_ONLY}'}
";
    std::fs::write(mesh.path().join("mesh/only.yaml"), only).expect("the test's folder can be written");
    let script = format!(
        "until [ \"$({get} -o rest http://127.0.0.5:{port}/)\" = 502 ]; do sleep 0.05; done
         {get} -o rest -p http://127.0.0.5:{port}/ || echo closed
         {get} -o rest -p http://localhost:{}/ || echo closed",
        local.address.port()
    );
    assert_eq!(mesh.visit(&[], &script), "000\nclosed\n000\nclosed\n");
    mesh.stop(Vec::new());
}
