//! Secure naming: which identities may answer for a service (policy.md 4.4 and 7.1).

use std::collections::BTreeSet;

use crate::{
    registry::index::{RegisteredWorkload, Service},
    spiffe::{SpiffeId, TrustDomain},
};

/// Adds to each `spiffe://TD/ns/N/sa/A` the same path in every trust domain of `aliases`. Other names are kept as they
/// are (Istio's `ExpandWithTrustDomains`).
pub fn expand<'a>(
    names: impl IntoIterator<Item = &'a str>,
    aliases: &[TrustDomain],
) -> BTreeSet<String> {
    let mut expanded = BTreeSet::new();
    for name in names {
        expanded.insert(name.to_owned());
        if aliases.is_empty() {
            continue;
        }
        let id = name.parse::<SpiffeId>().ok();
        let Some((namespace, account)) = id.as_ref().and_then(SpiffeId::service_account) else {
            continue;
        };
        let aliased = aliases
            .iter()
            .filter_map(|alias| SpiffeId::for_service_account(alias, namespace, account).ok());
        expanded.extend(aliased.map(String::from));
    }
    expanded
}

/// The identities that the registry lets answer for `service` at `endpoint`: that of the endpoint, if it speaks for the
/// service (see [`speaks`]), and the service's subjectAltNames (ztunnel's rule: the host that is dialled is known, so the
/// identities of other endpoints do not count).
pub fn registered<'a>(
    service: Option<&'a Service>,
    endpoint: &'a RegisteredWorkload,
    speaks: bool,
) -> BTreeSet<&'a str> {
    let own = endpoint.identity.as_ref().filter(|_| speaks);
    let named = service
        .into_iter()
        .flat_map(|service| &service.subject_alt_names);
    own.into_iter().chain(named).map(SpiffeId::as_str).collect()
}

/// `endpoint` is one of the service's, or there is no service and it speaks for itself.
pub fn speaks(service: Option<&Service>, endpoint: &RegisteredWorkload) -> bool {
    service.is_none_or(|service| service.endpoint(endpoint.address).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(name: &str, aliases: &[&str]) -> Vec<String> {
        let aliases: Vec<_> = aliases.iter().map(|alias| alias.parse().unwrap()).collect();
        expand([name], &aliases).into_iter().collect()
    }

    /// policy.md P31.
    #[test]
    fn aliases_expand_service_accounts_and_nothing_else() {
        assert_eq!(
            expanded(
                "spiffe://cluster.local/ns/def/sa/def",
                &["foo", "cluster.local"]
            ),
            [
                "spiffe://cluster.local/ns/def/sa/def",
                "spiffe://foo/ns/def/sa/def"
            ]
        );
        for kept in ["spiffe://cluster.local/custom-suffix", "testdns.com"] {
            assert_eq!(expanded(kept, &["foo"]), [kept]);
        }
    }
}
