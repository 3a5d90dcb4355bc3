//! Many nodes and one store that hangs up on all of them at once: they come back, each at a time
//! of its own. A listener of a few lines plays the store.
//!
//! The clock is tokio's, paused: it goes on when there is nothing to do, so that the waits which the
//! stores choose are seen as they are, on however busy a machine.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};
use twilld::store::Store;
use twilld::store::etcd::{EtcdStore, Options, TlsFiles, parse_endpoints};
use twilld::store::kube::{KubeStore, Source};

const NODES: usize = 40;
/// As many in a fifth of the shortest time over which they spread are chance; more are a crowd.
const CROWD: usize = 30;

/// When a node came.
type Times = Rc<RefCell<Vec<Instant>>>;

fn run(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

/// Takes connections, notes the time of each, and does `then` with it. Where it is.
async fn listen<F: Future<Output = ()> + 'static>(
    then: impl Fn(TcpStream) -> F + 'static,
) -> (String, Times) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let times = Times::default();
    let noted = times.clone();
    spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            noted.borrow_mut().push(Instant::now());
            spawn_local(then(stream));
        }
    });
    (url, times)
}

/// Has a node follow its leases; nobody hears what comes of it.
fn follow(store: impl Store) {
    let (to_us, mut events) = mpsc::channel(16);
    spawn_local(store.watch(to_us));
    spawn_local(async move { while events.recv().await.is_some() {} });
}

fn etcd(url: &str) -> EtcdStore {
    EtcdStore::new(Options {
        endpoints: parse_endpoints(url).unwrap(),
        prefix: super::etcd::PREFIX.to_owned(),
        tls: TlsFiles::default(),
        credentials: None,
        ttl: Duration::from_secs(24 * 60 * 60),
    })
}

fn kube(url: &str) -> KubeStore {
    KubeStore::new(super::kube::options(Source::Url(url.to_owned()), "k1")).unwrap()
}

/// The most that came within one time of this length.
fn crowd(mut times: Vec<Instant>, within: Duration) -> usize {
    times.sort();
    let from = |at: usize| {
        let end = times[at] + within;
        times[at..].iter().take_while(|time| **time < end).count()
    };
    (0..times.len()).map(from).max().unwrap_or_default()
}

/// Every node tries at a listener of its own that hangs up at once, so that its tries are told from
/// those of others. The first wait of each is at least `shortest`, and at most twice that.
async fn tries_spread<S: Store>(store: impl Fn(&str) -> S, shortest: Duration) {
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        let (url, times) = listen(async |stream| drop(stream)).await;
        nodes.push((store(&url), times));
    }
    let mut all = Vec::new();
    for (node, times) in nodes {
        follow(node);
        all.push(times);
    }
    while all.iter().any(|times| times.borrow().len() < 5) {
        sleep(Duration::from_secs(1)).await;
    }
    let nth = |n: usize| all.iter().map(|times| times.borrow()[n]).collect();
    // Together at first, as a test of the test.
    assert_eq!(crowd(nth(0), Duration::from_secs(1)), NODES);
    for n in 1..5 {
        let crowd = crowd(nth(n), shortest / 5);
        assert!(crowd < CROWD, "{crowd} of {NODES} at once at try {n}");
    }
}

#[test]
fn nodes_do_not_come_back_to_an_etcd_in_one_instant() {
    run(tries_spread(etcd, Duration::from_millis(100)));
}

#[test]
fn nodes_do_not_come_back_to_an_api_server_in_one_instant() {
    run(tries_spread(kube, Duration::from_millis(250)));
}

/// Answers a list, and a watch with silence until `end`; then it ends in the orderly way.
async fn watched_until(mut stream: TcpStream, end: Instant) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    let is_watch = String::from_utf8(request).unwrap().contains("watch=true");
    let list = json!({"metadata": {"resourceVersion": "9"}, "items": []}).to_string();
    let body = if is_watch { String::new() } else { list };
    let answer = format!("HTTP/1.1 200 OK\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.unwrap();
    if is_watch {
        sleep_until(end).await;
    }
}

#[test]
fn nodes_whose_watches_an_api_server_ends_do_not_come_back_in_one_instant() {
    run(async {
        let end = Instant::now() + Duration::from_secs(60);
        let (url, times) = listen(move |stream| watched_until(stream, end)).await;
        (0..NODES).for_each(|_| follow(kube(&url)));
        sleep_until(end).await;
        let before = times.borrow().len();
        assert_eq!(before, 2 * NODES, "a list and a watch of each");
        while times.borrow().len() < before + NODES {
            sleep(Duration::from_millis(100)).await;
        }
        let back = times.borrow()[before..before + NODES].to_vec();
        let crowd = crowd(back, Duration::from_millis(50));
        assert!(crowd < CROWD, "{crowd} of {NODES} at once");
    });
}
