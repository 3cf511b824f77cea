//! Writing the program: the rules of one policy after the other, as tests and their values.

use std::sync::Arc;

use hashbrown::HashMap;
use ipnetwork::IpNetwork;

use super::{Ends, Kind, PATTERN, Part, Program, RulesAt, Small};
use crate::policy::{
    MeshSettings,
    document::{AuthorizationRule, Clause, StringMatch, Test},
};

impl Program {
    pub(in crate::policy::compiled::authorize) fn new(mesh: &MeshSettings) -> Self {
        let domains = std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases);
        Self {
            tests: Vec::new(),
            values: Vec::new(),
            texts: HashMap::new(),
            patterns: Vec::new(),
            networks: Vec::new(),
            domains: domains.map(|domain| domain.as_str().into()).collect(),
        }
    }

    /// Adds the rules of a policy.
    pub(in crate::policy::compiled::authorize) fn add(
        &mut self,
        rules: &[AuthorizationRule],
    ) -> RulesAt {
        let begin = number(self.tests.len());
        for rule in rules {
            let before = self.tests.len();
            self.add_groups(&rule.from, Part::From);
            self.add_groups(&rule.to, Part::To);
            self.add_group(&rule.when, Part::When);
            if self.tests.len() == before {
                self.tests.push(always(Part::When));
            }
            self.end(Ends::Rule);
        }
        if rules.is_empty() {
            return RulesAt::NONE;
        }
        self.end(Ends::Policy);
        RulesAt(begin)
    }

    fn add_groups(&mut self, groups: &[Vec<Clause>], part: Part) {
        for group in groups {
            match group.is_empty() {
                true => self.tests.push(always(part)),
                false => self.add_group(group, part),
            }
        }
        if !groups.is_empty() {
            self.end(Ends::Part);
        }
    }

    fn add_group(&mut self, clauses: &[Clause], part: Part) {
        for clause in clauses {
            let begin = self.values.len();
            self.values.push(0);
            let kind = self.add_values(&clause.test);
            let mut marks = if clause.negated { Small::NEGATED } else { 0 };
            let value = match self.values.get_mut(begin..) {
                Some([_, value]) => {
                    let value = *value;
                    self.values.truncate(begin);
                    value
                }
                Some([count, values @ ..]) => {
                    *count = number(values.len());
                    marks |= Small::LIST;
                    number(begin)
                }
                Some([]) | None => 0,
            };
            self.tests.push(Small {
                value,
                kind,
                marks,
                part,
                ends: Ends::Nothing,
            });
        }
        if !clauses.is_empty() {
            self.end(Ends::Group);
        }
    }

    /// What was added last ends something.
    fn end(&mut self, ends: Ends) {
        if let Some(last) = self.tests.last_mut() {
            last.ends = ends;
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

/// A group without clauses.
const fn always(part: Part) -> Small {
    Small {
        value: 0,
        kind: Kind::Always,
        marks: 0,
        part,
        ends: Ends::Group,
    }
}

/// A place in a list. Files are bounded far below 2³¹ values; beyond it nothing would match any more.
fn number(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX) & !PATTERN
}
