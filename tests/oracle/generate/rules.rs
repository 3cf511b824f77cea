//! DestinationRules.

use std::sync::Arc;

use identun::{
    policy::{
        Resources,
        document::{ClientMode, ClientTls, DestinationRule, Placed, PortPolicy, TrafficPolicy},
    },
    registry::service::ExportTo,
};

use super::{NAMESPACES, PORTS, export, names_of_servers, place, resource, selector};
use crate::oracle::choices::Choices;

const HOSTS: &[&str] = &["*", "*.local", "*.a.svc.cluster.local", "*.example"];

pub(super) fn add(choices: &mut Choices<'_>, resources: &mut Resources) {
    for index in 0..choices.below(5) {
        let rule = rule(choices, index, resources);
        resources.destination_rules.push(rule);
    }
}

fn rule(choices: &mut Choices<'_>, index: usize, resources: &Resources) -> DestinationRule {
    let namespace = choices.name(NAMESPACES);
    let host = if choices.chance(60) {
        let entries = &resources.service_entries;
        let entry = choices.pick(entries);
        Arc::clone(choices.pick(&entry.hosts))
    } else {
        choices.name(HOSTS)
    };
    let workload_selector = choices.chance(12).then(|| selector(choices));
    let own = || ExportTo::Namespaces([Arc::clone(&namespace)].into());
    DestinationRule {
        export_to: match choices.below(8) {
            _ if workload_selector.is_some() => own(),
            6 => own(),
            7 => export(choices),
            _ => ExportTo::All,
        },
        resource: resource("DestinationRule", &namespace, format!("d{index}")),
        host: Placed {
            value: host,
            place: place(20),
        },
        workload_selector,
        traffic_policy: (!choices.chance(10)).then(|| traffic_policy(choices)),
    }
}

fn traffic_policy(choices: &mut Choices<'_>) -> TrafficPolicy {
    let tls = tls(choices);
    let mut ports = Vec::new();
    if choices.chance(25) {
        for port in choices.some(&PORTS[..3]) {
            ports.push(PortPolicy {
                port,
                tls: self::tls(choices),
            });
        }
    }
    TrafficPolicy { tls, ports }
}

fn tls(choices: &mut Choices<'_>) -> Option<ClientTls> {
    let mode = match choices.below(10) {
        0..7 => ClientMode::IstioMutual,
        7..9 => ClientMode::Disable,
        _ => return None,
    };
    let is_named = mode == ClientMode::IstioMutual && choices.chance(35);
    Some(ClientTls {
        mode,
        subject_alt_names: is_named
            .then(|| choices.some(&names_of_servers()).into_iter().collect()),
        place: place(21),
    })
}
