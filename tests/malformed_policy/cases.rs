//! The tables: malformed files with their twins, accepted files with a remark, and bombs.

use crate::security;

/// Code, a piece of the message, and the text with its marks.
pub(crate) type Case = (&'static str, &'static str, String);

pub(crate) fn mesh_policy(spec: &str) -> String {
    format!(
        "apiVersion: authentication.istio.io/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: default}}\nspec: {spec}\n"
    )
}

fn networking(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\nspec: {spec}\n"
    )
}

fn rule(spec: &str) -> String {
    networking("DestinationRule", &format!("{{host: a.b.c, {spec}}}"))
}

fn policy(fields: &str) -> String {
    rule(&format!("trafficPolicy: {{{fields}}}"))
}

fn tls(fields: &str) -> String {
    policy(&format!("tls: {{{fields}}}"))
}

fn service(fields: &str) -> String {
    networking(
        "ServiceEntry",
        &format!("{{addresses: [10.0.0.1], {fields}}}"),
    )
}

fn hosted(fields: &str) -> String {
    service(&format!("hosts: [a.example], {fields}"))
}

fn endpoint(fields: &str) -> String {
    hosted(&format!(
        "resolution: STATIC, ports: [{{number: 80, name: http}}], endpoints: [{{{fields}}}]"
    ))
}

fn workload(fields: &str) -> String {
    networking("WorkloadEntry", &format!("{{{fields}}}"))
}

fn annotated(annotation: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: x\n  annotations:\n    {annotation}\n\
         spec: {{address: 192.0.2.1}}\n"
    )
}

fn metadata(fields: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{{fields}}}\nspec: {{address: 192.0.2.1}}\n"
    )
}

fn text_cases() -> Vec<Case> {
    let foreign = |text: &str| format!("apiVersion: v1\nkind: ConfigMap\n{text}\n");
    let keys = |count: usize| -> String { (0..count).map(|n| format!("k{n}: x\n")).collect() };
    vec![
        (
            "IDT0101",
            "not valid YAML: unclosed quote",
            foreign("data: «\"open|\"closed\"»"),
        ),
        ("IDT0101", "not valid YAML", foreign("data: «]|[]»")),
        (
            "IDT0101",
            "mapping values are not allowed",
            foreign("data: x«: y|»"),
        ),
        (
            "IDT0101",
            "not valid YAML",
            foreign("data:\n    a: x\n«   ¦|    »b: x"),
        ),
        (
            "IDT0102",
            "`data` stands twice",
            foreign("data: x\n«data|more»: x"),
        ),
        (
            "IDT0102",
            "`k3` stands twice",
            foreign(&format!("{}«k3|more»: x", keys(40))),
        ),
        (
            "IDT0102",
            "`k39` stands twice",
            foreign(&format!("{}«k39|more»: x", keys(40))),
        ),
        (
            "IDT0102",
            "`k13` stands twice",
            foreign(&format!("{}«k13|more»: x", keys(14))),
        ),
        (
            "IDT0102",
            "`mode` stands twice",
            tls("mode: DISABLE, «mode: ISTIO_MUTUAL|sni: x»"),
        ),
        (
            "IDT0103",
            "the YAML anchor `&a`",
            mesh_policy("{peers: «&a |»[]}"),
        ),
        (
            "IDT0103",
            "the YAML alias `*all`",
            mesh_policy("{peers: «*all|[]»}"),
        ),
        (
            "IDT0103",
            "the YAML alias `*.local`",
            networking("DestinationRule", "\n  host: «*.local|\"*.local\"»"),
        ),
        (
            "IDT0103",
            "the YAML anchor `&lol`",
            foreign("data: «&lol |»[a, a]"),
        ),
        ("IDT0104", "the tag `!!str`", foreign("data: «!!str |»x")),
        (
            "IDT0104",
            "the tag `!secret`",
            mesh_policy("{peers: «!secret |»[]}"),
        ),
        (
            "IDT0108",
            "a tab is not allowed",
            foreign("data:\n«\t|  »a: b"),
        ),
        (
            "IDT0109",
            "directives",
            format!("«%YAML 1.1\n|»---\n{}", foreign("")),
        ),
        (
            "IDT0110",
            "a key must be text",
            foreign("data: «{¦{ x }}|\"{{ x }}\"»"),
        ),
        ("IDT0113", "`\\u{7}`", foreign("data: a«\u{7}|»")),
        ("IDT0113", "`\\u{d}`", foreign("data: a # b«\r|»c: d")),
        ("IDT0113", "`\\u{0}`", foreign("data: é«\0|»")),
    ]
}

fn document_cases() -> Vec<Case> {
    let mesh = |head: &str| format!("{head}\nspec: {{peers: [{{mtls: {{}}}}]}}\n");
    let alpha = "apiVersion: authentication.istio.io/v1alpha1";
    let unsupported = |version: &str, kind: &str| {
        format!("apiVersion: {version}\nkind: «{kind}|Secret»\nmetadata: {{name: x}}\nspec: {{}}\n")
    };
    let twice = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: x}\nspec: {address: 10.0.0.1}\n---\n\
                 apiVersion: networking.istio.io/v1beta1\nkind: WorkloadEntry\nmetadata: {name: «x|y»}\nspec: {address: 10.0.0.2}\n";
    vec![
        ("IDT0301", "a document must be a map", "«- a|a: b\napiVersion: v1\nkind: X»\n".replace("«- a", "«¦- a")),
        ("IDT0204", "missing field `kind`", "¦apiVersion: v1\n«|kind: X»\n".into()),
        ("IDT0204", "missing field `apiVersion`", "¦kind: X\n«|apiVersion: v1»\n".into()),
        ("IDT0202", "kind must be text, not a list", "apiVersion: v1\nkind: «[X]|X»\n".into()),
        ("IDT0302", "MeshPolicy does not have the apiVersion `authentication.istio.io/v1`", mesh(&format!("{}\nkind: MeshPolicy\nmetadata: {{name: default}}", alpha.replace("authentication.istio.io/v1alpha1", "«authentication.istio.io/v1|authentication.istio.io/v1alpha1»")))),
        ("IDT0302", "`networking.istio.io/v1alpha4`", networking("WorkloadEntry", "{address: 10.0.0.1}").replace("networking.istio.io/v1", "«networking.istio.io/v1alpha4|networking.istio.io/v1alpha3»")),
        ("IDT0302", "`v1`", networking("DestinationRule", "{host: a}").replace("networking.istio.io/v1", "«v1|networking.istio.io/v1»")),
        ("IDT0303", "unknown kind `MeshPolcy`", mesh(&format!("{alpha}\nkind: «MeshPolcy|MeshPolicy»\nmetadata: {{name: default}}"))),
        ("IDT0303", "unknown kind `destinationrule`", networking("«destinationrule|DestinationRule»", "{host: a}")),
        ("IDT0303", "unknown kind `PeerAuthenticaton`", unsupported("security.istio.io/v1", "PeerAuthenticaton")),
        ("IDT0305", "`WorkloadEntry default/x` is declared twice", twice.into()),
        ("IDT0307", "a MeshPolicy has no namespace", mesh(&format!("{alpha}\nkind: MeshPolicy\nmetadata: {{name: default, «namespace: istio-system|uid: x»}}"))),
        ("IDT0201", "unknown field `spce` in a resource", format!("{}«spce|status»: {{}}\n", mesh_policy("{}"))),
        ("IDT0204", "missing field `metadata`", "¦apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n«|metadata: {name: x}\n»spec: {address: 10.0.0.1}\n".into()),
        ("IDT0204", "missing field `spec`", "¦apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: x}\n«|spec: {address: 10.0.0.1}»\n".into()),
        ("IDT0201", "unknown field `nmespace` in metadata", metadata("name: x, «nmespace|namespace»: y")),
        ("IDT0204", "missing field `name` in metadata", metadata("«¦namespace: y|name: x»").replace("metadata: {", "metadata: ¦{").replacen("¦namespace", "namespace", 1)),
        ("IDT0206", "`Upper` is not a valid name", metadata("name: «Upper|lower»")),
        ("IDT0206", "`a.b` is not a valid namespace", metadata("name: x, namespace: «a.b|a-b»")),
        ("IDT0210", "is empty", metadata("name: «\"\"|x»")),
        ("IDT0202", "`12` is a number", metadata("name: «12|\"12\"»")),
        ("IDT0202", "a value of metadata.annotations must be text, and `true` is a truth value", metadata("name: x, annotations: {a: «true|\"true\"»}")),
        ("IDT0212", "`yesterday` is not a time", metadata("name: x, creationTimestamp: «yesterday|2024-01-31T12:00:00Z»")),
        ("IDT0213", "`a b` is not a label key", metadata("name: x, labels: {«a b|ab»: c}")),
        ("IDT0213", "`*` is not a label value", metadata("name: x, labels: {app: «\"*\"|a»}")),
        ("IDT0213", "`a b` is not an annotation key", metadata("name: x, annotations: {«a b|ab»: c}")),
        ("IDT0308", "`identun.io/gatway` does not exist on a WorkloadEntry", annotated("«identun.io/gatway|identun.io/gateway»: 192.0.2.9")),
        ("IDT0308", "does not exist on a DestinationRule", networking("DestinationRule", "{host: a}").replace("name: x,", "name: x, annotations: {«identun.io/gateway|example.com/gateway»: 192.0.2.9},")),
        ("IDT0309", "`gateway.example` is not a gateway", annotated("identun.io/gateway: «gateway.example|192.0.2.9»")),
        ("IDT0309", "`192.0.2.9:0`", annotated("identun.io/gateway: «192.0.2.9:0|192.0.2.9:1»")),
        ("IDT0309", "`2001:db8::1:99999`", annotated("identun.io/gateway: «2001:db8::1:99999|\"[2001:db8::1]:9999\"»")),
        ("IDT0202", "items must be a list", "apiVersion: v1\nkind: List\nitems: «{}|[]»\n".into()),
    ]
}

fn mesh_policy_cases() -> Vec<Case> {
    vec![
        (
            "IDT0401",
            "must be named `default`, not `boo`",
            mesh_policy("{}").replace("default", "«boo|default»"),
        ),
        (
            "IDT0402",
            "has no targets",
            mesh_policy("{«targets: [{name: foo}]|peers: []»}"),
        ),
        (
            "IDT0403",
            "a JWT cannot be authenticated",
            mesh_policy("{peers: [{«jwt: {issuer: x}|mtls: {}»}]}"),
        ),
        (
            "IDT0403",
            "an end user",
            mesh_policy("{«origins: [{jwt: {}}]|origins: []»}"),
        ),
        (
            "IDT0404",
            "names no method",
            mesh_policy("{peers: [«{}|{mtls: {}}»]}"),
        ),
        (
            "IDT0404",
            "names no method",
            mesh_policy("{peers: [«~|{mtls: ~}»]}"),
        ),
        (
            "IDT0203",
            "unknown mTLS mode `PERMISIVE`",
            mesh_policy("\n  peers:\n  - mtls:\n      mode: «PERMISIVE|PERMISSIVE»"),
        ),
        (
            "IDT0203",
            "unknown mTLS mode `DISABLE`",
            mesh_policy("{peers: [{mtls: {mode: «DISABLE|STRICT»}}]}"),
        ),
        (
            "IDT0203",
            "unknown principalBinding `USE_PEERS`",
            mesh_policy("{principalBinding: «USE_PEERS|USE_PEER»}"),
        ),
        (
            "IDT0201",
            "unknown field `peer` in the spec of a MeshPolicy",
            mesh_policy("{«peer|peers»: []}"),
        ),
        (
            "IDT0201",
            "unknown field `mod` in `mtls`",
            mesh_policy("{peers: [{mtls: {«mod|mode»: STRICT}}]}"),
        ),
        (
            "IDT0202",
            "peers must be a list, not a map",
            mesh_policy("{peers: «{mtls: {}}|[{mtls: {}}]»}"),
        ),
        (
            "IDT0202",
            "`mtls` must be a map, not `STRICT`",
            mesh_policy("{peers: [{mtls: «STRICT|{mode: STRICT}»}]}"),
        ),
        (
            "IDT0202",
            "allowTls must be true or false, not `yes`",
            mesh_policy("{peers: [{mtls: {allowTls: «yes|false»}}]}"),
        ),
    ]
}

fn rule_cases() -> Vec<Case> {
    let host = |host: &str| networking("DestinationRule", &format!("{{host: {host}}}"));
    let port = |fields: &str| policy(&format!("portLevelSettings: [{fields}]"));
    vec![
        (
            "IDT0204",
            "missing field `host`",
            networking("DestinationRule", "¦{«|host: a»}"),
        ),
        (
            "IDT0207",
            "`a.*.b` is not a valid host",
            host("«a.*.b|a.b»"),
        ),
        (
            "IDT0207",
            "`http://a` is not a valid host",
            host("«http://a|a»"),
        ),
        ("IDT0207", "`a_b`", host("«a_b|a-b»")),
        ("IDT0202", "host must be text", host("«[a]|a»")),
        (
            "IDT0210",
            "trafficPolicy sets nothing",
            rule("trafficPolicy: «{}|{tls: {}}»"),
        ),
        (
            "IDT0210",
            "trafficPolicy sets nothing",
            rule("trafficPolicy: «{tls: ~}|{tls: {}}»"),
        ),
        (
            "IDT0405",
            "SIMPLE and MUTUAL are not supported",
            tls("mode: «SIMPLE|DISABLE»"),
        ),
        (
            "IDT0405",
            "SIMPLE and MUTUAL are not supported",
            tls("mode: «MUTUAL|DISABLE», clientCertificate: /c"),
        ),
        (
            "IDT0406",
            "accept any server",
            tls("mode: ISTIO_MUTUAL, insecureSkipVerify: «true|false»"),
        ),
        (
            "IDT0407",
            "`privateKey` must be absent",
            tls("mode: ISTIO_MUTUAL, «privateKey|sni»: x"),
        ),
        (
            "IDT0407",
            "`credentialName` must be absent",
            tls("mode: ISTIO_MUTUAL, «credentialName|sni»: x"),
        ),
        (
            "IDT0408",
            "`tunnel` is not supported",
            policy("tls: {}, «tunnel: {}|tunnel: ~»"),
        ),
        (
            "IDT0408",
            "`proxyProtocol` is not supported",
            policy("tls: {}, «proxyProtocol: {}|proxyProtocol: ~»"),
        ),
        (
            "IDT0203",
            "unknown TLS mode `ISTIO_MUTAL`",
            tls("mode: «ISTIO_MUTAL|ISTIO_MUTUAL»"),
        ),
        (
            "IDT0203",
            "unknown load balancer `RANDOMLY`",
            policy("loadBalancer: {simple: «RANDOMLY|RANDOM»}"),
        ),
        (
            "IDT0201",
            "unknown field `subjectAltName` in `tls`",
            tls("mode: ISTIO_MUTUAL, «subjectAltName|subjectAltNames»: [x]"),
        ),
        (
            "IDT0201",
            "unknown field `maxConnection` in connectionPool.tcp",
            policy("connectionPool: {tcp: {«maxConnection|maxConnections»: 1}}"),
        ),
        (
            "IDT0201",
            "in outlierDetection",
            policy("outlierDetection: {«inteval|interval»: 1s}"),
        ),
        (
            "IDT0210",
            "an entry of subjectAltNames is empty",
            tls("mode: ISTIO_MUTUAL, subjectAltNames: [«\"\"|x»]"),
        ),
        (
            "IDT0204",
            "missing field `port`",
            port("¦{tls: {}«|, port: {number: 1}»}"),
        ),
        (
            "IDT0204",
            "missing field `number`",
            port("{tls: {}, port: ¦{«|number: 1»}}"),
        ),
        (
            "IDT0205",
            "port `0` is out of range",
            port("{tls: {}, port: {number: «0|1»}}"),
        ),
        (
            "IDT0205",
            "port `65536` is out of range",
            port("{tls: {}, port: {number: «65536|65535»}}"),
        ),
        (
            "IDT0202",
            "port must be a whole number, not the text `80`",
            port("{tls: {}, port: {number: «\"80\"|80»}}"),
        ),
        (
            "IDT0209",
            "the port 80 stands twice",
            port("{tls: {}, port: {number: 80}}, {tls: {}, port: {number: «80|81»}}"),
        ),
        (
            "IDT0210",
            "an entry of portLevelSettings sets nothing",
            port("¦{port: {number: 80}«|, tls: {}»}"),
        ),
        (
            "IDT0204",
            "missing field `name` in a subset",
            rule("subsets: [¦{«labels: {}|name: x»}]"),
        ),
        (
            "IDT0206",
            "`V1` is not a valid subset name",
            rule("subsets: [{name: «V1|v1»}]"),
        ),
        (
            "IDT0209",
            "the subset `v1` stands twice",
            rule("subsets: [{name: v1}, {name: «v1|v2»}]"),
        ),
        (
            "IDT0202",
            "a subset must be a map, not null",
            rule("subsets: [«~|{name: v1}»]"),
        ),
        (
            "IDT0211",
            "stand alone",
            rule("exportTo: ¦[\"*\", «a|»]").replace("[\"*\", «a|»]", "[\"*\"«, a|»]"),
        ),
        (
            "IDT0209",
            "exportTo names `shop` twice",
            rule("exportTo: [., «shop|other»]"),
        ),
        (
            "IDT0206",
            "`~` is not a namespace",
            rule("exportTo: [«\"~\"|.»]"),
        ),
        (
            "IDT0206",
            "`a.b` is not a namespace",
            rule("exportTo: [«a.b|a»]"),
        ),
        (
            "IDT0410",
            "cannot be exported",
            rule("exportTo: «[\"*\"]|[.]», workloadSelector: {matchLabels: {app: x}}"),
        ),
        (
            "IDT0201",
            "unknown field `labels` in workloadSelector",
            rule("workloadSelector: {«labels|matchLabels»: {app: x}}"),
        ),
        (
            "IDT0213",
            "`*` is not a label value",
            rule("workloadSelector: {matchLabels: {app: «\"*\"|x»}}"),
        ),
    ]
}

fn service_cases() -> Vec<Case> {
    let port = |fields: &str| hosted(&format!("ports: [{{{fields}}}]"));
    vec![
        (
            "IDT0204",
            "missing field `hosts`",
            service("«|hosts: [a.example]»").replace("{addresses", "¦{addresses"),
        ),
        (
            "IDT0210",
            "at least one host",
            service("hosts: «[]|[a.example]»"),
        ),
        (
            "IDT0207",
            "would be every host",
            service("hosts: [«\"*\"|\"*.a\"»]"),
        ),
        (
            "IDT0207",
            "`a..b` is not a valid host",
            service("hosts: [«a..b|a.b»]"),
        ),
        (
            "IDT0209",
            "the host `a.b` stands twice",
            service("hosts: [a.b, «A.B|a.c»]"),
        ),
        (
            "IDT0208",
            "`10.0.0.256` is not a usable address",
            service("hosts: [a.b]").replace("10.0.0.1", "«10.0.0.256|10.0.0.25»"),
        ),
        (
            "IDT0208",
            "`10.0.0.0/33` is not a usable address",
            service("hosts: [a.b]").replace("10.0.0.1", "«10.0.0.0/33|10.0.0.0/32»"),
        ),
        (
            "IDT0205",
            "port `65536` is out of range",
            port("name: http, number: «65536|65535»"),
        ),
        (
            "IDT0205",
            "targetPort `0` is out of range",
            port("name: http, number: 80, targetPort: «0|1»"),
        ),
        (
            "IDT0204",
            "missing field `name` in a port",
            port("«|name: http, »number: 80").replace("[{«", "[¦{«"),
        ),
        (
            "IDT0206",
            "`HTTP` is not a valid port name",
            port("name: «HTTP|http», number: 80"),
        ),
        (
            "IDT0203",
            "unknown protocol `HTPT`",
            port("name: http, number: 80, protocol: «HTPT|http»"),
        ),
        (
            "IDT0209",
            "the port number `80` stands twice",
            hosted("ports: [{name: a, number: 80}, {name: b, number: «80|81»}]"),
        ),
        (
            "IDT0209",
            "the port name `a` stands twice",
            hosted("ports: [{name: a, number: 80}, {name: «a|b», number: 81}]"),
        ),
        (
            "IDT0203",
            "unknown location `mesh_internal`",
            hosted("location: «mesh_internal|MESH_INTERNAL»"),
        ),
        (
            "IDT0203",
            "unknown resolution `STATICAL`",
            hosted("resolution: «STATICAL|STATIC»"),
        ),
        (
            "IDT0409",
            "resolution by DNS is not supported",
            hosted("resolution: «DNS|STATIC»"),
        ),
        (
            "IDT0409",
            "resolution by DNS is not supported",
            hosted("resolution: «DYNAMIC_DNS|STATIC»"),
        ),
        (
            "IDT0410",
            "without addresses",
            networking("ServiceEntry", "{hosts: [a.b], resolution: «NONE|STATIC»}"),
        ),
        (
            "IDT0410",
            "without addresses",
            networking("ServiceEntry", "¦{hosts: [a.b]«|, addresses: [10.0.0.1]»}"),
        ),
        (
            "IDT0410",
            "NONE has no endpoints",
            hosted("resolution: NONE, «endpoints: [{address: 10.0.0.2}]|endpoints: []»"),
        ),
        (
            "IDT0410",
            "exclude each other",
            hosted(
                "resolution: STATIC, «endpoints: [{address: 10.0.0.2}]|endpoints: ~», workloadSelector: {labels: {app: x}}",
            ),
        ),
        (
            "IDT0410",
            "cannot be told apart",
            service(
                "resolution: STATIC, ¦hosts: [a.b, c.d], ports: [{name: a, number: 80, protocol: «TCP|HTTP»}]",
            ),
        ),
        ("IDT0211", "stand alone", hosted("exportTo: ¦[\"~\"«, a|»]")),
        (
            "IDT0209",
            "exportTo names `*` twice",
            hosted("exportTo: [\"*\"«, ¦\"*\"|»]"),
        ),
        (
            "IDT0411",
            "no port named `htp`",
            endpoint("address: 10.0.0.2, ports: {«htp|http»: 81}"),
        ),
        (
            "IDT0204",
            "missing field `address` in an endpoint",
            endpoint("«|address: 10.0.0.2, »network: x").replace("endpoints: [{", "endpoints: [¦{"),
        ),
        (
            "IDT0208",
            "`a.example` is not the address of a workload",
            endpoint("address: «a.example|10.0.0.2»"),
        ),
        (
            "IDT0201",
            "unknown field `serviceacount` in an endpoint",
            endpoint("address: 10.0.0.2, «serviceacount|serviceAccount»: x"),
        ),
        (
            "IDT0206",
            "the service account `a/b` makes no SPIFFE ID",
            endpoint("address: 10.0.0.2, serviceAccount: «a/b|a.b»"),
        ),
    ]
}

fn workload_cases() -> Vec<Case> {
    vec![
        (
            "IDT0208",
            "`unix:///run/x`",
            workload("address: «unix:///run/x|10.0.0.2»"),
        ),
        (
            "IDT0208",
            "`0.0.0.0`",
            workload("address: «0.0.0.0|10.0.0.2»"),
        ),
        (
            "IDT0208",
            "`::ffff:10.0.0.2`",
            workload("address: «\"::ffff:10.0.0.2\"|10.0.0.2»"),
        ),
        (
            "IDT0208",
            "`10.0.0.2/24`",
            workload("address: «10.0.0.2/24|10.0.0.2»"),
        ),
        (
            "IDT0204",
            "missing field `address`",
            networking("WorkloadEntry", "¦{«|address: 10.0.0.2»}"),
        ),
        (
            "IDT0205",
            "port `70000` is out of range",
            workload("address: 10.0.0.2, ports: {http: «70000|7000»}"),
        ),
        (
            "IDT0206",
            "`Http` is not a valid port name",
            workload("address: 10.0.0.2, ports: {«Http|http»: 80}"),
        ),
        (
            "IDT0202",
            "ports must be a map",
            workload("address: 10.0.0.2, ports: «[80]|{http: 80}»"),
        ),
        (
            "IDT0205",
            "weight `-1` is out of range",
            workload("address: 10.0.0.2, weight: «-1|0»"),
        ),
        (
            "IDT0202",
            "weight must be a whole number, not `0.5`",
            workload("address: 10.0.0.2, weight: «0.5|5»"),
        ),
    ]
}

pub(crate) fn cases() -> Vec<Case> {
    [
        text_cases(),
        document_cases(),
        mesh_policy_cases(),
        rule_cases(),
        service_cases(),
        workload_cases(),
        security::policy_cases(),
        security::peer_authentication_cases(),
        security::authorization_cases(),
    ]
    .concat()
}

/// Accepted files, and the one warning or info that each has, at `«` or `¦` of the left side.
pub(crate) fn remarks() -> Vec<Case> {
    [own_remarks(), security::remarks()].concat()
}

fn own_remarks() -> Vec<Case> {
    vec![
        (
            "IDT0306",
            "the kind `Deployment` of `apps/v1` is no policy",
            "apiVersion: apps/v1\nkind: «Deployment|»\n".into(),
        ),
        (
            "IDT0306",
            "the kind `Policy` of `kyverno.io/v1`",
            "apiVersion: kyverno.io/v1\nkind: «Policy|»\n".into(),
        ),
        (
            "IDT0451",
            "only the first",
            mesh_policy("{peers: [{mtls: {}}, {mtls: {mode: «PERMISSIVE|»}}]}"),
        ),
        (
            "IDT0452",
            "`allowTls` is ignored",
            mesh_policy("{peers: [{mtls: {allowTls: «true|»}}]}"),
        ),
        (
            "IDT0452",
            "`peerIsOptional` is ignored",
            mesh_policy("{peers: [{mtls: ~}], peerIsOptional: «true|»}"),
        ),
        (
            "IDT0452",
            "`originIsOptional` is ignored",
            mesh_policy("{peers: [{mtls: ~}], originIsOptional: «true|»}"),
        ),
        (
            "IDT0452",
            "`principalBinding` is ignored",
            mesh_policy("{peers: [{mtls: ~}], principalBinding: «USE_ORIGIN|»}"),
        ),
        (
            "IDT0453",
            "off for the whole mesh",
            mesh_policy("«|»{}").replace("spec", "¦spec"),
        ),
        (
            "IDT0453",
            "off for the whole mesh",
            mesh_policy("{«peers|»: []}"),
        ),
        (
            "IDT0453",
            "without a mode means DISABLE",
            policy("«tls|»: {}"),
        ),
        (
            "IDT0454",
            "counts as absent",
            tls("mode: ISTIO_MUTUAL, subjectAltNames: «[]|»"),
        ),
        (
            "IDT0455",
            "no identity can match `I-do-not-exist`",
            tls("mode: ISTIO_MUTUAL, subjectAltNames: [«I-do-not-exist|»]"),
        ),
        (
            "IDT0455",
            "no identity can match `spiffe://a/`",
            hosted("subjectAltNames: [«spiffe://a/|»]"),
        ),
        (
            "IDT0456",
            "never selected",
            rule("subsets: [{name: a, «trafficPolicy|»: {tls: {mode: DISABLE}}}]"),
        ),
        (
            "IDT0457",
            "`connectionPool.tcp`",
            policy("connectionPool: {«tcp|»: {maxConnections: 1}}"),
        ),
        (
            "IDT0457",
            "`loadBalancer`",
            policy("«loadBalancer|»: {simple: RANDOM}"),
        ),
        (
            "IDT0457",
            "`caCertificates`",
            tls("mode: DISABLE, «caCertificates|»: /x"),
        ),
        (
            "IDT0457",
            "`workloadSelector` has no effect",
            hosted("«workloadSelector|»: {labels: {app: x}}"),
        ),
        (
            "IDT0458",
            "`foo.bar` is taken as written",
            networking("DestinationRule", "{host: «foo.bar|»}"),
        ),
        ("IDT0459", "`*foo.com`", service("hosts: [«\"*foo.com\"|»]")),
        (
            "IDT0460",
            "without labels is ignored",
            rule("workloadSelector: «{}|»"),
        ),
        (
            "IDT0460",
            "without labels selects nothing",
            hosted("resolution: STATIC, workloadSelector: «{labels: {}}|»"),
        ),
        (
            "IDT0461",
            "`outlierDetection`",
            policy("«outlierDetection|»: {}"),
        ),
        (
            "IDT0461",
            "`connectionPool.http`",
            policy("connectionPool: {«http|»: {maxRetries: 1}}"),
        ),
        (
            "IDT0461",
            "`retryBudget`",
            policy("tls: ~, «retryBudget|»: {}"),
        ),
        (
            "IDT0462",
            "the API of Istio 1.1 to 1.5",
            mesh_policy("{peers: [{mtls: {}}]}").replace("default", "«default|»"),
        ),
    ]
}

/// Files that are too much: code, and the text.
pub(crate) fn bombs() -> Vec<(&'static str, String)> {
    let laughs: String = (1..10)
        .map(|n| format!("a{n}: &a{n} [*a{0}, *a{0}, *a{0}, *a{0}]\n", n - 1))
        .collect();
    let keys: String = (0..110_000).map(|n| format!("{n:x}: \n")).collect();
    vec![
        ("IDT0105", " ".repeat((1 << 20) + 1)),
        ("IDT0106", "[".repeat(1 << 20)),
        ("IDT0106", "{a: ".repeat(1 << 18)),
        ("IDT0106", "- ".repeat(1 << 19)),
        (
            "IDT0106",
            format!("a: {}{}", "[".repeat(64), "]".repeat(64)),
        ),
        ("IDT0107", format!("[{}]", "x,".repeat((1 << 19) - 2))),
        ("IDT0107", "---\n".repeat(1 << 18)),
        ("IDT0107", keys),
        ("IDT0111", "a: b\n".repeat(100_000)),
        (
            "IDT0111",
            format!(
                "apiVersion: v1\nkind: List\nitems:\n{}",
                "- 1\n".repeat(90_000)
            ),
        ),
        ("IDT0103", format!("a0: &a0 [x]\n{laughs}")),
        ("IDT0101", format!("a: \"{}", "\\x41".repeat(200_000))),
    ]
    .into_iter()
    .chain(security::bombs())
    .collect()
}
