//! Which policy files the settings mean.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use crate::store::files::{FileError, io_error};

/// Expands `entries` (files or folders, relative to `base`) to files: a folder stands for its `*.yaml` files in
/// lexical order, hidden ones and subfolders left out. A file named twice is read once.
///
/// # Errors
/// [`FileError::Io`] for an entry that does not exist.
pub fn policy_files(base: &Path, entries: &[PathBuf]) -> Result<Vec<PathBuf>, FileError> {
    let mut files = Vec::new();
    for entry in entries {
        let path = base.join(entry);
        let metadata = path.metadata().map_err(io_error("open", &path))?;
        if metadata.is_dir() {
            files.extend(yaml_files(&path)?);
        } else {
            files.push(path);
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    files.retain(|file| seen.insert(file.clone()));
    Ok(files)
}

fn yaml_files(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut files = Vec::new();
    for entry in folder.read_dir().map_err(io_error("list", folder))? {
        let path = entry.map_err(io_error("list", folder))?.path();
        if is_policy_name(path.file_name().unwrap_or_default()) && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Tells whether a file of this name in a folder of policies is one of them.
pub fn is_policy_name(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    (name.ends_with(".yaml") || name.ends_with(".yml")) && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_stands_for_its_yaml_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("policies.d");
        std::fs::create_dir_all(folder.join("sub.yaml")).unwrap();
        for name in [
            "20-b.yaml",
            "10-a.yaml",
            "30-c.yml",
            "notes.txt",
            ".hidden.yaml",
        ] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        let entries = ["policies.d".into(), "policies.d/10-a.yaml".into()];
        let files = policy_files(dir.path(), &entries).unwrap();
        let names: Vec<_> = files
            .iter()
            .map(|file| file.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["10-a.yaml", "20-b.yaml", "30-c.yml"]);
        let error = policy_files(dir.path(), &["missing.yaml".into()]).unwrap_err();
        assert!(error.to_string().ends_with("missing.yaml"), "{error}");
    }
}
