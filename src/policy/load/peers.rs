//! The spec that MeshPolicy and Policy share: `peers` and their effective mode (policy.md 1.1, 1.2, 1.4).

use super::{
    head::Head,
    read::Map,
    report::Report,
    tree::{Mark, Node},
};
use crate::policy::{
    Mode,
    diagnostic::{Diagnostic, codes},
    document::Placed,
};

const SPEC: &[&str] = &[
    "targets",
    "peers",
    "peerIsOptional",
    "origins",
    "originIsOptional",
    "principalBinding",
];

/// The spec of a resource of authentication.istio.io.
#[derive(Debug)]
pub(super) struct Spec<'t, 's> {
    fields: Map<'t, 's>,
    /// What a remark about the whole spec marks.
    mark: Mark,
}

impl<'t, 's> Spec<'t, 's> {
    /// The spec, once its end-user and request fields are judged. An absent one is an empty one.
    pub(super) fn read(
        head: &Head<'t, 's>,
        what: &'static str,
        report: &mut Report<'_>,
    ) -> Option<Self> {
        let message = format!(
            "a {} belongs to the API of Istio 1.1 to 1.5",
            head.resource.kind
        );
        report.add(head.name_mark, Diagnostic::new(&codes::OLD_API, message));
        let Some(entry) = head.spec else {
            return Some(Self {
                fields: Map::absent(head.name_mark, what),
                mark: head.name_mark,
            });
        };
        let fields = report.map(&entry.node, what, SPEC)?;
        refuse_end_users(&fields, report);
        for key in ["peerIsOptional", "originIsOptional"] {
            warn_if_true(&fields, key, report);
        }
        Some(Self {
            fields,
            mark: entry.key_mark,
        })
    }

    /// The entries of `targets`, and where that key stands.
    pub(super) fn targets(&self, report: &mut Report<'_>) -> (&'t [Node<'s>], Mark) {
        match self.fields.entry("targets") {
            Some(entry) if !entry.node.is_null() => {
                (report.list(&entry.node, "targets"), entry.key_mark)
            }
            Some(_) | None => (&[], self.mark),
        }
    }

    /// The mode of the first mtls entry of `peers`. Without one it is plaintext only, and `loss` says for whom.
    pub(super) fn mode(&self, loss: &str, report: &mut Report<'_>) -> Option<Placed<Mode>> {
        let peers = self.fields.entry("peers");
        let peers = peers.filter(|entry| !entry.node.is_null());
        let mut mode = None;
        let mut complete = true;
        let nodes = peers.map_or(&[][..], |entry| report.list(&entry.node, "peers"));
        for peer in nodes {
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
            let mark = peers.map_or(self.mark, |entry| entry.key_mark);
            mode = Some(plaintext(mark, loss, report));
        }
        mode.map(|(value, mark)| Placed {
            value,
            place: report.place(mark),
        })
    }
}

/// No mtls entry means plaintext only; it does not fall through to any wider policy or default.
fn plaintext(mark: Mark, loss: &str, report: &mut Report<'_>) -> (Mode, Mark) {
    let message = format!("no mtls entry in `peers` turns mutual TLS off for {loss}");
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
