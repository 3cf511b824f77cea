//! Notices that files of the configuration have changed: inotify on the folders that lead to them, and a quiet time, so
//! that what changes together is read together. Events are hints: only other [`Contents`] are a reason to reload.

mod contents;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep_until},
};

use contents::Names;

pub use contents::{Contents, Wanted};

/// Changes have settled when no other comes for so long.
const QUIET: Duration = Duration::from_millis(200);
/// Changes that go on and on are taken up after so long.
const AT_MOST: Duration = Duration::from_secs(2);
/// Room for some dozens of events.
const BUFFER: usize = 4096;

/// Folders under watch.
pub struct Watch {
    inotify: AsyncFd<OwnedFd>,
    folders: BTreeMap<i32, (PathBuf, Names)>,
    quiet: Quiet,
    /// Folders that cannot be watched; told once each.
    failed: BTreeSet<PathBuf>,
}

/// Changes that wait for others to come with them.
#[derive(Debug, Default)]
struct Quiet(Option<(Instant, Instant)>);

impl Quiet {
    fn note(&mut self, now: Instant) {
        self.0 = Some((self.0.map_or(now, |(first, _)| first), now));
    }

    /// When they have settled.
    fn due(&self) -> Option<Instant> {
        self.0
            .map(|(first, last)| (last + QUIET).min(first + AT_MOST))
    }
}

impl Watch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// When the kernel has no inotify instance left for this user.
    #[expect(
        deprecated,
        reason = "its hole is types that change their descriptor; an OwnedFd keeps its own, and this floor has no unsafe"
    )]
    pub fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self {
            inotify: AsyncFd::with_interest(inotify, Interest::READABLE)?,
            folders: BTreeMap::new(),
            quiet: Quiet::default(),
            failed: BTreeSet::new(),
        })
    }

    /// Watches the folders that lead to `wanted` and no others. What is new among them counts as changed: it may have
    /// changed before it was watched.
    pub fn watch(&mut self, wanted: &Wanted) {
        let mut folders = BTreeMap::new();
        let places = wanted.is_watched().then(|| wanted.places());
        for (folder, names) in places.into_iter().flatten() {
            match inotify::add_watch(self.inotify.get_ref(), &folder, flags()) {
                Ok(number) => drop(folders.insert(number, (folder, names))),
                // gone since it was looked for; the folder above knows when it comes again
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => self.fail(folder, error),
            }
        }
        if folders != self.folders && !folders.is_empty() {
            self.quiet.note(Instant::now());
        }
        for number in self.folders.keys() {
            if !folders.contains_key(number) {
                // a folder that is gone has no watch any more
                let _ = inotify::remove_watch(self.inotify.get_ref(), *number);
            }
        }
        self.folders = folders;
    }

    /// Waits until something has changed and settled. May be dropped and called again without loss.
    pub async fn settled(&mut self) {
        loop {
            let due = self.quiet.due();
            tokio::select! {
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.quiet = Quiet::default();
                    return;
                }
                changed = changed(&self.inotify, &self.folders) => {
                    if changed {
                        self.quiet.note(Instant::now());
                    }
                }
            }
        }
    }

    fn fail(&mut self, folder: PathBuf, error: Errno) {
        if !self.failed.contains(&folder) {
            tracing::warn!(
                folder = %folder.display(),
                error = %io::Error::from(error),
                "cannot watch this folder; after changes in it, run `identun reload`"
            );
            self.failed.insert(folder);
        }
    }
}

/// Writing counts when the file is closed: a file half written may say something else than was meant.
fn flags() -> WatchFlags {
    WatchFlags::ATTRIB
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR
}

/// Waits for events and takes all that are there; tells whether one of them is about a file of the configuration.
async fn changed(inotify: &AsyncFd<OwnedFd>, folders: &BTreeMap<i32, (PathBuf, Names)>) -> bool {
    let Ok(mut ready) = inotify.readable().await else {
        return std::future::pending().await;
    };
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = inotify::Reader::new(inotify.get_ref(), &mut buffer);
    let mut found = false;
    loop {
        match reader.next() {
            Ok(event) => {
                let name = event
                    .file_name()
                    .map(|name| OsStr::from_bytes(name.to_bytes()));
                found |= match (folders.get(&event.wd()), name) {
                    (Some((folder, names)), Some(name)) => {
                        names.contain(name) && !is_being_written(&folder.join(name), event.events())
                    }
                    // the folder itself, or events that were lost
                    (Some(_), None) => true,
                    (None, _) => event.events().contains(ReadFlags::QUEUE_OVERFLOW),
                };
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                ready.clear_ready();
                return found;
            }
            // nothing that a reader could do about it
            Err(_) => return found,
        }
    }
}

/// A regular file that was just made has a writer, whose closing is the event to wait for. One that has other names was
/// linked and not written.
fn is_being_written(path: &Path, events: ReadFlags) -> bool {
    events.contains(ReadFlags::CREATE)
        && path
            .symlink_metadata()
            .is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tokio::time::timeout;

    use super::*;
    use crate::daemon::settings::Settings;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A configuration on disk under watch.
    struct Disk {
        root: PathBuf,
        watch: Watch,
        known: Contents,
        _dir: tempfile::TempDir,
    }

    impl Disk {
        async fn new(settings: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().canonicalize().unwrap();
            fs::create_dir(root.join("policies.d")).unwrap();
            fs::write(root.join("daemon.yaml"), settings).unwrap();
            let mut disk = Self {
                root,
                watch: Watch::new().unwrap(),
                known: Contents::default(),
                _dir: dir,
            };
            disk.known = Contents::read(&disk.wanted());
            disk.watch.watch(&disk.wanted());
            // what is watched for the first time counts as changed
            disk.watch.settled().await;
            disk
        }

        fn wanted(&self) -> Wanted {
            Wanted::new(&self.root.join("daemon.yaml"), &Settings::default())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.root.join(name)
        }

        /// Waits until other contents are noticed.
        async fn notices(&mut self, what: &str) {
            let noticed = async {
                loop {
                    self.watch.settled().await;
                    let wanted = self.wanted();
                    self.watch.watch(&wanted);
                    let contents = Contents::read(&wanted);
                    if contents != self.known {
                        self.known = contents;
                        return;
                    }
                }
            };
            timeout(PATIENCE, noticed).await.expect(what);
        }
    }

    #[tokio::test]
    async fn every_way_to_change_a_file_is_noticed() {
        let mut disk = Disk::new("policies: [policies.d]\n").await;
        let policy = disk.path("policies.d/a.yaml");
        fs::write(&policy, "kind: A").unwrap();
        disk.notices("a new file in a folder").await;
        fs::write(&policy, "kind: B").unwrap();
        disk.notices("a file written in place").await;
        fs::write(disk.path("policies.d/.a.swp"), "kind: C").unwrap();
        fs::rename(disk.path("policies.d/.a.swp"), &policy).unwrap();
        disk.notices("an editor's rename").await;
        fs::set_permissions(&policy, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        disk.notices("a mode that is refused").await;
        fs::remove_file(&policy).unwrap();
        disk.notices("a file removed").await;
        fs::create_dir(disk.path("next")).unwrap();
        fs::write(disk.path("next/b.yaml"), "kind: A").unwrap();
        fs::rename(disk.path("policies.d"), disk.path("last")).unwrap();
        disk.notices("a folder gone").await;
        fs::rename(disk.path("next"), disk.path("policies.d")).unwrap();
        disk.notices("a folder swapped").await;
        fs::write(disk.path("policies.d/b.yaml"), "kind: B").unwrap();
        disk.notices("a file in the folder that came").await;
        fs::write(
            disk.path("daemon.yaml"),
            "policies: [policies.d]\ndomain: a\n",
        )
        .unwrap();
        disk.notices("other settings").await;
    }

    #[tokio::test]
    async fn a_config_map_that_swaps_its_links_is_noticed_each_time() {
        let mut disk = Disk::new("policies: [policies.d]\n").await;
        for round in 0..3 {
            let data = format!("..data{round}");
            fs::create_dir(disk.path("policies.d").join(&data)).unwrap();
            let text = format!("kind: {round}");
            fs::write(disk.path("policies.d").join(&data).join("a.yaml"), text).unwrap();
            symlink(&data, disk.path("policies.d/..data_tmp")).unwrap();
            fs::rename(
                disk.path("policies.d/..data_tmp"),
                disk.path("policies.d/..data"),
            )
            .unwrap();
            if round == 0 {
                symlink("..data/a.yaml", disk.path("policies.d/a.yaml")).unwrap();
            }
            disk.notices("the links").await;
        }
    }

    #[tokio::test]
    async fn settings_may_switch_it_off_and_on() {
        let mut disk = Disk::new("policies: [policies.d]\n").await;
        let settings = disk.path("daemon.yaml");
        fs::write(&settings, "watch: false\n").unwrap();
        disk.notices("watch: false").await;
        assert!(disk.watch.folders.is_empty());
        fs::write(&settings, "watch: true\n").unwrap();
        disk.watch.watch(&disk.wanted());
        assert!(!disk.watch.folders.is_empty());
    }

    #[test]
    fn changes_wait_for_quiet_but_not_for_ever() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut quiet = Quiet::default();
        assert_eq!(quiet.due(), None);
        quiet.note(at(0));
        assert_eq!(quiet.due(), Some(at(200)));
        quiet.note(at(150));
        assert_eq!(quiet.due(), Some(at(350)));
        quiet.note(at(1_950));
        assert_eq!(quiet.due(), Some(at(2_000)));
    }
}
