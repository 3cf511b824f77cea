//! The table of policy.md 6.1 with real packets: what the client decides against what the server accepts.

use std::time::Duration;

use crate::{
    capture::{CONTROL_PORT, Capture},
    mesh::{CLIENT_4, NAKED_4, NAKED_6, SERVER_4, SERVER_6, registry},
    rig::{PATIENCE, Rig, in_namespaces},
    traffic::{Echo, control, tcp_echo, udp_echo},
};

/// One port for each mode of the server, and one of a host outside the mesh.
const DISABLE: u16 = 7_001;
const PERMISSIVE: u16 = 7_002;
const STRICT: u16 = 7_003;
const NONE: u16 = 7_004;
/// What is never answered is not waited for long: the capture and the server's count say that nothing arrived.
const SHORT: Duration = Duration::from_millis(300);

/// The modes, by workload port.
const MODES: &str = r#"apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: server, namespace: default }
spec:
  selector: { matchLabels: { app: server } }
  mtls: { mode: PERMISSIVE }
  portLevelMtls:
    7001: { mode: DISABLE }
    7003: { mode: STRICT }
"#;

fn services() -> String {
    let ports: String = [DISABLE, PERMISSIVE, STRICT]
        .iter()
        .map(|port| format!("  - {{ number: {port}, name: tcp-{port}, protocol: TCP }}\n"))
        .collect();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: modes, namespace: default }}\n\
         spec:\n  hosts: [modes.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  ports:\n{ports}  \
         workloadSelector:\n    labels: {{ app: server }}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: naked, namespace: default }}\n\
         spec:\n  hosts: [naked.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
         ports: [{{ number: {NONE}, name: tcp, protocol: TCP }}, {{ number: {CONTROL_PORT}, name: control, protocol: TCP }}]\n  \
         endpoints: [{{ address: \"{NAKED_4}\" }}, {{ address: \"{NAKED_6}\" }}]\n"
    )
}

/// What clients must use. The positive control of the captures stays plaintext.
fn rule(mode: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: all, namespace: istio-system }}\n\
         spec:\n  host: \"*.local\"\n  trafficPolicy: {{ tls: {{ mode: {mode} }} }}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: control, namespace: istio-system }}\n\
         spec:\n  host: naked.default.svc.cluster.local\n  trafficPolicy:\n    tls: {{ mode: {mode} }}\n    \
         portLevelSettings: [{{ port: {{ number: {CONTROL_PORT} }}, tls: {{ mode: DISABLE }} }}]\n"
    )
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ends {
    Mtls,
    Plaintext,
    RefusedByClient,
    RefusedByServer,
}

/// The client's host, what it decides, and the row of the table: against NONE, DISABLE, PERMISSIVE, STRICT.
struct Row {
    client: &'static str,
    rule: Option<&'static str>,
    auto_mtls: bool,
    ends: [Ends; 4],
}

fn rows() -> [Row; 5] {
    use Ends::{Mtls as M, Plaintext as P, RefusedByClient as C, RefusedByServer as S};
    let row = |client, rule, auto_mtls, ends| Row {
        client,
        rule,
        auto_mtls,
        ends,
    };
    [
        row("naked", None, true, [P, P, P, S]),
        row("client", Some("DISABLE"), true, [P, P, P, S]),
        row("client", Some("ISTIO_MUTUAL"), true, [C, S, M, M]),
        row("client", None, true, [P, P, M, M]),
        row("client", None, false, [P, P, P, S]),
    ]
}

#[test]
fn every_cell_of_the_table_holds_for_real_packets() {
    in_namespaces(
        "outcomes::every_cell_of_the_table_holds_for_real_packets",
        |rig| {
            rig.write("policies/policy.yaml", MODES);
            rig.write("policies/registry.yaml", &(registry() + &services()));
            configure(&rig, true);
            let daemons = (rig.start("server"), rig.start("client"));
            let echoes = [
                Echo::start("naked", NONE),
                Echo::start("server", DISABLE),
                Echo::start("server", PERMISSIVE),
                Echo::start("server", STRICT),
            ];
            for row in rows() {
                enforce(&rig, &row);
                for ((port, ends), echo) in [NONE, DISABLE, PERMISSIVE, STRICT]
                    .into_iter()
                    .zip(row.ends)
                    .zip(&echoes)
                {
                    // A host outside the mesh that speaks to itself is nobody's business.
                    if row.client == "naked" && port == NONE {
                        continue;
                    }
                    cell(&rig, &row, port, ends, echo);
                }
            }
            drop(daemons);
        },
    );
}

fn configure(rig: &Rig, auto_mtls: bool) {
    for host in ["client", "server"] {
        rig.configure(
            host,
            &[host],
            &format!("watch: false\nauto_mtls: {auto_mtls}"),
        );
    }
}

/// Puts a row's rule in force on both hosts.
fn enforce(rig: &Rig, row: &Row) {
    let rule = row.rule.map(rule).unwrap_or_default();
    rig.write("policies/policy.yaml", &format!("{MODES}{rule}"));
    configure(rig, row.auto_mtls);
    for host in ["server", "client"] {
        rig.identun(
            host,
            &[
                "reload",
                "--socket",
                &rig.path(&format!("{host}/admin.sock")),
            ],
        );
    }
}

fn cell(rig: &Rig, row: &Row, port: u16, ends: Ends, echo: &Echo) {
    let name = format!(
        "{} with rule {:?}, auto_mtls {}, to port {port}: {ends:?}",
        row.client, row.rule, row.auto_mtls
    );
    explained(rig, row, port, ends, &name);
    let addresses = match port {
        NONE => [NAKED_4, NAKED_6],
        _ => [SERVER_4, SERVER_6],
    };
    let before = (echo.connections(), echo.datagrams());
    let capture = Capture::start();
    for address in addresses {
        let passes = matches!(ends, Ends::Mtls | Ends::Plaintext);
        let stream = tcp_echo(row.client, (address, port), PATIENCE);
        assert_eq!(
            stream.is_ok(),
            passes,
            "{name}, TCP to {address}: {stream:?}"
        );
        let patience = if passes { PATIENCE } else { SHORT };
        let datagram = udp_echo(row.client, (address, port), b"PLAINTEXT-MARKER", patience);
        assert_eq!(
            datagram.is_ok(),
            passes,
            "{name}, UDP to {address}: {datagram:?}"
        );
    }
    control("client");
    let seen = capture.stop();
    let arrived = (echo.connections(), echo.datagrams());
    assert_eq!(seen.lost, 0, "{name}: the capture lost frames");
    assert!(seen.control > 0, "{name}: the control was not seen");
    match ends {
        Ends::Mtls => seen.assert_no_plaintext(),
        Ends::Plaintext => assert!(seen.plaintext > 0, "{name}: {seen:?}"),
        // That is what refusing at the client means, and so does a rule against DISABLE here: the client knows.
        Ends::RefusedByClient => assert_eq!(seen.plaintext, 0, "{name}: {:#?}", seen.examples),
        Ends::RefusedByServer if row.rule == Some("ISTIO_MUTUAL") => {
            assert_eq!(seen.plaintext, 0, "{name}: {:#?}", seen.examples);
        }
        Ends::RefusedByServer => assert!(seen.plaintext > 0, "{name}: nothing was sent"),
    }
    if matches!(ends, Ends::RefusedByClient | Ends::RefusedByServer) {
        assert_eq!(arrived, before, "{name}: something arrived");
    }
}

/// `explain` says the same, from the files of the server, which knows both.
fn explained(rig: &Rig, row: &Row, port: u16, ends: Ends, name: &str) {
    let source = if row.client == "naked" {
        NAKED_4
    } else {
        CLIENT_4
    };
    let destination = if port == NONE { NAKED_4 } else { SERVER_4 };
    let to = format!("{destination}:{port}");
    let settings = rig.settings("client");
    let arguments = ["explain", source, &to, "--config", &settings, "-o", "json"];
    let program = crate::rig::identun();
    let command: Vec<&str> = std::iter::once(&*program).chain(arguments).collect();
    let output = rig.try_on("client", &command);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{name}: {}", String::from_utf8_lossy(&output.stderr)));
    let expected = match ends {
        Ends::Mtls => "MTLS",
        Ends::Plaintext => "PLAINTEXT",
        Ends::RefusedByClient => "REFUSED_BY_CLIENT",
        Ends::RefusedByServer => "REFUSED_BY_SERVER",
    };
    assert_eq!(
        value["explanation"]["outcome"], expected,
        "{name}: {value:#}"
    );
}
