//! I3, the accounts: every packet that went into a TUN is delivered, dropped for a counted reason, waiting, or was lost on
//! its way by the network.
//!
//! They are made up whenever nothing is on its way and nothing waits. Where the network lost nothing and no session or
//! daemon ended meanwhile, they must come out exactly.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use crate::{
    model::WORKLOADS,
    packets::Ends,
    traffic::FlowKey,
    world::{Verdict, World},
};

/// The smallest packet that is sent here, and so how many of them one lost datagram of the underlay may have carried.
const SMALLEST: usize = 60;
const PER_DATAGRAM: u64 = (1_472 / SMALLEST) as u64;
/// An inner packet of more bytes may go in several datagrams, headers in each, and be dropped several times.
const ONE_DATAGRAM: usize = 1_160;
const PIECE: usize = 1_000;
/// Silence after which what is on its way in quinn has left it.
const SILENCE: Duration = Duration::from_millis(150);

/// A packet that went into a TUN.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) host: usize,
    pub(crate) at: Duration,
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) key: FlowKey,
    pub(crate) reply: bool,
    pub(crate) opening: bool,
    pub(crate) packet: Vec<u8>,
    /// Where its payload begins, of which so many bytes were delivered. An opening segment counts as one byte.
    pub(crate) payload_at: usize,
    pub(crate) delivered: usize,
    /// Packets like this one were lost before: it may be late, or lost without a reason.
    pub(crate) carried: bool,
}

impl Record {
    pub(crate) fn payload(&self) -> &[u8] {
        &self.packet[self.payload_at..]
    }

    /// Bytes that are to be delivered.
    pub(crate) fn wanted(&self) -> usize {
        self.payload().len().max(1)
    }

    fn is_missing(&self) -> bool {
        self.delivered < self.wanted()
    }

    /// How often it may be dropped at most.
    fn pieces(&self) -> u64 {
        match self.packet.len() {
            0..=ONE_DATAGRAM => 1,
            more => more.div_ceil(PIECE) as u64,
        }
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Ledger {
    records: BTreeMap<u32, Record>,
    /// TCP segments by the sequence number that they begin with.
    segments: BTreeMap<Ends, BTreeMap<u32, u32>>,
    next: u32,
    /// At the beginning of this account.
    drops: u64,
    lost: u64,
    broke: bool,
    /// Accounts that came out exactly, and packets in them.
    pub(crate) exact: u64,
    pub(crate) packets: u64,
}

impl Ledger {
    /// The number of the next packet.
    pub(crate) const fn number(&self) -> u32 {
        self.next
    }

    /// A packet went into the TUN; a TCP segment with its sequence number.
    pub(crate) fn enter(&mut self, record: Record, segment: Option<(Ends, u32)>) {
        if let Some((ends, sequence)) = segment {
            let segments = self.segments.entry(ends).or_default();
            segments.insert(sequence, self.next);
        }
        self.records.insert(self.next, record);
        self.next += 1;
        self.packets += 1;
    }

    /// A session or a daemon ended: what was on its way may be lost with it.
    pub(crate) const fn broke(&mut self) {
        self.broke = true;
    }

    pub(crate) fn find(&mut self, number: u32) -> Option<&mut Record> {
        self.records.get_mut(&number)
    }

    /// The segment that has the byte of this sequence number, and where.
    pub(crate) fn segment(&mut self, ends: &Ends, sequence: u32) -> Option<(usize, &mut Record)> {
        let (first, number) = self.segments.get(ends)?.range(..=sequence).next_back()?;
        let offset = usize::try_from(sequence - first).unwrap();
        let record = self.records.get_mut(number)?;
        (offset < record.wanted()).then_some((offset, record))
    }

    fn close(&mut self, drops: u64, lost: u64, at_risk: &[Duration]) -> Verdict {
        let (dropped, gone) = (drops - self.drops, lost - self.lost);
        let missing = || self.records.values().filter(|record| record.is_missing());
        let fresh = missing().filter(|record| !record.carried).count() as u64;
        // What an end of which ended may be gone with it.
        let is_excused = |record: &&Record| {
            let ends = [record.host, WORKLOADS[record.to].host];
            ends.iter().any(|&host| record.at < at_risk[host])
        };
        let excused = missing()
            .filter(|record| !record.carried)
            .filter(is_excused)
            .count() as u64;
        let most: u64 = missing().map(Record::pieces).sum();
        let told = |record: Option<&Record>| record.map(brief).unwrap_or_default();
        if dropped > most {
            return Err(format!(
                "I3: {dropped} drops were counted, but only {fresh} packets are missing{}",
                told(missing().next_back())
            ));
        }
        if !self.broke && fresh > excused + dropped + gone * PER_DATAGRAM {
            return Err(format!(
                "I3: {fresh} packets are missing, {dropped} drops were counted, and the network lost {gone} datagrams{}",
                told(missing().next())
            ));
        }
        let is_exact = !self.broke && gone == 0 && excused == 0;
        self.exact += u64::from(is_exact);
        self.records
            .retain(|_, record| record.is_missing() && !is_exact);
        self.records
            .values_mut()
            .for_each(|record| record.carried = true);
        let records = &self.records;
        for segments in self.segments.values_mut() {
            segments.retain(|_, number| records.contains_key(number));
        }
        (self.drops, self.lost, self.broke) = (drops, lost, false);
        Ok(())
    }
}

fn brief(record: &Record) -> String {
    let Record {
        host,
        from,
        to,
        key,
        reply,
        at,
        ..
    } = record;
    let kind = key.kind;
    let direction = if *reply { "reply from" } else { "from" };
    format!("; one is {kind:?} {direction} {from} to {to}, sent on host {host} at {at:?}")
}

impl World {
    /// Makes the accounts up if this is a moment for it.
    pub(crate) fn account(&mut self) -> Result<bool, String> {
        let is_silent = self.network.next().is_none() && self.elapsed >= self.heard + SILENCE;
        let is_idle = self.hosts.iter_mut().all(|host| {
            let waits = host.shard.as_mut().map(identun::shard::Shard::waiting);
            host.tun.is_empty() && waits.is_none_or(|waits| waits.is_empty())
        });
        if !is_silent || !is_idle {
            return Ok(false);
        }
        let drops = self.hosts.iter_mut().map(crate::host::Host::drops).sum();
        let at_risk: Vec<_> = self.hosts.iter().map(|host| host.at_risk).collect();
        self.ledger.close(drops, self.network.lost, &at_risk)?;
        Ok(true)
    }
}

/// A packet's addresses, for words.
pub(crate) fn way(from: IpAddr, to: IpAddr) -> String {
    format!("{from} -> {to}")
}
