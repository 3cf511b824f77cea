//! Sets: their declarations and elements.

use super::{
    message::{Attributes, Batch, CREATE, Kind},
    value::{Order, REGISTER, Type},
};

// NFT_SET_*
const ANONYMOUS: u32 = 1;
const CONSTANT: u32 = 2;
const INTERVAL: u32 = 4;
const MAP: u32 = 8;
const TIMEOUT: u32 = 16;
const DYNAMIC: u32 = 32;
const CONCATENATION: u32 = 0x80;
/// NFT_DATA_VERDICT
const VERDICTS: u32 = 0xffff_ff00;

/// A set as it is declared: `type a . b; flags c,d; size n; timeout 10m;`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Specification {
    pub(super) key: Vec<Type>,
    flags: u32,
    size: Option<u32>,
    /// Milliseconds.
    timeout: Option<u64>,
}

impl Specification {
    /// A set in a rule: `{ 1, 2 }`, or with verdicts.
    pub(super) fn in_rule(key: Vec<Type>, verdicts: bool, elements: usize) -> Self {
        let map = if verdicts { MAP } else { 0 };
        Self {
            key,
            flags: ANONYMOUS | CONSTANT | map,
            size: u32::try_from(elements).ok(),
            timeout: None,
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut specification = Self::default();
        for clause in text
            .split(';')
            .map(str::trim)
            .filter(|clause| !clause.is_empty())
        {
            let (word, rest) = clause.split_once(' ')?;
            match word {
                "type" => {
                    specification.key =
                        rest.split(" . ").map(Type::named).collect::<Option<_>>()?;
                }
                "flags" => {
                    for flag in rest.split(',') {
                        specification.flags |= match flag.trim() {
                            "interval" => INTERVAL,
                            "dynamic" => DYNAMIC,
                            "timeout" => TIMEOUT,
                            _ => return None,
                        };
                    }
                }
                "size" => specification.size = Some(rest.parse().ok()?),
                "timeout" => specification.timeout = Some(milliseconds(rest)?),
                _ => return None,
            }
        }
        if specification.key.len() > 1 && specification.has(INTERVAL) {
            specification.flags |= CONCATENATION;
        }
        (!specification.key.is_empty()).then_some(specification)
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Bytes of a key: a part of several fills whole registers, one that is alone does not.
    fn key_length(&self) -> usize {
        match self.key.as_slice() {
            [one] => one.length(),
            parts => parts.iter().map(|part| padded(*part)).sum(),
        }
    }

    /// Appends the message that makes the set. `id` names it within the transaction.
    pub(super) fn declare(&self, table: &str, name: &str, id: u32, batch: &mut Batch) {
        let about = format!("set {name}");
        batch.message(Kind::NewSet, CREATE, &about, |set| {
            set.text(1, table);
            set.text(2, name);
            set.number(3, self.flags);
            // nft's numbers, six bits each, the first part in the highest
            let types = self.key.iter();
            set.number(4, types.fold(0, |all, part| all << 6 | part.number()));
            set.number(5, length(self.key_length()));
            if self.has(MAP) {
                set.number(6, VERDICTS);
            }
            self.describe(set);
            set.number(10, id);
            if let Some(timeout) = self.timeout {
                set.bytes(11, &timeout.to_be_bytes());
            }
            set.bytes(13, &self.user_data());
        });
    }

    /// Its size, and where the parts of a key lie.
    fn describe(&self, set: &mut Attributes<'_>) {
        if self.size.is_none() && !self.has(CONCATENATION) {
            return;
        }
        set.nested(9, |description| {
            if let Some(size) = self.size {
                description.number(1, size);
            }
            if self.has(CONCATENATION) {
                description.nested(2, |parts| {
                    for part in &self.key {
                        parts.nested(1, |field| field.number(1, length(part.length())));
                    }
                });
            }
        });
    }

    /// What nft keeps for itself: the byte order in which it shows a key (type 0, four bytes: 1 the machine's, 2 the
    /// network's, 0 that of each part).
    fn user_data(&self) -> [u8; 6] {
        let order: u32 = match self.key.as_slice() {
            [one] if one.order() == Order::Network => 2,
            [_] => 1,
            _ => 0,
        };
        let [a, b, c, d] = order.to_ne_bytes();
        [0, 4, a, b, c, d]
    }

    /// One element: its key, or first and last key in an interval set.
    pub(super) fn element(
        &self,
        text: &str,
        index: &dyn Fn(&str) -> Option<u32>,
    ) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
        if let [Type::InterfaceIndex] = self.key.as_slice() {
            let number = match super::value::quoted(text) {
                Some(name) => index(name)?,
                None => text.parse().ok()?,
            };
            return Some((number.to_ne_bytes().to_vec(), None));
        }
        let parts: Vec<_> = text.split(" . ").collect();
        if parts.len() != self.key.len() {
            return None;
        }
        let alone = parts.len() == 1;
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for (part, kind) in parts.into_iter().zip(&self.key) {
            let (low, high) = match self.has(INTERVAL) {
                true => kind.interval(part)?,
                false => (kind.value(part)?, Vec::new()),
            };
            for (key, value) in [(&mut first, low), (&mut last, high)] {
                key.extend(value);
                if !alone {
                    key.resize(key.len().next_multiple_of(REGISTER), 0);
                }
            }
        }
        Some((first, self.has(INTERVAL).then_some(last)))
    }
}

/// Bytes of a part of a key with several.
pub(super) fn padded(kind: Type) -> usize {
    kind.length().next_multiple_of(REGISTER)
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A time in nft's notation: one number with one unit.
fn milliseconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_several_parts_fill_registers() {
        let set = Specification::parse("type ipv4_addr . inet_proto . inet_service;").unwrap();
        let (key, end) = set.element("10.0.0.1 . 6 . 443", &|_| None).unwrap();
        assert_eq!(key, [10, 0, 0, 1, 6, 0, 0, 0, 1, 187, 0, 0]);
        assert_eq!(end, None);
        let ports = Specification::parse("type inet_service;").unwrap();
        assert_eq!(ports.element("443", &|_| None), Some((vec![1, 187], None)));
    }

    #[test]
    fn what_is_not_understood_is_no_set_and_no_element() {
        for text in [
            "",
            "type mac_addr;",
            "type ipv4_addr; flags constant;",
            "type ipv4_addr; timeout 10;",
            "size 5;",
        ] {
            assert_eq!(Specification::parse(text), None, "{text}");
        }
        let set = Specification::parse("type ipv4_addr . inet_service;").unwrap();
        for text in ["10.0.0.1", "10.0.0.1 . 80 . 81", "10.0.0.1 . http", ""] {
            assert_eq!(set.element(text, &|_| None), None, "{text}");
        }
        let index = Specification::parse("type iface_index;").unwrap();
        assert_eq!(index.element("\"gone\"", &|_| None), None);
    }
}
