//! The table as the daemon's property, and what the daemon sends for it beside what nft makes of the same text.

use identun::{
    host::{self, HostError, Rules},
    policy::Steering,
};

use super::support::{block_on, failed, full, in_namespace, ip, run, same, settings};

/// The table as nft shows it, without whose it is, and with the elements of a set in order: the kernel has none.
fn table() -> String {
    let text = run("nft list table inet idt-host");
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("\tflags "))
        // the header names the program that owns it
        .map(|line| line.split(" # ").next().unwrap_or_default());
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let mut parts = text.split('{');
    let mut ordered = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (inner, rest) = part.split_once('}').unwrap_or((part, ""));
        // a set in a rule, or the elements of a set; not a block of lines
        if inner.contains('\n') && !ordered.ends_with("elements = ") {
            ordered.push_str(&format!("{{{part}"));
            continue;
        }
        let mut elements: Vec<_> = inner.split(',').map(str::trim).collect();
        elements.sort_unstable();
        ordered.push_str(&format!("{{ {} }}{rest}", elements.join("\n")));
    }
    ordered
}

#[test]
fn our_messages_make_what_nft_makes_of_the_same_text() {
    in_namespace(
        "owner::our_messages_make_what_nft_makes_of_the_same_text",
        || {
            run("ip link add br-1.7 type bridge; ip link add w0 type bridge");
            let mut settings = settings();
            settings.workload_interfaces = vec!["br-1.7".into(), "w0".into()];
            // made, brought up to date with its chains refilled, and changed by differences
            let stories: [fn(&Rules); 3] = [
                |rules| assert!(!rules.install(&full()).unwrap()),
                |rules| {
                    rules.install(&Steering::default()).unwrap();
                    assert!(rules.install(&full()).unwrap());
                },
                |rules| {
                    let mut before = full();
                    before.must.clear();
                    before.peers.insert(ip("192.0.2.77"));
                    rules.install(&before).unwrap();
                    rules.update(&before, &full()).unwrap();
                },
            ];
            for story in stories {
                story(&Rules::shared(&settings));
                let by_nft = table();
                run("nft delete table inet idt-host");
                assert!(by_nft.contains("chain answer6") && by_nft.contains("br-1.7"));
                let rules = Rules::owned(&settings).unwrap();
                story(&rules);
                assert!(rules.are_owned());
                same(&by_nft, &table());
                drop(rules);
                run("nft delete table inet idt-host");
            }
        },
    );
}

#[test]
fn nobody_else_can_change_or_flush_a_table_with_an_owner() {
    in_namespace(
        "owner::nobody_else_can_change_or_flush_a_table_with_an_owner",
        || {
            // the same by hand takes a table away that has none: the control
            Rules::shared(&settings()).install(&full()).unwrap();
            run("nft flush ruleset");
            assert!(run("nft list ruleset").is_empty());

            let rules = Rules::owned(&settings()).unwrap();
            rules.install(&full()).unwrap();
            let before = table();
            run("nft flush ruleset");
            for command in [
                "nft delete table inet idt-host",
                "nft flush table inet idt-host",
                "nft delete chain inet idt-host guard",
                "nft flush chain inet idt-host guard",
                "nft add rule inet idt-host guard accept",
                "nft flush set inet idt-host must4",
                "nft add element inet idt-host exempt '{ 6 . 25 }'",
            ] {
                failed(command);
            }
            same(&before, &table());
            // a second daemon is told
            let error = Rules::owned(&settings()).unwrap().install(&full());
            assert!(
                matches!(&error, Err(HostError::TableOwned { table }) if table == "idt-host"),
                "{error:?}"
            );
            let error = error.unwrap_err().to_string();
            assert!(
                error.contains("belongs to another running process"),
                "{error}"
            );
        },
    );
}

#[test]
fn the_table_outlives_its_owner_and_the_next_takes_it_over() {
    in_namespace(
        "owner::the_table_outlives_its_owner_and_the_next_takes_it_over",
        || {
            let settings = settings();
            let first = Rules::owned(&settings).unwrap();
            first.install(&full()).unwrap();
            let before = table();
            drop(first);
            same(&before, &table());
            // as somebody may have done meanwhile
            run(
                "nft add element inet idt-host own4 '{ 10.77.0.1 . 10.9.9.9 . tcp . 40000 . 443 }'",
            );
            run("nft flush chain inet idt-host guard");
            let second = Rules::owned(&settings).unwrap();
            assert!(second.install(&full()).unwrap());
            assert!(second.are_owned());
            assert!(table().contains("10.9.9.9"));
            failed("nft delete table inet idt-host");
            drop(second);
            assert_eq!(
                block_on(host::down(&settings)).unwrap(),
                ["nft table inet idt-host"]
            );
        },
    );
}

#[test]
fn a_table_without_owner_is_programmed_on_without() {
    in_namespace(
        "owner::a_table_without_owner_is_programmed_on_without",
        || {
            let settings = settings();
            Rules::shared(&settings)
                .install(&Steering::default())
                .unwrap();
            let rules = Rules::owned(&settings).unwrap();
            assert!(rules.install(&full()).unwrap());
            assert!(!rules.are_owned());
            let mut more = full();
            more.peers.insert(ip("192.0.2.77"));
            rules.update(&full(), &more).unwrap();
            assert!(table().contains("192.0.2.77"));
            run("nft delete table inet idt-host");
        },
    );
}

#[test]
fn a_change_that_the_kernel_refuses_changes_nothing() {
    in_namespace(
        "owner::a_change_that_the_kernel_refuses_changes_nothing",
        || {
            let rules = Rules::owned(&settings()).unwrap();
            rules.install(&full()).unwrap();
            let before = table();
            // two networks of one set may not overlap in part: `Steering` cannot say that, so the second is a range that
            // begins where another rule's ends
            let mut bad = full();
            let (from, to) = ("10.9.0.0/16".parse().unwrap(), ip("10.77.0.1"));
            bad.refuse_port.insert((from, to, 80, 100));
            bad.refuse_port.insert((from, to, 90, 110));
            let error = rules.update(&full(), &bad).unwrap_err();
            assert!(
                matches!(&error, HostError::Ruleset { what, .. } if what.contains("refuse_port4")),
                "{error:?}"
            );
            same(&before, &table());
        },
    );
}

/// A wait that ends by the event alone: the daemon's own look every few seconds would hide that nothing is heard.
#[test]
fn what_others_take_away_is_heard_of() {
    use std::{sync::mpsc::sync_channel, thread, time::Duration};

    use identun::host::changes::Changes;

    in_namespace("owner::what_others_take_away_is_heard_of", || {
        let settings = settings();
        for damage in [
            "nft flush ruleset",
            "nft flush chain inet idt-host guard; nft delete chain inet idt-host guard",
            "ip rule del pref 300",
            "ip -6 route flush table 7700",
            "ip link set idt-host-tun down",
            "ip link del idt-host-tun",
        ] {
            run("ip tuntap add dev idt-host-tun mode tun || true");
            Rules::shared(&settings).install(&full()).unwrap();
            block_on(host::install_routes(&settings)).unwrap();
            let mut changes = Changes::subscribe(&settings).unwrap();
            // somebody else's business, and what is only added
            run(
                "nft add table inet other; nft delete table inet other; ip rule add pref 9 lookup 9",
            );
            let (sender, heard) = sync_channel(1);
            thread::spawn(move || sender.send(changes.wait().is_ok()));
            let early = heard.recv_timeout(Duration::from_millis(100));
            assert!(early.is_err(), "heard before {damage}");
            run(damage);
            let told = heard.recv_timeout(Duration::from_secs(20));
            assert_eq!(told, Ok(true), "{damage}");
            run("ip rule del pref 9; ip addr flush dev idt-host-tun || true");
        }
    });
}
