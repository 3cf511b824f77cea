//! What rules test, laid out for reading: all rules of a policy stand together in three lists, so that a mesh with a
//! million rules is asked without wandering through memory.

use std::{cell::OnceCell, net::IpAddr, sync::Arc};

use hashbrown::HashMap;
use ipnetwork::IpNetwork;

use super::Call;
use crate::policy::{
    MeshSettings,
    document::{Action, AuthorizationRule, Clause, StringMatch, Test},
};

/// Every rule's tests.
#[derive(Debug)]
pub(super) struct Program {
    rules: Vec<Parts>,
    tests: Vec<Small>,
    values: Vec<u32>,
    /// Texts that some rule names exactly, each with its number.
    texts: HashMap<Arc<str>, u32>,
    /// Texts with a wildcard.
    patterns: Vec<StringMatch>,
    networks: Vec<IpNetwork>,
    /// The mesh's own trust domain and its aliases, which are one to every rule.
    domains: Vec<Arc<str>>,
}

/// A rule of the program. Rules that were added together follow one another.
#[derive(Clone, Copy, Debug)]
pub(super) struct RuleId(u32);

impl RuleId {
    /// The rule that was added so many after this one.
    pub(super) const fn plus(self, count: u32) -> Self {
        Self(self.0.saturating_add(count))
    }
}

/// `from`, `to` and `when`: where each ends; each begins where the one before ends. The first two are alternatives of
/// groups, the last is one group.
#[derive(Clone, Copy, Debug)]
struct Parts {
    begin: u32,
    from: u32,
    to: u32,
    when: u32,
}

/// One clause; its values are a range of the program's, or its only value is here.
#[derive(Clone, Copy, Debug)]
struct Small {
    kind: Kind,
    negated: bool,
    /// The last of the clauses that must hold together.
    ends_group: bool,
    /// The value itself where there is one only.
    first: u32,
    count: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// A group without clauses.
    Always,
    DestinationIp,
    DestinationPort,
    SourceIp,
    SourceNamespace,
    SourcePrincipal,
    SourceServiceAccount,
    SourceTrustDomain,
}

/// A value with this bit is a pattern, others are texts.
const PATTERN: u32 = 1 << 31;

/// A call, and what of it was looked up already.
pub(super) struct Asked<'a> {
    call: &'a Call<'a>,
    principal: OnceCell<Vec<Text>>,
    namespace: OnceCell<Option<Text>>,
    account: OnceCell<Option<Text>>,
    domains: OnceCell<Vec<Text>>,
}

/// A text of the call: its number, where a rule names it, and itself, for patterns.
struct Text {
    number: Option<u32>,
    text: Box<str>,
}

impl<'a> Asked<'a> {
    pub(super) const fn new(call: &'a Call<'a>) -> Self {
        Self {
            call,
            principal: OnceCell::new(),
            namespace: OnceCell::new(),
            account: OnceCell::new(),
            domains: OnceCell::new(),
        }
    }
}

/// One of the three parts of a rule.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    From,
    To,
    When,
}

impl Part {
    /// In the order of asking.
    pub(super) const ALL: [Self; 3] = [Self::From, Self::To, Self::When];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::From => "from",
            Self::To => "to",
            Self::When => "when",
        }
    }
}

impl Program {
    pub(super) fn new(mesh: &MeshSettings) -> Self {
        let domains = std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases);
        Self {
            rules: Vec::new(),
            tests: Vec::new(),
            values: Vec::new(),
            texts: HashMap::new(),
            patterns: Vec::new(),
            networks: Vec::new(),
            domains: domains.map(|domain| domain.as_str().into()).collect(),
        }
    }

    /// Adds a rule's tests.
    pub(super) fn add(&mut self, rule: &AuthorizationRule) {
        let begin = number(self.tests.len());
        self.add_groups(&rule.from);
        let from = number(self.tests.len());
        self.add_groups(&rule.to);
        let to = number(self.tests.len());
        self.add_group(&rule.when);
        let when = number(self.tests.len());
        self.rules.push(Parts {
            begin,
            from,
            to,
            when,
        });
    }

    /// The rule that is added next.
    pub(super) fn next(&self) -> RuleId {
        RuleId(number(self.rules.len()))
    }

    /// Every part of a rule matches.
    pub(super) fn matches(&self, rule: RuleId, action: Action, asked: &Asked<'_>) -> bool {
        let mut parts = Part::ALL.into_iter();
        parts.all(|part| self.part_matches(rule, part, action, asked))
    }

    /// One part of a rule matches: a group of its clauses holds, or there is none.
    pub(super) fn part_matches(
        &self,
        rule: RuleId,
        part: Part,
        action: Action,
        asked: &Asked<'_>,
    ) -> bool {
        let tests = self.part(rule, part);
        let mut holds = true;
        for test in tests {
            holds = holds && self.test_matches(test, action, asked);
            if test.ends_group {
                if holds {
                    return true;
                }
                holds = true;
            }
        }
        tests.is_empty()
    }

    /// Ports that a rule tells apart.
    pub(super) fn ports(&self, rule: RuleId) -> impl Iterator<Item = u16> {
        self.values_of(rule, Kind::DestinationPort)
            .filter_map(|value| u16::try_from(value).ok())
    }

    /// Source networks that a rule tells apart.
    pub(super) fn source_networks(&self, rule: RuleId) -> impl Iterator<Item = IpNetwork> {
        self.values_of(rule, Kind::SourceIp)
            .filter_map(|value| self.networks.get(usize::try_from(value).ok()?).copied())
    }

    fn values_of(&self, rule: RuleId, kind: Kind) -> impl Iterator<Item = u32> {
        let tests = Part::ALL
            .into_iter()
            .flat_map(move |part| self.part(rule, part));
        tests
            .filter(move |test| test.kind == kind)
            .flat_map(|test| self.values(test).iter().copied())
    }

    fn part(&self, rule: RuleId, part: Part) -> &[Small] {
        let parts = usize::try_from(rule.0).ok();
        let Some(parts) = parts.and_then(|index| self.rules.get(index)) else {
            return &[];
        };
        let (first, end) = match part {
            Part::From => (parts.begin, parts.from),
            Part::To => (parts.from, parts.to),
            Part::When => (parts.to, parts.when),
        };
        slice(&self.tests, first, end)
    }

    fn values<'a>(&'a self, test: &'a Small) -> &'a [u32] {
        match test.count {
            1 => std::slice::from_ref(&test.first),
            count => slice(&self.values, test.first, test.first.saturating_add(count)),
        }
    }

    fn test_matches(&self, test: &Small, action: Action, asked: &Asked<'_>) -> bool {
        let call = asked.call;
        let matches = match test.kind {
            Kind::Always => true,
            // Without a port nothing can be said about it: the answer is the one that lets less through (policy.md 0.6).
            Kind::DestinationPort => match call.port {
                Some(port) => self.values(test).contains(&port.into()),
                None => return test.negated && action == Action::Deny,
            },
            Kind::DestinationIp => self.contains(test, call.destination),
            Kind::SourceIp => self.contains(test, call.source),
            Kind::SourceNamespace => self.is_any(test, self.namespace(asked)),
            Kind::SourceServiceAccount => self.is_any(test, self.account(asked)),
            Kind::SourcePrincipal => self.is_any(test, self.principals(asked)),
            Kind::SourceTrustDomain => self.is_any(test, self.trust_domains(asked)),
        };
        matches != test.negated
    }

    fn contains(&self, test: &Small, address: IpAddr) -> bool {
        self.values(test).iter().any(|value| {
            let network = usize::try_from(*value).ok();
            let network = network.and_then(|index| self.networks.get(index));
            network.is_some_and(|network| network.contains(address))
        })
    }

    fn is_any<'t>(&self, test: &Small, texts: impl IntoIterator<Item = &'t Text>) -> bool {
        let values = self.values(test);
        texts.into_iter().any(|text| {
            values.iter().any(|value| match value & PATTERN {
                0 => text.number == Some(*value),
                _ => self.pattern_matches(value & !PATTERN, &text.text),
            })
        })
    }

    fn pattern_matches(&self, index: u32, text: &str) -> bool {
        let pattern = usize::try_from(index).ok();
        match pattern.and_then(|index| self.patterns.get(index)) {
            Some(StringMatch::Exact(wanted)) => **wanted == *text,
            Some(StringMatch::Prefix(wanted)) => text.starts_with(&**wanted),
            Some(StringMatch::Present) => !text.is_empty(),
            Some(StringMatch::Suffix(wanted)) => text.ends_with(&**wanted),
            None => false,
        }
    }

    fn text(&self, text: &str) -> Text {
        Text {
            number: self.texts.get(text).copied(),
            text: text.into(),
        }
    }

    fn namespace<'a>(&self, asked: &'a Asked<'_>) -> Option<&'a Text> {
        let find = || {
            let (namespace, _) = asked.call.identity?.service_account()?;
            Some(self.text(namespace))
        };
        asked.namespace.get_or_init(find).as_ref()
    }

    /// A service account is known by the path of its identity.
    fn account<'a>(&self, asked: &'a Asked<'_>) -> Option<&'a Text> {
        let find = || {
            let identity = asked.call.identity?;
            identity.service_account()?;
            Some(self.text(identity.path()))
        };
        asked.account.get_or_init(find).as_ref()
    }

    /// An identity of the mesh's own trust domain has that of each alias too.
    fn principals<'a>(&self, asked: &'a Asked<'_>) -> &'a [Text] {
        asked.principal.get_or_init(|| {
            let Some(identity) = asked.call.identity else {
                return Vec::new();
            };
            let mut principals = vec![self.text(identity.as_principal())];
            let domain = identity.trust_domain_str();
            if self.domains.len() > 1 && self.is_own(domain) {
                let others = self.domains.iter().filter(|other| ***other != *domain);
                let path = identity.path();
                principals.extend(others.map(|other| self.text(&format!("{other}{path}"))));
            }
            principals
        })
    }

    fn trust_domains<'a>(&self, asked: &'a Asked<'_>) -> &'a [Text] {
        asked.domains.get_or_init(|| {
            let Some(identity) = asked.call.identity else {
                return Vec::new();
            };
            match identity.trust_domain_str() {
                own if self.is_own(own) => self
                    .domains
                    .iter()
                    .map(|domain| self.text(domain))
                    .collect(),
                other => vec![self.text(other)],
            }
        })
    }

    fn is_own(&self, domain: &str) -> bool {
        self.domains.iter().any(|own| **own == *domain)
    }

    fn add_groups(&mut self, groups: &[Vec<Clause>]) {
        for group in groups {
            match group.is_empty() {
                true => self.tests.push(ALWAYS),
                false => self.add_group(group),
            }
        }
    }

    fn add_group(&mut self, clauses: &[Clause]) {
        for clause in clauses {
            let begin = self.values.len();
            let kind = self.add_values(&clause.test);
            let count = self.values.len().saturating_sub(begin);
            let first = match count {
                1 => self.values.pop().unwrap_or_default(),
                _ => number(begin),
            };
            self.tests.push(Small {
                kind,
                negated: clause.negated,
                ends_group: false,
                first,
                count: number(count),
            });
        }
        if let Some(last) = self.tests.last_mut().filter(|_| !clauses.is_empty()) {
            last.ends_group = true;
        }
    }

    fn add_values(&mut self, test: &Test) -> Kind {
        match test {
            Test::DestinationIp(networks) => {
                self.add_networks(networks);
                Kind::DestinationIp
            }
            Test::DestinationPort(ports) => {
                self.values
                    .extend(ports.iter().map(|port| u32::from(*port)));
                Kind::DestinationPort
            }
            Test::SourceIp(networks) => {
                self.add_networks(networks);
                Kind::SourceIp
            }
            Test::SourceNamespace(texts) => {
                self.add_texts(texts);
                Kind::SourceNamespace
            }
            Test::SourcePrincipal(texts) => {
                self.add_texts(texts);
                Kind::SourcePrincipal
            }
            Test::SourceServiceAccount(accounts) => {
                for (namespace, account) in accounts {
                    let path = format!("/ns/{namespace}/sa/{account}");
                    let value = self.intern(&path.into());
                    self.values.push(value);
                }
                Kind::SourceServiceAccount
            }
            Test::SourceTrustDomain(texts) => {
                self.add_texts(texts);
                Kind::SourceTrustDomain
            }
        }
    }

    fn add_networks(&mut self, networks: &[IpNetwork]) {
        for network in networks {
            self.values.push(number(self.networks.len()));
            self.networks.push(*network);
        }
    }

    fn add_texts(&mut self, texts: &[StringMatch]) {
        for text in texts {
            let value = if let StringMatch::Exact(text) = text {
                self.intern(text)
            } else {
                self.patterns.push(text.clone());
                PATTERN | number(self.patterns.len() - 1)
            };
            self.values.push(value);
        }
    }

    fn intern(&mut self, text: &Arc<str>) -> u32 {
        let next = number(self.texts.len());
        *self.texts.entry(text.clone()).or_insert(next)
    }
}

const ALWAYS: Small = Small {
    kind: Kind::Always,
    negated: false,
    ends_group: true,
    first: 0,
    count: 0,
};

/// A place in a list. Files are bounded far below 2³¹ values; beyond it nothing would match any more.
fn number(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX) & !PATTERN
}

fn slice<T>(list: &[T], first: u32, end: u32) -> &[T] {
    let range = usize::try_from(first).ok().zip(usize::try_from(end).ok());
    range
        .and_then(|(first, end)| list.get(first..end))
        .unwrap_or_default()
}
