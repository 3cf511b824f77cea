//! Users and groups of the host by name, as the files of the host have them. Whoever keeps accounts elsewhere has numbers.

use std::fs;

/// A user and its group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ids {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// A user of `/etc/passwd` with its own group.
pub fn user(name: &str) -> Option<Ids> {
    user_in(&fs::read_to_string("/etc/passwd").ok()?, name)
}

/// A group of `/etc/group`.
pub fn group(name: &str) -> Option<u32> {
    group_in(&fs::read_to_string("/etc/group").ok()?, name)
}

fn user_in(text: &str, name: &str) -> Option<Ids> {
    let mut fields = fields_of(text, name)?;
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Ids { uid, gid })
}

fn group_in(text: &str, name: &str) -> Option<u32> {
    fields_of(text, name)?.next()?.parse().ok()
}

/// What follows name and password.
fn fields_of<'a>(text: &'a str, name: &str) -> Option<impl Iterator<Item = &'a str>> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.skip(1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let groups = "root:x:0:\nidentun2:x:5:\nidentun:x:998:alice,bob\n";
        assert_eq!(group_in(groups, "identun"), Some(998));
        assert_eq!(group_in(groups, "ident"), None);
        assert_eq!(group_in("identun:x", "identun"), None);
        let users = "root:x:0:0:root:/root:/bin/bash\nidentun:x:997:998::/:/usr/sbin/nologin\n";
        let ids = Ids { uid: 997, gid: 998 };
        assert_eq!(user_in(users, "identun"), Some(ids));
        assert_eq!(user_in(users, "ident"), None);
        assert_eq!(user_in("identun:x:997", "identun"), None);
    }
}
