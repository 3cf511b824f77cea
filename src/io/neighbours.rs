//! What the loops of one host's shards have for each other: an inbox each, bounded in bytes, emptied when its loop wakes.
//!
//! Inner packets come here only after a flow was silent for so long that the kernel forgot its queue, and datagrams only
//! when the network card's batches mix those of several shards. A host with one shard has no neighbours.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::BytesMut;

use crate::{
    io::poller,
    shard::Handover,
    tunnel::{UnderlayDatagram, shard_octet},
};

/// Bytes that wait in one inbox.
const MAX_WAITING: usize = 4 << 20;
/// What an entry counts for beside its bytes.
const OVERHEAD: usize = 64;

/// One thing for another loop.
#[derive(Debug)]
pub(super) enum Parcel {
    /// For its shard.
    Handover(Handover),
    /// A datagram of one of its sessions.
    Datagram(UnderlayDatagram),
}

impl Parcel {
    fn weight(&self) -> usize {
        let bytes = match self {
            Self::Handover(Handover::Frame(frame)) => frame.len(),
            Self::Handover(Handover::Forget(_)) => 0,
            Self::Datagram(datagram) => datagram.data.len(),
        };
        bytes + OVERHEAD
    }
}

#[derive(Debug, Default)]
struct Queue {
    parcels: VecDeque<Parcel>,
    bytes: usize,
}

#[derive(Debug)]
struct Inbox {
    queue: Mutex<Queue>,
    wake: Arc<OwnedFd>,
}

/// A loop's own inbox, and those of the others.
#[derive(Debug)]
pub(super) struct Neighbours {
    own: u8,
    inboxes: Arc<[Inbox]>,
    /// Inboxes that something was put into since they were woken.
    touched: Vec<bool>,
}

impl Neighbours {
    /// One for each loop, given what wakes it, in the order of the shards' numbers.
    pub(super) fn among(wakes: &[Arc<OwnedFd>]) -> Vec<Self> {
        let inbox = |wake: &Arc<OwnedFd>| Inbox {
            queue: Mutex::default(),
            wake: Arc::clone(wake),
        };
        let inboxes: Arc<[Inbox]> = wakes.iter().map(inbox).collect();
        let touched = vec![false; wakes.len()];
        let neighbours = (0..=u8::MAX).zip(wakes).map(|(own, _)| Self {
            own,
            inboxes: Arc::clone(&inboxes),
            touched: touched.clone(),
        });
        neighbours.collect()
    }

    /// The other shard that a datagram is for, if it is for one: the kernel chooses a socket for a whole batch, by the
    /// first datagram in it.
    pub(super) fn owner_of(&self, payload: &[u8]) -> Option<u8> {
        let octet = usize::from(shard_octet(payload)?);
        let shard = u8::try_from(octet.checked_rem(self.inboxes.len())?).ok()?;
        (shard != self.own).then_some(shard)
    }

    /// Puts something into another loop's inbox. `false` when it is full and the parcel gone.
    pub(super) fn send(&mut self, to: u8, parcel: Parcel) -> bool {
        let (Some(inbox), Some(touched)) = (
            self.inboxes.get(usize::from(to)),
            self.touched.get_mut(usize::from(to)),
        ) else {
            return false;
        };
        let weight = parcel.weight();
        let mut queue = inbox.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.bytes + weight > MAX_WAITING {
            return false;
        }
        queue.bytes += weight;
        queue.parcels.push_back(parcel);
        *touched = true;
        true
    }

    /// As [`Self::send`], with bytes of its own: the batch that it lies in belongs to this loop.
    pub(super) fn send_datagram(&mut self, to: u8, datagram: UnderlayDatagram) -> bool {
        let data = BytesMut::from(&*datagram.data);
        self.send(to, Parcel::Datagram(UnderlayDatagram { data, ..datagram }))
    }

    /// Wakes the loops that something is there for.
    pub(super) fn flush(&mut self) {
        for (inbox, touched) in self.inboxes.iter().zip(&mut self.touched) {
            if std::mem::take(touched) {
                // It fails only for a loop that has ended, and then the daemon ends too.
                let _ = poller::wake(&inbox.wake);
            }
        }
    }

    /// What the others have for this loop.
    pub(super) fn take(&mut self) -> VecDeque<Parcel> {
        let Some(inbox) = self.inboxes.get(usize::from(self.own)) else {
            return VecDeque::new();
        };
        let mut queue = inbox.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.bytes = 0;
        std::mem::take(&mut queue.parcels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::poller::eventfd;

    fn three() -> Vec<Neighbours> {
        let wakes: Vec<_> = (0..3).map(|_| Arc::new(eventfd().unwrap())).collect();
        Neighbours::among(&wakes)
    }

    #[test]
    fn an_inbox_is_bounded_in_bytes_keeps_the_order_and_is_its_owners_alone() {
        let mut loops = three();
        let frame = |number: u8| Parcel::Handover(Handover::Frame(vec![number; 65_000]));
        let mut sent = 0_u8;
        while loops[0].send(2, frame(sent)) {
            sent += 1;
        }
        assert_eq!(usize::from(sent), MAX_WAITING / (65_000 + OVERHEAD));
        assert!(loops[1].take().is_empty());
        let taken = loops[2].take();
        for (parcel, number) in taken.iter().zip(0..) {
            assert!(
                matches!(parcel, Parcel::Handover(Handover::Frame(frame)) if frame[0] == number)
            );
        }
        assert_eq!(taken.len(), usize::from(sent));
        assert!(loops[1].send(2, frame(0)));
        assert!(!loops[0].send(3, frame(0)));
    }

    #[test]
    fn a_datagram_is_for_the_shard_of_its_octet_whatever_number_a_predecessor_had() {
        let loops = three();
        for (octet, owner) in [
            (0, Some(0)),
            (1, None),
            (2, Some(2)),
            (3, Some(0)),
            (4, None),
        ] {
            assert_eq!(loops[1].owner_of(&[0x40, octet, 9, 9]), owner, "{octet}");
        }
        assert_eq!(loops[1].owner_of(&[]), None);
        assert_eq!(loops[1].owner_of(&[0xc0, 0, 0, 0, 1, 0]), None);
    }
}
