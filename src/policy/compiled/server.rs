//! The server's mode: PeerAuthentication, or where none applies Policy and MeshPolicy (policy.md 1.3, 1.6, 2.2).

mod story;

use std::{collections::BTreeSet, net::IpAddr, num::NonZero, sync::Arc};

use hashbrown::HashMap;

use self::story::tell_won;
use crate::{
    policy::{
        MeshSettings, Mode, Resources,
        compiled::{RuleAt, question::Step, select::Selectors, trace::Trace},
        document::{MeshPolicy, PeerAuthentication, Placed, Policy, PortSelector},
    },
    registry::{
        Place, Registry, ResourceName,
        index::{RegisteredWorkload, Service},
        service::ServicePort,
    },
};

/// A mode, and the rule that gives it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ServerMode<'a> {
    /// What the server accepts.
    pub(crate) mode: Mode,
    /// None: the setting `default_mode`, or a PeerAuthentication that says nothing.
    pub(crate) rule: Option<RuleAt<'a>>,
}

/// Every policy about modes, and for each workload which of them apply.
#[derive(Debug)]
pub(crate) struct Modes {
    root: Arc<str>,
    default_mode: Mode,
    mesh_policy: Option<MeshPolicy>,
    policies: Vec<Policy>,
    /// Numbers of the Policies that target a host, oldest first.
    by_target: HashMap<Arc<str>, Vec<usize>>,
    /// The Policy of a whole namespace.
    by_namespace: HashMap<Arc<str>, usize>,
    authentications: Vec<PeerAuthentication>,
    selectors: Selectors,
    levels: Vec<Levels>,
    /// What the levels of each workload say together where no port has a mode of its own: all that most questions need,
    /// and so small that the caches hold it.
    bases: Vec<Option<Base>>,
}

/// The one PeerAuthentication that counts at each level, by number.
#[derive(Clone, Copy, Debug, Default)]
struct Levels {
    mesh: Option<Number>,
    namespace: Option<Number>,
    workload: Option<Number>,
}

#[derive(Clone, Copy, Debug)]
struct Base {
    mode: Mode,
    /// The one that gave it.
    number: Option<Number>,
}

/// A PeerAuthentication's, from 1.
#[derive(Clone, Copy, Debug)]
struct Number(NonZero<u32>);

impl Number {
    fn new(index: usize) -> Option<Self> {
        let number = u32::try_from(index).ok()?.checked_add(1)?;
        NonZero::new(number).map(Self)
    }

    fn index(self) -> Option<usize> {
        usize::try_from(self.0.get()).ok()?.checked_sub(1)
    }
}

impl Levels {
    const fn is_empty(self) -> bool {
        self.mesh.is_none() && self.namespace.is_none() && self.workload.is_none()
    }
}

impl Modes {
    /// Finds for each workload of `registry` the policies that apply to it.
    pub(crate) fn new(resources: &Resources, mesh: &MeshSettings, registry: &Registry) -> Self {
        let policies = resources.policies.clone();
        let mut by_target: HashMap<_, Vec<usize>> = HashMap::new();
        let mut by_namespace = HashMap::new();
        for (number, policy) in policies.iter().enumerate() {
            if policy.targets.is_empty() {
                by_namespace
                    .entry(policy.resource.namespace.clone())
                    .or_insert(number);
            }
            for target in &policy.targets {
                let numbers = by_target.entry(target.host.value.clone()).or_default();
                if numbers.last() != Some(&number) {
                    numbers.push(number);
                }
            }
        }
        let authentications = resources.peer_authentications.clone();
        let selectors = Selectors::new(
            authentications
                .iter()
                .map(|known| (&known.resource.namespace, known.selector.as_ref())),
        );
        let mut modes = Self {
            root: mesh.root_namespace.clone(),
            default_mode: mesh.default_mode,
            mesh_policy: resources.mesh_policy.clone(),
            policies,
            by_target,
            by_namespace,
            authentications,
            selectors,
            levels: Vec::new(),
            bases: Vec::new(),
        };
        let workloads = registry.workloads().iter();
        modes.levels = workloads.map(|workload| modes.levels(workload)).collect();
        let levels = modes.levels.iter();
        modes.bases = levels.map(|levels| modes.base(*levels)).collect();
        modes
    }

    /// The oldest policy of each level counts; ties went to name and namespace when the resources were ordered.
    fn levels(&self, workload: &RegisteredWorkload) -> Levels {
        let first = |numbers: &[usize]| Number::new(*numbers.first()?);
        let mesh = first(self.selectors.whole(&self.root));
        if workload.namespace == self.root {
            return Levels {
                mesh,
                ..Levels::default()
            };
        }
        Levels {
            mesh,
            namespace: first(self.selectors.whole(&workload.namespace)),
            workload: first(&self.selecting(workload)),
        }
    }

    fn base(&self, levels: Levels) -> Option<Base> {
        let has_ports = self
            .authentication(levels.workload)
            .is_some_and(|known| !known.ports.is_empty());
        if levels.is_empty() || has_ports {
            return None;
        }
        let mut base = Base {
            mode: Mode::Permissive,
            number: None,
        };
        for number in [levels.mesh, levels.namespace, levels.workload] {
            if let Some(mode) = self
                .authentication(number)
                .and_then(|known| known.mode.value)
            {
                base = Base { mode, number };
            }
        }
        Some(base)
    }

    fn selecting(&self, workload: &RegisteredWorkload) -> Vec<usize> {
        self.selectors
            .selecting(&workload.namespace, &workload.labels, |number| {
                self.authentications.get(number)?.selector.as_ref()
            })
    }

    /// The mode of a workload for packets to `address` and `port`.
    pub(crate) fn mode<T: Trace>(
        &self,
        registry: &Registry,
        workload: &RegisteredWorkload,
        (address, port): (IpAddr, Option<u16>),
        trace: &mut T,
    ) -> ServerMode<'_> {
        let base = self.bases.get(workload.number).copied().flatten();
        if let Some(base) = base.filter(|_| !T::ON) {
            return self.based(base);
        }
        let levels = self.levels_of(workload);
        if !levels.is_empty() {
            let mode = self.authenticated(levels, port);
            if T::ON {
                self.tell_authentications(workload, levels, &mode, trace);
                self.tell_replaced(registry, workload, address, trace);
            }
            return mode;
        }
        if self.policies.is_empty() {
            let mode = self.mesh_level();
            if T::ON {
                tell_won(&mode, "no narrower policy applies", trace);
            }
            return mode;
        }
        self.by_service(registry, workload, (address, port), trace)
    }

    /// What holds where nothing narrower does.
    pub(crate) fn mesh_mode(&self) -> ServerMode<'_> {
        match self.selectors.whole(&self.root).first() {
            Some(&number) => self.authenticated(
                Levels {
                    mesh: Number::new(number),
                    ..Levels::default()
                },
                None,
            ),
            None => self.mesh_level(),
        }
    }

    /// No resource gives a mode to anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.mesh_policy.is_none() && self.policies.is_empty() && self.authentications.is_empty()
    }

    /// Ports of packets to `address` that some policy for the workload tells apart.
    pub(crate) fn ports(
        &self,
        registry: &Registry,
        workload: &RegisteredWorkload,
        address: IpAddr,
    ) -> BTreeSet<u16> {
        let levels = self.levels_of(workload);
        if !levels.is_empty() {
            let authentication = self.authentication(levels.workload);
            return authentication
                .map_or_else(BTreeSet::new, |known| known.ports.keys().copied().collect());
        }
        if self.policies.is_empty() {
            return BTreeSet::new();
        }
        let services = registry.every_service_at(address, workload.address);
        let mut ports = BTreeSet::new();
        for service in services {
            if service.has_address(address) {
                ports.extend(service.ports.iter().map(|port| port.number));
            }
            if let Some(endpoint) = service.endpoint(workload.address) {
                ports.extend(&endpoint.ports);
            }
        }
        ports
    }

    fn levels_of(&self, workload: &RegisteredWorkload) -> Levels {
        let known = self.levels.get(workload.number);
        known.copied().unwrap_or_default()
    }

    fn authentication(&self, number: Option<Number>) -> Option<&PeerAuthentication> {
        self.authentications.get(number?.index()?)
    }

    fn based(&self, Base { mode, number }: Base) -> ServerMode<'_> {
        let known = self.authentication(number);
        ServerMode {
            mode,
            rule: known.map(|known| rule_ref(&known.resource, &known.mode.place)),
        }
    }

    /// Wide to narrow, each level that is not UNSET replaces the mode; a port of the workload's own policy comes last.
    fn authenticated(&self, levels: Levels, port: Option<u16>) -> ServerMode<'_> {
        let mut mode = ServerMode {
            mode: Mode::Permissive,
            rule: None,
        };
        for level in [levels.mesh, levels.namespace, levels.workload] {
            let Some(known) = self.authentication(level) else {
                continue;
            };
            set(&mut mode, &known.resource, &known.mode);
        }
        let own = self.authentication(levels.workload);
        if let Some(known) = own
            && let Some(entry) = port.and_then(|port| known.ports.get(&port))
        {
            set(&mut mode, &known.resource, entry);
        }
        mode
    }

    /// The first generation: each service that the packet may be for has a mode, and the strictest counts.
    fn by_service<'a, T: Trace>(
        &'a self,
        registry: &Registry,
        workload: &RegisteredWorkload,
        (address, port): (IpAddr, Option<u16>),
        trace: &mut T,
    ) -> ServerMode<'a> {
        let services = registry.every_service_at(address, workload.address);
        let mut strictest: Option<ServerMode<'a>> = None;
        let mut take = |mode: ServerMode<'a>| {
            if strictest
                .as_ref()
                .is_none_or(|known| mode.mode > known.mode)
            {
                strictest = Some(mode);
            }
        };
        let mut has_named = false;
        for service in &services {
            for port in service_ports(service, workload, address, port) {
                has_named = true;
                take(self.service_mode(service, Some(port), trace));
            }
        }
        if !has_named {
            for service in &services {
                take(self.service_mode(service, None, trace));
            }
        }
        let mode = strictest.unwrap_or_else(|| self.namespace_level(&workload.namespace));
        if T::ON {
            tell_won(&mode, "the strictest of the narrowest policies", trace);
            self.tell_lost(&services, trace);
        }
        mode
    }

    /// A service's own Policy, one for this port first; else that of its namespace or of the mesh.
    fn service_mode<T: Trace>(
        &self,
        service: &Service,
        port: Option<&ServicePort>,
        trace: &mut T,
    ) -> ServerMode<'_> {
        let mut for_port = None;
        let mut for_whole = None;
        for policy in self.targeting(service) {
            let mut targets = policy
                .targets
                .iter()
                .filter(|target| target.host.value == service.host);
            let has_whole = targets.clone().any(|target| target.ports.is_empty());
            if targets.any(|target| target.ports.iter().any(|wanted| is_port(wanted, port))) {
                for_port = for_port.or(Some(policy));
            } else if has_whole {
                for_whole = for_whole.or(Some(policy));
            } else if T::ON {
                let why = "it targets other ports of the service";
                trace.note(
                    Step::ServerMode,
                    policy_ref(policy).rule_ref(),
                    false,
                    why.into(),
                );
            }
        }
        match for_port.or(for_whole) {
            Some(policy) => ServerMode {
                mode: policy.mode.value,
                rule: Some(policy_ref(policy)),
            },
            None => self.namespace_level(service.namespace()),
        }
    }

    /// Policies of a service's namespace that target it, oldest first.
    pub(crate) fn targeting(&self, service: &Service) -> impl Iterator<Item = &Policy> {
        let numbers = self.by_target.get(&service.host).into_iter().flatten();
        numbers
            .filter_map(|number| self.policies.get(*number))
            .filter(|policy| policy.resource.namespace == *service.namespace())
    }

    fn namespace_level(&self, namespace: &str) -> ServerMode<'_> {
        let policy = self.by_namespace.get(namespace);
        match policy.and_then(|number| self.policies.get(*number)) {
            Some(policy) => ServerMode {
                mode: policy.mode.value,
                rule: Some(policy_ref(policy)),
            },
            None => self.mesh_level(),
        }
    }

    fn mesh_level(&self) -> ServerMode<'_> {
        match &self.mesh_policy {
            Some(policy) => ServerMode {
                mode: policy.mode.value,
                rule: Some(rule_ref(&policy.resource, &policy.mode.place)),
            },
            None => ServerMode {
                mode: self.default_mode,
                rule: None,
            },
        }
    }

    /// Policies of the first generation that would apply to the workload, were there no PeerAuthentication.
    pub(crate) fn replaced(
        &self,
        registry: &Registry,
        workload: &RegisteredWorkload,
        address: IpAddr,
    ) -> Vec<RuleAt<'_>> {
        if self.policies.is_empty() && self.mesh_policy.is_none() {
            return Vec::new();
        }
        let services = registry.every_service_at(address, workload.address);
        let targeting = services.iter().flat_map(|service| self.targeting(service));
        let mut replaced: Vec<_> = targeting.map(policy_ref).collect();
        replaced.extend(self.namespace_level(&workload.namespace).rule);
        replaced
    }

    /// The PeerAuthentication that applies most narrowly to a workload, if any does.
    pub(crate) fn narrowest(&self, workload: &RegisteredWorkload) -> Option<&PeerAuthentication> {
        let levels = self.levels_of(workload);
        self.authentication(levels.workload.or(levels.namespace).or(levels.mesh))
    }

    /// Every PeerAuthentication that selects the workload, oldest first.
    pub(crate) fn selecting_all(
        &self,
        workload: &RegisteredWorkload,
    ) -> impl Iterator<Item = &PeerAuthentication> {
        let selecting = if workload.namespace == self.root {
            Vec::new()
        } else {
            self.selecting(workload)
        };
        selecting
            .into_iter()
            .filter_map(|number| self.authentications.get(number))
    }

    /// Every PeerAuthentication.
    pub(crate) fn authentications(&self) -> &[PeerAuthentication] {
        &self.authentications
    }

    /// Every Policy.
    pub(crate) fn policies(&self) -> &[Policy] {
        &self.policies
    }
}

/// The ports of a service that a packet to `address` and `port` may be for.
fn service_ports<'a>(
    service: &'a Service,
    workload: &RegisteredWorkload,
    address: IpAddr,
    port: Option<u16>,
) -> impl Iterator<Item = &'a ServicePort> {
    let own = port
        .filter(|_| service.has_address(address))
        .and_then(|number| service.port(number));
    let endpoint = workload.address;
    let behind = port
        .into_iter()
        .flat_map(move |number| service.ports_of_endpoint(endpoint, number));
    own.into_iter().chain(behind)
}

fn is_port(wanted: &Placed<PortSelector>, port: Option<&ServicePort>) -> bool {
    port.is_some_and(|port| match &wanted.value {
        PortSelector::Name(name) => *name == port.name,
        PortSelector::Number(number) => *number == port.number,
    })
}

/// A level that is not UNSET replaces the mode.
fn set<'a>(mode: &mut ServerMode<'a>, resource: &'a ResourceName, given: &'a Placed<Option<Mode>>) {
    if let Some(value) = given.value {
        *mode = ServerMode {
            mode: value,
            rule: Some(rule_ref(resource, &given.place)),
        };
    }
}

fn policy_ref(policy: &Policy) -> RuleAt<'_> {
    rule_ref(&policy.resource, &policy.mode.place)
}

const fn rule_ref<'a>(resource: &'a ResourceName, place: &'a Place) -> RuleAt<'a> {
    RuleAt { resource, place }
}
