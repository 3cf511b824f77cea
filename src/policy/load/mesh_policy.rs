//! MeshPolicy: the effective mode of its peers (policy.md 1.1, 1.2, 1.4, 1.5).

use super::{
    head::{Head, MESH_POLICY},
    read::Map,
    report::Report,
    suggest::Quoted,
    tree::{Entry, Mark, Node},
};
use crate::policy::{
    Mode,
    diagnostic::{Diagnostic, codes},
    document::{MeshPolicy, Placed},
};

const SPEC: &[&str] = &[
    "targets",
    "peers",
    "peerIsOptional",
    "origins",
    "originIsOptional",
    "principalBinding",
];

/// Reads the resource. An absent spec is an empty one: plaintext only.
pub(super) fn read(head: &Head<'_, '_>, report: &mut Report<'_>) -> Option<MeshPolicy> {
    if &*head.resource.name != "default" {
        let message = format!(
            "a MeshPolicy must be named `default`, not {}",
            Quoted(&head.resource.name)
        );
        let found =
            Diagnostic::new(&codes::MESH_POLICY_NAME, message).with_label("expected `default`");
        report.add(
            head.name_mark,
            found.with_help("Istio never uses a MeshPolicy with another name"),
        );
    }
    let old = Diagnostic::new(
        &codes::OLD_API,
        "a MeshPolicy belongs to the API of Istio 1.1 to 1.5",
    );
    report.add(head.name_mark, old);
    let mode = match head.spec {
        Some(entry) => spec(entry, report)?,
        None => plaintext(head.name_mark, report),
    };
    Some(MeshPolicy {
        resource: head.resource.clone(),
        mode: Placed {
            value: mode.0,
            place: report.place(mode.1),
        },
    })
}

fn spec(entry: &Entry<'_>, report: &mut Report<'_>) -> Option<(Mode, Mark)> {
    let spec = report.map(&entry.node, MESH_POLICY.spec, SPEC)?;
    refuse_targets(&spec, report);
    refuse_end_users(&spec, report);
    warn_of_request_fields(&spec, report);
    let Some(peers) = spec.entry("peers").filter(|peers| !peers.node.is_null()) else {
        return Some(plaintext(entry.key_mark, report));
    };
    let mut mode = None;
    let mut complete = true;
    for peer in report.list(&peers.node, "peers") {
        match (peer_mode(peer, report), mode.is_some()) {
            (Some(found), false) => mode = Some(found),
            (Some((_, mark)), true) => {
                let found = Diagnostic::new(
                    &codes::LATER_PEER,
                    "only the first mtls entry of `peers` counts",
                );
                report.add(mark, found.with_label("ignored"));
            }
            (None, _) => complete = false,
        }
    }
    if mode.is_none() && complete {
        mode = Some(plaintext(peers.key_mark, report));
    }
    mode
}

/// No mtls entry means plaintext only; it does not fall through to any default.
fn plaintext(mark: Mark, report: &mut Report<'_>) -> (Mode, Mark) {
    let message =
        "a MeshPolicy without an mtls entry in `peers` turns mutual TLS off for the whole mesh";
    let found = Diagnostic::new(&codes::IMPLICIT_PLAINTEXT, message);
    report.add(
        mark,
        found.with_help("to require mutual TLS write `peers: [{mtls: {}}]`"),
    );
    (Mode::Disable, mark)
}

/// The mode of one entry of `peers`; a null or empty `mtls` is STRICT.
fn peer_mode(node: &Node<'_>, report: &mut Report<'_>) -> Option<(Mode, Mark)> {
    if node.is_null() {
        return no_method(node.mark, report);
    }
    let peer = report.map(node, "an entry of `peers`", &["mtls", "jwt"])?;
    if let Some(jwt) = peer.entry("jwt") {
        report.add(jwt.key_mark, end_user("a JWT"));
        return None;
    }
    let Some(mtls) = peer.entry("mtls") else {
        return no_method(peer.mark, report);
    };
    if mtls.node.is_null() {
        return Some((Mode::Strict, mtls.key_mark));
    }
    let fields = report.map(&mtls.node, "`mtls`", &["mode", "allowTls"])?;
    warn_if_true(&fields, "allowTls", report);
    let Some(mode) = fields.get("mode") else {
        return Some((Mode::Strict, mtls.key_mark));
    };
    let modes = [("STRICT", Mode::Strict), ("PERMISSIVE", Mode::Permissive)];
    Some((report.choice(mode, "mTLS mode", &modes)?, mode.mark))
}

fn no_method(mark: Mark, report: &mut Report<'_>) -> Option<(Mode, Mark)> {
    let found = Diagnostic::new(&codes::PEER_METHOD, "an entry of `peers` names no method");
    report.add(mark, found.with_label("expected `mtls`"));
    None
}

fn refuse_targets(spec: &Map<'_, '_>, report: &mut Report<'_>) {
    let Some(targets) = spec.entry("targets").filter(|entry| !entry.node.is_null()) else {
        return;
    };
    if !report.list(&targets.node, "targets").is_empty() {
        let message = "a MeshPolicy has no targets: it holds for the whole mesh";
        report.add(
            targets.key_mark,
            Diagnostic::new(&codes::MESH_POLICY_TARGETS, message).with_label("remove it"),
        );
    }
}

fn refuse_end_users(spec: &Map<'_, '_>, report: &mut Report<'_>) {
    let origins = spec
        .get("origins")
        .map_or(0, |node| report.list(node, "origins").len());
    if origins > 0 {
        report.on_key(spec, "origins", || end_user("an end user"));
    }
    let bindings = [("USE_PEER", false), ("USE_ORIGIN", true)];
    let binding = spec.get("principalBinding");
    let binds_origin = binding.and_then(|node| report.choice(node, "principalBinding", &bindings));
    if let (Some(node), Some(true)) = (binding, binds_origin) {
        let found = if origins > 0 {
            end_user("an end user")
        } else {
            ignored("principalBinding")
        };
        report.add(node.mark, found);
    }
}

fn warn_of_request_fields(spec: &Map<'_, '_>, report: &mut Report<'_>) {
    for key in ["peerIsOptional", "originIsOptional"] {
        warn_if_true(spec, key, report);
    }
}

fn warn_if_true(map: &Map<'_, '_>, key: &str, report: &mut Report<'_>) {
    if let Some(node) = map.get(key)
        && report.boolean(node, key) == Some(true)
    {
        report.add(node.mark, ignored(key));
    }
}

fn ignored(key: &str) -> Diagnostic {
    Diagnostic::new(&codes::IGNORED_AT_L4, format!("`{key}` is ignored at L4"))
        .with_label("has no effect")
}

fn end_user(what: &str) -> Diagnostic {
    Diagnostic::new(
        &codes::END_USER,
        format!("{what} cannot be authenticated on packets"),
    )
    .with_label("cannot be enforced")
    .with_help("leave it to a proxy that reads requests, and remove it here")
}
