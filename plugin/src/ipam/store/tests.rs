use super::*;

const OWNER: Owner<'_> = Owner {
    container_id: "abc",
    ifname: "eth0",
};

fn boot(id: &str, started: i64) -> Boot {
    Boot {
        id: id.to_owned(),
        started,
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store {
        dir: dir.path().join("net"),
        indexes: dir.path().join("indexes"),
    };
    store.lock().unwrap();
    (dir, store)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn put(store: &Store, name: &str, content: &str) {
    fs::write(store.dir.join(name), content).unwrap();
}

#[test]
fn files_have_the_names_modes_and_bytes_of_host_local() {
    let (_dir, store) = store();
    let locked = store.lock().unwrap();
    assert!(locked.take(ip("fd00::2"), &OWNER).unwrap());
    locked.set_last_reserved(1, ip("fd00::2"));
    let read = |name: &str| {
        let path = store.dir.join(name);
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        (mode, fs::read_to_string(path).unwrap())
    };
    assert_eq!(read("fd00::2"), (0o600, "abc\r\neth0".into()));
    assert_eq!(read("last_reserved_ip.1"), (0o600, "fd00::2".into()));
    assert_eq!(read("lock"), (0o750, String::new()));
}

#[test]
fn a_taken_address_is_not_taken_again_and_an_empty_file_is_free() {
    let (_dir, store) = store();
    put(&store, "10.1.2.3", "");
    let locked = store.lock().unwrap();
    assert!(locked.take(ip("10.1.2.3"), &OWNER).unwrap());
    assert!(!locked.take(ip("10.1.2.3"), &OWNER).unwrap());
}

#[test]
fn a_file_that_names_nobody_is_free_and_nothing_of_it_stays() {
    let (_dir, store) = store();
    for (name, torn) in [("10.1.2.3", "\0".repeat(90)), ("10.1.2.4", " \r\n".into())] {
        put(&store, name, &torn);
        let locked = store.lock().unwrap();
        assert!(locked.take(ip(name), &OWNER).unwrap());
        let content = fs::read_to_string(store.dir.join(name)).unwrap();
        assert_eq!(content, "abc\r\neth0");
    }
}

#[test]
fn what_is_no_text_is_collected_as_nobody_knows_its_holder() {
    let (_dir, store) = store();
    fs::write(store.dir.join("10.1.2.3"), b"\xff\xfe").unwrap();
    assert!(!store.lock().unwrap().take(ip("10.1.2.3"), &OWNER).unwrap());
    store.release_others(|_| false).unwrap();
    assert!(store.is_free(ip("10.1.2.3")));
}

#[test]
fn what_a_killed_reservation_left_goes_with_the_next_release() {
    let (_dir, store) = store();
    put(&store, "10.1.2.3", "");
    put(&store, "10.1.2.4", "other\r\neth0");
    put(&store, "notes", "");
    store.release(&OWNER).unwrap();
    assert!(store.is_free(ip("10.1.2.3")));
    assert!(!store.is_free(ip("10.1.2.4")));
    assert!(store.dir.join("notes").exists());
}

#[test]
fn release_finds_every_file_of_the_owner_and_no_other() {
    let (_dir, store) = store();
    put(&store, "10.1.2.3", " abc\r\neth0\n");
    put(&store, "whatever", "abc\r\neth0");
    put(&store, "10.1.2.4", "abc\neth0");
    put(&store, "10.1.2.5", "abc\r\neth1");
    put(&store, "10.1.2.6", "abc");
    store.release(&OWNER).unwrap();
    let left = |store: &Store| {
        let mut left = store.addresses().unwrap();
        left.sort();
        left.iter()
            .map(IpAddr::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(left(&store), "10.1.2.4 10.1.2.5 10.1.2.6");
    store.release(&OWNER).unwrap();
    assert_eq!(
        left(&store),
        "10.1.2.4 10.1.2.5",
        "without others, the legacy file is ours"
    );
    store.release(&OWNER).unwrap();
    assert_eq!(left(&store), "10.1.2.4 10.1.2.5");
}

/// Runs as ADD does.
fn reserve(store: &Store, address: &str, owner: &Owner<'_>) {
    let locked = store.lock().unwrap();
    locked.make_index().unwrap();
    assert!(locked.take(ip(address), owner).unwrap());
}

fn link_count(store: &Store) -> usize {
    fs::read_dir(&store.index().links).unwrap().count()
}

#[test]
fn with_a_whole_index_no_other_reservation_is_read() {
    let (_dir, store) = store();
    let other = Owner {
        container_id: "def",
        ..OWNER
    };
    reserve(&store, "10.1.2.3", &OWNER);
    reserve(&store, "10.1.2.4", &other);
    // Written in place: nobody can see that without reading it.
    put(&store, "10.1.2.4", "abc\r\neth0");
    assert!(store.holds_any(&OWNER).unwrap());
    store.release(&OWNER).unwrap();
    assert_eq!(store.addresses().unwrap(), [ip("10.1.2.4")]);
    assert_eq!(link_count(&store), 1);
    store.release(&other).unwrap();
    assert_eq!(
        store.addresses().unwrap(),
        [ip("10.1.2.4")],
        "a link is only a hint: the file is another's"
    );
}

#[test]
fn what_host_local_makes_and_removes_beside_is_noticed() {
    let (_dir, store) = store();
    let other = Owner {
        container_id: "def",
        ..OWNER
    };
    reserve(&store, "10.1.2.3", &other);
    assert!(store.index().is_whole().unwrap());
    put(&store, "10.1.2.4", "abc\r\neth0");
    assert!(!store.index().is_whole().unwrap());
    store.release(&OWNER).unwrap();
    assert_eq!(store.addresses().unwrap(), [ip("10.1.2.3")]);
    fs::remove_file(store.dir.join("10.1.2.3")).unwrap();
    assert!(!store.holds_any(&other).unwrap());
    store.release(&other).unwrap();
    assert_eq!(link_count(&store), 0);
}

#[test]
fn without_its_links_the_index_is_made_anew() {
    let (_dir, store) = store();
    reserve(&store, "10.1.2.3", &OWNER);
    fs::remove_dir_all(&store.index().links).unwrap();
    store.release(&OWNER).unwrap();
    assert_eq!(store.addresses().unwrap(), [] as [IpAddr; 0]);
}

/// As where a file system is mounted over the folder for a while, or in two mount namespaces.
#[test]
fn a_folder_that_takes_anothers_place_has_an_index_of_its_own() {
    let (dir, store) = store();
    let other = Owner {
        container_id: "def",
        ..OWNER
    };
    let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
    reserve(&store, "10.1.2.3", &OWNER);
    fs::rename(&store.dir, &first).unwrap();
    reserve(&store, "10.1.2.3", &other);
    fs::rename(&store.dir, &second).unwrap();
    fs::rename(&first, &store.dir).unwrap();
    assert!(store.holds_any(&OWNER).unwrap());
    store.release(&OWNER).unwrap();
    assert_eq!(store.addresses().unwrap(), [] as [IpAddr; 0]);
    fs::remove_dir_all(&store.dir).unwrap();
    fs::rename(&second, &store.dir).unwrap();
    store.release(&other).unwrap();
    assert_eq!(store.addresses().unwrap(), [] as [IpAddr; 0]);
}

#[test]
fn two_paths_to_a_folder_have_one_index() {
    let (dir, store) = store();
    std::os::unix::fs::symlink(&store.dir, dir.path().join("alias")).unwrap();
    let alias = Store {
        dir: dir.path().join("alias"),
        ..store.clone()
    };
    let paths = [(&store, &alias), (&alias, &store)];
    for ((one, another), container_id) in paths.into_iter().zip(["abc", "def"]) {
        let owner = Owner {
            container_id,
            ..OWNER
        };
        reserve(one, "10.1.2.3", &owner);
        another.release(&owner).unwrap();
        assert_eq!(store.addresses().unwrap(), [] as [IpAddr; 0]);
    }
}

#[test]
fn releasing_from_a_folder_that_is_not_there_makes_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path(), "net");
    store.release(&OWNER).unwrap();
    assert!(!store.dir.exists());
}

#[test]
fn what_an_earlier_boot_reserved_is_free() {
    let (_dir, store) = store();
    let locked = store.lock().unwrap();
    locked.forget_earlier_boots(&boot("one", 0)).unwrap();
    put(&store, "10.1.2.3", "abc\r\neth0");
    locked.forget_earlier_boots(&boot("one", i64::MAX)).unwrap();
    assert_eq!(store.addresses().unwrap().len(), 1, "the same boot");
    locked.forget_earlier_boots(&boot("two", i64::MAX)).unwrap();
    assert_eq!(store.addresses().unwrap().len(), 0);
}

#[test]
fn the_first_call_after_a_boot_looks_for_what_an_earlier_one_left() {
    let (_dir, store) = store();
    put(&store, BOOT_ID, "earlier");
    put(&store, "10.1.2.3", "def\r\neth0");
    let old = File::options().write(true).open(store.dir.join("10.1.2.3"));
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    old.unwrap().set_modified(epoch).unwrap();
    put(&store, "10.1.2.4", "def\r\neth0");
    reserve(&store, "10.1.2.5", &OWNER);
    assert!(store.is_free(ip("10.1.2.3")));
    assert!(!store.is_free(ip("10.1.2.4")), "made since");
}

#[test]
fn what_host_local_reserved_in_this_boot_stays() {
    let (_dir, store) = store();
    put(&store, "10.1.2.3", "abc\r\neth0");
    let locked = store.lock().unwrap();
    locked.forget_earlier_boots(&boot("one", i64::MAX)).unwrap();
    assert_eq!(
        store.addresses().unwrap().len(),
        1,
        "a folder without a boot ID"
    );
    locked.forget_earlier_boots(&boot("two", 0)).unwrap();
    assert_eq!(
        store.addresses().unwrap().len(),
        1,
        "a file younger than the boot"
    );
}
