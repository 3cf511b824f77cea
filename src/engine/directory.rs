//! Which shard of this host has a flow, for packets that come to another one.
//!
//! The kernel brings a flow's packets to the queue that it was last written from, but forgets that after some seconds of
//! silence. A shard that does not know a packet's flow asks here; one that knows it never does.
//!
//! INVARIANT: an entry exists only while the flow stands in the table of its shard, so that the tables' bounds hold here.

use std::{
    hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hashbrown::HashMap;

use crate::{engine::Opener, registry::TunnelKey, wire::FiveTuple};

/// Parts that are locked apart, so that shards rarely wait for each other.
const PARTS: usize = 64;

/// Who has a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Owner {
    /// The shard.
    pub(super) shard: u8,
    /// Who opened it.
    pub(super) opener: Opener,
    /// The two identities.
    pub(super) pair: Pair,
    /// It was found in conntrack and has had no packet: whichever shard gets one takes it.
    pub(super) is_seed: bool,
}

/// Stands for the two identities of a tunnel, whatever its gateway and lane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Pair(u64);

impl Pair {
    /// IDs come from the registry: nobody else chooses what is hashed here.
    pub(super) fn of(key: &TunnelKey) -> Self {
        let mut hasher = DefaultHasher::new();
        (&key.local, &key.peer).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The directory of all shards; see the module.
#[derive(Debug)]
pub struct FlowDirectory {
    parts: Vec<Mutex<HashMap<FiveTuple, Owner>>>,
    hasher: hashbrown::DefaultHashBuilder,
}

impl Default for FlowDirectory {
    fn default() -> Self {
        Self {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            hasher: hashbrown::DefaultHashBuilder::default(),
        }
    }
}

impl FlowDirectory {
    /// How many flows all shards have.
    pub fn len(&self) -> usize {
        let len = |part: &Mutex<HashMap<_, _>>| lock(part).len();
        self.parts.iter().map(len).sum()
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn part(&self, tuple: &FiveTuple) -> Option<MutexGuard<'_, HashMap<FiveTuple, Owner>>> {
        let hash = usize::try_from(self.hasher.hash_one(tuple) % (PARTS as u64)).ok()?;
        self.parts.get(hash).map(lock)
    }
}

fn lock<T>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    // An entry is written in one step: a panic elsewhere leaves nothing half done.
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A shard's view of the directory.
#[derive(Clone, Debug)]
pub struct Seat {
    directory: Arc<FlowDirectory>,
    shard: u8,
}

impl Seat {
    /// The view of shard `shard`.
    pub const fn new(directory: Arc<FlowDirectory>, shard: u8) -> Self {
        Self { directory, shard }
    }

    /// The other shard that has the flow, if one has.
    pub(super) fn elsewhere(&self, tuple: &FiveTuple) -> Option<Owner> {
        let owner = *self.directory.part(tuple)?.get(tuple)?;
        (owner.shard != self.shard).then_some(owner)
    }

    /// The flow is in this shard's table from here on. Returns the other shard that had it before.
    pub(super) fn enter(
        &self,
        tuple: FiveTuple,
        opener: Opener,
        pair: Pair,
        is_seed: bool,
    ) -> Option<u8> {
        let shard = self.shard;
        let owner = Owner {
            shard,
            opener,
            pair,
            is_seed,
        };
        let old = self.directory.part(&tuple)?.insert(tuple, owner)?;
        (old.shard != shard).then_some(old.shard)
    }

    /// The flow is no longer in this shard's table. What another shard has taken over stays.
    pub(super) fn leave(&self, tuple: &FiveTuple) {
        if let Some(mut part) = self.directory.part(tuple)
            && part
                .get(tuple)
                .is_some_and(|owner| owner.shard == self.shard)
        {
            part.remove(tuple);
        }
    }
}
