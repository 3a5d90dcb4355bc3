//! Rules of iptables, where only its own programs can list, make or change them: those in the
//! tables of the older iptables (xtables), and matches that are no expressions of nftables'.
//!
//! Knows how the programs are run, and no rule.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::error::{Code, Error};

/// Never without a bound: another program may hold the lock for long. Seconds.
const WAIT: [&str; 2] = ["-w", "5"];

/// The names of the programs to try, for each family whose older `nat` table is in use. Costs two
/// reads, which is why it is asked before any program is started.
pub(crate) fn nat_in_use() -> impl Iterator<Item = [&'static str; 2]> {
    let families = [
        ("ip_tables_names", ["iptables-legacy", "iptables"]),
        ("ip6_tables_names", ["ip6tables-legacy", "ip6tables"]),
    ];
    families.into_iter().filter_map(|(names, programs)| {
        let tables = fs::read_to_string(Path::new("/proc/thread-self/net").join(names)).ok()?;
        tables
            .lines()
            .any(|table| table == "nat")
            .then_some(programs)
    })
}

/// `iptables -t nat -S CHAIN`: the rules of a chain, in their words; none of one that is not there.
pub(crate) fn rules(programs: &[&str], chain: &str) -> Result<Vec<Vec<String>>, Error> {
    let listed = run(programs, &["-S", chain])?;
    Ok(appended(&String::from_utf8_lossy(&listed.stdout)))
}

/// The rules of a listing, which names the chain and its counters, too.
fn appended(listed: &str) -> Vec<Vec<String>> {
    listed
        .lines()
        .map(unquote)
        .filter(|words| words.first().is_some_and(|word| word == "-A"))
        .collect()
}

/// The word behind an option of a rule.
pub(crate) fn option<'a>(rule: &'a [String], option: &str) -> Option<&'a str> {
    let at = rule.iter().position(|word| word == option)?;
    rule.get(at + 1).map(String::as_str)
}

/// Deletes the rules that lead from a chain to another one, and that one. What is not there is
/// deleted.
pub(crate) fn delete_chain(programs: &[&str], from: &str, chain: &str) -> Result<(), Error> {
    for rule in rules(programs, from)? {
        if option(&rule, "-j") == Some(chain) {
            let mut words: Vec<&str> = rule.iter().map(String::as_str).collect();
            words[0] = "-D";
            run(programs, &words)?;
        }
    }
    for option in ["-F", "-X"] {
        run(programs, &[option, chain])?;
    }
    Ok(())
}

/// `iptables-restore --noflush`: makes all of a text's rules in one transaction.
pub(crate) fn restore(program: &str, text: &str) -> Result<(), Error> {
    let program = find(&[program])?;
    let failed = |reason: &dyn std::fmt::Display| {
        Error::new(Code::State, format!("run {program} --noflush: {reason}"))
    };
    let mut child = Command::new(program)
        .arg("--noflush")
        .args(WAIT)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(text.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output().map_err(|error| failed(&error))?;
    match output.status.success() {
        true => written.map_err(|error| failed(&error)),
        false => Err(failed(&String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn run(programs: &[&str], words: &[&str]) -> Result<Output, Error> {
    let program = find(programs)?;
    let mut command = Command::new(program);
    let command = command.args(WAIT).args(["-t", "nat"]).args(words);
    command
        .output()
        .map_err(|error| Error::new(Code::State, format!("run {program} {words:?}: {error}")))
}

fn find<'a>(programs: &[&'a str]) -> Result<&'a str, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_installed =
        |program: &&&str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    programs.iter().find(is_installed).copied().ok_or_else(|| {
        let msg = format!("rules of iptables: none of {programs:?} is installed");
        Error::new(Code::State, msg)
    })
}

/// A line of `iptables -S` in its words: quoted ones may have blanks and escaped quotes in them.
fn unquote(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (vec![], None::<String>, false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.get_or_insert_default().extend(letters.next()),
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// A target of the fuzzer's: what `iptables -S` or `iptables-save` says.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz(bytes: &[u8]) {
    for rule in appended(&String::from_utf8_lossy(bytes)) {
        let _ = option(&rule, "-j");
        // As iptables writes them: in quotes, with a backslash before quotes and backslashes.
        let escaped = |word: &String| word.replace('\\', r"\\").replace('"', r#"\""#);
        let quoted: Vec<_> = rule
            .iter()
            .map(|word| format!("\"{}\"", escaped(word)))
            .collect();
        assert_eq!(
            unquote(&quoted.join(" ")),
            rule,
            "a rule is deleted by the words it is listed in"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_rule_is_read_in_its_words() {
        let rule = unquote(r#"-A X --comment "dnat name: \"cbr0\" id: \"abc\"" -j Y"#);
        assert_eq!(
            rule,
            [
                "-A",
                "X",
                "--comment",
                r#"dnat name: "cbr0" id: "abc""#,
                "-j",
                "Y"
            ]
        );
        assert_eq!(option(&rule, "-j"), Some("Y"));
        assert_eq!(option(&rule, "Y"), None);
        assert_eq!(unquote("  -N   X  "), ["-N", "X"]);
    }
}
