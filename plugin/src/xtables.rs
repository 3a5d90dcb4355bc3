//! The tables of the older iptables (xtables), which only its own programs can change.

use std::fs;
use std::path::Path;

/// The names of the programs to try, for each family whose `nat` table is in use. Costs two reads,
/// which is why it is asked before any program is started.
pub(crate) fn nat_in_use() -> impl Iterator<Item = [&'static str; 2]> {
    let families = [
        ("ip_tables_names", ["iptables-legacy", "iptables"]),
        ("ip6_tables_names", ["ip6tables-legacy", "ip6tables"]),
    ];
    families.into_iter().filter_map(|(names, programs)| {
        let tables = fs::read_to_string(Path::new("/proc/net").join(names)).ok()?;
        tables
            .lines()
            .any(|table| table == "nat")
            .then_some(programs)
    })
}
