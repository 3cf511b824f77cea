//! Everything that goes through the tunnel arrives intact, and the tunnel's own counters say that it went through it.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::{
    capture::Capture,
    life::connect,
    mesh::{BULK_PORT, CLIENT_4, CLIENT_6, PORT, SERVER_4, SERVER_6, STRICT},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, wait_for},
    traffic::{Echo, control, udp_echo},
};

const GIGABYTE: u64 = 1_000_000_000;
const MEGABYTE: u64 = 1_000_000;
/// Of a length and a content that no lost or doubled segment leaves in step.
const PATTERN: [u8; 4_099] = {
    let mut pattern = [0; 4_099];
    let mut at = 0;
    while at < pattern.len() {
        pattern[at] = (at % 251) as u8;
        at += 1;
    }
    pattern
};

#[test]
fn a_gigabyte_a_tls_session_a_thousand_requests_and_udp_of_every_size_arrive_intact() {
    in_namespaces(
        "transfers::a_gigabyte_a_tls_session_a_thousand_requests_and_udp_of_every_size_arrive_intact",
        |rig| {
            rig.standard(STRICT);
            let daemons = (rig.start("server"), rig.start("client"));
            let capture = Capture::start();
            gigabyte(&rig);
            crate::offloads::assert_none_refused(&rig, &["client", "server"]);
            requests(&rig);
            tls_session(&rig);
            udp_sizes(&rig);
            control("client");
            capture.stop().assert_no_plaintext();
            drop(daemons);
        },
    );
}

/// Inner bytes that the client's tunnels brought.
fn received(rig: &Rig) -> u64 {
    let status = rig.status("client").unwrap();
    status["tunnels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tunnel| tunnel["bytes_received"].as_u64().unwrap())
        .sum()
}

fn gigabyte(rig: &Rig) {
    let before = received(rig);
    // Bytes that repeat nowhere near, made and hashed as they go: a file of this size may not fit in memory.
    let source = "import hashlib,socket,sys\n\
        s=socket.create_server(('::',5001),family=socket.AF_INET6,dualstack_ipv6=True); c,_=s.accept(); h=hashlib.sha256()\n\
        b=bytearray(hashlib.shake_256(b'identun').digest(1<<20))\n\
        for i in range(954): b[i]^=255; h.update(b); c.sendall(b)\n\
        c.shutdown(1); print(h.hexdigest())";
    let sink = "import hashlib,socket,sys\n\
        c=socket.create_connection((sys.argv[1],5001)); h=hashlib.sha256(); n=0\n\
        while d:=c.recv(1<<20): h.update(d); n+=len(d)\n\
        print(h.hexdigest(), n)";
    let serving = std::process::Command::new("ip")
        .args(["netns", "exec", "server", "python3", "-c", source])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    listening(rig, BULK_PORT);
    let answer = rig.on("client", &["python3", "-c", sink, SERVER_4]);
    let sent = String::from_utf8(serving.wait_with_output().unwrap().stdout).unwrap();
    let (hash, len) = answer.trim().split_once(' ').unwrap();
    assert_eq!(hash, sent.trim());
    let len: u64 = len.parse().unwrap();
    assert!(len >= GIGABYTE, "{len}");
    let grown = received(rig) - before;
    println!("1 GB: {len} bytes, tunnel counter grew by {grown}");
    assert!(grown >= len, "{grown} < {len}");
}

fn listening(rig: &Rig, port: u16) {
    let filter = format!("sport = :{port}");
    wait_for("a server to listen", || {
        !rig.on("server", &["ss", "-Hltn", &filter]).is_empty()
    });
}

/// A thousand connections, one request each.
fn requests(rig: &Rig) {
    let page = "a page of the server, served a thousand times\n";
    rig.write("www/page", page);
    let mut serving = rig.spawn(
        "server",
        &[
            "python3",
            "-m",
            "http.server",
            &PORT.to_string(),
            "--bind",
            "::",
            "--directory",
            &rig.path("www"),
        ],
    );
    listening(rig, PORT);
    let mut list = String::new();
    for index in 0..1_000 {
        let host = if index % 2 == 0 {
            SERVER_4.to_owned()
        } else {
            format!("[{SERVER_6}]")
        };
        list += &format!("url = \"http://{host}:{PORT}/page\"\n");
    }
    let list = rig.write("urls", &list);
    let answer = rig.on(
        "client",
        &[
            "curl",
            "-sS",
            "--fail",
            "--no-keepalive",
            "-H",
            "Connection: close",
            "-K",
            &list,
        ],
    );
    assert_eq!(answer, page.repeat(1_000));
    serving.kill().unwrap();
    serving.wait().unwrap();
}

/// TLS of the application's own inside the tunnel.
fn tls_session(rig: &Rig) {
    let (certificate, key) = (rig.path("tls.pem"), rig.path("tls.key"));
    rig.on(
        "server",
        &[
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=server",
            "-addext",
            &format!("subjectAltName=IP:{SERVER_4}"),
            "-keyout",
            &key,
            "-out",
            &certificate,
        ],
    );
    let file = rig.path("www/secret");
    fs::write(&file, vec![0x5a; 3_000_000]).unwrap();
    let serve = format!(
        "cd {} && exec openssl s_server -accept {PORT} -cert {certificate} -key {key} -WWW -quiet",
        rig.path("www")
    );
    let mut serving = rig.spawn("server", &["sh", "-c", &serve]);
    listening(rig, PORT);
    let url = format!("https://{SERVER_4}:{PORT}/secret");
    let out = rig.path("secret");
    rig.on(
        "client",
        &[
            "curl",
            "-sS",
            "--fail",
            "--cacert",
            &certificate,
            "-o",
            &out,
            &url,
        ],
    );
    assert!(
        fs::read(out).unwrap() == fs::read(file).unwrap(),
        "the TLS session's file differs"
    );
    serving.kill().unwrap();
    serving.wait().unwrap();
}

/// 1..9000 bytes: whole packets, super-packets and fragments of both families.
fn udp_sizes(rig: &Rig) {
    let _ = rig;
    let echo = Echo::start("server", PORT);
    let sizes = (1..=9_000)
        .step_by(97)
        .chain(1_380..1_480)
        .chain([8_999, 9_000]);
    for (index, size) in sizes.enumerate() {
        let payload: Vec<u8> = (0..size)
            .map(|at| u8::try_from((at * 7 + size) % 251).unwrap())
            .collect();
        let to = if index % 2 == 0 { SERVER_4 } else { SERVER_6 };
        udp_echo("client", (to, PORT), &payload, PATIENCE)
            .unwrap_or_else(|error| panic!("{size} bytes: {error}"));
    }
    assert!(echo.datagrams() > 190);
}

#[test]
fn tcp_goes_on_over_paths_of_every_size() {
    in_namespaces("transfers::tcp_goes_on_over_paths_of_every_size", |rig| {
        rig.standard(STRICT);
        for mtu in ["1280", "1348", "1400", "1500", "9000"] {
            for (host, device) in [
                ("wire", "server"),
                ("server", "eth0"),
                ("wire", "client"),
                ("client", "eth0"),
            ] {
                rig.on(host, &["ip", "link", "set", device, "mtu", mtu]);
            }
            let daemons = (rig.start("server"), rig.start("client"));
            exchange(&rig);
            daemons.0.kill_9();
            daemons.1.kill_9();
            for host in ["server", "client"] {
                rig.identun(host, &["down", "--config", &rig.settings(host)]);
            }
        }
    });
}

#[test]
fn a_path_that_shrinks_without_a_word_does_not_stop_tcp_and_poisons_no_route() {
    in_namespaces(
        "transfers::a_path_that_shrinks_without_a_word_does_not_stop_tcp_and_poisons_no_route",
        |rig| {
            rig.standard(STRICT);
            let daemons = (rig.start("server"), rig.start("client"));
            let (up, down) = (connect(SERVER_4), connect(SERVER_6));
            exchange(&rig);
            // The wire takes no more than 1,300 bytes and says nothing about it.
            let black_hole = "table inet hole {\n chain f {\n type filter hook forward priority 0\n meta length > 1300 drop\n }\n}\n";
            let rules = rig.write("hole.nft", black_hole);
            // Super-packets would die whole: the hosts hand over what really crosses a wire.
            for host in ["client", "server"] {
                rig.on(
                    host,
                    &[
                        "ethtool",
                        "-K",
                        "eth0",
                        "gso",
                        "off",
                        "tso",
                        "off",
                        "tx-udp-segmentation",
                        "off",
                    ],
                );
            }
            // One connection sends up, the other down: each direction has to find out for itself.
            let shrink = || drop(rig.on("wire", &["nft", "-f", &rules]));
            let inner = || {
                [("client", SERVER_4), ("server", CLIENT_6)]
                    .map(|(host, peer)| inner_mtu(&rig, host, peer))
            };
            wait_for("the sessions to find the path's size", || {
                inner().iter().all(|mtu| *mtu > 1_300)
            });
            let pauses = stream_through([(up.0, up.1), (down.1, down.0)], shrink);
            assert!(inner().iter().all(|mtu| *mtu < 1_300), "{:?}", inner());
            println!("established connections paused for {pauses:?} when the path shrank");
            exchange(&rig);
            for (host, peer) in [("client", SERVER_4), ("server", CLIENT_4)] {
                let route = rig.on(host, &["ip", "route", "get", peer]);
                assert!(
                    !route.contains("mtu"),
                    "a path-MTU exception for the peer's address: {route}"
                );
            }
            drop(daemons);
        },
    );
}

/// What an inner packet may be in the session of `host` with the peer at `address`.
fn inner_mtu(rig: &Rig, host: &str, address: &str) -> u64 {
    let remote = SocketAddr::new(address.parse().unwrap(), 15_008).to_string();
    let status = rig.status(host).unwrap();
    let tunnels = status["tunnels"].as_array().unwrap();
    let of_peer = |tunnel: &&serde_json::Value| tunnel["remote"] == remote.as_str();
    tunnels.iter().find(of_peer).unwrap()["inner_mtu"]
        .as_u64()
        .unwrap()
}

/// Streams from the first to the second end of each connection, before, while and after `change` is made; the longest
/// pause of each.
fn stream_through(
    connections: [(TcpStream, TcpStream); 2],
    change: impl FnOnce(),
) -> [Duration; 2] {
    let enough = AtomicBool::new(false);
    let received = [AtomicU64::new(0), AtomicU64::new(0)];
    let wait_for_more = |bytes: u64| {
        let goals = received.each_ref().map(|count| count.load(Relaxed) + bytes);
        wait_for("the established connections to go on", || {
            std::iter::zip(&received, goals).all(|(count, goal)| count.load(Relaxed) >= goal)
        });
    };
    std::thread::scope(|scope| {
        let readers = std::iter::zip(connections, &received).map(|((mut from, to), count)| {
            let enough = &enough;
            scope.spawn(move || {
                while !enough.load(Relaxed) {
                    from.write_all(&PATTERN).unwrap();
                }
            });
            scope.spawn(move || longest_pause(to, count))
        });
        let readers: Vec<_> = readers.collect();
        wait_for_more(MEGABYTE);
        change();
        // More than all buffers hold: it was sent after the change.
        wait_for_more(16 * MEGABYTE);
        enough.store(true, Relaxed);
        let pauses: Vec<_> = readers.into_iter().map(|r| r.join().unwrap()).collect();
        pauses.try_into().unwrap()
    })
}

/// Reads [`PATTERN`] again and again until the end; the longest time without a byte.
fn longest_pause(mut from: TcpStream, count: &AtomicU64) -> Duration {
    let (mut longest, mut buffer) = (Duration::ZERO, [0; PATTERN.len()]);
    loop {
        let started = Instant::now();
        match from.read_exact(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return longest,
            result => result.unwrap(),
        }
        longest = longest.max(started.elapsed());
        assert!(buffer == PATTERN);
        count.fetch_add(buffer.len() as u64, Relaxed);
    }
}

/// Half a megabyte there and back over one connection, and UDP that must be cut.
fn exchange(rig: &Rig) {
    let _ = rig;
    static ECHO: std::sync::Once = std::sync::Once::new();
    ECHO.call_once(|| drop(Echo::start("server", PORT)));
    for to in [SERVER_4, SERVER_6] {
        in_namespace("client", || {
            let to = SocketAddr::new(to.parse().unwrap(), PORT);
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let data = vec![0xa5; 500_000];
            let mut reader = stream.try_clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| stream.write_all(&data).unwrap());
                let mut back = vec![0; data.len()];
                Read::read_exact(&mut reader, &mut back).unwrap();
                assert!(back == data);
            });
        });
        for size in [1_000, 1_300, 1_472, 9_000] {
            udp_echo("client", (to, PORT), &vec![9; size], Duration::from_secs(5))
                .unwrap_or_else(|error| panic!("{size} bytes to {to}: {error}"));
        }
    }
}
