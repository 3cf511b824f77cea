//! How long policies of 100 to 100,000 services take to load, and that it stays linear: `cargo bench --bench loading`.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench asks the clock, tells figures, and ends where its input does not load"
)]

use std::{fmt::Write, sync::Arc, time::Instant};

use identun::policy::{MeshSettings, SourceFile, load::load};

/// A file is cut when it has this many bytes; more than 1 MiB is not read.
const FILE: usize = 1_000_000;
const SERVICES: [usize; 4] = [100, 1_000, 10_000, 100_000];

/// The service `n` with its workload, its PeerAuthentication and its AuthorizationPolicy, in about ten lines each.
fn write_service(text: &mut String, n: usize) {
    let namespace = n % 100;
    let address = format!("10.{}.{}.{}", n >> 16 & 255, n >> 8 & 255, n & 255);
    write!(
        text,
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: web-{n}
  namespace: team-{namespace}
spec:
  hosts:
  - web-{n}.team-{namespace}.svc.cluster.local
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - number: 80
    name: http
    protocol: HTTP
  endpoints:
  - address: {address}
    serviceAccount: web-{n}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: web-{n}
  namespace: team-{namespace}
spec:
  selector:
    matchLabels:
      app: web-{n}
  mtls:
    mode: STRICT
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: web-{n}
  namespace: team-{namespace}
spec:
  selector:
    matchLabels:
      app: web-{n}
  rules:
  - from:
    - source:
        principals:
        - cluster.local/ns/team-{namespace}/sa/client-{n}
    to:
    - operation:
        ports: [\"80\"]
---
"
    )
    .unwrap();
}

fn files(services: usize) -> Vec<Arc<SourceFile>> {
    let mut texts = vec![String::new()];
    for n in 0..services {
        if texts.last().is_some_and(|text| text.len() > FILE) {
            texts.push(String::new());
        }
        write_service(texts.last_mut().unwrap(), n);
    }
    let named = texts.into_iter().zip(0..).map(|(text, number)| SourceFile {
        name: format!("{number}.yaml").into(),
        text,
    });
    named.map(Arc::new).collect()
}

/// Ends in a panic where a resource costs more the more there are.
fn main() {
    let mesh = MeshSettings::default();
    let mut each = Vec::new();
    for services in SERVICES {
        let files = files(services);
        let lines: usize = files.iter().map(|file| file.text.lines().count()).sum();
        let began = Instant::now();
        let (resources, findings) = load(&files, &mesh);
        let took = began.elapsed();
        assert!(findings.is_empty(), "{:#?}", findings.first());
        let resources = resources.unwrap();
        assert_eq!(resources.peer_authentications.len(), services);
        let ten_lines = took.as_secs_f64() * 1e6 * 10.0 / lines as f64;
        println!(
            "{services:>7} services, {lines:>8} lines in {:>4} files: {took:>10.3?}, {ten_lines:.1} us for ten lines",
            files.len()
        );
        each.push(ten_lines);
    }
    let (first, last) = (each[0], each[SERVICES.len() - 1]);
    assert!(last < 3.0 * first, "{first:.1} us became {last:.1} us");
}
