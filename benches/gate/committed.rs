//! The committed figures and what they depend on: `benches/instructions.txt`.

use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf, process::Command};

/// What figures depend on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Facts {
    /// The compiler.
    pub(crate) rustc: String,
    /// Whose `memcpy` it is.
    pub(crate) libc: String,
    /// What valgrind's CPU can do: aws-lc chooses its code by that.
    pub(crate) features: String,
}

/// The file.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    pub(crate) facts: Facts,
    pub(crate) figures: BTreeMap<String, f64>,
}

const HEADER: &str = "\
# Instructions per packet of each hot path (benches/dataplane/cases.rs), counted by callgrind.
# `make bench-gate` compares, `make bench-gate ACCEPT=1` writes this file.
#
# seal-* and open-* run the code that aws-lc has for the CPU, and are compared only where `cpu` is the same. valgrind
# shows programs a CPU of its own: AES-NI, CLMUL and AVX2 where the machine has them, never AVX-512, VAES or SHA, so that
# most machines are alike. All others are compared everywhere; another compiler or C library moves them a little.
";

impl Facts {
    /// Of this machine; `features` is what the program sees under valgrind.
    pub(crate) fn here(features: &str) -> Self {
        Self {
            rustc: first_line("rustc", &["--version"]),
            libc: first_line("ldd", &["--version"]),
            features: features.trim().to_owned(),
        }
    }

    fn pairs(&self) -> [(&'static str, &str); 3] {
        [
            ("rustc", &self.rustc),
            ("libc", &self.libc),
            ("cpu", &self.features),
        ]
    }

    /// Prints what is not as it was when the figures were written.
    pub(crate) fn tell_differences(&self, now: &Self) {
        for ((name, was), (_, is)) in self.pairs().into_iter().zip(now.pairs()) {
            if was != is {
                println!("{name} was: {was}\n{name} is:  {is}");
            }
        }
    }
}

/// What the CPU that this program sees can do, of all that changes which code runs.
pub(crate) fn features() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let features = [
            ("aes", is_x86_feature_detected!("aes")),
            ("clmul", is_x86_feature_detected!("pclmulqdq")),
            ("ssse3", is_x86_feature_detected!("ssse3")),
            ("avx", is_x86_feature_detected!("avx")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("vaes", is_x86_feature_detected!("vaes")),
            ("movbe", is_x86_feature_detected!("movbe")),
            ("bmi1", is_x86_feature_detected!("bmi1")),
            ("bmi2", is_x86_feature_detected!("bmi2")),
            ("adx", is_x86_feature_detected!("adx")),
            ("sha", is_x86_feature_detected!("sha")),
        ];
        let has = features.iter().filter(|(_, has)| *has);
        has.fold("x86_64".to_owned(), |all, (name, _)| all + " " + name)
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.to_owned()
}

fn path() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "benches", "instructions.txt"]
        .iter()
        .collect()
}

/// The committed figures.
pub(crate) fn read() -> Result<Committed, String> {
    let path = path();
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut committed = Committed::default();
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        let value = value.trim();
        match name {
            "rustc" => committed.facts.rustc = value.to_owned(),
            "libc" => committed.facts.libc = value.to_owned(),
            "cpu" => committed.facts.features = value.to_owned(),
            _ => {
                let figure = value
                    .parse()
                    .map_err(|_| format!("{}: not a figure: {line}", path.display()))?;
                committed.figures.insert(name.to_owned(), figure);
            }
        }
    }
    Ok(committed)
}

/// Puts today's figures in the place of the committed ones.
pub(crate) fn write(facts: &Facts, figures: &[(&str, f64)]) -> Result<(), String> {
    let mut text = format!("{HEADER}\n");
    for (name, value) in facts.pairs() {
        let _ = writeln!(text, "{name:21} {value}");
    }
    text.push('\n');
    for (name, figure) in figures {
        let _ = writeln!(text, "{name:21} {figure:.1}");
    }
    let path = path();
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = text
        .ok()
        .and_then(|text| text.lines().next().map(str::to_owned));
    line.unwrap_or_else(|| "unknown".to_owned())
}
