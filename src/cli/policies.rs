//! Policy files for commands that try them: read, compiled, and joined with what is there.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    cli::{Exit, Failure},
    daemon::{
        configuration::{Rejected, chained},
        render::has_errors,
    },
    policy::{Compiled, Diagnostic, HostFacts, MeshSettings, Resources, SourceFile, load::load},
    store,
};

/// Files and what they declare.
pub(super) struct PolicySet {
    pub(super) resources: Resources,
    files: Vec<Arc<SourceFile>>,
}

impl PolicySet {
    /// Reads files and folders, relative to `base`.
    pub(super) fn load(
        base: &Path,
        entries: &[PathBuf],
        mesh: &MeshSettings,
    ) -> Result<Self, Failure> {
        let broken = |error| Failure {
            exit: Exit::Configuration,
            message: chained(error),
            help: None,
        };
        let paths = store::policy_files(base, entries).map_err(broken)?;
        let files: Result<Vec<_>, _> = paths.iter().map(|path| store::read_config(path)).collect();
        let files = files.map_err(broken)?;
        let (resources, diagnostics) = load(&files, mesh);
        match resources.filter(|_| !has_errors(&diagnostics)) {
            Some(resources) => Ok(Self { resources, files }),
            None => Err(rejected(diagnostics, files)),
        }
    }

    /// Neither a workload nor a service is declared.
    pub(super) const fn has_no_registry(&self) -> bool {
        self.resources.workloads.is_empty() && self.resources.service_entries.is_empty()
    }

    /// Takes over workloads and services of `other`.
    pub(super) fn borrow_registry(&mut self, other: &Self) {
        self.resources
            .workloads
            .clone_from(&other.resources.workloads);
        self.resources
            .service_entries
            .clone_from(&other.resources.service_entries);
        self.files.extend(other.files.iter().map(Arc::clone));
    }

    /// `self` with the resources of `added` in place of their namesakes.
    pub(super) fn with(mut self, added: Self) -> Self {
        crate::policy::compare::apply(&mut self.resources, added.resources);
        self.files.extend(added.files);
        self
    }

    /// As the host with these facts sees it.
    pub(super) fn compile(
        &self,
        mesh: &MeshSettings,
        host: HostFacts,
    ) -> Result<Compiled, Failure> {
        let (compiled, diagnostics) = Compiled::new(&self.resources, mesh, host, 0);
        compiled
            .filter(|_| !has_errors(&diagnostics))
            .ok_or_else(|| rejected(diagnostics, self.files.clone()))
    }
}

fn rejected(diagnostics: Vec<Diagnostic>, files: Vec<Arc<SourceFile>>) -> Failure {
    Rejected { diagnostics, files }.into()
}
