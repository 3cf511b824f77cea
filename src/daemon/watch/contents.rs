//! Which files a configuration consists of, where they lie, and whether they differ from those that were tried last.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    path::{Component, Path, PathBuf, absolute},
};

use aws_lc_rs::digest::{SHA256, digest};

use crate::{
    daemon::{
        configuration::{chained, load_settings},
        settings::Settings,
    },
    store::{self, FileError},
};

/// Symbolic links on the way to one file; the kernel follows no more either.
const MAX_LINKS: usize = 40;

/// The files that a configuration names.
pub struct Wanted {
    settings: PathBuf,
    policies: Vec<PathBuf>,
    public: Vec<PathBuf>,
    keys: Vec<PathBuf>,
    is_watched: bool,
}

/// What the files of a configuration hold, as far as they can be read: equal values need no reload.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Contents(BTreeMap<PathBuf, Content>);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Content {
    Bytes([u8; 32]),
    /// Why it cannot be read: that may change too.
    Unreadable(String),
}

/// What of a folder's entries leads to a file of the configuration.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    exact: BTreeSet<OsString>,
    /// It is a folder of policies: every policy file in it counts, also one that is not there yet.
    policies: bool,
}

impl Names {
    /// Tells whether an entry of this name matters.
    pub fn contain(&self, name: &std::ffi::OsStr) -> bool {
        self.exact.contains(name) || self.policies && store::is_policy_name(name)
    }
}

impl Wanted {
    /// What `daemon.yaml` at `path` names; where it cannot be read, what the `running` settings name.
    pub fn new(path: &Path, running: &Settings) -> Self {
        let on_disk = load_settings(path).ok();
        let settings = on_disk.as_ref().unwrap_or(running);
        let base = path.parent().unwrap_or_else(|| Path::new(""));
        let identities = settings.identities.iter();
        let certificates = identities.clone().map(|files| &files.certificate);
        let bundles = settings.trust_bundles.values();
        Self {
            settings: path.into(),
            policies: settings
                .policies
                .iter()
                .map(|entry| base.join(entry))
                .collect(),
            public: certificates
                .chain(bundles)
                .map(|file| base.join(file))
                .collect(),
            keys: identities.map(|files| base.join(&files.key)).collect(),
            is_watched: settings.watch,
        }
    }

    /// Whether the settings want these files to be watched.
    pub const fn is_watched(&self) -> bool {
        self.is_watched
    }

    /// The folders whose entries lead to the files, every one on the way, so that a folder or link that is swapped is
    /// noticed as well as a file. Of what does not exist, the last folder that does.
    pub fn places(&self) -> BTreeMap<PathBuf, Names> {
        let mut places = BTreeMap::new();
        let single = [&self.settings].into_iter();
        for file in single.chain(&self.public).chain(&self.keys) {
            lead(file, MAX_LINKS, &mut places);
        }
        for entry in &self.policies {
            let Some(end) = lead(entry, MAX_LINKS, &mut places).filter(|end| end.is_dir()) else {
                continue;
            };
            places.entry(end).or_default().policies = true;
            // the files of a mounted ConfigMap are links
            for file in policy_files(entry).unwrap_or_default() {
                lead(&file, MAX_LINKS, &mut places);
            }
        }
        places
    }
}

impl Contents {
    /// Reads all of them.
    pub fn read(wanted: &Wanted) -> Self {
        let mut contents = Self::default();
        let text = |file: &Path| store::read_config(file).map(|file| hash(file.text.as_bytes()));
        contents.take(&wanted.settings, text);
        for entry in &wanted.policies {
            match policy_files(entry) {
                Ok(files) => files.iter().for_each(|file| contents.take(file, text)),
                Err(error) => contents.take(entry, |_| Err(error)),
            }
        }
        for file in &wanted.public {
            contents.take(file, |file| Ok(hash(store::read_public(file)?.as_bytes())));
        }
        for file in &wanted.keys {
            contents.take(file, |file| Ok(hash(store::read_key(file)?.as_bytes())));
        }
        contents
    }

    fn take(&mut self, file: &Path, read: impl FnOnce(&Path) -> Result<[u8; 32], FileError>) {
        let content = match read(file) {
            Ok(hash) => Content::Bytes(hash),
            Err(error) => Content::Unreadable(chained(error)),
        };
        self.0.insert(file.into(), content);
    }
}

fn policy_files(entry: &Path) -> Result<Vec<PathBuf>, FileError> {
    store::policy_files(Path::new(""), &[entry.into()])
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    let digest = digest(&SHA256, bytes);
    digest
        .as_ref()
        .first_chunk()
        .copied()
        .unwrap_or_else(|| unreachable!("SHA-256 has 32 bytes"))
}

/// Notes every folder entry on the way to `path`, links followed, and returns where it ends, if it is there.
fn lead(path: &Path, links: usize, places: &mut BTreeMap<PathBuf, Names>) -> Option<PathBuf> {
    let path = absolute(path).ok()?;
    let mut at = PathBuf::from("/");
    let mut components = path.components();
    while let Some(component) = components.next() {
        match component {
            Component::ParentDir => drop(at.pop()),
            Component::Normal(name) => {
                let names = places.entry(at.clone()).or_default();
                names.exact.insert(name.into());
                let next = at.join(name);
                if fs::symlink_metadata(&next).ok()?.is_symlink() {
                    let target = at.join(fs::read_link(&next).ok()?);
                    let rest = target.join(components.as_path());
                    return lead(&rest, links.checked_sub(1)?, places);
                }
                at = next;
            }
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn wanted(path: &Path) -> Wanted {
        Wanted::new(path, &Settings::default())
    }

    #[test]
    fn every_folder_and_link_on_the_way_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let mount = root.join("policies.d");
        fs::create_dir_all(mount.join("..first")).unwrap();
        fs::write(mount.join("..first/a.yaml"), "").unwrap();
        symlink("..first", mount.join("..data")).unwrap();
        symlink("..data/a.yaml", mount.join("a.yaml")).unwrap();
        let path = root.join("daemon.yaml");
        fs::write(&path, "policies: [policies.d, missing/b.yaml]\n").unwrap();
        let places = wanted(&path).places();
        let contain =
            |folder: &Path, name: &str| places.get(folder).unwrap().contain(name.as_ref());
        for name in ["a.yaml", "..data", "..first", "not-yet.yaml"] {
            assert!(contain(&mount, name), "{name}");
        }
        assert!(contain(&mount.join("..first"), "a.yaml"));
        assert!(!contain(&mount.join("..first"), "b.yaml"));
        for name in ["daemon.yaml", "policies.d", "missing"] {
            assert!(contain(&root, name), "{name}");
        }
        for name in [".hidden.yaml", "notes.txt", "..data_tmp"] {
            assert!(!contain(&mount, name), "{name}");
        }
    }

    #[test]
    fn links_that_lead_in_a_circle_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.yaml");
        symlink("daemon.yaml", &path).unwrap();
        assert!(!wanted(&path).places().is_empty());
    }

    #[test]
    fn contents_differ_when_a_file_comes_goes_or_says_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.yaml");
        let folder = dir.path().join("policies.d");
        fs::create_dir(&folder).unwrap();
        fs::write(&path, "policies: [policies.d]\nwatch: true\n").unwrap();
        let read = || Contents::read(&wanted(&path));
        let mut seen = vec![read()];
        let mut differs = |what: &str| {
            let contents = read();
            assert!(!seen.contains(&contents), "{what}");
            assert_eq!(contents, read(), "{what}: nothing changes by looking");
            seen.push(contents);
        };
        fs::write(folder.join("a.yaml"), "kind: A").unwrap();
        differs("a new file");
        fs::write(folder.join("a.yaml"), "kind: B").unwrap();
        differs("a changed file");
        fs::rename(folder.join("a.yaml"), folder.join("b.yaml")).unwrap();
        differs("another name");
        fs::write(&path, "policies: [gone.d]\n").unwrap();
        differs("other settings");
        fs::write(&path, "policies: nonsense:\n").unwrap();
        differs("broken settings");
        let again = read();
        fs::write(folder.join("unused.txt"), "").unwrap();
        assert_eq!(read(), again, "a file that nobody named");
    }
}
