//! Labs: the overlays that explain this project, built by hand with `ip` and `bridge`.
//!
//! Each prints every command as it runs it, so that it can be typed again elsewhere, and proves
//! itself with ping and with the kernel's tables. None of our own programs takes part.

mod l2;
mod misses;
mod routed;
mod stage;

use std::io::Write;

use anyhow::{Context, Result, bail};

use self::stage::Stage;

/// One lab.
pub struct Lab {
    /// What it is run by.
    pub name: &'static str,
    /// What it shows, in two or three sentences.
    pub about: &'static str,
    build: fn(&mut Stage<'_>) -> Result<()>,
}

/// All labs, each building on what the ones before it show.
pub const LABS: [Lab; 7] = [
    Lab {
        name: "static-fdb",
        about: "Three nodes share one Ethernet through VXLAN devices that learn nothing. Every \
                forwarding entry (inner MAC to node) and every neighbour is written by hand, so \
                nothing is ever flooded; without its entry a node cannot be reached.",
        build: l2::static_fdb,
    },
    Lab {
        name: "multicast-learning",
        about: "The same Ethernet as RFC 7348 first meant it: what has no entry is sent to a \
                multicast group, and answers teach each device who is where. Nothing is written by \
                hand, but the underlay has to carry multicast.",
        build: l2::multicast_learning,
    },
    Lab {
        name: "flood-list-and-proxy",
        about: "Without multicast, an entry for the all-zero MAC lists who gets what is flooded. \
                With `proxy` the device itself answers ARP from its neighbour table, so that the \
                question never crosses the underlay; only the frames do.",
        build: l2::flood_list_and_proxy,
    },
    Lab {
        name: "misses",
        about: "Devices with l3miss and l2miss tell user space what they lack: first which MAC an \
                address has, then which node a MAC is on. A daemon that answers them needs entries \
                only for peers that are talked to; this was flannel's first VXLAN.",
        build: misses::misses,
    },
    Lab {
        name: "routed",
        about: "What flannel and twill make: no stretched Ethernet, but a route, a neighbour and a \
                forwarding entry for each node. Tables grow with the nodes and not with the pods, \
                and nothing is flooded, learnt or asked.",
        build: routed::routed,
    },
    Lab {
        name: "host-gw",
        about: "Where all nodes share a link no tunnel is needed: each node's subnet is a route \
                via its address. Nothing is encapsulated, so pods keep the whole MTU; a router \
                between the nodes would have to know the routes too.",
        build: routed::host_gw,
    },
    Lab {
        name: "tun",
        about: "A tunnel in user space: a program reads packets from a TUN device and sends each \
                in a UDP datagram to the other node, bare, as flannel's udp backend does on port \
                8285. Needs no VXLAN in the kernel, and costs two system calls for each packet.",
        build: routed::tun,
    },
];

/// `lab list`: names and what they show.
pub fn list(out: &mut dyn Write) -> Result<()> {
    for lab in &LABS {
        writeln!(out, "{}", lab.name)?;
        for line in wrapped(lab.about, 76) {
            writeln!(out, "    {line}")?;
        }
    }
    Ok(())
}

/// `lab run NAME`: builds the lab, proves it, and takes it down again; `all` runs every one.
pub fn run(name: &str, out: &mut dyn Write) -> Result<()> {
    let chosen: Vec<&Lab> = LABS
        .iter()
        .filter(|lab| name == "all" || lab.name == name)
        .collect();
    if chosen.is_empty() {
        let names = LABS.map(|lab| lab.name).join(", ");
        bail!("no lab is called {name:?}: there are {names}, and all");
    }
    for lab in chosen {
        writeln!(out, "\n=== {}", lab.name)?;
        for line in wrapped(lab.about, 80) {
            writeln!(out, "{line}")?;
        }
        let mut stage = Stage::new(out);
        (lab.build)(&mut stage).with_context(|| format!("lab {}", lab.name))?;
        stage.say("It holds. Taking it down.")?;
    }
    Ok(())
}

/// The subcommand: `lab list`, `lab run NAME`, `lab run all`.
pub fn command(args: &[String], out: &mut dyn Write) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["list"] => list(out),
        ["run", name] => run(name, out),
        _ => bail!("usage: lab list | lab run NAME | lab run all"),
    }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_names_every_lab_and_says_what_it_shows() {
        let mut out = Vec::new();
        list(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for lab in &LABS {
            assert!(text.contains(&format!("{}\n", lab.name)));
            assert!(lab.about.matches(['.', ':']).count() >= 2, "{}", lab.name);
        }
    }

    #[test]
    fn an_unknown_lab_is_refused_with_the_names_of_all() {
        let error = run("tub", &mut Vec::new()).unwrap_err().to_string();
        assert!(
            error.contains("tun") && error.contains("host-gw"),
            "{error}"
        );
    }
}
