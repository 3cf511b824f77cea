//! The tunnel key: whom a tunnel is between, and where it leads.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use crate::spiffe::SpiffeId;

/// What a tunnel is for. Flows belong to keys, not to connections: the newest session of a key carries them.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TunnelKey {
    /// The identity of the workload on this host.
    pub local: SpiffeId,
    /// The identity that must be at the other end.
    pub peer: SpiffeId,
    /// Where the peer's daemon is reached: underlay address and UDP port.
    pub gateway: SocketAddr,
    /// Which of several tunnels between the two: the number of the shard that dials it. A host with one shard has
    /// lane 0 alone.
    pub lane: u8,
}

impl TunnelKey {
    /// The same two, by the tunnel of another lane.
    #[must_use]
    pub fn with_lane(self, lane: u8) -> Self {
        Self { lane, ..self }
    }
}

impl fmt::Display for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} at {}", self.local, self.peer, self.gateway)?;
        match self.lane {
            0 => Ok(()),
            lane => write!(f, " lane {lane}"),
        }
    }
}

/// The UDP port where daemons are reached unless something says otherwise.
pub const TUNNEL_PORT: u16 = 15008;

/// A small number that stands for a [`TunnelKey`] within one shard.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TunnelId(u32);

impl TunnelId {
    /// The number, for tables indexed by tunnel.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Gives each key its number. Keys come from the registry alone, so their count is bounded by it.
#[derive(Debug, Default)]
pub struct KeyTable {
    ids: BTreeMap<TunnelKey, TunnelId>,
    keys: Vec<TunnelKey>,
}

impl KeyTable {
    /// The number of `key`; the same key always has the same number.
    pub fn id(&mut self, key: &TunnelKey) -> TunnelId {
        if let Some(id) = self.ids.get(key) {
            return *id;
        }
        let id = TunnelId(u32::try_from(self.keys.len()).unwrap_or(u32::MAX));
        self.keys.push(key.clone());
        self.ids.insert(key.clone(), id);
        id
    }

    /// The key of a number that this table gave.
    pub fn key(&self, id: TunnelId) -> Option<&TunnelKey> {
        self.keys.get(id.index())
    }

    /// Every number with its key.
    pub fn iter(&self) -> impl Iterator<Item = (TunnelId, &TunnelKey)> {
        self.keys
            .iter()
            .zip(0..)
            .map(|(key, index)| (TunnelId(index), key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_have_one_number() {
        let key = |port| TunnelKey {
            local: "spiffe://td/a".parse().unwrap(),
            peer: "spiffe://td/b".parse().unwrap(),
            gateway: SocketAddr::from(([192, 0, 2, 1], port)),
            lane: 0,
        };
        let mut table = KeyTable::default();
        let first = table.id(&key(1));
        assert_ne!(table.id(&key(2)), first);
        assert_eq!(table.id(&key(1)), first);
        assert_eq!(table.key(first), Some(&key(1)));
        assert_eq!(table.iter().count(), 2);
    }

    #[test]
    fn lanes_are_tunnels_of_their_own_and_the_first_is_not_shown() {
        let key = TunnelKey {
            local: "spiffe://td/a".parse().unwrap(),
            peer: "spiffe://td/b".parse().unwrap(),
            gateway: SocketAddr::from(([192, 0, 2, 1], 1)),
            lane: 0,
        };
        let mut table = KeyTable::default();
        assert_ne!(table.id(&key), table.id(&key.clone().with_lane(2)));
        let text = "spiffe://td/a -> spiffe://td/b at 192.0.2.1:1";
        assert_eq!(key.to_string(), text);
        assert_eq!(key.with_lane(2).to_string(), format!("{text} lane 2"));
    }
}
