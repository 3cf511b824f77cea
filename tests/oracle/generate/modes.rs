//! What servers accept: both generations, one of them, or none.

use std::{collections::BTreeMap, sync::Arc};

use identun::policy::{
    Mode, Resources,
    document::{MeshPolicy, PeerAuthentication, Placed, Policy, PortSelector, Target},
};

use super::{NAMESPACES, PORT_NAMES, PORTS, place, resource, selector};
use crate::oracle::choices::Choices;

pub(super) fn add(choices: &mut Choices<'_>, resources: &mut Resources) {
    let (alpha, later) = match choices.below(10) {
        0..3 => (true, false),
        3..7 => (false, true),
        7..9 => (true, true),
        _ => (false, false),
    };
    if alpha {
        add_alpha(choices, resources);
    }
    if later {
        for index in 0..1 + choices.below(4) {
            let policy = peer_authentication(choices, index);
            resources.peer_authentications.push(policy);
        }
    }
}

fn placed<T>(value: T) -> Placed<T> {
    Placed {
        value,
        place: place(10),
    }
}

fn mode(choices: &mut Choices<'_>) -> Mode {
    *choices.pick(&[
        Mode::Permissive,
        Mode::Permissive,
        Mode::Strict,
        Mode::Strict,
        Mode::Disable,
    ])
}

fn add_alpha(choices: &mut Choices<'_>, resources: &mut Resources) {
    resources.mesh_policy = choices.chance(50).then(|| MeshPolicy {
        resource: resource("MeshPolicy", "", "default"),
        mode: placed(mode(choices)),
    });
    for namespace in NAMESPACES {
        if choices.chance(25) {
            resources.policies.push(Policy {
                resource: resource("Policy", namespace, "default"),
                place: place(10),
                targets: Vec::new(),
                mode: placed(mode(choices)),
            });
        }
    }
    for index in 0..choices.below(4) {
        let policy = policy(choices, index, resources);
        let at = choices.below(resources.policies.len() + 1);
        resources.policies.insert(at, policy);
    }
}

/// Targets of the policy's namespace, mostly services that there are.
fn policy(choices: &mut Choices<'_>, index: usize, resources: &Resources) -> Policy {
    let services = &resources.service_entries;
    let namespace = if choices.chance(85) {
        Arc::clone(&choices.pick(services).resource.namespace)
    } else {
        choices.name(NAMESPACES)
    };
    let names = choices.some(&["s0", "s1", "s2", "second0"]);
    let targets = names.into_iter().map(|name| Target {
        host: placed(format!("{name}.{namespace}.svc.cluster.local").into()),
        ports: ports(choices),
    });
    Policy {
        targets: targets.collect(),
        resource: resource("Policy", &namespace, format!("p{index}")),
        place: place(10),
        mode: placed(mode(choices)),
    }
}

fn ports(choices: &mut Choices<'_>) -> Vec<Placed<PortSelector>> {
    if choices.chance(50) {
        return Vec::new();
    }
    let mut all: Vec<_> = PORTS[..3]
        .iter()
        .copied()
        .map(PortSelector::Number)
        .collect();
    all.extend(
        PORT_NAMES
            .iter()
            .map(|name| PortSelector::Name(Arc::from(*name))),
    );
    choices.some(&all).into_iter().map(placed).collect()
}

fn peer_authentication(choices: &mut Choices<'_>, index: usize) -> PeerAuthentication {
    let optional = |choices: &mut Choices<'_>| {
        let is_set = choices.chance(80);
        let mode = mode(choices);
        placed(is_set.then_some(mode))
    };
    let selector = choices.chance(50).then(|| selector(choices));
    let mut ports = BTreeMap::new();
    if selector.is_some() && choices.chance(50) {
        for port in choices.some(PORTS) {
            ports.insert(port, optional(choices));
        }
    }
    let namespace = choices.name(NAMESPACES);
    PeerAuthentication {
        resource: resource("PeerAuthentication", &namespace, format!("q{index}")),
        place: place(10),
        selector,
        mode: optional(choices),
        ports,
    }
}
