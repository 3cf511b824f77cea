//! A user or a group as a setting: by name or by number.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

/// A user or a group of the host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Account {
    /// As `/etc/passwd` or `/etc/group` has it.
    Name(String),
    /// Whether or not anything names it.
    Number(u32),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Account {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Either)
    }
}

struct Either;

impl Visitor<'_> for Either {
    type Value = Account;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name or the number of a user or group")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Account, E> {
        let is_name = !name.is_empty()
            && name
                .chars()
                .all(|char| char.is_ascii_graphic() && char != ':');
        match is_name {
            true => Ok(Account::Name(name.to_owned())),
            false => Err(E::custom(format!(
                "`{name}` is no user\'s or group\'s name"
            ))),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Account, E> {
        // the last number is the kernel's word for none
        let number = u32::try_from(number)
            .ok()
            .filter(|number| *number != u32::MAX);
        number
            .map(Account::Number)
            .ok_or_else(|| E::custom("there are no users or groups of such numbers"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_told_apart_and_nonsense_is_refused() {
        let read = |text: &str| serde_json::from_str::<Account>(text);
        assert_eq!(
            read("\"identun\"").unwrap(),
            Account::Name("identun".into())
        );
        assert_eq!(read("998").unwrap(), Account::Number(998));
        for wrong in [
            "\"\"",
            "\"a b\"",
            "\"a:b\"",
            "4294967295",
            "-1",
            "1.5",
            "true",
            "[]",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(
            read("[]")
                .unwrap_err()
                .to_string()
                .contains("the name or the number")
        );
    }
}
