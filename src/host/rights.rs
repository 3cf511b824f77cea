//! Which rights the daemon needs and has.

use std::{
    fs::{self, OpenOptions},
    io,
};

use rustix::{
    io::Errno,
    process::{Gid, Uid},
    thread::{CapabilitySet, CapabilitySets},
};

use crate::host::{account::Ids, nftables::command};

/// The first right that is missing, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RightsError {
    /// The process may not change the network.
    #[error(
        "the capability CAP_NET_ADMIN is missing; run as root or give it to the service (AmbientCapabilities=CAP_NET_ADMIN)"
    )]
    NetAdmin,
    /// The process's own capabilities could not be read.
    #[error("cannot read this process's capabilities from /proc/self/status")]
    Status(#[source] io::Error),
    /// The TUN driver's device cannot be opened.
    #[error(
        "cannot open /dev/net/tun; load the module (modprobe tun) or let the container have the device"
    )]
    Tun(#[source] io::Error),
    /// No nft program.
    #[error("nft is not installed; apt install nftables")]
    NftMissing,
}

/// CAP_NET_ADMIN, /dev/net/tun, the nft program: the first that is missing, by name.
pub fn check() -> Result<(), RightsError> {
    check_rules()?;
    let mut device = OpenOptions::new();
    device
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map(drop)
        .map_err(RightsError::Tun)
}

/// What is needed for rules and routes alone: CAP_NET_ADMIN and the nft program.
pub fn check_rules() -> Result<(), RightsError> {
    let status = fs::read_to_string("/proc/self/status").map_err(RightsError::Status)?;
    if !has_net_admin(&status) {
        return Err(RightsError::NetAdmin);
    }
    command::find().map(drop).ok_or(RightsError::NftMissing)
}

/// Makes this process another user's, with CAP_NET_ADMIN and nothing else, and with no way to more. The programs that it
/// runs, a successor among them, have the same.
///
/// # Errors
/// When there are other threads, which would keep root's rights, or the kernel refuses.
pub fn become_user(ids: Ids) -> io::Result<()> {
    use rustix::thread as own;
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("other threads run already"));
    }
    let net_admin = CapabilitySet::NET_ADMIN;
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    // the number of capabilities differs from kernel to kernel
    for capability in CapabilitySet::all().difference(net_admin).iter() {
        match own::remove_capability_from_bounding_set(capability) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    own::set_keep_capabilities(true)?;
    own::set_thread_groups(&[gid])?;
    own::set_thread_res_gid(gid, gid, gid)?;
    own::set_thread_res_uid(uid, uid, uid)?;
    let sets = CapabilitySets {
        effective: net_admin,
        permitted: net_admin,
        inheritable: net_admin,
    };
    own::set_capabilities(None, sets)?;
    own::configure_capability_in_ambient_set(net_admin, true)?;
    own::set_keep_capabilities(false)?;
    Ok(own::set_no_new_privs(true)?)
}

/// Looks for bit 12 in the line `CapEff` of /proc/PID/status (proc(5), capabilities(7)).
fn has_net_admin(status: &str) -> bool {
    const CAP_NET_ADMIN: u64 = 1 << 12;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|effective| effective & CAP_NET_ADMIN != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_capability_decides() {
        let status =
            |effective| format!("CapPrm:\t000001ffffffffff\nCapEff:\t{effective}\nCapBnd:\t0\n");
        assert!(has_net_admin(&status("000001ffffffffff")));
        assert!(has_net_admin(&status("0000000000001000")));
        assert!(!has_net_admin(&status("0000000000000000")));
        assert!(!has_net_admin(&status("000001ffffffefff")));
        assert!(!has_net_admin(&status("nonsense")));
        assert!(!has_net_admin(""));
    }
}
