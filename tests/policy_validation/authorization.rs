//! Section 5: AuthorizationPolicy.

use identun::policy::document::{Action, AuthorizationRule, Clause, StringMatch, Test};

use crate::{check, check_with, load_text, loaded, resource, row, strict_drop, valid};

fn policy(spec: &str) -> String {
    annotated("", spec)
}

fn annotated(metadata: &str, spec: &str) -> String {
    let metadata = format!("name: x, namespace: shop{metadata}");
    resource(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        &metadata,
        spec,
    )
}

fn allow(rules: &str) -> String {
    policy(&format!("{{rules: [{rules}]}}"))
}

fn deny(rules: &str) -> String {
    policy(&format!("{{action: DENY, rules: [{rules}]}}"))
}

/// A DENY policy, which has no remark about plaintext.
fn source(fields: &str) -> String {
    deny(&format!("{{from: [{{source: {{{fields}}}}}]}}"))
}

fn operation(fields: &str) -> String {
    deny(&format!("{{to: [{{operation: {{{fields}}}}}]}}"))
}

fn when(fields: &str) -> String {
    deny(&format!("{{when: [{{{fields}}}]}}"))
}

fn dry_run(value: &str) -> String {
    annotated(
        &format!(", annotations: {{istio.io/dry-run: {value}}}"),
        "{rules: [{}]}",
    )
}

#[test]
fn section_5_1_whom_a_policy_holds_for() {
    check(vec![
        row(
            "targetRef: error",
            "error IDT0416",
            policy("{¦targetRef: {kind: Gateway, name: g}, rules: [{}]}"),
        ),
        row(
            "targetRefs: error",
            "error IDT0416",
            policy("{¦targetRefs: [{kind: Service, name: g}], rules: [{}]}"),
        ),
        valid(
            "targetRefs: empty is absent",
            policy("{targetRefs: [], rules: [{}]}"),
        ),
        row(
            "dry-run: a bad boolean",
            "error IDT0310",
            dry_run("¦\"yes\""),
        ),
        row("dry-run: text only", "error IDT0202", dry_run("¦true")),
        valid("dry-run: true", dry_run("\"true\"")),
        valid("dry-run: false", dry_run("\"False\"")),
        valid(
            "selector in the root namespace is meant",
            policy("{selector: {matchLabels: {a: b}}, rules: [{}]}")
                .replace("shop", "istio-system"),
        ),
    ]);
    for (value, expected) in [
        ("\"true\"", true),
        ("\"1\"", true),
        ("\"false\"", false),
        ("t", true),
    ] {
        let found = loaded(&dry_run(value)).authorization_policies.remove(0);
        assert_eq!(found.dry_run, expected, "{value}");
    }
    assert!(!loaded(&allow("{}")).authorization_policies[0].dry_run);
}

#[test]
fn section_5_3_shapes_of_policies() {
    check(vec![
        row(
            "ALLOW, rules absent: matches nothing",
            "info IDT0468",
            policy("{}").replace("name: x", "name: ¦x"),
        ),
        row(
            "ALLOW, rules empty: matches nothing",
            "info IDT0468",
            policy("{¦rules: []}"),
        ),
        row(
            "ALLOW, no spec at all",
            "info IDT0468",
            policy("~").replace("name: x", "name: ¦x"),
        ),
        valid("ALLOW, rules [{}]: matches all", allow("{}")),
        row(
            "DENY, rules absent",
            "error IDT0417",
            policy("{action: DENY}").replace("name: x", "name: ¦x"),
        ),
        row(
            "DENY, rules empty",
            "error IDT0417",
            policy("{action: DENY, ¦rules: []}"),
        ),
        valid("DENY, rules [{}]: denies all", deny("{}")),
        row("from: []", "error IDT0210", deny("{¦from: []}")),
        row("from: null", "error IDT0210", deny("{¦from: ~}")),
        row("to: []", "error IDT0210", deny("{¦to: []}")),
        row("to: null", "error IDT0210", deny("{¦to: ~}")),
        row(
            "source: {}",
            "error IDT0210",
            deny("{from: [{source: ¦{}}]}"),
        ),
        row(
            "source: null",
            "error IDT0204",
            deny("{from: [{¦source: ~}]}"),
        ),
        row("source absent", "error IDT0204", deny("{from: [¦{}]}")),
        row(
            "operation: {}",
            "error IDT0210",
            deny("{to: [{operation: ¦{}}]}"),
        ),
        row(
            "operation: null",
            "error IDT0204",
            deny("{to: [{¦operation: ~}]}"),
        ),
        row(
            "operation with nulls only",
            "error IDT0210",
            deny("{to: [{operation: ¦{ports: ~}}]}"),
        ),
        row("a rule that is null", "error IDT0202", deny("¦~")),
        row(
            "an entry of from that is null",
            "error IDT0202",
            deny("{from: [¦~]}"),
        ),
        valid("when: []", deny("{when: []}")),
    ]);
}

#[test]
fn section_5_4_attributes() {
    let accounts = |count: usize| vec!["a"; count].join(", ");
    check(vec![
        row(
            "principals with `spiffe://`",
            "error IDT0419",
            source("principals: [¦spiffe://cluster.local/ns/a/sa/b]"),
        ),
        row(
            "notPrincipals with `spiffe://`",
            "error IDT0419",
            source("notPrincipals: [¦spiffe://a/b]"),
        ),
        row(
            "source.principal with `spiffe://`",
            "error IDT0419",
            when("key: source.principal, notValues: [¦spiffe://a/b]"),
        ),
        row(
            "`*` in the middle",
            "error IDT0419",
            source("principals: [¦a/*/b]"),
        ),
        row(
            "`*` at both ends",
            "error IDT0419",
            source("namespaces: [¦\"*a*\"]"),
        ),
        valid("`*/sa/x` is fine", source("principals: [\"*/sa/x\"]")),
        valid(
            "prefix, suffix, presence",
            source("namespaces: [a*, \"*a\", \"*\"]"),
        ),
        valid(
            "serviceAccounts `ns/sa` and `sa`",
            source("serviceAccounts: [shop/web, web]"),
        ),
        row(
            "serviceAccounts: no wildcards",
            "error IDT0206",
            source("serviceAccounts: [¦shop/*]"),
        ),
        row(
            "serviceAccounts: a third part",
            "error IDT0206",
            source("serviceAccounts: [¦a/b/c]"),
        ),
        row(
            "serviceAccounts: an empty part",
            "error IDT0206, error IDT0206",
            source("serviceAccounts: [¦a/, ¦/a]"),
        ),
        valid(
            "serviceAccounts: 16 values",
            source(&format!("serviceAccounts: [{}]", accounts(16))),
        ),
        row(
            "serviceAccounts: 17 values",
            "error IDT0205",
            source(&format!("¦serviceAccounts: [{}]", accounts(17))),
        ),
        row(
            "notServiceAccounts: 17 values",
            "error IDT0205",
            source(&format!("¦notServiceAccounts: [{}]", accounts(17))),
        ),
        valid(
            "serviceAccounts: 320 characters",
            source(&format!("serviceAccounts: [{}]", "a".repeat(320))),
        ),
        row(
            "serviceAccounts: 321 characters",
            "error IDT0206",
            source(&format!("serviceAccounts: [¦{}]", "a".repeat(321))),
        ),
        row(
            "serviceAccounts with principals",
            "error IDT0410",
            source("principals: [\"*\"], ¦serviceAccounts: [a]"),
        ),
        row(
            "serviceAccounts with namespaces",
            "error IDT0410",
            source("¦serviceAccounts: [a], namespaces: [b]"),
        ),
        row(
            "notServiceAccounts with notPrincipals",
            "error IDT0410",
            source("notPrincipals: [\"*\"], ¦notServiceAccounts: [a]"),
        ),
        valid(
            "serviceAccounts with ipBlocks and trustDomains",
            source("serviceAccounts: [a], ipBlocks: [10.0.0.1], trustDomains: [a]"),
        ),
        valid(
            "trustDomains",
            source("trustDomains: [cluster.local], notTrustDomains: [\"*.example\"]"),
        ),
        valid(
            "ipBlocks of both families",
            source("ipBlocks: [10.0.0.0/8, 10.0.0.1, \"2001:db8::/32\"], notIpBlocks: [0.0.0.0/0]"),
        ),
        valid(
            "ports",
            operation("ports: [\"80\", \"65535\"], notPorts: [\"1\"]"),
        ),
        valid(
            "source.ip",
            when("key: source.ip, values: [10.0.0.0/8], notValues: [10.0.0.1]"),
        ),
        valid(
            "source.namespace",
            when("key: source.namespace, values: [a]"),
        ),
        valid(
            "source.principal",
            when("key: source.principal, values: [a/b]"),
        ),
        valid(
            "source.serviceAccount",
            when("key: source.serviceAccount, values: [a/b]"),
        ),
        valid(
            "source.trustDomain",
            when("key: source.trustDomain, values: [a]"),
        ),
        valid(
            "destination.ip",
            when("key: destination.ip, values: [10.0.0.1]"),
        ),
        valid(
            "destination.port",
            when("key: destination.port, values: [\"80\"]"),
        ),
        row(
            "what no SPIFFE ID is: said aloud",
            "warning IDT0455",
            source("principals: [¦cluster.local/ns/a/]"),
        ),
    ]);
}

#[test]
fn section_5_4_what_lets_plaintext_in() {
    let from = |fields: &str| allow(&format!("{{from: [{{source: {{{fields}}}}}]}}"));
    let conditions = |list: &str| allow(&format!("{{when: [{list}]}}"));
    let demanded = "{key: source.principal, values: [\"*\"]}";
    check(vec![
        row(
            "ALLOW notNamespaces",
            "warning IDT0467",
            from("¦notNamespaces: [a]"),
        ),
        row(
            "ALLOW notPrincipals",
            "warning IDT0467",
            from("¦notPrincipals: [a/b]"),
        ),
        row(
            "ALLOW notServiceAccounts",
            "warning IDT0467",
            from("¦notServiceAccounts: [a]"),
        ),
        row(
            "ALLOW notTrustDomains",
            "warning IDT0467",
            from("¦notTrustDomains: [a]"),
        ),
        row(
            "with an address",
            "warning IDT0467",
            from("ipBlocks: [10.0.0.0/8], ¦notNamespaces: [a]"),
        ),
        valid(
            "with a demand beside it",
            from("notNamespaces: [a], principals: [\"*\"]"),
        ),
        valid(
            "addresses alone speak of no identity",
            from("notIpBlocks: [10.0.0.0/8]"),
        ),
        row(
            "each source for itself",
            "warning IDT0467",
            allow("{from: [{source: {namespaces: [a]}}, {source: {¦notNamespaces: [b]}}]}"),
        ),
        row(
            "ALLOW when notValues",
            "warning IDT0467",
            conditions("{key: ¦source.namespace, notValues: [a]}"),
        ),
        valid(
            "when it is demanded elsewhere",
            conditions(&format!(
                "{{key: source.namespace, notValues: [a]}}, {demanded}"
            )),
        ),
        valid(
            "when it is demanded by `when`",
            allow(&format!(
                "{{from: [{{source: {{notNamespaces: [a]}}}}], when: [{demanded}]}}"
            )),
        ),
        valid(
            "when it is demanded by `from`",
            allow(
                "{from: [{source: {namespaces: [a]}}], when: [{key: source.principal, notValues: [a/b]}]}",
            ),
        ),
        row(
            "`when` beside a source that speaks of no identity",
            "warning IDT0467",
            allow(
                "{from: [{source: {ipBlocks: [10.0.0.1]}}], when: [{key: ¦source.namespace, notValues: [a]}]}",
            ),
        ),
        row(
            "`when` once, for the sources that do not say it themselves",
            "warning IDT0467, warning IDT0467",
            allow(
                "{from: [{source: {ipBlocks: [10.0.0.1]}}, {source: {ipBlocks: [10.0.0.2]}}, {source: {¦notNamespaces: [a]}}], \
                 when: [{key: ¦source.namespace, notValues: [a]}]}",
            ),
        ),
        row(
            "`when` beside a source that says it itself",
            "warning IDT0467",
            allow(
                "{from: [{source: {¦notNamespaces: [a]}}], when: [{key: source.namespace, notValues: [b]}]}",
            ),
        ),
        valid(
            "DENY notPrincipals [*] refuses plaintext",
            source("notPrincipals: [\"*\"]"),
        ),
    ]);
}

#[test]
fn section_5_5_actions() {
    check(vec![
        row(
            "CUSTOM: error",
            "error IDT0415",
            policy("{action: ¦CUSTOM, provider: {name: x}, rules: [{}]}"),
        ),
        row(
            "AUDIT: warn",
            "warning IDT0465",
            policy("{action: ¦AUDIT, rules: [{}]}"),
        ),
        row(
            "no such action",
            "error IDT0203",
            policy("{action: ¦allow, rules: [{}]}"),
        ),
    ]);
}

/// Every attribute of layer 7, at the place where it is refused or dropped.
fn requests() -> Vec<(&'static str, String)> {
    let mut rules = Vec::new();
    for key in [
        "remoteIpBlocks",
        "notRemoteIpBlocks",
        "requestPrincipals",
        "notRequestPrincipals",
    ] {
        rules.push((
            key,
            format!("{{from: [{{source: {{¦{key}: [10.0.0.1]}}}}]}}"),
        ));
    }
    for key in [
        "hosts",
        "notHosts",
        "methods",
        "notMethods",
        "paths",
        "notPaths",
    ] {
        rules.push((
            key,
            format!("{{to: [{{operation: {{ports: [\"80\"], ¦{key}: [x]}}}}]}}"),
        ));
    }
    for key in [
        "request.headers[x-token]",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims[iss]",
        "remote.ip",
        "connection.sni",
        "experimental.envoy.filters.network.mysql_proxy[db.table]",
    ] {
        rules.push((key, format!("{{when: [{{key: ¦\"{key}\", values: [x]}}]}}")));
    }
    rules
}

#[test]
fn section_5_5_layer_7_is_refused() {
    for (key, rule) in requests() {
        for text in [allow(&rule), deny(&rule)] {
            check(vec![row(key, "error IDT0418", text)]);
        }
    }
    let (_, findings) = load_text(
        &identun::policy::MeshSettings::default(),
        &operation("methods: [GET]"),
    );
    let help = findings[0].help.as_deref().unwrap();
    assert!(
        help.contains("`l7: strict-drop`"),
        "the setting that changes it: {help}"
    );
}

#[test]
fn section_5_5_layer_7_is_dropped_strictly() {
    for (key, rule) in requests() {
        for text in [allow(&rule), deny(&rule)] {
            check_with(&strict_drop(), vec![row(key, "warning IDT0466", text)]);
        }
    }
    check_with(
        &strict_drop(),
        vec![
            row(
                "one remark for each dropped ALLOW rule",
                "warning IDT0466",
                allow("{to: [{operation: {¦methods: [GET], paths: [/x]}}]}, {}"),
            ),
            row(
                "one remark for each dropped part of DENY",
                "warning IDT0466, warning IDT0466",
                deny("{to: [{operation: {¦methods: [GET], ¦paths: [/x]}}]}"),
            ),
            row(
                "an unknown key stays an error",
                "error IDT0203",
                when("key: ¦request.path, values: [/x]"),
            ),
        ],
    );
}

#[test]
fn strict_drop_keeps_what_fails_closed() {
    let dropped = |text: &str| {
        let (resources, findings) = load_text(&strict_drop(), text);
        resources
            .unwrap_or_else(|| panic!("{findings:#?}"))
            .authorization_policies
            .remove(0)
    };
    let methods = "{to: [{operation: {methods: [GET]}}]}";
    let policy = dropped(&allow(methods));
    assert!(
        policy.rules.is_empty() && policy.action == Action::Allow,
        "it closes"
    );

    let policy = dropped(&deny(methods));
    assert_eq!(
        policy.rules[0].to,
        [vec![]],
        "an operation that matches everything"
    );

    let mixed = "{from: [{source: {requestPrincipals: [x], namespaces: [a]}}, {source: {requestPrincipals: [x]}}], \
                 to: [{operation: {ports: [\"80\"], methods: [GET]}}], when: [{key: remote.ip, values: [10.0.0.1]}]}";
    let rule = dropped(&deny(mixed)).rules.remove(0);
    let port = Clause {
        negated: false,
        test: Test::DestinationPort([80].into()),
    };
    assert_eq!(
        (rule.from.len(), rule.from[0].len(), rule.from[1].len()),
        (2, 1, 0)
    );
    assert_eq!((rule.to, rule.when.len()), (vec![vec![port]], 0));
}

#[test]
fn section_5_6_validation() {
    check(vec![
        row(
            "empty strings: principals",
            "error IDT0210",
            source("principals: [¦\"\"]"),
        ),
        row(
            "empty strings: notNamespaces",
            "error IDT0210",
            source("notNamespaces: [¦\"\"]"),
        ),
        row(
            "empty strings: serviceAccounts",
            "error IDT0210",
            source("serviceAccounts: [¦\"\"]"),
        ),
        row(
            "empty strings: ipBlocks",
            "error IDT0210",
            source("ipBlocks: [¦\"\"]"),
        ),
        row(
            "empty strings: ports",
            "error IDT0210",
            operation("ports: [¦\"\"]"),
        ),
        row(
            "empty strings: methods",
            "error IDT0418, error IDT0210",
            operation("¦methods: [¦\"\"]"),
        ),
        row(
            "empty strings: values",
            "error IDT0210",
            when("key: source.namespace, values: [¦\"\"]"),
        ),
        row(
            "empty lists",
            "error IDT0210",
            source("namespaces: [a], principals: ¦[]"),
        ),
        row("bad IP", "error IDT0208", source("ipBlocks: [¦10.0.0]")),
        row(
            "bad CIDR",
            "error IDT0208",
            source("notIpBlocks: [¦10.0.0.0/33]"),
        ),
        row(
            "IPv4 in IPv6 clothes",
            "error IDT0208",
            source("ipBlocks: [¦\"::ffff:10.0.0.1\"]"),
        ),
        row("port 0", "error IDT0205", operation("ports: [¦\"0\"]")),
        row(
            "port 65536",
            "error IDT0205",
            operation("notPorts: [¦\"65536\"]"),
        ),
        row(
            "port not a number",
            "error IDT0205",
            operation("ports: [¦http]"),
        ),
        row("port not text", "error IDT0202", operation("ports: [¦80]")),
        row(
            "`when` without key",
            "error IDT0204",
            deny("{when: [¦{values: [a]}]}"),
        ),
        row(
            "`when` with an empty key",
            "error IDT0210",
            when("key: ¦\"\", values: [a]"),
        ),
        row(
            "`when` without both values",
            "error IDT0210",
            deny("{when: [¦{key: source.ip}]}"),
        ),
        row(
            "unknown key",
            "error IDT0203",
            when("key: ¦source.name, values: [a]"),
        ),
        row(
            "removed: destination.labels",
            "error IDT0203",
            when("key: ¦\"destination.labels[a]\", values: [a]"),
        ),
        row(
            "removed: destination.namespace",
            "error IDT0203",
            when("key: ¦destination.namespace, values: [a]"),
        ),
        row(
            "removed: destination.name",
            "error IDT0203",
            when("key: ¦destination.name, values: [a]"),
        ),
        row(
            "removed: destination.user",
            "error IDT0203",
            when("key: ¦destination.user, values: [a]"),
        ),
        row(
            "source.ip is an address",
            "error IDT0208",
            when("key: source.ip, values: [¦a]"),
        ),
        row(
            "destination.ip is an address",
            "error IDT0208",
            when("key: destination.ip, notValues: [¦10.0.0.256]"),
        ),
        row(
            "destination.port is a port",
            "error IDT0205",
            when("key: destination.port, values: [¦a]"),
        ),
        row(
            "provider with non-CUSTOM",
            "error IDT0415",
            policy("{rules: [{}], ¦provider: {name: x}}"),
        ),
        row(
            "selector plus targetRef",
            "error IDT0416",
            policy("{selector: {matchLabels: {a: b}}, ¦targetRef: {kind: Gateway}, rules: [{}]}"),
        ),
        row(
            "selector rules of 2.4: empty key",
            "error IDT0213",
            policy("{selector: {matchLabels: {¦\"\": a}}, rules: [{}]}"),
        ),
        row(
            "selector rules of 2.4: `*`",
            "error IDT0213",
            policy("{selector: {matchLabels: {a: ¦\"*\"}}, rules: [{}]}"),
        ),
        row(
            "selector rules of 2.4: nothing",
            "warning IDT0460",
            policy("{selector: ¦{}, rules: [{}]}"),
        ),
        row("unknown fields", "error IDT0201", deny("{¦form: []}")),
    ]);
}

fn rules(text: &str) -> Vec<AuthorizationRule> {
    loaded(text).authorization_policies.remove(0).rules
}

#[test]
fn rules_become_clauses() {
    let text = deny(
        "{from: [{source: {principals: [a/b, \"a/*\", \"*/b\", \"*\"], notNamespaces: [c]}}], \
         to: [{operation: {ports: [\"80\", \"80\"]}}], when: [{key: source.ip, values: [10.1.2.3/8], notValues: [10.0.0.1]}]}, {}",
    );
    let rules = rules(&text);
    let clause = |negated, test| Clause { negated, test };
    let principals = vec![
        StringMatch::Exact("a/b".into()),
        StringMatch::Prefix("a/".into()),
        StringMatch::Suffix("/b".into()),
        StringMatch::Present,
    ];
    let namespaces = Test::SourceNamespace(vec![StringMatch::Exact("c".into())]);
    assert_eq!(
        rules[0].from,
        [vec![
            clause(false, Test::SourcePrincipal(principals)),
            clause(true, namespaces)
        ]]
    );
    assert_eq!(
        rules[0].to,
        [vec![clause(false, Test::DestinationPort([80].into()))]]
    );
    assert_eq!(
        rules[0].when,
        [
            clause(false, Test::SourceIp(vec!["10.0.0.0/8".parse().unwrap()])),
            clause(true, Test::SourceIp(vec!["10.0.0.1/32".parse().unwrap()])),
        ]
    );
    let numbers: Vec<_> = rules
        .iter()
        .map(|rule| (rule.number, rule.place.line))
        .collect();
    assert_eq!(numbers, [(1, 4), (2, 4)]);
    assert!(rules[1].from.is_empty() && rules[1].to.is_empty() && rules[1].when.is_empty());
}

#[test]
fn service_accounts_have_a_namespace() {
    let rules = rules(&source("serviceAccounts: [web, other/db, web]"));
    let accounts = [("other".into(), "db".into()), ("shop".into(), "web".into())];
    assert_eq!(
        rules[0].from[0][0].test,
        Test::SourceServiceAccount(accounts.into())
    );
}

#[test]
fn p33_policies_without_rules() {
    check(vec![
        row(
            "ALLOW without rules: a valid policy that closes",
            "info IDT0468",
            policy("{¦rules: []}"),
        ),
        valid("ALLOW rules [{}]", allow("{}")),
        row(
            "DENY without rules: load error",
            "error IDT0417",
            policy("{action: DENY}").replace("name: x", "name: ¦x"),
        ),
    ]);
    assert!(rules(&policy("{}")).is_empty());
    assert_eq!(rules(&allow("{}")).len(), 1);
}

/// Three rules, of which the first two have parts of layer 7.
fn p38() -> [&'static str; 3] {
    [
        "{from: [{source: {principals: [td/ns/a/sa/b], ¦requestPrincipals: [x]}}], to: [{operation: {ports: [\"80\"]}}]}",
        "{from: [{source: {principals: [td/ns/a/sa/b]}}], to: [{operation: {ports: [\"80\"], ¦methods: [GET]}}]}",
        "{from: [{source: {principals: [td/only-l4], namespaces: [only-l4]}}], to: [{operation: {ports: [\"80\"]}}]}",
    ]
}

#[test]
fn p38_by_default_the_file_is_refused() {
    check(vec![row(
        "reject",
        "error IDT0418, error IDT0418",
        allow(&p38().join(", ")),
    )]);
}

#[test]
fn p38_strict_drop_keeps_the_third_rule_only() {
    let text = allow(&p38().join(", "));
    check_with(
        &strict_drop(),
        vec![row(
            "strict-drop",
            "warning IDT0466, warning IDT0466",
            &*text,
        )],
    );
    let (resources, _) = load_text(&strict_drop(), &text.replace('¦', ""));
    let policy = resources.unwrap().authorization_policies.remove(0);
    let numbers: Vec<_> = policy.rules.iter().map(|rule| rule.number).collect();
    assert_eq!(numbers, [3]);
}
