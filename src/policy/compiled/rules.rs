//! DestinationRule lookup: which rule a client follows towards a service (policy.md 3.2 to 3.6).

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    policy::{
        compiled::{
            RuleRef,
            question::Step,
            trace::{Silent, Trace},
        },
        document::{ClientMode, ClientTls, DestinationRule, TrafficPolicy},
    },
    registry::{
        index::{RegisteredWorkload, Service, is_subset},
        service::ExportTo,
    },
};

mod index;

use index::{Bucket, Index, Says};

/// Who asks: lookup depends on the client's namespace and labels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client<'a> {
    /// The client workload's namespace.
    pub(crate) namespace: &'a Arc<str>,
    /// Its labels.
    pub(crate) labels: &'a BTreeMap<Arc<str>, Arc<str>>,
}

impl<'a> From<&'a RegisteredWorkload> for Client<'a> {
    fn from(workload: &'a RegisteredWorkload) -> Self {
        Self {
            namespace: &workload.namespace,
            labels: &workload.labels,
        }
    }
}

/// The rule that won, and what it says for the port asked about. The usual rule is not read for that: it lies far away,
/// and only who asks for more than the mode goes there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<'a> {
    /// The rule whose traffic policy counts.
    rule: &'a DestinationRule,
    /// The service's.
    port: Option<u16>,
    /// `None`: unset.
    pub(crate) mode: Option<ClientMode>,
    has_names: bool,
}

impl<'a> Choice<'a> {
    fn new(found: Found<'a>, port: Option<u16>) -> Self {
        let Found { rule, says } = found;
        let choice = Self {
            rule,
            port,
            mode: None,
            has_names: false,
        };
        if let Says::Mode(mode) = says {
            return Self { mode, ..choice };
        }
        let tls = choice.tls();
        Self {
            mode: tls.map(|tls| tls.mode),
            has_names: tls.is_some_and(|tls| tls.subject_alt_names.is_some()),
            ..choice
        }
    }

    /// The subjectAltNames that replace those of the registry.
    pub(crate) fn names(&self) -> Option<&'a BTreeSet<Arc<str>>> {
        let tls = self.has_names.then(|| self.tls())?;
        tls?.subject_alt_names.as_ref()
    }

    /// The rule, at the setting that decided.
    pub(crate) fn rule_ref(&self) -> RuleRef {
        let place = self.tls().map_or(&self.rule.host.place, |tls| &tls.place);
        RuleRef {
            resource: self.rule.resource.clone(),
            place: place.clone(),
        }
    }

    fn tls(&self) -> Option<&'a ClientTls> {
        tls_of(self.rule.traffic_policy.as_ref()?, self.port)
    }
}

/// The winner of a pool, and what its bucket knows of it.
#[derive(Clone, Copy, Debug)]
struct Found<'a> {
    rule: &'a DestinationRule,
    says: Says,
}

/// Every DestinationRule, by namespace and host, oldest first.
#[derive(Debug)]
pub(crate) struct Rules {
    /// Rules of one namespace and host stand together: a bucket.
    rules: Vec<DestinationRule>,
    index: Index,
    root: Arc<str>,
}

/// Where a rule is looked for (policy.md 3.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Pool {
    /// Rules of the client's own namespace that it sees; for clients of the root namespace only that namespace's
    /// private rules, so that mesh-wide rules stay the last resort for them too.
    Client,
    /// Rules that a namespace exports.
    Exported,
}

impl Rules {
    pub(crate) fn new(rules: &[DestinationRule], root: &Arc<str>, services: &[Service]) -> Self {
        let mut by_host: BTreeMap<_, Vec<&DestinationRule>> = BTreeMap::new();
        for rule in rules {
            let key = (&rule.resource.namespace, &rule.host.value);
            by_host.entry(key).or_default().push(rule);
        }
        let mut ordered = Vec::with_capacity(rules.len());
        let mut buckets = Vec::with_capacity(by_host.len());
        for ((namespace, host), rules) in by_host {
            buckets.push((namespace, host, Bucket::new(ordered.len(), &rules)));
            ordered.extend(rules.into_iter().cloned());
        }
        Self {
            rules: ordered,
            index: Index::new(&buckets, root, services),
            root: Arc::clone(root),
        }
    }

    /// What `client` is told for `port` of a service; `port` is the service's port number, `None` asks for the service
    /// as a whole. Pools are asked in order and the first with a match ends the search, also when its rule says
    /// nothing about tls (policy.md 3.3).
    pub(crate) fn find<T: Trace>(
        &self,
        client: Client<'_>,
        service: &Service,
        port: Option<u16>,
        trace: &mut T,
    ) -> Option<Choice<'_>> {
        let own = self.index.of_client(client.namespace, service);
        let mut found = self.pool(Pool::Client, own, client, None, trace);
        for buckets in self.index.exported(service) {
            if found.is_some() && !T::ON {
                break;
            }
            let buckets = buckets.iter().copied();
            let earlier = found.map(|found| found.rule);
            let here = self.pool(Pool::Exported, buckets, client, earlier, trace);
            found = found.or(here);
        }
        Some(Choice::new(found?, port))
    }

    /// The pools in which `find` looks, each with its winner; for findings about rules that hide others.
    pub(crate) fn winners(
        &self,
        client: Client<'_>,
        service: &Service,
    ) -> [Option<&DestinationRule>; 3] {
        let own = self.index.of_client(client.namespace, service);
        let own = self.pool(Pool::Client, own, client, None, &mut Silent);
        let [service, root] = self.index.exported(service).map(|buckets| {
            let buckets = buckets.iter().copied();
            self.pool(Pool::Exported, buckets, client, None, &mut Silent)
        });
        [own, service, root].map(|found| found.map(|found| found.rule))
    }

    /// Every rule, by namespace and host, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &DestinationRule> {
        self.rules.iter()
    }

    /// Rules that the namespace of a service, and the root namespace, have for its host.
    pub(crate) fn exportable(&self, service: &Service) -> impl Iterator<Item = &DestinationRule> {
        let [own, root] = self.index.exported(service);
        own.iter()
            .chain(root)
            .flat_map(|bucket| self.bucket(*bucket))
    }

    fn bucket(&self, bucket: Bucket) -> &[DestinationRule] {
        let range = usize::try_from(bucket.begin)
            .ok()
            .zip(usize::try_from(bucket.end).ok());
        range
            .and_then(|(begin, end)| self.rules.get(begin..end))
            .unwrap_or_default()
    }

    /// The winner among the rules of a pool: most specific host, then a rule for this very client, then visible ones,
    /// then the oldest. `earlier` is what an earlier pool has found.
    fn pool<'a, T: Trace>(
        &'a self,
        pool: Pool,
        buckets: impl Iterator<Item = Bucket>,
        client: Client<'_>,
        earlier: Option<&DestinationRule>,
        trace: &mut T,
    ) -> Option<Found<'a>> {
        // clients of the root namespace find none of its mesh-wide rules in their own pool
        let is_open = pool == Pool::Exported || *client.namespace != self.root;
        let mut winner = None;
        for bucket in buckets {
            let says = bucket.says;
            let bucket = self.bucket(bucket);
            if is_open && says != Says::Several && !T::ON {
                let rule = bucket.first()?;
                return Some(Found { rule, says });
            }
            let member = |rule: &&DestinationRule| self.why_no_member(pool, rule, client).is_none();
            if winner.is_none() {
                winner = best(bucket.iter().filter(member), client);
            }
            if T::ON {
                self.tell(pool, bucket, winner, earlier, client, trace);
            } else if winner.is_some() {
                break;
            }
        }
        let rule = winner.filter(|rule| is_seen(pool, rule, client))?;
        let says = Says::Several;
        Some(Found { rule, says })
    }

    /// Why a rule is not in a pool for this client.
    fn why_no_member(
        &self,
        pool: Pool,
        rule: &DestinationRule,
        client: Client<'_>,
    ) -> Option<&'static str> {
        if !selects(rule, client) {
            return Some("its workloadSelector does not select the client");
        }
        let (is_member, why) = match pool {
            Pool::Client if *client.namespace == self.root => (
                is_private(rule),
                "clients of the root namespace come to its mesh-wide rules last",
            ),
            Pool::Client => (
                rule.export_to.includes(client.namespace),
                "it is not exported to its own namespace",
            ),
            Pool::Exported => (!is_private(rule), "it is private to its namespace"),
        };
        (!is_member).then_some(why)
    }

    fn tell<T: Trace>(
        &self,
        pool: Pool,
        bucket: &[DestinationRule],
        winner: Option<&DestinationRule>,
        earlier: Option<&DestinationRule>,
        client: Client<'_>,
        trace: &mut T,
    ) {
        for rule in bucket {
            let is_winner = winner.is_some_and(|winner| winner.resource == rule.resource);
            let why: Cow<'static, str> = match (self.why_no_member(pool, rule, client), earlier) {
                (Some(why), _) => why.into(),
                (None, Some(earlier)) => format!("{} comes first", earlier.resource).into(),
                (None, None) if is_winner && is_seen(pool, rule, client) => match pool {
                    Pool::Client => "the most specific of the client's namespace".into(),
                    Pool::Exported => "the most specific of its namespace".into(),
                },
                (None, None) if is_winner => format!(
                    "the most specific, but not exported to {}",
                    client.namespace
                )
                .into(),
                (None, None) => match winner {
                    Some(winner) if winner.host.value != rule.host.value => {
                        format!("{} has a more specific host", winner.resource).into()
                    }
                    Some(winner) => {
                        format!("{} has the same host and comes first", winner.resource).into()
                    }
                    None => "no rule of its namespace counts".into(),
                },
            };
            let won = is_winner && earlier.is_none() && is_seen(pool, rule, client);
            let rule = RuleRef {
                resource: rule.resource.clone(),
                place: rule.host.place.clone(),
            };
            trace.note(Step::ClientRule, rule, won, why);
        }
    }
}

/// The rule of one host that counts for a client. One without traffic policy takes the next one's of the same audience
/// and selector.
fn best<'a>(
    members: impl Iterator<Item = &'a DestinationRule> + Clone,
    client: Client<'_>,
) -> Option<&'a DestinationRule> {
    let first = members.clone().min_by_key(|rule| {
        (
            rule.workload_selector.is_none(),
            !rule.export_to.includes(client.namespace),
        )
    })?;
    let mut merged = members.filter(|rule| {
        rule.export_to == first.export_to && rule.workload_selector == first.workload_selector
    });
    merged
        .find(|rule| rule.traffic_policy.is_some())
        .or(Some(first))
}

/// An exported rule is there for the namespaces that it names; the client's own pool has been asked already.
fn is_seen(pool: Pool, rule: &DestinationRule, client: Client<'_>) -> bool {
    pool == Pool::Client || rule.export_to.includes(client.namespace)
}

/// Rules that can never decide because an older rule of the same host, audience and selector has a traffic policy.
pub(crate) fn shadowed(rules: &Rules) -> Vec<(&DestinationRule, &DestinationRule)> {
    let mut first: BTreeMap<_, &DestinationRule> = BTreeMap::new();
    let mut shadowed = Vec::new();
    for rule in rules.iter().filter(|rule| rule.traffic_policy.is_some()) {
        let audience = match &rule.export_to {
            ExportTo::All => None,
            ExportTo::Namespaces(names) => Some(names.clone()),
            ExportTo::Nobody => Some(BTreeSet::new()),
        };
        let key = (
            &rule.resource.namespace,
            &rule.host.value,
            audience,
            &rule.workload_selector,
        );
        match first.get(&key) {
            Some(older) => shadowed.push((*older, rule)),
            None => drop(first.insert(key, rule)),
        }
    }
    shadowed
}

/// A port's entry replaces the rule's settings as a block: without tls there it is unset (policy.md 3.6).
fn tls_of(policy: &TrafficPolicy, port: Option<u16>) -> Option<&ClientTls> {
    let entry = port.and_then(|port| policy.ports.iter().find(|entry| entry.port == port));
    entry.map_or(policy.tls.as_ref(), |entry| entry.tls.as_ref())
}

/// Nothing about the client decides whether the rule counts.
const fn is_for_all(rule: &DestinationRule) -> bool {
    matches!(rule.export_to, ExportTo::All) && rule.workload_selector.is_none()
}

/// Exported to its own namespace alone; a workload selector forces that (policy.md 3.4).
fn is_private(rule: &DestinationRule) -> bool {
    let exported_to_own = match &rule.export_to {
        ExportTo::Namespaces(names) => names.len() == 1 && names.contains(&rule.resource.namespace),
        ExportTo::All | ExportTo::Nobody => false,
    };
    exported_to_own || rule.workload_selector.is_some()
}

/// A rule whose selector does not name this client does not exist for it.
fn selects(rule: &DestinationRule, client: Client<'_>) -> bool {
    rule.workload_selector.as_ref().is_none_or(|wanted| {
        rule.resource.namespace == *client.namespace && is_subset(wanted, client.labels)
    })
}
