//! What rules test, laid out for reading: the tests of all rules of a policy stand together, eight bytes each, so that
//! a mesh with a million rules is asked without wandering through memory.

use std::{borrow::Cow, cell::OnceCell, net::IpAddr, sync::Arc};

use hashbrown::HashMap;
use ipnetwork::IpNetwork;

use super::Call;
use crate::policy::document::{Action, StringMatch};

mod build;

/// Every rule's tests.
#[derive(Debug)]
pub(super) struct Program {
    tests: Vec<Small>,
    /// Lists of values, each after its length.
    values: Vec<u32>,
    /// Texts that some rule names exactly, each with its number.
    texts: HashMap<Arc<str>, u32>,
    /// Texts with a wildcard.
    patterns: Vec<StringMatch>,
    networks: Vec<IpNetwork>,
    /// The mesh's own trust domain and its aliases, which are one to every rule.
    domains: Vec<Arc<str>>,
}

/// Where the rules of a policy begin; they end with the policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct RulesAt(u32);

impl RulesAt {
    /// Of a policy without rules.
    const NONE: Self = Self(u32::MAX);
}

/// The tests of one rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule<'a>(&'a [Small]);

/// One clause.
#[derive(Clone, Copy, Debug)]
struct Small {
    /// The value itself where there is one only, else where the list of values stands.
    value: u32,
    kind: Kind,
    marks: u8,
    part: Part,
    ends: Ends,
}

impl Small {
    /// The clause holds where its test does not.
    const NEGATED: u8 = 1;
    /// There is a list of values.
    const LIST: u8 = 2;

    const fn has(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }
}

/// What a clause is the last one of; the end of something is the end of all within it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Ends {
    Nothing,
    /// The clauses that must hold together.
    Group,
    Part,
    Rule,
    Policy,
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
    principals: OnceCell<Texts<'a>>,
    namespace: OnceCell<Option<Text<'a>>>,
    account: OnceCell<Option<Text<'a>>>,
    domains: OnceCell<Texts<'a>>,
}

/// A text of the call: its number, where a rule names it, and itself, for patterns.
struct Text<'a> {
    number: Option<u32>,
    text: Cow<'a, str>,
}

/// A text of the call, and what it is called in the mesh's other trust domains.
#[derive(Default)]
struct Texts<'a> {
    own: Option<Text<'a>>,
    others: Vec<Text<'a>>,
}

impl<'a> Texts<'a> {
    fn iter(&self) -> impl Iterator<Item = &Text<'a>> {
        self.own.iter().chain(&self.others)
    }
}

impl<'a> Asked<'a> {
    pub(super) const fn new(call: &'a Call<'a>) -> Self {
        Self {
            call,
            principals: OnceCell::new(),
            namespace: OnceCell::new(),
            account: OnceCell::new(),
            domains: OnceCell::new(),
        }
    }
}

/// One of the three parts of a rule: the first two are alternatives of groups, the last is one group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    From,
    To,
    When,
}

impl Part {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::From => "from",
            Self::To => "to",
            Self::When => "when",
        }
    }
}

impl Program {
    /// The rules that were added together.
    pub(super) fn rules(&self, RulesAt(begin): RulesAt) -> impl Iterator<Item = Rule<'_>> {
        let begin = usize::try_from(begin).ok();
        let mut rest = begin.and_then(|begin| self.tests.get(begin..));
        std::iter::from_fn(move || {
            let tests = rest?;
            let last = tests.iter().position(|test| test.ends >= Ends::Rule)?;
            let (rule, others) = tests.split_at_checked(last.checked_add(1)?)?;
            let ends_policy = rule.last().is_some_and(|test| test.ends == Ends::Policy);
            rest = (!ends_policy).then_some(others);
            Some(Rule(rule))
        })
    }

    /// The first of the rules that were added together that matches, by index.
    pub(super) fn first_match(
        &self,
        rules: RulesAt,
        action: Action,
        asked: &Asked<'_>,
    ) -> Option<usize> {
        let mut rules = self.rules(rules);
        rules.position(|rule| self.matches(rule, action, asked))
    }

    /// Every part of a rule matches.
    fn matches(&self, Rule(tests): Rule<'_>, action: Action, asked: &Asked<'_>) -> bool {
        let mut parts = tests.split_inclusive(|test| test.ends >= Ends::Part);
        parts.all(|part| self.any_group(part.iter(), action, asked))
    }

    /// The first part of a rule that does not match.
    pub(super) fn mismatch(
        &self,
        Rule(tests): Rule<'_>,
        action: Action,
        asked: &Asked<'_>,
    ) -> Option<Part> {
        let mut parts = tests.split_inclusive(|test| test.ends >= Ends::Part);
        let part = parts.find(|part| !self.any_group(part.iter(), action, asked))?;
        part.first().map(|test| test.part)
    }

    /// All clauses of some group hold.
    fn any_group<'t>(
        &self,
        tests: impl Iterator<Item = &'t Small>,
        action: Action,
        asked: &Asked<'_>,
    ) -> bool {
        let mut holds = true;
        for test in tests {
            holds = holds && self.test_matches(test, action, asked);
            if test.ends >= Ends::Group {
                if holds {
                    return true;
                }
                holds = true;
            }
        }
        false
    }

    /// Ports that a rule tells apart.
    pub(super) fn ports<'t>(&'t self, rule: Rule<'t>) -> impl Iterator<Item = u16> {
        self.values_of(rule, Kind::DestinationPort)
            .filter_map(|value| u16::try_from(value).ok())
    }

    /// Source networks that a rule tells apart.
    pub(super) fn source_networks<'t>(&'t self, rule: Rule<'t>) -> impl Iterator<Item = IpNetwork> {
        self.values_of(rule, Kind::SourceIp)
            .filter_map(|value| self.networks.get(usize::try_from(value).ok()?).copied())
    }

    fn values_of<'t>(&'t self, Rule(tests): Rule<'t>, kind: Kind) -> impl Iterator<Item = u32> {
        tests
            .iter()
            .filter(move |test| test.kind == kind)
            .flat_map(|test| self.values(test).iter().copied())
    }

    fn values<'a>(&'a self, test: &'a Small) -> &'a [u32] {
        if !test.has(Small::LIST) {
            return std::slice::from_ref(&test.value);
        }
        let begin = usize::try_from(test.value).ok();
        let list = begin.and_then(|begin| self.values.get(begin..)?.split_first());
        list.and_then(|(count, rest)| rest.get(..usize::try_from(*count).ok()?))
            .unwrap_or_default()
    }

    fn test_matches(&self, test: &Small, action: Action, asked: &Asked<'_>) -> bool {
        let call = asked.call;
        let matches = match test.kind {
            Kind::Always => true,
            // Without a port nothing can be said about it: the answer is the one that lets less through (policy.md 0.6).
            Kind::DestinationPort => match call.port {
                Some(port) => self.values(test).contains(&port.into()),
                None => return test.has(Small::NEGATED) && action == Action::Deny,
            },
            Kind::DestinationIp => self.contains(test, call.destination),
            Kind::SourceIp => self.contains(test, call.source),
            Kind::SourceNamespace => self.is_any(test, self.namespace(asked)),
            Kind::SourceServiceAccount => self.is_any(test, self.account(asked)),
            Kind::SourcePrincipal => self.is_any(test, self.principals(asked).iter()),
            Kind::SourceTrustDomain => self.is_any(test, self.trust_domains(asked).iter()),
        };
        matches != test.has(Small::NEGATED)
    }

    fn contains(&self, test: &Small, address: IpAddr) -> bool {
        self.values(test).iter().any(|value| {
            let network = usize::try_from(*value).ok();
            let network = network.and_then(|index| self.networks.get(index));
            network.is_some_and(|network| network.contains(address))
        })
    }

    fn is_any<'t, 'a: 't>(
        &self,
        test: &Small,
        texts: impl IntoIterator<Item = &'t Text<'a>>,
    ) -> bool {
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

    fn text<'a>(&self, text: impl Into<Cow<'a, str>>) -> Text<'a> {
        let text = text.into();
        Text {
            number: self.texts.get(&*text).copied(),
            text,
        }
    }

    fn namespace<'t, 'a>(&self, asked: &'t Asked<'a>) -> Option<&'t Text<'a>> {
        let find = || {
            let (namespace, _) = asked.call.identity?.service_account()?;
            Some(self.text(namespace))
        };
        asked.namespace.get_or_init(find).as_ref()
    }

    /// A service account is known by the path of its identity.
    fn account<'t, 'a>(&self, asked: &'t Asked<'a>) -> Option<&'t Text<'a>> {
        let find = || {
            let identity = asked.call.identity?;
            identity.service_account()?;
            Some(self.text(identity.path()))
        };
        asked.account.get_or_init(find).as_ref()
    }

    /// An identity of the mesh's own trust domain has that of each alias too.
    fn principals<'t, 'a>(&self, asked: &'t Asked<'a>) -> &'t Texts<'a> {
        asked.principals.get_or_init(|| {
            let Some(identity) = asked.call.identity else {
                return Texts::default();
            };
            let others = self.other_domains(identity.trust_domain_str());
            let path = identity.path();
            Texts {
                own: Some(self.text(identity.as_principal())),
                others: others
                    .map(|other| self.text(format!("{other}{path}")))
                    .collect(),
            }
        })
    }

    fn trust_domains<'t, 'a>(&self, asked: &'t Asked<'a>) -> &'t Texts<'a> {
        asked.domains.get_or_init(|| {
            let Some(identity) = asked.call.identity else {
                return Texts::default();
            };
            let domain = identity.trust_domain_str();
            let others = self.other_domains(domain);
            Texts {
                own: Some(self.text(domain)),
                others: others.map(|other| self.text(other.to_owned())).collect(),
            }
        })
    }

    /// What the mesh's own trust domain is called besides `domain`; nothing if `domain` is not the mesh's own.
    fn other_domains(&self, domain: &str) -> impl Iterator<Item = &str> {
        let all = if self.domains.len() > 1 && self.is_own(domain) {
            self.domains.as_slice()
        } else {
            &[]
        };
        all.iter()
            .map(|other| &**other)
            .filter(move |other| *other != domain)
    }

    fn is_own(&self, domain: &str) -> bool {
        self.domains.iter().any(|own| **own == *domain)
    }
}
