//! What the shard tells: written to the log, counted, and the latest kept for `GET /v1/events`.
//!
//! Strings of peers are escaped and bounded before they go anywhere (steering.md D11).

mod record;
mod refusals;

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    daemon::{clock::unix_millis, repeats::Repeats},
    engine::{EngineEvent, Opener, flows::FlowSummary},
    metrics::Metrics,
    policy::{Compiled, EgressDecision, RuleRef, Why},
    registry::TunnelKey,
    shard::Event,
    tunnel::{DialError, TunnelEvent},
    wire::{FiveTuple, flow::protocol},
};

pub use record::{Record, escape};
use refusals::{Cut, Denied};

/// Log targets: what `IDENTUN_LOG=info,identun::tunnel=warn` and the like may rely on.
const FLOW: &str = "identun::flow";
const TUNNEL: &str = "identun::tunnel";
/// How many events are kept.
const KEPT: usize = 256;
/// How many open TCP connections are remembered for their closing count.
const MAX_CONNECTIONS: usize = 65_536;

/// Writes one line of the access log, with the names that ztunnel uses, and why.
macro_rules! log_access {
    ($level:ident, $record:expr, $message:literal) => {
        tracing::$level!(
            target: "access",
            flow = $record.field("flow"),
            direction = $record.field("direction"),
            src.addr = $record.field("src.addr"),
            src.identity = $record.field("src.identity"),
            dst.addr = $record.field("dst.addr"),
            dst.identity = $record.field("dst.identity"),
            dst.service = $record.field("dst.service"),
            bytes_sent = $record.field("bytes_sent"),
            bytes_recv = $record.field("bytes_recv"),
            reason = $record.field("reason"),
            why = $record.field("why"),
            policy = $record.field("policy"),
            rule = $record.field("rule"),
            $message
        )
    };
}
use log_access;

/// Takes the shard's events; see the module.
pub struct EventLog {
    metrics: Arc<Metrics>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    records: VecDeque<Kept>,
    connections: HashMap<FiveTuple, (Opener, TunnelKey)>,
    repeats: Repeats,
}

/// What is kept of an event. Flows open by the thousand and hardly anybody asks: their words are made then.
enum Kept {
    Opened {
        time_ms: u64,
        tuple: FiveTuple,
        opener: Opener,
        key: Option<TunnelKey>,
        why: Arc<Why>,
    },
    Told(Record),
}

impl Kept {
    fn record(&self) -> Record {
        match self {
            Self::Told(record) => record.clone(),
            Self::Opened {
                time_ms,
                tuple,
                opener,
                key,
                why,
            } => Record {
                time_ms: *time_ms,
                ..opened_record(tuple, *opener, key.as_ref(), why)
            },
        }
    }
}

impl EventLog {
    /// An empty log that counts into `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            inner: Mutex::default(),
        }
    }

    /// The latest records, oldest first.
    pub fn records(&self) -> Vec<Record> {
        self.lock().records.iter().map(Kept::record).collect()
    }

    /// Takes one event, which happened under `policy`.
    pub fn handle(&self, event: &Event, policy: &Compiled) {
        match event {
            Event::Engine(event) => self.handle_engine(event, policy),
            Event::Tunnel(event) => self.handle_tunnel(event),
        }
    }

    fn handle_engine(&self, event: &EngineEvent, policy: &Compiled) {
        match event {
            EngineEvent::Dropped {
                tuple,
                direction,
                local,
                peer,
                reason,
                why,
            } => self.denied(&Denied {
                tuple,
                direction: *direction,
                local: local.as_ref(),
                peer: peer.as_ref(),
                reason: *reason,
                why: why.as_deref(),
            }),
            EngineEvent::FlowCut {
                tuple,
                opener,
                key,
                reason,
                why,
                said,
                summary,
            } => self.cut(&Cut {
                tuple,
                opener: *opener,
                key: key.as_ref(),
                reason: *reason,
                why: why.as_deref(),
                said: said.as_deref(),
                summary,
            }),
            EngineEvent::FlowOpened {
                tuple, opener, why, ..
            } => self.opened(tuple, *opener, why, policy),
            EngineEvent::FlowClosed { tuple, summary } => self.closed(tuple, summary),
        }
    }

    fn opened(&self, tuple: &FiveTuple, opener: Opener, why: &Arc<Why>, policy: &Compiled) {
        let key = key_of(policy, tuple, opener);
        let code = why.code.map_or("allowed", |code| code.as_str());
        self.metrics.count_decision("allowed", code);
        if tracing::enabled!(target: "access", tracing::Level::DEBUG) {
            let record = opened_record(tuple, opener, key.as_ref(), why);
            log_access!(debug, record, "connection opened");
        }
        self.keep(Kept::Opened {
            time_ms: unix_millis(),
            tuple: *tuple,
            opener,
            key: key.clone(),
            why: Arc::clone(why),
        });
        if let Some(key) = key.filter(|_| tuple.protocol == protocol::TCP) {
            self.metrics.count_opened(opener, &key.local, &key.peer);
            let mut inner = self.lock();
            if inner.connections.len() < MAX_CONNECTIONS {
                inner.connections.insert(*tuple, (opener, key));
            }
        }
    }

    fn closed(&self, tuple: &FiveTuple, summary: &FlowSummary) {
        let mut fields = vec![("flow", tuple.to_string())];
        fields.extend(summary_fields(summary));
        if let Some((opener, key)) = self.count_closed(tuple, summary) {
            fields = [flow_fields(tuple, opener, Some(&key)), fields].concat();
        }
        let record = Record::new("closed", &fields);
        log_access!(info, record, "connection complete");
        self.push(record);
    }

    /// A TCP connection whose beginning was counted ended.
    fn count_closed(
        &self,
        tuple: &FiveTuple,
        summary: &FlowSummary,
    ) -> Option<(Opener, TunnelKey)> {
        let (opener, key) = self.lock().connections.remove(tuple)?;
        self.metrics
            .count_closed(opener, &key.local, &key.peer, *summary);
        Some((opener, key))
    }

    fn handle_tunnel(&self, event: &TunnelEvent) {
        match event {
            TunnelEvent::Up {
                key,
                dialled,
                remote,
                version,
                cipher,
                group,
                peer_not_after,
                ..
            } => {
                self.metrics.count_handshake("ok");
                let record = Record::new(
                    "tunnel_up",
                    &[
                        ("local", key.local.to_string()),
                        ("peer", key.peer.to_string()),
                        ("gateway", key.gateway.to_string()),
                        ("remote", remote.to_string()),
                        ("role", if *dialled { "client" } else { "server" }.into()),
                        ("version", (*version).into()),
                        ("cipher", cipher.clone()),
                        ("group", group.clone()),
                        ("peer_not_after", peer_not_after.to_string()),
                    ],
                );
                self.lock().repeats.forget(&subject(key));
                tracing::info!(
                    target: TUNNEL, local = %key.local, peer = %key.peer, gateway = %key.gateway, remote = %remote,
                    role = record.field("role"), version, cipher = record.field("cipher"),
                    group = record.field("group"), "tunnel up"
                );
                self.push(record);
            }
            TunnelEvent::Down { key, reason, .. } => {
                let record = Record::new(
                    "tunnel_down",
                    &[
                        ("local", key.local.to_string()),
                        ("peer", key.peer.to_string()),
                        ("gateway", key.gateway.to_string()),
                        ("reason", reason.clone()),
                    ],
                );
                tracing::info!(
                    target: TUNNEL, local = %key.local, peer = %key.peer, gateway = %key.gateway,
                    reason = record.field("reason"), "tunnel down"
                );
                self.push(record);
            }
            TunnelEvent::DialFailed { key, error, .. } => self.dial_failed(key, error),
            TunnelEvent::IncomingRefused {
                remote,
                presented,
                error,
            } => self.incoming_refused(*remote, presented.as_deref(), error),
            TunnelEvent::FlowRefused { key, refused, .. } => self.refused_by_peer(key, refused),
        }
    }

    /// Names whom we dialled, whom we wanted, who answered, and what became of the traffic (cli.md 11).
    fn dial_failed(&self, key: &TunnelKey, error: &DialError) {
        let (result, presented, issuer, reason) = match error {
            DialError::Verify {
                error,
                presented,
                issuer,
            } => {
                self.metrics.count_verify_failure(error.as_str());
                let presented = presented.as_deref().unwrap_or("no valid identity");
                let issuer = issuer.as_deref().unwrap_or_default();
                (error.as_str(), presented, issuer, chain(error))
            }
            DialError::NoIdentity => ("no_identity", "", "", chain(error)),
            DialError::Unreachable { .. } => ("unreachable", "", "", chain(error)),
            DialError::PeerClosed { .. } => ("peer_closed", "", "", chain(error)),
            DialError::Refused { .. } => ("refused", "", "", chain(error)),
        };
        self.metrics.count_handshake(result);
        let Some(repeated) = self.note_repeat(&subject(key), &reason) else {
            return;
        };
        let record = Record::new(
            "dial_failed",
            &[
                ("dialled", key.gateway.to_string()),
                ("local", key.local.to_string()),
                ("expected", key.peer.to_string()),
                ("presented", presented.to_owned()),
                ("issuer", issuer.to_owned()),
                ("result", result.to_owned()),
                ("reason", reason),
                ("traffic", "no inner byte was sent".into()),
                ("repeated", repeated),
            ],
        );
        tracing::warn!(
            target: TUNNEL, dialled = %key.gateway, local = %key.local, expected = %key.peer,
            presented = record.field("presented"), issuer = record.field("issuer"),
            reason = record.field("reason"), traffic = record.field("traffic"), repeated = record.field("repeated"),
            "dial failed"
        );
        self.push(record);
    }

    /// Strangers may knock as often as they like, from as many addresses: the log has few lines a minute for each, and for
    /// all of them together.
    fn incoming_refused(&self, remote: SocketAddr, presented: Option<&str>, error: &str) {
        self.metrics.count_handshake("incoming_refused");
        let now = unix_millis();
        let noted = (self.lock().repeats).note_stranger(remote.ip(), error, now);
        let Some(repeated) = noted.map(untold_times) else {
            return;
        };
        let record = Record::new(
            "incoming_refused",
            &[
                ("remote", remote.to_string()),
                ("presented", presented.unwrap_or("nothing").to_owned()),
                ("reason", error.to_owned()),
                ("repeated", repeated),
            ],
        );
        tracing::warn!(
            target: TUNNEL, %remote, presented = record.field("presented"), reason = record.field("reason"),
            repeated = record.field("repeated"), "peer refused"
        );
        self.push(record);
    }

    /// How often this happened untold since it was last told (empty for never); `None` while it is not to be told.
    fn note_repeat(&self, subject: &str, reason: &str) -> Option<String> {
        let untold = self.lock().repeats.note(subject, reason, unix_millis())?;
        Some(untold_times(untold))
    }

    fn push(&self, record: Record) {
        self.keep(Kept::Told(record));
    }

    fn keep(&self, kept: Kept) {
        let records = &mut self.lock().records;
        if records.len() == KEPT {
            records.pop_front();
        }
        records.push_back(kept);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As a record has it: nothing for never.
fn untold_times(untold: u64) -> String {
    if untold == 0 {
        String::new()
    } else {
        untold.to_string()
    }
}

/// A tunnel, for counting its failures.
fn subject(key: &TunnelKey) -> String {
    format!("{} {} {}", key.local, key.peer, key.gateway)
}

/// Whose flow it is: the registry knows, and asking it needs no table of tunnels.
fn key_of(policy: &Compiled, tuple: &FiveTuple, opener: Opener) -> Option<TunnelKey> {
    let decision = match opener {
        Opener::Local => policy.decide_egress(tuple),
        Opener::Peer => policy.decide_reply(tuple),
    };
    match decision {
        EgressDecision::Tunnel { key, .. } => Some(key),
        EgressDecision::Plaintext { .. } | EgressDecision::Refuse { .. } => None,
    }
}

fn opened_record(tuple: &FiveTuple, opener: Opener, key: Option<&TunnelKey>, why: &Why) -> Record {
    let mut fields = flow_fields(tuple, opener, key);
    fields.extend(why_fields(why));
    Record::new("opened", &fields)
}

fn flow_fields(
    tuple: &FiveTuple,
    opener: Opener,
    key: Option<&TunnelKey>,
) -> Vec<(&'static str, String)> {
    let (direction, outward) = match opener {
        Opener::Local => ("outbound", *tuple),
        Opener::Peer => ("inbound", tuple.reversed()),
    };
    let mut fields = vec![
        ("direction", direction.into()),
        ("flow", outward.to_string()),
        ("src.addr", outward.source.to_string()),
        ("dst.addr", outward.destination.to_string()),
    ];
    if let Some(key) = key {
        let (source, destination) = match opener {
            Opener::Local => (&key.local, &key.peer),
            Opener::Peer => (&key.peer, &key.local),
        };
        fields.push(("src.identity", source.to_string()));
        fields.push(("dst.identity", destination.to_string()));
    }
    fields
}

fn summary_fields(summary: &FlowSummary) -> [(&'static str, String); 2] {
    [
        ("bytes_sent", summary.bytes_sent.to_string()),
        ("bytes_recv", summary.bytes_received.to_string()),
    ]
}

/// `policy` is the resource that decided and `rule` the place of its setting; `mode_rule` gave the server's mode.
fn why_fields(why: &Why) -> Vec<(&'static str, String)> {
    let decided = deciding(why);
    let other = why.mode_rule.as_ref().filter(|rule| decided != Some(rule));
    let resource = decided.map(|rule| rule.resource.to_string());
    let place = decided.map(|rule| rule.place.to_string());
    vec![
        ("why", why.text.to_string()),
        ("policy", resource.unwrap_or_default()),
        ("rule", place.unwrap_or_default()),
        (
            "mode_rule",
            other.map(ToString::to_string).unwrap_or_default(),
        ),
        ("dst.service", why.service.clone().unwrap_or_default()),
        ("accepted", why.accepted.join(",")),
    ]
}

/// The rule that decided: who may call before what the client must use before what the server accepts.
fn deciding(why: &Why) -> Option<&RuleRef> {
    let authorization = why.authorization.as_ref().or(why.rule.as_ref());
    authorization.or(why.mode_rule.as_ref())
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::Direction,
        identity::VerifyError,
        policy::{HostFacts, MeshSettings, Resources},
        registry::{KeyTable, Place, ResourceName},
        wire::{
            DropReason,
            capsule::{FlowRefused, FlowRefusedCode},
        },
    };

    fn key() -> TunnelKey {
        TunnelKey {
            local: "spiffe://td/ns/default/sa/a".parse().unwrap(),
            peer: "spiffe://td/ns/default/sa/b".parse().unwrap(),
            gateway: "192.0.2.1:15008".parse().unwrap(),
            lane: 0,
        }
    }

    #[test]
    fn strings_of_peers_stay_on_one_line() {
        let hostile = "a\nb\u{1b}[31mc\u{202e}d";
        assert_eq!(escape(hostile), "a\\u{a}b\\u{1b}[31mc\\u{202e}d");
        assert_eq!(
            escape(&"x".repeat(1_000)).chars().count(),
            record::MAX_TEXT + 1
        );
    }

    #[test]
    fn a_failed_dial_names_both_identities_and_says_that_nothing_was_sent() {
        let metrics = Arc::new(Metrics::new("1"));
        let log = EventLog::new(Arc::clone(&metrics));
        let error = DialError::Verify {
            error: VerifyError::WrongIdentity {
                expected: key().peer,
                presented: "spiffe://td/ns/default/sa/impostor".parse().unwrap(),
            },
            presented: Some("spiffe://td/ns/default/sa/impostor".into()),
            issuer: Some("CN=ca".into()),
        };
        let id = KeyTable::default().id(&key());
        let event = TunnelEvent::DialFailed {
            id,
            key: key(),
            error,
        };
        log.handle_tunnel(&event);
        // The same again is counted by the metrics, and told later.
        log.handle_tunnel(&event);
        assert_eq!(log.records().len(), 1);
        let record = log.records().remove(0);
        assert_eq!(record.kind, "dial_failed");
        let text = record.text();
        for wanted in [
            "dialled=192.0.2.1:15008",
            "expected=spiffe://td/ns/default/sa/b",
            "presented=spiffe://td/ns/default/sa/impostor",
            "issuer=CN=ca",
            "reason=\"expected spiffe://td/ns/default/sa/b, but",
            "no inner byte was sent",
        ] {
            assert!(text.contains(wanted), "{wanted} is not in {text}");
        }
        let exposition = metrics.encode();
        assert!(
            exposition.contains("identun_peer_verify_failures_total{reason=\"wrong_identity\"} 2"),
            "{exposition}"
        );
    }

    fn tuple(port: u16) -> FiveTuple {
        FiveTuple {
            protocol: protocol::TCP,
            source: [10, 0, 0, 2].into(),
            source_port: port,
            destination: [10, 0, 0, 1].into(),
            destination_port: 80,
        }
    }

    fn denial() -> Arc<Why> {
        let rule = |kind, name: &str, line| RuleRef {
            resource: ResourceName {
                kind,
                namespace: "default".into(),
                name: name.into(),
            },
            place: Place {
                file: "policy.yaml".into(),
                line,
                column: 5,
            },
        };
        Arc::new(Why {
            text: "an AuthorizationPolicy denies it".into(),
            authorization: Some(rule("AuthorizationPolicy", "not-b", 12)),
            mode_rule: Some(rule("PeerAuthentication", "strict", 3)),
            ..Why::default()
        })
    }

    #[test]
    fn a_denial_is_told_once_for_each_pair_and_rule_with_everything_about_it() {
        let log = EventLog::new(Arc::new(Metrics::new("1")));
        for (port, peer) in [(1, key().peer), (2, key().peer), (3, key().local)] {
            let event = EngineEvent::Dropped {
                tuple: tuple(port),
                direction: Direction::Ingress,
                local: Some(key().local),
                peer: Some(peer),
                reason: DropReason::DeniedByPolicy,
                why: Some(denial()),
            };
            log.handle_engine(&event, &nothing());
        }
        let records = log.records();
        assert_eq!(records.len(), 2);
        for (name, value) in [
            ("flow", "tcp 10.0.0.2:1 -> 10.0.0.1:80"),
            ("src.identity", "spiffe://td/ns/default/sa/b"),
            ("dst.identity", "spiffe://td/ns/default/sa/a"),
            ("reason", "denied_by_policy"),
            ("policy", "AuthorizationPolicy default/not-b"),
            ("rule", "policy.yaml:12:5"),
            (
                "mode_rule",
                "PeerAuthentication default/strict (policy.yaml:3:5)",
            ),
        ] {
            assert_eq!(records[0].field(name), Some(value), "{:?}", records[0]);
        }
    }

    #[test]
    fn a_cut_flow_is_told_with_both_identities_and_counts_as_ended() {
        let metrics = Arc::new(Metrics::new("1"));
        let log = EventLog::new(Arc::clone(&metrics));
        let connection = (Opener::Peer, key());
        log.lock()
            .connections
            .insert(tuple(1).reversed(), connection);
        log.handle_engine(
            &EngineEvent::FlowCut {
                tuple: tuple(1).reversed(),
                opener: Opener::Peer,
                key: Some(key()),
                reason: DropReason::DeniedByPolicy,
                why: Some(denial()),
                said: None,
                summary: FlowSummary {
                    bytes_sent: 10,
                    bytes_received: 20,
                },
            },
            &nothing(),
        );
        let record = log.records().remove(0);
        assert_eq!(record.kind, "cut");
        for (name, value) in [
            ("direction", "inbound"),
            ("flow", "tcp 10.0.0.2:1 -> 10.0.0.1:80"),
            ("src.identity", "spiffe://td/ns/default/sa/b"),
            ("bytes_recv", "20"),
            ("policy", "AuthorizationPolicy default/not-b"),
            ("rule", "policy.yaml:12:5"),
        ] {
            assert_eq!(record.field(name), Some(value), "{record:?}");
        }
        let text = metrics.encode();
        for line in [
            "identun_policy_decisions_total{result=\"cut\",reason=\"denied_by_policy\"} 1",
            "connection_security_policy=\"mutual_tls\"} 10",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(log.lock().connections.is_empty());
    }

    #[test]
    fn what_a_peer_refuses_is_told_once_for_each_pair_and_reason() {
        let log = EventLog::new(Arc::new(Metrics::new("1")));
        let id = KeyTable::default().id(&key());
        for (port, reason) in [(1, "denied\nby x"), (2, "denied\nby x"), (3, "denied by y")] {
            log.handle_tunnel(&TunnelEvent::FlowRefused {
                id,
                key: key(),
                refused: FlowRefused {
                    code: FlowRefusedCode::DeniedByPolicy,
                    tuple: tuple(port),
                    reason: reason.into(),
                },
            });
        }
        let records = log.records();
        assert_eq!(records.len(), 2);
        assert_eq!(
            records[0].text(),
            "code=denied_by_policy dst.identity=spiffe://td/ns/default/sa/b flow=\"tcp 10.0.0.2:1 -> 10.0.0.1:80\" \
             reason=\"denied\\u{a}by x\" src.identity=spiffe://td/ns/default/sa/a"
        );
    }

    /// A policy of nothing.
    fn nothing() -> Compiled {
        let facts = HostFacts::default();
        let compiled = Compiled::new(&Resources::default(), &MeshSettings::default(), facts, 1);
        compiled.0.unwrap()
    }

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn log_lines_have_their_values_as_fields() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(move || writer.clone())
            .finish();
        let log = EventLog::new(Arc::new(Metrics::new("1")));
        let id = KeyTable::default().id(&key());
        tracing::subscriber::with_default(subscriber, || {
            log.handle_tunnel(&TunnelEvent::Down {
                id,
                key: key(),
                reason: "idle".into(),
                revoked: None,
            });
            log.handle_tunnel(&TunnelEvent::DialFailed {
                id,
                key: key(),
                error: DialError::NoIdentity,
            });
        });
        let bytes = buffer.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2, "{text}");
        for (line, name, value) in [
            (0, "message", "tunnel down"),
            (0, "target", "identun::tunnel"),
            (0, "peer", "spiffe://td/ns/default/sa/b"),
            (0, "gateway", "192.0.2.1:15008"),
            (0, "reason", "idle"),
            (1, "message", "dial failed"),
            (1, "level", "WARN"),
            (1, "dialled", "192.0.2.1:15008"),
            (1, "expected", "spiffe://td/ns/default/sa/b"),
            (1, "traffic", "no inner byte was sent"),
        ] {
            assert_eq!(lines[line][name], value, "{text}");
        }
    }

    #[test]
    fn only_the_latest_events_are_kept() {
        let log = EventLog::new(Arc::new(Metrics::new("1")));
        let id = KeyTable::default().id(&key());
        for number in 0..300 {
            log.handle_tunnel(&TunnelEvent::Down {
                id,
                key: key(),
                reason: number.to_string(),
                revoked: None,
            });
        }
        let records = log.records();
        assert_eq!(records.len(), KEPT);
        assert_eq!(records.last().unwrap().fields["reason"], "299");
    }
}
