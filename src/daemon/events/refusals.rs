//! Denials and cuts: each named with both identities, the policy and the rule, and told once, not once a packet.

use crate::{
    daemon::events::{
        EventLog, FLOW, Record, deciding, flow_fields, log_access, summary_fields, why_fields,
    },
    engine::{Direction, Opener, flows::FlowSummary},
    policy::Why,
    registry::TunnelKey,
    spiffe::SpiffeId,
    wire::{
        DropReason, FiveTuple,
        capsule::{FlowRefused, FlowRefusedCode},
    },
};

/// A packet that was refused.
pub(super) struct Denied<'a> {
    /// As it travelled.
    pub(super) tuple: &'a FiveTuple,
    pub(super) direction: Direction,
    pub(super) local: Option<&'a SpiffeId>,
    pub(super) peer: Option<&'a SpiffeId>,
    pub(super) reason: DropReason,
    pub(super) why: Option<&'a Why>,
}

/// A flow that was cut.
pub(super) struct Cut<'a> {
    /// Local end first.
    pub(super) tuple: &'a FiveTuple,
    pub(super) opener: Opener,
    pub(super) key: Option<&'a TunnelKey>,
    pub(super) reason: DropReason,
    pub(super) why: Option<&'a Why>,
    pub(super) said: Option<&'a str>,
    pub(super) summary: &'a FlowSummary,
}

impl Denied<'_> {
    /// Who sent it, and to whom: the identities that may answer where the one that would is not known.
    fn ends(&self) -> (String, String) {
        let name = |id: Option<&SpiffeId>| id.map(ToString::to_string).unwrap_or_default();
        match self.direction {
            Direction::Ingress => (name(self.peer), name(self.local)),
            Direction::Egress if self.peer.is_some() => (name(self.local), name(self.peer)),
            Direction::Egress => {
                let accepted = self.why.map(|why| why.accepted.join(","));
                (name(self.local), accepted.unwrap_or_default())
            }
        }
    }
}

impl EventLog {
    /// Once for each pair of ends, reason and rule.
    pub(super) fn denied(&self, denied: &Denied<'_>) {
        let Denied {
            tuple, reason, why, ..
        } = *denied;
        self.metrics.count_decision("denied", reason.as_str());
        if reason == DropReason::Loop {
            tracing::error!(target: FLOW, flow = %tuple, "a tunnel packet of our own came out of the TUN; stopped it");
        }
        let (source, destination) = denied.ends();
        let addressed = match destination.is_empty() {
            true => tuple.destination.to_string(),
            false => destination.clone(),
        };
        let rule = why.and_then(deciding).map(ToString::to_string);
        let subject = format!(
            "denied {source} {addressed} {reason} {}",
            rule.unwrap_or_default()
        );
        let Some(repeated) = self.note_repeat(&subject, reason.as_str()) else {
            return;
        };
        let mut fields = vec![
            ("flow", tuple.to_string()),
            ("src.identity", source),
            ("dst.identity", destination),
            ("reason", reason.as_str().into()),
            ("repeated", repeated),
        ];
        fields.extend(why.into_iter().flat_map(why_fields));
        let record = Record::new("dropped", &fields);
        tracing::warn!(
            target: FLOW, flow = %tuple, src.identity = record.field("src.identity"),
            dst.identity = record.field("dst.identity"), reason = %reason, why = record.field("why"),
            policy = record.field("policy"), rule = record.field("rule"), mode_rule = record.field("mode_rule"),
            repeated = record.field("repeated"), "packet refused"
        );
        self.push(record);
    }

    /// Once for each pair of identities and reason.
    pub(super) fn refused_by_peer(&self, key: &TunnelKey, refused: &FlowRefused) {
        let code = name(refused.code);
        self.metrics.count_decision("denied_by_peer", code);
        let subject = format!("refused {} {} {code}", key.local, key.peer);
        let Some(repeated) = self.note_repeat(&subject, &refused.reason) else {
            return;
        };
        let record = Record::new(
            "flow_refused",
            &[
                ("flow", refused.tuple.to_string()),
                ("src.identity", key.local.to_string()),
                ("dst.identity", key.peer.to_string()),
                ("code", code.into()),
                ("reason", refused.reason.clone()),
                ("repeated", repeated),
            ],
        );
        tracing::warn!(
            target: FLOW, flow = %refused.tuple, src.identity = %key.local, dst.identity = %key.peer, code,
            reason = record.field("reason"), repeated = record.field("repeated"), "the peer refused a flow"
        );
        self.push(record);
    }

    /// Each in the access log, as a connection that ended; what the peer did not tell by itself is a warning once.
    pub(super) fn cut(&self, cut: &Cut<'_>) {
        self.metrics.count_decision("cut", cut.reason.as_str());
        self.count_closed(cut.tuple, cut.summary);
        let mut fields = flow_fields(cut.tuple, cut.opener, cut.key);
        fields.extend(summary_fields(cut.summary));
        fields.push(("reason", cut.reason.as_str().into()));
        fields.extend(cut.why.into_iter().flat_map(why_fields));
        if let Some(said) = cut.said {
            fields.push(("why", said.to_owned()));
        }
        let record = Record::new("cut", &fields);
        log_access!(info, record, "connection cut");
        if cut.reason != DropReason::PeerRefusedFlow {
            self.warn_of_cut(cut, &record);
        }
        self.push(record);
    }

    fn warn_of_cut(&self, cut: &Cut<'_>, record: &Record) {
        let key = cut.key.map(ToString::to_string).unwrap_or_default();
        let rule = record.field("rule").unwrap_or_default();
        let subject = format!("cut {key} {} {rule}", cut.reason);
        if let Some(repeated) = self.note_repeat(&subject, cut.reason.as_str()) {
            let repeated = Some(repeated).filter(|repeated| !repeated.is_empty());
            tracing::warn!(
                target: FLOW, flow = record.field("flow"), src.identity = record.field("src.identity"),
                dst.identity = record.field("dst.identity"), reason = %cut.reason, why = record.field("why"),
                policy = record.field("policy"), rule = record.field("rule"), repeated,
                "flow cut: it is no longer allowed"
            );
        }
    }
}

const fn name(code: FlowRefusedCode) -> &'static str {
    match code {
        FlowRefusedCode::DeniedByPolicy => "denied_by_policy",
        FlowRefusedCode::NoMatchingAllow => "no_matching_allow",
        FlowRefusedCode::ModeDisable => "mode_disable",
        FlowRefusedCode::UnknownSource => "unknown_source",
        FlowRefusedCode::UnknownDestination => "unknown_destination",
        FlowRefusedCode::Revoked => "revoked",
    }
}
