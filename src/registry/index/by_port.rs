//! Services by an endpoint's address and own port. Most new flows are looked up here, so what the answer needs of service
//! and workload stands in the table itself, which is small enough for the caches.

use std::{
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use hashbrown::{HashMap, hash_map::Entry};

/// A service at one of its endpoints.
#[derive(Clone, Copy, Debug)]
pub(super) struct AtEndpoint {
    /// The service, by number.
    pub(super) service: u32,
    /// The workload at the endpoint, by number.
    pub(super) workload: u32,
    /// The service's port.
    pub(super) port: u16,
    /// Clients of every namespace see the service.
    pub(super) is_for_all: bool,
}

/// The table, oldest service first.
#[derive(Debug, Default)]
pub(super) struct ByPort {
    ipv4: HashMap<(Ipv4Addr, u16), Few>,
    ipv6: HashMap<(Ipv6Addr, u16), Few>,
    /// What [`Few::Many`] counts.
    lists: Vec<Vec<AtEndpoint>>,
}

/// A list that nearly always has one member.
#[derive(Debug)]
enum Few {
    One(AtEndpoint),
    Many(u32),
}

impl ByPort {
    pub(super) fn add(&mut self, address: IpAddr, port: u16, found: AtEndpoint) {
        match address {
            IpAddr::V4(address) => add(&mut self.ipv4, (address, port), found, &mut self.lists),
            IpAddr::V6(address) => add(&mut self.ipv6, (address, port), found, &mut self.lists),
        }
    }

    pub(super) fn at(&self, address: IpAddr, port: u16) -> &[AtEndpoint] {
        let few = match address {
            IpAddr::V4(address) => self.ipv4.get(&(address, port)),
            IpAddr::V6(address) => self.ipv6.get(&(address, port)),
        };
        match few {
            Some(Few::One(found)) => std::slice::from_ref(found),
            Some(Few::Many(list)) => {
                let list = usize::try_from(*list).ok();
                let list = list.and_then(|list| self.lists.get(list));
                list.map_or(&[], Vec::as_slice)
            }
            None => &[],
        }
    }
}

fn add<A: Eq + Hash>(
    table: &mut HashMap<(A, u16), Few>,
    key: (A, u16),
    found: AtEndpoint,
    lists: &mut Vec<Vec<AtEndpoint>>,
) {
    let mut entry = match table.entry(key) {
        Entry::Occupied(entry) => entry,
        Entry::Vacant(entry) => {
            entry.insert(Few::One(found));
            return;
        }
    };
    match *entry.get() {
        Few::One(first) => {
            // a file that names so many services is refused long before
            let number = u32::try_from(lists.len()).unwrap_or(u32::MAX);
            lists.push(vec![first, found]);
            entry.insert(Few::Many(number));
        }
        Few::Many(list) => {
            let list = usize::try_from(list).ok();
            if let Some(list) = list.and_then(|list| lists.get_mut(list)) {
                list.push(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_behind_a_port_is_found_oldest_first_and_no_other() {
        let mut table = ByPort::default();
        let addresses = ["10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1"];
        let addresses = addresses.map(|address| address.parse::<IpAddr>().unwrap());
        for service in 0..9 {
            let found = AtEndpoint {
                service,
                workload: 7,
                port: 80,
                is_for_all: true,
            };
            let address = addresses[usize::try_from(service % 3).unwrap()];
            table.add(address, 8_080 + u16::from(service == 8), found);
        }
        let services = |address, port| {
            let found = table.at(address, port).iter();
            found.map(|found| found.service).collect::<Vec<_>>()
        };
        let found = addresses.map(|address| services(address, 8_080));
        assert_eq!(found, [vec![0, 3, 6], vec![1, 4, 7], vec![2, 5]]);
        assert_eq!(services(addresses[2], 8_081), [8]);
        assert!(services(addresses[0], 8_081).is_empty());
    }
}
