//! What applications say, which way their host's kernel sends it, and what comes out at the other end.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use identun::wire::{
    FiveTuple,
    packet::Packet,
    protocol::{ICMP, ICMPV6, TCP, UDP},
};

use crate::{
    ledger::{Record, way},
    model::{MUST_PORT, PLAIN_PORT, WORKLOADS, address, owner},
    packets::{self, ACK, Ends, HEAD, SYN},
    step::{Kind, Talk},
    world::{Verdict, World},
};

/// Silence after which a daemon may not know a flow any more: one that was cut is remembered no longer.
const FORGOTTEN: Duration = Duration::from_secs(29);

/// The round of flows that no application has.
const SPOOFED: u16 = 7;

/// Which flow.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct FlowKey {
    pub(crate) client: usize,
    pub(crate) server: usize,
    pub(crate) kind: Kind,
    pub(crate) v6: bool,
    /// Tells flows apart that are alike.
    pub(crate) round: u16,
}

/// What its two applications know.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flow {
    /// The server heard the client, by the tunnel.
    pub(crate) heard: bool,
    /// When the server's host saw something of it last.
    seen: Duration,
    /// The server spoke when its daemon may have forgotten the flow, and so has opened it.
    pub(crate) reopened: bool,
    /// TCP: the connection's ends have sent SYN, and what follows.
    opened: [bool; 2],
    sequence: [u32; 2],
}

/// Every flow.
pub(crate) type Flows = BTreeMap<FlowKey, Flow>;

impl FlowKey {
    /// Who speaks, and to whom.
    const fn sides(self, reply: bool) -> (usize, usize) {
        match reply {
            true => (self.server, self.client),
            false => (self.client, self.server),
        }
    }

    fn ends(self, reply: bool) -> Ends {
        let ends = self.opening();
        if reply { ends.reversed() } else { ends }
    }

    /// As the client sends.
    fn opening(self) -> Ends {
        let kind = self.kind as usize;
        let base = 40_000 + self.client * 500 + self.server * 100 + kind * 20;
        let local = u16::try_from(base).unwrap() + self.round;
        let remote = match self.kind {
            Kind::Echo => local,
            Kind::Plain => PLAIN_PORT,
            Kind::Bulk | Kind::Tcp | Kind::Udp => MUST_PORT,
        };
        Ends {
            from: address(self.client, self.v6),
            to: address(self.server, self.v6),
            ports: [local, remote],
        }
    }

    const fn protocol(self) -> u8 {
        match (self.kind, self.v6) {
            (Kind::Bulk | Kind::Tcp, _) => TCP,
            (Kind::Plain | Kind::Udp, _) => UDP,
            (Kind::Echo, false) => ICMP,
            (Kind::Echo, true) => ICMPV6,
        }
    }

    /// Its original direction, as conntrack has it.
    fn original(self) -> FiveTuple {
        let ends = self.opening();
        FiveTuple {
            protocol: self.protocol(),
            source: ends.from,
            source_port: ends.ports[0],
            destination: ends.to,
            destination_port: ends.ports[1],
        }
    }
}

impl World {
    /// An application speaks.
    pub(crate) fn talk(&mut self, talk: Talk) -> Verdict {
        let Talk {
            from: client,
            to: server,
            kind,
            v6,
            ..
        } = talk;
        let key = FlowKey {
            client,
            server,
            kind,
            v6,
            round: 0,
        };
        for _ in 0..talk.count {
            self.say(key, talk.reply, talk.size.into())?;
        }
        Ok(())
    }

    /// Somebody on a host speaks under the address of a workload, whoever's it is.
    pub(crate) fn spoof(
        &mut self,
        host: usize,
        (client, server): (usize, usize),
        kind: Kind,
        v6: bool,
    ) -> Verdict {
        let key = FlowKey {
            client,
            server,
            kind,
            v6,
            round: SPOOFED,
        };
        let (packet, segment) = self.build(key, false, 200);
        self.enter(host, key, false, packet, segment);
        self.run_for(Duration::ZERO)
    }

    /// One packet of an application. Its kernel sends it by the tunnel where the sets say so or the flow came by it.
    pub(crate) fn say(&mut self, key: FlowKey, reply: bool, size: usize) -> Verdict {
        let flow = self.flows.entry(key).or_default();
        let (from, to) = key.sides(reply);
        let host = WORKLOADS[from].host;
        if WORKLOADS[to].host == host || (reply && !flow.heard) {
            return Ok(());
        }
        let tuple = key.original();
        let at = &self.hosts[host];
        let captures = reply
            || at.policy.steering().captures(
                tuple.source,
                tuple.destination,
                tuple.protocol,
                tuple.service_port(),
            );
        if !captures {
            let must = at.view.must(host, &at.held(), (from, to), key.kind);
            if must {
                return Err(format!(
                    "I1: {tuple} must be in the tunnel and left host {host} in plaintext"
                ));
            }
            return self.in_plaintext(key);
        }
        let (packet, segment) = self.build(key, reply, size);
        self.enter(host, key, reply, packet, segment);
        self.run_for(Duration::ZERO)
    }

    /// A packet that no daemon sees, and what the other host's kernel does with it.
    fn in_plaintext(&mut self, key: FlowKey) -> Verdict {
        let tuple = key.original();
        let server = &self.hosts[WORKLOADS[key.server].host];
        let accepts = server.policy.steering().accepts_plaintext(
            tuple.source,
            tuple.destination,
            tuple.protocol,
            tuple.service_port(),
        );
        let held = server.held();
        let is_local = server.view.is_local(key.server, server.index, &held);
        if accepts && is_local && !server.view.accepts_plaintext(key.server, key.kind) {
            return Err(format!(
                "I1: {tuple} was taken in plaintext by a STRICT workload"
            ));
        }
        Ok(())
    }

    /// The next packet of a flow; a TCP segment with its sequence number.
    fn build(&mut self, key: FlowKey, reply: bool, size: usize) -> (Vec<u8>, Option<(Ends, u32)>) {
        let number = self.ledger.number();
        let flow = self.flows.entry(key).or_default();
        let ends = key.ends(reply);
        let ip = if key.v6 { 40 } else { 20 };
        let side = usize::from(reply);
        match key.kind {
            Kind::Bulk | Kind::Tcp => {
                let sequence = 1_000 + flow.sequence[side];
                let is_opening = !std::mem::replace(&mut flow.opened[side], true);
                let (flags, payload) = match (is_opening, reply) {
                    (true, false) => (SYN, Vec::new()),
                    (true, true) => (SYN | ACK, Vec::new()),
                    (false, _) => (ACK, packets::payload(number, size.saturating_sub(ip + 20))),
                };
                flow.sequence[side] += u32::try_from(payload.len().max(1)).unwrap();
                (
                    packets::tcp(ends, sequence, flags, &payload),
                    Some((ends, sequence)),
                )
            }
            Kind::Echo | Kind::Plain | Kind::Udp => {
                let payload = packets::payload(number, size.saturating_sub(ip + 8).max(HEAD));
                let packet = if key.kind == Kind::Echo {
                    packets::echo(ends, reply, &payload)
                } else {
                    packets::udp(ends, &payload)
                };
                (packet, None)
            }
        }
    }

    /// A packet goes into a host's TUN.
    fn enter(
        &mut self,
        host: usize,
        key: FlowKey,
        reply: bool,
        packet: Vec<u8>,
        segment: Option<(Ends, u32)>,
    ) {
        let frame = packets::frame(&packet, key.kind == Kind::Bulk && packet.len() > 1_500);
        if !self.hosts[host].send(frame) {
            return;
        }
        let ends = key.ends(reply);
        self.hosts[host].spoken.insert((ends.from, ends.to));
        if reply {
            let born = self.hosts[host].born;
            let flow = self.flows.entry(key).or_default();
            flow.reopened |= flow.seen + FORGOTTEN <= self.elapsed || flow.seen <= born;
            flow.seen = self.elapsed;
        }
        let (from, to) = key.sides(reply);
        let ip = if key.v6 { 40 } else { 20 };
        let payload_at = ip + if segment.is_some() { 20 } else { 8 };
        let record = Record {
            host,
            at: self.elapsed,
            from,
            to,
            key,
            reply,
            opening: segment.is_some() && packet.len() == payload_at,
            packet,
            payload_at,
            delivered: 0,
            carried: false,
        };
        self.ledger.enter(record, segment);
    }

    /// What the daemon gives to its kernel.
    pub(crate) fn deliver(&mut self, index: usize) -> Result<bool, String> {
        let mut frame = Vec::new();
        let mut moved = false;
        while let Some(shard) = &mut self.hosts[index].shard
            && shard.poll_device(&mut frame)
        {
            moved = true;
            self.receive(index, &frame[10..])?;
        }
        Ok(moved)
    }

    /// I2 and I3: a packet that comes out of the TUN is one that was sent, once, byte for byte, and may be here.
    fn receive(&mut self, index: usize, bytes: &[u8]) -> Verdict {
        let Ok(packet) = Packet::new_checked(bytes) else {
            return Err(format!(
                "I2: host {index} got what is no packet: {bytes:02x?}"
            ));
        };
        let (from, to) = (packet.source(), packet.destination());
        let is_here = owner(to).is_some_and(|who| WORKLOADS[who].host == index);
        let is_reset = packet.tcp_flags().is_some_and(|flags| flags.is_rst());
        if is_reset || packet.is_icmp_error() {
            // Applications send none, so the daemon did: to whoever spoke, under whatever address.
            self.told(&packet.five_tuple());
            return match is_here || self.hosts[index].spoken.contains(&(to, from)) {
                true => Ok(()),
                false => Err(format!("I2: an answer nobody asked for: {}", way(from, to))),
            };
        }
        match packet.protocol() {
            TCP => self.receive_segment(index, &packet),
            _ => self.receive_datagram(index, &packet),
        }
    }

    fn receive_datagram(&mut self, index: usize, packet: &Packet<'_>) -> Verdict {
        let (from, to) = (packet.source(), packet.destination());
        let number = packet.transport().get(8..).and_then(packets::number);
        let record = number.and_then(|number| self.ledger.find(number));
        let Some(record) = record else {
            return Err(format!(
                "I3: host {index} got a packet that nobody sent lately: {}",
                way(from, to)
            ));
        };
        if record.packet != packet.bytes() {
            return Err(format!(
                "I3: {} changed on its way to host {index}",
                way(from, to)
            ));
        }
        record.delivered += record.wanted();
        let record = record.clone();
        self.arrived(index, &record, (from, to))
    }

    fn receive_segment(&mut self, index: usize, packet: &Packet<'_>) -> Verdict {
        let tuple = packet.five_tuple();
        let ends = Ends {
            from: tuple.source,
            to: tuple.destination,
            ports: [tuple.source_port, tuple.destination_port],
        };
        let sequence = packet.transport()[4..8]
            .try_into()
            .map(u32::from_be_bytes)
            .unwrap();
        let mut payload = &packet.bytes()[packet.payload_offset()..];
        let mut at = sequence;
        loop {
            let Some((offset, record)) = self.ledger.segment(&ends, at) else {
                return Err(format!(
                    "I3: host {index} got bytes that nobody sent lately: {tuple} at {at}"
                ));
            };
            let sent = record.payload().get(offset..).unwrap_or_default();
            let len = sent.len().min(payload.len());
            if sent[..len] != payload[..len] || record.opening != payload.is_empty() {
                return Err(format!("I3: {tuple} changed on its way to host {index}"));
            }
            record.delivered += len.max(1);
            let record = record.clone();
            self.arrived(index, &record, (tuple.source, tuple.destination))?;
            payload = &payload[len..];
            at += u32::try_from(len).unwrap();
            if payload.is_empty() {
                return Ok(());
            }
        }
    }

    /// A sent packet is here, or a part of it.
    fn arrived(&mut self, index: usize, record: &Record, (from, to): (IpAddr, IpAddr)) -> Verdict {
        if record.delivered > record.wanted() {
            return Err(format!(
                "I3: {} came out on host {index} twice",
                way(from, to)
            ));
        }
        self.judge(index, record)?;
        let flow = self.flows.entry(record.key).or_default();
        if !record.reply {
            (flow.heard, flow.seen) = (true, self.elapsed);
        }
        if record.key.kind != Kind::Echo {
            self.hosts[index].track(record.key.original(), self.elapsed);
        }
        Ok(())
    }

    /// An application was told that its flow is refused: a connection is over.
    fn told(&mut self, tuple: &FiveTuple) {
        for (key, flow) in &mut self.flows {
            let original = key.original();
            if [original, original.reversed()].contains(tuple) {
                (flow.heard, flow.opened) = (false, [false, false]);
            }
        }
    }
}
