//! DestinationRule lookup: which rule a client follows towards a service (policy.md 3.2 to 3.6).

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::HashMap;

use crate::{
    policy::{
        compiled::{
            RuleRef,
            question::Step,
            trace::{Silent, Trace},
        },
        document::{ClientTls, DestinationRule, TrafficPolicy},
    },
    registry::{
        index::{RegisteredWorkload, Service, is_subset},
        service::ExportTo,
    },
};

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

/// The rule that won, and the tls settings it gives for the port asked about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<'a> {
    /// The rule whose traffic policy counts.
    pub(crate) rule: &'a DestinationRule,
    /// `None`: unset.
    pub(crate) tls: Option<&'a ClientTls>,
}

impl Choice<'_> {
    /// The rule, at the setting that decided.
    pub(crate) fn rule_ref(&self) -> RuleRef {
        let place = self.tls.map_or(&self.rule.host.place, |tls| &tls.place);
        RuleRef {
            resource: self.rule.resource.clone(),
            place: place.clone(),
        }
    }
}

/// Every DestinationRule, by namespace and host, oldest first.
#[derive(Debug)]
pub(crate) struct Rules {
    /// Rules of one namespace and host stand together: a bucket.
    rules: Vec<DestinationRule>,
    by_namespace: HashMap<Arc<str>, Hosts>,
    root: Arc<str>,
    /// By number of the service, so that only the client's own namespace is searched by name: buckets whose host covers the
    /// service's, the most specific first, of its own namespace and of the root namespace.
    by_service: Vec<[Few; 2]>,
}

/// Rules that stand together.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    begin: u32,
    end: u32,
    /// It is one rule, and that one is for every client.
    is_open: bool,
}

/// Buckets, of which there is seldom more than one.
#[derive(Debug)]
enum Few {
    None,
    One(Bucket),
    Many(Box<[Bucket]>),
}

impl Few {
    fn as_slice(&self) -> &[Bucket] {
        match self {
            Self::None => &[],
            Self::One(bucket) => std::slice::from_ref(bucket),
            Self::Many(buckets) => buckets,
        }
    }
}

impl FromIterator<Bucket> for Few {
    fn from_iter<I: IntoIterator<Item = Bucket>>(buckets: I) -> Self {
        let buckets: Box<[Bucket]> = buckets.into_iter().collect();
        match &*buckets {
            [] => Self::None,
            [bucket] => Self::One(*bucket),
            _ => Self::Many(buckets),
        }
    }
}

/// The buckets of one namespace, found by host without looking at the others.
#[derive(Debug, Default)]
struct Hosts {
    exact: HashMap<Arc<str>, Bucket>,
    /// By what follows the `*`.
    wildcards: HashMap<Arc<str>, Bucket>,
    /// Lengths of the wildcards' suffixes.
    lengths: BTreeSet<usize>,
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
        let mut found = Self {
            rules: Vec::with_capacity(rules.len()),
            by_namespace: HashMap::new(),
            root: Arc::clone(root),
            by_service: Vec::new(),
        };
        for ((namespace, host), rules) in by_host {
            let is_open = matches!(&*rules, [rule] if is_for_all(rule));
            let begin = number(found.rules.len());
            found.rules.extend(rules.into_iter().cloned());
            let bucket = Bucket {
                begin,
                end: number(found.rules.len()),
                is_open,
            };
            let hosts = found.by_namespace.entry(namespace.clone()).or_default();
            hosts.insert(host, bucket);
        }
        let pools = services.iter().map(|service| {
            [service.namespace(), root]
                .map(|namespace| found.covering_buckets(namespace, &service.host).collect())
        });
        found.by_service = pools.collect();
        found
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
        let own = self.covering_buckets(client.namespace, &service.host);
        let mut found = self.pool(Pool::Client, own, client, None, trace);
        for buckets in self.exported(service) {
            if found.is_some() && !T::ON {
                break;
            }
            let buckets = buckets.iter().copied();
            let here = self.pool(Pool::Exported, buckets, client, found, trace);
            found = found.or(here);
        }
        let rule = found?;
        let tls = rule
            .traffic_policy
            .as_ref()
            .and_then(|policy| tls_of(policy, port));
        Some(Choice { rule, tls })
    }

    /// The pools in which `find` looks, each with its winner; for findings about rules that hide others.
    pub(crate) fn winners(
        &self,
        client: Client<'_>,
        service: &Service,
    ) -> [Option<&DestinationRule>; 3] {
        let own = self.covering_buckets(client.namespace, &service.host);
        let own = self.pool(Pool::Client, own, client, None, &mut Silent);
        let [service, root] = self.exported(service).map(|buckets| {
            let buckets = buckets.iter().copied();
            self.pool(Pool::Exported, buckets, client, None, &mut Silent)
        });
        [own, service, root]
    }

    /// Every rule, by namespace and host, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &DestinationRule> {
        self.rules.iter()
    }

    /// Rules that the namespace of a service, and the root namespace, have for its host.
    pub(crate) fn exportable(&self, service: &Service) -> impl Iterator<Item = &DestinationRule> {
        let [own, root] = self.exported(service);
        own.iter()
            .chain(root)
            .flat_map(|bucket| self.bucket(*bucket))
    }

    fn bucket(&self, bucket: Bucket) -> &[DestinationRule] {
        let Bucket { begin, end, .. } = bucket;
        let range = usize::try_from(begin).ok().zip(usize::try_from(end).ok());
        range
            .and_then(|(begin, end)| self.rules.get(begin..end))
            .unwrap_or_default()
    }

    /// Buckets for a service: those of its own namespace, and those of the root namespace.
    fn exported(&self, service: &Service) -> [&[Bucket]; 2] {
        match self.by_service.get(service.number) {
            Some([own, root]) => [own.as_slice(), root.as_slice()],
            None => [&[], &[]],
        }
    }

    fn covering_buckets<'a, 'h>(
        &'a self,
        namespace: &str,
        host: &'h str,
    ) -> impl Iterator<Item = Bucket> + use<'a, 'h> {
        let hosts = self.by_namespace.get(namespace);
        hosts
            .into_iter()
            .flat_map(move |hosts| hosts.covering(host))
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
    ) -> Option<&'a DestinationRule> {
        let mut winner = None;
        for bucket in buckets {
            let is_open = bucket.is_open && pool == Pool::Exported;
            let bucket = self.bucket(bucket);
            if is_open && !T::ON {
                return bucket.first();
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
        winner.filter(|rule| is_seen(pool, rule, client))
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
            let choice = Choice { rule, tls: None };
            trace.note(Step::ClientRule, choice.rule_ref(), won, why);
        }
    }
}

impl Hosts {
    fn insert(&mut self, host: &Arc<str>, bucket: Bucket) {
        match host.strip_prefix('*') {
            Some(suffix) => {
                self.lengths.insert(suffix.len());
                self.wildcards.insert(suffix.into(), bucket);
            }
            None => drop(self.exact.insert(host.clone(), bucket)),
        }
    }

    /// Buckets whose host covers `host`: an exact one, then wildcards from the longest. The suffix is a plain string, not
    /// labels; a service host with a wildcard is covered by equal or wider wildcards only (policy.md 3.1).
    fn covering<'a, 'h>(&'a self, host: &'h str) -> impl Iterator<Item = Bucket> + use<'a, 'h> {
        let (exact, tail) = match host.strip_prefix('*') {
            Some(tail) => (None, tail),
            None => (self.exact.get(host), host),
        };
        let lengths = self.lengths.range(..=tail.len()).rev();
        let wildcards = lengths.filter_map(move |length| {
            let suffix = tail.get(tail.len().checked_sub(*length)?..)?;
            self.wildcards.get(suffix)
        });
        exact.into_iter().chain(wildcards).copied()
    }
}

/// A place in a list; lists of rules are bounded far below its end.
fn number(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
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
