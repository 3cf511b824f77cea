//! The tables of Policy, PeerAuthentication and AuthorizationPolicy.

use crate::cases::Case;

fn resource(version: &str, kind: &str, metadata: &str, spec: &str) -> String {
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{{metadata}}}\nspec: {spec}\n")
}

fn policy(name: &str, spec: &str) -> String {
    let metadata = format!("name: {name}, namespace: shop");
    resource(
        "authentication.istio.io/v1alpha1",
        "Policy",
        &metadata,
        spec,
    )
}

/// A Policy of one target.
fn target(fields: &str) -> String {
    policy(
        "web",
        &format!("{{targets: [{{{fields}}}], peers: [{{mtls: {{}}}}]}}"),
    )
}

fn peer(metadata: &str, spec: &str) -> String {
    let metadata = format!("name: x, {metadata}");
    resource(
        "security.istio.io/v1beta1",
        "PeerAuthentication",
        &metadata,
        spec,
    )
}

/// A PeerAuthentication that selects workloads.
fn selecting(fields: &str) -> String {
    peer(
        "namespace: shop",
        &format!("{{selector: {{matchLabels: {{app: web}}}}, {fields}}}"),
    )
}

fn authorization(metadata: &str, spec: &str) -> String {
    let metadata = format!("name: x, namespace: shop{metadata}");
    resource(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        &metadata,
        spec,
    )
}

fn allow(rule: &str) -> String {
    authorization("", &format!("{{rules: [{rule}]}}"))
}

fn deny(rule: &str) -> String {
    authorization("", &format!("{{action: DENY, rules: [{rule}]}}"))
}

fn source(fields: &str) -> String {
    allow(&format!("{{from: [{{source: {{{fields}}}}}]}}"))
}

fn operation(fields: &str) -> String {
    allow(&format!("{{to: [{{operation: {{{fields}}}}}]}}"))
}

fn when(fields: &str) -> String {
    allow(&format!("{{when: [{{{fields}}}]}}"))
}

pub(crate) fn policy_cases() -> Vec<Case> {
    vec![
        (
            "IDT0412",
            "without targets must be named `default`, not `web`",
            policy("«web|default»", "{}"),
        ),
        (
            "IDT0412",
            "the Policy `default` has no targets",
            policy("default", "{«targets: [{name: web}]|targets: []»}"),
        ),
        (
            "IDT0206",
            "`web.shop` is not the short name of a service",
            target("name: «web.shop|web»"),
        ),
        (
            "IDT0206",
            "`Web` is not a valid name of a service",
            target("name: «Web|web»"),
        ),
        (
            "IDT0210",
            "name of a target is empty",
            target("name: «\"\"|web»"),
        ),
        (
            "IDT0204",
            "missing field `name` in a target",
            target("«|name: web»").replace("targets: [{", "targets: [¦{"),
        ),
        (
            "IDT0202",
            "a target must be a map, not null",
            policy("web", "{targets: [«~|{name: web}»]}"),
        ),
        (
            "IDT0413",
            "never implemented",
            target("name: web, «labels: {app: web}|labels: ~»"),
        ),
        (
            "IDT0201",
            "unknown field `port` in a target",
            target("name: web, «port|ports»: [{number: 80}]"),
        ),
        (
            "IDT0204",
            "needs `number` or `name`",
            target("name: web, ports: [¦{«|number: 80»}]"),
        ),
        (
            "IDT0410",
            "a number or a name, not both",
            target("name: web, ports: [¦{number: 80«, name: http|»}]"),
        ),
        (
            "IDT0205",
            "port `0` is out of range",
            target("name: web, ports: [{number: «0|1»}]"),
        ),
        (
            "IDT0205",
            "port `65536` is out of range",
            target("name: web, ports: [{number: «65536|65535»}]"),
        ),
        (
            "IDT0206",
            "`HTTP` is not a valid port name",
            target("name: web, ports: [{name: «HTTP|http»}]"),
        ),
        (
            "IDT0403",
            "a JWT cannot be authenticated",
            policy("default", "{peers: [{«jwt: {issuer: x}|mtls: {}»}]}"),
        ),
        (
            "IDT0403",
            "an end user",
            policy("default", "{«origins: [~]|origins: ~»}"),
        ),
        (
            "IDT0203",
            "unknown mTLS mode `UNSET`",
            policy("default", "{peers: [{mtls: {mode: «UNSET|STRICT»}}]}"),
        ),
        (
            "IDT0201",
            "unknown field `selector` in the spec of a Policy",
            policy("default", "{«selector|targets»: []}"),
        ),
        (
            "IDT0302",
            "a Policy does not have the apiVersion `authentication.istio.io/v1beta1`",
            policy("default", "{}")
                .replace("v1alpha1", "«v1beta1|v1alpha1»")
                .replace(
                    "authentication.istio.io/«v1beta1|v1alpha1»",
                    "«authentication.istio.io/v1beta1|authentication.istio.io/v1alpha1»",
                ),
        ),
    ]
}

pub(crate) fn peer_authentication_cases() -> Vec<Case> {
    let mode = |mode: &str| peer("namespace: shop", &format!("{{mtls: {{mode: {mode}}}}}"));
    vec![
        (
            "IDT0414",
            "needs a selector",
            peer(
                "namespace: shop",
                "{¦portLevelMtls: {80: {mode: STRICT}}«|, selector: {matchLabels: {a: b}}»}",
            ),
        ),
        (
            "IDT0414",
            "needs a selector",
            peer(
                "namespace: shop",
                "{¦portLevelMtls: {80: {mode: STRICT}}, selector: {matchLabels: {«|a: b»}}}",
            ),
        ),
        (
            "IDT0210",
            "names no port",
            selecting("portLevelMtls: «{}|{80: {}}»"),
        ),
        (
            "IDT0202",
            "portLevelMtls must be a map of ports, not a list",
            selecting("portLevelMtls: «[80]|{80: ~}»"),
        ),
        (
            "IDT0205",
            "`0` is not a port of a workload",
            selecting("portLevelMtls: {«0|1»: {mode: STRICT}}"),
        ),
        (
            "IDT0205",
            "`65536` is not a port",
            selecting("portLevelMtls: {«65536|65535»: {mode: STRICT}}"),
        ),
        (
            "IDT0205",
            "`http` is not a port",
            selecting("portLevelMtls: {«http|\"80\"»: {mode: STRICT}}"),
        ),
        (
            "IDT0205",
            "`-1` is not a port",
            selecting("portLevelMtls: {«-1|1»: {mode: STRICT}}"),
        ),
        (
            "IDT0203",
            "unknown mTLS mode `strict`",
            mode("«strict|STRICT»"),
        ),
        (
            "IDT0203",
            "unknown mTLS mode `MUTUAL`",
            selecting("portLevelMtls: {80: {mode: «MUTUAL|UNSET»}}"),
        ),
        (
            "IDT0201",
            "unknown field `allowTls` in `mtls`",
            peer("namespace: shop", "{mtls: {«allowTls: true|mode: STRICT»}}"),
        ),
        (
            "IDT0201",
            "unknown field `mod` in an entry of portLevelMtls",
            selecting("portLevelMtls: {80: {«mod|mode»: STRICT}}"),
        ),
        (
            "IDT0201",
            "unknown field `peers` in the spec of a PeerAuthentication",
            peer("namespace: shop", "{«peers: []|mtls: ~»}"),
        ),
        (
            "IDT0201",
            "unknown field `labels` in `selector`",
            peer(
                "namespace: shop",
                "{selector: {«labels|matchLabels»: {app: web}}}",
            ),
        ),
        (
            "IDT0213",
            "`` is not a label key",
            peer(
                "namespace: shop",
                "{selector: {matchLabels: {«\"\"|app»: web}}}",
            ),
        ),
        (
            "IDT0213",
            "`a*` is not a label key",
            peer(
                "namespace: shop",
                "{selector: {matchLabels: {«a*|a»: web}}}",
            ),
        ),
        (
            "IDT0213",
            "`*` is not a label value",
            peer(
                "namespace: shop",
                "{selector: {matchLabels: {app: «\"*\"|\"\"»}}}",
            ),
        ),
        (
            "IDT0302",
            "`security.istio.io/v1alpha1`",
            peer("namespace: shop", "{}").replace(
                "security.istio.io/v1beta1",
                "«security.istio.io/v1alpha1|security.istio.io/v1»",
            ),
        ),
    ]
}

pub(crate) fn authorization_cases() -> Vec<Case> {
    [
        policy_shape_cases(),
        rule_shape_cases(),
        value_cases(),
        request_cases(),
    ]
    .concat()
}

fn policy_shape_cases() -> Vec<Case> {
    vec![
        (
            "IDT0417",
            "never refuses anything",
            authorization("", "{action: DENY, ¦rules: [«|{}»]}"),
        ),
        (
            "IDT0417",
            "never refuses anything",
            authorization("", "{action: DENY«|, rules: [{}]»}").replace("name: x", "name: ¦x"),
        ),
        (
            "IDT0415",
            "CUSTOM is not supported",
            authorization("", "{action: «CUSTOM|DENY», rules: [{}]}"),
        ),
        (
            "IDT0415",
            "CUSTOM is not supported",
            authorization(
                "",
                "{action: ¦«CUSTOM, provider: {name: x}|DENY», rules: [{}]}",
            ),
        ),
        (
            "IDT0415",
            "`provider` belongs to the action CUSTOM",
            authorization("", "{rules: [{}], «provider: {name: x}|provider: ~»}"),
        ),
        (
            "IDT0203",
            "unknown action `deny`",
            authorization("", "{action: «deny|DENY», rules: [{}]}"),
        ),
        (
            "IDT0416",
            "`targetRef` names a gateway",
            authorization(
                "",
                "{rules: [{}], «targetRef: {kind: Gateway}|targetRef: ~»}",
            ),
        ),
        (
            "IDT0416",
            "`targetRefs` names a gateway",
            authorization(
                "",
                "{rules: [{}], selector: {matchLabels: {a: b}}, «targetRefs: [{kind: Service}]|targetRefs: []»}",
            ),
        ),
        (
            "IDT0310",
            "neither true nor false, but `maybe`",
            authorization(
                ", annotations: {istio.io/dry-run: «maybe|\"true\"»}",
                "{rules: [{}]}",
            ),
        ),
        (
            "IDT0202",
            "must be text, and `true` is a truth value",
            authorization(
                ", annotations: {istio.io/dry-run: «true|\"true\"»}",
                "{rules: [{}]}",
            ),
        ),
        (
            "IDT0201",
            "unknown field `rule` in the spec of an AuthorizationPolicy",
            authorization("", "{«rule|rules»: [{}]}"),
        ),
        (
            "IDT0202",
            "rules must be a list, not a map",
            authorization("", "{action: DENY, rules: «{}|[{}]»}"),
        ),
        (
            "IDT0213",
            "`*` is not a label value",
            authorization(
                "",
                "{rules: [{}], selector: {matchLabels: {app: «\"*\"|a»}}}",
            ),
        ),
    ]
}

fn rule_shape_cases() -> Vec<Case> {
    vec![
        ("IDT0202", "a rule must be a map, not null", allow("«~|{}»")),
        (
            "IDT0201",
            "unknown field `form` in a rule",
            allow("{«form|from»: [{source: {principals: [a/b]}}]}"),
        ),
        ("IDT0210", "`from` is empty", allow("{«from: []|when: []»}")),
        ("IDT0210", "`from` is empty", deny("{«from|when»: }")),
        ("IDT0210", "`to` is empty", allow("{«to: []|when: []»}")),
        (
            "IDT0204",
            "missing field `source` in an entry of `from`",
            allow("{from: [¦{«|source: {ipBlocks: [10.0.0.1]}»}]}"),
        ),
        (
            "IDT0204",
            "missing field `source` in an entry of `from`",
            allow("{from: [{¦source: «~|{ipBlocks: [10.0.0.1]}»}]}"),
        ),
        (
            "IDT0210",
            "`source` is empty",
            allow("{from: [{source: ¦{«|ipBlocks: [10.0.0.1]»}}]}"),
        ),
        (
            "IDT0210",
            "`operation` is empty",
            allow("{to: [{operation: ¦{«ports: ~|ports: [\"80\"]»}}]}"),
        ),
        (
            "IDT0202",
            "an entry of `to` must be a map, not null",
            allow("{to: [«~|{operation: {ports: [\"80\"]}}»]}"),
        ),
        (
            "IDT0204",
            "missing field `operation`",
            deny("{to: [¦{«|operation: {ports: [\"80\"]}»}]}"),
        ),
        (
            "IDT0201",
            "unknown field `principal` in `source`",
            source("«principal|principals»: [a/b]"),
        ),
        (
            "IDT0201",
            "unknown field `port` in `operation`",
            operation("«port|ports»: [\"80\"]"),
        ),
        (
            "IDT0210",
            "`principals` is an empty list",
            source("namespaces: [a], principals: «[]|~»"),
        ),
        (
            "IDT0210",
            "an entry of principals is empty",
            source("principals: [«\"\"|\"*\"»]"),
        ),
        (
            "IDT0204",
            "missing field `key` in a condition",
            when("«values: [a]|key: source.ip, values: [10.0.0.1]»")
                .replace("when: [{", "when: [¦{"),
        ),
        (
            "IDT0210",
            "the condition `source.ip` has no values",
            when("key: source.ip«|, values: [10.0.0.1]»").replace("when: [{", "when: [¦{"),
        ),
        (
            "IDT0210",
            "`values` is an empty list",
            when("key: source.namespace, values: «[]|[a]»"),
        ),
        (
            "IDT0203",
            "unknown condition `source.ipp`",
            when("key: «source.ipp|source.ip», values: [10.0.0.1]"),
        ),
        (
            "IDT0203",
            "the condition `destination.labels[version]` was removed",
            when("key: «\"destination.labels[version]\"|source.namespace», values: [v1]"),
        ),
        (
            "IDT0203",
            "the condition `destination.user` was removed",
            when("key: «destination.user|source.namespace», values: [v1]"),
        ),
        (
            "IDT0203",
            "unknown condition `request.header`",
            when("key: «request.header|source.namespace», values: [v1]"),
        ),
    ]
}

fn value_cases() -> Vec<Case> {
    let many = |accounts: usize| {
        let accounts: Vec<String> = (0..accounts).map(|n| format!("a{n}")).collect();
        accounts.join(", ")
    };
    vec![
        (
            "IDT0419",
            "the scheme is left out",
            source("principals: [«spiffe://a/b|a/b»]"),
        ),
        (
            "IDT0419",
            "the scheme is left out",
            source("principals: [\"*\"], notPrincipals: [«spiffe://a/b|a/b»]"),
        ),
        (
            "IDT0419",
            "`a/*/b` has `*` elsewhere than at one end",
            source("principals: [«a/*/b|a/b/*»]"),
        ),
        (
            "IDT0419",
            "`*a*` has `*` elsewhere",
            source("namespaces: [«\"*a*\"|\"*a\"»]"),
        ),
        (
            "IDT0419",
            "`**` has `*` elsewhere",
            when("key: source.principal, values: [«\"**\"|\"*\"»]"),
        ),
        (
            "IDT0206",
            "`shop/*` is not a service account",
            source("serviceAccounts: [«shop/*|shop/web»]"),
        ),
        (
            "IDT0206",
            "`a/b/c` is not a service account",
            source("serviceAccounts: [«a/b/c|a/b»]"),
        ),
        (
            "IDT0206",
            "`/b` is not a service account",
            when("key: source.serviceAccount, values: [«/b|b»]"),
        ),
        (
            "IDT0206",
            "is not a service account",
            source(&format!("serviceAccounts: [«{}|a»]", "a".repeat(321))),
        ),
        (
            "IDT0205",
            "`serviceAccounts` names 17 accounts",
            source(&format!(
                "«serviceAccounts: [{}]|serviceAccounts: [{}]»",
                many(17),
                many(16)
            )),
        ),
        (
            "IDT0410",
            "`serviceAccounts` and `namespaces` exclude each other",
            source("¦serviceAccounts: [a]«, namespaces: [b]|»"),
        ),
        (
            "IDT0410",
            "`notServiceAccounts` and `principals` exclude each other",
            source("principals: [\"*\"], «notServiceAccounts: [a]|notPrincipals: [a/b]»"),
        ),
        (
            "IDT0208",
            "`10.0.0.256` is not an IP address",
            source("ipBlocks: [«10.0.0.256|10.0.0.25»]"),
        ),
        (
            "IDT0208",
            "`10.0.0.0/33`",
            source("notIpBlocks: [«10.0.0.0/33|10.0.0.0/32»]"),
        ),
        (
            "IDT0208",
            "`10.0.0.0/255.0.0.0`",
            when("key: source.ip, values: [«10.0.0.0/255.0.0.0|10.0.0.0/8»]"),
        ),
        (
            "IDT0208",
            "`::ffff:10.0.0.1`",
            when("key: destination.ip, notValues: [«\"::ffff:10.0.0.1\"|10.0.0.1»]"),
        ),
        (
            "IDT0205",
            "`0` is not a port",
            operation("ports: [«\"0\"|\"1\"»]"),
        ),
        (
            "IDT0205",
            "`65536` is not a port",
            operation("notPorts: [«\"65536\"|\"65535\"»]"),
        ),
        (
            "IDT0205",
            "`http` is not a port",
            when("key: destination.port, values: [«http|\"80\"»]"),
        ),
        (
            "IDT0205",
            "`80*` is not a port",
            operation("ports: [«80*|\"80\"»]"),
        ),
        (
            "IDT0202",
            "an entry of ports must be text, and `80` is a number",
            operation("ports: [«80|\"80\"»]"),
        ),
    ]
}

fn request_cases() -> Vec<Case> {
    vec![
        (
            "IDT0418",
            "`methods` speaks of requests",
            operation("ports: [\"80\"]«, ¦methods: [GET]|»"),
        ),
        (
            "IDT0418",
            "`notPaths` speaks of requests",
            operation("ports: [\"80\"]«, ¦notPaths: [/x]|»"),
        ),
        (
            "IDT0418",
            "`hosts` speaks of requests",
            operation("«hosts: [a]|ports: [\"80\"]»"),
        ),
        (
            "IDT0418",
            "`requestPrincipals` speaks of requests",
            source("«requestPrincipals: [\"*\"]|principals: [\"*\"]»"),
        ),
        (
            "IDT0418",
            "`remoteIpBlocks` speaks of requests",
            source("«remoteIpBlocks: [10.0.0.1]|ipBlocks: [10.0.0.1]»"),
        ),
        (
            "IDT0418",
            "`request.headers[x]` speaks of requests",
            when("key: «\"request.headers[x]\"|source.namespace», values: [a]"),
        ),
        (
            "IDT0418",
            "`connection.sni` speaks of requests",
            when("key: «connection.sni|source.namespace», values: [a]"),
        ),
        (
            "IDT0418",
            "`experimental.envoy.filters.x` speaks of requests",
            when("key: «experimental.envoy.filters.x|source.namespace», values: [a]"),
        ),
    ]
}

pub(crate) fn remarks() -> Vec<Case> {
    vec![
        (
            "IDT0453",
            "off for its targets",
            policy("web", "{targets: [{name: web}], «peers|»: []}"),
        ),
        (
            "IDT0453",
            "off for its whole namespace",
            policy("default", "{}").replace("spec", "«spec|»"),
        ),
        (
            "IDT0462",
            "a Policy belongs to the API of Istio 1.1 to 1.5",
            policy("«default|»", "{peers: [{mtls: ~}]}"),
        ),
        (
            "IDT0460",
            "a selector without labels is ignored",
            peer("namespace: shop", "{selector: «{}|»}"),
        ),
        (
            "IDT0460",
            "a selector without labels is ignored",
            authorization("", "{rules: [{}], selector: «{matchLabels: {}}|»}"),
        ),
        (
            "IDT0463",
            "is ignored in the root namespace `istio-system`",
            peer(
                "namespace: istio-system",
                "{«selector|»: {matchLabels: {a: b}}}",
            ),
        ),
        (
            "IDT0464",
            "`PeerAuthentication shop/x` never counts: `a` comes first",
            format!(
                "{}---\n{}",
                peer("namespace: shop", "{}").replace("name: x", "name: «x|»"),
                peer("namespace: shop", "{}").replace("name: x", "name: a"),
            ),
        ),
        (
            "IDT0465",
            "AUDIT is never enforced",
            authorization("", "{action: «AUDIT|», rules: [{}]}"),
        ),
        (
            "IDT0467",
            "`notNamespaces` is true of plaintext too",
            source("«notNamespaces|»: [a]"),
        ),
        (
            "IDT0467",
            "`source.principal` is true of plaintext",
            when("key: «source.principal|», notValues: [a/b]"),
        ),
        (
            "IDT0468",
            "allows nothing",
            authorization("", "{«rules|»: []}"),
        ),
        (
            "IDT0468",
            "allows nothing",
            authorization("", "~").replace("name: x", "name: «x|»"),
        ),
        (
            "IDT0455",
            "no identity can match `a`",
            source("principals: [«a|»]"),
        ),
        (
            "IDT0455",
            "no identity can match `a/b`",
            source("namespaces: [«a/b|»]"),
        ),
        (
            "IDT0455",
            "no identity can match `A`",
            source("trustDomains: [«A|»]"),
        ),
    ]
}

/// Files of the three kinds that are too much.
pub(crate) fn bombs() -> Vec<(&'static str, String)> {
    let peers: String = (0..5_000)
        .map(|n| {
            format!("---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p{n}}}\nspec: {{mtls: {{mode: OFF}}}}\n")
        })
        .collect();
    let ports: String = (0..50_000).map(|n| format!("    x{n}: {{}}\n")).collect();
    let conditions = "{key: remote.ip, values: [x]}, ".repeat(20_000);
    let ports = format!("\n  selector: {{matchLabels: {{a: b}}}}\n  portLevelMtls:\n{ports}");
    vec![
        ("IDT0111", peers),
        ("IDT0111", peer("namespace: shop", &ports)),
        ("IDT0111", allow(&"~, ".repeat(60_000))),
        (
            "IDT0111",
            source(&format!("principals: [{}]", "a*b, ".repeat(60_000))),
        ),
        (
            "IDT0111",
            operation(&format!("ports: [{}]", "x, ".repeat(90_000))),
        ),
        ("IDT0111", allow(&format!("{{when: [{conditions}]}}"))),
        (
            "IDT0111",
            target(&format!("name: a, ports: [{}]", "{}, ".repeat(90_000))),
        ),
        (
            "IDT0107",
            allow(&"{from: [{source: {principals: [x]}}]}, ".repeat(25_000)),
        ),
    ]
}
