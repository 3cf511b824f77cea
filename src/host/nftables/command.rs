//! Runs nft: one text in, one transaction; listings out as JSON.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::host::{
    HostError, SteeringCounters,
    nftables::{COUNTERS, Elements, MARKER, elements},
};

/// Where administrators' programs live whatever PATH says; looked at before PATH, because the daemon is root.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];

/// The nft program, `None` when it is not installed.
pub(in crate::host) fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = SYSTEM_FOLDERS.iter().map(PathBuf::from);
    folders
        .chain(std::env::split_paths(&path))
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join("nft"))
        .find(|program| is_file(program))
}

/// Hands `text` to `nft -f -`: all of it or nothing takes effect.
pub(in crate::host) fn apply(text: &str) -> Result<(), HostError> {
    run("apply the ruleset", &["-f", "-"], text).map(drop)
}

/// The table's chains: `None` when there is no such table, `TableTaken` when somebody else made it.
pub(in crate::host) fn chains(table: &str) -> Result<Option<BTreeSet<String>>, HostError> {
    // "list table" reads the elements of all sets too, even when told not to show them: the packet path's sets can
    // hold hundreds of thousands, and this is asked every few seconds
    let listing = list("list the chains", &["-j", "list", "chains"])?;
    let chains: BTreeSet<String> = objects(&listing, "chain")
        .filter(|chain| {
            text(chain, "family") == Some("inet") && text(chain, "table") == Some(table)
        })
        .filter_map(|chain| text(chain, "name").map(str::to_owned))
        .collect();
    if chains.contains(MARKER) {
        return Ok(Some(chains));
    }
    let tables = list("list the tables", &["-j", "list", "tables"])?;
    let exists = objects(&tables, "table").any(|object| {
        text(object, "family") == Some("inet") && text(object, "name") == Some(table)
    });
    match exists {
        false => Ok(None),
        true => Err(HostError::TableTaken {
            table: table.to_owned(),
        }),
    }
}

/// The names of the table's sets, and the elements of those that are filled from policy. One process for all sets:
/// starting one costs more than reading ten thousand elements.
pub(in crate::host) fn sets(table: &str) -> Result<(BTreeSet<String>, Elements), HostError> {
    let operation = "list the sets";
    let output = run(
        operation,
        &["-j", "list", "sets", "table", "inet", table],
        "",
    )?;
    read_sets(&output).map_err(|source| HostError::NftListing { operation, source })
}

/// nft's listing of sets. Elements of the packet path's sets, of which there may be a hundred thousand, are not looked at.
#[derive(Deserialize)]
struct Listing<'a> {
    #[serde(borrow)]
    nftables: Vec<Listed<'a>>,
}

#[derive(Deserialize)]
struct Listed<'a> {
    #[serde(borrow)]
    set: Option<ListedSet<'a>>,
}

#[derive(Deserialize)]
struct ListedSet<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    elem: Option<&'a RawValue>,
}

fn read_sets(output: &[u8]) -> serde_json::Result<(BTreeSet<String>, Elements)> {
    let listing: Listing<'_> = serde_json::from_slice(output)?;
    let (mut names, mut elements) = (BTreeSet::new(), Elements::default());
    for set in listing.nftables.into_iter().filter_map(|item| item.set) {
        if elements::is_from_policy(&set.name) {
            let listed = set
                .elem
                .map(|raw| serde_json::from_str::<Vec<Value>>(raw.get()));
            elements.read(&set.name, &listed.transpose()?.unwrap_or_default());
        }
        names.insert(set.name.into_owned());
    }
    Ok((names, elements))
}

/// Deletes the table.
pub(in crate::host) fn delete(table: &str) -> Result<(), HostError> {
    run("delete the table", &["delete", "table", "inet", table], "").map(drop)
}

/// The packet counters of the table.
pub(in crate::host) fn counters(table: &str) -> Result<SteeringCounters, HostError> {
    let listing = list(
        "read the counters",
        &["-j", "list", "counters", "table", "inet", table],
    )?;
    let packets = |name: &str| {
        objects(&listing, "counter")
            .find(|object| text(object, "name") == Some(name))
            .and_then(|object| object.get("packets")?.as_u64())
            .unwrap_or(0)
    };
    let [cross_plain, cross_tunnel, strict, guard] = COUNTERS.map(packets);
    Ok(SteeringCounters {
        cross_plain,
        cross_tunnel,
        strict,
        guard,
    })
}

/// Every rule of every table, as nft's JSON objects.
pub(in crate::host) fn rules() -> Result<Vec<Value>, HostError> {
    let listing = list("list the ruleset", &["-j", "-t", "list", "ruleset"])?;
    Ok(objects(&listing, "rule").cloned().collect())
}

fn list(operation: &'static str, arguments: &[&str]) -> Result<Value, HostError> {
    let output = run(operation, arguments, "")?;
    serde_json::from_slice(&output).map_err(|source| HostError::NftListing { operation, source })
}

fn run(operation: &'static str, arguments: &[&str], input: &str) -> Result<Vec<u8>, HostError> {
    let program = find().ok_or(HostError::NftMissing)?;
    let failed = |source: io::Error| HostError::NftStart { operation, source };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // nft reads all of its input before it says anything, so this cannot block on its output; when it ends before
    // it has read everything, its own words explain more than the broken pipe
    let written = child
        .stdin
        .take()
        .map(|mut pipe| pipe.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        written.transpose().map_err(failed)?;
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if message.contains("Operation not permitted") {
        return Err(HostError::Permission { operation });
    }
    Err(HostError::Nft { operation, message })
}

fn objects<'a>(listing: &'a Value, kind: &'static str) -> impl Iterator<Item = &'a Value> {
    let all = listing.get("nftables").and_then(Value::as_array);
    all.into_iter()
        .flatten()
        .filter_map(move |object| object.get(kind))
}

fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_those_of_the_packet_path_only_named() {
        let listing = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"set": {"family": "inet", "name": "strict_all4", "table": "identun", "elem": ["10.0.0.1", "10.0.0.2"]}},
            {"set": {"family": "inet", "name": "tf4", "elem": [{"elem": {"val": "not even looked at"}}]}},
            {"set": {"family": "inet", "name": "strict_all6"}}]}"#;
        let (names, elements) = read_sets(listing.as_bytes()).unwrap();
        let expected = ["strict_all4", "strict_all6", "tf4"];
        assert!(names.iter().eq(&expected));
        let mut text = String::new();
        elements.add_all("identun", &mut text);
        assert_eq!(
            text,
            "add element inet identun strict_all4 { 10.0.0.1, 10.0.0.2 }\n"
        );
        assert!(read_sets(b"{}").is_err());
        assert!(read_sets(br#"{"nftables": [{"set": {"name": 5}}]}"#).is_err());
    }
}
