//! AuthorizationPolicy.

use serde_json::{Value, json};

use super::shape::{
    PORT_TEXT, choice, filled, list, matching, network, object, refused, selector, text, with,
};

const LAYER_7: &str = "Of requests: an error unless daemon.yaml says `l7: strict-drop`.";

pub(super) fn policy() -> Value {
    let target_ref = "For gateways and waypoints, which no host here is.";
    let target_refs = with(list(target_ref, json!(true)), "maxItems", 0.into());
    object(
        "Who may open connections.",
        &[],
        [
            (
                "selector",
                selector(
                    "The workloads; absent: the whole namespace, or the mesh in the root namespace.",
                ),
            ),
            ("targetRef", refused(target_ref)),
            ("targetRefs", target_refs),
            (
                "action",
                choice(
                    "ALLOW closes its workloads to all others; DENY comes first; AUDIT only tells; absent: ALLOW.",
                    &["ALLOW", "DENY", "AUDIT"],
                ),
            ),
            (
                "rules",
                list(
                    "Any of them matches; ALLOW without rules allows nobody.",
                    rule(),
                ),
            ),
            ("provider", refused("It belongs to the action CUSTOM.")),
        ],
    )
}

fn rule() -> Value {
    let from = object("One kind of source.", &["source"], [("source", source())]);
    let to = object(
        "One kind of operation.",
        &["operation"],
        [("operation", operation())],
    );
    object(
        "Matches if `from`, `to` and every condition do; an empty rule matches everything.",
        &[],
        [
            ("from", filled("Any of these sources.", from)),
            ("to", filled("Any of these operations.", to)),
            ("when", list("All of these conditions.", condition())),
        ],
    )
}

fn source() -> Value {
    let principal = || {
        let values = matching(
            "TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT; `*` alone, first or last.",
            "^(\\*?[^*]*|[^*]*\\*)$",
            "cluster.local/ns/default/sa/web",
        );
        with(values, "not", json!({"pattern": "^spiffe://"}))
    };
    let account = || {
        matching(
            "NAMESPACE/ACCOUNT, or ACCOUNT in the policy's namespace.",
            "^[^*]{1,320}$",
            "default/web",
        )
    };
    let accounts = |description: &str| with(filled(description, account()), "maxItems", 16.into());
    let some = |description: &str, example: &str| {
        filled(
            description,
            matching(
                "Text; `*` alone, first or last.",
                "^(\\*?[^*]*|[^*]*\\*)$",
                example,
            ),
        )
    };
    let block = || network("An address or network.");
    let request = || filled(LAYER_7, text("A value of a request.", "web"));
    let source = object(
        "Attributes of the peer; all of them match.",
        &[],
        [
            (
                "principals",
                filled("Any of these identities.", principal()),
            ),
            (
                "notPrincipals",
                filled(
                    "None of these identities; also true of plaintext.",
                    principal(),
                ),
            ),
            (
                "namespaces",
                some("Any of these namespaces of the identity.", "shop"),
            ),
            (
                "notNamespaces",
                some("None of these namespaces; also true of plaintext.", "shop"),
            ),
            (
                "serviceAccounts",
                accounts(
                    "Any of these accounts, in any trust domain; not with principals or namespaces.",
                ),
            ),
            (
                "notServiceAccounts",
                accounts("None of these accounts; also true of plaintext."),
            ),
            (
                "trustDomains",
                some("Any of these trust domains.", "cluster.local"),
            ),
            (
                "notTrustDomains",
                some(
                    "None of these trust domains; also true of plaintext.",
                    "cluster.local",
                ),
            ),
            (
                "ipBlocks",
                filled("Any of these source addresses.", block()),
            ),
            (
                "notIpBlocks",
                filled("None of these source addresses.", block()),
            ),
            ("remoteIpBlocks", request()),
            ("notRemoteIpBlocks", request()),
            ("requestPrincipals", request()),
            ("notRequestPrincipals", request()),
        ],
    );
    with(source, "minProperties", 1.into())
}

fn operation() -> Value {
    let port = || matching("A port of the workload, as text.", PORT_TEXT, "8080");
    let request = || filled(LAYER_7, text("A value of a request.", "web"));
    let operation = object(
        "Attributes of the destination; all of them match.",
        &[],
        [
            ("ports", filled("Any of these ports.", port())),
            ("notPorts", filled("None of these ports.", port())),
            ("hosts", request()),
            ("notHosts", request()),
            ("methods", request()),
            ("notMethods", request()),
            ("paths", request()),
            ("notPaths", request()),
        ],
    );
    with(operation, "minProperties", 1.into())
}

fn condition() -> Value {
    let key = matching(
        "source.ip, source.namespace, source.principal, source.serviceAccount, source.trustDomain, \
         destination.ip or destination.port; keys of requests are of layer 7.",
        "^(source\\.(ip|namespace|principal|serviceAccount|trustDomain)|destination\\.(ip|port)|remote\\.ip|\
         connection\\.sni|request\\..+|experimental\\..+)$",
        "source.namespace",
    );
    let values =
        |description: &str| filled(description, text("A value, as in `from` and `to`.", "web"));
    object(
        "An attribute and its values.",
        &["key"],
        [
            ("key", key),
            ("values", values("Any of these.")),
            ("notValues", values("None of these.")),
        ],
    )
}
