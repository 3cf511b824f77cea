//! Identities as text: P31 and P32.

use identun::{registry::naming::expand, spiffe::SpiffeId};

#[test]
fn p31_aliases_expand_service_accounts_and_nothing_else() {
    let expanded = |name: &str, aliases: &[&str]| -> Vec<String> {
        let aliases: Vec<_> = aliases.iter().map(|alias| alias.parse().unwrap()).collect();
        expand([name], &aliases).into_iter().collect()
    };
    assert_eq!(
        expanded(
            "spiffe://cluster.local/ns/def/sa/def",
            &["foo", "cluster.local"]
        ),
        [
            "spiffe://cluster.local/ns/def/sa/def",
            "spiffe://foo/ns/def/sa/def"
        ],
        "P31"
    );
    for name in ["spiffe://cluster.local/custom-suffix", "testdns.com"] {
        assert_eq!(expanded(name, &["foo"]), [name], "P31");
    }
}

#[test]
fn p32_an_identity_of_the_mesh_has_one_form() {
    let parts = |text: &str| {
        let id: SpiffeId = text.parse().ok()?;
        let (namespace, account) = id.service_account()?;
        Some((namespace.to_owned(), account.to_owned()))
    };
    assert_eq!(
        parts("spiffe://td/ns/ns/sa/sa"),
        Some(("ns".into(), "sa".into())),
        "P32"
    );
    for text in [
        "td/ns/ns/sa/sa",
        "spiffe://td/ns/ns/sa",
        "spiffe://td/ns/ns/sa/sa/",
        "spiffe://td/foobar/ns/sa/sa",
    ] {
        assert_eq!(parts(text), None, "P32 {text}");
    }
}
