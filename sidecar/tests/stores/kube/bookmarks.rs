//! Bookmarks of the real API server, which come about once a minute while no Node changes: they
//! carry the watch past what happens to other objects, so that a broken one goes on from there.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use cni_test_harness::kubernetes::{ApiServer, Programs, node};
use cni_test_harness::skip_unless;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};
use twilld::store::kube::{KubeStore, Source};

use super::{OURS, options};
use crate::conformance::following::Following;
use crate::conformance::run;

/// Between two bookmarks there is a minute.
const BOOKMARK: Duration = Duration::from_secs(240);
/// More than the server sends on a connection on which nothing happens, and less than a bookmark.
const SMALL: u64 = 100;

/// A way to the API server that counts what comes back, and can be cut.
struct Way {
    url: String,
    received: Rc<Cell<u64>>,
    carrying: Rc<RefCell<Vec<JoinHandle<()>>>>,
}

impl Way {
    async fn to(server: &ApiServer) -> Self {
        let target = server.url().trim_start_matches("https://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = Self {
            url: format!("https://{}", listener.local_addr().unwrap()),
            received: Rc::default(),
            carrying: Rc::default(),
        };
        let (received, carrying) = (way.received.clone(), way.carrying.clone());
        spawn_local(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&target).await.unwrap();
                let carried = carry(client, server, received.clone());
                carrying.borrow_mut().push(spawn_local(carried));
            }
        });
        way
    }

    fn cut(&self) {
        let carrying = self.carrying.borrow_mut().split_off(0);
        carrying.iter().for_each(JoinHandle::abort);
    }
}

async fn carry(client: TcpStream, server: TcpStream, received: Rc<Cell<u64>>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    let down = async {
        let mut piece = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from_server.read(&mut piece).await {
            received.set(received.get() + length as u64);
            if to_client.write_all(&piece[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = up => {}
        () = down => {}
    }
}

/// The versions that watches were begun with, as far as they came to the server.
fn watched_from(server: &ApiServer) -> Vec<u64> {
    let asked = server.requests(OURS).unwrap();
    let watches = asked.iter().filter(|request| request.verb == "watch");
    let version = |uri: &str| {
        let (_, rest) = uri.split_once("resourceVersion=")?;
        rest.split('&').next()?.parse().ok()
    };
    watches
        .map(|request| version(&request.uri).unwrap())
        .collect()
}

#[test]
fn a_bookmark_carries_a_watch_past_what_happens_elsewhere() {
    let programs = skip_unless!(Programs::find());
    let server = ApiServer::start(&programs).unwrap();
    server.create(&[node::peer(1)]).unwrap();
    run(async {
        let way = Way::to(&server).await;
        let through = Source::Kubeconfig {
            path: server.admin_kubeconfig(),
            url: Some(way.url.clone()),
        };
        let store = KubeStore::new(options(through, "k1")).unwrap();
        let mut following = Following::start(store);
        following
            .until("a peer", |table| table.leases().count() == 1)
            .await;
        let begun = async {
            while watched_from(&server).is_empty() {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(BOOKMARK, begun).await.unwrap();
        // What is not about Nodes.
        let config_map = |n: u8| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{n}"), "namespace": "default"}});
        server
            .create(&(0..20).map(config_map).collect::<Vec<Value>>())
            .unwrap();
        let at = way.received.get();
        let bookmark = async {
            while way.received.get() < at + SMALL {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(BOOKMARK, bookmark).await.expect("no bookmark came");
        // It may come in pieces.
        following.for_a_while(Duration::from_secs(1)).await;
        way.cut();
        server.create(&[node::peer(2)]).unwrap();
        following
            .until("another peer", |table| table.leases().count() == 2)
            .await;
        // A snapshot and the new one; nothing was listed again.
        assert_eq!(following.log.len(), 2);
    });
    let from = watched_from(&server);
    assert!(from.len() == 2 && from[1] >= from[0] + 20, "{from:?}");
    let asked = server.requests(OURS).unwrap();
    let lists = asked
        .iter()
        .filter(|request| request.uri.contains("limit=500"));
    assert_eq!(lists.count(), 1, "{asked:#?}");
}
