//! Accepting: Retry under pressure, and a TLS configuration of its own for every handshake.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use quinn_proto::{Incoming, ServerConfig};

use crate::{
    identity::{Identities, VerifyReport, tls},
    registry::KeyTable,
    tunnel::{
        TunnelEvent, TunnelSettings, TunnelSetupError, Tunnels, UnderlayDatagram, config::Configs,
        congestion::LargePackets, end::explain, session::Session,
    },
};

/// The acceptor's configuration, with the report of the one handshake that uses it and what its controller will know.
pub(super) fn server_config(
    configs: &Configs,
    identities: &Arc<Identities>,
    settings: &TunnelSettings,
) -> Result<(Arc<ServerConfig>, VerifyReport, LargePackets), TunnelSetupError> {
    let (tls, report) = tls::server_config(identities, &settings.clock).map_err(|source| {
        TunnelSetupError::Tls {
            role: "accepting tunnels".into(),
            source,
        }
    })?;
    let large = LargePackets::default();
    let server = configs
        .server(tls, &report, &large)
        .map_err(|_| TunnelSetupError::InitialCipherSuite)?;
    Ok((server, report, large))
}

impl Tunnels {
    /// So many handshakes are on their way, or of strangers were begun lately, that this address must prove itself.
    pub(super) fn is_crowded(&self, remote: SocketAddr) -> bool {
        self.incoming.len() >= self.settings.retry_above
            || self.gate.is_exhausted() && !self.policy.is_gateway(remote.ip())
    }

    /// Whether a datagram stops here, unanswered: a first packet of a crowd.
    pub(super) fn turns_away(&mut self, datagram: &UnderlayDatagram, now: Instant) -> bool {
        let is_known = self.policy.is_gateway(datagram.remote.ip());
        if self.gate.admits(&datagram.data, is_known, now) {
            return false;
        }
        if let Some(count) = self.gate.poll_report(now) {
            self.event(TunnelEvent::IncomingRefused {
                remote: datagram.remote,
                presented: None,
                error: format!("flood of handshakes: {count} first packets were not answered"),
            });
        }
        true
    }

    /// Answers a first packet: refusal, Retry, or the acceptor's side of a handshake.
    pub(super) fn accept(&mut self, incoming: Incoming, now: Instant, keys: &mut KeyTable) {
        let waiting = self.incoming.len();
        if waiting >= self.settings.max_incoming {
            return self.links.refuse(incoming);
        }
        let unproven = !incoming.remote_address_validated() && incoming.may_retry();
        if unproven && self.is_crowded(incoming.remote_address()) {
            return self.links.retry(incoming);
        }
        let is_known = self.policy.is_gateway(incoming.remote_address().ip());
        if !is_known && !self.gate.begins(now) {
            return self.links.ignore(incoming);
        }
        let Ok((config, report, large)) =
            server_config(&self.configs, &self.identities, &self.settings)
        else {
            return self.links.refuse(incoming);
        };
        let remote = incoming.remote_address();
        match self.links.accept(incoming, config, now) {
            Ok((handle, connection)) => {
                let session = Session::new(connection, false, report, large, self.generation, now);
                self.links.insert(handle, session);
                self.incoming.insert(handle);
                self.settle(handle, now, Some(keys));
            }
            Err(cause) => {
                let error = match report.take().error {
                    Some(error) => explain(&error),
                    None => explain(&cause),
                };
                self.event(TunnelEvent::IncomingRefused {
                    remote,
                    presented: None,
                    error,
                });
            }
        }
    }
}
