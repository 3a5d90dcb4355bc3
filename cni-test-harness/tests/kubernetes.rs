//! The real API server as a test fixture.

use cni_test_harness::kubernetes::{ApiServer, Programs, node};
use cni_test_harness::skip_unless;
use serde_json::Value;

fn names(nodes: &Value) -> Vec<&str> {
    let items = nodes["items"].as_array().expect("a list");
    items
        .iter()
        .filter_map(|node| node["metadata"]["name"].as_str())
        .collect()
}

#[test]
fn nodes_survive_a_crash_of_the_api_server_and_not_a_wipe() -> anyhow::Result<()> {
    let programs = skip_unless!(Programs::find());
    let mut server = ApiServer::start(&programs)?;
    server.create(&[node::node("k1", &["10.244.1.0/24"], &[]), node::peer(2)])?;
    server.back_up()?;
    server.restart()?;
    server.kubectl(&["delete", "node", "peer-00002"], b"")?;
    server.kill();
    server.restart()?;
    server.compact()?;
    let nodes = server.get_json(&["nodes"])?;
    assert_eq!(names(&nodes), ["k1"]);
    assert_eq!(nodes["items"][0]["spec"]["podCIDR"], "10.244.1.0/24");
    server.restore()?;
    server.restart()?;
    assert_eq!(names(&server.get_json(&["nodes"])?), ["k1", "peer-00002"]);
    server.wipe()?;
    server.restart()?;
    assert_eq!(names(&server.get_json(&["nodes"])?), [""; 0]);
    let asked = server.requests("kubectl")?;
    assert!(
        asked
            .iter()
            .any(|request| request.to_string() == "delete /api/v1/nodes/peer-00002 -> 200"),
        "{asked:#?}"
    );
    Ok(())
}

#[test]
fn a_life_size_node_has_thirteen_kilobytes() {
    let size = node::life_size(node::peer(1)).to_string().len();
    assert!((11_000..15_000).contains(&size), "{size} bytes");
}
