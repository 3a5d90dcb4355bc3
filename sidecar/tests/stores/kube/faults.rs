//! What the real API server cannot be made to do: half an answer, silence, nonsense. Here a server
//! of a few lines in this process plays it: it gives the next answer of a list to whoever asks.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, spawn_local};
use twilld::store::kube::{KubeStore, Source};

use super::options;
use crate::conformance::following::Following;
use crate::conformance::{run, subnets};

/// One answer, and what becomes of the connection then.
enum Answer {
    /// These bytes as a body without a length, and the end.
    Body(String),
    /// These bytes as the beginning of a longer body, and the end.
    Half(String),
    /// These bytes as a body without a length, and silence.
    Silence(String),
    /// This status with this body.
    Status(u16, String),
}

/// Asked for in order; what is asked after the last is never answered.
struct Player {
    url: String,
    asked: Rc<RefCell<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Drop for Player {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Player {
    async fn start(answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Rc::new(RefCell::new(Vec::new()));
        let log = asked.clone();
        let serving = spawn_local(async move {
            let mut answers: VecDeque<Answer> = answers.into();
            let mut silent = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                log.borrow_mut()
                    .push(request.split(' ').nth(1).unwrap().to_owned());
                let (head, body, end) = match answers.pop_front() {
                    None => (String::new(), String::new(), false),
                    Some(Answer::Body(body)) => ("HTTP/1.1 200 OK\r\n\r\n".to_owned(), body, true),
                    Some(Answer::Silence(body)) => {
                        ("HTTP/1.1 200 OK\r\n\r\n".to_owned(), body, false)
                    }
                    Some(Answer::Half(body)) => {
                        let length = body.len() + 100;
                        (
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"),
                            body,
                            true,
                        )
                    }
                    Some(Answer::Status(code, body)) => {
                        (format!("HTTP/1.1 {code} x\r\n\r\n"), body, true)
                    }
                };
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(body.as_bytes()).await.unwrap();
                if !end {
                    silent.push(stream);
                }
            }
        });
        Self {
            url,
            asked,
            serving,
        }
    }

    fn store(&self) -> KubeStore {
        let mut options = options(Source::Url(self.url.clone()), "k1");
        options.patience.piece = Duration::from_millis(300);
        options.patience.watch = Duration::from_millis(300);
        KubeStore::new(options).unwrap()
    }

    /// The paths that were asked for, without the version-dependent parts.
    fn asked(&self) -> Vec<&'static str> {
        let kind = |path: &String| match path {
            path if path.contains("watch=true") => "watch",
            path if path.contains("continue=") => "next page",
            path if path.contains("limit=1") && !path.contains("limit=500") => "where",
            path if path.contains("limit=500") => "list",
            _ => "other",
        };
        self.asked.borrow().iter().map(kind).collect()
    }

    /// The version from which the last watch was asked for.
    fn watched_from(&self) -> String {
        let asked = self.asked.borrow();
        let watch = asked
            .iter()
            .rfind(|path| path.contains("watch=true"))
            .unwrap();
        let from = watch.split("resourceVersion=").nth(1).unwrap();
        from.split('&').next().unwrap().to_owned()
    }
}

fn versioned(n: u16, version: u32) -> Value {
    let cidr = format!("10.5.{n}.0/24");
    let mut node = super::peer(&format!("k{n}"), &[&cidr], n);
    node["metadata"]["resourceVersion"] = json!(version.to_string());
    node
}

fn list(items: &[Value], version: u32, next: &str) -> String {
    json!({
        "kind": "NodeList", "apiVersion": "v1",
        "metadata": {"resourceVersion": version.to_string(), "continue": next},
        "items": items,
    })
    .to_string()
}

fn event(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn bookmark(version: u32) -> String {
    event(
        "BOOKMARK",
        &json!({"kind": "Node", "metadata": {"resourceVersion": version.to_string()}}),
    )
}

/// The first whole list is told, and only that.
fn listed_after(answers: Vec<Answer>, kinds: &[&str]) {
    run(async {
        let player = Player::start(answers).await;
        let mut following = Following::start(player.store());
        following
            .until("the first whole list", |table| table.leases().count() == 2)
            .await;
        assert_eq!(following.log.len(), 1);
        assert_eq!(player.asked()[..kinds.len()], *kinds);
    });
}

fn whole() -> String {
    list(&[versioned(1, 1), versioned(2, 2)], 9, "")
}

#[test]
fn half_a_list_is_listed_again_and_says_nothing_before() {
    let text = whole();
    let answers = vec![
        Answer::Half(text[..text.len() / 2].to_owned()),
        Answer::Half(text.clone()),
        Answer::Body(text[..text.len() - 2].to_owned()),
        Answer::Silence(text[..text.len() - 1].to_owned()),
        Answer::Body(text),
    ];
    listed_after(answers, &["list", "list", "list", "list", "list"]);
}

#[test]
fn a_list_that_is_none_is_listed_again() {
    let answers = vec![
        Answer::Body("<html>a proxy's word</html>".to_owned()),
        Answer::Body("{}".to_owned()),
        Answer::Status(500, "etcdserver: request timed out".to_owned()),
        Answer::Status(429, String::new()),
        Answer::Body(whole()),
    ];
    listed_after(answers, &["list", "list", "list", "list", "list"]);
}

#[test]
fn a_page_that_breaks_begins_the_list_anew() {
    let answers = vec![
        Answer::Body(list(&[versioned(1, 1)], 9, "p2")),
        Answer::Half(list(&[versioned(2, 2)], 9, "")),
        Answer::Body(list(&[versioned(1, 1)], 9, "p2")),
        Answer::Body(list(&[versioned(2, 2)], 9, "")),
    ];
    listed_after(answers, &["list", "next page", "list", "next page"]);
}

#[test]
fn pages_that_are_too_old_begin_anew() {
    let gone = json!({"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old"});
    run(async {
        let player = Player::start(vec![
            Answer::Body(list(&[versioned(1, 1)], 9, "p2/+=")),
            Answer::Status(410, gone.to_string()),
            Answer::Body(list(&[versioned(2, 2)], 11, "")),
        ])
        .await;
        let mut following = Following::start(player.store());
        following
            .until("the second list", |table| {
                table.get(&subnets("10.5.2.0-24")).is_some()
            })
            .await;
        assert_eq!(following.table.leases().count(), 1);
        assert!(
            player.asked.borrow()[1].ends_with("continue=p2%2F%2B%3D"),
            "{:?}",
            player.asked
        );
    });
}

#[test]
fn a_watch_goes_on_where_it_broke_and_bookmarks_move_it_forward() {
    run(async {
        let player = Player::start(vec![
            Answer::Body(list(&[versioned(1, 1)], 9, "")),
            // Falls silent after a bookmark.
            Answer::Silence(event("ADDED", &versioned(2, 12)) + &bookmark(20)),
            Answer::Body(list(&[], 21, "")),
            // Breaks in the middle of an event.
            Answer::Half(
                event("ADDED", &versioned(3, 22)) + &event("ADDED", &versioned(4, 23))[..50],
            ),
            Answer::Body(list(&[], 30, "")),
            Answer::Silence(
                event("ADDED", &versioned(4, 23)) + &event("DELETED", &versioned(1, 24)),
            ),
        ])
        .await;
        let mut following = Following::start(player.store());
        following
            .until("all events", |table| {
                table.leases().count() == 3 && table.get(&subnets("10.5.1.0-24")).is_none()
            })
            .await;
        assert_eq!(
            player.asked()[..6],
            ["list", "watch", "where", "watch", "where", "watch"]
        );
        assert_eq!(player.watched_from(), "22");
        // The snapshot, three that came, one that went: nothing twice, and no second list.
        assert_eq!(following.log.len(), 5);
    });
}

#[test]
fn nonsense_on_a_watch_is_named_or_asked_again_and_hurts_nobody() {
    let odd = json!({"metadata": {"name": "k7", "resourceVersion": "13", "annotations": ["?"]}});
    let nameless = json!({"metadata": {"resourceVersion": "14"}, "spec": 7});
    run(async {
        let player = Player::start(vec![
            Answer::Body(list(&[versioned(1, 1)], 9, "")),
            Answer::Silence(
                event("MODIFIED", &odd)
                    + &event("ADDED", &nameless)
                    + &event("ADDED", &versioned(2, 15))
                    + "{nonsense}\n",
            ),
            Answer::Body(list(&[], 15, "")),
            Answer::Silence(event("ADDED", &versioned(3, 16))),
        ])
        .await;
        let mut following = Following::start(player.store());
        following
            .until("the good ones", |table| table.leases().count() == 3)
            .await;
        let skipped: Vec<_> = following
            .table
            .skipped()
            .map(|(name, _)| name.to_owned())
            .collect();
        assert_eq!(skipped, ["node k7"]);
        assert_eq!(player.watched_from(), "15");
    });
}

#[test]
fn a_version_that_is_gone_or_that_goes_back_means_a_new_list() {
    let gone = json!({"kind": "Status", "code": 410, "message": "too old resource version"});
    run(async {
        let player = Player::start(vec![
            Answer::Body(list(&[versioned(1, 1)], 9, "")),
            Answer::Body(event("ERROR", &gone)),
            Answer::Body(list(&[versioned(1, 1), versioned(2, 12)], 14, "")),
            // This one has less than was seen.
            Answer::Silence(bookmark(5)),
            Answer::Body(list(&[versioned(3, 3)], 5, "")),
            // And this one is asked after a broken connection.
            Answer::Half(String::new()),
            Answer::Body(list(&[], 2, "")),
            Answer::Body(list(&[versioned(4, 1)], 2, "")),
        ])
        .await;
        let mut following = Following::start(player.store());
        following
            .until("the last list", |table| {
                table.get(&subnets("10.5.4.0-24")).is_some()
            })
            .await;
        assert_eq!(
            player.asked()[..8],
            [
                "list", "watch", "list", "watch", "list", "watch", "where", "list"
            ]
        );
        assert_eq!(following.log.len(), 4);
    });
}
