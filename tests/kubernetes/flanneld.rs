//! twilld beside the real flanneld on one Kubernetes, and in its place.

use std::path::PathBuf;

use anyhow::Result;
use cni_test_harness::cluster::READY_DEADLINE;
use cni_test_harness::kubernetes::Programs;
use cni_test_harness::stream::Stream;
use cni_test_harness::{flanneld, skip_unless};
use serde_json::Value;

use crate::kube::{Kube, REPLY, SOON};

#[test]
fn beside_flanneld_and_in_its_place_no_packet_is_lost() -> Result<()> {
    let programs = skip_unless!(Programs::find());
    let flanneld: PathBuf = skip_unless!(flanneld::installed());
    let mut kube = Kube::start(&programs)?;
    kube.make_node(0, &["10.244.1.0/24"])?;
    kube.make_node(1, &["10.244.2.0/24"])?;
    kube.start_flanneld(0, &flanneld)?;
    kube.start_twilld(1)?;
    kube.cluster.wait_in_sync(READY_DEADLINE)?;
    let (theirs, ours) = (kube.cluster.pod(0)?, kube.cluster.pod(1)?);
    for (from, to) in [(&theirs, &ours), (&ours, &theirs)] {
        assert!(from.ping(to, 3, REPLY)?.complete());
    }
    kube.seen_to_follow()?;

    let annotations =
        |kube: &Kube| -> Result<Value> { Ok(kube.object(0)?["metadata"]["annotations"].clone()) };
    let (before, env) = (annotations(&kube)?, kube.cluster.member(0).subnet_env()?);
    let mac = kube.cluster.member(0).view().mac("flannel.1")?;
    let mut streams = [
        Stream::start(theirs.netns(), ours.ip()?)?,
        Stream::start(ours.netns(), theirs.ip()?)?,
    ];
    for twilld_comes in [true, false] {
        kube.cluster.member_mut(0).stop_daemon(SOON)?;
        match twilld_comes {
            true => kube.start_twilld(0)?,
            false => kube.start_flanneld(0, &flanneld)?,
        }
        kube.seen_to_follow()?;
        for stream in &mut streams {
            stream.go_on(500)?;
            assert_eq!(
                stream.answers()?.lost,
                Vec::<usize>::new(),
                "twilld comes: {twilld_comes}"
            );
        }
        assert_eq!(annotations(&kube)?, before, "twilld comes: {twilld_comes}");
        assert_eq!(kube.cluster.member(0).subnet_env()?, env);
        assert_eq!(kube.cluster.member(0).view().mac("flannel.1")?, mac);
    }
    for stream in streams {
        let answers = stream.end()?;
        assert!(
            answers.lost.is_empty() && answers.last > 1000,
            "{answers:?}"
        );
    }
    Ok(())
}
