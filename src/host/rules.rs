//! Who programs the nft table: the daemon itself, whose property it then is, or the nft program where the kernel knows
//! no property that lasts or the table was made without.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use rustix::io::Errno;

use crate::{
    host::{
        HostError, HostSettings, interfaces,
        nftables::{
            Present, Ruleset, command,
            encode::Encoder,
            owner::{OWNED, Owner, Refusal},
        },
    },
    policy::Steering,
};

/// Programs the table, one transaction at a time.
#[derive(Debug)]
pub struct Rules {
    settings: HostSettings,
    owner: Mutex<Ownership>,
    /// A digest of what the table's sets hold, where it is ours: nobody else can have changed them.
    known: Mutex<Option<u64>>,
}

#[derive(Debug)]
enum Ownership {
    /// The table is, or will be, the socket's.
    Ours(Owner),
    /// It is everybody's.
    Nobodys,
}

impl Rules {
    /// Rules of which the table becomes the property of the returned value, where the kernel can do that (Linux 6.9).
    /// It stays when the value goes.
    pub fn owned(settings: &HostSettings) -> Result<Self, HostError> {
        let owner = Owner::open().map_err(|source| HostError::Netlink {
            operation: "open a netlink socket for the ruleset",
            source,
        })?;
        Ok(Self::of(settings, Ownership::Ours(owner)))
    }

    /// As [`Self::owned`], by the socket of a predecessor, whose table stays owned throughout.
    pub fn inherited(settings: &HostSettings, socket: OwnedFd) -> io::Result<Self> {
        Ok(Self::of(settings, Ownership::Ours(Owner::adopt(socket)?)))
    }

    /// Another name for the socket that owns the table, for a successor; `None` where it has no owner.
    pub fn owner(&self) -> io::Result<Option<OwnedFd>> {
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        match &*owner {
            Ownership::Ours(owner) => owner.as_fd().try_clone_to_owned().map(Some),
            Ownership::Nobodys => Ok(None),
        }
    }

    /// Rules that anybody with the rights can change too, programmed by nft.
    #[must_use]
    pub fn shared(settings: &HostSettings) -> Self {
        Self::of(settings, Ownership::Nobodys)
    }

    fn of(settings: &HostSettings, owner: Ownership) -> Self {
        Self {
            settings: settings.clone(),
            owner: Mutex::new(owner),
            known: Mutex::default(),
        }
    }

    /// Tells whether nobody else can change the table; known after the first [`Self::install`].
    pub fn are_owned(&self) -> bool {
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*owner, Ownership::Ours(_))
    }

    /// First step of a start: the nft table, in one transaction. Where the table of an earlier run stands it is never
    /// replaced: its sets are brought up to date by differences, then its chains are refilled, which heals whatever was
    /// done to them. What the packet path has put into its sets stays, and so do the counters.
    ///
    /// Tells whether such a table stood.
    pub fn install(&self, steering: &Steering) -> Result<bool, HostError> {
        let ruleset = Ruleset::new(&self.settings, steering)?;
        for name in &self.settings.workload_interfaces {
            if !interfaces::exists(name)? {
                return Err(HostError::NoInterface { name: name.clone() });
            }
        }
        let table = &self.settings.table;
        let Some(chains) = command::chains(table)? else {
            self.apply(&ruleset.create())?;
            self.note(steering);
            return Ok(false);
        };
        let present = if self.holds(steering) {
            // nft reads what the packet path has put into its sets as well, and that may be megabytes
            ruleset.complete(chains)
        } else {
            let (sets, hold) = command::sets(table)?;
            let present = Present { chains, sets };
            if let Some(text) = ruleset.adopt(&present, &hold) {
                self.apply(&text)?;
            }
            present
        };
        self.apply(&ruleset.refill(&present))?;
        self.note(steering);
        Ok(true)
    }

    /// Makes a table where none is, from its text.
    pub(in crate::host) fn create(&self, text: &str) -> Result<(), HostError> {
        self.apply(text)
    }

    /// Later changes: differences of elements only, one transaction; nothing is done when there are none. Where the
    /// table is not what `old` says (somebody changed it), the whole is installed as by [`Self::install`].
    pub fn update(&self, old: &Steering, new: &Steering) -> Result<(), HostError> {
        let before = Ruleset::new(&self.settings, &old.beyond(new))?;
        let after = Ruleset::new(&self.settings, &new.beyond(old))?;
        let was_known = self.holds(old);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match after.difference(&before).map(|text| self.apply(&text)) {
            None | Some(Ok(())) if was_known => self.note(new),
            None | Some(Ok(())) => {}
            Some(Err(HostError::Nft { .. } | HostError::Ruleset { .. })) => {
                self.install(new)?;
            }
            Some(Err(error)) => return Err(error),
        }
        Ok(())
    }

    /// From here on the table's sets hold this.
    fn note(&self, steering: &Steering) {
        let known = self.are_owned().then(|| self.digest(steering));
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// Tells whether the table's sets are known to hold this.
    fn holds(&self, steering: &Steering) -> bool {
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.is_some_and(|known| known == self.digest(steering))
    }

    /// Of everything that sets are filled from; an interface that was made again has another number.
    fn digest(&self, steering: &Steering) -> u64 {
        let mut hasher = DefaultHasher::new();
        steering.hash(&mut hasher);
        for name in &self.settings.workload_interfaces {
            (name, interfaces::index(name)).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// All of the text takes effect, or nothing.
    fn apply(&self, text: &str) -> Result<(), HostError> {
        let mut ownership = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        let Ownership::Ours(owner) = &*ownership else {
            return command::apply(text);
        };
        let table = &self.settings.table;
        let batch = Encoder::new(table, OWNED, &interfaces::index)
            .encode(text)
            .map_err(|error| HostError::Ruleset {
                what: error.to_string(),
                source: io::ErrorKind::InvalidInput.into(),
            })?;
        let Err(refusal) = owner.apply(&batch) else {
            return Ok(());
        };
        // The kernel knows no such property, or the table was made without it.
        if refusal.is_table && is(&refusal, Errno::OPNOTSUPP) {
            *ownership = Ownership::Nobodys;
            return command::apply(text);
        }
        Err(self.error(refusal))
    }

    fn error(&self, refusal: Refusal) -> HostError {
        if is(&refusal, Errno::PERM) {
            return match refusal.is_table {
                true => HostError::TableOwned {
                    table: self.settings.table.clone(),
                },
                false => HostError::Permission {
                    operation: "apply the ruleset",
                },
            };
        }
        HostError::Ruleset {
            what: refusal.about,
            source: refusal.source,
        }
    }
}

fn is(refusal: &Refusal, errno: Errno) -> bool {
    refusal.source.raw_os_error() == Some(errno.raw_os_error())
}
