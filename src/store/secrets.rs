//! Secrets of the tunnels that outlive the process, so that a restarted daemon can reset the sessions of its
//! predecessor and peers find it again at once (wire.md §4).

use std::{io, path::Path};

use crate::store::files::{FileError, read_secret, write_private};

/// Keys of connection IDs, stateless resets and retry tokens.
#[derive(Clone)]
pub struct TunnelSecrets {
    /// Key of connection IDs.
    pub connection_id_key: [u8; 32],
    /// Key of stateless reset tokens.
    pub reset_key: [u8; 64],
    /// Key of retry tokens.
    pub token_key: [u8; 32],
}

impl TunnelSecrets {
    /// Reads the secrets of a state folder; makes those that are absent or damaged.
    ///
    /// # Errors
    /// [`FileError`] when the folder cannot be used, or a file in it may be read by others.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, FileError> {
        Ok(Self {
            connection_id_key: load_or_create(&state_dir.join("connection-id.key"))?,
            reset_key: load_or_create(&state_dir.join("reset.key"))?,
            token_key: load_or_create(&state_dir.join("token.key"))?,
        })
    }
}

/// Fresh random bytes of the crypto provider.
///
/// # Errors
/// [`io::Error`] when the provider has none.
pub fn random<const N: usize>() -> Result<[u8; N], io::Error> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| io::Error::other("the crypto provider gives no random bytes"))?;
    Ok(bytes)
}

fn load_or_create<const N: usize>(path: &Path) -> Result<[u8; N], FileError> {
    match read_secret(path).map(|bytes| <[u8; N]>::try_from(bytes.as_slice())) {
        Ok(Ok(key)) => return Ok(key),
        // A half-written or foreign file: peers of the old key time out instead of being reset.
        Ok(Err(_)) => {}
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let key = random().map_err(crate::store::files::io_error("make", path))?;
    write_private(path, &key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn secrets_are_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = TunnelSecrets::load_or_create(dir.path()).unwrap();
        let second = TunnelSecrets::load_or_create(dir.path()).unwrap();
        assert_eq!(first.connection_id_key, second.connection_id_key);
        assert_eq!(first.reset_key, second.reset_key);
        assert_eq!(first.token_key, second.token_key);
        assert_ne!(first.connection_id_key, first.token_key);
        let mode = dir
            .path()
            .join("reset.key")
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_secret_is_replaced_and_an_open_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        TunnelSecrets::load_or_create(dir.path()).unwrap();
        let path = dir.path().join("token.key");
        write_private(&path, b"short").unwrap();
        TunnelSecrets::load_or_create(dir.path()).unwrap();
        assert_eq!(fs::read(&path).unwrap().len(), 32);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            TunnelSecrets::load_or_create(dir.path()),
            Err(FileError::Mode { .. })
        ));
    }
}
