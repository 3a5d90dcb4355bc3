//! Where the programs are that tests run: ours, Go's, Debian's.
//!
//! It only looks; `./dev install` is what installs. What is missing is an error of its own type
//! ([`Missing`]) so that a test can be skipped for it (`skip_unless!`), which fails in CI. Our own
//! programs are never a reason to skip.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Where Debian's containernetworking-plugins puts its plugins: a whole CNI_PATH.
pub const DEBIAN_PLUGIN_DIR: &str = "/usr/lib/cni";

/// A program that is not on this machine, and how it gets there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    what: String,
    remedy: String,
}

impl Missing {
    /// `what` is missing; `remedy` is what to do about it.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is missing: {}", self.what, self.remedy)
    }
}

impl std::error::Error for Missing {}

/// One line of `go-tools.txt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoTool {
    /// The program's name, here and in the cache.
    pub name: &'static str,
    /// The package that `go install` gets.
    pub package: &'static str,
    /// Its version, with the leading `v`.
    pub version: &'static str,
}

/// All Go programs that tests use, in the order of the list.
pub fn go_tools() -> Vec<GoTool> {
    parse_go_tools(include_str!("../go-tools.txt"))
}

fn parse_go_tools(list: &'static str) -> Vec<GoTool> {
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    let fields = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let tool = |fields: Vec<&'static str>| match fields[..] {
        [name, package, version, _cgo] => Some(GoTool {
            name,
            package,
            version,
        }),
        _ => None,
    };
    fields.filter_map(tool).collect()
}

/// The path of a Go program of the list, by its name there.
pub fn go_tool(name: &str) -> Result<PathBuf, Missing> {
    let Some(tool) = go_tools().into_iter().find(|tool| tool.name == name) else {
        return Err(Missing::new(
            name,
            "add it to cni-test-harness/go-tools.txt",
        ));
    };
    let path = go_tool_dir(&cache_dir(), &tool).join(tool.name);
    let what = || format!("{} {} ({})", tool.name, tool.version, path.display());
    if path.is_file() {
        Ok(path)
    } else {
        Err(Missing::new(what(), "run `./dev install`"))
    }
}

/// A CNI_PATH on which exactly these Go plugins are found, each in the version of the list.
pub fn go_plugin_path(names: &[&str]) -> Result<OsString, Missing> {
    let dirs = names
        .iter()
        .map(|name| go_tool(name).map(|path| parent(&path)));
    let dirs = dirs.collect::<Result<Vec<_>, _>>()?;
    std::env::join_paths(dirs)
        .map_err(|error| Missing::new("a usable CNI_PATH", format!("set TWILL_CACHE: {error}")))
}

fn parent(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

/// `<cache>/go/<name>@<version>`: the rule that `./dev` and this file share.
fn go_tool_dir(cache: &Path, tool: &GoTool) -> PathBuf {
    cache
        .join("go")
        .join(format!("{}@{}", tool.name, tool.version))
}

/// `${TWILL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/twill}`: as in `./dev`, empty counts as unset.
pub fn cache_dir() -> PathBuf {
    let set = |key| {
        std::env::var_os(key)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let home = || {
        set("HOME")
            .unwrap_or_else(|| PathBuf::from("/root"))
            .join(".cache")
    };
    let user_cache = || set("XDG_CACHE_HOME").unwrap_or_else(home);
    set("TWILL_CACHE").unwrap_or_else(|| user_cache().join("twill"))
}

/// A plugin of Debian's package containernetworking-plugins.
pub fn debian_plugin(name: &str) -> Result<PathBuf, Missing> {
    let path = Path::new(DEBIAN_PLUGIN_DIR).join(name);
    let remedy = "install Debian's containernetworking-plugins (`./dev install`)";
    if path.is_file() {
        Ok(path)
    } else {
        Err(Missing::new(path.display().to_string(), remedy))
    }
}

/// A program of the distribution, from PATH or the sbin folders that a plain PATH may lack.
pub fn program(name: &str) -> Result<PathBuf, Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut candidates = std::env::split_paths(&path)
        .chain(sbin)
        .map(|dir| dir.join(name));
    candidates
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| Missing::new(format!("the program {name}"), "run `./dev install`"))
}

/// The folder of the programs under test, and the program `name` in it: `twill` or `twilld`.
///
/// `TWILL_BIN_DIR` when it is set (`./dev` sets it), else the newest kind of build that is there:
/// static and optimised before plain.
pub fn built(name: &str) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("TWILL_BIN_DIR").filter(|dir| !dir.is_empty()) {
        let path = PathBuf::from(dir).join(name);
        if !path.is_file() {
            bail!(
                "{} does not exist: TWILL_BIN_DIR names a folder without it",
                path.display()
            );
        }
        return absolute(&path);
    }
    let target = target_dir();
    let triple = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let dirs = [
        target.join(triple).join("release"),
        target.join("release"),
        target.join("debug"),
    ];
    match dirs
        .iter()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
    {
        Some(path) => absolute(&path),
        None => bail!(
            "no {name} below {}: build it with `./dev test`, or `cargo build -p {name}`",
            target.display()
        ),
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .with_context(|| format!("resolve {}", path.display()))
}

fn target_dir() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace.join(dir),
        None => workspace.join("target"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_list_names_a_program_a_package_and_a_version() {
        let list = include_str!("../go-tools.txt");
        let lines = list
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty());
        let tools = go_tools();
        assert_eq!(tools.len(), lines.count());
        for tool in &tools {
            assert!(
                tool.package.contains('/') && tool.version.starts_with('v'),
                "{tool:?}"
            );
        }
        assert!(tools.iter().any(|tool| tool.name == "cnitool"));
    }

    #[test]
    fn the_cache_is_keyed_by_version() {
        let tool = GoTool {
            name: "bridge",
            package: "x/y/bridge",
            version: "v1.9.1",
        };
        let dir = go_tool_dir(Path::new("/cache"), &tool);
        assert_eq!(dir, Path::new("/cache/go/bridge@v1.9.1"));
    }

    #[test]
    fn what_is_missing_says_how_it_gets_there() {
        let error = program("no-such-program").unwrap_err().to_string();
        assert_eq!(
            error,
            "the program no-such-program is missing: run `./dev install`"
        );
        assert!(
            go_tool("no-such-tool")
                .unwrap_err()
                .to_string()
                .contains("go-tools.txt")
        );
    }
}
