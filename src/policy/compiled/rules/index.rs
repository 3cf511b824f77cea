//! Where the rules for a service stand: by number of the service, so that names are looked up only where a client's
//! namespace could have a rule for another namespace's host.

use std::{collections::BTreeSet, sync::Arc};

use hashbrown::HashMap;

use super::is_for_all;
use crate::{
    policy::document::{ClientMode, DestinationRule},
    registry::index::Service,
};

/// Every bucket, by namespace and host, and by service.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_namespace: HashMap<Arc<str>, Hosts>,
    /// By number of the service.
    by_service: Vec<Row>,
    /// What [`Few::Many`] counts.
    lists: Vec<Box<[Bucket]>>,
}

/// Rules that stand together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    pub(super) begin: u32,
    pub(super) end: u32,
    pub(super) says: Says,
}

/// What a bucket says, as far as that can be told without reading its rules.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Says {
    /// One rule, that is for every client and gives every port the same mode; the mode is all that it gives.
    Mode(Option<ClientMode>),
    /// One rule, that is for every client.
    One,
    /// There are several rules, or one that is not for every client.
    Several,
}

/// A service's rules: those buckets whose host covers its own, the most specific first.
#[derive(Debug)]
#[repr(align(32))] // so that none lies in two lines of the cache
struct Row {
    /// Of the service's own namespace.
    own: Few,
    /// Of the root namespace.
    root: Few,
    /// The number of the service's namespace, if it has rules.
    namespace: Option<Number>,
    /// Some other namespace has a rule for exactly the service's host.
    is_named_elsewhere: bool,
}

/// Buckets, of which there is seldom more than one.
#[derive(Clone, Copy, Debug)]
enum Few {
    None,
    One(Bucket),
    Many(u32),
}

/// A namespace that has rules.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Number(std::num::NonZero<u32>);

/// The buckets of one namespace, found by host without looking at the others.
#[derive(Debug)]
struct Hosts {
    number: Number,
    is_root: bool,
    exact: HashMap<Arc<str>, Bucket>,
    /// By what follows the `*`.
    wildcards: HashMap<Arc<str>, Bucket>,
    /// Lengths of the wildcards' suffixes.
    lengths: BTreeSet<usize>,
}

impl Bucket {
    /// `rules` begin at this place.
    pub(super) fn new(begin: usize, rules: &[&DestinationRule]) -> Self {
        Self {
            begin: place(begin),
            end: place(begin.saturating_add(rules.len())),
            says: Says::of(rules),
        }
    }
}

impl Says {
    fn of(rules: &[&DestinationRule]) -> Self {
        let [rule] = rules else { return Self::Several };
        if !is_for_all(rule) {
            return Self::Several;
        }
        let Some(policy) = &rule.traffic_policy else {
            return Self::Mode(None);
        };
        match &policy.tls {
            _ if !policy.ports.is_empty() => Self::One,
            Some(tls) if tls.subject_alt_names.is_some() => Self::One,
            tls => Self::Mode(tls.as_ref().map(|tls| tls.mode)),
        }
    }
}

impl Index {
    /// `buckets` come with their namespace and host.
    pub(super) fn new(
        buckets: &[(&Arc<str>, &Arc<str>, Bucket)],
        root: &Arc<str>,
        services: &[Service],
    ) -> Self {
        let mut index = Self::default();
        let mut next = std::num::NonZero::<u32>::MIN;
        let mut times: HashMap<&str, usize> = HashMap::new();
        for &(namespace, host, bucket) in buckets {
            let hosts = index
                .by_namespace
                .entry(Arc::clone(namespace))
                .or_insert_with(|| {
                    let number = Number(next);
                    next = next.saturating_add(1);
                    Hosts::new(number, namespace == root)
                });
            hosts.insert(host, bucket);
            *times.entry(host).or_default() += 1;
        }
        index.by_service.reserve_exact(services.len());
        for service in services {
            let times = times.get(&*service.host).copied().unwrap_or_default();
            let row = index.row(root, service, times);
            index.by_service.push(row);
        }
        index
    }

    /// `times`: in so many namespaces is a rule for exactly the service's host.
    fn row(&mut self, root: &Arc<str>, service: &Service, times: usize) -> Row {
        let host = &*service.host;
        let namespaces = [service.namespace(), root];
        let [own, of_root] = namespaces.map(|namespace| self.by_namespace.get(namespace));
        let covering = |hosts: Option<&Hosts>| -> Vec<Bucket> {
            hosts.map_or_else(Vec::new, |hosts| hosts.covering(host).collect())
        };
        let found = [covering(own), covering(of_root)];
        let is_root = own.is_some_and(|own| own.is_root);
        let here = [own, of_root.filter(|_| !is_root)].into_iter().flatten();
        let here = here.filter(|hosts| hosts.exact.contains_key(host)).count();
        let namespace = own.map(|own| own.number);
        let [own, root] = found.map(|found| self.few(found));
        Row {
            own,
            root,
            namespace,
            is_named_elsewhere: times > here,
        }
    }

    fn few(&mut self, buckets: Vec<Bucket>) -> Few {
        match *buckets {
            [] => Few::None,
            [bucket] => Few::One(bucket),
            _ => {
                self.lists.push(buckets.into());
                Few::Many(place(self.lists.len().saturating_sub(1)))
            }
        }
    }

    /// Buckets for a service: those of its own namespace, and those of the root namespace.
    pub(super) fn exported(&self, service: &Service) -> [&[Bucket]; 2] {
        match self.by_service.get(service.number) {
            Some(Row { own, root, .. }) => [own, root].map(|few| self.list(few)),
            None => [&[], &[]],
        }
    }

    /// Buckets of a client's namespace for a service.
    pub(super) fn of_client<'a>(
        &'a self,
        namespace: &str,
        service: &'a Service,
    ) -> impl Iterator<Item = Bucket> + use<'a> {
        let row = self.by_service.get(service.number);
        let hosts = self.by_namespace.get(namespace).zip(row);
        let (known, named) = match hosts {
            Some((hosts, row)) if row.namespace == Some(hosts.number) => (&row.own, None),
            Some((hosts, row)) if hosts.is_root => (&row.root, None),
            Some((hosts, row)) if row.is_named_elsewhere || hosts.has_wildcards() => {
                (&Few::None, Some(hosts))
            }
            Some(_) | None => (&Few::None, None),
        };
        let named = named
            .into_iter()
            .flat_map(|hosts| hosts.covering(&service.host));
        self.list(known).iter().copied().chain(named)
    }

    fn list<'a>(&'a self, few: &'a Few) -> &'a [Bucket] {
        match few {
            Few::None => &[],
            Few::One(bucket) => std::slice::from_ref(bucket),
            Few::Many(place) => {
                let list = usize::try_from(*place).ok();
                list.and_then(|list| self.lists.get(list))
                    .map_or(&[], |list| list)
            }
        }
    }
}

impl Hosts {
    fn new(number: Number, is_root: bool) -> Self {
        Self {
            number,
            is_root,
            exact: HashMap::new(),
            wildcards: HashMap::new(),
            lengths: BTreeSet::new(),
        }
    }

    fn has_wildcards(&self) -> bool {
        !self.lengths.is_empty()
    }

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
fn place(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
