//! What a device asks user space for is heard, what is answered lets the waiting packet out, and a
//! scan disturbs nobody else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use kernel::miss::{Miss, Misses, Missing};
use kernel::monitor::{Change, Monitor};
use kernel::{Mac, Socket, fdb, link, neighbour, nft, solicit};

mod namespace;

use namespace::{in_a_namespace, run};

const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// A VXLAN device `vx` that asks, with a network of each family behind it.
fn on_a_device_that_asks(test: impl AsyncFnOnce(Misses, Socket, u32) + Send + 'static) {
    in_a_namespace(move || {
        run("ip link set lo up");
        run("ip link add vx type vxlan id 5 dstport 4789 local 127.0.0.1 nolearning l2miss l3miss");
        run("ip link set vx up");
        run("ip addr add 10.5.1.0/32 dev vx");
        run("ip addr add fd00:5::1/128 dev vx nodad");
        let mut socket = Socket::open().unwrap();
        let vx = link::by_name(&mut socket, "vx").unwrap().unwrap().ifindex;
        let ask = [false, true].map(|v6| solicit::user_space(vx, v6));
        socket.apply_all(&ask).unwrap();
        run("ip route add 10.5.0.0/16 dev vx");
        run("ip route add fd00:5::/32 dev vx");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let misses = Misses::open().unwrap();
            test(misses, socket, vx).await;
        });
    });
}

/// Waits for this miss.
async fn until(misses: &mut Misses, wanted: Miss) {
    let mut seen = false;
    let wait = async {
        while !seen {
            misses.asked().await.unwrap();
            misses.drain(100, |miss| seen |= miss == wanted).unwrap();
        }
    };
    let result = tokio::time::timeout(Duration::from_secs(5), wait).await;
    assert!(result.is_ok(), "{wanted:?}: not asked for");
}

fn send(to: IpAddr) {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.send_to(b"x", (to, 9)).unwrap();
}

/// How many packets the device has sent, or had no node for.
fn sent() -> u64 {
    run("cat /proc/self/net/dev")
        .lines()
        .find_map(|line| line.trim().strip_prefix("vx:"))
        .and_then(|counts| counts.split_whitespace().nth(9)?.parse().ok())
        .unwrap()
}

#[test]
fn an_address_is_asked_for_and_the_answer_lets_the_packet_out() {
    on_a_device_that_asks(async |mut misses, mut socket, vx| {
        for to in ["10.5.2.7", "fd00:5:2::7"] {
            let ip: IpAddr = to.parse().unwrap();
            send(ip);
            let of = Missing::MacOf(ip);
            until(&mut misses, Miss { ifindex: vx, of }).await;
            let before = sent();
            let answer = [
                fdb::replace(vx, PEER, [127, 0, 0, 2].into()),
                neighbour::resolve(vx, ip, PEER),
                neighbour::delete(vx, ip),
            ];
            socket.apply_all(&answer).unwrap();
            assert_eq!(sent(), before + 1, "{to}: the packet that waited");
            let left = run("ip neigh show dev vx");
            assert!(!left.contains(to), "{left}");
        }
    });
}

#[test]
fn a_mac_without_a_node_is_asked_for() {
    on_a_device_that_asks(async |mut misses, mut socket, vx| {
        let ip = IpAddr::from([10, 5, 2, 7]);
        socket
            .apply_all(&[neighbour::replace(vx, ip, PEER)])
            .unwrap();
        send(ip);
        let of = Missing::NodeOf(PEER);
        until(&mut misses, Miss { ifindex: vx, of }).await;
    });
}

#[test]
fn who_is_asked_is_read_back_and_refusing_tells_the_sender() {
    on_a_device_that_asks(async |mut misses, mut socket, vx| {
        assert_eq!(solicit::dump(&mut socket, false).unwrap(), [vx]);
        assert_eq!(solicit::dump(&mut socket, true).unwrap(), [vx]);
        run("ip ntable change name arp_cache dev vx mcast_probes 3");
        assert!(solicit::dump(&mut socket, false).unwrap().is_empty());
        socket.apply_all(&[solicit::user_space(vx, false)]).unwrap();
        let ip = IpAddr::from([10, 5, 2, 8]);
        let ping = Command::new("ping")
            .args(["-c1", "-W60", &ip.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let of = Missing::MacOf(ip);
        until(&mut misses, Miss { ifindex: vx, of }).await;
        socket.apply_all(&[neighbour::delete(vx, ip)]).unwrap();
        let output = ping.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("Host Unreachable"), "{said}");
    });
}

#[test]
fn the_kernel_tells_how_long_an_entry_was_not_used() {
    on_a_device_that_asks(async |_, mut socket, vx| {
        let other = Mac([2, 0, 0, 0, 0, 3]);
        let (ip, node) = ([10, 5, 2, 7].into(), [127, 0, 0, 2].into());
        let entries = [
            fdb::replace(vx, PEER, node),
            fdb::replace(vx, other, node),
            neighbour::replace(vx, ip, PEER),
        ];
        socket.apply_all(&entries).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        send(ip);
        let idle = fdb::idle(&mut socket, vx).unwrap();
        let of = |mac: Mac| idle.iter().find(|(m, _)| *m == mac).unwrap().1;
        assert!(of(other) >= Duration::from_millis(250), "{idle:?}");
        assert!(of(PEER) < of(other), "{idle:?}");
    });
}

#[test]
fn a_scan_neither_ends_the_subscription_nor_reaches_the_monitor() {
    on_a_device_that_asks(async |mut misses, mut socket, vx| {
        // The kernel has few entries to wait with; every packet to an unknown MAC is a miss.
        let ip = IpAddr::from([10, 5, 2, 7]);
        socket
            .apply_all(&[neighbour::replace(vx, ip, PEER)])
            .unwrap();
        let mut nftables = nft::Socket::open().unwrap();
        let mut monitor = Monitor::open(&mut socket, &mut nftables).unwrap();
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..50_000 {
            sender.send_to(b"x", (ip, 9)).unwrap();
        }
        let mut lost = false;
        monitor
            .drain(|change| lost |= change == Change::Lost)
            .unwrap();
        assert!(!lost, "the monitor was overrun");
        let mut heard = 0;
        while misses.drain(100, |_| heard += 1).unwrap() {}
        assert!((1..50_000).contains(&heard), "{heard}");
        run("ip link add br0 type bridge");
        send([10, 5, 2, 9].into());
        let of = Missing::MacOf([10, 5, 2, 9].into());
        until(&mut misses, Miss { ifindex: vx, of }).await;
        let mut link = false;
        monitor
            .drain(|change| link |= matches!(change, Change::Link { name, .. } if name == "br0"))
            .unwrap();
        assert!(link);
    });
}
