use super::*;

fn run(args: &[&str], env: &[(&str, &str)]) -> Result<Command, FlagError> {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    parse(&args, |name| {
        let found = env.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

fn flags(args: &[&str], env: &[(&str, &str)]) -> (Flags, Vec<String>) {
    match run(args, env).unwrap() {
        Command::Run(flags, warnings) => (*flags, warnings),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_dash_or_two_and_equals_or_space_are_the_same() {
    let (want, _) = flags(&["--iface=eth0", "--ip-masq", "--v=2"], &[]);
    for args in [
        &["-iface", "eth0", "-ip-masq", "-v", "2"][..],
        &["--iface", "eth0", "--ip-masq=true", "-v=2"],
        &["-iface=eth0", "--ip-masq=T", "--v", "2"],
    ] {
        assert_eq!(flags(args, &[]).0, want, "{args:?}");
    }
}

#[test]
fn repeated_flags_add_up_or_the_last_one_wins() {
    let (got, _) = flags(
        &[
            "--iface=a",
            "--iface=b",
            "--public-ip=1.1.1.1",
            "--public-ip=2.2.2.2",
        ],
        &[],
    );
    assert_eq!(got.iface, ["a", "b"]);
    assert_eq!(got.public_ip, Some([2, 2, 2, 2].into()));
}

#[test]
fn a_bool_takes_its_value_only_behind_the_equals_sign() {
    let (got, warnings) = flags(&["--ip-masq", "false", "--iface=eth0"], &[]);
    assert!(got.ip_masq);
    assert_eq!(got.iface, [""; 0]);
    assert_eq!(warnings.len(), 1);
}

#[test]
fn the_environment_fills_in_what_the_command_line_leaves_out() {
    let env = [
        ("FLANNELD_IP_MASQ", "true"),
        ("FLANNELD_IFACE", "eth0"),
        ("FLANNELD_IPTABLES_FORWARD_RULES", "false"),
        ("FLANNELD_V", "bogus"),
        ("FLANNELD_SUBNET_FILE", ""),
        ("FLANNELD_VERSION", "true"),
    ];
    let (got, warnings) = flags(&["--iface=eth1"], &env);
    assert!(got.ip_masq && !got.forward_rules);
    assert_eq!(got.iface, ["eth1"]);
    assert_eq!(got.subnet_file, Flags::default().subnet_file);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("FLANNELD_V"));
}

#[test]
fn a_wrong_flag_is_an_error_that_names_it() {
    for (args, words) in [
        (&["--ip-mask"][..], "--ip-mask"),
        (&["--ip-masq=maybe"], "true or false"),
        (&["---iface=x"], "bad flag syntax"),
        (&["-=x"], "bad flag syntax"),
        (&["--iface"], "needs a value"),
        (&["--subnet-lease-renew-margin=1440"], "1 to 1439"),
        (&["--subnet-lease-renew-margin=0"], "1 to 1439"),
        (&["--public-ip=fd00::1"], "IPv4"),
        (&["--iface-regex=("], "regular expression"),
        (&["--healthz-port=65536"], "port"),
        (&["--lease-ttl=0s"], "duration"),
        (&["--lease-ttl=1d"], "duration"),
        (&["--lease-ttl=h"], "duration"),
        (&["--network=10.0.0.0"], "network"),
        (&["--ip-blackhole-route"], "not built"),
        (&["--kube-subnet-mgr"], "--kubeconfig-file"),
        (&["--kube-subnet-mgr=x"], "true or false"),
        (&["--etcd-endpoints=ftp://x"], "ftp://x"),
        (&["--etcd-password=x"], "without a user"),
        (&["--etcd-certfile=x"], "etcd-keyfile"),
        (&["--on-lease-loss=panic"], "keep, exit or renumber"),
    ] {
        let error = run(args, &[]).unwrap_err().to_string();
        assert!(error.contains(words), "{args:?}: {error}");
    }
    let error = run(&[], &[("FLANNELD_IP_BLACKHOLE_ROUTE", "x")]).unwrap_err();
    assert!(error.to_string().contains("FLANNELD_IP_BLACKHOLE_ROUTE"));
}

#[test]
fn old_manifests_start_with_a_warning() {
    let (_, warnings) = flags(
        &["--auto-detect-ipv4", "--vmodule", "x=2", "--ip-masq"],
        &[],
    );
    assert_eq!(warnings.len(), 2);
}

#[test]
fn help_and_version_are_found_before_the_environment() {
    assert_eq!(run(&["-h"], &[]), Ok(Command::Help));
    assert_eq!(run(&["--help"], &[]), Ok(Command::Help));
    let env = [("FLANNELD_KUBE_SUBNET_MGR", "x")];
    assert_eq!(run(&["--version"], &env), Ok(Command::Version));
}

#[test]
fn durations_have_units() {
    for (text, millis) in [
        ("24h", 86_400_000),
        ("2m", 120_000),
        ("30s", 30_000),
        ("5", 5000),
        ("500ms", 500),
    ] {
        let (got, _) = flags(&["--lease-ttl", text], &[]);
        assert_eq!(got.lease_ttl, Duration::from_millis(millis));
    }
}

#[test]
fn the_usage_names_every_flag() {
    for spec in FLAGS {
        assert!(usage().contains(&format!("--{}", spec.name)));
    }
}

const NODE: (&str, &str) = ("NODE_NAME", "k1");

#[test]
fn kubernetes_is_taken_when_asked_for_then_etcd_when_spoken_of_then_the_folder() {
    let store = |args: &[&str], env: &[(&str, &str)]| flags(args, env).0.store;
    assert_eq!(store(&["--lease-ttl=6s"], &[NODE]), StoreChoice::Folder);
    for (args, env) in [
        (&["--etcd-prefix=/p"][..], &[][..]),
        (&[], &[("FLANNELD_ETCD_PREFIX", "/p")]),
    ] {
        let StoreChoice::Etcd(options) = store(args, env) else {
            panic!("{args:?} {env:?}");
        };
        let endpoints: Vec<String> = options.endpoints.iter().map(|e| e.to_string()).collect();
        assert_eq!(
            endpoints,
            ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]
        );
        assert_eq!(options.prefix, "/p");
    }
    let kube = ["--kube-subnet-mgr", "--kubeconfig-file=/k"];
    let StoreChoice::Kubernetes(kubernetes) = store(&kube, &[NODE]) else {
        panic!("not Kubernetes");
    };
    assert!(kubernetes.announce);
    // The cluster has given the subnet, and may give another one with the Node made anew.
    for (args, meaning) in [
        (&kube[..], OnLeaseLoss::Renumber),
        (
            &[kube[0], kube[1], "--on-lease-loss=keep"],
            OnLeaseLoss::Keep,
        ),
        (&[], OnLeaseLoss::Keep),
    ] {
        assert_eq!(flags(args, &[NODE]).0.on_lease_loss, meaning, "{args:?}");
    }
    assert_eq!(
        kubernetes.options.net_conf_path.to_str(),
        Some("/etc/kube-flannel/net-conf.json")
    );
    let env = [
        NODE,
        ("FLANNELD_KUBE_SUBNET_MGR", "1"),
        ("FLANNELD_ETCD_PREFIX", "/p"),
    ];
    let (both, warnings) = flags(&["--kube-api-url=http://x"], &env);
    assert!(matches!(both.store, StoreChoice::Kubernetes(_)));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

#[test]
fn a_wrong_word_in_the_environment_chooses_no_other_store() {
    for env in [
        ("FLANNELD_KUBE_SUBNET_MGR", "yes"),
        ("FLANNELD_ETCD_ENDPOINTS", "ftp://x"),
    ] {
        assert!(run(&[], &[env]).is_err(), "{env:?}");
    }
}

#[test]
fn the_password_is_in_no_message() {
    let (got, warnings) = flags(
        &["--etcd-username=u", "--etcd-password=s3cret"],
        &[("FLANNELD_KUBE_API_URL", "http://x")],
    );
    assert!(!format!("{got:?} {warnings:?}").contains("s3cret"));
    for args in [
        &["---etcd-password=s3cret"][..],
        &["--etcd-pasword=s3cret"],
        &["--etcd-password=s3cret"],
    ] {
        let error = run(args, &[]).unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{error}");
    }
}
