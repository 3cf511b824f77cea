//! The user that a daemon goes on as which was started as root (settings `user` and `group`).
//!
//! Everything after that, the set-up of the host included, is done with one capability. So a start by hand, an upgrade and
//! a start by the unit file, which needs no root at all, are the same from there on.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown},
    path::Path,
};

use anyhow::Context;
use rustix::{fs::OFlags, process::geteuid};

use crate::{
    daemon::settings::{Account, Settings},
    host::{
        account::{self, Ids},
        rights,
    },
};

/// The user that the settings name; `None` where they name none.
///
/// # Errors
/// When this host does not know it by name.
pub fn wanted(settings: &Settings) -> anyhow::Result<Option<Ids>> {
    let Some(user) = &settings.user else {
        return Ok(None);
    };
    let Ids { uid, gid } = match user {
        Account::Number(uid) => Ids {
            uid: *uid,
            gid: *uid,
        },
        Account::Name(name) => {
            account::user(name).with_context(|| format!("user {name} is not in /etc/passwd"))?
        }
    };
    let gid = match &settings.group {
        None => gid,
        Some(Account::Number(gid)) => *gid,
        Some(Account::Name(name)) => {
            account::group(name).with_context(|| format!("group {name} is not in /etc/group"))?
        }
    };
    Ok(Some(Ids { uid, gid }))
}

/// Whose packets the host's rules let pass: the user of the settings, or whoever asks.
///
/// # Errors
/// As [`wanted`].
pub fn uid(settings: &Settings) -> anyhow::Result<u32> {
    let wanted = wanted(settings)?;
    Ok(wanted.map_or_else(|| geteuid().as_raw(), |ids| ids.uid))
}

/// Goes on as the user that the settings name, if this is root. To be called before there is another thread.
///
/// # Errors
/// When there is no such user, its folders cannot be made, or the kernel refuses.
pub fn assume(settings: &Settings) -> anyhow::Result<()> {
    let Some(ids) = wanted(settings)?.filter(|ids| geteuid().is_root() && ids.uid != 0) else {
        return Ok(());
    };
    let socket = &settings.admin_socket;
    give_folder(&settings.state_dir, 0o700, ids, |_| true)
        .with_context(|| format!("cannot give {} to its user", settings.state_dir.display()))?;
    if let Some(folder) = socket.parent() {
        // of a folder that holds something else, others may have need
        give_folder(folder, 0o755, ids, |name| Some(name) == socket.file_name())
            .with_context(|| format!("cannot give {} to its user", folder.display()))?;
    }
    rights::become_user(ids).context("cannot go on as another user")
}

/// Tells of a daemon that runs as somebody else than its settings say. The rules are right all the same.
pub fn warn_of_another(settings: &Settings) {
    let own = geteuid().as_raw();
    match wanted(settings) {
        Ok(Some(ids)) if ids.uid != own => tracing::warn!(
            user = ids.uid,
            own,
            "the settings name another user; only root can become it: start the daemon as root or as that user"
        ),
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(error = %format!("{error:#}"), "whom the settings name cannot be told")
        }
    }
}

/// Makes a folder for the user, or gives away one of root that holds nothing but what is `ours`: from a daemon that ran as
/// root. While it is root's, nobody else puts anything there in between.
fn give_folder(
    path: &Path,
    mode: u32,
    ids: Ids,
    ours: impl Fn(&std::ffi::OsStr) -> bool,
) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    let folder = open(path, OFlags::DIRECTORY)?;
    let metadata = folder.metadata()?;
    if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        return Ok(());
    }
    let entries: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
    if !entries.iter().all(|entry| ours(&entry.file_name())) {
        return Ok(());
    }
    for entry in entries {
        if entry.file_type()?.is_file() {
            give(&open(&entry.path(), OFlags::empty())?, ids)?;
        }
    }
    give(&folder, ids)
}

fn open(path: &Path, more: OFlags) -> std::io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | more;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn give(file: &File, ids: Ids) -> anyhow::Result<()> {
    Ok(fchown(file, Some(ids.uid), Some(ids.gid))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_number_needs_no_entry_and_its_group_is_its_own_unless_another_is_named() {
        let ids = |text: &str| wanted(&settings(text)).unwrap();
        assert_eq!(ids("{}"), None);
        assert_eq!(
            ids(r#"{"user": 7731}"#),
            Some(Ids {
                uid: 7_731,
                gid: 7_731
            })
        );
        let other = r#"{"user": 7731, "group": "root"}"#;
        assert_eq!(ids(other), Some(Ids { uid: 7_731, gid: 0 }));
        assert_eq!(ids(r#"{"user": "root"}"#), Some(Ids { uid: 0, gid: 0 }));
        assert_eq!(uid(&settings(r#"{"user": 7731}"#)).unwrap(), 7_731);
        assert_eq!(uid(&settings("{}")).unwrap(), geteuid().as_raw());
        let unknown = wanted(&settings(r#"{"user": "nobody-at-all"}"#)).unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "user nobody-at-all is not in /etc/passwd"
        );
    }

    #[test]
    fn a_folder_is_made_or_given_away_with_its_files_unless_it_holds_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().metadata().unwrap();
        if own.uid() != 0 {
            return println!("NOT RUN: only root can give folders away");
        }
        let ids = Ids {
            uid: 7_731,
            gid: 7_732,
        };
        let owner = |path: &Path| {
            let metadata = path.symlink_metadata().unwrap();
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o777)
        };
        let fresh = dir.path().join("a/state");
        give_folder(&fresh, 0o700, ids, |_| true).unwrap();
        assert_eq!(owner(&fresh), (7_731, 7_732, 0o700));
        assert_eq!(owner(&dir.path().join("a")).0, 0);

        let old = dir.path().join("old");
        fs::create_dir(&old).unwrap();
        fs::write(old.join("reset.key"), "x").unwrap();
        fs::write(dir.path().join("foreign"), "x").unwrap();
        std::os::unix::fs::symlink("../foreign", old.join("link")).unwrap();
        give_folder(&old, 0o700, ids, |_| true).unwrap();
        assert_eq!(owner(&old.join("reset.key")).0, 7_731);
        assert_eq!(owner(&dir.path().join("foreign")).0, 0);

        let shared = dir.path().join("run");
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("other.sock"), "x").unwrap();
        give_folder(&shared, 0o755, ids, |name| name == "admin.sock").unwrap();
        assert_eq!(owner(&shared).0, 0);
        // what another user has already is nobody's to give
        give_folder(&old, 0o700, Ids { uid: 1, gid: 1 }, |_| true).unwrap();
        assert_eq!(owner(&old).0, 7_731);
    }
}
