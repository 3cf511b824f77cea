//! The lock of the one instance: held by a running daemon, and by `down` while it removes.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt, fchown},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    process::geteuid,
};

use crate::store::files::{FileError, io_error};

/// Why the lock is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("another identun (process {holder}) holds {path}")]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The process it names.
        holder: String,
    },
    /// The lock file cannot be used.
    #[error("cannot lock the state folder")]
    File(#[source] FileError),
}

/// Held until dropped; the kernel frees it when the process dies.
#[derive(Debug)]
pub struct InstanceLock {
    file: File,
}

impl InstanceLock {
    /// Takes the lock of a state folder, or says who has it. Never waits.
    ///
    /// # Errors
    /// [`LockError::Held`] when another process has it.
    pub fn acquire(state_dir: &Path) -> Result<Self, LockError> {
        let path = state_dir.join("lock");
        let failed = |operation| {
            let path = path.clone();
            move |error| LockError::File(io_error(operation, &path)(error))
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600));
        let file = File::from(opened.map_err(|error| failed("open")(error.into()))?);
        leave_to_owner(&file, state_dir).map_err(failed("give away"))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = (&file).take(16).read_to_string(&mut holder);
                return Err(LockError::Held {
                    path,
                    holder: holder.trim().into(),
                });
            }
            Err(error) => return Err(failed("lock")(error.into())),
        }
        Self::of(file).map_err(failed("write"))
    }

    /// The lock that this process held before it became another program.
    ///
    /// # Errors
    /// [`LockError::File`] when it is not the lock of this state folder.
    pub fn adopt(state_dir: &Path, held: OwnedFd) -> Result<Self, LockError> {
        let path = state_dir.join("lock");
        let failed = |error| LockError::File(io_error("take over", &path)(error));
        let held = File::from(held);
        let (there, ours) = path
            .metadata()
            .and_then(|there| Ok((there, held.metadata()?)))
            .map_err(failed)?;
        if (there.dev(), there.ino()) != (ours.dev(), ours.ino()) {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        // ours already, or this takes it
        rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| failed(error.into()))?;
        Self::of(held).map_err(failed)
    }

    fn of(mut file: File) -> io::Result<Self> {
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))?;
        Ok(Self { file })
    }
}

/// A lock that root made, as `down` does, is for the daemon that has the folder to take later.
fn leave_to_owner(file: &File, state_dir: &Path) -> io::Result<()> {
    let owner = state_dir.metadata()?;
    if geteuid().is_root() && file.metadata()?.uid() != owner.uid() {
        fchown(file, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

impl AsFd for InstanceLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_the_second_learns_who() {
        let dir = tempfile::tempdir().unwrap();
        let first = InstanceLock::acquire(dir.path()).unwrap();
        let error = InstanceLock::acquire(dir.path()).unwrap_err();
        assert!(
            error.to_string().contains(&std::process::id().to_string()),
            "{error}"
        );
        drop(first);
        assert!(InstanceLock::acquire(dir.path()).is_ok());
    }
}
