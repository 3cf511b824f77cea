//! Dialling: one TLS configuration a dial, for exactly one expected identity.

use std::time::Instant;

use quinn_proto::ConnectionHandle;

use crate::{
    identity::{Identities, sni, tls},
    registry::{TunnelId, TunnelKey},
    tunnel::{
        DialError, TunnelSettings, TunnelSetupError, Tunnels, config::Configs,
        congestion::LargePackets, session::Session,
    },
};

/// Builds a dialler's configuration of every own identity, so that an error shows before the first dial.
pub(super) fn check(
    configs: &Configs,
    identities: &Identities,
    settings: &TunnelSettings,
) -> Result<(), TunnelSetupError> {
    for (id, own) in &identities.own {
        let (tls, report) =
            tls::client_config(identities, own, id, &settings.clock).map_err(|source| {
                TunnelSetupError::Tls {
                    role: format!("dialling as {id}"),
                    source,
                }
            })?;
        configs
            .client(tls, &report, &LargePackets::default(), [0; 16])
            .map_err(|_| TunnelSetupError::InitialCipherSuite)?;
    }
    Ok(())
}

impl Tunnels {
    /// Begins a dial. The caller knows that none is under way.
    pub(super) fn dial(&mut self, id: TunnelId, now: Instant) {
        let Some(key) = self.tunnels.get(&id).map(|tunnel| tunnel.key.clone()) else {
            return;
        };
        // A lane of the peer's is the peer's to dial: two shards that dial one lane would supersede each other for ever.
        if self.draining.is_some() || key.lane != self.settings.lane {
            return;
        }
        match self.connect(&key, now) {
            Ok((handle, mut session)) => {
                session.tunnel = Some(id);
                self.links.insert(handle, session);
                if let Some(tunnel) = self.tunnels.get_mut(&id) {
                    tunnel.dialling = Some(handle);
                }
                self.settle(handle, now, None);
            }
            Err(error) => self.handle_dial_failed(id, error, now),
        }
    }

    fn connect(
        &mut self,
        key: &TunnelKey,
        now: Instant,
    ) -> Result<(ConnectionHandle, Session), DialError> {
        let own = self
            .identities
            .by_id(&key.local)
            .ok_or(DialError::NoIdentity)?;
        let clock = &self.settings.clock;
        let (tls, report) = tls::client_config(&self.identities, own, &key.peer, clock)
            .map_err(|error| DialError::unreachable(&error.to_string()))?;
        let large = LargePackets::default();
        // The peer's shard of the same number takes it, where there is one: both ends then share the session.
        let mut first_id: [u8; 16] = self.random.bytes();
        let [first, ..] = &mut first_id;
        *first = key.lane;
        let config = self
            .configs
            .client(tls, &report, &large, first_id)
            .map_err(|error| DialError::unreachable(&error.to_string()))?;
        let own_not_after = own.svid.not_after;
        let (handle, connection) = self
            .links
            .connect(config, key.gateway, &sni::server_name(&key.peer), now)
            .map_err(|error| DialError::unreachable(&error.to_string()))?;
        let mut session = Session::new(connection, true, report, large, self.generation, now);
        session.local = Some(key.local.clone());
        session.own_not_after = own_not_after;
        Ok((handle, session))
    }
}
