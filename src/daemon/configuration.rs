//! All files of one configuration, read, checked and compiled together: all or nothing (policy.md 0.4).

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    daemon::{
        render::{has_errors, render, summary},
        settings::Settings,
        user,
        watch::Contents,
    },
    host,
    identity::{Identities, Identity, TrustBundles, describe::describe},
    policy::{
        Compiled, Diagnostic, HostFacts, MeshSettings, Resources, Severity, SourceFile,
        load::{load, parse_settings},
    },
    spiffe::SpiffeId,
    store,
};

/// A configuration without errors.
pub struct Configuration {
    /// What `daemon.yaml` says.
    pub settings: Settings,
    /// The keys and bundles that it names.
    pub identities: Arc<Identities>,
    /// The file of each identity's certificate.
    pub certificates: BTreeMap<SpiffeId, PathBuf>,
    /// Policy and registry.
    pub compiled: Arc<Compiled>,
    /// At least one policy resource is there.
    pub has_policy: bool,
    /// `daemon.yaml`, then the policy files.
    pub files: Vec<Arc<SourceFile>>,
    /// Warnings and infos.
    pub diagnostics: Vec<Diagnostic>,
    /// Settings whose values in the file wait for a restart.
    pub kept: Vec<&'static str>,
    /// What was on disk before this was read, where whoever read it wants to know of later changes.
    pub contents: Contents,
}

/// A set of files with at least one error.
#[derive(Debug)]
pub struct Rejected {
    /// What is wrong.
    pub diagnostics: Vec<Diagnostic>,
    /// The files that could be read.
    pub files: Vec<Arc<SourceFile>>,
}

impl Rejected {
    /// Errors and warnings with the lines they are about.
    pub fn render(&self) -> String {
        render(&self.diagnostics, &self.files, Severity::Warning)
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid configuration: {}", summary(&self.diagnostics))
    }
}

impl Error for Rejected {}

/// What a new configuration takes over from the one in force.
#[derive(Clone, Copy, Debug)]
pub struct Running<'a> {
    /// Its settings.
    pub settings: &'a Settings,
    /// This host's addresses, as [`Addresses`](crate::daemon::addresses::Addresses) counts them.
    pub addresses: &'a BTreeSet<IpAddr>,
}

impl Configuration {
    /// Reads `daemon.yaml` at `path` and everything it names. `now` is Unix time in seconds: certificates that do not
    /// hold at that moment are errors. What cannot change while a daemon runs is taken from `running`, and so are addresses
    /// that this host has lost only lately.
    ///
    /// # Errors
    /// [`Rejected`] with everything that is wrong, not only the first thing.
    pub fn load(
        path: &Path,
        running: Option<Running<'_>>,
        generation: u64,
        now: u64,
    ) -> Result<Self, Rejected> {
        let mut loader = Loader::default();
        let mut settings = loader.settings(path)?;
        let kept = running
            .map(|running| settings.keep_fixed(running.settings))
            .unwrap_or_default();
        let base = path.parent().unwrap_or_else(|| Path::new(""));
        loader.policies(base, &settings.policies);
        let mesh = settings.mesh();
        let resources = loader.resources(&mesh);
        let (identities, certificates) = loader.identities(base, &settings, now);
        let mut facts = loader.host_facts(&settings, &identities);
        if settings.host_addresses.is_none()
            && let Some(running) = running
        {
            facts.underlay.extend(running.addresses);
        }
        let Some(resources) = resources.filter(|_| !has_errors(&loader.diagnostics)) else {
            return Err(loader.rejected());
        };
        let has_policy = resources.has_policy();
        let compiled = loader.compile(&resources, &mesh, facts, generation)?;
        let Loader {
            diagnostics, files, ..
        } = loader;
        let identities = Arc::new(Identities {
            generation,
            ..identities
        });
        Ok(Self {
            settings,
            identities,
            certificates,
            compiled: Arc::new(compiled),
            has_policy,
            files,
            diagnostics,
            kept,
            contents: Contents::default(),
        })
    }

    /// Checks policy files by themselves, with default settings and no host; `-` is stdin.
    ///
    /// # Errors
    /// [`Rejected`] when one of them has an error; else warnings and infos with the files.
    pub fn check_policies(
        paths: &[PathBuf],
    ) -> Result<(Vec<Diagnostic>, Vec<Arc<SourceFile>>), Rejected> {
        let mut loader = Loader::default();
        let is_stdin = |path: &PathBuf| path.as_os_str() == "-";
        let files: Vec<_> = paths
            .iter()
            .filter(|path| !is_stdin(path))
            .cloned()
            .collect();
        loader.policies(Path::new(""), &files);
        if paths.iter().any(is_stdin) {
            loader.take(store::read_stdin());
        }
        let mesh = Settings::default().mesh();
        let resources = loader.resources(&mesh);
        let Some(resources) = resources.filter(|_| !has_errors(&loader.diagnostics)) else {
            return Err(loader.rejected());
        };
        loader.compile(&resources, &mesh, HostFacts::default(), 1)?;
        Ok((loader.diagnostics, loader.files))
    }
}

/// Reads the settings alone; for commands that need names and numbers, not policy.
///
/// # Errors
/// [`Rejected`] when the file cannot be read or is wrong.
pub fn load_settings(path: &Path) -> Result<Settings, Rejected> {
    Loader::default().settings(path)
}

#[derive(Default)]
struct Loader {
    diagnostics: Vec<Diagnostic>,
    files: Vec<Arc<SourceFile>>,
    /// How many of the files, from the first, are settings and not policy.
    settings_files: usize,
}

impl Loader {
    fn settings(&mut self, path: &Path) -> Result<Settings, Rejected> {
        let Some(file) = self.read(path) else {
            return Err(self.rejected());
        };
        self.settings_files = self.files.len();
        parse_settings(&file).map_err(|diagnostic| {
            self.diagnostics.push(diagnostic);
            self.rejected()
        })
    }

    fn policies(&mut self, base: &Path, entries: &[PathBuf]) {
        match store::policy_files(base, entries) {
            Ok(paths) => paths.iter().for_each(|path| drop(self.read(path))),
            Err(error) => self.file_problem(error),
        }
    }

    fn read(&mut self, path: &Path) -> Option<Arc<SourceFile>> {
        self.take(store::read_config(path))
    }

    fn take(&mut self, file: Result<Arc<SourceFile>, store::FileError>) -> Option<Arc<SourceFile>> {
        match file {
            Ok(file) => {
                self.files.push(Arc::clone(&file));
                Some(file)
            }
            Err(error) => {
                self.file_problem(error);
                None
            }
        }
    }

    fn resources(&mut self, mesh: &MeshSettings) -> Option<Resources> {
        let policies: Vec<_> = self
            .files
            .iter()
            .skip(self.settings_files)
            .map(Arc::clone)
            .collect();
        let (resources, mut diagnostics) = load(&policies, mesh);
        self.diagnostics.append(&mut diagnostics);
        resources
    }

    fn identities(
        &mut self,
        base: &Path,
        settings: &Settings,
        now: u64,
    ) -> (Identities, BTreeMap<SpiffeId, PathBuf>) {
        let mut identities = Identities {
            bundles: self.bundles(base, settings, now),
            ..Identities::default()
        };
        let mut certificates = BTreeMap::new();
        // one that this host does not know is for the daemon's start to tell
        let user = user::wanted(settings).ok().flatten().map(|ids| ids.uid);
        for files in &settings.identities {
            let certificate = base.join(&files.certificate);
            let key = base.join(&files.key);
            let Some(identity) = self.identity(&certificate, &key, user, now) else {
                continue;
            };
            let id = identity.svid.id.clone();
            if !settings.trust_bundles.contains_key(&id.trust_domain()) {
                self.problem(
                    "IDT0607",
                    format!(
                        "no trust bundle for `{}`, the trust domain of `{id}`",
                        id.trust_domain()
                    ),
                    "name its CA certificates under `trust_bundles`",
                );
            }
            if identities.by_id(&id).is_some() {
                let message = format!(
                    "{} names `{id}`, which another identity has already",
                    certificate.display()
                );
                self.problem("IDT0606", message, "name each identity once");
            }
            identities.insert(identity);
            certificates.insert(id, certificate);
        }
        (identities, certificates)
    }

    fn bundles(&mut self, base: &Path, settings: &Settings, now: u64) -> TrustBundles {
        let mut bundles = TrustBundles::default();
        for (domain, path) in &settings.trust_bundles {
            let path = base.join(path);
            let text = store::read_public(&path).map_err(|error| self.file_problem(error));
            let Ok(text) = text else { continue };
            match bundles.add_pem(domain.clone(), &text) {
                Ok(()) => self.judge_bundle(&path, &text, now),
                Err(error) => {
                    let message = format!("{}: {}", path.display(), chained(error));
                    self.problem(
                        "IDT0603",
                        message,
                        "a bundle is a PEM file of CA certificates",
                    );
                }
            }
        }
        bundles
    }

    fn judge_bundle(&mut self, path: &Path, text: &str, now: u64) {
        let roots = describe(text).unwrap_or_default();
        let dead = roots
            .iter()
            .filter(|root| !(root.not_before..=root.not_after).contains(&now))
            .count();
        if dead == roots.len() {
            let message = format!("no certificate of {} is valid at present", path.display());
            self.problem("IDT0605", message, "replace the bundle by a current one");
        } else if dead > 0 {
            let message = format!(
                "{dead} of the certificates of {} are not valid at present",
                path.display()
            );
            self.push(
                Severity::Warning,
                "IDT0605",
                message,
                "remove them when the change of roots is over",
            );
        }
    }

    fn identity(
        &mut self,
        certificate: &Path,
        key: &Path,
        user: Option<u32>,
        now: u64,
    ) -> Option<Identity> {
        let chain = store::read_public(certificate)
            .map_err(|error| self.file_problem(error))
            .ok();
        let secret = store::read_key_of(key, user)
            .map_err(|error| self.file_problem(error))
            .ok();
        let identity = match Identity::from_pem(&chain?, &secret?) {
            Ok(identity) => identity,
            Err(error) => {
                let message = format!(
                    "{} with {}: {}",
                    certificate.display(),
                    key.display(),
                    chained(error)
                );
                self.problem(
                    "IDT0604",
                    message,
                    "`identun ca show CERTIFICATE` tells what is in it",
                );
                return None;
            }
        };
        let svid = &identity.svid;
        if !svid.is_valid_at(now) {
            let word = if now > svid.not_after {
                "expired"
            } else {
                "not valid yet"
            };
            let (from, to) = (timestamp(svid.not_before), timestamp(svid.not_after));
            let message = format!(
                "{} is {word}: valid from {from} to {to}",
                certificate.display()
            );
            self.problem(
                "IDT0605",
                message,
                "issue a certificate (`identun ca issue`), or correct this host's clock",
            );
        }
        Some(identity)
    }

    fn host_facts(&mut self, settings: &Settings, identities: &Identities) -> HostFacts {
        let found = settings
            .host_addresses
            .clone()
            .map_or_else(|| host::addresses(settings.tun.name.as_str()), Ok);
        let underlay = found.unwrap_or_else(|error| {
            let message = format!("cannot read the addresses of this host: {}", chained(error));
            self.problem("IDT0608", message, "set `host_addresses`");
            BTreeSet::new()
        });
        HostFacts {
            underlay,
            port: settings.listen.port.get(),
            identities: identities.own.keys().cloned().collect(),
            forwards: !settings.workload_interfaces.is_empty(),
            exempt: settings
                .exempt
                .iter()
                .map(|exempt| (exempt.protocol, exempt.port))
                .collect(),
        }
    }

    fn compile(
        &mut self,
        resources: &Resources,
        mesh: &MeshSettings,
        facts: HostFacts,
        generation: u64,
    ) -> Result<Compiled, Rejected> {
        let (compiled, mut diagnostics) = Compiled::new(resources, mesh, facts, generation);
        self.diagnostics.append(&mut diagnostics);
        compiled
            .filter(|_| !has_errors(&self.diagnostics))
            .ok_or_else(|| self.rejected())
    }

    fn rejected(&mut self) -> Rejected {
        Rejected {
            diagnostics: std::mem::take(&mut self.diagnostics),
            files: std::mem::take(&mut self.files),
        }
    }

    fn file_problem(&mut self, error: store::FileError) {
        let (code, help) = match &error {
            store::FileError::Io { .. } => (
                "IDT0601",
                "check the path and the permissions of its folders",
            ),
            store::FileError::TooBig { .. } => ("IDT0601", "split the file"),
            store::FileError::NotText { .. } => ("IDT0601", "save it as UTF-8"),
            store::FileError::Symlink { .. }
            | store::FileError::NotRegular { .. }
            | store::FileError::Mode { .. }
            | store::FileError::Owner { .. } => {
                ("IDT0602", "change owner, mode or kind of the file")
            }
        };
        self.problem(code, chained(error), help);
    }

    fn problem(&mut self, code: &'static str, message: String, help: &str) {
        self.push(Severity::Error, code, message, help);
    }

    fn push(&mut self, severity: Severity, code: &'static str, message: String, help: &str) {
        let help = Some(help.into());
        self.diagnostics.push(Diagnostic {
            severity,
            code,
            message,
            place: None,
            length: 0,
            label: None,
            help,
        });
    }
}

/// Unix seconds as RFC 3339 text; the number itself where no calendar has it.
pub fn timestamp(unix_seconds: u64) -> String {
    let known = i64::try_from(unix_seconds)
        .ok()
        .and_then(|s| time::OffsetDateTime::from_unix_timestamp(s).ok());
    known
        .and_then(|moment| {
            moment
                .format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_else(|| unix_seconds.to_string())
}

/// An error with all its causes in one line.
pub fn chained(error: impl Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}
