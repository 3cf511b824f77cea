//! What holds for any text as a policy file: it is taken or refused with a place, and what is taken compiles to what the
//! judge says.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use identun::policy::{
    HostFacts, MeshSettings, Question, Resources, SourceFile, load::load, render, settings::L7,
};

use super::{
    check::{compare, compile, told},
    generate::Mesh,
    registry::Known,
};

/// Resources beyond which the judge would take too long.
const MAX_JUDGED: usize = 40;
/// Addresses that ask each other.
const MAX_ADDRESSES: usize = 6;

/// Panics where a promise is broken.
pub(crate) fn keep(text: &str) {
    for l7 in [L7::Reject, L7::StrictDrop] {
        let mesh = MeshSettings {
            l7,
            ..MeshSettings::default()
        };
        if let Some(resources) = loaded(text, &mesh) {
            decided(Mesh {
                resources,
                mesh,
                facts: HostFacts::default(),
            });
        }
    }
}

/// Resources or an error, and every finding is about a place in the text.
fn loaded(text: &str, mesh: &MeshSettings) -> Option<Resources> {
    let file = Arc::new(SourceFile {
        name: "fuzz.yaml".into(),
        text: text.into(),
    });
    let (resources, findings) = load(&[Arc::clone(&file)], mesh);
    let refused = findings.iter().any(|found| found.is_error());
    assert_ne!(refused, resources.is_some(), "taken or refused");
    let lines = text.lines().count() + 1;
    for found in &findings {
        let place = found.place.as_ref().expect("a finding has a place");
        assert!(place.line >= 1 && place.column >= 1, "{place}");
        assert!((place.line as usize) <= lines, "{place} of {lines} lines");
        assert!(!render(found, Some(&file), false).is_empty());
    }
    resources
}

fn decided(mesh: Mesh) {
    let all = &mesh.resources;
    let count = all.workloads.len() + all.service_entries.len() + all.destination_rules.len();
    let Some(compiled) = compile(&mesh).filter(|_| count <= MAX_JUDGED) else {
        return;
    };
    let known = Known::new(all, &mesh.mesh, &mesh.facts);
    let addresses = addresses(&known);
    for source in &addresses {
        for destination in &addresses {
            for port in [None, Some(80), Some(8_080)] {
                let question = Question {
                    source: *source,
                    destination: *destination,
                    protocol: if port.is_some() { 6 } else { 1 },
                    port,
                };
                if compare(&compiled, &known, &question).is_err() {
                    panic!("{}", told(mesh.clone(), &question));
                }
            }
        }
    }
}

/// Some of the addresses that are declared.
fn addresses(known: &Known<'_>) -> BTreeSet<IpAddr> {
    let services = known.services.iter().flat_map(|one| &one.entry.addresses);
    let services = services.map(|network| network.ip());
    let hosts = known.hosts.iter().map(|host| host.address);
    hosts.chain(services).take(MAX_ADDRESSES).collect()
}
