//! The house rules that a compiler does not know: imports go down, floor 0 does no IO and never asks the time, and
//! what dependencies teach to avoid is named nowhere. Plain reading of `src/`, strict on purpose.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Rooms from the ground up. A room may name itself and every room of a lower line; on one line nobody knows a neighbour.
const FLOORS: &[&[&str]] = &[
    &["spiffe"],
    &["wire"],
    &["identity", "registry"],
    &["policy"],
    &["engine", "tunnel"],
    &["shard"],
    &["device", "host", "metrics", "store"],
    &["io"],
    &["daemon"],
    &["cli"],
];
/// The first line of [`FLOORS`] that may do IO.
const FIRST_WITH_IO: usize = 6;
/// What floor 0 never names, and why.
const NOT_ON_FLOOR_0: &[(&str, &str)] = &[
    ("Instant::now", "time is an argument"),
    ("SystemTime::now", "time is an argument"),
    ("TcpListener", "no sockets"),
    ("TcpStream", "no sockets"),
    ("UdpSocket", "no sockets"),
    ("axum::", "no control plane"),
    ("libc::", "no system calls"),
    ("mio::", "no poller"),
    ("quinn::", "the data plane stands on quinn-proto"),
    ("quinn_udp", "no sockets"),
    (
        "rand::",
        "randomness comes from a seed or the crypto provider",
    ),
    ("rustix::", "no system calls"),
    ("socket2", "no sockets"),
    ("static mut", "no global state"),
    ("std::env", "no environment"),
    ("std::fs", "no files"),
    ("std::io", "no IO"),
    ("std::os", "no system calls"),
    ("std::process", "no processes"),
    ("std::thread", "no threads"),
    ("thread_local", "no global state"),
    ("tokio", "no runtime"),
    ("tun::", "no device"),
];
/// What no file names, and why (found the hard way: randomness or clocks of their own, one pooled root store).
const NOWHERE: &[(&str, &str)] = &[
    (
        "Config::builder(",
        "use builder_with_details: provider and clock are ours",
    ),
    (
        "ConfigBuilder::new",
        "use builder_with_details: provider and clock are ours",
    ),
    (
        "EndpointConfig::default",
        "its reset key is random: resets would fail after a restart",
    ),
    (
        "HashedConnectionIdGenerator",
        "connection IDs come from our own generator",
    ),
    (
        "RandomConnectionIdGenerator",
        "connection IDs come from our own generator",
    ),
    ("ServerConfig::with_crypto", "its token key is random"),
    ("StdSystemTime", "time is an argument"),
    ("Ticketer", "no resumption"),
    ("enable_early_data = true", "no 0-RTT"),
    ("unbounded", "every queue is bounded"),
    (
        "verify_server_cert_signed_by_trust_anchor",
        "the verifier is our own",
    ),
];

struct Source {
    name: String,
    room: String,
    /// Without comments, strings and the tests at the end.
    code: String,
    /// As written, without the tests at the end.
    lines: Vec<String>,
}

#[test]
fn imports_go_down_only() {
    let level = levels();
    let mut broken = Vec::new();
    for source in sources()
        .iter()
        .filter(|source| source.room != "lib" && source.room != "main")
    {
        let own = *level
            .get(source.room.as_str())
            .unwrap_or_else(|| panic!("{}: a room without a floor", source.name));
        for room in rooms_named(&source.code) {
            let Some(&other) = level.get(room.as_str()) else {
                broken.push(format!("{}: crate::{room} is no room", source.name));
                continue;
            };
            if room != source.room && other >= own {
                broken.push(format!(
                    "{}: {} may not know {room}",
                    source.name, source.room
                ));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn identity_knows_neither_registry_nor_policy() {
    let identity = sources()
        .into_iter()
        .filter(|source| source.room == "identity");
    for source in identity {
        let known = rooms_named(&source.code);
        assert!(
            !known.contains("registry") && !known.contains("policy"),
            "{}",
            source.name
        );
    }
}

#[test]
fn floor_0_does_no_io_and_never_asks_the_time() {
    let level = levels();
    let floor_0 = |source: &&Source| {
        level
            .get(source.room.as_str())
            .is_some_and(|&level| level < FIRST_WITH_IO)
    };
    let broken: Vec<_> = sources()
        .iter()
        .filter(floor_0)
        .flat_map(|source| named(source, NOT_ON_FLOOR_0))
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn what_dependencies_teach_to_avoid_is_named_nowhere() {
    let broken: Vec<_> = sources()
        .iter()
        .flat_map(|source| named(source, NOWHERE))
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_quic_dial_seeds_its_first_connection_id() {
    for source in sources()
        .iter()
        .filter(|source| source.code.contains("quinn_proto::ClientConfig::new"))
    {
        assert!(
            source.code.contains("initial_dst_cid_provider"),
            "{}: the default is random",
            source.name
        );
    }
}

#[test]
fn unsafe_stays_where_the_system_is_called_and_says_why_it_is_sound() {
    let mut broken = Vec::new();
    for source in sources() {
        for (index, line) in source.lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.contains("unsafe {")
                && !code.contains("unsafe fn")
                && !code.contains("unsafe impl")
            {
                continue;
            }
            let near = &source.lines[index.saturating_sub(6)..=index];
            if !["device", "host", "io"].contains(&source.room.as_str()) {
                broken.push(format!(
                    "{}:{}: unsafe outside device, io and host",
                    source.name,
                    index + 1
                ));
            } else if !near.iter().any(|line| line.contains("SAFETY:")) {
                broken.push(format!(
                    "{}:{}: unsafe without a SAFETY line",
                    source.name,
                    index + 1
                ));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn files_fit_in_the_head() {
    let long: Vec<_> = sources()
        .iter()
        .filter(|source| source.lines.len() > 500)
        .map(|source| {
            format!(
                "{}: {} lines without its tests",
                source.name,
                source.lines.len()
            )
        })
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
    let unnamed: Vec<_> = sources()
        .into_iter()
        .filter(|source| !source.lines[0].starts_with("//!"))
        .map(|source| source.name)
        .collect();
    assert!(unnamed.is_empty(), "no line of purpose: {unnamed:?}");
}

fn levels() -> BTreeMap<&'static str, usize> {
    FLOORS
        .iter()
        .enumerate()
        .flat_map(|(level, rooms)| rooms.iter().map(move |room| (*room, level)))
        .collect()
}

fn named(source: &Source, forbidden: &[(&str, &str)]) -> Vec<String> {
    let found = |word: &str| {
        source.code.match_indices(word).any(|(at, _)| {
            let before = source.code[..at].chars().next_back();
            !word.starts_with(char::is_alphanumeric)
                || !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
        })
    };
    forbidden
        .iter()
        .filter(|(word, _)| found(word))
        .map(|(word, why)| format!("{}: {word}: {why}", source.name))
        .collect()
}

/// The rooms that stand after `crate::`, inside braces too.
fn rooms_named(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            rooms.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (index, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && c.is_alphabetic() => {
                    rooms.insert(word(&list[index..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    rooms
}

fn word(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 20, "the sources are read");
    files.iter().map(|path| read(&root, path)).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            assert!(
                !path.ends_with("mod.rs"),
                "{}: foo.rs and foo/, never mod.rs",
                path.display()
            );
            files.push(path);
        }
    }
    files.sort();
}

fn read(root: &Path, path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap();
    let inside = path.strip_prefix(root).unwrap();
    let name = inside.display().to_string();
    let room = inside
        .iter()
        .next()
        .unwrap()
        .to_str()
        .unwrap()
        .trim_end_matches(".rs")
        .to_owned();
    // A file of tests is all tests.
    let tests = if name.ends_with("tests.rs") || name.contains("tests/") {
        Some(0)
    } else {
        text.find("\n#[cfg(test)]\nmod tests")
    };
    let text = if tests == Some(0) {
        "//! tests"
    } else {
        &text[..tests.unwrap_or(text.len())]
    };
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let code = lines
        .iter()
        .map(|line| without_text(line))
        .collect::<Vec<_>>()
        .join("\n");
    Source {
        name,
        room,
        code,
        lines,
    }
}

/// A line without its comment and the contents of its strings.
fn without_text(line: &str) -> String {
    let mut code = String::new();
    let mut in_string = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_string => {
                chars.next();
            }
            '"' => in_string = !in_string,
            '\'' if !in_string && chars.peek() == Some(&'"') => {
                chars.next();
            }
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            c if !in_string => code.push(c),
            _ => {}
        }
    }
    code
}

#[test]
fn the_reader_finds_what_it_must() {
    assert_eq!(
        rooms_named(
            "use crate::{\n wire::{flow::X, mss},\n spiffe::SpiffeId,\n}; crate::io::run()"
        ),
        ["io", "spiffe", "wire"].map(String::from).into()
    );
    assert_eq!(
        without_text(r#"let a = "std::fs // no"; // std::fs"#).trim_end(),
        "let a = ;"
    );
}
