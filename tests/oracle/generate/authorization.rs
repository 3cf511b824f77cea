//! AuthorizationPolicies.

use std::sync::Arc;

use identun::policy::{
    Resources,
    document::{Action, AuthorizationPolicy, AuthorizationRule, Clause, StringMatch, Test},
};
use ipnetwork::IpNetwork;

use super::{ACCOUNTS, ALIASES, NAMESPACES, PORTS, place, resource, selector};
use crate::oracle::choices::Choices;

const BLOCKS: &[&str] = &[
    "10.0.0.1/32",
    "10.0.0.0/30",
    "10.9.0.0/24",
    "fd00::/64",
    "0.0.0.0/0",
    "::/0",
];

pub(super) fn add(choices: &mut Choices<'_>, resources: &mut Resources) {
    if choices.chance(35) {
        return;
    }
    for index in 0..1 + choices.below(3) {
        let namespace = choices.name(NAMESPACES);
        let action = match choices.below(10) {
            0..5 => Action::Allow,
            5..9 => Action::Deny,
            _ => Action::Audit,
        };
        let fewest = usize::from(action != Action::Allow);
        let count = fewest + choices.below(3);
        let policy = AuthorizationPolicy {
            resource: resource("AuthorizationPolicy", &namespace, format!("z{index}")),
            place: place(40),
            selector: choices.chance(40).then(|| selector(choices)),
            action,
            dry_run: choices.chance(10),
            rules: (1..=count).map(|number| rule(choices, number)).collect(),
        };
        resources.authorization_policies.push(policy);
    }
}

fn rule(choices: &mut Choices<'_>, number: usize) -> AuthorizationRule {
    let mut rule = AuthorizationRule {
        place: place(41),
        number,
        from: Vec::new(),
        to: Vec::new(),
        when: Vec::new(),
    };
    if choices.chance(55) {
        rule.from = (0..1 + choices.below(2)).map(|_| source(choices)).collect();
    }
    if choices.chance(35) {
        rule.to = (0..1 + choices.below(2))
            .map(|_| operation(choices))
            .collect();
    }
    if choices.chance(25) {
        rule.when = (0..1 + choices.below(2))
            .map(|_| condition(choices))
            .collect();
    }
    rule
}

/// Each attribute and its negation at most once, as a file can write them.
fn source(choices: &mut Choices<'_>) -> Vec<Clause> {
    let mut clauses: Vec<Clause> = Vec::new();
    for _ in 0..1 + choices.below(2) {
        let test = match choices.below(7) {
            0..3 => Test::SourcePrincipal(principals(choices)),
            3 => Test::SourceNamespace(namespaces(choices)),
            4 => Test::SourceIp(blocks(choices)),
            5 => Test::SourceTrustDomain(trust_domains(choices)),
            _ => accounts(choices),
        };
        push(&mut clauses, choices, test);
    }
    clauses
}

fn operation(choices: &mut Choices<'_>) -> Vec<Clause> {
    let mut clauses = Vec::new();
    for _ in 0..1 + choices.below(2) {
        let ports = choices.some(PORTS).into_iter().collect();
        push(&mut clauses, choices, Test::DestinationPort(ports));
    }
    clauses
}

fn condition(choices: &mut Choices<'_>) -> Clause {
    let test = match choices.below(7) {
        0 => Test::SourcePrincipal(principals(choices)),
        1 => Test::SourceNamespace(namespaces(choices)),
        2 => Test::SourceIp(blocks(choices)),
        3 => Test::SourceTrustDomain(trust_domains(choices)),
        4 => Test::DestinationIp(blocks(choices)),
        5 => Test::DestinationPort(choices.some(PORTS).into_iter().collect()),
        _ => accounts(choices),
    };
    Clause {
        negated: choices.chance(30),
        test,
    }
}

/// Service accounts do not go together with principals and namespaces.
fn push(clauses: &mut Vec<Clause>, choices: &mut Choices<'_>, test: Test) {
    let negated = choices.chance(30);
    let is_account = |test: &Test| matches!(test, Test::SourceServiceAccount(_));
    let is_name = |test: &Test| matches!(test, Test::SourcePrincipal(_) | Test::SourceNamespace(_));
    let clashes = clauses.iter().any(|other| {
        (other.negated == negated && discriminant(&other.test) == discriminant(&test))
            || (is_account(&other.test) && is_name(&test))
            || (is_name(&other.test) && is_account(&test))
    });
    if !clashes {
        clauses.push(Clause { negated, test });
    }
}

fn discriminant(test: &Test) -> std::mem::Discriminant<Test> {
    std::mem::discriminant(test)
}

fn principals(choices: &mut Choices<'_>) -> Vec<StringMatch> {
    let trust_domain = choices.name(&["cluster.local", ALIASES[0], ALIASES[0], "other"]);
    let namespace = choices.name(&NAMESPACES[..2]);
    let account = choices.name(ACCOUNTS);
    let all = [
        StringMatch::Exact(format!("{trust_domain}/ns/{namespace}/sa/{account}").into()),
        StringMatch::Prefix(format!("{trust_domain}/ns/{namespace}/").into()),
        StringMatch::Suffix(format!("/sa/{account}").into()),
        StringMatch::Present,
    ];
    choices.some(&all)
}

fn namespaces(choices: &mut Choices<'_>) -> Vec<StringMatch> {
    texts(choices, &["a", "b", "ro", "oot"])
}

fn trust_domains(choices: &mut Choices<'_>) -> Vec<StringMatch> {
    texts(
        choices,
        &["cluster.local", "old", "cluster", "der", "other"],
    )
}

fn texts(choices: &mut Choices<'_>, list: &[&str]) -> Vec<StringMatch> {
    let mut values = Vec::new();
    for text in choices.some(list) {
        values.push(match choices.below(6) {
            0..3 => StringMatch::Exact(text.into()),
            3 => StringMatch::Prefix(text.into()),
            4 => StringMatch::Suffix(text.into()),
            _ => StringMatch::Present,
        });
    }
    values
}

fn accounts(choices: &mut Choices<'_>) -> Test {
    let mut pairs = Vec::new();
    for namespace in NAMESPACES {
        for account in ACCOUNTS {
            pairs.push((Arc::from(*namespace), Arc::from(*account)));
        }
    }
    Test::SourceServiceAccount(choices.some(&pairs).into_iter().collect())
}

fn blocks(choices: &mut Choices<'_>) -> Vec<IpNetwork> {
    let blocks = choices.some(BLOCKS);
    blocks.iter().map(|text| text.parse().unwrap()).collect()
}
