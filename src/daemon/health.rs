//! What a person should know first: the lines of health in a status.

use crate::{
    daemon::{
        configuration::{Configuration, timestamp},
        render::{count, plural},
        status::{Health, HealthLevel, ShardStatus, TunnelStatus},
    },
    identity::Identity,
    policy::{Mode, Severity},
    wire::DropReason,
};

/// Of the files and settings in force.
pub(super) fn configuration_health(active: &Configuration) -> Vec<Health> {
    let mut lines = Vec::new();
    if !active.has_policy && active.settings.default_mode != Mode::Strict {
        lines.push(Health {
            level: HealthLevel::Info,
            text: "no policy: plaintext is accepted".into(),
        });
    }
    let warnings = count(&active.diagnostics, Severity::Warning);
    if warnings > 0 {
        let text = format!(
            "{} about the files; `identun check` shows more",
            plural(warnings, "warning")
        );
        lines.push(Health {
            level: HealthLevel::Info,
            text,
        });
    }
    if !active.kept.is_empty() {
        let text = format!(
            "changed settings wait for a restart: {}",
            active.kept.join(", ")
        );
        lines.push(Health {
            level: HealthLevel::Warning,
            text,
        });
    }
    lines
}

/// A certificate is to be replaced well before its end: a fifth of its life is the last call.
pub(super) fn identity_health(identity: &Identity, now: u64) -> Option<Health> {
    let svid = &identity.svid;
    if now > svid.not_after {
        let text = format!(
            "the certificate of {} expired at {}",
            svid.id,
            timestamp(svid.not_after)
        );
        return Some(Health {
            level: HealthLevel::Error,
            text,
        });
    }
    let life = svid.not_after.saturating_sub(svid.not_before);
    (svid.not_after - now < life / 5).then(|| {
        let text = format!(
            "the certificate of {} ends at {}",
            svid.id,
            timestamp(svid.not_after)
        );
        Health {
            level: HealthLevel::Warning,
            text,
        }
    })
}

/// Tunnel packets that are captured again would circle for ever; that they were stopped does not make them right.
pub(super) fn loop_health(shard: &ShardStatus) -> Option<Health> {
    shard.drops.contains_key(DropReason::Loop.as_str()).then(|| Health {
        level: HealthLevel::Error,
        text: "tunnel packets of this daemon came out of its own TUN: another program changes marks or routes".into(),
    })
}

/// A tunnel that does not come up.
pub(super) fn tunnel_health(tunnel: &TunnelStatus) -> Option<Health> {
    matches!(tunnel.state.as_str(), "backoff" | "refused").then(|| {
        let why = tunnel.last_error.as_deref().unwrap_or("unknown reason");
        let text = format!(
            "no tunnel from {} to {} at {}: {why}",
            tunnel.local, tunnel.peer, tunnel.gateway
        );
        Health {
            level: HealthLevel::Warning,
            text,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::Ca;

    fn identity(now: u64, valid_for: Duration) -> Identity {
        let ca = Ca::new(&"td".parse().unwrap(), now, valid_for * 2).unwrap();
        let pem = ca
            .issue(&"spiffe://td/a".parse().unwrap(), now, valid_for)
            .unwrap();
        Identity::from_pem(&pem.certificate, &pem.key).unwrap()
    }

    #[test]
    fn a_certificate_is_a_warning_in_its_last_fifth_and_an_error_after_its_end() {
        let begin = 1_700_000_000;
        let identity = identity(begin, Duration::from_secs(1_000));
        let level = |now| identity_health(&identity, now).map(|line| line.level);
        assert_eq!(level(begin), None);
        assert_eq!(level(begin + 700), None);
        assert_eq!(level(begin + 900), Some(HealthLevel::Warning));
        assert_eq!(level(begin + 1_001), Some(HealthLevel::Error));
    }

    #[test]
    fn a_loop_makes_the_daemon_unhealthy() {
        let mut shard = ShardStatus::default();
        assert!(loop_health(&shard).is_none());
        shard.drops.insert("loop".into(), 1);
        assert_eq!(loop_health(&shard).unwrap().level, HealthLevel::Error);
    }
}
