//! The Prometheus families. Label values come from floor-0 enums, the registry's identities and our own constants:
//! never an address or a port, so that their number is bounded by the configuration.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

use crate::{
    engine::{Opener, flows::FlowSummary},
    shard::ShardSnapshot,
    spiffe::SpiffeId,
    tunnel::TunnelState,
};

type Labels = Vec<(&'static str, String)>;
type Counts = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge>;

/// The whole exposition of one daemon; see the module.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    generation: Gauge,
    config_valid: Gauge,
    tunnel_up: Gauges,
    handshakes: Counts,
    verify_failures: Counts,
    cert_expiry: Gauges,
    packets: Counts,
    bytes: Counts,
    drops: Counts,
    missing: Gauges,
    decisions: Counts,
    flows: Gauge,
    steering: Counts,
    damage: Gauge,
    repairs: Counter,
    opened: Counts,
    closed: Counts,
    sent: Counts,
    received: Counts,
}

impl Metrics {
    /// Every family, empty.
    pub fn new(version: &'static str) -> Self {
        let mut registry = Registry::default();
        registry.register(
            "identun_build",
            "The program",
            Info::new(vec![("version", version)]),
        );
        let mut families = Families(&mut registry);
        Self {
            generation: families.add(
                "identun_config_generation",
                "Generation of the configuration in force",
            ),
            config_valid: families.add(
                "identun_config_valid",
                "1 when the files on disk are what is in force",
            ),
            tunnel_up: families.add(
                "identun_tunnel_up",
                "1 when a session of the tunnel carries packets",
            ),
            handshakes: families.add("identun_handshakes", "Handshakes by result"),
            verify_failures: families.add(
                "identun_peer_verify_failures",
                "Peers that were not accepted, by reason",
            ),
            cert_expiry: families.add(
                "identun_cert_expiry_timestamp_seconds",
                "When the certificate of an own identity ends",
            ),
            packets: families.add(
                "identun_packets",
                "Packets from the device and out of the tunnels",
            ),
            bytes: families.add(
                "identun_bytes",
                "Bytes from the device and out of the tunnels",
            ),
            drops: families.add("identun_drops", "Packets not delivered, by reason"),
            missing: families.add(
                "identun_packets_missing",
                "Packets from the device of which nobody knows what became: 0, or identun has a fault",
            ),
            decisions: families.add(
                "identun_policy_decisions",
                "Flows that were allowed or cut, and refusals that were told (at most 100 a second), by reason",
            ),
            flows: families.add("identun_flows", "Flows in the table"),
            steering: families.add(
                "identun_steering_packets",
                "Packets that the kernel's rules stopped",
            ),
            damage: families.add(
                "identun_steering_damage",
                "Findings about rules and routes that are missing and cannot be installed again",
            ),
            repairs: families.add(
                "identun_steering_repairs",
                "Times that rules and routes were installed again",
            ),
            opened: families.add("istio_tcp_connections_opened", "TCP connections opened"),
            closed: families.add("istio_tcp_connections_closed", "TCP connections closed"),
            sent: families.add(
                "istio_tcp_sent_bytes",
                "Response bytes of closed TCP connections",
            ),
            received: families.add(
                "istio_tcp_received_bytes",
                "Request bytes of closed TCP connections",
            ),
            registry,
        }
    }

    /// The exposition in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Which configuration is in force, and whether the files on disk are that configuration.
    pub fn set_configuration(&self, generation: u64, valid: bool) {
        self.generation.set(signed(generation));
        self.config_valid.set(i64::from(valid));
    }

    /// How many findings there are about rules and routes that do not stand.
    pub fn set_damage(&self, findings: usize) {
        self.damage.set(i64::try_from(findings).unwrap_or(i64::MAX));
    }

    /// Rules and routes were installed again.
    pub fn count_repair(&self) {
        self.repairs.inc();
    }

    /// The own identities with the end of their certificates, Unix seconds.
    pub fn set_identities<'a>(&self, identities: impl Iterator<Item = (&'a SpiffeId, u64)>) {
        self.cert_expiry.clear();
        for (id, not_after) in identities {
            self.cert_expiry
                .get_or_create(&vec![("id", id.to_string())])
                .set(signed(not_after));
        }
    }

    /// What a shard counts by itself.
    pub fn set_snapshot(&self, snapshot: &ShardSnapshot) {
        self.tunnel_up.clear();
        for tunnel in &snapshot.tunnels {
            let labels = vec![
                ("local", tunnel.local.to_string()),
                ("peer", tunnel.peer.to_string()),
            ];
            // Several gateways of one peer are one series: up when any is.
            let up = i64::from(matches!(tunnel.state, TunnelState::Up));
            let gauge = self.tunnel_up.get_or_create(&labels);
            gauge.set(gauge.get().max(up));
        }
        for (reason, count) in &snapshot.drops {
            store(&self.drops, "reason", reason.as_str(), *count);
        }
        let (frames, datagrams) = snapshot.books.missing();
        for (unit, missing) in [("frame", frames), ("datagram", datagrams)] {
            let labels = vec![("unit", unit.to_owned())];
            self.missing.get_or_create(&labels).set(missing);
        }
        let counts = &snapshot.packets;
        store(&self.packets, "dir", "egress", counts.device_packets);
        store(&self.packets, "dir", "ingress", counts.tunnel_packets);
        store(&self.bytes, "dir", "egress", counts.device_bytes);
        store(&self.bytes, "dir", "ingress", counts.tunnel_bytes);
        self.flows
            .set(i64::try_from(snapshot.flow_count).unwrap_or(i64::MAX));
    }

    /// The counters of the kernel's rules by their names.
    pub fn set_steering<'a>(&self, counters: impl IntoIterator<Item = (&'a str, u64)>) {
        for (name, count) in counters {
            store(&self.steering, "counter", name, count);
        }
    }

    /// Counts a handshake: `ok`, `refused`, `wrong_identity` ...
    pub fn count_handshake(&self, result: &str) {
        self.handshakes
            .get_or_create(&vec![("result", result.into())])
            .inc();
    }

    /// Counts a decision about a flow: `allowed`, `denied`, `denied_by_peer` or `cut`.
    pub fn count_decision(&self, result: &'static str, reason: &'static str) {
        self.decisions
            .get_or_create(&vec![("result", result.into()), ("reason", reason.into())])
            .inc();
    }

    /// Counts a peer that was not accepted.
    pub fn count_verify_failure(&self, reason: &str) {
        self.verify_failures
            .get_or_create(&vec![("reason", reason.into())])
            .inc();
    }

    /// Counts a TCP connection between two identities that began.
    pub fn count_opened(&self, opener: Opener, local: &SpiffeId, peer: &SpiffeId) {
        self.opened
            .get_or_create(&istio_labels(opener, local, peer))
            .inc();
    }

    /// Counts a TCP connection that ended, with its bytes. Istio's `sent` is the response, whoever reports it.
    pub fn count_closed(
        &self,
        opener: Opener,
        local: &SpiffeId,
        peer: &SpiffeId,
        summary: FlowSummary,
    ) {
        let labels = istio_labels(opener, local, peer);
        let (response, request) = match opener {
            Opener::Local => (summary.bytes_received, summary.bytes_sent),
            Opener::Peer => (summary.bytes_sent, summary.bytes_received),
        };
        self.closed.get_or_create(&labels).inc();
        self.sent.get_or_create(&labels).inc_by(response);
        self.received.get_or_create(&labels).inc_by(request);
    }
}

struct Families<'a>(&'a mut Registry);

impl Families<'_> {
    fn add<M>(&mut self, name: &str, help: &str) -> M
    where
        M: prometheus_client::registry::Metric + Clone + Default,
    {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }
}

/// Takes over a count that somebody else keeps.
fn store(family: &Counts, label: &'static str, value: &str, count: u64) {
    let counter = family.get_or_create(&vec![(label, value.into())]);
    let inner: &AtomicU64 = counter.inner();
    inner.store(count, Ordering::Relaxed);
}

/// Istio's names and values, so that queries written for Istio work.
fn istio_labels(opener: Opener, local: &SpiffeId, peer: &SpiffeId) -> Labels {
    let (reporter, source, destination) = match opener {
        Opener::Local => ("source", local, peer),
        Opener::Peer => ("destination", peer, local),
    };
    vec![
        ("reporter", reporter.into()),
        ("source_principal", source.to_string()),
        ("destination_principal", destination.to_string()),
        ("request_protocol", "tcp".into()),
        ("connection_security_policy", "mutual_tls".into()),
    ]
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        shard::{Books, FrameBook, PacketCounts},
        wire::DropReason,
    };

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://td/ns/default/sa/{name}").parse().unwrap()
    }

    #[test]
    fn families_have_their_promised_names_and_values() {
        let metrics = Metrics::new("1.2.3");
        metrics.set_configuration(7, true);
        metrics.set_identities([(&id("a"), 1_000)].into_iter());
        metrics.count_handshake("ok");
        metrics.count_verify_failure("wrong_identity");
        metrics.count_decision("denied", "denied_by_policy");
        metrics.set_steering([("guard", 3)]);
        let snapshot = ShardSnapshot {
            generation: 7,
            tunnels: Vec::new(),
            flows: Vec::new(),
            flow_count: 2,
            drops: [(DropReason::ForeignSource, 5)].into(),
            packets: PacketCounts {
                device_packets: 1,
                device_bytes: 20,
                tunnel_packets: 2,
                tunnel_bytes: 40,
                ..PacketCounts::default()
            },
            pending_bytes: 0,
            books: Books {
                frames: FrameBook {
                    read: 3,
                    carried: 2,
                    ..FrameBook::default()
                },
                ..Books::default()
            },
            shards: Vec::new(),
        };
        metrics.set_snapshot(&snapshot);
        metrics.set_snapshot(&snapshot);
        let text = metrics.encode();
        for line in [
            "identun_build_info{version=\"1.2.3\"} 1",
            "identun_config_generation 7",
            "identun_config_valid 1",
            "identun_cert_expiry_timestamp_seconds{id=\"spiffe://td/ns/default/sa/a\"} 1000",
            "identun_handshakes_total{result=\"ok\"} 1",
            "identun_peer_verify_failures_total{reason=\"wrong_identity\"} 1",
            "identun_policy_decisions_total{result=\"denied\",reason=\"denied_by_policy\"} 1",
            "identun_packets_total{dir=\"ingress\"} 2",
            "identun_bytes_total{dir=\"egress\"} 20",
            "identun_drops_total{reason=\"foreign_source\"} 5",
            "identun_packets_missing{unit=\"frame\"} 1",
            "identun_packets_missing{unit=\"datagram\"} 0",
            "identun_flows 2",
            "identun_steering_packets_total{counter=\"guard\"} 3",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
    }

    #[test]
    fn sent_bytes_are_the_response_for_both_reporters() {
        let metrics = Metrics::new("1");
        let summary = FlowSummary {
            bytes_sent: 10,
            bytes_received: 300,
        };
        metrics.count_opened(Opener::Local, &id("a"), &id("b"));
        metrics.count_closed(Opener::Local, &id("a"), &id("b"), summary);
        metrics.count_closed(Opener::Peer, &id("a"), &id("b"), summary);
        let text = metrics.encode();
        let value = |name: &str, reporter: &str| {
            let line = text
                .lines()
                .find(|line| line.starts_with(name) && line.contains(reporter))
                .unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(
            value("istio_tcp_sent_bytes_total", "reporter=\"source\""),
            "300"
        );
        assert_eq!(
            value("istio_tcp_sent_bytes_total", "reporter=\"destination\""),
            "10"
        );
        assert_eq!(
            value("istio_tcp_received_bytes_total", "reporter=\"source\""),
            "10"
        );
        assert!(
            value(
                "istio_tcp_connections_opened_total",
                "source_principal=\"spiffe://td/ns/default/sa/a\""
            ) == "1"
        );
    }
}
