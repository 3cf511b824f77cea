//! Opens, checks, reads and writes single files.

use std::{
    fs::{DirBuilder, File, Metadata},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

use crate::policy::SourceFile;

/// The largest configuration or policy file, in bytes (a bound for the parser, steering.md D10).
pub const MAX_TEXT: u64 = 1 << 20;
/// The largest certificate or key file, in bytes.
pub const MAX_PEM: u64 = 1 << 20;
/// The largest file that the daemon keeps for itself, in bytes: the ruleset of a hundred thousand services has some 30 MiB.
pub const MAX_STATE: u64 = 256 << 20;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {operation} {path}")]
    Io {
        /// `open`, `read`, `write` ...
        operation: &'static str,
        /// The path as the user gave it.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A secret behind a symbolic link: who may change the link chooses the secret.
    #[error("{path} is a symbolic link; a private key must be a regular file")]
    Symlink {
        /// The path.
        path: PathBuf,
    },
    /// A folder, a device, a pipe.
    #[error("{path} is not a regular file")]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else may read or change it.
    #[error("{path} has mode {mode:04o}: {why}")]
    Mode {
        /// The path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What is wrong with them, and what to do.
        why: &'static str,
    },
    /// It belongs to somebody else.
    #[error("{path} belongs to uid {uid}; it must belong to root or to the user who runs identun")]
    Owner {
        /// The path.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// It is larger than its kind may be.
    #[error("{path} has more than {limit} bytes")]
    TooBig {
        /// The path.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// It is not UTF-8.
    #[error("{path} is not UTF-8 text (byte {offset})")]
    NotText {
        /// The path.
        path: PathBuf,
        /// The first byte that is not.
        offset: usize,
    },
}

/// Reads a settings or policy file: a regular file that not everybody may change, at most [`MAX_TEXT`] bytes of UTF-8.
///
/// # Errors
/// [`FileError`] with the path and the reason.
pub fn read_config(path: &Path) -> Result<Arc<SourceFile>, FileError> {
    let text = text(path, read(path, Kind::Public, MAX_TEXT)?)?;
    Ok(Arc::new(SourceFile {
        name: path.display().to_string().into(),
        text,
    }))
}

/// Reads policy from stdin, by the bounds of [`read_config`]. Its name is `-`.
///
/// # Errors
/// [`FileError`] with the reason.
pub fn read_stdin() -> Result<Arc<SourceFile>, FileError> {
    let path = Path::new("-");
    let mut bytes = Vec::new();
    io::stdin()
        .take(MAX_TEXT + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > MAX_TEXT {
        return Err(FileError::TooBig {
            path: path.into(),
            limit: MAX_TEXT,
        });
    }
    Ok(Arc::new(SourceFile {
        name: "-".into(),
        text: text(path, bytes)?,
    }))
}

/// Reads the text of a public file, such as certificates: not writable by everybody.
///
/// # Errors
/// [`FileError`] with the path and the reason.
pub fn read_public(path: &Path) -> Result<String, FileError> {
    text(path, read(path, Kind::Public, MAX_PEM)?)
}

/// Reads the text of a private key, by the rules of [`read_secret`].
///
/// # Errors
/// [`FileError`] with the path and the reason.
pub fn read_key(path: &Path) -> Result<Zeroizing<String>, FileError> {
    read_key_of(path, None)
}

/// As [`read_key`]; for root, it may also belong to the daemon's user: root looks at what the daemon will read.
///
/// # Errors
/// As [`read_key`].
pub fn read_key_of(path: &Path, user: Option<u32>) -> Result<Zeroizing<String>, FileError> {
    text(path, read(path, Kind::Secret { user }, MAX_PEM)?).map(Zeroizing::new)
}

/// Reads a secret: a regular file, not reached by a symbolic link, of root or the own user, that nobody else may read.
///
/// # Errors
/// [`FileError`] with the path and the reason.
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    read(path, Kind::SECRET, MAX_PEM).map(Zeroizing::new)
}

/// Reads the text of a file of the state folder, by the rules of [`read_secret`] but of up to [`MAX_STATE`] bytes.
///
/// # Errors
/// [`FileError`] with the path and the reason.
pub fn read_state(path: &Path) -> Result<String, FileError> {
    text(path, read(path, Kind::SECRET, MAX_STATE)?)
}

/// Replaces `path` by `bytes` with mode 0600: readers see the old or the new content, also after a crash.
///
/// # Errors
/// [`FileError::Io`].
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", &temporary)(error));
        }
        _ => write_new(&temporary, bytes, 0o600)?,
    }
    std::fs::rename(&temporary, path).map_err(io_error("rename", &temporary))?;
    sync_parent(path)
}

/// Writes a file that does not exist yet, with `mode`.
///
/// # Errors
/// [`FileError::Io`], also when the file exists.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(mode))
        .map_err(|error| io_error("create", path)(error.into()))?;
    let mut file = File::from(file);
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(io_error("write", path))
}

/// Makes the folder with mode 0700 unless it exists; one that others may enter is refused.
///
/// # Errors
/// [`FileError`] with the path and the reason.
pub fn private_dir(path: &Path) -> Result<(), FileError> {
    let mut builder = DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error("create", path))?;
    let metadata = path.metadata().map_err(io_error("inspect", path))?;
    check_owner(path, &metadata, None)?;
    match metadata.mode() & 0o7777 {
        mode if mode & 0o077 == 0 => Ok(()),
        mode => Err(FileError::Mode {
            path: path.into(),
            mode,
            why: "others may enter it; `chmod 0700` it",
        }),
    }
}

/// Makes `operation` on `path` the context of an IO error.
pub(super) fn io_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io {
        operation,
        path: path.into(),
        source,
    }
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Public,
    Secret {
        /// Whose it may be beside root's and the own user's, if we are root.
        user: Option<u32>,
    },
}

impl Kind {
    const SECRET: Self = Self::Secret { user: None };

    const fn is_secret(self) -> bool {
        matches!(self, Self::Secret { .. })
    }
}

fn read(path: &Path, kind: Kind, limit: u64) -> Result<Vec<u8>, FileError> {
    // NONBLOCK: opening a pipe must not wait for its other end.
    let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    if kind.is_secret() {
        flags |= OFlags::NOFOLLOW;
    }
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::LOOP if kind.is_secret() => FileError::Symlink { path: path.into() },
        _ => io_error("open", path)(error.into()),
    })?;
    let file = File::from(file);
    check(
        path,
        &file.metadata().map_err(io_error("inspect", path))?,
        kind,
    )?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(FileError::TooBig {
            path: path.into(),
            limit,
        });
    }
    Ok(bytes)
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String, FileError> {
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        FileError::NotText {
            path: path.into(),
            offset,
        }
    })
}

fn check(path: &Path, metadata: &Metadata, kind: Kind) -> Result<(), FileError> {
    if !metadata.is_file() {
        return Err(FileError::NotRegular { path: path.into() });
    }
    let mode = metadata.mode() & 0o7777;
    let why = match kind {
        Kind::Secret { .. } if mode & 0o077 != 0 => {
            "others may use the private key; `chmod 0600` it"
        }
        Kind::Public if mode & 0o002 != 0 => "everybody may change it; `chmod o-w` it",
        Kind::Public => return check_parent(path),
        Kind::Secret { user } => {
            check_owner(path, metadata, user)?;
            return check_parent(path);
        }
    };
    Err(FileError::Mode {
        path: path.into(),
        mode,
        why,
    })
}

fn check_owner(path: &Path, metadata: &Metadata, user: Option<u32>) -> Result<(), FileError> {
    let (uid, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if uid == 0 || uid == own || (own == 0 && user == Some(uid)) {
        return Ok(());
    }
    Err(FileError::Owner {
        path: path.into(),
        uid,
    })
}

/// Who may rename files in the folder chooses what is read. A sticky folder (`/tmp`) keeps others' hands off.
fn check_parent(path: &Path) -> Result<(), FileError> {
    let parent = parent_of(path);
    let metadata = parent.metadata().map_err(io_error("inspect", &parent))?;
    match metadata.permissions().mode() & 0o7777 {
        mode if mode & 0o002 != 0 && mode & 0o1000 == 0 => Err(FileError::Mode {
            path: parent,
            mode,
            why: "everybody may replace files in it; `chmod o-w` it",
        }),
        _ => Ok(()),
    }
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => ".".into(),
    }
}

/// Makes a rename last across a power cut.
fn sync_parent(path: &Path) -> Result<(), FileError> {
    let parent = parent_of(path);
    File::open(&parent)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("sync", &parent))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::symlink,
    };

    use super::*;

    fn file(dir: &Path, name: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    /// steering.md C7: each layout is either fine or a named error with path and mode.
    #[test]
    fn twelve_layouts_of_files_are_judged_by_kind_owner_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let key = file(dir, "key", 0o600);
        let link = dir.join("link");
        symlink(&key, &link).unwrap();
        let dangling = dir.join("dangling");
        symlink(dir.join("nothing"), &dangling).unwrap();
        let pipe = dir.join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let open_dir = dir.join("open");
        fs::create_dir(&open_dir).unwrap();
        fs::set_permissions(&open_dir, Permissions::from_mode(0o777)).unwrap();

        let judge = |error: Option<FileError>| error.map(|error| error.to_string());
        let secret = |path: &Path| judge(read_key(path).err());
        let public = |path: &Path| judge(read_public(path).err());
        let table: [(Option<String>, Option<&str>); 12] = [
            (secret(&key), None),
            (secret(&file(dir, "read-only", 0o400)), None),
            (
                secret(&file(dir, "group", 0o640)),
                Some("group has mode 0640: others may use the private key"),
            ),
            (
                secret(&file(dir, "world", 0o604)),
                Some("world has mode 0604: others may use the private key"),
            ),
            (secret(&link), Some("link is a symbolic link")),
            (secret(dir), Some("is not a regular file")),
            (secret(&pipe), Some("pipe is not a regular file")),
            (
                secret(&file(&open_dir, "key", 0o600)),
                Some("open has mode 0777: everybody may replace files in it"),
            ),
            (public(&file(dir, "config", 0o644)), None),
            (public(&link), None),
            (
                public(&file(dir, "loose", 0o666)),
                Some("loose has mode 0666: everybody may change it"),
            ),
            (public(&dangling), Some("cannot open")),
        ];
        for (index, (found, wanted)) in table.iter().enumerate() {
            match (found, wanted) {
                (None, None) => {}
                (Some(found), Some(wanted)) => assert!(found.contains(wanted), "{index}: {found}"),
                _ => panic!("layout {index}: {found:?}, not {wanted:?}"),
            }
        }
    }

    #[test]
    fn a_file_of_another_user_is_no_key() {
        let own = rustix::process::geteuid().as_raw();
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "key", 0o600);
        let metadata = path.metadata().unwrap();
        assert!(check_owner(&path, &metadata, None).is_ok());
        if own == 0 && std::os::unix::fs::chown(&path, Some(4_242), None).is_ok() {
            assert!(matches!(
                read_key(&path),
                Err(FileError::Owner { uid: 4_242, .. })
            ));
            assert!(read_key_of(&path, Some(4_241)).is_err());
            assert!(read_key_of(&path, Some(4_242)).is_ok());
        }
    }

    #[test]
    fn a_private_file_is_replaced_whole_with_mode_0600() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(*read_key(&path).unwrap(), "two");
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file stays"
        );
        assert!(
            write_new(&path, b"three", 0o600).is_err(),
            "an existing file is not overwritten"
        );
    }

    #[test]
    fn text_is_bounded_and_utf8() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big.yaml");
        fs::write(&path, vec![b'a'; 1 << 20]).unwrap();
        assert!(read_config(&path).is_ok());
        fs::write(&path, vec![b'a'; (1 << 20) + 1]).unwrap();
        assert!(matches!(read_config(&path), Err(FileError::TooBig { .. })));
        fs::write(&path, b"ab\xff").unwrap();
        assert!(matches!(
            read_config(&path),
            Err(FileError::NotText { offset: 2, .. })
        ));
    }

    #[test]
    fn a_folder_for_secrets_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/state");
        private_dir(&state).unwrap();
        assert_eq!(state.metadata().unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&state, Permissions::from_mode(0o755)).unwrap();
        assert!(
            private_dir(&state)
                .unwrap_err()
                .to_string()
                .contains("0755")
        );
    }
}
