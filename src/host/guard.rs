//! What holds plaintext back before the daemon runs: its table and everything of its routing that needs no TUN, from the
//! text that the last daemon left behind. The text is nft's language, so that it can be read, and loaded by nft too; its
//! first line tells names and numbers.

use crate::{
    host::{
        HostError, HostSettings, interfaces,
        nftables::{Ruleset, command},
        routes,
        rules::Rules,
    },
    policy::Steering,
};

/// Begins the first line; the settings follow as JSON.
const HEAD: &str = "# identun guard 1 ";

/// The settings, and whose the table shall be.
#[derive(serde::Deserialize, serde::Serialize)]
struct Head {
    host: HostSettings,
    owned: bool,
}

/// Why a text is not a guard's.
#[derive(Debug, thiserror::Error)]
#[error("it is not what a daemon of this version leaves behind: {0}")]
pub struct GuardTextError(String);

/// What is to be installed before a daemon runs.
#[derive(Debug)]
pub struct Guard {
    settings: HostSettings,
    owned: bool,
    ruleset: String,
}

/// What a guard found and did.
#[derive(Debug, Eq, PartialEq)]
pub struct Guarded {
    /// A table of ours stood there and was left as it was.
    pub stood: bool,
    /// One line for each thing that was added.
    pub added: Vec<String>,
}

impl Guard {
    /// The guard of this policy. `owned`: the table shall be the property of whoever programs it.
    pub fn new(
        settings: &HostSettings,
        owned: bool,
        steering: &Steering,
    ) -> Result<Self, HostError> {
        Ok(Self {
            settings: settings.clone(),
            owned,
            ruleset: Ruleset::new(settings, steering)?.create(),
        })
    }

    /// As it is kept; [`Self::parse`] reads it.
    pub fn text(&self) -> String {
        let head = Head {
            host: self.settings.clone(),
            owned: self.owned,
        };
        // names, numbers and addresses: nothing that JSON could not hold
        let head = serde_json::to_string(&head).unwrap_or_default();
        format!("{HEAD}{head}\n{}", self.ruleset)
    }

    /// Reads what [`Self::text`] wrote.
    pub fn parse(text: &str) -> Result<Self, GuardTextError> {
        let (head, ruleset) = text
            .strip_prefix(HEAD)
            .and_then(|rest| rest.split_once('\n'))
            .ok_or_else(|| GuardTextError("its first line".into()))?;
        let head: Head =
            serde_json::from_str(head).map_err(|error| GuardTextError(error.to_string()))?;
        head.host
            .check()
            .map_err(|error| GuardTextError(error.to_string()))?;
        Ok(Self {
            settings: head.host,
            owned: head.owned,
            ruleset: ruleset.to_owned(),
        })
    }

    /// The ruleset in nft's language.
    pub fn ruleset(&self) -> &str {
        &self.ruleset
    }

    /// Installs the table, unless it stands: then a daemon keeps it. After that the routing rules and the unreachable
    /// routes. When this ends the table belongs to nobody and stays.
    pub async fn install(&self) -> Result<Guarded, HostError> {
        let mut added = Vec::new();
        let stood = command::chains(&self.settings.table)?.is_some();
        if !stood {
            let rules = match self.owned {
                true => Rules::owned(&self.settings)?,
                false => Rules::shared(&self.settings),
            };
            rules.create(&self.present()?)?;
            added.push(format!("nft table inet {}", self.settings.table));
        }
        added.extend(routes::close(&self.settings).await?);
        Ok(Guarded { stood, added })
    }

    /// The ruleset without interfaces that are not there yet: an element of this set is their number. Without it what
    /// one workload sends another one of the same host is refused where policy wants it encrypted, until a daemon runs.
    fn present(&self) -> Result<String, HostError> {
        let mut kept = Vec::new();
        for name in &self.settings.workload_interfaces {
            if interfaces::exists(name)? {
                kept.push(format!("\"{name}\""));
            }
        }
        let start = format!("add element inet {} wl_idx ", self.settings.table);
        let mut text: String = self
            .ruleset
            .lines()
            .filter(|line| !line.starts_with(&start))
            .map(|line| format!("{line}\n"))
            .collect();
        if !kept.is_empty() {
            text.push_str(&format!("{start}{{ {} }}\n", kept.join(", ")));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::settings;

    #[test]
    fn what_is_kept_is_read_again() {
        let mut settings = settings();
        settings.workload_interfaces = vec!["br-1.7".into()];
        let mut steering = Steering::default();
        steering.strict_all.insert("10.0.0.1".parse().unwrap());
        let guard = Guard::new(&settings, true, &steering).unwrap();
        let again = Guard::parse(&guard.text()).unwrap();
        assert_eq!((again.settings.clone(), again.owned), (settings, true));
        assert_eq!(again.ruleset(), guard.ruleset());
        // there is no such interface: its name stays where names are compared, its number cannot be looked up
        let present = again.present().unwrap();
        assert!(
            present.contains("wl_if { \"br-1.7\" }")
                && !present.contains("element inet identun wl_idx")
        );
    }

    #[test]
    fn another_text_is_refused() {
        let guard = Guard::new(&settings(), true, &Steering::default()).unwrap();
        let text = guard.text();
        for bad in [
            String::new(),
            text.replace("guard 1", "guard 2"),
            text.replace("\"host\"", "\"hots\""),
            text.replace("\"identun\"", "\"a; b\""),
            "# identun guard 1 {}".to_owned(),
        ] {
            assert!(Guard::parse(&bad).is_err(), "{bad}");
        }
    }
}
