//! Routes, rules and the TUN's address by rtnetlink.
//!
//! Marked packets are looked up in a table of their own: `default dev TUN`, and behind it an unreachable default for
//! the time when the TUN is down or gone. A second rule, unreachable, catches them when that table is emptied. All of
//! it carries protocol `kernel`, which makes systemd-networkd leave it alone (it deletes foreign rules by default).

mod message;

use std::{fmt, future::Future, pin::pin};

use futures_util::{
    TryStreamExt,
    future::{Either, select},
};
use rtnetlink::{
    Handle, IpVersion, LinkUnspec,
    packet_route::{
        AddressFamily,
        address::{AddressMessage, AddressScope},
        link::{LinkFlags, LinkMessage},
        route::{RouteMessage, RouteProtocol, RouteScope, RouteType},
        rule::{RuleAction, RuleMessage},
    },
};

use crate::host::{HostError, HostSettings, sysctl};
pub(in crate::host) use message::table;
use message::{RouteSpec, RuleSpec};

/// Metric of the unreachable route, lower in rank than whatever could be set by accident.
const LAST_METRIC: u32 = 4_278_198_272;

/// Address family of a rule or route.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        })
    }
}

/// What [`crate::host::install_routes`] does, as shell commands; the TUN has to be there.
pub fn commands(settings: &HostSettings) -> Vec<String> {
    let HostSettings {
        tun_name: tun,
        tun_address: address,
        mark_mask: mask,
        tunnel_mark: mark,
        routing_table: table,
        rule_priority: first,
        ..
    } = settings;
    let second = first.saturating_add(1);
    let mut lines = vec![
        format!("sysctl -qw net.ipv4.conf.{tun}.rp_filter=2 net.ipv6.conf.{tun}.addr_gen_mode=1"),
        format!("ip address add {address}/32 dev {tun} scope host"),
        format!("ip link set {tun} up"),
    ];
    for ip in ["ip", "ip -6"] {
        let rule = format!("{ip} rule add protocol kernel fwmark {mark:#x}/{mask:#x} priority");
        lines.extend([
            format!("{ip} route add unreachable default metric {LAST_METRIC} table {table} protocol kernel"),
            format!("{ip} route add default dev {tun} table {table} protocol kernel"),
            format!("{rule} {first} lookup {table}"),
            format!("{rule} {second} unreachable"),
        ]);
    }
    lines
}

/// Brings the TUN up with its address and sysctls, and adds what is missing of routes and rules.
pub(in crate::host) async fn install(settings: &HostSettings) -> Result<(), HostError> {
    let (connection, handle, _messages) = connect()?;
    drive(connection, install_over(&handle, settings)).await
}

/// Adds what is missing of rules, and of routes that need no TUN; one line for each.
pub(in crate::host) async fn close(settings: &HostSettings) -> Result<Vec<String>, HostError> {
    let (connection, handle, _messages) = connect()?;
    drive(connection, close_over(&handle, settings)).await
}

/// Removes what is there of rules, routes and address; one line for each.
pub(in crate::host) async fn remove(settings: &HostSettings) -> Result<Vec<String>, HostError> {
    let (connection, handle, _messages) = connect()?;
    drive(connection, remove_over(&handle, settings)).await
}

/// What is not there, or not as [`install`] leaves it: the TUN, its address, rules and routes.
pub(in crate::host) async fn missing(settings: &HostSettings) -> Result<Vec<String>, HostError> {
    let (connection, handle, _messages) = connect()?;
    drive(connection, missing_over(&handle, settings)).await
}

/// Foreign rules that look at bits of our mark.
pub(in crate::host) async fn mark_conflicts(
    settings: &HostSettings,
) -> Result<Vec<String>, HostError> {
    let (connection, handle, _messages) = connect()?;
    drive(connection, mark_conflicts_over(&handle, settings)).await
}

async fn install_over(handle: &Handle, settings: &HostSettings) -> Result<(), HostError> {
    let name = || HostError::NoInterface {
        name: settings.tun_name.clone(),
    };
    let tun = link_index(handle, &settings.tun_name)
        .await?
        .ok_or_else(name)?;
    // everything is read, and foreign things are found, before anything is changed
    let mut found = Vec::new();
    for family in families() {
        let rules = own_rules(handle, settings, family).await?;
        let routes = own_routes(handle, settings, family, Some(tun)).await?;
        found.push((family, rules, routes));
    }
    let prepared = LinkUnspec::new_with_index(tun)
        .append_extra_attribute(sysctl::of_tun())
        .build();
    let request = handle.link().set(prepared).execute();
    request.await.map_err(failed("set the TUN's sysctls"))?;
    add_address(handle, settings, tun).await?;
    let up = LinkUnspec::new_with_index(tun).up().build();
    handle
        .link()
        .set(up)
        .execute()
        .await
        .map_err(failed("bring the TUN up"))?;
    for (family, rules, routes) in found {
        let wanted = wanted_routes(settings, family, tun);
        add_missing(handle, settings, family, &wanted, &rules, &routes).await?;
    }
    Ok(())
}

async fn close_over(handle: &Handle, settings: &HostSettings) -> Result<Vec<String>, HostError> {
    let tun = link_index(handle, &settings.tun_name).await?;
    let mut added = Vec::new();
    for family in families() {
        let rules = own_rules(handle, settings, family).await?;
        let routes = own_routes(handle, settings, family, tun).await?;
        let wanted = [RouteSpec::Unreachable];
        added.extend(add_missing(handle, settings, family, &wanted, &rules, &routes).await?);
    }
    Ok(added)
}

/// Adds the routes first: a rule that comes to an empty table lets packets pass on to the next.
async fn add_missing(
    handle: &Handle,
    settings: &HostSettings,
    family: Family,
    wanted: &[RouteSpec],
    rules: &[RuleSpec],
    routes: &[RouteSpec],
) -> Result<Vec<String>, HostError> {
    let (mut added, table) = (Vec::new(), settings.routing_table);
    for route in wanted.iter().filter(|route| !routes.contains(route)) {
        let request = handle.route().add(route.message(family, table));
        request.execute().await.map_err(failed("add a route"))?;
        added.push(format!("{family} route {route} in table {table}"));
    }
    for rule in wanted_rules(settings) {
        if !rules.contains(&rule) {
            let mut request = handle.rule().add();
            *request.message_mut() = rule.message(family);
            request
                .execute()
                .await
                .map_err(failed("add a routing rule"))?;
            added.push(format!("{family} rule {rule}"));
        }
    }
    Ok(added)
}

async fn remove_over(handle: &Handle, settings: &HostSettings) -> Result<Vec<String>, HostError> {
    let mut removed = Vec::new();
    let tun = link_index(handle, &settings.tun_name).await?;
    for family in families() {
        let present = rules(handle, family).await?;
        for rule in wanted_rules(settings) {
            if present
                .iter()
                .filter_map(RuleSpec::read)
                .any(|other| other == rule)
            {
                let request = handle.rule().del(rule.message(family));
                request
                    .execute()
                    .await
                    .map_err(failed("delete a routing rule"))?;
                removed.push(format!("{family} rule {rule}"));
            }
        }
        let present = routes(handle, settings.routing_table, family).await?;
        for route in present
            .iter()
            .filter_map(|message| RouteSpec::read(message, tun))
        {
            let message = route.message(family, settings.routing_table);
            let request = handle.route().del(message);
            request.execute().await.map_err(failed("delete a route"))?;
            removed.push(format!(
                "{family} route {route} in table {}",
                settings.routing_table
            ));
        }
    }
    if let Some(tun) = tun
        && let Some(address) = own_address(handle, settings, tun).await?
    {
        let request = handle.address().del(address);
        request
            .execute()
            .await
            .map_err(failed("delete the TUN's address"))?;
        removed.push(format!(
            "address {}/32 on {}",
            settings.tun_address, settings.tun_name
        ));
    }
    Ok(removed)
}

async fn missing_over(handle: &Handle, settings: &HostSettings) -> Result<Vec<String>, HostError> {
    let (name, mut missing) = (&settings.tun_name, Vec::new());
    let tun = link(handle, name).await?;
    match &tun {
        None => missing.push(format!("TUN {name}")),
        Some(link) if !link.header.flags.contains(LinkFlags::Up) => {
            missing.push(format!("TUN {name} is down"));
        }
        Some(_) => {}
    }
    let tun = tun.map(|link| link.header.index);
    if let Some(tun) = tun
        && own_address(handle, settings, tun).await?.is_none()
    {
        missing.push(format!("address {}/32 on {name}", settings.tun_address));
    }
    for family in families() {
        let present: Vec<_> = rules(handle, family).await?;
        let present: Vec<_> = present.iter().filter_map(RuleSpec::read).collect();
        let rules = wanted_rules(settings).into_iter();
        let gone = rules.filter(|rule| !present.contains(rule));
        missing.extend(gone.map(|rule| format!("{family} rule {rule}")));
        let table = settings.routing_table;
        let present = routes(handle, table, family).await?;
        let present: Vec<_> = present
            .iter()
            .filter_map(|route| RouteSpec::read(route, tun))
            .collect();
        // without the TUN there can be no route over it
        let wanted = match tun {
            Some(tun) => wanted_routes(settings, family, tun),
            None => vec![RouteSpec::Unreachable],
        };
        let gone = wanted.iter().filter(|route| !present.contains(route));
        missing.extend(gone.map(|route| format!("{family} route {route} in table {table}")));
    }
    Ok(missing)
}

async fn mark_conflicts_over(
    handle: &Handle,
    settings: &HostSettings,
) -> Result<Vec<String>, HostError> {
    let wanted = wanted_rules(settings);
    let mut lines = Vec::new();
    for family in families() {
        for message in rules(handle, family).await? {
            let own = RuleSpec::read(&message).is_some_and(|rule| wanted.contains(&rule));
            let (mark, mask) = message::mark(&message);
            if !own && mask & settings.mark_mask != 0 {
                let priority = message::priority(&message);
                lines.push(format!(
                    "{family} rule {priority} looks at mark {mark:#x}/{mask:#x}, which overlaps the mask {:#x}",
                    settings.mark_mask
                ));
            }
        }
    }
    Ok(lines)
}

/// The families this kernel has.
fn families() -> impl Iterator<Item = Family> {
    [Some(Family::V4), sysctl::has_ipv6().then_some(Family::V6)]
        .into_iter()
        .flatten()
}

fn wanted_rules(settings: &HostSettings) -> [RuleSpec; 2] {
    let rule = |priority, action, table| RuleSpec {
        priority,
        mark: settings.tunnel_mark,
        mask: settings.mark_mask,
        action,
        table,
        protocol: RouteProtocol::Kernel,
    };
    [
        rule(
            settings.rule_priority,
            RuleAction::ToTable,
            settings.routing_table,
        ),
        rule(
            settings.rule_priority.saturating_add(1),
            RuleAction::Unreachable,
            0,
        ),
    ]
}

/// The unreachable route first. Where IPv6 is switched off on the TUN no route can lead there, and that one is all.
fn wanted_routes(settings: &HostSettings, family: Family, tun: u32) -> Vec<RouteSpec> {
    let mut wanted = vec![RouteSpec::Unreachable];
    if family == Family::V4 || !sysctl::ipv6_disabled(&settings.tun_name) {
        wanted.push(RouteSpec::Device(tun));
    }
    wanted
}

/// Our rules that are there; a foreign one at our priorities is an error.
async fn own_rules(
    handle: &Handle,
    settings: &HostSettings,
    family: Family,
) -> Result<Vec<RuleSpec>, HostError> {
    let wanted = wanted_rules(settings);
    let mut own = Vec::new();
    for message in rules(handle, family).await? {
        let priority = message::priority(&message);
        if !wanted.iter().any(|rule| rule.priority == priority) {
            continue;
        }
        match RuleSpec::read(&message).filter(|rule| wanted.contains(rule)) {
            Some(rule) => own.push(rule),
            None => return Err(HostError::ForeignRule { priority, family }),
        }
    }
    Ok(own)
}

/// Our routes that are there; a foreign one in our table is an error.
async fn own_routes(
    handle: &Handle,
    settings: &HostSettings,
    family: Family,
    tun: Option<u32>,
) -> Result<Vec<RouteSpec>, HostError> {
    let table = settings.routing_table;
    let present = routes(handle, table, family).await?;
    let own = present.iter().map(|message| RouteSpec::read(message, tun));
    own.collect::<Option<_>>()
        .ok_or(HostError::ForeignRoute { table, family })
}

async fn rules(handle: &Handle, family: Family) -> Result<Vec<RuleMessage>, HostError> {
    let version = match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    };
    let rules = handle.rule().get(version).execute();
    rules
        .try_collect()
        .await
        .map_err(failed("list the routing rules"))
}

async fn routes(
    handle: &Handle,
    table: u32,
    family: Family,
) -> Result<Vec<RouteMessage>, HostError> {
    // the filter spares a router's hundreds of thousands of routes
    let mut filter = message::in_table(family, table);
    filter.header.protocol = RouteProtocol::Unspec;
    filter.header.scope = RouteScope::Universe;
    filter.header.kind = RouteType::Unspec;
    let routes: Result<Vec<RouteMessage>, _> =
        handle.route().get(filter).execute().try_collect().await;
    match routes {
        // a table without routes is no table
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(error) => Err(failed("list the routes")(error)),
        // a kernel that does not know the filter sends every table
        Ok(routes) => Ok(routes
            .into_iter()
            .filter(|route| message::table(route) == table)
            .collect()),
    }
}

async fn link_index(handle: &Handle, name: &str) -> Result<Option<u32>, HostError> {
    Ok(link(handle, name).await?.map(|link| link.header.index))
}

async fn link(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, HostError> {
    let mut links = pin!(handle.link().get().match_name(name).execute());
    match links.try_next().await {
        Ok(link) => Ok(link),
        Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(failed("look the TUN up")(error)),
    }
}

async fn own_address(
    handle: &Handle,
    settings: &HostSettings,
    tun: u32,
) -> Result<Option<AddressMessage>, HostError> {
    let request = handle.address().get().set_link_index_filter(tun);
    let request = request.set_address_filter(settings.tun_address.into());
    let mut found = pin!(request.set_prefix_length_filter(32).execute());
    found
        .try_next()
        .await
        .map_err(failed("list the TUN's addresses"))
}

async fn add_address(handle: &Handle, settings: &HostSettings, tun: u32) -> Result<(), HostError> {
    if own_address(handle, settings, tun).await?.is_some() {
        return Ok(());
    }
    let mut request = handle.address().add(tun, settings.tun_address.into(), 32);
    // never chosen as the source of a packet that leaves the host
    request.message_mut().header.scope = AddressScope::Host;
    request
        .execute()
        .await
        .map_err(failed("give the TUN its address"))
}

/// A connection to be driven, its handle, and the queue of unasked messages, which has to live as long.
fn connect() -> Result<(impl Future<Output = ()>, Handle, impl Sized), HostError> {
    let operation = "open a routing netlink socket";
    rtnetlink::new_connection_with_strict_check()
        .map_err(|source| HostError::Netlink { operation, source })
}

/// Runs the connection beside the work, in the caller's task: nothing is left behind when the work is done.
async fn drive<W: Future>(connection: impl Future<Output = ()>, work: W) -> W::Output {
    match select(pin!(connection), pin!(work)).await {
        // without its connection every request of the work fails by itself
        Either::Left(((), work)) => work.await,
        Either::Right((output, _)) => output,
    }
}

fn failed(operation: &'static str) -> impl Fn(rtnetlink::Error) -> HostError {
    move |source| match errno(&source) {
        Some(libc::EPERM) => HostError::Permission { operation },
        _ => HostError::Route { operation, source },
    }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    if let rtnetlink::Error::NetlinkError(message) = error {
        Some(message.raw_code().abs())
    } else {
        None
    }
}

/// The kernel's number of a family.
fn number(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
