//! Kernel settings of the TUN; no other device's and no global setting is ever written. They vanish with the device.

use std::{fs, io, path::Path};

use crate::host::HostError;

/// Sets what the TUN needs. `rp_filter` 2 (loose): inner sources are not routed over the TUN, and the kernel takes the
/// larger of the device's and the global value, so this also undoes a global strict mode. `addr_gen_mode` 1: no
/// link-local address, hence no router solicitations into the tunnel.
pub(in crate::host) fn set(tun_name: &str) -> Result<(), HostError> {
    write(format!("/proc/sys/net/ipv4/conf/{tun_name}/rp_filter"), "2")?;
    if has_ipv6() {
        write(
            format!("/proc/sys/net/ipv6/conf/{tun_name}/addr_gen_mode"),
            "1",
        )?;
    }
    Ok(())
}

/// Tells whether the kernel has IPv6 at all.
pub(in crate::host) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf").is_dir()
}

/// Tells whether IPv6 is switched off on this device: then no route can lead there.
pub(in crate::host) fn ipv6_disabled(tun_name: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{tun_name}/disable_ipv6");
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}

fn write(path: String, value: &'static str) -> Result<(), HostError> {
    // reading needs no right, and what is right already is left alone
    if fs::read_to_string(&path).is_ok_and(|text| text.trim() == value) {
        return Ok(());
    }
    match fs::write(&path, value) {
        Ok(()) => Ok(()),
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            Err(HostError::Permission {
                operation: "set the TUN's sysctls",
            })
        }
        Err(source) => Err(HostError::Sysctl {
            path,
            value,
            source,
        }),
    }
}
